//! How a client ends, at once or in good order; how a connection ends, and what comes after it: another try, or the
//! client's end.

use ringpost_protocol::{
    Code,
    message::{ClientMessage, Target},
    time::Time,
};

use super::Client;
use crate::{
    Error,
    link::{Farewell, Liveness, Phase},
    output::{Event, Output},
};

/// What a client that was to [drain](Client::drain) could not finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cut {
    /// Requests that ended with the client, not with their outcome.
    pub requests: usize,
    /// Deliveries whose answer somebody waited for, and nobody will get.
    pub deliveries: usize,
}

impl Client {
    /// Takes nothing new, finishes what is open, then closes; at `until` it closes anyway, and [`Client::cut`] says
    /// what was not finished. Called again, the earlier end counts.
    ///
    /// Handlers are deregistered, and what they hold may be answered. Requests that wait for a connection are still sent,
    /// and a connection that breaks meanwhile is made again for what is open.
    pub fn drain(&mut self, until: Time, now: Time) {
        if self.link.is_closed() {
            return;
        }
        if let Some(earlier) = self.draining {
            self.draining = Some(until.min(earlier));
            return;
        }
        self.draining = Some(until);
        for id in self.registrations.ids() {
            self.deregister(id);
        }
        self.leave_if_done(now);
    }

    /// Ends at once. Requests end with [`Code::Closed`] and are cancelled at the broker, handlers are told to stop.
    pub fn close(&mut self) {
        if self.link.is_closed() {
            return;
        }
        if self.link.phase == Phase::Ready {
            let numbers: Vec<u64> = self.requests.sent_numbers(false).collect();
            for number in numbers {
                self.say(ClientMessage::Cancel(Target::Number(number)));
            }
            // What was not taken stays for the next process of this name, and so does every durable outcome.
            if let Some(sequence) = self.session.last_acknowledgement() {
                self.say(ClientMessage::Acknowledge(Target::Number(sequence)));
            }
            if self.session.claims.is_settled() {
                // The broker need not remember the session: nobody will come back to it.
                self.say(ClientMessage::Goaway);
            }
        }
        self.finish(Error::new(Code::Closed, "the client was closed"));
    }

    /// Until when the client drains, if it does.
    pub fn draining(&self) -> Option<Time> {
        self.draining
    }

    /// What could not be finished of what was open when the client began to drain.
    pub fn cut(&self) -> Cut {
        self.cut
    }

    /// Says goodbye on this connection, because the server did: no more requests, no more deliveries, please.
    pub(super) fn begin_farewell(&mut self, until: Time) {
        match &mut self.link.farewell {
            Some(farewell) => farewell.until = farewell.until.min(until),
            None if self.link.phase == Phase::Ready => {
                let fence = self.link.ping();
                self.link.farewell = Some(Farewell { fence, passed: false, until });
                self.say(ClientMessage::Goaway);
                self.say(ClientMessage::Ping(fence));
            }
            None => {}
        }
    }

    /// Leaves a connection that the server wants ended once everything on it is done, or its time is over; ends a client
    /// that was to drain.
    pub(super) fn leave_if_done(&mut self, now: Time) {
        match self.link.farewell {
            Some(farewell) if self.link.phase == Phase::Ready => {
                let done = farewell.passed && self.requests.sent() == 0 && self.deliveries.is_empty();
                if done || now >= farewell.until {
                    self.outputs.push_back(Output::Disconnect);
                    self.lose(Error::new(Code::Draining, "the connection was ended in good order"), now);
                }
            }
            _ if self.is_drained() => self.close(),
            _ => {}
        }
    }

    /// Whether a client that was to drain has nothing open. Until a registration's end is confirmed, deliveries come. A
    /// server that is about to say welcome is waited for: without a goodbye it would keep the session.
    fn is_drained(&self) -> bool {
        self.draining.is_some()
            && !self.link.is_closed()
            && !matches!(self.link.phase, Phase::Greeting { .. })
            && self.requests.len() == 0
            && self.deliveries.is_empty()
            && self.registrations.is_empty()
    }

