//! What the server's messages lead to, but for those of the steady path.

use std::time::Duration;

use ringpost_protocol::{
    Code, Content,
    message::{
        ClientMessage, Deliver, ErrorReport, OpenState, Reply, Resume, Scope, ServerMessage, Target, Verdict,
        Welcome,
    },
    time::Time,
};

use super::Client;
use crate::{
    Error,
    link::Phase,
    output::{Delivery, Event, Output, RegistrationId, Unclaimed},
    requests::{info_of, result_of},
    session::Return,
};

/// Numbers that a server may claim to be used up. A session cannot count so far; half of all numbers are left to it.
const MAX_NEXT_NUMBER: u64 = u64::MAX / 2;

impl Client {
    pub(super) fn received_in_greeting(&mut self, message: ServerMessage, now: Time) {
        let error = match message {
            ServerMessage::Welcome(welcome) if welcome.next_number > MAX_NEXT_NUMBER => {
                let number = welcome.next_number;
                Error::new(Code::Malformed, format!("the server's welcome begins at request {number}"))
            }
            ServerMessage::Welcome(welcome) => return self.welcome(welcome, now),
            ServerMessage::Ping(number) => return self.say(ClientMessage::Pong(number)),
            ServerMessage::Pong(_) => return,
            ServerMessage::Error(report) => report.into(),
            ServerMessage::Goaway { reason, .. } => Error::new(Code::Draining, reason),
            _ => Error::new(Code::Malformed, "the server spoke before its welcome"),
        };
        self.outputs.push_back(Output::Disconnect);
        self.lose(error, now);
    }

    pub(super) fn welcome(&mut self, welcome: Welcome, now: Time) {
        let returns = self.session.welcomed(&welcome, self.requests.has_durable());
        self.link.ready(welcome.ping_interval_ms, welcome.max_payload, now);
        self.requests.number_from(welcome.next_number);
        self.requests.durable_all = welcome.durable_all;
        self.tell(Event::Connected {
            server_id: welcome.server_id,
            boot: welcome.boot,
            epoch: welcome.epoch,
            tenure: welcome.tenure,
        });
        self.requests.expire(now, &mut self.outputs);
        self.outputs.extend(self.registrations.messages().map(Output::Send));
        if returns != Return::Known {
            let reason = "the connection was lost, and the server does not know what became of the request; it may have run";
            let asks = returns == Return::Restarted;
            self.requests.send_again(asks, &Error::new(Code::ConnectionLost, reason), &mut self.outputs);
        }
        let (held_boot, held) = self.deliveries.welcomed(welcome.boot, &mut self.outputs);
        match returns {
            Return::Unknown if held.is_empty() => self.flow(now),
            Return::Unknown | Return::Known | Return::Heir | Return::Restarted => {
                self.session.resuming = true;
                self.session.restarted = returns == Return::Restarted;
                self.session.next_number = welcome.next_number;
                self.say(ClientMessage::Resume(Resume {
                    boot: self.session.last_boot(),
                    sequence: self.session.horizon(),
                    open: self.requests.sent_numbers(true).collect(),
                    held_boot,
                    held,
                    unclaimed: self.session.claims.wanted(),
                }));
            }
        }
    }

    /// What was held back until the server was ready for it goes out.
    fn flow(&mut self, now: Time) {
        self.requests.send_waiting(self.link.max_payload, now, &mut self.outputs);
        self.leave_if_done(now);
    }

    /// What the broker knows of the requests that were open when the last connection broke.
    fn resumed(&mut self, open: &[(u64, OpenState)], now: Time) {
        if !std::mem::take(&mut self.session.resuming) {
            return;
        }
        for (number, state) in open {
            match state {
                // Its outcome follows, or comes when it is there.
                OpenState::Running | OpenState::Outcome => {}
                OpenState::NeverSeen => self.requests.repeat(*number, now, &mut self.outputs),
                // It is not in the log, nor is anything behind it: it was never accepted.
                OpenState::Lost
                    if self.session.never_accepted(*number) && self.requests.is_durable(*number) =>
                {
                    self.requests.repeat(*number, now, &mut self.outputs);
                }
                OpenState::Lost => {
                    let reason = "the connection was lost, and the server has not kept what became of the request; it may have run";
                    self.requests.lose(*number, &Error::new(Code::ConnectionLost, reason), &mut self.outputs);
                }
            }
        }
        self.flow(now);
    }

    /// An outcome from the broker; those that are sent again after a reconnect count once.
    pub(super) fn replied(&mut self, reply: Reply, now: Time) -> Result<(), Error> {
        // After a restart of the server a number of its own may lie below those that it begins with.
        if self.session.claims.concern(reply.number) && self.requests.token(reply.number).is_none() {
            self.unclaimed(reply, now);
        } else {
            let expected = self.session.take(&reply, now)
                && (self.hold_back(&reply) || self.requests.reply(reply, &mut self.outputs)?);
            self.counters.late_replies += u64::from(!expected);
        }
        self.acknowledge(now);
        Ok(())
    }

