//! The way back, first half: what the records of a log say.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringpost_protocol::{
    Code, Content,
    message::{RequestFlags, Tag},
};

use super::{Former, Payload, Places, failures::Failure};
use crate::log::{Location, Record, body};

/// What the records of a log say that is still to be known, gathered one after the other.
///
/// Compaction copies the records of a request one by one, so they may come in any order.
///
/// Of those that wait it keeps the payloads in memory that came first, up to a bound; the others are read back when their turn
/// is near, like those that came while the server ran.
#[derive(Debug, Default)]
pub struct Restore {
    /// By count, which is the order in which they were received.
    pub(super) entries: BTreeMap<u64, Entry>,
    pub(super) last_count: u64,
    /// Names of actions and sessions: requests share them.
    names: BTreeSet<Bytes>,
    held_bytes: usize,
    most_held_bytes: usize,
}

/// What is known of one request. There may be very many that only wait: what those do not have is in boxes.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) places: Places,
    pub(super) asked: Option<Box<Asked>>,
    /// It is kept for its key only.
    pub(super) claimed: bool,
    pub(super) attempt: u16,
    /// When the last attempt began, in milliseconds since the Unix epoch.
    pub(super) delivered_ms: u64,
    /// Who had the last attempt.
    pub(super) former: Option<Box<Former>>,
    /// The last attempt that failed.
    pub(super) failed: u16,
    pub(super) outcome: Option<Box<Outcome>>,
    pub(super) failure: Option<Box<Failure>>,
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
    /// Whole, if its payload is held.
    pub(super) content: Content,
    pub(super) content_bytes: u32,
    pub(super) payload: Payload,
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
    /// Nothing yet. `queue_memory_bytes` is [`Config::queue_memory_bytes`](crate::Config::queue_memory_bytes).
    pub fn new(queue_memory_bytes: usize) -> Self {
        Self { most_held_bytes: queue_memory_bytes / 4 * 3, ..Self::default() }
    }

    /// The names of all sessions that something is kept for.
    pub(super) fn sessions(&self) -> BTreeSet<Bytes> {
        let asked = self.entries.values().filter_map(|entry| entry.asked.as_ref());
        asked.filter(|asked| !asked.session.is_empty()).map(|asked| asked.session.clone()).collect()
    }

    /// Takes in the next record of the log. `died` is told of those that nobody needs any more.
    pub fn take(&mut self, at: Location, record: &Record<'_>, died: &mut dyn FnMut(Location)) {
        match record {
            Record::Request(request) => {
                let decided = self.entries.get(&request.count).is_some_and(|entry| entry.outcome.is_some());
                let asked = self.asked(request, decided);
                let entry = self.entry(request.count);
                entry.places.request.replace(at).into_iter().for_each(died);
                let before = entry.asked.replace(Box::new(asked));
                self.let_go(before.as_deref());
            }
            Record::Delivered(delivered) => {
                let entry = self.entry(delivered.count);
                entry.places.later_mut().delivered.replace(at).into_iter().for_each(died);
                (entry.attempt, entry.delivered_ms) = (delivered.attempt, delivered.wall_ms);
                entry.former = Some(Box::new(Former {
                    session: Bytes::copy_from_slice(delivered.session),
                    boot: delivered.boot,
                    delivery: delivered.delivery,
                }));
            }
            Record::Reply(reply) => {
                let entry = self.entry(reply.count);
                entry.places.later_mut().reply.replace(at).into_iter().for_each(died);
                entry.outcome = Some(Box::new(Outcome::read(reply)));
                let asked = entry.asked.as_mut().filter(|asked| asked.payload != Payload::None);
                if let Some(asked) = asked {
                    let content = &asked.content;
                    let rest = Content::from_parts(content.name(), b"", content.headers(), b"");
                    let held = std::mem::replace(&mut asked.payload, Payload::None) == Payload::Held;
                    asked.content = rest;
                    self.held_bytes -= if held { asked.content_bytes as usize } else { 0 };
                }
            }
            Record::Done(done) => {
                self.last_count = self.last_count.max(done.count);
                let entry = self.entries.remove(&done.count);
                self.let_go(entry.as_ref().and_then(|entry| entry.asked.as_deref()));
                entry.into_iter().flat_map(|entry| entry.places.all()).for_each(died);
            }
            Record::Moved(moved) => match Record::decode(moved.kind, moved.body) {
                Ok(record) => self.take_copy(at, &record, died),
                // Recovery has checked it before.
                Err(_) => died(at),
            },
            Record::Retry(retry) => {
                let entry = self.entry(retry.count);
                entry.places.later_mut().reply.replace(at).into_iter().for_each(died);
                (entry.attempt, entry.failed) = (retry.attempt, retry.attempt);
                let message = Bytes::copy_from_slice(retry.message);
                let (at_ms, attempt) = (retry.not_before_ms, retry.attempt);
                entry.failure = Some(Box::new(Failure { message, at_ms, attempt, dead: None }));
            }
            Record::Dead(dead) => {
                let entry = self.entry(dead.count);
                entry.places.later_mut().reply.replace(at).into_iter().for_each(died);
                (entry.attempt, entry.failed) = (dead.attempt, dead.attempt);
                let message = Bytes::copy_from_slice(dead.message);
                let code = Code::from_number(dead.code).unwrap_or(Code::Remote);
                let (at_ms, attempt) = (dead.wall_ms, dead.attempt);
                entry.failure = Some(Box::new(Failure { message, at_ms, attempt, dead: Some(code) }));
            }
            Record::Claimed(claimed) => {
                let entry = self.entry(claimed.count);
                entry.places.later_mut().claimed.replace(at).into_iter().for_each(died);
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

impl Restore {
    /// What is not held any more makes room for others.
    fn let_go(&mut self, asked: Option<&Asked>) {
        let held = asked.filter(|asked| asked.payload == Payload::Held);
        self.held_bytes -= held.map_or(0, |asked| asked.content_bytes as usize);
    }

    fn asked(&mut self, request: &body::Request<'_>, decided: bool) -> Asked {
        let body::Request { action, tag, options, headers, payload, .. } = *request;
        let bytes = action.len() + tag.len() + options.len() + headers.len() + payload.len();
        let state = match decided || request.joins != 0 {
            true => Payload::None,
            false if self.held_bytes + bytes > self.most_held_bytes => Payload::Stored,
            false => Payload::Held,
        };
        let content = match state {
            Payload::Held => {
                self.held_bytes += bytes;
                Content::with_tag(action, tag, options, headers, payload)
            }
            _ if headers.is_empty() => Content::from_name(self.name(action)),
            _ => Content::from_parts(action, b"", headers, b""),
        };
        Asked {
            number: request.number,
            instance: request.instance,
            joins: request.joins,
            received_ms: request.received_ms,
            expires_ms: request.expires_ms,
            max_attempts: request.max_attempts,
            dialect: request.dialect,
            flags: RequestFlags(request.flags),
            session: self.name(request.session),
            tag: Tag::from_slice(tag),
            content,
            content_bytes: bytes as u32,
            payload: state,
        }
    }

    fn name(&mut self, name: &[u8]) -> Bytes {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        let name = Bytes::copy_from_slice(name);
        self.names.insert(name.clone());
        name
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
