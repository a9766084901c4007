//! The data directory as recovery and tools see it: without the ring.

use std::{
    ffi::OsString,
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use ringpost_broker::log::{files::Files, names::LOCK};
use ringpost_io::{
    blocking::{Directory, File, Lock},
    file::Open,
    file_error::FileError,
};

use super::Progress;

/// How long a server that begins waits for the directory's lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A directory's files.
#[derive(Debug)]
pub struct LogFiles {
    directory: Directory,
    lock: Option<Lock>,
    /// The file that was used last: recovery reads one after the other.
    last: Option<(String, File)>,
    progress: Option<Progress>,
}

impl LogFiles {
    /// Opens the directory, or makes it.
    ///
    /// # Errors
    /// It cannot be opened or made.
    pub fn open(directory: &Path) -> Result<Self, FileError> {
        Ok(Self { directory: Directory::create(directory)?, lock: None, last: None, progress: None })
    }

    /// Opens a directory that is there: for tools, which must not make an empty log where there is none.
    ///
    /// # Errors
    /// It is missing, or cannot be opened.
    pub fn open_existing(directory: &Path) -> Result<Self, FileError> {
        Ok(Self { directory: Directory::open(directory)?, lock: None, last: None, progress: None })
    }

    /// Lets somebody see how far reading has come, who can also give it up.
    pub(super) fn watched_by(self, progress: Progress) -> Self {
        Self { progress: Some(progress), ..self }
    }

    /// Takes the lock, if it can be had soon: a server that was killed a moment ago has it until the kernel has ended all that was
    /// under way on its ring, which can take longer than the process is seen. What is in the way otherwise, recovery says, which
    /// asks for the lock again.
    pub(super) fn lock_soon(&mut self) {
        let until = Instant::now() + LOCK_PATIENCE;
        let held = |result: io::Result<()>| result.is_err_and(|it| it.kind() == io::ErrorKind::WouldBlock);
        while held(self.lock()) && Instant::now() < until {
            thread::sleep(LOCK_PAUSE);
        }
    }

    fn file(&self, name: &str, how: Open) -> io::Result<File> {
        Ok(self.directory.open_file(name, how)?)
    }

    /// The file, open for writing, and kept open.
    fn kept(&mut self, name: &str) -> io::Result<&File> {
        if self.last.as_ref().is_none_or(|(last, _)| last != name) {
            let file = match self.directory.open_file(name, Open::Write) {
                Err(error) if error.is_missing() => self.directory.open_file(name, Open::Replace)?,
                result => result?,
            };
            self.last = Some((name.to_owned(), file));
        }
        match &self.last {
            Some((_, file)) => Ok(file),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Files for LogFiles {
    fn list(&self) -> io::Result<Vec<String>> {
        let shown = |name: OsString| name.to_string_lossy().into_owned();
        Ok(self.directory.list()?.into_iter().map(shown).collect())
    }

    fn length(&self, name: &str) -> io::Result<u64> {
        Ok(self.file(name, Open::Read)?.length()?)
    }

    fn read_at(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        if self.progress.as_ref().is_some_and(|progress| !progress.count(into.len())) {
            return Err(io::Error::other("reading the log was given up"));
        }
        match &self.last {
            Some((last, file)) if last == name => Ok(file.read_at(into, offset)?),
            _ => Ok(self.file(name, Open::Read)?.read_at(into, offset)?),
        }
    }

    fn create(&mut self, name: &str, bytes: u64) -> io::Result<()> {
        let file = self.file(name, Open::Replace)?;
        if bytes > 0 {
            file.preallocate(0, bytes)?;
        }
        file.sync_data()?;
        self.last = Some((name.to_owned(), file));
        Ok(())
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        Ok(self.kept(name)?.write_all_at(bytes, offset)?)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        Ok(self.kept(name)?.sync_data()?)
    }

    fn settle(&mut self, name: &str) -> io::Result<()> {
        Ok(self.kept(name)?.settle()?)
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        Ok(self.directory.sync()?)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.last = None;
        Ok(self.directory.rename(from, to)?)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.last = None;
        Ok(self.directory.remove(name)?)
    }

    fn lock(&mut self) -> io::Result<()> {
        if self.lock.is_none() {
            self.lock = Some(self.directory.lock(LOCK)?);
        }
        Ok(())
    }
}
