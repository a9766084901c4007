//! Who may get what: credit, stuck and clogged handlers, whose turn it is.

use std::collections::BTreeSet;

use bytes::Bytes;
use ringpost_broker::{ConnId, Speaks};
use ringpost_protocol::Code;

use super::{HandlerKey, Model};
use crate::sim::rules::{Verdict, ensure};

#[derive(Debug)]
pub(super) struct Handler {
    conn: ConnId,
    registration: u32,
    pub(super) action: Bytes,
    credit: u32,
    pub(super) held: BTreeSet<u64>,
    /// It takes nothing more.
    pub(super) retired: bool,
    pub(super) stuck: bool,
    clogged: bool,
    /// Since when it has had credit without a break, and when it last had its turn, both as counts.
    ready_since: Option<u64>,
    last_turn: Option<u64>,
}

impl Handler {
    fn has_credit(&self) -> bool {
        !self.retired && !self.stuck && !self.clogged && self.held.len() < self.credit as usize
    }
}

impl Model {
    pub(super) fn register(&mut self, conn: ConnId, registration: u32, action: &Bytes, credit: u32) {
        let credit = if credit == 0 { self.config.default_credit } else { credit };
        let Some(connection) = self.connections.get(&conn) else { return };
        let (json, clogged) = (connection.speaks == Speaks::Json, connection.clogged);
        if json && let Some(key) = self.registration(conn, registration, action) {
            return self.change(key, |handler| handler.credit = credit);
        }
        if self.draining || self.handlers_of(conn).len() >= self.config.max_actions {
            return;
        }
        let key = self.next();
        self.handlers.insert(
            key,
            Handler {
                conn,
                registration,
                action: action.clone(),
                credit,
                held: BTreeSet::new(),
                retired: false,
                stuck: false,
                clogged,
                ready_since: None,
                last_turn: None,
            },
        );
        self.change(key, |_| {});
    }

    pub(super) fn registration(&self, conn: ConnId, registration: u32, action: &[u8]) -> Option<HandlerKey> {
        let is_it = |handler: &Handler| {
            handler.conn == conn
                && !handler.retired
                && handler.registration == registration
                && (registration != 0 || handler.action == action)
        };
        self.handlers.iter().find(|(_, handler)| is_it(handler)).map(|(key, _)| *key)
    }

    pub(super) fn handlers_of(&self, conn: ConnId) -> Vec<HandlerKey> {
        self.handlers.iter().filter(|(_, handler)| handler.conn == conn).map(|(key, _)| *key).collect()
    }

    /// Those that take requests for an action, in the order they came.
    pub(super) fn handlers_for(&self, action: &Bytes) -> Vec<HandlerKey> {
        let takes = |handler: &Handler| !handler.retired && handler.action == action;
        self.handlers.iter().filter(|(_, handler)| takes(handler)).map(|(key, _)| *key).collect()
    }

    pub(super) fn deregister(&mut self, conn: ConnId, registration: u32, action: &[u8]) {
        if let Some(key) = self.registration(conn, registration, action) {
            self.retire(key);
        }
    }

    pub(super) fn set_credit(&mut self, conn: ConnId, registration: u32, credit: u32) {
        if let Some(key) = self.registration(conn, registration, &[]) {
            self.change(key, |handler| handler.credit = credit);
        }
    }

