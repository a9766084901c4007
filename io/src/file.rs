//! A file on the ring: what the log writes while the thread goes on with its traffic.
//!
//! On most file systems a write into the page cache and every sync run in a worker thread of the kernel's, so this thread
//! never waits for the disk. What is asked for at the same time is done in any order.
//!
//! **What is stable when.** Written bytes survive the death of this process at once, that of the kernel or of the machine
//! when a [`File::sync_data`] that was *called after the write had ended* has ended without an error. A new file's name
//! survives it after [`Directory::sync`](crate::directory::Directory::sync). A failed sync is never to be tried again: Linux
//! reports each lost write once, so the second try would succeed without the bytes being there.
//!
//! **What a sync costs.** Into space that was reserved ([`File::preallocate`]) *and* written before ([`File::zero`], and
//! synced), only the bytes go to the disk. Into a growing file, or one that was only reserved, the file system's journal
//! goes too.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    rc::Rc,
};

use bytes::{BufMut, BytesMut};
use io_uring::{
    opcode, squeue,
    types::{Fd, FsyncFlags},
};
use rustix::{
    fs::{CWD, OFlags},
    io::{Errno, ReadWriteFlags},
};

use crate::{
    blocking::{self, checked_range, zeros},
    faults::admit_on_ring,
    file_error::{FileError, FileOperation},
    operation::submit,
    stream::StableBytes,
};

/// The most that one operation is asked to transfer: the kernel's own limit (`MAX_RW_COUNT`) is just below 2 GiB.
const MAX_TRANSFER_BYTES: usize = 1 << 30;

/// How a file is opened. All but `Read` may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Open {
    /// One that is there, for reading.
    Read,
    /// One that is there, for reading and writing.
    Write,
    /// A new one. It is an error if the name is taken.
    CreateNew,
    /// A new one, or one that is there with nothing in it any more.
    Replace,
    /// A new one, or one that is there as it is: for locks.
    Lock,
}

impl Open {
    /// Who may do what with a new file: requests and replies are nobody else's business.
    pub(crate) const MODE: u32 = 0o600;

    pub(crate) fn flags(self) -> OFlags {
        match self {
            Self::Read => OFlags::RDONLY,
            Self::Write => OFlags::RDWR,
            Self::CreateNew => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
            Self::Replace => OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC,
            Self::Lock => OFlags::RDWR | OFlags::CREATE,
        }
    }
}

/// An open file. Clones are the same one; it is closed with the last of them, and not before what is in flight has ended.
///
/// It has no position: every read and write says where. Any number of operations may be in flight at a time, and their
/// order is not defined: whoever needs one waits for the first before calling the second. Their futures must not be
/// dropped (see the [crate's contract](crate)): what was asked for happens nevertheless, all or a part
/// of it, and nobody learns how it ended.
#[derive(Debug, Clone)]
pub struct File {
    file: Rc<blocking::File>,
}

impl From<blocking::File> for File {
    /// Goes on with a file that was opened, and perhaps read, without a ring.
    fn from(file: blocking::File) -> Self {
        Self { file: Rc::new(file) }
    }
}

impl File {
    /// Opens or creates a file; children of this process do not get it. A new file is for this user only (mode 0600), and
    /// its name is stable only after [`Directory::sync`](crate::directory::Directory::sync).
    ///
    /// # Errors
    /// What open(2) says.
    #[allow(unsafe_code, reason = "the current directory needs no lending")]
    pub async fn open(path: impl Into<PathBuf>, how: Open) -> Result<Self, FileError> {
        let path = path.into();
        match CString::new(path.as_os_str().as_encoded_bytes()) {
            // SAFETY: AT_FDCWD is always valid.
            Ok(name) => unsafe { open_at((), CWD.as_raw_fd(), name, path, how) }.await,
            Err(error) => Err(FileError::new(&path, FileOperation::Open, error)),
        }
    }

    /// The path that it was opened by. It may have been renamed since.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Its length in bytes. Does not wait: the system knows it.
    ///
    /// # Errors
    /// What fstat(2) says.
    pub fn length(&self) -> Result<u64, FileError> {
        self.file.length()
    }

