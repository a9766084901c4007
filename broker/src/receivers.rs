//! Telling those who want to know which actions have handlers.
//!
//! Changes that are close together become one message, and the larger the list and the number of those who watch it,
//! the longer is "close together": the lists of all watchers together stay below [`BYTES_PER_SECOND`].
//!
//! Who may not request everything is told only of what it may. There is one list for each set of permissions, which all
//! connections of a key share.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use ringpost_protocol::{json, message::ServerMessage, time::Time};

use crate::{Broker, ConnId, Permissions, permissions::visible, state::Timer};

/// What may be spent on telling receivers: a small part of what one core can send.
const BYTES_PER_SECOND: u64 = 16 << 20;

#[derive(Debug, Default)]
pub(crate) struct Receivers {
    /// Rises with each change.
    version: u64,
    /// All names in this version, sorted, once somebody wanted a list.
    names: Option<Vec<Bytes>>,
    /// Of these, those of actions that have handlers of this server: once a peer wanted a list.
    own_names: Option<Vec<Bytes>>,
    /// The lists that somebody has been told, one for each set of permissions.
    pub(crate) lists: Vec<List>,
    pub(crate) watchers: BTreeSet<ConnId>,
    next: Time,
    timer_set: bool,
}

/// What those are told who have the same permissions.
#[derive(Debug)]
pub(crate) struct List {
    /// `None`: those who may request everything.
    permissions: Option<Arc<Permissions>>,
    /// For peers: without what only peers handle.
    own: bool,
    text: Bytes,
    /// The version that it was made in, and the first one in which it was the same.
    made: u64,
    since: u64,
}

impl List {
    fn is_for(&self, permissions: Option<&Arc<Permissions>>, own: bool) -> bool {
        if self.own != own {
            return false;
        }
        match (&self.permissions, permissions) {
            (Some(its), Some(theirs)) => Arc::ptr_eq(its, theirs) || its.request == theirs.request,
            (None, None) => true,
            _ => false,
        }
    }
}

impl Broker {
    pub(crate) fn receivers_changed(&mut self) {
        self.receivers.version += 1;
        (self.receivers.names, self.receivers.own_names) = (None, None);
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

    /// Tells the list to all who have not seen it as it is now.
    pub(crate) fn tell_receivers(&mut self) {
        self.receivers.timer_set = false;
        let version = self.receivers.version;
        let watchers: Vec<_> = self.receivers.watchers.iter().copied().collect();
        let mut told = Vec::with_capacity(watchers.len());
        let mut bytes = 0;
        for conn in watchers {
            let Some(connection) = self.connection(conn).filter(|connection| !connection.closing) else {
                continue;
            };
            let Some(seen) = connection.receivers_seen.filter(|seen| *seen != version) else { continue };
            let (permissions, own) = (connection.granted.request_list().cloned(), connection.peer.is_some());
            let list = self.list_for(permissions.as_ref(), own);
            // Also `u64::MAX`, of those who have not seen any.
            let unaware = seen < list.since || seen > version;
            let text = list.text.clone();
            if let Some(connection) = self.connection_mut(conn) {
                connection.receivers_seen = Some(version);
            }
            if unaware {
                bytes += text.len() as u64;
                told.push((conn, text));
            }
        }
        // Those that nobody was told this time nor watches any more: a list is not kept for who has gone.
        self.receivers.lists.retain(|list| list.made == version);
        let pause = Duration::from_micros(bytes.saturating_mul(1_000_000) / BYTES_PER_SECOND);
        self.receivers.next = self.now.mono + pause.max(self.config.receivers_interval);
        for (conn, text) in told {
            self.counters.receivers_sent += 1;
            self.send(conn, ServerMessage::Receivers(text));
        }
    }

    /// What a connection may know of the actions that have handlers: their names, sorted, as JSON text.
    pub(crate) fn receivers_for(&mut self, conn: ConnId) -> Bytes {
        let permissions =
            self.connection(conn).and_then(|connection| connection.granted.request_list()).cloned();
        self.list_for(permissions.as_ref(), self.is_peer(conn)).text.clone()
    }

    /// The list of those permissions, in the present version.
    fn list_for(&mut self, permissions: Option<&Arc<Permissions>>, own: bool) -> &List {
        let version = self.receivers.version;
        let known = self.receivers.lists.iter().position(|list| list.is_for(permissions, own));
        let index = known.unwrap_or(self.receivers.lists.len());
        if known.is_none_or(|index| self.receivers.lists[index].made != version) {
            let text = self.receivers_text(permissions.map(Arc::as_ref), own);
            let permissions = permissions.cloned();
            match self.receivers.lists.get_mut(index) {
                Some(list) if list.text == text => list.made = version,
                Some(list) => *list = List { permissions, own, text, made: version, since: version },
                None => {
                    self.receivers.lists.push(List { permissions, own, text, made: version, since: version });
                }
            }
        }
        &self.receivers.lists[index]
    }

    fn receivers_text(&mut self, permissions: Option<&Permissions>, own: bool) -> Bytes {
        #[cfg(feature = "planted-bugs")]
        let permissions = permissions.filter(|_| !self.config.is_planted(crate::PlantedBug::ReceiversShown));
        let known = if own { &mut self.receivers.own_names } else { &mut self.receivers.names };
        let names = known.take().unwrap_or_else(|| {
            let named = self.actions.iter().filter(|(_, action)| action.near.is_none());
            let handled =
                named.filter(|(_, action)| !action.handlers.is_empty() || !own && action.far.is_some());
            let mut names: Vec<_> = handled.map(|(_, action)| action.name.clone()).collect();
            names.sort_unstable();
            names
        });
        let mut text = Vec::with_capacity(names.iter().map(|name| name.len() + 3).sum::<usize>() + 2);
        text.push(b'[');
        for (index, name) in visible(&names, permissions).enumerate() {
            if index > 0 {
                text.push(b',');
            }
            json::write_string(name, &mut text);
        }
        text.push(b']');
        *(if own { &mut self.receivers.own_names } else { &mut self.receivers.names }) = Some(names);
        Bytes::from(text)
    }
}
