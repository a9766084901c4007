//! The frame around a record's body: header of 24 bytes, body, zeros up to a multiple of 8.
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 4 | CRC-32, seeded with the segment's salt, of bytes 4 to the end of the body |
//! | 4 | 4 | length of the body |
//! | 8 | 8 | sequence |
//! | 16 | 1 | kind |
//! | 17 | 1 | flags of the kind: 0 |
//! | 18 | 6 | stamp of the segment |
//! | 24 | length | body |

use bytes::{BufMut, BytesMut};
use crc32fast::Hasher;

use super::{
    Sequence,
    body::Record,
    fields::{u32_at, u64_at},
};

/// Bytes of a record before its body.
pub const RECORD_HEADER_BYTES: usize = 24;
/// Records begin at multiples of this.
pub const RECORD_ALIGNMENT: usize = 8;
/// The shortest record: every kind's body has at least 8 bytes.
pub const MIN_RECORD_BYTES: usize = RECORD_HEADER_BYTES + 8;

const CRC_BYTES: usize = 4;
const STAMP_AT: usize = 18;
const _: () = assert!(STAMP_AT + size_of::<[u8; 6]>() == RECORD_HEADER_BYTES);
const _: () = assert!(
    RECORD_HEADER_BYTES.is_multiple_of(RECORD_ALIGNMENT) && MIN_RECORD_BYTES.is_multiple_of(RECORD_ALIGNMENT)
);

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A server begins.
    Boot = 1,
    /// A durable request or send was received.
    Request = 2,
    /// An attempt began.
    Delivered = 3,
    /// The outcome of a request is decided.
    Reply = 4,
    /// A request needs nothing more.
    Done = 5,
    /// An attempt of a send failed, and another one follows.
    Retry = 6,
    /// A send was given up.
    Dead = 7,
    /// Everything up to a sequence was synced before this record was written.
    Mark = 8,
    /// A living record, copied forward.
    Moved = 9,
    /// Records were damaged and given up by a repair.
    Lost = 10,
    /// A requester has its outcome, which is kept for its idempotency key.
    Claimed = 11,
}

impl Kind {
    /// The kind with this number, if this version knows one.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Boot,
            2 => Self::Request,
            3 => Self::Delivered,
            4 => Self::Reply,
            5 => Self::Done,
            6 => Self::Retry,
            7 => Self::Dead,
            8 => Self::Mark,
            9 => Self::Moved,
            10 => Self::Lost,
            11 => Self::Claimed,
            _ => return None,
        })
    }

    /// The name in docs/STORAGE.md.
    pub fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Request => "request",
            Self::Delivered => "delivered",
            Self::Reply => "reply",
            Self::Done => "done",
            Self::Retry => "retry",
            Self::Dead => "dead",
            Self::Mark => "mark",
            Self::Moved => "moved",
            Self::Lost => "lost",
            Self::Claimed => "claimed",
        }
    }

    /// Whether a record of this kind keeps its segment until it is said to have died.
    ///
    /// `Done` does not: segments go oldest first, and what a `Done` buries lies before it, so it is gone already when
    /// the segment of the `Done` has become the oldest.
    pub fn lives(self) -> bool {
        match self {
            Self::Request
            | Self::Delivered
            | Self::Reply
            | Self::Retry
            | Self::Dead
            | Self::Moved
            | Self::Claimed => true,
            Self::Boot | Self::Done | Self::Mark | Self::Lost => false,
        }
    }
}

/// What makes records one segment's own: both parts are drawn at random for each segment.
///
/// Bytes of another segment, or of an earlier use of the same blocks, do not pass for records. Nor do bytes of a payload,
/// whose sender cannot know the 80 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seal {
    /// Seeds the CRC.
    pub salt: u32,
    /// Stands in each record's header.
    pub stamp: [u8; 6],
}

