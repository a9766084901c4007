//! What the broker must do, reckoned beside it from what it was told and what it says: a model.
//!
//! The model sees, in order, everything that goes into the core and everything that comes out ([`Model::heard`],
//! [`Model::said`]). It does not predict what the core will say; it knows what the core *may* say, judges each word, and
//! at the end of each turn asks what should have been said. It shares no code and no data structure with the core: no
//! lines, places or slabs, but sorted maps and searches through all that there is.
//!
//! | module | judges |
//! |---|---|
//! | `clients` | connections, sessions, what a client that comes back is told |
//! | `handlers` | who may get what: credit, stuck handlers, fairness |
//! | `requests` | what each request may become: attempts, order, time |
//! | `outcomes` | what requesters are told |

mod clients;
mod handlers;
mod outcomes;
mod requests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use ringpost_broker::{CloseReason, Config, ConnId, Output, Policy, Speaks};
use ringpost_protocol::{
    Code,
    message::{Scope, ServerMessage, Speaker, Verdict as Answered},
    time::Time,
};

use self::{clients::Connection, clients::Session, handlers::Handler, requests::Request};
use super::rules::{Verdict, ensure};

/// What the core is told, as far as the model wants to know.
#[derive(Debug)]
pub(crate) enum Heard {
    Opened {
        conn: ConnId,
        speaks: Speaks,
    },
    Hello {
        conn: ConnId,
        session: Bytes,
        speaker: Speaker,
    },
    Register {
        conn: ConnId,
        registration: u32,
        action: Bytes,
        credit: u32,
    },
    Deregister {
        conn: ConnId,
        registration: u32,
        action: Bytes,
    },
    Credit {
        conn: ConnId,
        registration: u32,
        credit: u32,
    },
    Asked {
        conn: ConnId,
        asked: Asked,
    },
    Cancel {
        conn: ConnId,
        number: Option<u64>,
        token: Option<u64>,
    },
    Answer {
        conn: ConnId,
        delivery: u64,
        answered: Answered,
        number: Option<u64>,
    },
    Resume {
        conn: ConnId,
        boot: u64,
        sequence: u64,
        open: Vec<u64>,
    },
    Leaving {
        conn: ConnId,
    },
    HalfClosed {
        conn: ConnId,
    },
    Closed {
        conn: ConnId,
    },
    Clogged {
        conn: ConnId,
        clogged: bool,
    },
    Drain,
    DrainOver,
    /// Time has passed: what is due is done.
    Time,
    /// Anything else: it changes nothing that is modelled.
    Other,
}

/// A request, as the core hears it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) number: u64,
    pub(crate) token: u64,
    pub(crate) action: Bytes,
    pub(crate) send: bool,
    pub(crate) broadcast: bool,
    pub(crate) max_attempts: u32,
    pub(crate) timeout: Duration,
    pub(crate) bytes: usize,
    /// Its connection may not ask for it.
    pub(crate) forbidden: bool,
}

pub(crate) type HandlerKey = u64;
pub(crate) type RequestKey = u64;
pub(crate) type SessionKey = u64;

#[derive(Debug)]
pub(crate) struct Model {
    config: Config,
    now: Time,
    /// Counts all that has an order: connections, sessions, handlers, requests, dispatches.
    count: u64,
    connections: BTreeMap<ConnId, Connection>,
    sessions: BTreeMap<SessionKey, Session>,
    by_name: BTreeMap<Bytes, SessionKey>,
    /// All that any client was told.
    tenures: BTreeSet<u64>,
    handlers: BTreeMap<HandlerKey, Handler>,
    deliveries: BTreeMap<u64, Delivery>,
    requests: BTreeMap<RequestKey, Request>,
    by_token: BTreeMap<u64, RequestKey>,
    /// Open requests by the end of their time.
    deadlines: BTreeSet<(u64, RequestKey)>,
    /// What waits for a handler, by action.
    waiting: BTreeMap<Bytes, BTreeSet<RequestKey>>,
    /// Broadcasts with legs that wait for a handler.
    waiting_legs: BTreeSet<RequestKey>,
    /// Numbers in answers that came too late.
    late: BTreeSet<u64>,
    /// What is decided and must have been said by the end of the turn.
    due: Vec<(RequestKey, usize)>,
    /// What was heard last, until it is clear what followed from it.
    unsettled: Unsettled,
    draining: bool,
    last_dispatch: Option<Time>,
    /// The count at which something was last heard.
    last_heard: u64,
    /// Names of sessions that were forgotten: their clients may have lost what was open.
    pub(crate) forgotten: Vec<Bytes>,
    /// Requests whose outcome was dropped for want of room.
    pub(crate) dropped: Vec<u64>,
}

