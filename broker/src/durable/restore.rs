//! The way back: from the records of a log to what was there before the restart.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use ringpost_protocol::{
    Code, Content,
    message::{RequestFlags, Tag},
    time::Now,
};

use super::{Decided, Durable, Places, failures::Failure};
use crate::{
    Broker,
    log::{Location, Record, body},
    slab::Key,
    state::{Kept, Request, RequestState, Session, Timer},
};

/// What the records of a log say that is still to be known, gathered one after the other.
///
/// Compaction copies the records of a request one by one, so they may come in any order.
#[derive(Debug, Default)]
pub struct Restore {
    /// By count, which is the order in which they were received.
    entries: BTreeMap<u64, Entry>,
    last_count: u64,
}

/// What is known of one request.
#[derive(Debug, Default)]
struct Entry {
    places: Places,
    asked: Option<Asked>,
    attempt: u16,
    /// The last attempt that failed.
    failed: u16,
    outcome: Option<Outcome>,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Asked {
    number: u64,
    received_ms: u64,
    expires_ms: u64,
    max_attempts: u8,
    dialect: u8,
    flags: RequestFlags,
    session: Bytes,
    tag: Tag,
    content: Content,
}

#[derive(Debug)]
struct Outcome {
    code: Option<Code>,
    attempt: u16,
    delivered_after_ms: u32,
    handled_after_ms: u32,
    content: Content,
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
                entry.attempt = delivered.attempt;
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
                Ok(record) => self.take(at, &record, died),
                // Recovery has checked it before.
                Err(_) => died(at),
            },
            Record::Retry(retry) => {
                let entry = self.entry(retry.count);
                entry.places.reply.replace(at).into_iter().for_each(died);
                (entry.attempt, entry.failed) = (retry.attempt, retry.attempt);
                let message = Bytes::copy_from_slice(retry.message);
                entry.failure = Some(Failure { message, at_ms: retry.not_before_ms, dead: None });
            }
            Record::Dead(dead) => {
                let entry = self.entry(dead.count);
                entry.places.reply.replace(at).into_iter().for_each(died);
                (entry.attempt, entry.failed) = (dead.attempt, dead.attempt);
                let message = Bytes::copy_from_slice(dead.message);
                let code = Code::from_number(dead.code).unwrap_or(Code::Remote);
                entry.failure = Some(Failure { message, at_ms: dead.wall_ms, dead: Some(code) });
            }
            Record::Boot(_) | Record::Mark(_) | Record::Lost(_) => {}
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

impl Broker {
    /// Puts everything back as the log has it: before anybody connects. `highest_count` is that of all requests that were
    /// ever in the log: no later one has a count that came before.
    pub fn restore(&mut self, restore: Restore, highest_count: u64, now: Now) {
        self.now = now;
        self.request_count = restore.last_count.max(highest_count);
        self.log_boot();
        for (count, entry) in restore.entries {
            let mut entry = entry;
            match entry.asked.take() {
                Some(asked) => self.restore_one(count, asked, entry),
                // What is left of one that is done: its `done` went before what it buries was forgotten.
                None => self.forget_places(entry.places),
            }
        }
    }

    fn restore_one(&mut self, count: u64, asked: Asked, entry: Entry) {
        let Entry { places, attempt, failed, outcome, failure, .. } = entry;
        let Now { mono, wall_ms } = self.now;
        let millis = |from: u64, to: u64| Duration::from_millis(to.saturating_sub(from));
        let dead = failure.as_ref().is_some_and(|failure| failure.dead.is_some());
        let dead_ttl_ms = self.config.dead_ttl.as_millis() as u64;
        let expires_ms = match &failure {
            Some(failure) if dead => failure.at_ms.saturating_add(dead_ttl_ms),
            _ => asked.expires_ms,
        };
        let deadline = mono + millis(wall_ms, expires_ms);
        let rests_ms = failure.as_ref().map_or(0, |failure| failure.at_ms);
        let key = self.requests.next_key();
        let timer = self.timers.insert(deadline, Timer::Request(key));
        let session = if dead { None } else { self.session_of_log(&asked.session) };
        let nowhere = Key::from_raw(u64::MAX);
        let action = if outcome.is_some() || dead { nowhere } else { self.action_for(asked.content.name()) };
        let content_bytes = asked.content.len() as u32;
        let decided = outcome.as_ref().map(|outcome| Decided {
            code: outcome.code,
            handled_after_ms: outcome.handled_after_ms,
            stable: true,
            sequence: None,
        });
        let here = places.all().collect::<Vec<_>>();
        let durable = Durable {
            dialect: asked.dialect,
            expires_ms: asked.expires_ms,
            session: asked.session,
            places,
            failure,
            decided,
            ..Durable::default()
        };
        let delivered_after_ms = outcome.as_ref().map_or(u32::MAX, |outcome| outcome.delivered_after_ms);
        let attempt = match &outcome {
            Some(outcome) => outcome.attempt,
            // What failed has been counted.
            // One that was not over: restarts do not use up attempts.
            None => attempt.saturating_sub(1).max(failed),
        };
        let content = outcome.map_or(asked.content, |outcome| outcome.content);
        self.kept_bytes += content.uncounted_len();
        let kept =
            self.kept.insert(Kept { tag: asked.tag.clone(), durable: Some(Box::new(durable)), content });
        if let Some(journal) = &mut self.journal {
            here.into_iter().for_each(|place| journal.moved_in(place, key));
        }
        self.requests.insert(Request {
            session: session.unwrap_or(Key::from_raw(u64::MAX)),
            number: asked.number,
            action,
            flags: asked.flags,
            max_attempts: u16::from(asked.max_attempts),
            attempt,
            count,
            received: Now { mono: mono - millis(asked.received_ms, wall_ms), wall_ms: asked.received_ms },
            deadline,
            ends_with: Code::Expired,
            timer,
            delivered_after_ms,
            kept: Some(kept),
            content_bytes,
            state: match decided.is_some() {
                true => RequestState::Decided,
                false if dead => RequestState::Dead,
                false => RequestState::Resting,
            },
        });
        if let Some(session) = session.and_then(|session| self.sessions.get_mut(session)) {
            session.open.insert(asked.number, key);
            session.durable += 1;
            session.next_number = session.next_number.max(asked.number.saturating_add(1));
            if !asked.tag.is_empty() {
                session.by_tag.insert(asked.tag, asked.number);
            }
        }
        if dead {
            self.dead.insert(count, key);
        } else if decided.is_some() {
            if session.is_none() {
                self.finish(key);
            }
        } else if rests_ms > wall_ms {
            let rest = self.timers.insert(mono + millis(wall_ms, rests_ms), Timer::Rested(key));
            if let Some(durable) = self.durable_mut(key) {
                durable.rest = Some(rest);
            }
        } else {
            self.enqueue(action, key, false);
        }
        self.forget_action_if_unused(action);
    }

    /// The session that a request in the log belongs to; one without a name cannot be come back to.
    fn session_of_log(&mut self, name: &Bytes) -> Option<Key<Session>> {
        if name.is_empty() {
            return None;
        }
        if let Some(key) = self.session_by_name.get(name) {
            return Some(*key);
        }
        let key = self.new_session(name, true);
        let session = self.sessions.get_mut(key)?;
        // Its client had a connection before this boot, and has to ask what became of what it sent.
        (session.epoch, session.caught_up, session.away) = (1, false, true);
        self.detached += 1;
        Some(key)
    }
}
