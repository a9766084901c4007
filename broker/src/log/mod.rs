//! The log: what must survive the broker is appended to segments, made stable in groups, and read back at start.
//!
//! Pure, like all of this crate: no IO and no clock. docs/STORAGE.md describes every byte and every rule.
//!
//! ```text
//! append ──> Writer ── Operation ──> driver (io_uring, or `Files` and `perform`) ── files
//!              ^                       │
//!              └──────── done ─────────┘          at start: files ── recover ──> records, Recovered ──> Writer
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`record`], [`body`] | an entry of a segment: its header and checksum, and what each kind carries |
//! | [`segment`], [`manifest`], [`names`] | the header of a segment, the file that names them all, file names |
//! | [`writer`] | group commit, marks, switching of segments, room, failure |
//! | [`files`] | files as start-up and tools see them; performing an operation on them |
//! | [`memory`] | the in-memory twin of a disk, which can crash into any state that a disk may be left in |
//! | [`recovery`] | reading a log at start; what is a torn tail, and what is corruption |
//! | [`inspect`], [`repair`] | finding all that is damaged, showing all records, going on without what is lost |
//!
//! It knows nothing of sessions or handlers: what a record means, and when it is no longer needed, the core decides.

use std::fmt;

pub mod body;
mod damage;
mod fields;
pub mod files;
pub mod inspect;

pub mod manifest;
pub mod memory;
pub mod names;
mod reader;
pub mod record;
pub mod recovery;
pub mod repair;

pub mod segment;
mod tail;
pub mod writer;

pub use body::Record;
pub use damage::{Corruption, Damage, LogError, LogErrorKind};
pub use record::{Kind, Seal};
pub use recovery::{Cut, Recovered, recover};
pub use writer::{Action, Config, Fault, Operation, OperationId, SyncPolicy, Writer};

/// A record's place in the order of all records of a log: from 1, without a gap, across segments. 0 is before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The one behind this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which segment of a log: from 1, in the order in which they were begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SegmentNumber(pub u64);

impl SegmentNumber {
    /// The one behind this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for SegmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a record lies: 24 bytes, to be kept for each record that may be read back or will die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Location {
    /// The record's own sequence, not that of what it moved.
    pub sequence: Sequence,
    /// In which segment.
    pub segment: SegmentNumber,
    /// Offset of its header in the segment's file.
    pub offset: u32,
    /// Bytes from its header to the next record's.
    pub length: u32,
}

const _: () = assert!(size_of::<Location>() == 24);

/// Sixteen random bytes, made with a log and the same in all of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LogId(pub [u8; 16]);
