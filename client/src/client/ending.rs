//! How a connection ends, and what comes after it: another try, or the client's end.

use ringpost_protocol::{Code, message::ClientMessage, time::Time};

use super::Client;
use crate::{
    Error,
    link::{Farewell, Liveness, Phase},
    output::{Event, Output},
};

impl Client {
    /// Says goodbye on this connection: no more requests, no more deliveries, please.
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

    /// Leaves the connection once everything on it is done, or its time is over; ends a client that was to drain.
    pub(super) fn leave_if_done(&mut self, now: Time) {
        match self.link.farewell {
            Some(farewell) if self.link.phase == Phase::Ready => {
                let done = farewell.passed && self.requests.sent() == 0 && self.deliveries.is_empty();
                if done || now >= farewell.until {
                    self.outputs.push_back(Output::Disconnect);
                    self.lose(Error::new(Code::Draining, "the connection was ended in good order"), now);
                }
            }
            _ if self.draining
                && !self.link.is_closed()
                && !self.link.is_connected()
                && self.requests.waiting() == 0 =>
            {
                self.finish(Error::new(Code::Closed, "the client was closed"));
            }
            _ => {}
        }
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
                self.outputs.push_back(Output::Disconnect);
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
        self.session.lost();
        self.deliveries.lose(self.link.connection, &mut self.outputs);
        self.registrations.passed(u64::MAX, &mut self.outputs);
        if !self.session.named {
            self.requests.lose_sent(&may_have_run(reason), &mut self.outputs);
        }
    }

    pub(super) fn go_on_or_finish(&mut self, reason: Error, now: Time) {
        let final_reason = matches!(
            reason.kind(),
            Code::SessionTaken | Code::Unsupported | Code::Unauthorized | Code::Forbidden
        );
        let wanted = if self.link.was_ready { self.config.reconnect } else { self.config.retry_initial };
        let given_up = self.config.max_reconnects.is_some_and(|max| self.link.failures > max);
        let drained = self.draining && self.requests.waiting() == 0;
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