/// Why bytes are not the record that should be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// Fewer bytes are left than a header has, or than its length says.
    #[error("a record of {claimed} bytes does not fit into the {room} that are left")]
    TooLong {
        /// What the header says, padding included.
        claimed: u64,
        /// What there is.
        room: u64,
    },
    /// The stamp is not the segment's.
    #[error("no record of this segment begins here")]
    Stamp,
    /// The checksum is wrong.
    #[error("the checksum is {computed:08x}, but {stored:08x} is written there")]
    Checksum {
        /// What the record says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// Something else than zeros behind the body.
    #[error("the padding behind the record is not zero")]
    Padding,
    /// A record, but not the one that must be here.
    #[error("a record with sequence {found} stands where {expected} must be")]
    Sequence {
        /// The one behind the record before.
        expected: Sequence,
        /// What is there.
        found: Sequence,
    },
    /// Zeros where a record must be.
    #[error("nothing is written where a record must be")]
    Unwritten,
}

/// The header of a record. That it is one is only known when the checksum has been compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub(super) crc: u32,
    /// Bytes of the body.
    pub body_bytes: u32,
    /// The record's sequence.
    pub sequence: Sequence,
    /// Its kind, as it is written.
    pub kind: u8,
}

impl Header {
    /// Reads a header with `room` bytes left from its beginning; `None` if nothing was ever written there.
    ///
    /// # Errors
    /// [`Flaw::Stamp`] and [`Flaw::TooLong`].
    pub fn read(bytes: &[u8; RECORD_HEADER_BYTES], room: u64, seal: &Seal) -> Result<Option<Self>, Flaw> {
        if bytes[STAMP_AT..] != seal.stamp {
            return if *bytes == [0; RECORD_HEADER_BYTES] { Ok(None) } else { Err(Flaw::Stamp) };
        }
        let header = Self {
            crc: u32_at(bytes, 0),
            body_bytes: u32_at(bytes, 4),
            sequence: Sequence(u64_at(bytes, 8)),
            kind: bytes[16],
        };
        let claimed = header.record_bytes();
        if claimed > room { Err(Flaw::TooLong { claimed, room }) } else { Ok(Some(header)) }
    }

    /// Bytes from this header to where the next one may be.
    pub fn record_bytes(&self) -> u64 {
        record_bytes(self.body_bytes.into())
    }

    /// Compares the checksum, and takes the body out of the record's bytes (header and padding included).
    ///
    /// # Errors
    /// [`Flaw::Checksum`], [`Flaw::Padding`], [`Flaw::TooLong`] if `bytes` are fewer than the header says.
    pub fn body<'a>(&self, bytes: &'a [u8], seal: &Seal) -> Result<&'a [u8], Flaw> {
        let (room, claimed) = (bytes.len() as u64, self.record_bytes());
        if claimed > room {
            return Err(Flaw::TooLong { claimed, room });
        }
        let end = RECORD_HEADER_BYTES + self.body_bytes as usize;
        self.compare(checksum(seal, &bytes[CRC_BYTES..end]))?;
        if bytes[end..claimed as usize].iter().any(|byte| *byte != 0) {
            return Err(Flaw::Padding);
        }
        Ok(&bytes[RECORD_HEADER_BYTES..end])
    }

    pub(super) fn compare(&self, computed: u32) -> Result<(), Flaw> {
        if computed == self.crc { Ok(()) } else { Err(Flaw::Checksum { stored: self.crc, computed }) }
    }
}

/// A checksum over bytes that come in parts, from behind a record's CRC field on.
pub(super) fn hasher(seal: &Seal) -> Hasher {
    Hasher::new_with_initial(seal.salt)
}

fn checksum(seal: &Seal, bytes: &[u8]) -> u32 {
    let mut hasher = hasher(seal);
    hasher.update(bytes);
    hasher.finalize()
}

/// Bytes that a record with such a body takes, padding included.
pub const fn record_bytes(body_bytes: u64) -> u64 {
    (RECORD_HEADER_BYTES as u64 + body_bytes).next_multiple_of(RECORD_ALIGNMENT as u64)
}