#[derive(Debug)]
enum Unsettled {
    Nothing,
    Request(RequestKey),
    Resume {
        bytes: usize,
    },
    /// A hello that came too late, on this connection.
    Late(ConnId),
    Time,
}

/// What a handler holds.
#[derive(Debug)]
struct Delivery {
    handler: HandlerKey,
    request: RequestKey,
    leg: usize,
    /// Whether its answer would count.
    current: bool,
    /// When its handler counts as stuck.
    overdue: Option<u64>,
}

impl Model {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            config: config.clone(),
            now: Time::ZERO,
            count: 0,
            connections: BTreeMap::new(),
            sessions: BTreeMap::new(),
            by_name: BTreeMap::new(),
            tenures: BTreeSet::new(),
            handlers: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            requests: BTreeMap::new(),
            by_token: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            waiting: BTreeMap::new(),
            waiting_legs: BTreeSet::new(),
            late: BTreeSet::new(),
            due: Vec::new(),
            unsettled: Unsettled::Nothing,
            draining: false,
            last_dispatch: None,
            last_heard: 0,
            forgotten: Vec::new(),
            dropped: Vec::new(),
        }
    }

    /// The core is told something.
    pub(crate) fn heard(&mut self, heard: Heard, now: Time) -> Verdict {
        self.settle()?;
        self.now = now;
        self.last_heard = self.next();
        match heard {
            Heard::Opened { conn, speaks } => self.opened(conn, speaks),
            Heard::Hello { conn, session, speaker } => self.hello(conn, &session, speaker),
            Heard::Closed { conn } => {
                self.end_connection(conn);
                self.connections.remove(&conn);
            }
            Heard::Drain => self.drain(),
            Heard::DrainOver => self.end_all(Code::Draining),
            Heard::Time => self.unsettled = Unsettled::Time,
            Heard::Other => {}
            _ if self.is_over(&heard) => {}
            Heard::Register { conn, registration, action, credit } => {
                self.register(conn, registration, &action, credit)
            }
            Heard::Deregister { conn, registration, action } => self.deregister(conn, registration, &action),
            Heard::Credit { conn, registration, credit } => self.set_credit(conn, registration, credit),
            Heard::Asked { conn, asked } => return self.asked(conn, asked),
            Heard::Cancel { conn, number, token } => self.cancelled(conn, number, token),
            Heard::Answer { conn, delivery, answered, number } => {
                self.answered(conn, delivery, answered, number)
            }
            Heard::Resume { conn, boot, sequence, open } => self.resume(conn, boot, sequence, &open),
            Heard::Leaving { conn } => self.leaving(conn),
            Heard::HalfClosed { conn } => self.half_closed(conn),
            Heard::Clogged { conn, clogged } => self.set_clogged(conn, clogged),
        }
        Ok(())
    }

    /// What comes on a connection that the core has closed is ignored.
    fn is_over(&self, heard: &Heard) -> bool {
        let conn = match heard {
            Heard::Register { conn, .. }
            | Heard::Deregister { conn, .. }
            | Heard::Credit { conn, .. }
            | Heard::Asked { conn, .. }
            | Heard::Cancel { conn, .. }
            | Heard::Answer { conn, .. }
            | Heard::Resume { conn, .. }
            | Heard::Leaving { conn }
            | Heard::HalfClosed { conn } => conn,
            _ => return false,
        };
        self.connections.get(conn).is_none_or(|connection| connection.closing || connection.ended)
    }

    /// The core says something.
    pub(crate) fn said(&mut self, output: &Output) -> Verdict {
        match output {
            Output::Send { conn, message } => {
                let open = self.connections.get(conn).is_some_and(|connection| !connection.closing);
                ensure!(open, Silence, "{message:?} to {conn}, which is closed");
                self.judge(*conn, message)
            }
            Output::Close { conn, reason } => {
                let Some(connection) = self.connections.get_mut(conn) else { return Ok(()) };
                ensure!(!connection.closing, Silence, "{conn} is closed twice");
                connection.closing = true;
                if *reason != CloseReason::Finished {
                    self.end_connection(*conn);
                }
                Ok(())
            }
            Output::Read(_) | Output::Unreadable(_) | Output::Unavailable(_) => {
                ensure!(false, Truth, "{output:?}, and there is no log");
                Ok(())
            }
            Output::Drained => {
                ensure!(self.draining, Truth, "drained, without being asked to");
                Ok(())
            }
            Output::PeersChanged => unreachable!("nobody in the simulation is a server's link"),
            Output::Full { conn } => {
                self.set_clogged(*conn, true);
                Ok(())
            }
        }
    }

    fn judge(&mut self, conn: ConnId, message: &ServerMessage) -> Verdict {
        match message {
            ServerMessage::Deliver(deliver) => self.dispatched(conn, deliver),
            ServerMessage::Reply(reply) => self.replied(conn, reply),
            ServerMessage::Cancel { delivery, .. } => self.called_back(conn, *delivery),
            ServerMessage::Legs { number, expected } => self.told_legs(conn, *number, *expected),
            ServerMessage::Registered { registration } => {
                let known = self.registration(conn, *registration, &[]).is_some();
                ensure!(known, Bounds, "registration {registration} of {conn} is over the bound, or unknown");
                Ok(())
            }
            ServerMessage::Welcome(welcome) => self.welcomed(conn, welcome),
            ServerMessage::Error(report) if report.scope == Scope::Connection => {
                self.broken_off(conn, report)
            }
            ServerMessage::Resumed { open, .. } => self.resumed(conn, open),
            ServerMessage::Accepted { upto, .. } => self.accepted(conn, *upto),
            _ => Ok(()),
        }
    }

    /// All that followed from what was heard has been said.
    pub(crate) fn turn_ended(&mut self) -> Verdict {
        self.settle()?;
        for (key, leg) in std::mem::take(&mut self.due) {
            self.must_have_been_said(key, leg)?;
        }
        if self.config.dispatch_interval.is_zero() {
            self.nothing_waits_for_nothing()?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Verdict {
        match std::mem::replace(&mut self.unsettled, Unsettled::Nothing) {
            Unsettled::Nothing | Unsettled::Resume { .. } => Ok(()),
            Unsettled::Request(key) => self.settle_request(key),
            Unsettled::Late(conn) => self.is_turned_away(conn),
            Unsettled::Time => self.settle_time(),
        }
    }

    /// What is due at the present tick is done: requests end, sessions are forgotten, handlers become stuck.
    fn settle_time(&mut self) -> Verdict {
        let tick = self.tick();
        while let Some((at, key)) = self.deadlines.first().copied().filter(|(at, _)| *at <= tick) {
            self.deadlines.remove(&(at, key));
            self.time_over(key)?;
        }
        let over = |session: &Session| session.linger_until.is_some_and(|until| until <= tick);
        let forgotten: Vec<_> =
            self.sessions.iter().filter(|(_, session)| over(session)).map(|(key, _)| *key).collect();
        for key in forgotten {
            self.end_session(key);
        }
        let stuck: Vec<_> = self
            .deliveries
            .values_mut()
            .filter(|delivery| delivery.overdue.is_some_and(|overdue| overdue <= tick))
            .map(|delivery| {
                delivery.overdue = None;
                delivery.handler
            })
            .collect();
        for key in stuck {
            self.change(key, |handler| handler.stuck = true);
        }
        Ok(())
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// Timers are done in whole milliseconds.
    fn tick(&self) -> u64 {
        self.now.micros() / 1000
    }

    /// The tick at which something is due that is set for then.
    fn due_at(&self, after: Duration) -> u64 {
        (self.now + after).micros().div_ceil(1000)
    }

    fn round_robin(&self) -> bool {
        self.config.policy == Policy::RoundRobin
    }
}
