//! Records: pieces of a stream that nobody without the connection's keys can read, change, reorder, repeat or cut off.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | n: bytes of plaintext, at most 65516, in the first record of a direction 4076, little-endian |
//! | 2 | 1 | kind: 0 data, 1 end: nothing follows on this half of the connection, and n is 0 |
//! | 3 | 1 | reserved, 0 |
//! | 4 | n | the plaintext, encrypted by AES-256-GCM |
//! | 4 + n | 16 | the tag over it and over the first four bytes |
//!
//! Each direction has a key of its own. A record's nonce is its number in its direction, from 0: four bytes of zero and
//! eight of the number, big-endian. It is not sent, so that a record which is not the next one does not verify.

use std::{fmt, ops::Range};

use zeroize::Zeroizing;

use super::cipher::{Cipher, NONCE_BYTES, TAG_BYTES};

/// A whole record, at most.
pub const MAX_RECORD_BYTES: usize = 64 << 10;
/// Behind how many records a direction's key is replaced by the next one.
///
/// A record is at most 2^12 blocks, so that a key protects at most 2^32 of them. The advantage that an attacker has by
/// then is below 2^-64 for confidentiality, (2^32)² / 2^129, and below 2^-115 for one forgery, after which a connection
/// ends (draft-irtf-cfrg-aead-limits, section 6.1). NIST SP 800-38D, section 8.3, allows 2^32 records.
pub const REKEY_RECORDS: u32 = 1 << 20;

const HEADER_BYTES: usize = 4;
/// What a record has beside its plaintext.
pub(super) const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// The plaintext of one record, at most. Who seals a stream piece by piece makes full records by pieces of a multiple of it.
pub const MAX_PLAINTEXT_BYTES: usize = MAX_RECORD_BYTES - OVERHEAD_BYTES;
const _: () = assert!(MAX_PLAINTEXT_BYTES <= u16::MAX as usize);
/// The same of the first record of a direction: until it verifies, nobody knows who sends it, and it has to be kept as a whole.
pub(super) const MAX_FIRST_BYTES: usize = 4096 - OVERHEAD_BYTES;

const DATA: u8 = 0;
const END: u8 = 1;

/// Why a stream of records is not to be trusted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// It was changed on its way, or is not the next one, or not of this connection.
    #[error("a record does not verify: it was changed, or is not the one that had to come")]
    Forged,
    /// Its length is more than a record can have.
    #[error(
        "a record of {0} bytes of plaintext was announced: 65516 are the most, and 4076 in the first one"
    )]
    TooLong(u16),
    /// It verifies, but this version has no such record.
    #[error("a record has the kind {0}, which this version does not know")]
    Unknown(u8),
    /// Something came behind the end.
    #[error("something came behind the record that ended the stream")]
    BehindEnd,
}

/// One direction's key and how often it was used.
struct Chain {
    cipher: Cipher,
    /// The next record's number.
    number: u64,
    /// Records that this key is still good for.
    left: u32,
    rekey_records: u32,
}

impl Chain {
    fn new(key: &[u8; 32], rekey_records: u32) -> Self {
        Self { cipher: Cipher::new(key), number: 0, left: rekey_records, rekey_records }
    }

    /// The nonce of the next record, which the caller uses once.
    fn step(&mut self) -> [u8; NONCE_BYTES] {
        if self.left == 0 {
            self.rekey();
        }
        self.left -= 1;
        let nonce = nonce(self.number);
        self.number += 1;
        nonce
    }

    /// Noise's REKEY (revision 34, section 4.2): what was sent under the former key cannot be read with the new one.
    fn rekey(&mut self) {
        let mut key = Zeroizing::new([0; 32]);
        self.cipher.seal(nonce(u64::MAX), &[], &mut *key);
        self.cipher = Cipher::new(&key);
        self.left = self.rekey_records;
    }
}

/// Without keys.
impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").field("number", &self.number).finish_non_exhaustive()
    }
}

fn nonce(number: u64) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    nonce
}

/// Makes records of one direction of a connection.
#[derive(Debug)]
pub struct Sealer {
    chain: Chain,
    ended: bool,
}

