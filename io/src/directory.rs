//! A directory on the ring: new names, renames and removals, and making them stable.
//!
//! Renames, removals and syncs run in worker threads of the kernel's (Linux 5.11): a removal may take milliseconds, as it
//! frees a segment's blocks. Listing, locking and asking for space wait: they happen at the start, or are answered from
//! memory.

use std::{
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use io_uring::{opcode, types::Fd};

pub use crate::blocking::{Lock, Space};
use crate::{
    blocking::{self, file_name, new_name},
    faults::admit_on_ring,
    file::{File, Open, open_at},
    file_error::{FileError, FileOperation, LockError},
    operation::submit,
};

/// An open directory. Clones are the same one; it is closed with the last of them, and not before what is in flight has
/// ended. Names are those of its own entries: no paths. Should it be renamed meanwhile, it is still this one.
///
/// Operations that are in flight together are done in any order. Their futures must not be dropped (see the [crate's
/// contract](crate)): what was asked for happens nevertheless.
#[derive(Debug, Clone)]
pub struct Directory {
    directory: Rc<blocking::Directory>,
}

impl From<blocking::Directory> for Directory {
    /// Goes on with a directory that was opened without a ring.
    fn from(directory: blocking::Directory) -> Self {
        Self { directory: Rc::new(directory) }
    }
}

impl Directory {
    /// Opens a directory that is there. Waits.
    ///
    /// # Errors
    /// What open(2) says; ENOTDIR when it is something else.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, FileError> {
        Ok(blocking::Directory::open(path)?.into())
    }

    /// Opens a directory, and creates it before, and those above it, where they are missing: for this user only (mode
    /// 0700). What was created is stable when this returns. Waits.
    ///
    /// # Errors
    /// What mkdir(2), open(2) or fsync(2) says.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, FileError> {
        Ok(blocking::Directory::create(path)?.into())
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Opens or creates one of its files; see [`File::open`].
    ///
    /// # Errors
    /// What openat(2) says.
    #[allow(unsafe_code, reason = "the directory is lent")]
    pub async fn open_file(&self, name: impl AsRef<OsStr>, how: Open) -> Result<File, FileError> {
        let path = self.path().join(name.as_ref());
        match file_name(name.as_ref()) {
            // SAFETY: the directory is lent.
            Ok(name) => unsafe {
                open_at(self.directory.clone(), self.directory.raw(), name, path, how).await
            },
            Err(error) => Err(FileError::new(&path, FileOperation::Open, error)),
        }
    }

    /// Makes stable which names it has: those of new files, renames and removals that had ended before this call. It says
    /// nothing of what is in the files.
    ///
    /// # Errors
    /// What fsync(2) says. **Any error is final**, as with [`File::sync_data`].
    #[allow(unsafe_code, reason = "the directory is lent")]
    pub async fn sync(&self) -> Result<(), FileError> {
        let synced = match admit_on_ring(self.path(), FileOperation::SyncAll, 0).await {
            Ok(_) => {
                let entry = opcode::Fsync::new(Fd(self.directory.raw())).build();
                // SAFETY: the entry has no pointer, and its directory is lent.
                unsafe { submit(self.directory.clone(), entry) }.await.0
            }
            Err(fault) => Err(fault),
        };
        synced.map(|_| ()).map_err(|source| FileError::new(self.path(), FileOperation::SyncAll, source))
    }

    /// Renames a file; one that has the new name is replaced. After a crash it has one of the two names; the new one for
    /// sure after [`Directory::sync`].
    ///
    /// # Errors
    /// What renameat(2) says.
    #[allow(unsafe_code, reason = "the kernel reads the names")]
    pub async fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> Result<(), FileError> {
        let path = self.path().join(from.as_ref());
        let failed = |source: io::Error| FileError::new(&path, FileOperation::Rename, source);
        let from = file_name(from.as_ref()).map_err(failed)?;
        let to = file_name(to.as_ref()).map_err(failed)?;
        admit_on_ring(&path, FileOperation::Rename, 0).await.map_err(failed)?;
        let directory = Fd(self.directory.raw());
        let entry = opcode::RenameAt::new(directory, from.as_ptr(), directory, to.as_ptr()).build();
        // SAFETY: the names' bytes do not move with them, and they are lent together with the directory.
        let renamed = unsafe { submit((self.directory.clone(), from, to), entry) }.await.0;
        renamed.map(|_| ()).map_err(failed)
    }

    /// Removes a file. It may be there again after a crash, as long as [`Directory::sync`] did not follow. Those who have
    /// it open keep it.
    ///
    /// # Errors
    /// What unlinkat(2) says; [`FileError::is_missing`].
    #[allow(unsafe_code, reason = "the kernel reads the name")]
    pub async fn remove(&self, name: impl AsRef<OsStr>) -> Result<(), FileError> {
        let path = self.path().join(name.as_ref());
        let failed = |source: io::Error| FileError::new(&path, FileOperation::Remove, source);
        let name = file_name(name.as_ref()).map_err(failed)?;
        admit_on_ring(&path, FileOperation::Remove, 0).await.map_err(failed)?;
        let entry = opcode::UnlinkAt::new(Fd(self.directory.raw()), name.as_ptr()).build();
        // SAFETY: the name's bytes do not move with it, and it is lent together with the directory.
        let removed = unsafe { submit((self.directory.clone(), name), entry) }.await.0;
        removed.map(|_| ()).map_err(failed)
    }

    /// Gives a file new contents as a whole: after a crash it has the old ones or the new ones, and the new ones for sure
    /// when this has returned.
    ///
    /// The new ones are written to `NAME.new`, synced, renamed, and the directory is synced, each when the one before has
    /// ended. Only one may be under way for a name.
    ///
    /// # Errors
    /// The first step that failed. The file has its old contents, and `NAME.new` is removed; only if the last step
    /// failed, the sync of the directory, it has the new ones, and the old ones may come back with a crash.
    pub async fn replace(&self, name: impl AsRef<OsStr>, contents: Vec<u8>) -> Result<(), FileError> {
        let new = new_name(name.as_ref());
        let file = self.open_file(&new, Open::Replace).await?;
        let written = async {
            file.write_all_at(contents, 0).await.0?;
            file.sync_data().await?;
            self.rename(&new, name.as_ref()).await
        };
        if let Err(error) = written.await {
            if let Err(left) = self.remove(&new).await {
                tracing::warn!(%left, "what was not written to its end is left behind");
            }
            return Err(error);
        }
        self.sync().await
    }

    /// The names of all its entries, in order; directories too. Waits.
    ///
    /// # Errors
    /// What getdents(2) says.
    pub fn list(&self) -> Result<Vec<OsString>, FileError> {
        self.directory.list()
    }

    /// Locks a file against other processes, and creates it if it is missing; see [`Lock`]. Does not wait for the lock.
    ///
    /// # Errors
    /// [`LockError::Held`]: somebody has it.
    pub fn lock(&self, name: impl AsRef<OsStr>) -> Result<Lock, LockError> {
        self.directory.lock(name)
    }

    /// How much room its file system has. Does not wait: the system knows it.
    ///
    /// # Errors
    /// What fstatvfs(2) says.
    pub fn space(&self) -> Result<Space, FileError> {
        self.directory.space()
    }
}
