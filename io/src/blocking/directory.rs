//! A directory, and the calls that wait.

use std::{
    ffi::{CString, OsStr, OsString},
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::DirBuilderExt,
        },
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};

use super::{File, Lock};
use crate::{
    faults::admit,
    file::Open,
    file_error::{FileError, FileOperation, LockError},
};

/// An open directory. Names are those of its own entries: no paths. Should it be renamed meanwhile, it is still this one.
#[derive(Debug)]
pub struct Directory {
    descriptor: OwnedFd,
    path: PathBuf,
}

/// How much room a file system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Its size, in bytes.
    pub total_bytes: u64,
    /// What this user may still fill, in bytes. Quotas are not counted.
    pub available_bytes: u64,
}

impl Directory {
    /// Opens a directory that is there.
    ///
    /// # Errors
    /// What open(2) says; ENOTDIR when it is something else.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, FileError> {
        let path = path.into();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = admit(&path, FileOperation::Open, 0)
            .and_then(|_| Ok(rustix::fs::openat(CWD, &path, flags, Mode::empty())?));
        match opened {
            Ok(descriptor) => Ok(Self { descriptor, path }),
            Err(source) => Err(FileError::new(&path, FileOperation::Open, source)),
        }
    }

    /// Opens a directory, and creates it before, and those above it, where they are missing: for this user only (mode
    /// 0700). What was created is stable when this returns.
    ///
    /// # Errors
    /// What mkdir(2), open(2) or fsync(2) says.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, FileError> {
        let path = path.into();
        match Self::open(&path) {
            Err(error) if error.is_missing() => {}
            result => return result,
        }
        // Of a relative path with one part, the parent is "".
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let above = if parent == path { Self::open(parent) } else { Self::create(parent) }?;
        match admit(&path, FileOperation::Create, 0)
            .and_then(|_| fs::DirBuilder::new().mode(0o700).create(&path))
        {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(FileError::new(&path, FileOperation::Create, source));
            }
            _ => above.sync()?,
        }
        Self::open(path)
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens or creates one of its files; see [`File::open`].
    ///
    /// # Errors
    /// What openat(2) says.
    pub fn open_file(&self, name: impl AsRef<OsStr>, how: Open) -> Result<File, FileError> {
        let path = self.path.join(name.as_ref());
        let opened = file_name(name.as_ref())
            .and_then(|name| admit(&path, FileOperation::Open, 0).map(|_| name))
            .and_then(|name| {
                let flags = how.flags() | OFlags::CLOEXEC;
                Ok(rustix::fs::openat(&self.descriptor, name, flags, Mode::from_raw_mode(Open::MODE))?)
            });
        match opened {
            Ok(descriptor) => Ok(File::new(descriptor, path)),
            Err(source) => Err(FileError::new(&path, FileOperation::Open, source)),
        }
    }

    /// Makes stable which names it has: those of new files, renames, removals. It says nothing of what is in the files.
    ///
    /// # Errors
    /// What fsync(2) says. **Any error is final**, as with [`File::sync_data`].
    pub fn sync(&self) -> Result<(), FileError> {
        admit(&self.path, FileOperation::SyncAll, 0)
            .and_then(|_| Ok(rustix::fs::fsync(&self.descriptor)?))
            .map_err(|source| FileError::new(&self.path, FileOperation::SyncAll, source))
    }

    /// Renames a file; one that has the new name is replaced. After a crash it has one of the two names; the new one for
    /// sure after [`Directory::sync`].
    ///
    /// # Errors
    /// What renameat(2) says.
    pub fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> Result<(), FileError> {
        let path = self.path.join(from.as_ref());
        file_name(from.as_ref())
            .and_then(|from| Ok((from, file_name(to.as_ref())?)))
            .and_then(|names| admit(&path, FileOperation::Rename, 0).map(|_| names))
            .and_then(|(from, to)| Ok(rustix::fs::renameat(&self.descriptor, from, &self.descriptor, to)?))
            .map_err(|source| FileError::new(&path, FileOperation::Rename, source))
    }

    /// Removes a file. It may be there again after a crash, as long as [`Directory::sync`] did not follow. Those who have
    /// it open keep it.
    ///
    /// # Errors
    /// What unlinkat(2) says; [`FileError::is_missing`].
    pub fn remove(&self, name: impl AsRef<OsStr>) -> Result<(), FileError> {
        let path = self.path.join(name.as_ref());
        file_name(name.as_ref())
            .and_then(|name| admit(&path, FileOperation::Remove, 0).map(|_| name))
            .and_then(|name| Ok(rustix::fs::unlinkat(&self.descriptor, name, AtFlags::empty())?))
            .map_err(|source| FileError::new(&path, FileOperation::Remove, source))
    }

    /// Gives a file new contents as a whole: after a crash it has the old ones or the new ones, and the new ones for sure
    /// when this has returned. See [`crate::directory::Directory::replace`].
    ///
    /// # Errors
    /// The first step that failed.
    pub fn replace(&self, name: impl AsRef<OsStr>, contents: &[u8]) -> Result<(), FileError> {
        let new = new_name(name.as_ref());
        let file = self.open_file(&new, Open::Replace)?;
        let written = file
            .write_all_at(contents, 0)
            .and_then(|()| file.sync_data())
            .and_then(|()| self.rename(&new, name.as_ref()));
        if let Err(error) = written {
            if let Err(left) = self.remove(&new) {
                tracing::warn!(%left, "what was not written to its end is left behind");
            }
            return Err(error);
        }
        self.sync()
    }

    /// The names of all its entries, in order; directories too.
    ///
    /// # Errors
    /// What getdents(2) says.
    pub fn list(&self) -> Result<Vec<OsString>, FileError> {
        let list = || -> io::Result<Vec<OsString>> {
            admit(&self.path, FileOperation::List, 0)?;
            let mut names = Vec::new();
            // With a descriptor of its own, or two lists at once would share one position.
            for entry in Dir::read_from(&self.descriptor)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if !matches!(&name[..], b"." | b"..") {
                    names.push(OsString::from_vec(name));
                }
            }
            names.sort_unstable();
            Ok(names)
        };
        list().map_err(|source| FileError::new(&self.path, FileOperation::List, source))
    }

    /// Locks a file against other processes, and creates it if it is missing; see [`Lock`].
    ///
    /// # Errors
    /// [`LockError::Held`]: somebody has it; it does not wait.
    pub fn lock(&self, name: impl AsRef<OsStr>) -> Result<Lock, LockError> {
        Lock::acquire(self.open_file(name, Open::Lock)?)
    }

    /// How much room its file system has.
    ///
    /// # Errors
    /// What fstatvfs(2) says.
    pub fn space(&self) -> Result<Space, FileError> {
        let space = admit(&self.path, FileOperation::Space, 0)
            .and_then(|_| Ok(rustix::fs::fstatvfs(&self.descriptor)?))
            .map_err(|source| FileError::new(&self.path, FileOperation::Space, source))?;
        Ok(Space {
            total_bytes: space.f_blocks.saturating_mul(space.f_frsize),
            available_bytes: space.f_bavail.saturating_mul(space.f_frsize),
        })
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

/// A name for the kernel, if it is one of an entry and no path.
pub(crate) fn file_name(name: &OsStr) -> io::Result<CString> {
    let bytes = name.as_bytes();
    if bytes.contains(&b'/') || matches!(bytes, b"" | b"." | b"..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a file"));
    }
    Ok(CString::new(bytes)?)
}

/// Where the new contents of a file are until they have its name.
pub(crate) fn new_name(name: &OsStr) -> OsString {
    let mut new = name.to_os_string();
    new.push(".new");
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is no name of an entry never reaches the kernel.
    #[test]
    fn names_are_no_paths() {
        for bad in ["", ".", "..", "a/b", "/etc/passwd", "../up", "nul\0"] {
            assert_eq!(
                file_name(OsStr::new(bad)).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{bad:?}"
            );
        }
        assert_eq!(file_name(OsStr::new("..a.segment")).unwrap().as_bytes(), b"..a.segment");
    }
}
