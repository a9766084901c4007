//! The files of a log as start-up and tools see them: blocking, one directory, whole names without folders.

use std::io;

use super::{
    Action, Fault,
    names::{self, MANIFEST, NEW_MANIFEST},
};

/// A directory with a log in it.
///
/// `std::io::Error` carries the reasons; [`io::ErrorKind::StorageFull`] is the one that is told apart.
pub trait Files {
    /// The names of all files.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn list(&self) -> io::Result<Vec<String>>;

    /// How long a file is, in bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or the disk's.
    fn length(&self, name: &str) -> io::Result<u64>;

    /// Reads from an offset on, and says how many bytes it has read: fewer than asked for are allowed, 0 only at the end.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or the disk's.
    fn read_at(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<usize>;

    /// Makes a file of `bytes` zeros with room for all of them, in place of what has the name, and syncs it. Its entry in
    /// the directory is only kept by [`Files::sync_directory`].
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`], or the disk's.
    fn create(&mut self, name: &str, bytes: u64) -> io::Result<()>;

    /// Writes all of `bytes`, prolonging the file if they reach beyond its end.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`], or the disk's.
    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes stable what was written to a file (fdatasync).
    ///
    /// # Errors
    /// What was not stable before may be lost, whatever a second call says.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// Syncs a file, and makes sure that what is read from now on is what is on the disk, not what is only in the page
    /// cache (fdatasync, then `posix_fadvise(DONTNEED)`).
    ///
    /// After a failed fdatasync the cache still shows what never reached the disk, and calls it clean. A server that was
    /// restarted because of that must not believe it.
    ///
    /// # Errors
    /// The disk's.
    fn settle(&mut self, name: &str) -> io::Result<()>;

    /// Makes stable which files there are, and how they are named.
    ///
    /// # Errors
    /// The disk's.
    fn sync_directory(&mut self) -> io::Result<()>;

    /// Gives a file another name, in one step, in place of what has that name.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or the disk's.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], or the disk's.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Keeps everybody else out of the directory until this value is dropped. Calling it again changes nothing.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if somebody else is in there.
    fn lock(&mut self) -> io::Result<()>;
}

/// Replaces the manifest: written beside it, synced, renamed, and the directory synced.
///
/// # Errors
/// Those of the steps. Before the rename the old one is untouched.
pub fn replace_manifest(files: &mut impl Files, bytes: &[u8]) -> io::Result<()> {
    files.create(NEW_MANIFEST, 0)?;
    files.write_at(NEW_MANIFEST, 0, bytes)?;
    files.sync(NEW_MANIFEST)?;
    files.rename(NEW_MANIFEST, MANIFEST)?;
    files.sync_directory()
}

/// Performs what a [`Writer`](super::Writer) asks for, there and then.
///
/// # Errors
/// A [`Fault`], for [`Writer::done`](super::Writer::done).
pub fn perform(files: &mut impl Files, action: &Action) -> Result<(), Fault> {
    match action {
        Action::Prepare { segment, bytes } => files.create(&names::segment(*segment), (*bytes).into()),
        Action::Zero { segment, offset, bytes } => {
            files.write_at(&names::segment(*segment), (*offset).into(), &vec![0; *bytes as usize])
        }
        Action::Write { segment, offset, bytes, synced } => {
            let name = names::segment(*segment);
            let written = files.write_at(&name, (*offset).into(), bytes);
            written.and_then(|()| if *synced { files.sync(&name) } else { Ok(()) })
        }
        Action::Sync { segment } => files.sync(&names::segment(*segment)),
        Action::SyncDirectory => files.sync_directory(),
        Action::ReplaceManifest { bytes } => return replace(files, bytes),
        Action::Remove { segment } => files.remove(&names::segment(*segment)),
    }
    .map_err(Fault::from)
}

/// As [`replace_manifest`], but a full disk is only called so as long as trying again is harmless.
fn replace(files: &mut impl Files, bytes: &[u8]) -> Result<(), Fault> {
    let written = files.create(NEW_MANIFEST, 0).and_then(|()| files.write_at(NEW_MANIFEST, 0, bytes));
    written.map_err(Fault::from)?;
    let synced = files.sync(NEW_MANIFEST).and_then(|()| files.rename(NEW_MANIFEST, MANIFEST));
    synced.and_then(|()| files.sync_directory()).map_err(|error| Fault::Disk(error.to_string()))
}
