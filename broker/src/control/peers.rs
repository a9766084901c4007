//! `$sys.peers`: the servers that this one works with.

use serde_json::{Value, json};

use crate::{
    Broker, ConnId, LinkState,
    slab::Key,
    state::{Action, Handler},
};

impl Broker {
    /// First the links that this server dials, whether or not they are there, then those that others have dialled.
    pub(super) fn list_peers(&self) -> Value {
        let dialled = self.links.iter().map(|(conn, report)| {
            let mut described = json!({
                "serverId": report.server_id,
                "address": report.address,
                "dialled": true,
                "state": report.state.text(),
                "error": match &report.state { LinkState::Failed(why) => Some(why), _ => None },
                "action": report.action,
            });
            let there = self.peers.contains(conn).then_some(*conn);
            self.describe_peer(there, &mut described);
            described
        });
        let others = self.peers.iter().filter_map(|conn| {
            let connection = self.connection(*conn)?;
            let peer = connection.peer.as_deref().filter(|peer| !peer.dialled)?;
            let mut described = json!({
                "serverId": String::from_utf8_lossy(&peer.server_id),
                "address": connection.address.as_ref().map(|address| address.to_string()),
                "dialled": false,
                "state": LinkState::Up.text(),
                "error": null,
                "action": null,
            });
            self.describe_peer(Some(*conn), &mut described);
            Some(described)
        });
        dialled.chain(others).collect()
    }

    /// What goes over a link in both directions now.
    fn describe_peer(&self, conn: Option<ConnId>, described: &mut Value) {
        let connection = conn.and_then(|conn| self.connection(conn));
        let handlers = connection.map(|connection| connection.handlers.as_slice()).unwrap_or_default();
        let mut actions: Vec<_> = handlers.iter().filter_map(|handler| self.handlers.get(*handler)).collect();
        let name = |handler: &Handler| self.action_name(handler.action);
        actions.sort_by_key(|handler| name(handler));
        let held: usize = actions.iter().map(|handler| handler.held.len()).sum();
        let session = connection.and_then(|connection| self.sessions.get(connection.session?));
        described["connection"] = conn.map(|conn| conn.0).into();
        described["held"] = held.into();
        described["openRequests"] = session.map_or(0, |session| session.open.len()).into();
        described["actions"] = actions
            .into_iter()
            .filter(|handler| !handler.retired)
            .map(|handler| {
                json!({ "action": name(handler), "held": handler.held.len(), "credit": handler.credit })
            })
            .collect();
    }

    fn action_name(&self, action: Key<Action>) -> String {
        let name = self.actions.get(action).map(|action| action.name.as_ref()).unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }

    /// Links, of both kinds, that are there.
    pub(super) fn links_up(&self) -> usize {
        self.peers.len()
    }

    /// Handlers at peers.
    pub(super) fn far_handlers(&self) -> usize {
        let far = self.actions.iter().filter(|(_, action)| action.near.is_some());
        far.map(|(_, action)| action.handlers.len()).sum()
    }
}
