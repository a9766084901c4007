//! Connections that have just come: whether there is room for them, where they are from, and until when they are strangers.
//!
//! ```text
//! accept ─> room? ── no ──> turned away: told why as soon as it shows its dialect, if few are; else closed
//!             │ yes
//!             └─> stranger ─> PROXY header, from --proxy-from ─> dialect ─> first whole message: a stranger no more
//!                                                             └─> where a key is wanted: a ping ─> pong, and the end
//! ```
//!
//! All of it together may take `--handshake-timeout`.

use std::{net::SocketAddr, rc::Rc};

use bytes::{Buf, BytesMut};
use ringpost_broker::{ConnId, Identity, Input, RefusalCause, Speaks};
use ringpost_io::{event::Event, stream::Stream};
use ringpost_protocol::{
    Code, WireError,
    dialect::{Dialect, ServerCodec},
    frame::Preface,
    json::{self, Opening, PONG},
    proxy,
    time::Now,
};

use super::{Leaving, NextRead, Shard, State, traffic::mark};
use crate::{
    connections::Connection,
    strangers::{Block, Crowded},
};

/// Connections that there is no room for, which may be there at once to be told so.
const MAX_TURNED_AWAY: usize = 64;

/// Why there is no room for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TurnedAway {
    /// There are as many as may be.
    Surplus,
    /// There are too many strangers.
    Crowded(Crowded),
}

impl TurnedAway {
    fn cause(self) -> RefusalCause {
        match self {
            Self::Surplus => RefusalCause::Surplus,
            Self::Crowded(Crowded::All) => RefusalCause::Crowded,
            Self::Crowded(Crowded::Address) => RefusalCause::CrowdedAddress,
        }
    }
}

impl Shard {
    /// Takes in a new connection, unless there is no room and too many are being told so: then it is closed. `secure`: its
    /// listener takes only those with a key.
    pub(crate) fn admit(&self, stream: Stream, secure: bool) -> Option<(ConnId, Rc<Event>)> {
        self.turn(|state, now| {
            // An accept that was under way when the listener was closed may still bring one.
            if state.leaving != Leaving::No {
                return None;
            }
            let address = match stream.set_nodelay().and_then(|()| stream.peer_addr()) {
                Ok(address) => address,
                Err(error) => {
                    tracing::debug!(%error, "a connection was gone before it was accepted");
                    return None;
                }
            };
            let relayed = state.config.proxy_from.iter().any(|network| network.contains(address.ip()));
            let block = (!relayed).then(|| Block::from(address.ip()));
            let entered = match state.connections.len() >= state.max_connections {
                true => Err(TurnedAway::Surplus),
                false => state.strangers.enter(block).map_err(TurnedAway::Crowded),
            };
            let codec = ServerCodec::new(state.boot, state.config.max_payload_bytes());
            let mut connection = Connection::new(stream, address, codec);
            (connection.secure, connection.awaits_header) = (secure, relayed);
            match entered {
                Ok(stranger) => connection.stranger = Some(stranger),
                Err(why) => {
                    state.note_turned_away(address, why, now);
                    if state.turning_away >= MAX_TURNED_AWAY {
                        return None;
                    }
                    state.turning_away += 1;
                    connection.turned_away = Some(why);
                }
            }
            let wake = connection.wake.clone();
            let key = state.connections.insert(connection);
            state.handshakes.push(now.mono, key);
            Some((key.conn, wake))
        })
    }
}

impl State {
    /// What comes before a dialect's first bytes, and without a key. `Some`: the connection has not got further.
    #[cold]
    pub(super) fn arrive(&mut self, conn: ConnId, buffer: &mut BytesMut, now: Now) -> Option<NextRead> {
        let connection = self.connections.get_mut(conn)?;
        let next = match connection.awaits_header {
            true => self.take_in_header(conn, buffer, now),
            false => self.refuse_header(conn, buffer, now),
        };
        next.or_else(|| self.answer_ping(conn, buffer, now))
    }

    /// Looks for a header where none is taken: not to believe it, but to say what is wrong.
    fn refuse_header(&mut self, conn: ConnId, buffer: &mut BytesMut, now: Now) -> Option<NextRead> {
        if !proxy::is_begun(buffer) {
            return None;
        }
        // What is behind it tells who is to be answered, and how.
        let behind = match proxy::decode(buffer) {
            Ok(None) => return Some(NextRead::Greeting(0)),
            Ok(Some(header)) if header.bytes == buffer.len() => return Some(NextRead::Greeting(0)),
            Ok(Some(header)) => header.bytes,
            Err(_) => 0,
        };
        buffer.advance(behind);
        let address = self.connections.get_mut(conn)?.address.ip().to_canonical();
        let error = WireError::malformed(format!(
            "a PROXY header came from {address}, from where this server takes none: name the balancer's network with the \
             server's --proxy-from, or have the balancer send none (`ringpost balance` without --proxy-v2; HAProxy without \
             send-proxy-v2)"
        ));
        self.refuse_unproxied(conn, buffer, &error, now);
        Some(NextRead::Discard)
    }