    /// An outcome that an earlier process waited for.
    fn unclaimed(&mut self, reply: Reply, now: Time) {
        let asked = self.session.asked.take().filter(|(number, _)| *number == reply.number);
        self.session.take(&reply, now);
        if let Some(key) = self.session.claims.offer(reply.sequence) {
            let (number, info, leg) = (reply.number, info_of(&reply), reply.leg);
            self.outputs.push_back(Output::Unclaimed(Unclaimed {
                key,
                number,
                info,
                leg,
                result: result_of(reply),
                asked: asked.map(|(_, content)| content),
            }));
        }
    }

    /// What a leaving server did not take crossed its goodbye: the next server gets it.
    fn hold_back(&mut self, reply: &Reply) -> bool {
        self.config.hold_back
            && reply.code == Some(Code::Draining)
            && self.link.farewell.is_some()
            && self.requests.hold_back(reply)
    }

    /// Tells the broker how far the outcomes are here, now and then.
    pub(super) fn acknowledge(&mut self, now: Time) {
        if self.link.phase == Phase::Ready
            && let Some(sequence) = self.session.acknowledgement(now)
        {
            self.say(ClientMessage::Acknowledge(Target::Number(sequence)));
        }
    }

    /// The kinds that are not on the steady path.
    pub(super) fn received_seldom(&mut self, message: ServerMessage, now: Time) -> Result<(), Error> {
        match message {
            ServerMessage::Ping(number) => self.say(ClientMessage::Pong(number)),
            ServerMessage::Pong(number) => self.ponged(number),
            ServerMessage::Registered { registration } => {
                let id = RegistrationId(registration);
                if self.registrations.holds(id) {
                    self.outputs.push_back(Output::Registered(id));
                }
            }
            ServerMessage::Progress(progress) => {
                if let Some(token) = self.requests.token(progress.number) {
                    self.outputs.push_back(Output::Progress { token, content: progress.content });
                }
            }
            ServerMessage::Asked { number, content, .. } => self.session.asked = Some((number, content)),
            ServerMessage::Receivers(list) => self.outputs.push_back(Output::Receivers(list)),
            ServerMessage::Error(report) => return self.reported(report),
            ServerMessage::Goaway { grace_ms, reason } => {
                let grace = Duration::from_millis(u64::from(grace_ms));
                self.tell(Event::Goaway { grace, reason });
                self.begin_farewell(now + grace);
            }
            ServerMessage::Welcome(_) => {
                return Err(Error::new(Code::Malformed, "the server said welcome twice"));
            }
            ServerMessage::Resumed { open, attached, .. } => {
                self.deliveries.resumed(&attached, &mut self.outputs);
                self.resumed(&open, now);
            }
            ServerMessage::Acknowledge { sequence } => self.deliveries.acknowledged(sequence),
            ServerMessage::Peer(message) if self.config.peer.is_some() => {
                self.outputs.push_back(Output::Peer(message));
            }
            ServerMessage::Peer(_) => {
                let message = "the server said something that is for other servers";
                return Err(Error::new(Code::Malformed, message));
            }
            ServerMessage::Reply(_)
            | ServerMessage::Deliver(_)
            | ServerMessage::Accepted { .. }
            | ServerMessage::Cancel { .. }
            | ServerMessage::Legs { .. } => debug_assert!(false, "the steady path's kinds are handled there"),
        }
        Ok(())
    }

    pub(super) fn reported(&mut self, report: ErrorReport) -> Result<(), Error> {
        match report.scope {
            Scope::Connection => return Err(report.into()),
            Scope::Delivery => self.counters.refused_answers += 1,
            Scope::Registration => {
                let id = RegistrationId(u32::try_from(report.number).unwrap_or(0));
                // A server that leaves refuses what the next one will take.
                if report.code != Code::Draining && self.registrations.remove(id) {
                    self.outputs.push_back(Output::RegistrationFailed(id, report.into()));
                }
            }
        }
        Ok(())
    }

    pub(super) fn deliver(&mut self, message: Deliver, now: Time) -> Result<(), Error> {
        let key = self.delivery_key(message.delivery);
        let registration = RegistrationId(message.registration);
        match self.registrations.action(registration) {
            Some(action) => {
                let delivery = Delivery { key, registration, action: action.clone(), message };
                self.deliveries.take(delivery, now, &mut self.outputs)
            }
            None => {
                let text: &[u8] = b"the client does not handle this action any more";
                let answer = self.deliveries.answer_unheld(key, Verdict::Error, Content::from_payload(text));
                self.outputs.push_back(answer);
                Ok(())
            }
        }
    }

    pub(super) fn ponged(&mut self, number: u64) {
        self.registrations.passed(number, &mut self.outputs);
        if let Some(farewell) = &mut self.link.farewell {
            farewell.passed |= number >= farewell.fence;
        }
    }
}