    pub(super) fn set_clogged(&mut self, conn: ConnId, clogged: bool) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.clogged = clogged;
        }
        for key in self.handlers_of(conn) {
            self.change(key, |handler| handler.clogged = clogged);
        }
    }

    pub(super) fn retire(&mut self, key: HandlerKey) {
        self.change(key, |handler| handler.retired = true);
        self.end_waiting_legs(key);
        let Some(handler) = self.handlers.get(&key) else { return };
        let (action, idle) = (handler.action.clone(), handler.held.is_empty());
        if idle {
            self.handlers.remove(&key);
        }
        self.end_what_waits_for_nobody(&action);
    }

    /// All handlers of a connection are gone, and with them the attempts that they hold.
    pub(super) fn lose_handlers(&mut self, conn: ConnId) {
        let lost: Vec<_> = self
            .handlers_of(conn)
            .into_iter()
            .filter_map(|key| Some((key, self.handlers.remove(&key)?)))
            .collect();
        for (key, handler) in &lost {
            self.end_waiting_legs(*key);
            for delivery in &handler.held {
                if let Some(delivery) = self.deliveries.remove(delivery).filter(|delivery| delivery.current) {
                    self.attempt_lost(delivery.request, delivery.leg);
                }
            }
        }
        for (_, handler) in lost {
            self.end_what_waits_for_nobody(&handler.action);
        }
    }

    fn end_what_waits_for_nobody(&mut self, action: &Bytes) {
        if !self.handlers_for(action).is_empty() {
            return;
        }
        for key in self.waiting.remove(action).unwrap_or_default() {
            let attempts = self.requests.get(&key).map_or(0, |request| request.attempts);
            let code = match attempts {
                0 if self.draining => Code::Draining,
                0 => Code::NoHandler,
                _ => Code::HandlerLost,
            };
            self.decide_all(key, code);
        }
    }

    fn end_waiting_legs(&mut self, key: HandlerKey) {
        for request in self.waiting_legs.clone() {
            let leg = self.requests.get(&request).and_then(|request| request.waiting_leg(key));
            if let Some(leg) = leg {
                self.decide(request, leg, Code::HandlerLost.into());
            }
        }
    }

    /// Changes a handler, and notes whether it has credit since or no more.
    pub(super) fn change(&mut self, key: HandlerKey, change: impl FnOnce(&mut Handler)) {
        let count = self.next();
        let Some(handler) = self.handlers.get_mut(&key) else { return };
        change(handler);
        if !handler.has_credit() {
            handler.ready_since = None;
        } else if handler.ready_since.is_none() {
            handler.ready_since = Some(count);
        }
    }

    /// One that is about to become stuck may or may not count as such already.
    fn surely_has_credit(&self, handler: &Handler) -> bool {
        let tick = self.tick();
        handler.has_credit()
            && !handler
                .held
                .iter()
                .filter_map(|held| self.deliveries.get(held))
                .any(|delivery| delivery.overdue.is_some_and(|overdue| overdue <= tick))
    }

    /// The handler gets something: it must be its turn.
    pub(super) fn takes(&mut self, key: HandlerKey, delivery: u64, by_turn: bool) -> Verdict {
        if by_turn {
            self.is_its_turn(key)?;
        }
        let count = self.next();
        let Some(handler) = self.handlers.get(&key) else { return Ok(()) };
        ensure!(handler.has_credit(), Credit, "delivery {delivery} goes to {handler:?}");
        self.change(key, |handler| {
            handler.held.insert(delivery);
            if by_turn {
                handler.last_turn = Some(count);
            }
        });
        Ok(())
    }

    fn is_its_turn(&self, key: HandlerKey) -> Verdict {
        let Some(served) = self.handlers.get(&key) else { return Ok(()) };
        let others = self.handlers.iter().filter(|(other, handler)| {
            **other != key && handler.action == served.action && self.surely_has_credit(handler)
        });
        for (_, other) in others {
            if self.round_robin() {
                // Served twice, while the other one stood by with credit all the time and got nothing.
                let passed_over = served.last_turn.is_some_and(|last| {
                    other.ready_since.is_some_and(|since| since < last)
                        && other.last_turn.is_none_or(|turn| turn < last)
                });
                ensure!(!passed_over, Fairness, "{served:?} has two turns, and {other:?} none between them");
            } else {
                let busier = served.held.len() > other.held.len();
                ensure!(!busier, Fairness, "{served:?} is busier than {other:?}, and gets more");
            }
        }
        Ok(())
    }

    /// At the end of a turn: nothing waits that a handler has credit for.
    pub(super) fn nothing_waits_for_nothing(&self) -> Verdict {
        for (action, waiting) in self.waiting.iter().filter(|(_, waiting)| !waiting.is_empty()) {
            let idle = self
                .handlers
                .values()
                .find(|handler| handler.action == action && self.surely_has_credit(handler));
            ensure!(idle.is_none(), IdleCredit, "{waiting:?} wait for {action:?}, and idle is {idle:?}");
        }
        for key in &self.waiting_legs {
            let Some(request) = self.requests.get(key) else { continue };
            for handler in request.waits_for().filter_map(|key| self.handlers.get(&key)) {
                let idle = self.surely_has_credit(handler);
                ensure!(!idle, IdleCredit, "a leg of {request:?} waits, and idle is {handler:?}");
            }
        }
        Ok(())
    }
}
