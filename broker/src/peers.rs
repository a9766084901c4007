//! Links to other servers: who is on them, and what is known of those that this server dials.
//!
//! A link is a connection like others, with a hello that names a server. To this core it is the same whether this server
//! dialled it (then the driver speaks on it, for the server at the other end) or the other did:
//!
//! * What it registers are handlers of the peer's clients: they stand in the [second line](crate::dispatch) of their action.
//! * What it requests comes from the peer's clients, and goes only to handlers of this server.
//! * It is told only of actions that have handlers of this server, so that nobody forwards to who would have to forward.

pub(crate) mod abroad;
pub(crate) mod guests;

use bytes::Bytes;
use ringpost_protocol::{
    Code,
    limits::MIN_COUNTED_BYTES,
    message::{Hello, PeerMessage, Speaker},
    secure::Role,
};

use crate::{Broker, CloseReason, ConnId, Output};

/// The log's name for a peer that holds a delivery begins so, which no session's name does.
pub(crate) const SESSION_OF_PEER: &[u8] = b"\0peer\0";

/// The server at the other end of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its own name.
    pub(crate) server_id: Bytes,
    /// The link is one that this server's driver dials.
    pub(crate) dialled: bool,
    /// Changes when that server is started anew.
    instance: u64,
}

/// What a link that this server dials is doing, as its driver sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LinkState {
    /// It tries to connect, for the first time or after a while.
    #[default]
    Connecting,
    /// It is there.
    Up,
    /// The peer has dialled too, and that link stays.
    StandsBy,
    /// The last try came to nothing, for this reason; the next comes.
    Failed(String),
    /// The server leaves.
    Ended,
}

impl LinkState {
    /// A word for it.
    pub fn text(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Up => "up",
            Self::StandsBy => "standsBy",
            Self::Failed(_) => "failed",
            Self::Ended => "ended",
        }
    }
}

/// A link that this server dials, for `$sys.peers`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkReport {
    /// Where to, as it was configured.
    pub address: String,
    /// The action under which the link itself answers at the peer.
    pub action: Option<String>,
    /// The peer's name, once it was there.
    pub server_id: Option<String>,
    /// What it is doing.
    pub state: LinkState,
}

impl Broker {
    /// Whether a connection is a link to a peer.
    pub(crate) fn is_peer(&self, conn: ConnId) -> bool {
        self.connection(conn).is_some_and(|connection| connection.peer.is_some())
    }

    /// Whether a server of this name has dialled this one, and is there.
    pub fn has_dialling_peer(&self, server_id: &[u8]) -> bool {
        self.find_peer(server_id, false).is_some()
    }

    fn find_peer(&self, server_id: &[u8], dialled_here: bool) -> Option<(ConnId, &Peer)> {
        self.peers.iter().find_map(|conn| {
            let peer = self.connection(*conn).filter(|connection| !connection.closing)?.peer.as_deref()?;
            (peer.server_id == server_id && peer.dialled == dialled_here).then_some((*conn, peer))
        })
    }

    /// Why a server may not come as a peer, if it may not.
    pub(crate) fn refuses_peer(&mut self, conn: ConnId, hello: &Hello) -> Option<(Code, String)> {
        let server_id = hello.peer.as_ref()?;
        let name = String::from_utf8_lossy(server_id);
        let connection = self.connection(conn)?;
        if server_id.is_empty() || !hello.session.is_empty() {
            let message = "a peer's hello has the server's name, and no session".to_owned();
            return Some((Code::Malformed, message));
        }
        if connection.granted.role().is_some_and(|role| role != Role::Peer) {
            let message =
                "this key is not for links between servers: that takes one whose role is peer".to_owned();
            return Some((Code::Forbidden, message));
        }
        if *server_id == self.config.server_id.as_bytes() {
            let message = format!(
                "both servers are called `{name}`: give each a name of its own (--id), or this is a link to itself"
            );
            return Some((Code::Forbidden, message));
        }
        if self.links.contains_key(&conn) {
            return None;
        }
        let (older, peer) = self.find_peer(server_id, false)?;
        if peer.instance != hello.speaker.instance {
            let message = format!(
                "another server called `{name}` is connected: servers that work together have different names (--id)"
            );
            return Some((Code::Forbidden, message));
        }
        // The same server again: it has given up on its older connection, of whose end nobody has heard here.
        self.refuse_connection(
            older,
            Code::SessionTaken,
            "the server has come on a new connection".to_owned(),
        );
        self.end_connection(older);
        None
    }