    pub(super) fn check_liveness(&mut self, now: Time) {
        match self.link.check(now) {
            Liveness::Fine => {}
            Liveness::Ping => {
                let number = self.link.ping();
                self.say(ClientMessage::Ping(number));
            }
            Liveness::Lost => {
                let message = format!("nothing was heard from the server for {:?}", self.link.patience());
                self.outputs.push_back(Output::Abort);
                self.lose(Error::new(Code::ConnectionLost, message), now);
            }
        }
    }

    /// The connection is gone: ends what was on it, then tries again or gives up.
    pub(super) fn lose(&mut self, reason: Error, now: Time) {
        if self.link.phase == Phase::Ready {
            self.counters.lost_connections += u64::from(reason.kind() != Code::Draining);
            self.end_connection(&reason);
            self.tell(Event::Disconnected(reason.clone()));
        } else if reason.kind() == Code::Recovering {
            self.link.failures = 0;
        } else {
            self.link.failures += 1;
        }
        let reason = match reason.kind() {
            // A server that was never reached cannot be lost.
            Code::ConnectionLost if !self.link.was_ready => {
                Error::new(Code::Connect, reason.message().to_owned())
            }
            _ => reason,
        };
        self.go_on_or_finish(reason, now);
    }

    /// Ends what does not outlive a connection: deliveries, and without a session to come back to, what was sent.
    fn end_connection(&mut self, reason: &Error) {
        if self.draining.is_some() {
            self.cut.deliveries += self.deliveries.wanted();
            self.cut.requests += if self.session.named { 0 } else { self.requests.sent() };
        }
        self.session.lost();
        self.deliveries.lose(self.link.connection, self.session.boot(), &mut self.outputs);
        self.registrations.passed(u64::MAX, &mut self.outputs);
        if !self.session.named {
            self.requests.lose_sent(&may_have_run(reason), &mut self.outputs);
        }
    }

    pub(super) fn go_on_or_finish(&mut self, reason: Error, now: Time) {
        // Not the secure key: it may come to the server later, or was refused by somebody in between.
        let final_reason = matches!(reason.kind(), Code::SessionTaken | Code::Unsupported);
        // A server that is not ready yet is there: it is waited for as one that was.
        let was_there = self.link.was_ready || reason.kind() == Code::Recovering;
        let wanted = if was_there { self.config.reconnect } else { self.config.retry_initial };
        let given_up = self.config.max_reconnects.is_some_and(|max| self.link.failures > max);
        let drained = self.draining.is_some() && self.requests.len() == 0;
        if drained {
            self.link.phase = Phase::Idle;
            self.finish(Error::new(Code::Closed, "the client was closed"));
        } else if final_reason || !wanted || given_up {
            self.link.phase = Phase::Idle;
            self.finish(reason);
        } else {
            self.link.farewell = None;
            let delay = self.link.pause(self.config.reconnect_interval, now);
            self.tell(Event::ReconnectIn { delay, reason });
        }
    }

    /// The end, from whatever phase.
    pub(super) fn finish(&mut self, reason: Error) {
        if self.link.is_connected() || self.link.phase == Phase::Dialing {
            self.outputs.push_back(Output::Disconnect);
        }
        self.end_connection(&reason);
        self.cut.requests += if self.draining.is_some() { self.requests.len() } else { 0 };
        self.deliveries.forget_former(&mut self.outputs);
        self.requests.lose_sent(&may_have_run(&reason), &mut self.outputs);
        self.requests.give_up_waiting(&reason.for_unsent(), &mut self.outputs);
        self.registrations.clear(&mut self.outputs);
        self.link.phase = Phase::Closed(reason.clone());
        self.tell(Event::Closed(reason));
    }
}

/// Why a request that was sent has no outcome.
fn may_have_run(reason: &Error) -> Error {
    match reason.kind() {
        Code::Closed => reason.clone(),
        _ => {
            let message = format!("the connection was lost ({}); the request may have run", reason.message());
            Error::new(Code::ConnectionLost, message)
        }
    }
}
