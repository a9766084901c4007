//! A receive buffer of a connection with records: plaintext at its front, and behind it what was not opened yet.

use bytes::{Buf, BytesMut};

use super::{
    Opener, RecordError,
    record::{OVERHEAD_BYTES, sealed_bytes},
};

/// Opens records where they were received.
///
/// The buffer is the caller's, and always the same one: so many bytes of plaintext, then so much of a record as is there.
/// Plaintext of several records is moved together, so that what is larger than a record lies in one piece, and whoever
/// reads it takes it off the front as from a plain connection.
#[derive(Debug)]
pub struct Incoming {
    opener: Opener,
    /// Bytes of plaintext at the buffer's front.
    plain: usize,
}

impl Incoming {
    /// For the bytes behind the handshake.
    pub fn new(opener: Opener) -> Self {
        Self { opener, plain: 0 }
    }

    /// Opens all records that are there as a whole.
    ///
    /// # Errors
    /// [`RecordError`]. What was opened before is there all the same, and can be trusted.
    pub fn open(&mut self, buffer: &mut BytesMut) -> Result<(), RecordError> {
        // plain ≤ at: between them lies what records have beside their plaintext.
        let mut at = self.plain;
        let opened = loop {
            match self.opener.open(&mut buffer[at..]) {
                Ok(Some(opened)) if self.plain == 0 => {
                    // Nothing to be joined with: the plaintext stays where it is, and the buffer begins there.
                    buffer.advance(at + opened.plaintext.start);
                    at = opened.bytes - opened.plaintext.start;
                    self.plain = opened.plaintext.len();
                }
                Ok(Some(opened)) => {
                    let plaintext = at + opened.plaintext.start..at + opened.plaintext.end;
                    at += opened.bytes;
                    buffer.copy_within(plaintext.clone(), self.plain);
                    self.plain += plaintext.len();
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let rest = buffer.len() - at;
        buffer.copy_within(at.., self.plain);
        buffer.truncate(self.plain + rest);
        opened
    }

    /// Leaves only the plaintext in the buffer, to be read off its front, and gives what is behind it: for
    /// [`rejoin`](Self::rejoin). Until then nothing may be appended to the buffer.
    #[must_use = "what is not rejoined is lost"]
    pub fn part(&self, buffer: &mut BytesMut) -> BytesMut {
        buffer.split_off(self.plain)
    }

    /// Puts both parts together again, when of the plaintext was read what is there.
    pub fn rejoin(&mut self, buffer: &mut BytesMut, rest: BytesMut) {
        self.plain = buffer.len();
        // They lie one behind the other in the same memory: nothing is copied.
        buffer.unsplit(rest);
    }

    /// The plaintext at the buffer's front.
    pub fn plaintext<'a>(&self, buffer: &'a [u8]) -> &'a [u8] {
        &buffer[..self.plain.min(buffer.len())]
    }

    /// How many more bytes will be wanted, if `plaintext` more of what they hold are: a hint for the size of a read.
    pub fn missing(&self, buffer: &[u8], plaintext: usize) -> usize {
        let rest = &buffer[self.plaintext(buffer).len()..];
        let wanted = if plaintext == 0 { 0 } else { sealed_bytes(plaintext).saturating_sub(rest.len()) };
        wanted.max(self.opener.missing(rest))
    }

    /// Whether the other side has said that nothing follows: [`Opener::has_ended`].
    pub fn has_ended(&self) -> bool {
        self.opener.has_ended()
    }

    /// Whether a record has verified: [`Opener::has_verified`].
    pub fn has_verified(&self) -> bool {
        self.opener.has_verified()
    }
}

const _: () = assert!(OVERHEAD_BYTES == 20, "docs/PROTOCOL.md says so");
