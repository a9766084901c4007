//! Many lines on standard output, until nobody reads them any more: then the reading of the log is stopped too.

use std::io::{self, BufWriter, StdoutLock, Write};

use ringpost_broker::log::LogError;
use serde::Serialize;

use super::opened::Opened;
use crate::exit::{Failure, Outcome};

/// A command's results.
pub(super) struct Results<'a> {
    log: &'a Opened,
    to: BufWriter<StdoutLock<'static>>,
    failed: Option<Failure>,
}

impl<'a> Results<'a> {
    pub(super) fn of(log: &'a Opened) -> Self {
        Self { log, to: BufWriter::new(io::stdout().lock()), failed: None }
    }

    /// Writes a line.
    pub(super) fn line(&mut self, line: &str) {
        self.write(|to| to.write_all(line.as_bytes()));
    }

    /// Writes a line of JSON.
    pub(super) fn json(&mut self, value: &impl Serialize) {
        self.write(|to| Ok(serde_json::to_writer(to, value)?));
    }

    fn write(&mut self, line: impl FnOnce(&mut BufWriter<StdoutLock<'static>>) -> io::Result<()>) {
        if self.failed.is_some() {
            return;
        }
        if let Err(error) = line(&mut self.to).and_then(|()| self.to.write_all(b"\n")) {
            self.failed = Some(Failure::output(&error));
            self.log.stop_reading();
        }
    }

    /// Writes out what there is. `read` is what reading the log came to: what stopped it here is no error of the log's.
    pub(super) fn end(mut self, read: Result<(), LogError>) -> Outcome {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        self.to.flush().map_err(|error| Failure::output(&error))?;
        read.map_err(|error| self.log.failure(&error))
    }
}
