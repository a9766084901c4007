//! Handlers that come back after a restart of the broker, with what they held: they go on, and nobody else is given it.
//!
//! The log has each attempt's boot, delivery and session. What a session with a name held when the broker died waits
//! [`Config::reattach`](crate::Config::reattach) for that session; a handler that comes back in this time lists what it
//! holds ([`Resume::held`]), and gets each delivery under a new number of this boot. What it does not list, it does not hold, and
//! another handler gets it at once.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_protocol::message::Resume;

use crate::{
    Broker, ConnId,
    slab::Key,
    state::{Handler, Request, RequestState},
};

/// A delivery of an earlier boot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Former {
    /// The session whose handler had it.
    pub(crate) session: Bytes,
    pub(crate) boot: u64,
    pub(crate) delivery: u64,
}

/// What waits for the handlers that had it, in the order of sessions.
pub(crate) type Formers = BTreeMap<Former, Key<Request>>;

impl Broker {
    /// A request was in a handler's hands when the broker died: it waits for that handler.
    pub(super) fn wait_for_handler(&mut self, key: Key<Request>, former: Former) {
        self.formers.insert(former.clone(), key);
        if let Some(durable) = self.durable_mut(key) {
            durable.former = Some(Box::new(former));
        }
    }

    /// It waits no more, whatever for.
    pub(super) fn forget_former(&mut self, key: Key<Request>) {
        if let Some(former) = self.durable_mut(key).and_then(|durable| durable.former.take()) {
            self.formers.remove(&*former);
        }
    }

    /// A client's handlers come back with what they hold: which deliveries go on, under which numbers, and which do not.
    pub(crate) fn reattach(&mut self, conn: ConnId, resume: &mut Resume) -> (Vec<(u64, u64)>, Vec<u64>) {
        let held = std::mem::take(&mut resume.held);
        let session = self.connection(conn).and_then(|connection| connection.session);
        let name = session.and_then(|session| self.sessions.get(session)).map(|session| session.name.clone());
        let Some(session) = name.filter(|name| !name.is_empty() && !self.formers.is_empty()) else {
            return (Vec::new(), held);
        };
        let (mut attached, mut forgotten) = (Vec::new(), Vec::new());
        let boot = resume.held_boot;
        for delivery in held {
            let former = Former { session: session.clone(), boot, delivery };
            match self.formers.get(&former).copied().and_then(|request| self.attach(conn, request)) {
                Some(now) => attached.push((delivery, now)),
                None => forgotten.push(delivery),
            }
        }
        // What it does not hold, nobody does.
        let first = Former { session: session.clone(), boot, delivery: 0 };
        let last = Former { session, boot, delivery: u64::MAX };
        let rest: Vec<_> = self.formers.range(first..=last).map(|(_, request)| *request).collect();
        for request in rest.into_iter().rev() {
            self.rested(request);
        }
        (attached, forgotten)
    }

    /// Lets a handler go on with a request: the attempt is the one that it had. The delivery's number in this boot.
    fn attach(&mut self, conn: ConnId, key: Key<Request>) -> Option<u64> {
        let handler = self.handler_for(conn, key)?;
        if self.deliveries.is_full() {
            return None;
        }
        let rest = self.durable_mut(key).and_then(|durable| durable.rest.take());
        self.stop_timer(rest);
        self.forget_former(key);
        let delivery = self.hold(key, handler, 0, true)?;
        let request = self.requests.get_mut(key)?;
        request.attempt += 1;
        request.state = RequestState::Delivered(delivery);
        self.counters.reattached += 1;
        self.log_delivered(key, delivery, conn);
        self.lease(key);
        Some(delivery.raw())
    }

    /// The connection's handler for a request that waits for the one that had it.
    fn handler_for(&self, conn: ConnId, key: Key<Request>) -> Option<Key<Handler>> {
        let name = self.kept_of(key)?.content.name();
        let action = *self.action_by_name.get(name)?;
        let takes = |handler: &Handler| handler.action == action && !handler.retired;
        let handlers = &self.connection(conn)?.handlers;
        handlers.iter().copied().find(|handler| self.handlers.get(*handler).is_some_and(takes))
    }
}
