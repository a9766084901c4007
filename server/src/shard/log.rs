//! The log between the core, which says what is to be written, and the tasks that do it.

use std::time::Duration;

use bytes::Bytes;
use ringpost_broker::{
    Broker, Input, Read, ReadId, Restore,
    log::{Fault, Operation, OperationId, Writer},
};
use ringpost_protocol::time::Now;

use super::Shard;
use crate::Config;

/// What the core is given of a log that was opened.
pub(crate) struct LogState {
    pub(crate) writer: Writer,
    pub(crate) restore: Restore,
    pub(crate) highest_count: u64,
    pub(crate) log_id: u64,
}

impl Shard {
    pub(super) fn broker(
        config: &Config,
        boot: u64,
        hash_seed: u64,
        log: Option<LogState>,
        now: Now,
    ) -> Broker {
        let mut config = config.broker(boot, hash_seed);
        let Some(log) = log else { return Broker::new(config) };
        config.log_id = log.log_id;
        let mut broker = Broker::new(config).with_log(log.writer);
        broker.restore(log.restore, log.highest_count, now);
        broker
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
    pub(crate) fn read_done(&self, id: ReadId, result: Result<Bytes, String>) {
        self.turn(|state, now| {
            state.broker.handle(Input::Read { id, result }, now);
            state.act(now);
        });
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
