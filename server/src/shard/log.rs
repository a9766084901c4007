//! The log between the core, which says what is to be written, and the tasks that do it.

use std::time::Duration;

use bytes::Bytes;
use ringpost_broker::{
    Broker, Input, Read, ReadFault, ReadId, Unavailable, Unreadable,
    log::{Fault, Operation, OperationId, names},
};
use ringpost_protocol::time::Now;

use super::{Leaving, Shard, State};
use crate::{
    Config,
    storage::{LogFiles, Storage, StorageError},
};

/// What there is of the log when the server begins.
pub(crate) enum LogAtStart {
    /// It has none.
    None,
    /// It is being read.
    Reading,
    /// It was read.
    Read(Box<Storage>),
}

/// How long what is open may take when the server has to end because its log cannot be used.
const UNUSABLE_GRACE: Duration = Duration::from_secs(1);

impl Shard {
    pub(super) fn broker(
        config: &Config,
        boot: u64,
        hash_seed: u64,
        log: LogAtStart,
        now: Now,
    ) -> (Broker, Option<LogFiles>) {
        let mut config = config.broker(boot, hash_seed);
        match log {
            LogAtStart::None => (Broker::new(config), None),
            LogAtStart::Reading => (Broker::new(config).recovering(), None),
            LogAtStart::Read(storage) => {
                let Storage { writer, restore, highest_count, log_id, lock } = *storage;
                config.log_id = log_id;
                let mut broker = Broker::new(config).with_log(writer);
                broker.restore(restore, highest_count, now);
                (broker, Some(lock))
            }
        }
    }

    /// The log has been read while the server ran. Whether it is to be written from now on: a server that leaves takes nothing
    /// more.
    pub(crate) fn recovered(&self, storage: Storage) -> bool {
        let Storage { writer, restore, highest_count, log_id, lock } = storage;
        self.turn(|state, now| {
            if state.leaving != Leaving::No {
                return false;
            }
            state.broker.recovered(writer, log_id, restore, highest_count, now);
            state.act(now);
            *self.lock.borrow_mut() = Some(lock);
            true
        })
    }

    /// The log cannot be used, and the server has begun already: it leaves.
    pub(crate) fn log_is_unusable(&self, error: StorageError) {
        tracing::error!(%error, "the log cannot be used: the server ends");
        *self.log_unusable.borrow_mut() = Some(error);
        self.drain(UNUSABLE_GRACE);
    }

    /// What the log wants to have done now.
    pub(crate) fn next_log_operation(&self) -> Option<Operation> {
        let now = self.clock().now();
        self.state.borrow_mut().broker.log()?.poll(now)
    }

    /// How long the log waits before it wants something, if nothing else happens.
    pub(crate) fn log_pause(&self) -> Option<Duration> {
        let deadline = self.state.borrow_mut().broker.log()?.next_deadline()?;
        Some(deadline.since(self.clock().now().mono))
    }

    /// What the core wants to have read from the log.
    pub(crate) fn next_read(&self) -> Option<Read> {
        self.state.borrow_mut().reads.pop_front()
    }

    /// It was read, or could not be.
    pub(crate) fn read_done(&self, id: ReadId, result: Result<Bytes, ReadFault>) {
        let out_of_reach = self.turn(|state, now| {
            state.broker.handle(Input::Read { id, result }, now);
            state.act(now);
            state.log_out_of_reach
        });
        if out_of_reach {
            self.log_failed.set(true);
            self.stop();
        }
    }

    /// Something that the log wanted has been done, or has not.
    pub(crate) fn log_done(&self, id: OperationId, result: Result<(), Fault>) {
        let failed = self.turn(|state, now| {
            let Some(log) = state.broker.log() else { return false };
            let worked = log.failed().is_none();
            log.done(id, result);
            let fault = log.failed().filter(|_| worked).map(str::to_owned);
            if let Some(fault) = &fault {
                tracing::error!(
                    fault,
                    "the log failed: what was not synced by now is not promised, and the server ends"
                );
            }
            state.broker.handle(Input::Logged, now);
            state.act(now);
            fault.is_some()
        });
        self.log.set();
        if failed {
            // A disk that lost something once is not asked again; a restart reads what is there.
            self.log_failed.set(true);
            self.stop();
        }
    }

    /// Lets the log write and sync all that it has; [`Shard::log_stopped`] tells when that is done.
    pub(crate) fn stop_log(&self) {
        if let Some(log) = self.state.borrow_mut().broker.log() {
            log.stop();
        }
        self.log.set();
    }

    /// Whether the log was told to stop and has done so, or never will.
    pub(crate) fn log_has_stopped(&self) -> bool {
        self.state.borrow_mut().broker.log().is_none_or(|log| log.stopped() || log.failed().is_some())
    }
}

impl State {
    /// A record of the log is damaged.
    pub(super) fn report_unreadable(&self, what: &Unreadable) {
        let Unreadable { count, segment, offset, why, ended } = what;
        let (request, file) = (format!("{count:x}"), names::segment(*segment));
        let becomes = match ended {
            true => "it cannot be read back, and has ended with an error",
            false => "a handler has it and may yet answer: the record stays where it is",
        };
        tracing::error!(
            request,
            file,
            offset,
            why,
            "the log is damaged, within a request that had been accepted: {becomes}. `ringpost log verify` looks for more; this \
             disk should be replaced"
        );
    }

    /// A part of the log could not be read for now.
    pub(super) fn report_unavailable(&mut self, what: &Unavailable, now: Now) {
        let Unavailable { segment, offset, tries, why, again_after } = what;
        let file = names::segment(*segment);
        let Some(again_after) = again_after else {
            self.log_out_of_reach = true;
            return tracing::error!(
                file,
                offset,
                tries,
                why,
                "the log cannot be read, and the server ends: no request has ended by that, they wait in the log. Remove the \
                 cause (files, memory, descriptors: `ulimit -n`), then start the server again"
            );
        };
        if let Some(left_out) = self.unavailable_lines.line(now.mono) {
            tracing::warn!(
                file,
                offset,
                tries,
                why,
                left_out,
                ?again_after,
                "the log cannot be read for now: requests wait until it can"
            );
        }
    }
}
