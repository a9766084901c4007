//! What a protocol must be able to do to carry the load.

use super::Options;

/// Which end of a request a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It sends requests.
    Requester,
    /// It answers them.
    Handler,
}

/// One connection's side of a protocol: its templates and what it counts. It is asked for bytes and given bytes.
pub trait Wire: Sized {
    /// The protocol's name, as results show it.
    const NAME: &'static str;

    /// The state of connection `index` of its role.
    ///
    /// # Errors
    /// When the protocol cannot carry what the options ask for.
    fn new(role: Role, index: u32, options: &Options) -> anyhow::Result<Self>;

    /// Appends what this connection says first. The server's answer to the last of it must come back as
    /// [`Event::Ready`], once.
    fn open(&mut self, out: &mut Vec<u8>);

    /// Appends a request. `number` identifies it among those of this connection.
    fn request(&mut self, number: u64, out: &mut Vec<u8>);

    /// Reads one message off the front of `input` and says how many bytes it had. `None`: it is not all there yet.
    ///
    /// What the protocol wants answered (a delivery to a handler, a ping) is appended to `out`.
    ///
    /// # Errors
    /// When the server breaks the protocol, refuses the connection, or leaves.
    fn next(&mut self, input: &[u8], out: &mut Vec<u8>) -> anyhow::Result<Option<(usize, Event)>>;

    /// Appends what this connection says last, so that nothing of the run is left with the server.
    fn close(&mut self, _out: &mut Vec<u8>) {}
}

/// What a message meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The connection can be used: the requester is known, or the handler is registered.
    Ready,
    /// A request was answered, with the payload that it had.
    Replied(u64),
    /// A request ended otherwise, or, without a number, something else went wrong.
    Failed(Option<u64>, Box<str>),
    /// Nothing to count: a delivery that was answered, a ping.
    Other,
}

/// A payload of `size` bytes that is JSON text: an object where there is room for one, else digits.
pub fn payload(size: usize) -> Vec<u8> {
    const FRAME: usize = br#"{"p":""}"#.len();
    match size.checked_sub(FRAME) {
        Some(padding) => format!(r#"{{"p":"{}"}}"#, "x".repeat(padding)).into_bytes(),
        None => vec![b'1'; size],
    }
}

/// How many requests each handler must be willing to hold so that it never holds back the load.
pub(super) fn credit(options: &Options) -> u32 {
    options.requesters.saturating_mul(options.in_flight).min(u32::from(u16::MAX))
}

/// The width of a request's number in text protocols, where it is patched into templates.
pub const DIGITS: usize = 12;

/// Writes a number as [`DIGITS`] decimal digits, with leading zeros.
#[inline]
pub fn write_digits(mut number: u64, out: &mut [u8]) {
    for digit in out[..DIGITS].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    debug_assert_eq!(number, 0, "more requests than {DIGITS} digits can count");
}

/// Reads what [`write_digits`] wrote.
#[inline]
pub fn read_digits(text: &[u8]) -> Option<u64> {
    if text.len() != DIGITS {
        return None;
    }
    text.iter().try_fold(0u64, |number, &byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit < 10).then(|| number * 10 + u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Payloads have the size asked for and are JSON text, but the empty one.
    #[test]
    fn payloads() {
        for size in 0..300 {
            let bytes = payload(size);
            assert_eq!(bytes.len(), size);
            assert!(size == 0 || serde_json::from_slice::<serde_json::Value>(&bytes).is_ok(), "{size}");
        }
    }

    /// Numbers survive the way through a text protocol; other text is not taken for one.
    #[test]
    fn digits() {
        let mut text = [0; DIGITS];
        for number in [0, 1, 42, 999_999_999_999] {
            write_digits(number, &mut text);
            assert_eq!(read_digits(&text), Some(number));
        }
        assert_eq!(read_digits(b"12"), None);
        assert_eq!(read_digits(b"00000000000x"), None);
    }
}
