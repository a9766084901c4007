//! What is written to the log, and what waits until it is stable.
//!
//! Only what something waits for hurries the log's writer: a request's record, since it is accepted behind that; an outcome's,
//! since it goes out behind that; what ends a send, or fails it, since its handler is told behind that; and what an operator did,
//! or would look for (dead letters). That an attempt began, that a request is done, and copies of a compaction go with those.

use std::collections::VecDeque;

use ringpost_protocol::{Code, Content};

use super::{Answered, Durable, Places, compact::Tenants, keys::idempotency_key, readback::Reads};
use crate::{
    Broker, ConnId,
    log::{Location, Record, Sequence, Writer, body},
    peers::abroad::session_of_peer,
    slab::Key,
    state::{Delivery, Request, Session},
};

/// No record has it: what waits for it waits until the server ends.
const NEVER: Sequence = Sequence(u64::MAX);

/// What waits for the log.
#[derive(Debug)]
pub(crate) enum Gate {
    /// A request may be accepted, and wait for a handler.
    Accept { request: Key<Request>, session: Key<Session>, number: u64 },
    /// An outcome may go out.
    Outcome { request: Key<Request>, answered: Option<Answered> },
    /// A handler may be told that its answer has had its effect.
    Settled(Answered),
}

/// The log as the core sees it: records go in, and gates open as they become stable.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) writer: Writer,
    /// In the order of their sequences.
    gates: VecDeque<(Sequence, Gate)>,
    last: Sequence,
    pub(super) tenants: Tenants,
    pub(crate) reads: Reads,
}

impl Journal {
    pub(crate) fn new(writer: Writer) -> Self {
        Self {
            writer,
            gates: VecDeque::new(),
            last: Sequence::default(),
            tenants: Tenants::default(),
            reads: Reads::default(),
        }
    }

    /// Whether a durable request with so many bytes of content can be taken now, and else why not.
    pub(super) fn may_take(&self, bytes: usize) -> Result<(), (Code, String)> {
        if let Some(fault) = self.writer.failed() {
            let message = format!("the log failed ({fault}): nothing durable is taken any more");
            return Err((Code::DurableUnavailable, message));
        }
        if !self.writer.has_room(bytes as u64) {
            let message =
                "there is no room for it on the disk (the server's --max-disk, or the disk is full)";
            return Err((Code::StorageFull, message.to_owned()));
        }
        Ok(())
    }

    fn append(&mut self, record: &Record<'_>) -> Option<Location> {
        if self.last == NEVER {
            return None;
        }
        // A log that failed or was stopped takes nothing. What would rely on this record, and on all that come later, must
        // then wait for ever: a gate at the record before it could be open already.
        let location = self.writer.append(record).ok();
        self.last = location.map_or(NEVER, |location| location.sequence);
        location
    }

    pub(crate) fn has_gates(&self) -> bool {
        !self.gates.is_empty()
    }

    /// A record that is about a request and lives with it.
    pub(super) fn append_for(&mut self, key: Key<Request>, record: &Record<'_>) -> Option<Location> {
        let location = self.append(record)?;
        self.moved_in(location, key);
        Some(location)
    }

    /// Notes what lives where.
    pub(super) fn moved_in(&mut self, place: Location, key: Key<Request>) {
        self.tenants.moved_in(place.segment, key);
    }

    /// What may go on now.
    fn next_open(&mut self) -> Option<Gate> {
        let reliable = self.writer.gate();
        self.gates.front().filter(|(sequence, _)| *sequence <= reliable)?;
        self.gates.pop_front().map(|(_, gate)| gate)
    }
}

impl Broker {
    /// Lets something wait until all that was appended so far is stable.
    pub(crate) fn wait_behind(&mut self, gate: Gate) {
        if let Some(journal) = &mut self.journal {
            journal.gates.push_back((journal.last, gate));
            journal.writer.hurry();
        }
    }