impl Sealer {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self::rekeying(key, REKEY_RECORDS)
    }

    /// With another [`REKEY_RECORDS`], for tests.
    pub(super) fn rekeying(key: &[u8; 32], rekey_records: u32) -> Self {
        Self { chain: Chain::new(key, rekey_records), ended: false }
    }

    /// As it is before the record of this number, under the key that is good for it then.
    #[cfg(test)]
    pub(super) fn at(key: &[u8; 32], number: u64) -> Self {
        let mut sealer = Self::new(key);
        sealer.chain.number = number;
        sealer.chain.left = REKEY_RECORDS - (number % u64::from(REKEY_RECORDS)) as u32;
        sealer
    }

    /// A record without anything in it.
    #[cfg(test)]
    pub(super) fn seal_nothing(&mut self, out: &mut Vec<u8>) {
        self.record(DATA, &[], out);
    }

    /// Appends `plaintext` to `out`, in as many records as it needs. Nothing is allocated but `out`'s own growth.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) {
        debug_assert!(!self.ended, "nothing follows the end");
        out.reserve(sealed_bytes(plaintext.len()));
        let mut rest = plaintext;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(rest.len().min(most(self.chain.number)));
            self.record(DATA, piece, out);
            rest = behind;
        }
    }

    /// Appends the record that says that nothing follows; once.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.ended, true) {
            self.record(END, &[], out);
        }
    }

    fn record(&mut self, kind: u8, plaintext: &[u8], out: &mut Vec<u8>) {
        let [low, high] = (plaintext.len() as u16).to_le_bytes();
        let header = [low, high, kind, 0];
        out.extend_from_slice(&header);
        let start = out.len();
        out.extend_from_slice(plaintext);
        let nonce = self.chain.step();
        let tag = self.chain.cipher.seal(nonce, &header, &mut out[start..]);
        out.extend_from_slice(&tag);
    }
}

/// The plaintext of the record of this number, at most.
fn most(number: u64) -> usize {
    if number == 0 { MAX_FIRST_BYTES } else { MAX_PLAINTEXT_BYTES }
}

/// How many bytes so much plaintext is as records, where the first is not among them.
pub(super) fn sealed_bytes(plaintext: usize) -> usize {
    plaintext + plaintext.div_ceil(MAX_PLAINTEXT_BYTES) * OVERHEAD_BYTES
}

/// A record that verified, and now is plaintext.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Where in the buffer its plaintext lies.
    pub plaintext: Range<usize>,
    /// How many bytes of the buffer the record was.
    pub bytes: usize,
    /// Whether it ended the stream.
    pub end: bool,
}

/// Opens the records of one direction of a connection, in their order. After an error there is only that error.
#[derive(Debug)]
pub struct Opener {
    chain: Chain,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    Dead(RecordError),
}

impl Opener {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self::rekeying(key, REKEY_RECORDS)
    }

    /// With another [`REKEY_RECORDS`], for tests.
    pub(super) fn rekeying(key: &[u8; 32], rekey_records: u32) -> Self {
        Self { chain: Chain::new(key, rekey_records), state: State::Open }
    }

    /// Opens the record at the front of `buffer`, in place. `None`: it is not there as a whole.
    ///
    /// Where it does not verify, its bytes are worth nothing any more.
    ///
    /// # Errors
    /// [`RecordError`]: whatever the connection still brings cannot be trusted.
    pub fn open(&mut self, buffer: &mut [u8]) -> Result<Option<Opened>, RecordError> {
        let opened = match self.state {
            State::Open => self.next(buffer),
            State::Ended if buffer.is_empty() => Ok(None),
            State::Ended => Err(RecordError::BehindEnd),
            State::Dead(error) => Err(error),
        };
        match &opened {
            Ok(Some(Opened { end: true, .. })) => self.state = State::Ended,
            Ok(_) => {}
            Err(error) => self.state = State::Dead(*error),
        }
        opened
    }

    fn next(&mut self, buffer: &mut [u8]) -> Result<Option<Opened>, RecordError> {
        let Some(header) = buffer.first_chunk::<HEADER_BYTES>().copied() else { return Ok(None) };
        let length = self.plaintext_bytes(header)?;
        let bytes = length + OVERHEAD_BYTES;
        let Some(record) = buffer.get_mut(HEADER_BYTES..bytes) else { return Ok(None) };
        let nonce = self.chain.step();
        let Some((text, tag)) = record.split_last_chunk_mut() else { return Err(RecordError::Forged) };
        if !self.chain.cipher.open(nonce, &header, text, *tag) {
            return Err(RecordError::Forged);
        }
        let end = match header[2] {
            DATA => false,
            END if length == 0 => true,
            kind => return Err(RecordError::Unknown(kind)),
        };
        Ok(Some(Opened { plaintext: HEADER_BYTES..HEADER_BYTES + length, bytes, end }))
    }

    /// How many more bytes complete the record at the front of `buffer`; 0 if that is not known.
    pub fn missing(&self, buffer: &[u8]) -> usize {
        let Some(header) = buffer.first_chunk::<HEADER_BYTES>() else { return 0 };
        self.plaintext_bytes(*header)
            .map_or(0, |length| (length + OVERHEAD_BYTES).saturating_sub(buffer.len()))
    }

    fn plaintext_bytes(&self, header: [u8; HEADER_BYTES]) -> Result<usize, RecordError> {
        let length = u16::from_le_bytes([header[0], header[1]]);
        if usize::from(length) > most(self.chain.number) {
            return Err(RecordError::TooLong(length));
        }
        Ok(usize::from(length))
    }

    /// Whether the other side has said that nothing follows. A stream that ends without it was cut off.
    pub fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Whether a record has verified: whoever sent it has the connection's keys, and so the secure key.
    pub fn has_verified(&self) -> bool {
        self.chain.number > 1 || (self.chain.number == 1 && !matches!(self.state, State::Dead(_)))
    }
}
