//! A file, and the calls that wait.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Advice, CWD, FallocateFlags, Mode, OFlags},
    io::Errno,
};

use crate::{
    faults::admit,
    file::Open,
    file_error::{FileError, FileOperation},
};

/// An open file. It is closed when it is dropped.
///
/// It has no position: every read and write says where. Calls may be made from several threads.
#[derive(Debug)]
pub struct File {
    file: fs::File,
    path: PathBuf,
}

impl File {
    /// Opens or creates a file; children of this process do not get it. A new file is for this user only (mode 0600), and
    /// its name is stable only after [`Directory::sync`](super::Directory::sync).
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(path: impl Into<PathBuf>, how: Open) -> Result<Self, FileError> {
        let path = path.into();
        let opened = admit(&path, FileOperation::Open, 0).and_then(|_| {
            let flags = how.flags() | OFlags::CLOEXEC;
            Ok(rustix::fs::openat(CWD, &path, flags, Mode::from_raw_mode(Open::MODE))?)
        });
        match opened {
            Ok(descriptor) => Ok(Self::new(descriptor, path)),
            Err(source) => Err(FileError::new(&path, FileOperation::Open, source)),
        }
    }

    /// A descriptor that was opened elsewhere.
    pub(crate) fn new(descriptor: OwnedFd, path: PathBuf) -> Self {
        Self { file: descriptor.into(), path }
    }

    /// The path that it was opened by. It may have been renamed since.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    ///
    /// # Errors
    /// What fstat(2) says.
    pub fn length(&self) -> Result<u64, FileError> {
        admit(&self.path, FileOperation::Length, 0)
            .and_then(|_| self.file.metadata())
            .map(|metadata| metadata.len())
            .map_err(|source| self.failed(FileOperation::Length, source))
    }