    /// Appends `length` bytes that are at `offset` to the buffer.
    ///
    /// # Errors
    /// What pread(2) says; [`io::ErrorKind::UnexpectedEof`] when the file ends before. What was read until then is in the
    /// buffer.
    #[allow(unsafe_code, reason = "the kernel writes into the buffer")]
    pub async fn read_exact_at(
        &self,
        mut buffer: BytesMut,
        length: usize,
        offset: u64,
    ) -> (Result<(), FileError>, BytesMut) {
        let failed = |source: io::Error, at| Err(self.file.failed(FileOperation::Read, source).at(at));
        if let Err(source) = checked_range(offset, length) {
            return (failed(source, offset), buffer);
        }
        buffer.reserve(length);
        let mut read = 0;
        while read < length {
            let position = offset + read as u64;
            let rest = (length - read).min(MAX_TRANSFER_BYTES);
            let result = match admit_on_ring(self.path(), FileOperation::Read, rest).await {
                Ok(rest) => {
                    let spare = &mut buffer.spare_capacity_mut()[..rest];
                    let entry = opcode::Read::new(self.descriptor(), spare.as_mut_ptr().cast(), rest as u32)
                        .offset(position)
                        .build();
                    // SAFETY: the buffer's heap memory does not move with it, and it is lent together with the file.
                    let (result, (_, lent)) = unsafe { submit((self.file.clone(), buffer), entry) }.await;
                    buffer = lent;
                    result
                }
                Err(fault) => Err(fault),
            };
            match result {
                Ok(0) => return (failed(io::ErrorKind::UnexpectedEof.into(), position), buffer),
                Ok(bytes) => {
                    // SAFETY: the kernel wrote that many bytes behind those that were there.
                    unsafe { buffer.advance_mut(bytes as usize) };
                    read += bytes as usize;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (failed(error, position), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Writes all of the buffer at `offset`, and gives it back. See the [module](self) for when it is stable.
    ///
    /// Two writes in flight may overtake each other; where they overlap, either may win.
    ///
    /// # Errors
    /// What pwrite(2) says; a part may have been written: what is before the error's offset.
    pub async fn write_all_at<B: StableBytes>(&self, buffer: B, offset: u64) -> (Result<(), FileError>, B) {
        self.write_with(buffer, offset, ReadWriteFlags::empty()).await
    }

    /// The same, and when it has ended these bytes are stable, as by [`File::sync_data`] (`RWF_DSYNC`): one visit to a worker
    /// thread instead of two. It says nothing of what else was written to the file.
    ///
    /// # Errors
    /// What pwritev2(2) says, which may be the sync's word: of none of these bytes is it known then whether they are stable, and
    /// syncing the file later does not tell. Writing them anew, with success, does.
    pub async fn write_all_synced_at<B: StableBytes>(
        &self,
        buffer: B,
        offset: u64,
    ) -> (Result<(), FileError>, B) {
        self.write_with(buffer, offset, ReadWriteFlags::DSYNC).await
    }

    #[allow(unsafe_code, reason = "the kernel reads from the buffer")]
    async fn write_with<B: StableBytes>(
        &self,
        mut buffer: B,
        offset: u64,
        flags: ReadWriteFlags,
    ) -> (Result<(), FileError>, B) {
        let failed = |source: io::Error, at| Err(self.file.failed(FileOperation::Write, source).at(at));
        if let Err(source) = checked_range(offset, buffer.as_ref().len()) {
            return (failed(source, offset), buffer);
        }
        let mut written = 0;
        while let Some(rest) = buffer.as_ref().get(written..)
            && !rest.is_empty()
        {
            let position = offset + written as u64;
            let rest_bytes = rest.len().min(MAX_TRANSFER_BYTES);
            let result = match admit_on_ring(self.path(), FileOperation::Write, rest_bytes).await {
                Ok(length) => {
                    let entry = opcode::Write::new(self.descriptor(), rest.as_ptr(), length as u32)
                        .offset(position)
                        .rw_flags(flags.bits() as i32)
                        .build();
                    // SAFETY: `StableBytes` promises that the bytes stay where they are, and they are lent with the file.
                    let (result, (_, lent)) = unsafe { submit((self.file.clone(), buffer), entry) }.await;
                    buffer = lent;
                    result
                }
                Err(fault) => Err(fault),
            };
            match result {
                Ok(0) => return (failed(io::ErrorKind::WriteZero.into(), position), buffer),
                Ok(bytes) => written += bytes as usize,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (failed(error, position), buffer),
            }
        }
        if flags.contains(ReadWriteFlags::DSYNC)
            && let Err(fault) = admit_on_ring(self.path(), FileOperation::SyncData, 0).await
        {
            return (Err(self.file.failed(FileOperation::SyncData, fault).at(offset)), buffer);
        }
        (Ok(()), buffer)
    }

    /// Makes stable what was written before this call, and the length: fdatasync(2), in a worker thread of the kernel's.
    /// Writes that have not ended by now may or may not be covered.
    ///
    /// # Errors
    /// What fdatasync(2) says. **Any error is final**, an interruption too: see the [module](self).
    pub async fn sync_data(&self) -> Result<(), FileError> {
        self.sync(FileOperation::SyncData, FsyncFlags::DATASYNC).await
    }

    /// The same, and all that is known of the file, such as its times: fsync(2).
    ///
    /// # Errors
    /// As [`File::sync_data`].
    pub async fn sync_all(&self) -> Result<(), FileError> {
        self.sync(FileOperation::SyncAll, FsyncFlags::empty()).await
    }

    #[allow(unsafe_code, reason = "the descriptor is lent")]
    async fn sync(&self, operation: FileOperation, flags: FsyncFlags) -> Result<(), FileError> {
        let synced = match admit_on_ring(self.path(), operation, 0).await {
            Ok(_) => {
                let entry = opcode::Fsync::new(self.descriptor()).flags(flags).build();
                // SAFETY: the entry has no pointer, and its file is lent.
                unsafe { submit(self.file.clone(), entry) }.await.0
            }
            Err(fault) => Err(fault),
        };
        synced.map(|_| ()).map_err(|source| self.file.failed(operation, source))
    }

    /// Reserves space on the disk for a range, so that writes into it do not find the disk full, and makes the file that
    /// long if it is shorter: fallocate(2). What is there stays; what is new reads as zeros.
    ///
    /// A file system that cannot reserve (EOPNOTSUPP) gets zeros written behind the end of the file instead.
    ///
    /// # Errors
    /// What fallocate(2) says, [`FileError::is_full`] first of all. Some of it may have been reserved.
    #[allow(unsafe_code, reason = "the descriptor is lent")]
    pub async fn preallocate(&self, offset: u64, length: u64) -> Result<(), FileError> {
        let operation = FileOperation::Preallocate;
        let reserved = loop {
            let result = match admit_on_ring(self.path(), operation, 0).await {
                Ok(_) => {
                    let entry = opcode::Fallocate::new(self.descriptor(), length).offset(offset).build();
                    // SAFETY: the entry has no pointer, and its file is lent.
                    unsafe { submit(self.file.clone(), entry) }.await.0
                }
                Err(fault) => Err(fault),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        match reserved {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => {
                let from = self.length()?.max(offset);
                self.zero(from, offset.saturating_add(length).saturating_sub(from)).await
            }
            result => result.map(|_| ()).map_err(|source| self.file.failed(operation, source).at(offset)),
        }
    }

    /// Writes zeros, in slices of 256 KiB, one after the other: other writes into the same file get their turn between.
    ///
    /// The next sync of this file takes them all to the disk (1 MiB: a millisecond): so not into the file that others wait
    /// for, but into the one that comes after it.
    ///
    /// # Errors
    /// As [`File::write_all_at`].
    pub async fn zero(&self, offset: u64, length: u64) -> Result<(), FileError> {
        for (position, slice) in zeros(offset, length) {
            self.write_all_at(slice, position).await.0?;
        }
        Ok(())
    }

    /// Gives up this clone. With the last one the file is closed in a worker thread of the kernel's, which a large file
    /// that was removed is worth: its blocks are freed then.
    ///
    /// # Errors
    /// What close(2) says. The file is closed nevertheless.
    #[allow(unsafe_code, reason = "a descriptor is given away")]
    pub async fn close(self) -> Result<(), FileError> {
        let Ok(file) = Rc::try_unwrap(self.file) else { return Ok(()) };
        let (descriptor, path) = file.into_parts();
        let closed = match admit_on_ring(&path, FileOperation::Close, 0).await {
            Ok(_) => {
                let entry = opcode::Close::new(Fd(descriptor.into_raw_fd())).build();
                // SAFETY: nobody else has the descriptor, and from here on it is the kernel's.
                unsafe { submit((), entry.flags(squeue::Flags::ASYNC)) }.await.0
            }
            Err(fault) => Err(fault),
        };
        closed.map(|_| ()).map_err(|source| FileError::new(&path, FileOperation::Close, source))
    }

    fn descriptor(&self) -> Fd {
        Fd(self.file.raw())
    }
}

/// Opens a file by a name in a directory, which `lent` keeps open.
///
/// # Safety
/// `directory` must stay valid for as long as `lent` exists.
#[allow(unsafe_code, reason = "the kernel reads the name and returns a descriptor")]
pub(crate) async unsafe fn open_at<D: Unpin + 'static>(
    lent: D,
    directory: RawFd,
    name: CString,
    path: PathBuf,
    how: Open,
) -> Result<File, FileError> {
    let failed = |source: io::Error| FileError::new(&path, FileOperation::Open, source);
    admit_on_ring(&path, FileOperation::Open, 0).await.map_err(failed)?;
    let mut lent = (lent, name);
    let opened = loop {
        let flags = how.flags() | OFlags::CLOEXEC;
        let entry = opcode::OpenAt::new(Fd(directory), lent.1.as_ptr())
            .flags(flags.bits() as i32)
            .mode(Open::MODE)
            .build();
        // SAFETY: the name's bytes do not move with it, and it is lent, as is what keeps the directory open.
        let (result, back) = unsafe { submit(lent, entry) }.await;
        lent = back;
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => break result,
        }
    };
    let descriptor = opened.map_err(failed)? as RawFd;
    // SAFETY: the kernel has just opened it for us, and nobody else knows of it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    Ok(blocking::File::new(descriptor, path).into())
}
