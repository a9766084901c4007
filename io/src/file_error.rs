//! Why something with a file did not work: which file, what was attempted, and what the kernel said.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use rustix::io::Errno;

/// What was attempted with a file or a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileOperation {
    /// Opening it, or creating it.
    Open,
    /// Reading from it.
    Read,
    /// Writing into it, zeros too.
    Write,
    /// Making its bytes and its length stable: fdatasync(2).
    SyncData,
    /// Forgetting what memory holds of it.
    Forget,
    /// Making everything about it stable: fsync(2). The only sync of a directory.
    SyncAll,
    /// Reserving space for it.
    Preallocate,
    /// Asking for its length.
    Length,
    /// Closing it.
    Close,
    /// Creating a directory.
    Create,
    /// Reading the names in a directory.
    List,
    /// Giving it another name.
    Rename,
    /// Taking its name away.
    Remove,
    /// Locking it.
    Lock,
    /// Asking how much room its file system has.
    Space,
}

impl fmt::Display for FileOperation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::SyncData | Self::SyncAll => "sync",
            Self::Forget => "forget what memory holds of",
            Self::Preallocate => "reserve space for",
            Self::Length => "find the length of",
            Self::Close => "close",
            Self::Create => "create",
            Self::List => "list",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::Lock => "lock",
            Self::Space => "find the free space of",
        })
    }
}

/// Something with a file or a directory did not work.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}{}: {source}{}", .path.display(), Position(*.offset), self.remedy())]
#[non_exhaustive]
pub struct FileError {
    /// The file, or the directory. Of a rename: the old name.
    pub path: PathBuf,
    /// What was attempted.
    pub operation: FileOperation,
    /// Where in the file, in bytes from its start: the first byte that was not read or written. `None` for what is
    /// about the whole file.
    pub offset: Option<u64>,
    /// What the kernel said. [`io::ErrorKind::UnexpectedEof`]: the file ends before what was to be read.
    #[source]
    pub source: io::Error,
}

impl FileError {
    pub(crate) fn new(path: &Path, operation: FileOperation, source: impl Into<io::Error>) -> Self {
        Self { path: path.into(), operation, offset: None, source: source.into() }
    }

    pub(crate) fn at(self, offset: u64) -> Self {
        Self { offset: Some(offset), ..self }
    }

    /// Whether there is no room: on the file system (ENOSPC), or in what this user may have of it (EDQUOT). Room may
    /// come back, so this is no failure of the disk.
    pub fn is_full(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOSPC | Errno::DQUOT))
    }

    /// Whether the bytes that were to be read are damaged, or not there: the disk was asked for them, and says so, or the file ends
    /// before them. Whatever else fails says nothing about them.
    pub fn is_damage(&self) -> bool {
        let of_the_bytes = match self.errno() {
            Some(errno) => {
                matches!(errno, Errno::IO | Errno::NODATA | Errno::ILSEQ | Errno::BADMSG | Errno::UCLEAN)
            }
            None => self.source.kind() == io::ErrorKind::UnexpectedEof,
        };
        self.operation == FileOperation::Read && of_the_bytes
    }

    /// Whether it is because the file, or the directory, is not there.
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    fn errno(&self) -> Option<Errno> {
        Errno::from_io_error(&self.source)
    }

    fn remedy(&self) -> &'static str {
        match self.errno() {
            Some(Errno::NOSPC) => "; free some space on its file system",
            Some(Errno::DQUOT) => "; free some space or raise this user's quota",
            Some(Errno::ACCESS | Errno::PERM) => {
                "; let this user read and write it (`ls -ld` shows who may; it may be a security module's policy too)"
            }
            Some(Errno::ROFS) => "; mount its file system for writing",
            Some(Errno::MFILE | Errno::NFILE) => "; raise the limit of open files (`ulimit -n`)",
            Some(Errno::FBIG) => {
                "; raise the limit of a file's size (`ulimit -f`), or use a file system with larger files"
            }
            Some(Errno::IO) => "; the disk may be failing: see the kernel's log (`dmesg`)",
            _ => "",
        }
    }
}

impl From<FileError> for io::Error {
    /// For interfaces that know nothing else. The message stays, and the kind; both ways to be full are
    /// [`io::ErrorKind::StorageFull`].
    fn from(error: FileError) -> Self {
        let kind = if error.is_full() { io::ErrorKind::StorageFull } else { error.source.kind() };
        Self::new(kind, error)
    }
}