    /// What was logged so far is not to be forgotten: somebody relies on it, or looks for it, who is not told when it is stable.
    pub(crate) fn hurry_log(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.writer.hurry();
        }
    }

    /// The log has got further: what waited for it goes on.
    pub(crate) fn logged(&mut self) {
        while let Some(gate) = self.journal.as_mut().and_then(Journal::next_open) {
            match gate {
                Gate::Accept { request, session, number } => self.accepted_at_last(request, session, number),
                Gate::Outcome { request, answered } => self.outcome_is_stable(request, answered),
                Gate::Settled(answered) => self.settled(answered),
            }
        }
        self.read_what_is_written();
        self.compact();
        if !self.inquiries.is_empty() {
            self.go_on_with_inquiries();
        }
    }

    pub(super) fn log_boot(&mut self) {
        let (boot, wall_ms) = (self.config.boot, self.now.wall_ms);
        if let Some(journal) = &mut self.journal {
            journal.append(&Record::Boot(body::Boot { boot, wall_ms }));
        }
    }

    /// Logs a request, in place of what the log had of it before.
    pub(super) fn log_request(&mut self, key: Key<Request>) {
        let (Some(journal), Some(request)) = (&mut self.journal, self.requests.get(key)) else { return };
        let Some(kept) = request.kept.and_then(|kept| self.kept.get_mut(kept)) else { return };
        let Some(durable) = kept.durable.as_deref_mut() else { return };
        let record = request_record(request, durable, &kept.tag, &kept.content);
        let Some(place) = journal.append_for(key, &record) else { return };
        let before = durable.places.request.replace(place);
        before.into_iter().for_each(|before| journal.writer.died(before));
    }

    pub(crate) fn log_delivered(&mut self, key: Key<Request>, delivery: Key<Delivery>, conn: ConnId) {
        let session = self.connection(conn).and_then(|connection| connection.session);
        // Only who can come back is waited for after a restart.
        let session = session
            .and_then(|session| self.sessions.get(session))
            .filter(|session| session.outlives)
            .map(|session| session.name.clone());
        let peer = self.connection(conn).and_then(|connection| connection.peer.as_deref());
        let session = peer.map(|peer| session_of_peer(&peer.server_id)).or(session).unwrap_or_default();
        let (Some(journal), Some(request)) = (&mut self.journal, self.requests.get(key)) else { return };
        let location = journal.append_for(
            key,
            &Record::Delivered(body::Delivered {
                count: request.count,
                boot: self.config.boot,
                delivery: delivery.raw(),
                wall_ms: delivered_ms(request, self.now.wall_ms),
                attempt: request.attempt,
                session: &session,
            }),
        );
        // What could not be logged any more takes the place of nothing.
        let Some(location) = location else { return };
        let kept = request.kept.and_then(|kept| self.kept.get_mut(kept));
        let before = kept
            .and_then(|kept| kept.durable.as_deref_mut())
            .and_then(|durable| durable.places.later_mut().delivered.replace(location));
        before.into_iter().for_each(|before| journal.writer.died(before));
    }

    pub(super) fn log_outcome(&mut self, key: Key<Request>) {
        let (Some(journal), Some(request)) = (&mut self.journal, self.requests.get(key)) else { return };
        let Some(kept) = request.kept.and_then(|kept| self.kept.get_mut(kept)) else { return };
        let Some(durable) = kept.durable.as_deref_mut() else { return };
        let Some(record) = reply_record(request, durable, &kept.content, self.now.wall_ms) else { return };
        let place = journal.append_for(key, &record);
        durable.places.later_mut().reply = place;
    }

    /// Logs what went wrong last with a send, in place of what went wrong before.
    pub(super) fn log_failure(&mut self, key: Key<Request>) {
        let (Some(journal), Some(request)) = (&mut self.journal, self.requests.get(key)) else { return };
        let Some(kept) = request.kept.and_then(|kept| self.kept.get_mut(kept)) else { return };
        let Some(durable) = kept.durable.as_deref_mut() else { return };
        let Some(record) = failure_record(request, durable) else { return };
        let Some(place) = journal.append_for(key, &record) else { return };
        let before = durable.places.later_mut().reply.replace(place);
        before.into_iter().for_each(|before| journal.writer.died(before));
    }

    /// Logs that what became of a request is kept for its key only.
    pub(super) fn log_claimed(&mut self, key: Key<Request>) {
        let (Some(journal), Some(request)) = (&mut self.journal, self.requests.get(key)) else { return };
        let Some(kept) = request.kept.and_then(|kept| self.kept.get_mut(kept)) else { return };
        let Some(durable) = kept.durable.as_deref_mut() else { return };
        let record = Record::Claimed(body::Claimed { count: request.count });
        // A log that takes nothing more keeps all of it.
        let Some(place) = journal.append_for(key, &record) else { return };
        let places = durable.places.later_mut();
        places.claimed = Some(place);
        if durable.decided.is_none() {
            // What its attempts came to is of no use any more.
            let before = [places.delivered.take(), places.reply.take()];
            before.into_iter().flatten().for_each(|before| journal.writer.died(before));
        }
    }

    pub(super) fn log_done(&mut self, key: Key<Request>) {
        let places = self.durable_mut(key).map(|durable| std::mem::take(&mut durable.places));
        #[cfg(feature = "planted-bugs")]
        if self.config.is_planted(crate::PlantedBug::DoneNotLogged)
            && self.requests.get(key).is_some_and(Request::wants_reply)
        {
            return;
        }
        let (Some(journal), Some(request)) = (&mut self.journal, self.requests.get(key)) else { return };
        // A log that takes nothing more keeps all of it: the request comes back with its outcome, or not at all.
        if journal.append(&Record::Done(body::Done { count: request.count })).is_some() {
            self.forget_places(places.unwrap_or_default());
        }
    }

    pub(super) fn forget_places(&mut self, places: Places) {
        if let Some(journal) = &mut self.journal {
            places.all().for_each(|place| journal.writer.died(place));
        }
    }
}

