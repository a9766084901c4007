//! What a log says of each request: read from a disk record by record, by other means than the core's.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringpost_broker::log::{Location, Record, memory::Memory, recover};
use ringpost_protocol::message::RequestFlags;

use super::disk::LOG;
use crate::sim::{
    peer::number_in,
    rules::{Rule, Violation},
};

/// A request that the log keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Logged {
    /// Its own record has been met.
    pub(super) asked: bool,
    /// What it carries; nothing any more, once it is decided and its record was copied forward.
    pub(super) token: Option<u64>,
    pub(super) session: Bytes,
    pub(super) number: u64,
    pub(super) send: bool,
    /// The last attempt that began.
    pub(super) attempt: u16,
    pub(super) outcome: Option<Outcome>,
    /// Attempts that failed; those of a dead letter all did.
    pub(super) failed: u16,
    pub(super) dead: bool,
}

/// How a request ended: the error's code, or 0 with the number that its handler put into the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) code: u16,
    pub(super) number: Option<u64>,
}

/// All that a log says, by the requests' counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(super) living: BTreeMap<u64, Logged>,
    pub(super) done: BTreeSet<u64>,
    /// The last record's sequence.
    pub(super) last: u64,
}

impl View {
    /// Reads the log on a disk, which is changed only as reading a log changes it.
    pub(super) fn read(mut disk: Memory) -> Result<Self, Violation> {
        let mut view = Self::default();
        let read = recover(&mut disk, LOG, |_: Location, record: &Record<'_>| view.take(record));
        let recovered = read.map_err(|error| Violation {
            rule: Rule::Recovery,
            what: format!("the log cannot be read any more: {error}"),
        })?;
        view.last = recovered.last.0;
        // What is left of a request whose own record has gone: its segment was removed when it was done.
        view.living.retain(|_, logged| logged.asked);
        Ok(view)
    }

    fn take(&mut self, record: &Record<'_>) {
        match record {
            Record::Request(request) if !self.done.contains(&request.count) => {
                let logged = self.living.entry(request.count).or_default();
                logged.asked = true;
                logged.token = number_in(request.payload).or(logged.token);
                logged.session = Bytes::copy_from_slice(request.session);
                logged.number = request.number;
                logged.send = RequestFlags(request.flags).has(RequestFlags::SEND);
            }
            Record::Delivered(delivered) => {
                if let Some(logged) = self.entry(delivered.count) {
                    logged.attempt = delivered.attempt;
                }
            }
            Record::Reply(reply) => {
                if let Some(logged) = self.entry(reply.count) {
                    logged.outcome = Some(Outcome { code: reply.code, number: number_in(reply.payload) });
                }
            }
            Record::Retry(retry) => {
                if let Some(logged) = self.entry(retry.count) {
                    (logged.failed, logged.dead) = (retry.attempt, false);
                }
            }
            Record::Dead(dead) => {
                if let Some(logged) = self.entry(dead.count) {
                    (logged.failed, logged.dead) = (dead.attempt, true);
                }
            }
            Record::Done(done) => {
                self.living.remove(&done.count);
                self.done.insert(done.count);
            }
            Record::Moved(moved) => {
                if let Ok(record) = Record::decode(moved.kind, moved.body) {
                    self.take(&record);
                }
            }
            // No request of the scripts has an idempotency key, which is what is claimed.
            Record::Claimed(_) => {}
            Record::Request(_) | Record::Boot(_) | Record::Mark(_) | Record::Lost(_) => {}
        }
    }

    /// Copies of one that is done say nothing any more.
    fn entry(&mut self, count: u64) -> Option<&mut Logged> {
        (!self.done.contains(&count)).then(|| self.living.entry(count).or_default())
    }
}
