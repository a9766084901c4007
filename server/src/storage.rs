//! The log's files: reading them at the start, writing them while the server runs.
//!
//! What is written when, and what may be relied on, decides [`Writer`]; here it is only done. The log is read on a thread of its
//! own, which may take its time: the server begins without it ([`Recovery`]).

mod files;
mod recovery;
mod writing;

use std::{path::Path, time::Instant};

use ringpost_broker::{
    Restore,
    log::{self, LogError, LogErrorKind, LogId, Recovered, SyncPolicy, Writer},
};

pub use self::files::LogFiles;
pub(crate) use self::{
    recovery::{Progress, Recovery},
    writing::Performer,
};
use crate::Config;

/// A log that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the data directory {directory}: {cause}")]
pub struct StorageError {
    directory: String,
    /// What is wrong with which file, and what to do.
    #[source]
    cause: Box<Cause>,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    File(#[from] ringpost_io::file_error::FileError),
}

impl StorageError {
    fn new(directory: &Path, cause: impl Into<Cause>) -> Self {
        Self { directory: directory.display().to_string(), cause: Box::new(cause.into()) }
    }

    /// 65 for a log that is corrupt, 78 for one that is in use or of a newer version, 74 for a disk that does not work.
    pub(crate) fn exit_code(&self) -> u8 {
        match &*self.cause {
            Cause::Log(error) => match error.kind() {
                LogErrorKind::Corrupt => 65,
                LogErrorKind::Newer | LogErrorKind::InUse => 78,
                _ => 74,
            },
            Cause::File(_) => 74,
        }
    }
}

/// A log that was read and can go on. The directory is locked as long as this lives.
pub(crate) struct Storage {
    pub(crate) writer: Writer,
    pub(crate) restore: Restore,
    pub(crate) highest_count: u64,
    /// The first half of the log's id.
    pub(crate) log_id: u64,
    pub(crate) lock: LogFiles,
}

impl Storage {
    /// Opens the log in a directory, or makes one there. Blocks for as long as it takes to read it.
    fn open(
        config: &Config,
        directory: &Path,
        mut files: LogFiles,
        boot: u64,
        random: [u64; 3],
    ) -> Result<Self, StorageError> {
        let begun = Instant::now();
        let refused = |cause| StorageError::new(directory, cause);
        let [one, other, seed] = random;
        let new_log = LogId((u128::from(one) | u128::from(other) << 64).to_le_bytes());
        let queue_memory = usize::try_from(config.queue_memory()).unwrap_or(usize::MAX);
        let (mut restore, mut died) = (Restore::new(queue_memory), Vec::new());
        let recovered = log::recover(&mut files, new_log, |at, record| {
            restore.take(at, record, &mut |location| died.push(location));
        })
        .map_err(refused)?;
        report(&recovered, directory, begun);
        let settings = log::Config {
            segment_bytes: u32::try_from(config.segment_size).unwrap_or(u32::MAX) & !7,
            max_disk: config.max_disk,
            sync: match config.sync {
                crate::Sync::Always => SyncPolicy::Always,
                crate::Sync::Interval(interval) => SyncPolicy::Interval(interval),
                crate::Sync::Never => SyncPolicy::Never,
            },
            boot,
            seed,
        };
        let mut writer = Writer::new(settings, &recovered);
        died.into_iter().for_each(|location| writer.died(location));
        Ok(Self {
            writer,
            restore,
            highest_count: recovered.highest_count,
            log_id: u128::from_le_bytes(recovered.manifest.log.0) as u64,
            lock: files,
        })
    }
}

fn report(recovered: &Recovered, directory: &Path, begun: Instant) {
    let directory = directory.display();
    for name in &recovered.foreign {
        tracing::warn!(%directory, name, "a file that is none of the log's: it is left alone");
    }
    if let Some(cut) = &recovered.cut {
        tracing::warn!(
            %directory, segment = %cut.segment, offset = cut.offset, bytes = cut.bytes, records = cut.records,
            "the end of the log was torn by a crash and is cut off: nobody was promised what was in it"
        );
    }
    let took_ms = begun.elapsed().as_millis() as u64;
    let (segments, records) = (recovered.segments.len(), recovered.records);
    tracing::info!(%directory, segments, records, took_ms, "the log is read");
}