    /// Reads what is at `offset` into the buffer, and says how many bytes that were: fewer than fit are possible at any
    /// time, none at all only at the end of the file, or of the buffer.
    ///
    /// # Errors
    /// What pread(2) says.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, FileError> {
        checked_range(offset, buffer.len())
            .map_err(|source| self.failed(FileOperation::Read, source).at(offset))?;
        loop {
            let read = admit(&self.path, FileOperation::Read, buffer.len())
                .and_then(|length| self.file.read_at(&mut buffer[..length], offset));
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    return result.map_err(|source| self.failed(FileOperation::Read, source).at(offset));
                }
            }
        }
    }

    /// Fills the buffer with what is at `offset`.
    ///
    /// # Errors
    /// What pread(2) says; [`io::ErrorKind::UnexpectedEof`] when the file ends before. A part may have been read.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), FileError> {
        let mut position = checked_range(offset, buffer.len())
            .map_err(|source| self.failed(FileOperation::Read, source).at(offset))?;
        let mut rest = buffer;
        while !rest.is_empty() {
            match self.read_at(rest, position)? {
                0 => {
                    let source = io::ErrorKind::UnexpectedEof;
                    return Err(self.failed(FileOperation::Read, source).at(position));
                }
                read => {
                    rest = &mut rest[read..];
                    position += read as u64;
                }
            }
        }
        Ok(())
    }

    /// Writes all of the bytes at `offset`. They are stable after the next sync.
    ///
    /// # Errors
    /// What pwrite(2) says; a part may have been written: what is before the error's offset.
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<(), FileError> {
        let mut position = checked_range(offset, bytes.len())
            .map_err(|source| self.failed(FileOperation::Write, source).at(offset))?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let written = admit(&self.path, FileOperation::Write, rest.len())
                .and_then(|length| self.file.write_at(&rest[..length], position));
            match written {
                Ok(0) => {
                    let source = io::ErrorKind::WriteZero;
                    return Err(self.failed(FileOperation::Write, source).at(position));
                }
                Ok(written) => {
                    rest = &rest[written..];
                    position += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed(FileOperation::Write, source).at(position)),
            }
        }
        Ok(())
    }

    /// Makes what was written stable, and the length: fdatasync(2). Not the name of a new file.
    ///
    /// # Errors
    /// What fdatasync(2) says. **Any error is final**: what was not written is lost, and a second try would not say so.
    pub fn sync_data(&self) -> Result<(), FileError> {
        admit(&self.path, FileOperation::SyncData, 0)
            .and_then(|_| Ok(rustix::fs::fdatasync(&self.file)?))
            .map_err(|source| self.failed(FileOperation::SyncData, source))
    }

    /// Makes what was written stable, the length, and all that is known of the file: fsync(2).
    ///
    /// # Errors
    /// As [`File::sync_data`].
    pub fn sync_all(&self) -> Result<(), FileError> {
        admit(&self.path, FileOperation::SyncAll, 0)
            .and_then(|_| Ok(rustix::fs::fsync(&self.file)?))
            .map_err(|source| self.failed(FileOperation::SyncAll, source))
    }

    /// Makes what was written stable, and lets memory forget it: what is read from now on comes from the disk
    /// (fdatasync(2), then posix_fadvise(2) with POSIX_FADV_DONTNEED).
    ///
    /// After a failed sync memory still shows what never reached the disk, and calls it clean, to the next process too. A
    /// server that was started again because of that must not believe it. On a file system in memory, or if somebody has
    /// the file mapped, nothing is forgotten.
    ///
    /// # Errors
    /// As [`File::sync_data`], and what posix_fadvise(2) says.
    pub fn settle(&self) -> Result<(), FileError> {
        self.sync_data()?;
        admit(&self.path, FileOperation::Forget, 0)
            .and_then(|_| Ok(rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)?))
            .map_err(|source| self.failed(FileOperation::Forget, source))
    }

    /// Reserves space; see [`crate::file::File::preallocate`].
    ///
    /// # Errors
    /// What fallocate(2) says, [`FileError::is_full`] first of all. Some of it may have been reserved.
    pub fn preallocate(&self, offset: u64, length: u64) -> Result<(), FileError> {
        let reserved = loop {
            let reserved = admit(&self.path, FileOperation::Preallocate, 0).and_then(|_| {
                Ok(rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, length)?)
            });
            match reserved {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        match reserved {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => {
                let from = self.length()?.max(offset);
                self.zero(from, offset.saturating_add(length).saturating_sub(from))
            }
            result => result.map_err(|source| self.failed(FileOperation::Preallocate, source).at(offset)),
        }
    }

    /// Writes zeros; see [`crate::file::File::zero`].
    ///
    /// # Errors
    /// As [`File::write_all_at`].
    pub fn zero(&self, offset: u64, length: u64) -> Result<(), FileError> {
        for (position, slice) in zeros(offset, length) {
            self.write_all_at(&slice, position)?;
        }
        Ok(())
    }

    pub(crate) fn failed(&self, operation: FileOperation, source: impl Into<io::Error>) -> FileError {
        FileError::new(&self.path, operation, source)
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Gives the descriptor away, which is then not closed here.
    pub(crate) fn into_parts(self) -> (OwnedFd, PathBuf) {
        (self.file.into(), self.path)
    }
}

/// The offset, if all of the range can be one of a file. The kernel would take the largest offset of all for "at the
/// current position".
pub(crate) fn checked_range(offset: u64, length: usize) -> io::Result<u64> {
    match offset.checked_add(length as u64) {
        Some(end) if i64::try_from(end).is_ok() => Ok(offset),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond what a file can hold")),
    }
}

/// The most zeros that one write gets: while it runs, other writes into the same file wait (0.1 ms into memory).
const ZERO_SLICE_BYTES: u64 = 256 << 10;

/// The writes that zero a range: where, and what.
pub(crate) fn zeros(offset: u64, length: u64) -> impl Iterator<Item = (u64, bytes::Bytes)> {
    let slice = bytes::Bytes::from(vec![0; length.min(ZERO_SLICE_BYTES) as usize]);
    (0..length.div_ceil(ZERO_SLICE_BYTES)).map(move |index| {
        let from = index * ZERO_SLICE_BYTES;
        (offset.saturating_add(from), slice.slice(..(length - from).min(ZERO_SLICE_BYTES) as usize))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slices of zeros are the range, without a gap, and none of them is too large.
    #[test]
    fn slices_make_up_the_range() {
        for length in
            [0, 1, ZERO_SLICE_BYTES - 1, ZERO_SLICE_BYTES, ZERO_SLICE_BYTES + 1, 5 * ZERO_SLICE_BYTES + 7]
        {
            let mut end = 100;
            for (position, slice) in zeros(100, length) {
                assert_eq!(position, end);
                assert!(!slice.is_empty() && slice.len() as u64 <= ZERO_SLICE_BYTES);
                assert!(slice.iter().all(|&byte| byte == 0));
                end += slice.len() as u64;
            }
            assert_eq!(end, 100 + length);
        }
    }

    /// Ranges that no file has are refused, above all the offset that means something else to the kernel.
    #[test]
    fn impossible_ranges_are_refused() {
        assert!(checked_range(u64::MAX, 0).is_err());
        assert!(checked_range(u64::MAX, 1).is_err());
        assert!(checked_range(i64::MAX as u64, 1).is_err());
        assert_eq!(checked_range(i64::MAX as u64 - 1, 1).unwrap(), i64::MAX as u64 - 1);
    }
}
