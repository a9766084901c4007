//! What a writer asks its driver for, and what it is told.

use std::io;

use bytes::Bytes;

use crate::log::SegmentNumber;

/// Names an operation until it is done. Never used twice by one writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OperationId(pub(super) u64);

/// Something that the driver has to do with a file, and to report with [`Writer::done`](super::Writer::done).
///
/// Operations that are under way together may be done in any order.
#[derive(Debug, Clone)]
pub struct Operation {
    /// To be given back when it is done.
    pub id: OperationId,
    /// What is to be done.
    pub action: Action,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Action {
    /// Make the file of a segment, in place of one that may be there: with room for `bytes` zeros, its length synced.
    Prepare {
        /// Whose file.
        segment: SegmentNumber,
        /// How long.
        bytes: u32,
    },
    /// Write zeros where nothing is written yet, so that later writes need not have blocks made for them.
    Zero {
        /// Into whose file.
        segment: SegmentNumber,
        /// From which byte.
        offset: u32,
        /// How many.
        bytes: u32,
    },
    /// Write all of these bytes. The writer keeps them until that is done; drop them before reporting it, and their buffer
    /// is used again.
    Write {
        /// Into whose file.
        segment: SegmentNumber,
        /// From which byte.
        offset: u32,
        /// What.
        bytes: Bytes,
        /// Whether they are to be stable when it is done, as by a [`Sync`](Self::Sync) of these bytes alone. A full disk may be
        /// noticed by that part too: all that it may have lost is in here, and is written anew.
        synced: bool,
    },
    /// fdatasync of a segment's file.
    Sync {
        /// Whose file.
        segment: SegmentNumber,
    },
    /// fsync of the directory.
    SyncDirectory,
    /// Write `manifest.new`, sync it, rename it to `manifest`, sync the directory.
    ReplaceManifest {
        /// Its content.
        bytes: Bytes,
    },
    /// Remove the file of a segment.
    Remove {
        /// Whose file.
        segment: SegmentNumber,
    },
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The disk is full (ENOSPC, EDQUOT), noticed by what is no [`Action::Sync`]: the same operation may be tried again.
    #[error("no space is left on the disk")]
    NoSpace,
    /// Anything else, and everything that an [`Action::Sync`] reports.
    #[error("{0}")]
    Disk(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Disk(error.to_string()),
        }
    }
}