/// When a request's attempt began, in milliseconds since the Unix epoch: for one that is taken up again after a restart, before
/// that.
pub(super) fn delivered_ms(request: &Request, now_ms: u64) -> u64 {
    match request.delivered_after_ms {
        u32::MAX => now_ms,
        after => request.received.wall_ms.saturating_add(u64::from(after)),
    }
}

pub(super) fn request_record<'a>(
    request: &Request,
    durable: &'a Durable,
    tag: &'a [u8],
    content: &'a Content,
) -> Record<'a> {
    Record::Request(body::Request {
        count: request.count,
        number: request.number,
        instance: durable.instance,
        joins: durable.keyed.as_ref().map_or(0, |keyed| keyed.joins),
        received_ms: request.received.wall_ms,
        expires_ms: durable.expires_ms,
        max_attempts: request.max_attempts.min(255) as u8,
        flags: request.flags.0,
        dialect: durable.dialect,
        session: &durable.session,
        action: content.name(),
        tag,
        idempotency_key: idempotency_key(content.headers()).unwrap_or_default().as_bytes(),
        options: content.options(),
        headers: content.headers(),
        payload: content.payload(),
    })
}

pub(super) fn reply_record<'a>(
    request: &Request,
    durable: &Durable,
    content: &'a Content,
    wall_ms: u64,
) -> Option<Record<'a>> {
    let decided = durable.decided?;
    Some(Record::Reply(body::Reply {
        count: request.count,
        wall_ms,
        code: decided.code.map_or(0, Code::number),
        attempt: request.attempt,
        delivered_after_ms: request.delivered_after_ms,
        handled_after_ms: decided.handled_after_ms,
        own_code: content.name(),
        options: content.options(),
        headers: content.headers(),
        payload: content.payload(),
    }))
}

pub(super) fn failure_record<'a>(request: &Request, durable: &'a Durable) -> Option<Record<'a>> {
    let failure = durable.failure.as_deref()?;
    let (count, attempt, message) = (request.count, failure.attempt, &failure.message[..]);
    Some(match failure.dead {
        Some(code) => {
            Record::Dead(body::Dead { count, wall_ms: failure.at_ms, code: code.number(), attempt, message })
        }
        None => Record::Retry(body::Retry { count, not_before_ms: failure.at_ms, attempt, message }),
    })
}
