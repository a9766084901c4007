//! Durable requests: the log of the broker on the twin of a disk, the crashes of both, and what must have survived.
//!
//! | module | is |
//! |---|---|
//! | `disk` | the twin, what the log's writer asked of it, and how a crash leaves it |
//! | `view` | what a log says of each request, read from a disk without the core |
//! | `book` | what the broker has promised, and whether it may say what it says |
//! | `promises` | the book over restarts: what must still be there, what must never come again |
//!
//! The book knows what the core is told and what it says, and compares that with the disk itself, at the moment of
//! saying it: with what is synced under the policy `always`, with what is written under the weaker ones. It shares no code
//! with the core but the decoding of records.

mod book;
mod disk;
mod promises;
mod view;

use std::collections::BTreeMap;

use ringpost_broker::{
    Input, Output,
    log::{OperationId, SyncPolicy},
};
use ringpost_protocol::Code;

pub(crate) use self::disk::{Crash, Opened, Stepped};
use self::{book::Book, disk::Disk};
use super::{
    rng::Rng,
    rules::{Verdict, Violation, ensure},
};

/// How a log is kept.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// When it is synced.
    pub policy: SyncPolicy,
    /// Length of a segment.
    pub segment_bytes: u32,
    /// Bytes of disk that it may take.
    pub max_disk: u64,
    /// The longest that an ordinary operation takes, in microseconds.
    pub latency: u64,
    /// Bytes of payloads that are held in memory.
    pub queue_memory_bytes: usize,
    /// How long it takes to read it at a start, in microseconds: 0 if it has been read before anybody is served.
    pub recovery: u64,
    /// Thousandths of reads, while the server runs, that bring something else than what is there, or nothing; as many more
    /// cannot be tried for now.
    pub bad_reads: u64,
}

/// The part of a broker's machine that outlives its process, and the book about it.
#[derive(Debug)]
pub(crate) struct Durable {
    pub(crate) disk: Disk,
    pub(crate) book: Book,
}

impl Durable {
    pub(crate) fn new(settings: &LogSettings, seed: u64) -> Self {
        Self {
            disk: Disk::new(settings.clone(), Rng::of(seed, [0xd15c, 0, 0])),
            book: Book::new(settings.policy),
        }
    }

    /// A server's process begins.
    pub(crate) fn begin(&mut self) {
        self.book.process_begins();
    }

    /// Reads the log as a starting server does; what was promised must be there.
    pub(crate) fn open(&mut self, boot: u64, time: u64) -> Result<Opened, Violation> {
        let opened = self.disk.open(boot)?;
        let last = self.disk.last_crash();
        self.book.restarted(&self.disk.view_of_restart()?, last, boot, time)?;
        Ok(opened)
    }

    pub(crate) fn heard(&mut self, input: &Input, time: u64) {
        self.book.heard(input, time);
    }

    pub(crate) fn said(&mut self, output: &Output, time: u64) -> Verdict {
        if let Output::Unreadable(what) = output {
            ensure!(self.disk.bad_reads() > 0, Truth, "{what:?}, and the disk has read what is there");
            if what.ended {
                self.book.damaged.insert(what.count);
            }
        }
        if self.disk.lies() {
            return Ok(());
        }
        self.book.said(output, &mut self.disk, time)
    }

    /// Takes an operation a step further. What the writer is to be told, if it has come to its end.
    pub(crate) fn step(&mut self, id: OperationId, time: u64) -> Result<Stepped, Violation> {
        let stepped = self.disk.step(id);
        match stepped {
            Stepped::Done { synced: true, .. } => self.book.stable(self.disk.synced()?, time)?,
            // A policy that does not sync for it: a record may be buried in the log long before anything is stable.
            Stepped::Done { .. } if !self.disk.syncs_always() => self.book.learn(self.disk.seen()?),
            _ => {}
        }
        Ok(stepped)
    }

    /// Nothing is under way any more: all that lives in the log is dead letters, and every send ended as done or as one.
    /// `refused` are those that were told a word which nobody may hear whose request was accepted and has not ended.
    pub(crate) fn audit(&mut self, refused: &BTreeMap<u64, Code>) -> Verdict {
        let view = self.disk.seen()?.clone();
        self.book.audit(&view, refused)
    }

    /// Nothing lives in the log.
    pub(crate) fn is_empty(&mut self) -> Verdict {
        let view = self.disk.seen()?;
        ensure!(view.living.is_empty(), Memory, "the log keeps {:?}", view.living);
        Ok(())
    }
}
