//! What can be wrong with a log, where, and what to do about it.

use std::{fmt, io};

use super::{
    LogId, SegmentNumber, Sequence,
    body::BadBody,
    manifest::ManifestFlaw,
    record::{Flaw, Kind},
    segment::HeaderFlaw,
};

/// A log that cannot be gone on with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Something that had been synced is not there, or not as it was. Nothing was changed.
    #[error("{0}")]
    Corrupt(Corruption),
    /// Something that a newer version has written.
    #[error("{file} at byte {offset}: {what}; start the version that wrote it, nothing was changed")]
    Newer {
        /// In which file.
        file: String,
        /// At which byte.
        offset: u64,
        /// What is not understood.
        what: String,
    },
    /// The disk, or the operating system, does not let us.
    #[error("cannot {doing} {file}: {source}")]
    Io {
        /// Which file, or `.` for the directory.
        file: String,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Another process has the directory.
    #[error("the directory is in use by another process: stop that first, or choose another --data-dir")]
    InUse,
}

/// Which family a [`LogError`] is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogErrorKind {
    /// [`LogError::Corrupt`].
    Corrupt,
    /// [`LogError::Newer`].
    Newer,
    /// [`LogError::Io`].
    Io,
    /// [`LogError::InUse`].
    InUse,
}

impl LogError {
    /// Its family.
    pub fn kind(&self) -> LogErrorKind {
        match self {
            Self::Corrupt(_) => LogErrorKind::Corrupt,
            Self::Newer { .. } => LogErrorKind::Newer,
            Self::Io { .. } => LogErrorKind::Io,
            Self::InUse => LogErrorKind::InUse,
        }
    }

    pub(super) fn io(file: &str, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::Io { file, doing, source }
    }

    pub(super) fn corrupt(file: &str, offset: u64, what: Damage) -> Self {
        Self::Corrupt(Corruption { file: file.to_owned(), offset, what })
    }

    pub(super) fn unknown_kind(file: &str, offset: u64, kind: u8) -> Self {
        Self::Newer { file: file.to_owned(), offset, what: format!("a record of the unknown kind {kind}") }
    }

    pub(super) fn bad_body(file: &str, offset: u64, bad: BadBody) -> Self {
        Self::Newer { file: file.to_owned(), offset, what: bad.to_string() }
    }
}

/// Something that had been synced is not there, or not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// In which file.
    pub file: String,
    /// At which byte.
    pub offset: u64,
    /// What is wrong.
    pub what: Damage,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// There are segments, but no manifest.
    #[error("there is no manifest, but there are files of a log")]
    ManifestMissing,
    /// The manifest cannot be understood.
    #[error("the manifest cannot be used: {0}")]
    Manifest(ManifestFlaw),
    /// A segment between the oldest and the newest is not there.
    #[error("the segment is missing")]
    SegmentMissing,
    /// A segment's header cannot be understood.
    #[error("the segment cannot be used: {0}")]
    SegmentHeader(HeaderFlaw),
    /// A segment of another log.
    #[error("the segment belongs to another log")]
    Foreign {
        /// Which.
        log: LogId,
    },
    /// A segment under another one's name.
    #[error("the file is named like one segment, but it is segment {found}")]
    Misnamed {
        /// Which it is.
        found: SegmentNumber,
    },
    /// A segment that does not follow from the one before it.
    #[error(
        "the segment does not follow from the one before it: that ends before {expected}, this begins with {found}"
    )]
    Disconnected {
        /// The sequence that it should begin with.
        expected: Sequence,
        /// The one that it says it begins with.
        found: Sequence,
    },
    /// A file that has become shorter.
    #[error("the file ends here, but was made {expected} bytes long")]
    Shortened {
        /// How long it was.
        expected: u64,
    },
    /// A damaged record in a segment that was synced to its end.
    #[error("{flaw} (sequence {expected}, in a segment that was synced to its end)")]
    Sealed {
        /// What is wrong with the record.
        flaw: Flaw,
        /// Which record must be there.
        expected: Sequence,
    },
    /// A damaged record in the newest segment, which a mark behind it covers.
    #[error("{flaw} (sequence {expected}, which the mark at byte {mark} says had been synced)")]
    BelowMark {
        /// What is wrong with the record.
        flaw: Flaw,
        /// Which record must be there.
        expected: Sequence,
        /// Where the mark is.
        mark: u64,
    },
    /// A segment behind the newest holds something.
    #[error("something is written here, but the manifest does not know of this segment")]
    BehindNewest,
}

impl Corruption {
    /// What to do next.
    pub fn remedy(&self) -> &'static str {
        match self.what {
            Damage::Manifest(ManifestFlaw::Version(_)) | Damage::SegmentHeader(HeaderFlaw::Version(_)) => {
                "start the version of ringpost that wrote it"
            }
            Damage::Foreign { .. } | Damage::Misnamed { .. } | Damage::BehindNewest => {
                "if files were restored or copied, put back those that belong together; otherwise see `ringpost log verify` and `ringpost log repair`"
            }
            Damage::ManifestMissing | Damage::SegmentMissing => {
                "put the file back if it was moved or can be restored; otherwise see `ringpost log repair --allow-loss`"
            }
            _ => {
                "copy the directory, see all damage with `ringpost log verify`, and give up what is lost with `ringpost log repair --allow-loss`"
            }
        }
    }
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: {}; {}", self.file, self.offset, self.what, self.remedy())
    }
}

/// The kind of a record with a right checksum.
///
/// # Errors
/// [`LogError::Newer`].
pub(super) fn known_kind(file: &str, offset: u64, number: u8) -> Result<Kind, LogError> {
    Kind::from_number(number).ok_or_else(|| LogError::unknown_kind(file, offset, number))
}
