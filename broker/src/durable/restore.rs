//! The way back, first half: what the records of a log say.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_protocol::{
    Code, Content,
    message::{RequestFlags, Tag},
};

use super::{Former, Places, failures::Failure};
use crate::log::{Location, Record, body};

/// What the records of a log say that is still to be known, gathered one after the other.
///
/// Compaction copies the records of a request one by one, so they may come in any order.
#[derive(Debug, Default)]
pub struct Restore {
    /// By count, which is the order in which they were received.
    pub(super) entries: BTreeMap<u64, Entry>,
    pub(super) last_count: u64,
}

/// What is known of one request.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) places: Places,
    pub(super) asked: Option<Asked>,
    /// It is kept for its key only.
    pub(super) claimed: bool,
    pub(super) attempt: u16,
    /// When the last attempt began, in milliseconds since the Unix epoch.
    pub(super) delivered_ms: u64,
    /// Who had the last attempt.
    pub(super) former: Option<Former>,
    /// The last attempt that failed.
    pub(super) failed: u16,
    pub(super) outcome: Option<Outcome>,
    pub(super) failure: Option<Failure>,
}

#[derive(Debug)]
pub(super) struct Asked {
    pub(super) number: u64,
    pub(super) instance: u64,
    pub(super) joins: u64,
    pub(super) received_ms: u64,
    pub(super) expires_ms: u64,
    pub(super) max_attempts: u8,
    pub(super) dialect: u8,
    pub(super) flags: RequestFlags,
    pub(super) session: Bytes,
    pub(super) tag: Tag,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) code: Option<Code>,
    pub(super) attempt: u16,
    pub(super) delivered_after_ms: u32,
    pub(super) handled_after_ms: u32,
    pub(super) content: Content,
}

impl Restore {
    /// Takes in the next record of the log. `died` is told of those that nobody needs any more.
    pub fn take(&mut self, at: Location, record: &Record<'_>, died: &mut dyn FnMut(Location)) {
        match record {
            Record::Request(request) => {
                let entry = self.entry(request.count);
                entry.places.request.replace(at).into_iter().for_each(died);
                entry.asked = Some(Asked::read(request));
            }
            Record::Delivered(delivered) => {
                let entry = self.entry(delivered.count);
                entry.places.delivered.replace(at).into_iter().for_each(died);
                (entry.attempt, entry.delivered_ms) = (delivered.attempt, delivered.wall_ms);
                entry.former = Some(Former {
                    session: Bytes::copy_from_slice(delivered.session),
                    boot: delivered.boot,
                    delivery: delivered.delivery,
                });
            }
            Record::Reply(reply) => {
                let entry = self.entry(reply.count);
                entry.places.reply.replace(at).into_iter().for_each(died);
                entry.outcome = Some(Outcome::read(reply));
            }
            Record::Done(done) => {
                self.last_count = self.last_count.max(done.count);
                let entry = self.entries.remove(&done.count);
                entry.into_iter().flat_map(|entry| entry.places.all()).for_each(died);
            }
            Record::Moved(moved) => match Record::decode(moved.kind, moved.body) {
                Ok(record) => self.take_copy(at, &record, died),
                // Recovery has checked it before.
                Err(_) => died(at),
            },
            Record::Retry(retry) => {
                let entry = self.entry(retry.count);
                entry.places.reply.replace(at).into_iter().for_each(died);
                (entry.attempt, entry.failed) = (retry.attempt, retry.attempt);
                let message = Bytes::copy_from_slice(retry.message);
                entry.failure =
                    Some(Failure { message, at_ms: retry.not_before_ms, attempt: retry.attempt, dead: None });
            }
            Record::Dead(dead) => {
                let entry = self.entry(dead.count);
                entry.places.reply.replace(at).into_iter().for_each(died);
                (entry.attempt, entry.failed) = (dead.attempt, dead.attempt);
                let message = Bytes::copy_from_slice(dead.message);
                let code = Code::from_number(dead.code).unwrap_or(Code::Remote);
                entry.failure =
                    Some(Failure { message, at_ms: dead.wall_ms, attempt: dead.attempt, dead: Some(code) });
            }
            Record::Claimed(claimed) => {
                let entry = self.entry(claimed.count);
                entry.places.claimed.replace(at).into_iter().for_each(died);
                entry.claimed = true;
            }
            Record::Boot(_) | Record::Mark(_) | Record::Lost(_) => {}
        }
    }

    /// A copy may come behind records of what happened since its original was written: what it says of a failed attempt does
    /// not hide that a later one has begun.
    fn take_copy(&mut self, at: Location, record: &Record<'_>, died: &mut dyn FnMut(Location)) {
        let failed = match record {
            Record::Retry(retry) => Some(retry.count),
            Record::Dead(dead) => Some(dead.count),
            _ => None,
        };
        let begun = failed.and_then(|count| self.entries.get(&count)).map_or(0, |entry| entry.attempt);
        self.take(at, record, died);
        if let Some(count) = failed {
            let entry = self.entry(count);
            entry.attempt = entry.attempt.max(begun);
        }
    }

    fn entry(&mut self, count: u64) -> &mut Entry {
        self.last_count = self.last_count.max(count);
        self.entries.entry(count).or_default()
    }
}

impl Asked {
    fn read(request: &body::Request<'_>) -> Self {
        let body::Request { action, tag, options, headers, payload, .. } = *request;
        Self {
            number: request.number,
            instance: request.instance,
            joins: request.joins,
            received_ms: request.received_ms,
            expires_ms: request.expires_ms,
            max_attempts: request.max_attempts,
            dialect: request.dialect,
            flags: RequestFlags(request.flags),
            session: Bytes::copy_from_slice(request.session),
            tag: Tag::from_slice(tag),
            content: Content::with_tag(action, tag, options, headers, payload),
        }
    }
}

impl Outcome {
    fn read(reply: &body::Reply<'_>) -> Self {
        Self {
            // A code of a newer version is an error all the same.
            code: (reply.code != 0).then(|| Code::from_number(reply.code).unwrap_or(Code::Remote)),
            attempt: reply.attempt,
            delivered_after_ms: reply.delivered_after_ms,
            handled_after_ms: reply.handled_after_ms,
            content: Content::with_tag(reply.own_code, b"", reply.options, reply.headers, reply.payload),
        }
    }
}
