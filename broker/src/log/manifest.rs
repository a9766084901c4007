//! The file that says which segments are the log: 64 bytes, replaced as a whole.
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 8 | `RPLOGMAN` |
//! | 8 | 2 | format version: 1 |
//! | 10 | 2 | shards of the server that wrote it: 1 |
//! | 12 | 2 | which of them this log belongs to, from 0 |
//! | 14 | 2 | 0 |
//! | 16 | 16 | log id |
//! | 32 | 8 | oldest segment |
//! | 40 | 8 | newest segment; one less than the oldest in a log that has none yet |
//! | 48 | 8 | snapshot: the segment that its file is named for, 0 for none |
//! | 56 | 4 | generation: how often the log was written anew for another number of shards |
//! | 60 | 4 | CRC-32 of bytes 0 to 59 |

use super::{
    LogId, SegmentNumber,
    fields::{u16_at, u32_at, u64_at},
    segment::FORMAT_VERSION,
};

/// Bytes of a manifest.
pub const MANIFEST_BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"RPLOGMAN";
const CRC_AT: usize = MANIFEST_BYTES - 4;
/// It lies in one sector, so that even a write in place could not tear it.
const _: () = assert!(MANIFEST_BYTES <= 512);

/// What a manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manifest {
    /// Which log this is.
    pub log: LogId,
    /// The first segment that is still needed.
    pub oldest: SegmentNumber,
    /// The last segment that may hold records.
    pub newest: SegmentNumber,
    /// The segment that the snapshot is named for; 0 for none.
    pub snapshot: u64,
    /// Shards of the server.
    pub shards: u16,
    /// Which of them.
    pub shard: u16,
    /// How often the log was written anew for another number of shards.
    pub generation: u32,
}

/// Why bytes are not a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestFlaw {
    /// Not 64 bytes, other bytes than a manifest's, or a wrong checksum.
    #[error("it is damaged")]
    Damaged,
    /// A format of another version.
    #[error("its format is version {0}, and this version of ringpost knows 1")]
    Version(u16),
}

impl Manifest {
    /// The manifest of a log that has no segment yet.
    pub fn of_new_log(log: LogId) -> Self {
        let (oldest, newest) = (SegmentNumber(1), SegmentNumber(0));
        Self { log, oldest, newest, snapshot: 0, shards: 1, shard: 0, generation: 0 }
    }

    /// The manifest's bytes.
    pub fn encode(&self) -> [u8; MANIFEST_BYTES] {
        let mut bytes = [0; MANIFEST_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(8, &FORMAT_VERSION.to_le_bytes());
        put(10, &self.shards.to_le_bytes());
        put(12, &self.shard.to_le_bytes());
        put(16, &self.log.0);
        put(32, &self.oldest.0.to_le_bytes());
        put(40, &self.newest.0.to_le_bytes());
        put(48, &self.snapshot.to_le_bytes());
        put(56, &self.generation.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a manifest from a file's whole content.
    ///
    /// # Errors
    /// [`ManifestFlaw`]; the version is only believed under a right checksum.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestFlaw> {
        let Ok(bytes) = <&[u8; MANIFEST_BYTES]>::try_from(bytes) else { return Err(ManifestFlaw::Damaged) };
        if bytes[..8] != MAGIC || u32_at(bytes, CRC_AT) != crc32fast::hash(&bytes[..CRC_AT]) {
            return Err(ManifestFlaw::Damaged);
        }
        if u16_at(bytes, 8) != FORMAT_VERSION {
            return Err(ManifestFlaw::Version(u16_at(bytes, 8)));
        }
        let mut log = LogId::default();
        log.0.copy_from_slice(&bytes[16..32]);
        let manifest = Self {
            log,
            oldest: SegmentNumber(u64_at(bytes, 32)),
            newest: SegmentNumber(u64_at(bytes, 40)),
            snapshot: u64_at(bytes, 48),
            shards: u16_at(bytes, 10),
            shard: u16_at(bytes, 12),
            generation: u32_at(bytes, 56),
        };
        let ordered = manifest.oldest.0 >= 1 && manifest.newest.0.checked_add(1) >= Some(manifest.oldest.0);
        if ordered { Ok(manifest) } else { Err(ManifestFlaw::Damaged) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manifest comes back as it was written; every flipped bit of it, and every other length, is seen.
    #[test]
    fn manifest() {
        let manifest = Manifest {
            log: LogId([1; 16]),
            oldest: SegmentNumber(2),
            newest: SegmentNumber(3),
            snapshot: 4,
            shards: 5,
            shard: 4,
            generation: 6,
        };
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes), Ok(manifest));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Manifest::decode(&damaged), Err(ManifestFlaw::Damaged), "bit {bit}");
        }
        assert_eq!(Manifest::decode(&bytes[..63]), Err(ManifestFlaw::Damaged));
        assert_eq!(Manifest::decode(&[bytes.as_slice(), &[0]].concat()), Err(ManifestFlaw::Damaged));
        let empty = Manifest::of_new_log(LogId([1; 16]));
        assert_eq!(Manifest::decode(&empty.encode()), Ok(empty));
    }
}
