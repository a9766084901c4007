//! The way back, second half: from what a log says to what was there before the restart.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use ringpost_protocol::{Code, Content, message::Speaker, time::Now};

use super::{
    Decided, Durable, Former, Payload, Restore,
    keys::{Keyed, table_name},
    restore::{Asked, Entry},
};
use crate::{
    Broker,
    peers::SESSION_OF_PEER,
    slab::Key,
    state::{Kept, Request, RequestState, Session, Timer},
};

/// Where a request goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is over, and kept for its key.
    Claimed,
    Dead,
    Decided,
    /// It waits for the outcome of the request with this count.
    Joined(u64),
    /// A handler had it when the broker died, and may come back.
    Held,
    /// Its next attempt may begin then, in milliseconds since the Unix epoch.
    Resting(u64),
    Waiting,
}

impl Stage {
    fn of(asked: &Asked, entry: &Entry, wall_ms: u64) -> Self {
        match (&entry.outcome, &entry.failure) {
            _ if entry.claimed => Self::Claimed,
            (Some(_), _) => Self::Decided,
            (None, Some(failure)) if failure.dead.is_some() => Self::Dead,
            (None, _) if asked.joins != 0 => Self::Joined(asked.joins),
            _ if entry.attempt > entry.failed && entry.former.as_deref().is_some_and(may_come_back) => {
                Self::Held
            }
            (None, Some(failure)) if failure.at_ms > wall_ms => Self::Resting(failure.at_ms),
            (None, _) => Self::Waiting,
        }
    }

    /// Whether a handler is still to get it.
    fn needs_handler(self) -> bool {
        matches!(self, Self::Held | Self::Resting(_) | Self::Waiting)
    }

    /// Whether its own payload is of no use any more.
    fn is_decided(self) -> bool {
        matches!(self, Self::Claimed | Self::Decided)
    }

    fn state(self) -> RequestState {
        match self {
            Self::Claimed | Self::Decided => RequestState::Decided,
            Self::Dead => RequestState::Dead,
            Self::Joined(_) => RequestState::Joined,
            Self::Held | Self::Resting(_) | Self::Waiting => RequestState::Resting,
        }
    }
}

/// Only who has a session's name can say that it is back.
fn may_come_back(former: &Former) -> bool {
    !former.session.is_empty()
}

impl Broker {
    /// Puts everything back as the log has it: before anybody connects, or by [`Broker::recovered`]. `highest_count` is that of
    /// all requests that were ever in the log: no later one has a count that came before.
    pub fn restore(&mut self, restore: Restore, highest_count: u64, now: Now) {
        self.now = now;
        self.durable_count = self.durable_count.max(restore.last_count).max(highest_count);
        self.log_boot();
        let mut firsts = BTreeMap::new();
        for (count, mut entry) in restore.entries {
            #[cfg(feature = "planted-bugs")]
            if self.config.is_planted(crate::PlantedBug::AcceptanceLost) && count % 3 == 0 {
                continue;
            }
            match entry.asked.take() {
                Some(asked) => self.restore_one(count, *asked, entry, &mut firsts),
                // What is left of one that is done: its `done` went before what it buries was forgotten.
                None => self.forget_places(entry.places),
            }
        }
    }

    /// `firsts`: those with an idempotency key that others may have joined, by their counts.
    fn restore_one(
        &mut self,
        count: u64,
        asked: Asked,
        entry: Entry,
        firsts: &mut BTreeMap<u64, Key<Request>>,
    ) {
        let Now { mono, wall_ms } = self.now;
        let millis = |from: u64, to: u64| Duration::from_millis(to.saturating_sub(from));
        let stage = Stage::of(&asked, &entry, wall_ms);
        let name = table_name(&asked.content);
        let deadline = mono + millis(wall_ms, asked.expires_ms);
        let key = self.requests.next_key();
        let ends = match &entry.failure {
            // Counted from its death, however often the broker was started since.
            Some(failure) if stage == Stage::Dead => {
                mono + millis(wall_ms, failure.at_ms.saturating_add(self.config.dead_ttl.as_millis() as u64))
            }
            // Its client has to come back first, as to any outcome.
            _ if stage == Stage::Decided => deadline.max(mono + self.config.session_linger),
            _ => deadline,
        };
        let timer = self.timers.insert(ends, Timer::Request(key));
        let homeless = matches!(stage, Stage::Claimed | Stage::Dead);
        let session = if homeless { None } else { self.session_of_log(&asked.session, asked.instance) };
        let sent_before = session.and_then(|session| self.sessions.get(session));
        let number = match sent_before {
            // Each JSON connection counts anew, and goes on with what earlier ones left: they have no numbers of their own.
            Some(session) if session.open.contains_key(&asked.number) => session.next_number,
            _ => asked.number,
        };
        let action = match stage.needs_handler() {
            true => self.action_for(asked.content.name()),
            false => Key::from_raw(u64::MAX),
        };
        let delivered_after_ms = match &entry.outcome {
            Some(outcome) => outcome.delivered_after_ms,
            None if stage == Stage::Held => {
                u32::try_from(entry.delivered_ms.saturating_sub(asked.received_ms)).unwrap_or(u32::MAX)
            }
            None => u32::MAX,
        };
        let attempt = match &entry.outcome {
            Some(outcome) => outcome.attempt,
            // What failed has been counted. One that was not over: restarts do not use up attempts.
            None => entry.attempt.saturating_sub(1).max(entry.failed),
        };
        let content_bytes = asked.content_bytes;
        let request = Request {
            session: session.unwrap_or(Key::from_raw(u64::MAX)),
            number,
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
            kept: None,
            content_bytes,
            state: stage.state(),
        };
        self.requests.insert(request);
        if let Some(session) = session.and_then(|session| self.sessions.get_mut(session)) {
            session.open.insert(number, key);
            session.durable += 1;
            session.next_number = session.next_number.max(number.saturating_add(1));
            if !asked.tag.is_empty() {
                session.by_tag.insert(asked.tag.clone(), number);
            }
        }
        let joins = asked.joins;
        let former = entry.former.clone().filter(|_| stage == Stage::Held);
        let last_attempt = entry.attempt;
        self.restore_content(key, asked, entry, stage);
        if let Some(name) = name {
            if joins == 0 {
                firsts.insert(count, key);
                self.first_under(name, key);
            } else {
                self.set_keyed(key, Keyed { name, joins, ..Keyed::default() });
            }
        }
        match former {
            Some(former) if former.session.starts_with(SESSION_OF_PEER) => {
                self.stranded_before(key, last_attempt, &former.session);
                return self.forget_action_if_unused(action);
            }
            Some(former) => self.wait_for_handler(key, *former),
            None => {}
        }
        self.go_on(key, stage, action, firsts);
    }

