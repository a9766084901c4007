//! The first 96 bytes of a segment: which one it is, and where the one before it ended.
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 8 | `RPLOGSEG` |
//! | 8 | 2 | format version: 1 |
//! | 10 | 2 | header length: 96 |
//! | 12 | 4 | salt |
//! | 16 | 16 | log id |
//! | 32 | 8 | segment number |
//! | 40 | 8 | sequence of its first record |
//! | 48 | 8 | predecessor's end |
//! | 56 | 8 | highest count before it |
//! | 64 | 8 | boot that made it |
//! | 72 | 8 | when |
//! | 80 | 6 | stamp |
//! | 86 | 2 | 0 |
//! | 88 | 4 | length of the file |
//! | 92 | 4 | CRC-32 of bytes 0 to 91 |

use super::{
    LogId, SegmentNumber, Sequence,
    fields::{u16_at, u32_at, u64_at},
    record::{RECORD_ALIGNMENT, Seal},
};

/// Bytes of a segment's header.
pub const SEGMENT_HEADER_BYTES: usize = 96;
/// The format of segments and manifests that this version reads and writes.
pub const FORMAT_VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"RPLOGSEG";
const CRC_AT: usize = SEGMENT_HEADER_BYTES - 4;
const _: () = assert!(SEGMENT_HEADER_BYTES.is_multiple_of(RECORD_ALIGNMENT) && SEGMENT_HEADER_BYTES <= 512);

/// What the header of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// What its records carry.
    pub seal: Seal,
    /// Which log it belongs to.
    pub log: LogId,
    /// Which one it is.
    pub number: SegmentNumber,
    /// The sequence of its first record: one more than the last of its predecessor.
    pub first: Sequence,
    /// The offset behind the last record of its predecessor; 0 for a log's first segment.
    pub predecessor_end: u32,
    /// The highest count of all requests before it, so that counts never come again when their segments are gone.
    pub highest_count: u64,
    /// The boot that made it.
    pub boot: u64,
    /// When, in milliseconds since the Unix epoch.
    pub wall_ms: u64,
    /// How long its file was made. A crash does not shorten it.
    pub file_bytes: u32,
}

/// Why bytes are not the header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFlaw {
    /// Zeros.
    #[error("it has no header yet")]
    Unwritten,
    /// Fewer than 96 bytes, other bytes than a header's, or a wrong checksum.
    #[error("its header is damaged")]
    Damaged,
    /// A format of another version.
    #[error("its format is version {0}, and this version of ringpost knows 1")]
    Version(u16),
}

impl SegmentHeader {
    /// Whether its predecessor can end where this says that it did: behind a header, and not behind its file.
    pub(super) fn can_follow(&self, predecessor: &Self) -> bool {
        (SEGMENT_HEADER_BYTES as u32..=predecessor.file_bytes).contains(&self.predecessor_end)
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(8, &FORMAT_VERSION.to_le_bytes());
        put(10, &(SEGMENT_HEADER_BYTES as u16).to_le_bytes());
        put(12, &self.seal.salt.to_le_bytes());
        put(16, &self.log.0);
        put(32, &self.number.0.to_le_bytes());
        put(40, &self.first.0.to_le_bytes());
        put(48, &u64::from(self.predecessor_end).to_le_bytes());
        put(56, &self.highest_count.to_le_bytes());
        put(64, &self.boot.to_le_bytes());
        put(72, &self.wall_ms.to_le_bytes());
        put(80, &self.seal.stamp);
        put(88, &self.file_bytes.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header from the first bytes of a segment.
    ///
    /// # Errors
    /// [`HeaderFlaw`]; the version is only believed under a right checksum.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderFlaw> {
        let Some(bytes) = bytes.first_chunk::<SEGMENT_HEADER_BYTES>() else {
            return Err(HeaderFlaw::Damaged);
        };
        if *bytes == [0; SEGMENT_HEADER_BYTES] {
            return Err(HeaderFlaw::Unwritten);
        }
        if bytes[..8] != MAGIC || u32_at(bytes, CRC_AT) != crc32fast::hash(&bytes[..CRC_AT]) {
            return Err(HeaderFlaw::Damaged);
        }
        if u16_at(bytes, 8) != FORMAT_VERSION {
            return Err(HeaderFlaw::Version(u16_at(bytes, 8)));
        }
        let mut log = LogId::default();
        log.0.copy_from_slice(&bytes[16..32]);
        let mut seal = Seal { salt: u32_at(bytes, 12), stamp: [0; 6] };
        seal.stamp.copy_from_slice(&bytes[80..86]);
        Ok(Self {
            seal,
            log,
            number: SegmentNumber(u64_at(bytes, 32)),
            first: Sequence(u64_at(bytes, 40)),
            predecessor_end: u32::try_from(u64_at(bytes, 48)).map_err(|_| HeaderFlaw::Damaged)?,
            highest_count: u64_at(bytes, 56),
            boot: u64_at(bytes, 64),
            wall_ms: u64_at(bytes, 72),
            file_bytes: u32_at(bytes, 88),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header comes back as it was written, and every flipped bit of it is seen.
    #[test]
    fn header() {
        let header = SegmentHeader {
            seal: Seal { salt: 1, stamp: [2; 6] },
            log: LogId([3; 16]),
            number: SegmentNumber(4),
            first: Sequence(5),
            predecessor_end: 6,
            highest_count: 7,
            boot: 8,
            wall_ms: 9,
            file_bytes: 10,
        };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&damaged), Err(HeaderFlaw::Damaged), "bit {bit}");
        }
        assert_eq!(SegmentHeader::decode(&bytes[1..]), Err(HeaderFlaw::Damaged));
        assert_eq!(SegmentHeader::decode(&[0; 96]), Err(HeaderFlaw::Unwritten));
    }
}
