//! Reading the log beside a server that begins already: on a thread of its own, since it blocks.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use ringpost_io::{clock, directory::Directory};
use tokio::sync::oneshot;

use super::{LogFiles, Performer, Storage, StorageError};
use crate::{Config, StartError};

/// A log that is read sooner is there before anybody is served: clients of a server with a short log never see it recover. They
/// can connect, and wait for so long.
const SOON: Duration = Duration::from_millis(500);
/// How often it is said how far it has come.
const REPORT_AFTER: Duration = Duration::from_secs(1);

/// How far the log has been read; and whether it need be read on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    read_bytes: Arc<AtomicU64>,
    given_up: Arc<AtomicBool>,
}

impl Progress {
    /// So many bytes more were read. `false` if nobody waits for them any more.
    pub(super) fn count(&self, bytes: usize) -> bool {
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        !self.given_up.load(Ordering::Relaxed)
    }
}

/// A log that is being read.
pub(crate) struct Recovery {
    directory: PathBuf,
    progress: Progress,
    /// Closed by the thread when it ends, however it does.
    ended: oneshot::Receiver<()>,
    thread: Option<JoinHandle<Result<Storage, StorageError>>>,
}

/// What was read, and what writes on.
pub(crate) type Read = Result<(Storage, Performer), StorageError>;

impl Recovery {
    /// Begins to read the log of a configuration that has one. `random`: for a log that is made anew, and for this boot.
    pub(crate) fn begin(config: &Config, boot: u64, random: [u64; 3]) -> Result<Option<Self>, StartError> {
        let Some(directory) = config.data_dir.clone() else { return Ok(None) };
        // Before anybody is served: who else has the directory must be known by then.
        let mut files = LogFiles::open(&directory).map_err(|error| StorageError::new(&directory, error))?;
        files.lock_soon();
        let (config, path, progress) = (config.clone(), directory.clone(), Progress::default());
        let (at_end, ended) = oneshot::channel();
        let watched = progress.clone();
        let thread = thread::Builder::new().name("ringpost-recovery".into()).spawn(move || {
            let _at_end: oneshot::Sender<()> = at_end;
            Storage::open(&config, &path, files.watched_by(watched), boot, random)
        });
        let thread = thread.map_err(|cause| StartError::System { what: "starting a thread", cause })?;
        Ok(Some(Self { directory, progress, ended, thread: Some(thread) }))
    }

    /// What was read, if that takes no time.
    pub(crate) async fn soon(&mut self) -> Option<Read> {
        // Closed, or not yet: it is never sent.
        let _closed = clock::within(SOON, &mut self.ended).await?;
        self.take()
    }

    /// What was read, when it is. Says now and then how far it has come. `None` if that was told before.
    pub(crate) async fn finished(&mut self) -> Option<Read> {
        while clock::within(REPORT_AFTER, &mut self.ended).await.is_none() {
            let read_mib = self.progress.read_bytes.load(Ordering::Relaxed) >> 20;
            tracing::info!(directory = %self.directory.display(), read_mib, "recovering: the log is being read");
        }
        self.take()
    }

    fn take(&mut self) -> Option<Read> {
        let outcome = match self.thread.take()?.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        Some(outcome.and_then(|storage| {
            let ring = Directory::open(&self.directory);
            let ring = ring.map_err(|error| StorageError::new(&self.directory, error))?;
            Ok((storage, Performer::new(ring)))
        }))
    }
}

/// A server that ends need not know what is in its log: the thread ends at its next read.
impl Drop for Recovery {
    fn drop(&mut self) {
        self.progress.given_up.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that read the log panicked: this is a bug");
        }
    }
}