    /// What a request carries: as long as it waits, what was asked, and then the outcome.
    fn restore_content(&mut self, key: Key<Request>, asked: Asked, entry: Entry, stage: Stage) {
        let decided = entry.outcome.as_ref().map(|outcome| Decided {
            code: outcome.code,
            handled_after_ms: outcome.handled_after_ms,
            stable: true,
            sequence: None,
        });
        if let Some(journal) = &mut self.journal {
            entry.places.all().for_each(|place| journal.moved_in(place, key));
        }
        let durable = Durable {
            dialect: asked.dialect,
            expires_ms: asked.expires_ms,
            session: asked.session,
            instance: asked.instance,
            places: entry.places,
            failure: entry.failure.filter(|_| stage != Stage::Claimed),
            decided,
            payload: if stage.is_decided() { Payload::None } else { asked.payload },
            ..Durable::default()
        };
        self.payload_bytes.add(durable.payload, asked.content_bytes as usize);
        self.kept_bytes += asked.content.uncounted_len();
        let kept = Kept {
            tag: asked.tag,
            durable: Some(Box::new(durable)),
            content: asked.content,
            ..Kept::default()
        };
        let kept = self.kept.insert(kept);
        if let Some(request) = self.requests.get_mut(key) {
            request.kept = Some(kept);
        }
        if matches!(stage, Stage::Claimed | Stage::Decided) {
            self.keep_what_was_asked(key);
            self.keep(key, entry.outcome.map_or_else(Content::default, |outcome| outcome.content));
        }
    }

    fn go_on(
        &mut self,
        key: Key<Request>,
        stage: Stage,
        action: Key<crate::state::Action>,
        firsts: &BTreeMap<u64, Key<Request>>,
    ) {
        match stage {
            Stage::Claimed => self.claimed_before(key),
            Stage::Dead => {
                if let Some(request) = self.requests.get(key) {
                    self.dead.insert(request.count, key);
                }
            }
            Stage::Decided => {
                if self.requests.get(key).is_some_and(|request| !self.sessions.contains(request.session)) {
                    self.finish(key);
                }
            }
            Stage::Joined(first) => match firsts.get(&first).copied() {
                Some(first) => self.wait_for(key, first),
                None => {
                    let message =
                        "the log has lost the request that had this idempotency key first; it may have run";
                    self.decide(key, Some(Code::ConnectionLost), Content::from_payload(message), None);
                }
            },
            Stage::Held => self.rest(key, self.config.reattach),
            Stage::Resting(until_ms) => {
                self.rest(key, Duration::from_millis(until_ms.saturating_sub(self.now.wall_ms)));
            }
            Stage::Waiting => self.enqueue(action, key, false),
        }
        self.forget_action_if_unused(action);
    }

    /// The session that a request in the log belongs to; one without a name cannot be come back to.
    fn session_of_log(&mut self, name: &Bytes, instance: u64) -> Option<Key<Session>> {
        if name.is_empty() {
            return None;
        }
        let known = self.session_by_name.get(name).copied();
        let key = known.unwrap_or_else(|| self.new_session(name, true));
        let session = self.sessions.get_mut(key)?;
        // Which of its connections is not in the log: any is a later one.
        let speaker = Speaker { instance, connection: 0 };
        if known.is_none() || session.speaker.instance != instance {
            self.tenure_count += 1;
            session.hand_over(speaker, self.tenure_count);
            session.speaker = speaker;
        }
        if known.is_none() {
            // Its client had a connection before this boot, and has to ask what became of what it sent.
            (session.epoch, session.caught_up, session.away) = (1, false, true);
            self.detached += 1;
        }
        Some(key)
    }
}
