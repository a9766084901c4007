//! Telling those who want to know which actions have handlers.
//!
//! Changes that are close together become one message, and the larger the list and the number of those who watch it,
//! the longer is "close together": the lists of all watchers together stay below [`BYTES_PER_SECOND`].

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use ringpost_protocol::{json, message::ServerMessage, time::Time};

use crate::{Broker, ConnId, state::Timer};

/// What may be spent on telling receivers: a small part of what one core can send.
const BYTES_PER_SECOND: u64 = 16 << 20;

#[derive(Debug, Default)]
pub(crate) struct Receivers {
    /// Rises with each change.
    version: u64,
    /// The list in this version, once somebody wanted it.
    list: Option<Bytes>,
    pub(crate) watchers: BTreeSet<ConnId>,
    next: Time,
    timer_set: bool,
}

impl Broker {
    pub(crate) fn receivers_changed(&mut self) {
        self.receivers.version += 1;
        self.receivers.list = None;
        self.plan_receivers();
    }

    pub(crate) fn watch_receivers(&mut self, conn: ConnId, on: bool) {
        let Some(connection) = self.connection_mut(conn) else { return };
        if !on {
            connection.receivers_seen = None;
            self.receivers.watchers.remove(&conn);
        } else {
            // A version that never comes: who asks is told the list even if nothing changes, and if it knows it already.
            connection.receivers_seen = Some(u64::MAX);
            self.receivers.watchers.insert(conn);
            self.plan_receivers();
        }
    }

    fn plan_receivers(&mut self) {
        if !self.receivers.timer_set && !self.receivers.watchers.is_empty() {
            self.receivers.timer_set = true;
            self.timers.insert(self.receivers.next.max(self.now.mono), Timer::Receivers);
        }
    }

    /// Tells the list to all who have not seen its present version.
    pub(crate) fn tell_receivers(&mut self) {
        self.receivers.timer_set = false;
        let version = self.receivers.version;
        let list = self.receivers_list();
        let unaware = |broker: &Self, conn: &ConnId| {
            broker.connection(*conn).is_some_and(|connection| {
                !connection.closing && connection.receivers_seen.is_some_and(|seen| seen != version)
            })
        };
        let watchers: Vec<_> =
            self.receivers.watchers.iter().copied().filter(|conn| unaware(self, conn)).collect();
        let bytes = list.len() as u64 * watchers.len() as u64;
        let pause = Duration::from_micros(bytes.saturating_mul(1_000_000) / BYTES_PER_SECOND);
        self.receivers.next = self.now.mono + pause.max(self.config.receivers_interval);
        for conn in watchers {
            if let Some(connection) = self.connection_mut(conn) {
                connection.receivers_seen = Some(version);
            }
            self.counters.receivers_sent += 1;
            self.send(conn, ServerMessage::Receivers(list.clone()));
        }
    }

    /// The names of all actions that have handlers, sorted, as JSON text.
    pub(crate) fn receivers_list(&mut self) -> Bytes {
        if let Some(list) = &self.receivers.list {
            return list.clone();
        }
        let handled = self.actions.iter().filter(|(_, action)| !action.handlers.is_empty());
        let mut names: Vec<_> = handled.map(|(_, action)| action.name.clone()).collect();
        names.sort_unstable();
        let mut text = Vec::with_capacity(names.iter().map(|name| name.len() + 3).sum::<usize>() + 2);
        text.push(b'[');
        for (index, name) in names.iter().enumerate() {
            if index > 0 {
                text.push(b',');
            }
            json::write_string(name, &mut text);
        }
        text.push(b']');
        let list = Bytes::from(text);
        self.receivers.list = Some(list.clone());
        list
    }
}
