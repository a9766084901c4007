//! A log's directory that was opened: it is there, there is a log in it, and no server has it. Reading it shows progress
//! and can be stopped.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    path::{Path, PathBuf},
};

use ringpost_broker::log::{
    LogError, LogErrorKind,
    files::Files,
    names::{self, FileName},
};
use ringpost_server::LogFiles;

use super::progress::Progress;
use crate::exit::{BAD_DATA, CONFIGURATION, Failure, Outcome};

/// A log's files.
pub(super) struct Opened {
    path: PathBuf,
    files: LogFiles,
    reading: RefCell<Reading>,
    stopped: Cell<bool>,
}

struct Reading {
    progress: Progress,
    /// How far each file was read, where each is read but once.
    once: Option<Once>,
    bytes: u64,
}

struct Once {
    /// Bytes of all segments.
    total: u64,
    read: HashMap<String, u64>,
}

impl Opened {
    /// Opens and locks a directory with a log. `progress` is shown while it is read.
    ///
    /// # Errors
    /// There is no such directory, no log in it, or a server has it.
    pub(super) fn open(path: &Path, progress: Progress) -> Outcome<Self> {
        let shown = path.display();
        let remedy = "name the directory that `ringpost serve --data-dir` has";
        let mut files = LogFiles::open_existing(path).map_err(|error| {
            let remedy = if error.is_missing() { format!("; {remedy}") } else { String::new() };
            Failure::system("no log was opened", &error.into()).with(&remedy)
        })?;
        let cannot = |error: &io::Error| Failure::system(&format!("the log in {shown}"), error);
        let names = files.list().map_err(|error| cannot(&error))?;
        if !names.iter().any(|name| is_of_a_log(name)) {
            let missing = io::Error::new(io::ErrorKind::NotFound, format!("there is none; {remedy}"));
            return Err(cannot(&missing));
        }
        files.lock().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                let message = format!("a running server has the log in {shown}: {error}");
                Failure::new(CONFIGURATION, message)
            }
            _ => cannot(&error),
        })?;
        let reading = RefCell::new(Reading { progress, once: None, bytes: 0 });
        Ok(Self { path: path.to_owned(), files, reading, stopped: Cell::new(false) })
    }

    /// From now on every segment is read once: progress says how much that is.
    pub(super) fn read_once(&self) -> Outcome {
        let total = self
            .segment_bytes()
            .map_err(|error| Failure::system(&format!("the log in {}", self.path.display()), &error))?;
        self.reading.borrow_mut().once = Some(Once { total, read: HashMap::new() });
        Ok(())
    }

    /// From now on segments are read several times.
    pub(super) fn read_again(&self) {
        self.reading.borrow_mut().once = None;
    }

    fn segment_bytes(&self) -> io::Result<u64> {
        let names = self.files.list()?;
        names.iter().filter(|name| is_segment(name)).map(|name| self.files.length(name)).sum()
    }

    /// Lets every further reading fail.
    pub(super) fn stop_reading(&self) {
        self.stopped.set(true);
    }

    /// What an error of the log's means for the command.
    pub(super) fn failure(&self, error: &LogError) -> Failure {
        let what = format!("the log in {}", self.path.display());
        match (error, error.kind()) {
            (LogError::Io { file, doing, source }, _) => {
                Failure::system(&format!("{what}: cannot {doing} {file}"), source)
            }
            (_, LogErrorKind::Corrupt) => Failure::new(BAD_DATA, format!("{what}: {error}")),
            (_, _) => Failure::new(CONFIGURATION, format!("{what}: {error}")),
        }
    }

    /// Where a file of it is, for people.
    pub(super) fn path_of(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    /// The directory, for people.
    pub(super) fn path(&self) -> String {
        self.path.display().to_string()
    }

    fn has_read(&self, name: &str, offset: u64, bytes: u64) {
        let reading = &mut *self.reading.borrow_mut();
        reading.bytes += bytes;
        let Some(once) = &mut reading.once else { return reading.progress.at(reading.bytes, None) };
        if is_segment(name) {
            // Of the next segment, the beginning is read ahead of its time: how far each was read counts, not how much.
            match once.read.get_mut(name) {
                Some(end) => *end = (*end).max(offset + bytes),
                None => drop(once.read.insert(name.to_owned(), offset + bytes)),
            }
            reading.progress.at(once.read.values().sum(), Some(once.total));
        }
    }
}

fn is_of_a_log(name: &str) -> bool {
    matches!(
        names::parse(name),
        FileName::Manifest | FileName::Segment(_) | FileName::Snapshot(_) | FileName::Aside
    )
}

fn is_segment(name: &str) -> bool {
    matches!(names::parse(name), FileName::Segment(_))
}

impl Files for Opened {
    fn list(&self) -> io::Result<Vec<String>> {
        self.files.list()
    }

    fn length(&self, name: &str) -> io::Result<u64> {
        self.files.length(name)
    }

    fn read_at(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        if self.stopped.get() {
            return Err(io::Error::other("nobody wants to know what is in it"));
        }
        let bytes = self.files.read_at(name, offset, into)?;
        self.has_read(name, offset, bytes as u64);
        Ok(bytes)
    }

    fn create(&mut self, name: &str, bytes: u64) -> io::Result<()> {
        self.files.create(name, bytes)
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.files.write_at(name, offset, bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.files.sync(name)
    }

    fn settle(&mut self, name: &str) -> io::Result<()> {
        self.files.settle(name)
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.files.sync_directory()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.files.rename(from, to)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }

    fn lock(&mut self) -> io::Result<()> {
        self.files.lock()
    }
}
