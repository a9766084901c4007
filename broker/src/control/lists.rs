//! `$sys.actions` and `$sys.connections`: who handles what, and who has what open.

use serde_json::{Value, json};

use crate::{
    Broker, ConnId, Speaks,
    slab::Key,
    state::{Action, Connection, Handler},
};

impl Broker {
    /// All actions, sorted by name, their handlers in the order in which they registered.
    pub(super) fn list_actions(&self) -> Value {
        let named = self.actions.iter().map(|(_, action)| action).filter(|action| action.near.is_none());
        let mut actions: Vec<_> = named.collect();
        actions.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        actions.into_iter().map(|action| self.describe_action(action)).collect()
    }

    fn describe_action(&self, action: &Action) -> Value {
        let describe = |handler: &Key<Handler>| {
            let handler = self.handlers.get(*handler)?;
            let peer = self.connection(handler.conn).and_then(|connection| connection.peer.as_deref());
            Some(json!({
                "connection": handler.conn.0,
                "server": peer.map(|peer| String::from_utf8_lossy(&peer.server_id)),
                "held": handler.held.len(),
                "credit": handler.credit,
                "waitingLegs": handler.legs.len(),
                "stuck": handler.stuck,
                "clogged": handler.clogged,
            }))
        };
        let far = action.far.as_ref().and_then(|far| self.actions.get(far.action));
        let far = far.into_iter().flat_map(|far| far.handlers.values());
        json!({
            "action": String::from_utf8_lossy(&action.name),
            "handlers": action.handlers.values().chain(far).filter_map(describe).collect::<Value>(),
            "queued": action.queue.waiting,
            "queuedBytes": action.queue.bytes,
        })
    }

    /// All connections that have shown their dialect, by number.
    pub(super) fn list_connections(&self) -> Value {
        let known = self.connections.iter().enumerate();
        known
            .filter_map(|(index, connection)| Some((ConnId(index as u32), connection.as_ref()?)))
            .map(|(conn, connection)| self.describe_connection(conn, connection))
            .collect()
    }

    fn describe_connection(&self, conn: ConnId, connection: &Connection) -> Value {
        let session = connection.session.and_then(|session| self.sessions.get(session));
        let handlers = || connection.handlers.iter().filter_map(|handler| self.handlers.get(*handler));
        let action = |handler: &Handler| {
            let action = self.actions.get(handler.action)?;
            Some(String::from_utf8_lossy(&action.name).into_owned())
        };
        json!({
            "connection": conn.0,
            "address": connection.address.as_ref().map(|address| address.to_string()),
            "role": connection.granted.role().map(|role| role.to_string()),
            "dialect": match connection.speaks { Speaks::Binary => "binary", Speaks::Json => "json" },
            "peer": connection.peer.as_deref().map(|peer| String::from_utf8_lossy(&peer.server_id).into_owned()),
            "session": session.map(|session| String::from_utf8_lossy(&session.name).into_owned()),
            "epoch": session.map(|session| session.epoch),
            "handles": handlers().filter_map(action).collect::<Vec<_>>(),
            "holds": handlers().map(|handler| handler.held.len()).sum::<usize>(),
            "openRequests": session.map_or(0, |session| session.open.len()),
            "silentMs": self.now.mono.since(connection.last_heard).as_millis() as u64,
            "leaving": connection.leaving || connection.half_closed || connection.closing,
        })
    }
}