    /// A connection has turned out to be a link.
    pub(crate) fn peer_is_there(&mut self, conn: ConnId, server_id: &Bytes, speaker: Speaker) {
        let server_id = Bytes::copy_from_slice(server_id);
        let dialled = self.links.contains_key(&conn);
        // Started anew, it has no other link: what may still come on those is of no use any more.
        let earlier = |conn: &&ConnId| {
            let peer = self.connection(**conn).and_then(|connection| connection.peer.as_deref());
            peer.is_some_and(|peer| peer.server_id == server_id && peer.instance != speaker.instance)
        };
        for earlier in self.peers.iter().filter(earlier).copied().collect::<Vec<_>>() {
            self.close(earlier, CloseReason::Finished);
            self.end_connection(earlier);
        }
        let name = server_id.clone();
        let Some(connection) = self.connection_mut(conn) else { return };
        connection.peer = Some(Box::new(Peer { server_id, dialled, instance: speaker.instance }));
        self.peers.push(conn);
        self.outputs.push_back(Output::PeersChanged);
        self.tell_abroad(conn, &name);
    }

    /// A connection ends, which may have been a link: to whom.
    pub(crate) fn peer_is_gone(&mut self, conn: ConnId) -> Option<Bytes> {
        let peer = self.peer_name(conn)?;
        self.peers.retain(|peer| *peer != conn);
        self.outputs.push_back(Output::PeersChanged);
        Some(peer)
    }

    /// One of two links to a peer has ended: what was on its way there is asked for on the other.
    pub(crate) fn link_is_replaced(&mut self, peer: &Bytes) {
        if let Some(other) = self.link_to(peer) {
            self.tell_abroad(other, peer);
        }
    }

    /// What a peer says of durable requests, its own or this server's.
    pub(crate) fn peer_says(&mut self, conn: ConnId, message: &mut PeerMessage) {
        if !self.is_peer(conn) {
            return self.break_off(conn, "frames between servers are for links, and this is none");
        }
        match message {
            PeerMessage::Forward(forward) => {
                forward.content.count_large(MIN_COUNTED_BYTES, &self.large);
                self.take_guest(conn, forward);
            }
            PeerMessage::Ended(ended) => {
                ended.content.count_large(MIN_COUNTED_BYTES, &self.large);
                self.ended_abroad(conn, ended);
            }
            PeerMessage::Working { run, content } => {
                content.count_large(MIN_COUNTED_BYTES, &self.large);
                self.working_abroad(conn, *run, content);
            }
            PeerMessage::Withdraw(run) => self.withdrawn(conn, *run),
            PeerMessage::Taken(run) => self.guest_taken(conn, *run),
            PeerMessage::Abroad(list) => self.listed(conn, list),
            PeerMessage::Unknown(list) => self.unknown_abroad(conn, list),
        }
    }

    /// Attempts that peers have, and attempts of peers that are here or have ended here.
    #[cfg(test)]
    pub(crate) fn between(&self) -> (usize, usize) {
        (self.abroad.len(), self.guests.len())
    }

    pub(crate) fn check_peers(&self) {
        for conn in &self.peers {
            assert!(self.is_peer(*conn), "{conn} is a link");
        }
        self.check_abroad();
        self.check_guests();
    }
}