/// " at byte 7", or nothing.
struct Position(Option<u64>);

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |offset| write!(formatter, " at byte {offset}"))
    }
}

/// Why a lock was not got.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody else has it.
    #[error(
        "{} is locked by {}: stop that first", .path.display(),
        .holder.map_or("another process".into(), |holder| format!("process {holder}"))
    )]
    Held {
        /// The file that is locked.
        path: PathBuf,
        /// The process id that its holder wrote into it. `None`: there is none in it. It is for people only: it means
        /// nothing across containers, and is an earlier holder's for the moment between the locking and the writing.
        holder: Option<u32>,
    },
    /// It could not be tried.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<LockError> for io::Error {
    /// The message stays; [`LockError::Held`] is [`io::ErrorKind::WouldBlock`].
    fn from(error: LockError) -> Self {
        match error {
            LockError::Held { .. } => Self::new(io::ErrorKind::WouldBlock, error),
            LockError::File(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(errno: Errno) -> FileError {
        FileError::new(Path::new("/data/1.segment"), FileOperation::Write, errno)
    }

    /// The two ways to be out of space are told from all others.
    #[test]
    fn full_is_full() {
        assert!(error(Errno::NOSPC).is_full() && error(Errno::DQUOT).is_full());
        for other in [Errno::IO, Errno::FBIG, Errno::NOMEM, Errno::ROFS] {
            assert!(!error(other).is_full(), "{other:?}");
        }
        let no_errno = FileError::new(Path::new("x"), FileOperation::Read, io::ErrorKind::UnexpectedEof);
        assert!(!no_errno.is_full());
    }

    /// Only what a disk says of the bytes themselves is damage; that there are no descriptors, no memory, or no file is not.
    #[test]
    fn damage_is_of_the_bytes() {
        let read =
            |source: io::Error| FileError::new(Path::new("x"), FileOperation::Read, source).is_damage();
        for errno in [Errno::IO, Errno::NODATA, Errno::ILSEQ, Errno::BADMSG, Errno::UCLEAN] {
            assert!(read(errno.into()), "{errno:?}");
            assert!(
                !FileError::new(Path::new("x"), FileOperation::Open, errno).is_damage(),
                "{errno:?} at open"
            );
        }
        assert!(read(io::ErrorKind::UnexpectedEof.into()));
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::ACCESS, Errno::NODEV] {
            assert!(!read(errno.into()), "{errno:?}");
        }
    }

    /// A message names the attempt, the file, the byte, the cause and the remedy.
    #[test]
    fn errors_name_everything() {
        let message = error(Errno::NOSPC).at(4096).to_string();
        for part in ["cannot write /data/1.segment at byte 4096", "No space left", "free some space"] {
            assert!(message.contains(part), "{message}");
        }
        let message = error(Errno::IO).to_string();
        assert!(!message.contains("at byte") && message.contains("dmesg"), "{message}");
    }

    /// As an error of the standard library it is of the same kind and says the same.
    #[test]
    fn becomes_a_plain_error() {
        for (errno, kind) in [
            (Errno::NOSPC, io::ErrorKind::StorageFull),
            (Errno::DQUOT, io::ErrorKind::StorageFull),
            (Errno::NOENT, io::ErrorKind::NotFound),
            (Errno::ROFS, io::ErrorKind::ReadOnlyFilesystem),
        ] {
            let plain = io::Error::from(error(errno).at(7));
            assert_eq!((plain.kind(), plain.to_string()), (kind, error(errno).at(7).to_string()));
        }
        let held = io::Error::from(LockError::Held { path: "/data/lock".into(), holder: Some(42) });
        assert_eq!(held.kind(), io::ErrorKind::WouldBlock);
        assert!(held.to_string().contains("process 42"));
        assert_eq!(io::Error::from(LockError::File(error(Errno::NOSPC))).kind(), io::ErrorKind::StorageFull);
    }

    /// Who holds a lock is said if it is known.
    #[test]
    fn a_held_lock_names_its_holder() {
        let held = |holder| LockError::Held { path: "/data/lock".into(), holder }.to_string();
        assert_eq!(held(Some(42)), "/data/lock is locked by process 42: stop that first");
        assert_eq!(held(None), "/data/lock is locked by another process: stop that first");
    }
}
