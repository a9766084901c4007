//! What requesters are told: each outcome once, with its cause, and in time.

use ringpost_broker::ConnId;
use ringpost_protocol::{Code, message::Reply};

use super::{
    Model, RequestKey, Unsettled,
    requests::{Leg, Outcome, Request, State},
};
use crate::sim::{
    peer::number_in,
    rules::{Verdict, ensure},
};

impl Model {
    pub(super) fn told_legs(&self, conn: ConnId, number: u64, expected: u32) -> Verdict {
        let session = self.session_of(conn).and_then(|key| self.sessions.get(&key));
        let key = session.and_then(|session| session.requests.get(&number));
        let request = key.and_then(|key| self.requests.get(key));
        let right =
            request.is_some_and(|request| request.broadcast && request.legs.len() == expected as usize);
        ensure!(right, Broadcast, "{expected} legs are told of {request:?}");
        Ok(())
    }

    pub(super) fn replied(&mut self, conn: ConnId, reply: &Reply) -> Verdict {
        let session = self.session_of(conn).and_then(|key| self.sessions.get(&key));
        let found = session.and_then(|session| session.requests.get(&reply.number)).copied();
        let found = found.and_then(|key| Some((key, self.requests.get(&key)?)));
        let Some((key, request)) = found else {
            ensure!(false, Truth, "{conn} is answered what it did not ask: {reply:?}");
            return Ok(());
        };
        let serial = self.connections.get(&conn).map(|connection| connection.serial);
        let leg = reply.leg.map_or(0, |leg| leg.index as usize);
        let fits = reply.leg.is_none_or(|leg| {
            request.broadcast && leg.index < leg.expected && leg.expected as usize == request.legs.len()
        });
        ensure!(fits, Broadcast, "{:?} of {request:?}", reply.leg);
        let said = match reply.code {
            None => Outcome::Reply(number_in(reply.content.payload())),
            Some(Code::Remote) => Outcome::Remote(number_in(reply.content.payload())),
            Some(code) => Outcome::Error(code),
        };
        let entry = &request.legs[leg];
        self.is_no_late_reply(request, entry, said)?;
        ensure!(entry.said_on != serial, Once, "{said:?} is the second outcome of {request:?} on {conn}");
        match entry.outcome {
            Some(outcome) => ensure!(outcome == said, Truth, "{said:?} is told of {request:?}"),
            None => self.has_cause(request, entry.state, said)?,
        }
        if let Unsettled::Resume { bytes } = &mut self.unsettled {
            *bytes += reply.content.len();
            let (bytes, most) = (*bytes, self.config.outcome_limit_bytes);
            ensure!(bytes <= most, Bounds, "{bytes} bytes of outcomes were kept; at most {most} may be");
        }
        let Some(request) = self.requests.get_mut(&key) else { return Ok(()) };
        let legs = match reply.leg {
            Some(_) => &mut request.legs[leg..=leg],
            // Refused as a whole.
            None => &mut request.legs[..],
        };
        for entry in legs {
            (entry.state, entry.outcome, entry.said_on) = (State::Ended, Some(said), serial);
            entry.sequence = reply.sequence;
        }
        self.no_longer_waits(key);
        Ok(())
    }

    fn is_no_late_reply(&self, request: &Request, leg: &Leg, said: Outcome) -> Verdict {
        if let Outcome::Reply(number) | Outcome::Remote(number) = said {
            let late = number.is_some_and(|number| self.late.contains(&number));
            ensure!(!late, LateReply, "{said:?} came too late for {request:?} with {leg:?}");
        }
        Ok(())
    }

    /// An outcome that nothing else has decided: the broker's own.
    fn has_cause(&self, request: &Request, state: State, said: Outcome) -> Verdict {
        let Outcome::Error(code) = said else {
            ensure!(false, Truth, "{said:?} is told of {request:?}; no handler has said so");
            return Ok(());
        };
        let fresh = state == State::Fresh;
        if matches!(code, Code::Timeout | Code::Expired) {
            ensure!(self.now >= request.deadline, Timeout, "{code} of {request:?} at {}", self.now);
            return Ok(());
        }
        let cause = match code {
            Code::NoHandler => fresh && self.handlers_for(&request.action).is_empty(),
            Code::Draining => self.draining,
            Code::Overloaded => fresh,
            Code::Forbidden => fresh && request.forbidden,
            _ => false,
        };
        ensure!(cause, Truth, "{code} is told of {request:?}");
        if code == Code::Overloaded && !request.broadcast {
            let (count, bytes) = self.waiting_for(&request.action);
            let full = count >= self.config.queue_limit
                || bytes + request.bytes > self.config.queue_limit_bytes
                || self.memory_is_tight();
            ensure!(full, Bounds, "{request:?} is refused: only {count} wait, of {bytes} bytes");
        }
        Ok(())
    }

    fn memory_is_tight(&self) -> bool {
        self.config.memory_bytes < ringpost_broker::Config::default().memory_bytes
    }

    /// What was decided while its requester listened has been said.
    pub(super) fn must_have_been_said(&self, key: RequestKey, leg: usize) -> Verdict {
        let Some(request) = self.requests.get(&key) else { return Ok(()) };
        let entry = &request.legs[leg];
        let open = entry.state != State::Ended;
        let serial = self
            .sessions
            .get(&request.session)
            .and_then(|session| session.conn)
            .and_then(|conn| self.connections.get(&conn))
            .map(|connection| connection.serial);
        let said = entry.said_on.is_some() && entry.said_on == serial;
        let heard = open || said || !self.listens(request.session) || request.send;
        ensure!(heard, Once, "the outcome of leg {leg} is not told: {request:?}");
        Ok(())
    }
}