    /// A header that is missing, or there where it must not be, or wrong: said to who administers both ends in the log, and to
    /// the client in the dialect that it begins with, as far as it has begun.
    fn refuse_unproxied(&mut self, conn: ConnId, buffer: &[u8], error: &WireError, now: Now) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if buffer.first() == Some(&Preface::MAGIC[0]) {
            connection.codec.stay_plain(&mut connection.out);
        }
        let address = connection.address;
        if let Some(left_out) = self.unproxied_lines.line(now.mono) {
            tracing::warn!(%conn, %address, left_out, %error, "connection refused (proxy-from)");
        }
        self.count(RefusalCause::Unproxied, now);
        self.refuse(conn, error, now);
    }

    /// A ping is all that a listener which wants a key answers without one, once: those who look whether a server is there need
    /// none. It costs one read and no message to the core, and the connection counts as a stranger until it is gone.
    fn answer_ping(&mut self, conn: ConnId, buffer: &[u8], now: Now) -> Option<NextRead> {
        let connection = self.connections.get_mut(conn)?;
        if !connection.secure || connection.channel.is_some() || connection.turned_away.is_some() {
            return None;
        }
        match json::opening(buffer) {
            Opening::Other => None,
            Opening::Perhaps => Some(NextRead::Greeting(0)),
            Opening::Ping => {
                tracing::debug!(%conn, address = %connection.address, "answered a ping, without a key");
                connection.out.tail().extend_from_slice(PONG);
                self.finish(conn, now);
                Some(NextRead::Discard)
            }
        }
    }

    fn take_in_header(&mut self, conn: ConnId, buffer: &mut BytesMut, now: Now) -> Option<NextRead> {
        let connection = self.connections.get_mut(conn)?;
        let header = match proxy::decode(buffer) {
            Ok(Some(header)) => header,
            Ok(None) => return Some(NextRead::Greeting(0)),
            Err(error) => {
                self.refuse_unproxied(conn, buffer, &error, now);
                return Some(NextRead::Discard);
            }
        };
        buffer.advance(header.bytes);
        connection.awaits_header = false;
        if let Some(ends) = header.ends {
            connection.address = ends.source;
            let block = Block::from(ends.source.ip());
            if let Some(stranger) = &mut connection.stranger
                && let Err(crowded) = self.strangers.locate(stranger, block)
            {
                let why = TurnedAway::Crowded(crowded);
                connection.turned_away = Some(why);
                self.turning_away += 1;
                let address = connection.address;
                self.note_turned_away(address, why, now);
            }
        }
        None
    }

    /// A connection has shown which dialect it speaks. Returns whether it goes on.
    pub(super) fn open(&mut self, conn: ConnId, dialect: Dialect, now: Now) -> bool {
        let Some(connection) = self.connections.get_mut(conn) else { return false };
        if let Some(why) = connection.turned_away {
            self.turn_away(conn, why, now);
            return false;
        }
        if connection.secure && connection.channel.is_none() {
            self.refuse_plain(conn, now);
            return false;
        }
        let channel = connection.channel.as_ref();
        let (key, permissions) = channel.map(|it| (it.key, it.permissions.clone())).unzip();
        mark(&mut self.dirty, conn, connection);
        connection.known = true;
        if dialect == Dialect::Json
            && let Err(error) = connection.stream.set_keepalive(self.config.ping_interval)
        {
            tracing::debug!(%conn, %error, "no keepalive");
        }
        let speaks = match dialect {
            Dialect::Binary => Speaks::Binary,
            Dialect::Json => Speaks::Json,
        };
        tracing::debug!(%conn, address = %connection.address, ?speaks, ?key, "opened");
        let identity = Identity { address: Some(connection.address.into()), permissions };
        self.broker.handle(Input::Opened { conn, speaks, identity }, now);
        true
    }

    /// Tells a connection that there is no room for it.
    pub(super) fn turn_away(&mut self, conn: ConnId, why: TurnedAway, now: Now) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let address = connection.address;
        let error = WireError::new(Code::Overloaded, self.why_turned_away(why, address));
        self.refuse(conn, &error, now);
    }

    fn note_turned_away(&mut self, address: SocketAddr, why: TurnedAway, now: Now) {
        let lines = match why {
            TurnedAway::Surplus => &mut self.surplus_lines,
            TurnedAway::Crowded(_) => &mut self.crowded_lines,
        };
        if let Some(left_out) = lines.line(now.mono) {
            let message = self.why_turned_away(why, address);
            tracing::warn!(%address, left_out, message);
        }
        self.count(why.cause(), now);
    }

    fn why_turned_away(&self, why: TurnedAway, address: SocketAddr) -> String {
        match why {
            TurnedAway::Surplus => format!(
                "this server has all the connections that it may have (max-connections = {})",
                self.max_connections
            ),
            TurnedAway::Crowded(Crowded::All) => format!(
                "so many connections have not said who they are that not everybody is let in: try again in a moment \
                 (max-unauthenticated = {})",
                self.config.max_unauthenticated
            ),
            TurnedAway::Crowded(Crowded::Address) => format!(
                "too many connections from {} have not said who they are: try again in a moment \
                 (max-unauthenticated-per-address = {})",
                address.ip(),
                self.config.max_unauthenticated_per_address
            ),
        }
    }
}