/// Appends a record to a buffer whose length is a multiple of 8, and says how many bytes that took.
pub fn encode(out: &mut BytesMut, seal: &Seal, sequence: Sequence, record: &Record<'_>) -> usize {
    let start = out.len();
    let body_bytes = record.body_bytes();
    debug_assert!(start.is_multiple_of(RECORD_ALIGNMENT) && body_bytes <= u32::MAX as usize);
    out.reserve(record_bytes(body_bytes as u64) as usize);
    out.put_u32_le(0);
    out.put_u32_le(body_bytes as u32);
    out.put_u64_le(sequence.0);
    out.put_u8(record.kind() as u8);
    out.put_u8(0);
    out.put_slice(&seal.stamp);
    record.encode_body(out);
    debug_assert_eq!(out.len(), start + RECORD_HEADER_BYTES + body_bytes);
    let crc = checksum(seal, &out[start + CRC_BYTES..]);
    out[start..start + CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
    out.put_bytes(0, out.len().next_multiple_of(RECORD_ALIGNMENT) - out.len());
    out.len() - start
}

/// A record read back from where it was written, checked.
///
/// # Errors
/// [`Flaw`]: the bytes are not that record.
pub fn read_back<'a>(bytes: &'a [u8], seal: &Seal, sequence: Sequence) -> Result<(Header, &'a [u8]), Flaw> {
    let room = bytes.len() as u64;
    let head = bytes.first_chunk().ok_or(Flaw::TooLong { claimed: RECORD_HEADER_BYTES as u64, room })?;
    let header = Header::read(head, room, seal)?.ok_or(Flaw::Unwritten)?;
    let body = header.body(bytes, seal)?;
    if header.sequence != sequence {
        return Err(Flaw::Sequence { expected: sequence, found: header.sequence });
    }
    Ok((header, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::body::{Done, Moved};

    const SEAL: Seal = Seal { salt: 0x1234_5678, stamp: [1, 2, 3, 4, 5, 6] };

    /// The bytes of a record are those of docs/STORAGE.md: changing them changes the format.
    #[test]
    fn layout() {
        let mut out = BytesMut::new();
        let length = encode(&mut out, &SEAL, Sequence(7), &Record::Done(Done { count: 9 }));
        assert_eq!((length, out.len()), (32, 32));
        assert_eq!(
            out[4..],
            [8, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 5, 0, 1, 2, 3, 4, 5, 6, 9, 0, 0, 0, 0, 0, 0, 0]
        );
        let mut hasher = Hasher::new_with_initial(SEAL.salt);
        hasher.update(&out[4..]);
        assert_eq!(out[..4], hasher.finalize().to_le_bytes());
    }

    /// Every flipped bit of a record, its padding included, is seen; so is another segment's seal, and another sequence.
    #[test]
    fn every_flip_is_seen() {
        let mut out = BytesMut::new();
        let record = Record::Moved(Moved { sequence: Sequence(3), kind: Kind::Request, body: b"living" });
        encode(&mut out, &SEAL, Sequence(7), &record);
        assert!(read_back(&out, &SEAL, Sequence(7)).is_ok());
        for bit in 0..out.len() * 8 {
            let mut bytes = out.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read_back(&bytes, &SEAL, Sequence(7)).is_err(), "bit {bit}");
        }
        for length in 0..out.len() {
            assert!(read_back(&out[..length], &SEAL, Sequence(7)).is_err(), "{length} bytes");
        }
        assert!(matches!(
            read_back(&out, &Seal { salt: 1, ..SEAL }, Sequence(7)),
            Err(Flaw::Checksum { .. })
        ));
        assert_eq!(read_back(&out, &Seal { stamp: [9; 6], ..SEAL }, Sequence(7)), Err(Flaw::Stamp));
        assert_eq!(
            read_back(&out, &SEAL, Sequence(8)),
            Err(Flaw::Sequence { expected: Sequence(8), found: Sequence(7) })
        );
        assert_eq!(read_back(&[0; 64], &SEAL, Sequence(7)), Err(Flaw::Unwritten));
    }
}
