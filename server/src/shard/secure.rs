//! Connections with a secure key: their handshake, their records, and what becomes of them when their key goes.

use bytes::BytesMut;
use ringpost_broker::{ConnId, RefusalCause};
use ringpost_protocol::{
    Code, WireError,
    message::ServerMessage,
    secure::{ClientHello, Responder},
    time::Now,
};

use super::{NextRead, Shard, State, traffic::mark};
use crate::{channel::Channel, connections::Phase, keys::Keyring};

impl Shard {
    /// Other keys are good from now on. Who came with one that is not any more has as long as a leaving server would give
    /// it.
    pub(crate) fn change_keys(&self, keys: Keyring) {
        self.turn(|state, now| {
            state.keys = keys;
            state.retire_strangers(now);
            state.act(now);
        });
    }
}

impl State {
    /// Opens what came in records, and takes in what it says.
    #[inline(never)]
    pub(super) fn take_in_records(&mut self, conn: ConnId, buffer: &mut BytesMut, now: Now) -> NextRead {
        let Some(channel) = self.channel(conn) else { return NextRead::Discard };
        let opened = channel.incoming.open(buffer);
        let verified = channel.incoming.has_verified();
        let rest = channel.incoming.part(buffer);
        let next = self.take_in_messages(conn, buffer, now);
        let Some(channel) = self.channel(conn) else { return NextRead::Discard };
        channel.incoming.rejoin(buffer, rest);
        match (next, opened) {
            (NextRead::Read(missing), Ok(())) => NextRead::Read(channel.incoming.missing(buffer, missing)),
            (NextRead::Greeting(missing), Ok(())) => {
                NextRead::Greeting(channel.incoming.missing(buffer, missing))
            }
            (NextRead::Read(_) | NextRead::Greeting(_), Err(error)) => {
                let code = if verified { Code::Malformed } else { Code::Unauthorized };
                self.refuse_unreadable(conn, &WireError::new(code, error.to_string()), now);
                NextRead::Discard
            }
            (next, _) => next,
        }
    }

    fn channel(&mut self, conn: ConnId) -> Option<&mut Channel> {
        self.connections.get_mut(conn)?.channel.as_deref_mut()
    }

    /// Answers the hello of a client with a key. It is who it says once its first record verifies.
    pub(super) fn shake_hands(
        &mut self,
        conn: ConnId,
        hello: &ClientHello,
        buffer: &mut BytesMut,
        now: Now,
    ) -> NextRead {
        let Some(connection) = self.connections.get_mut(conn) else { return NextRead::Discard };
        if let Some(why) = connection.turned_away {
            connection.codec.stay_plain(&mut connection.out);
            self.turn_away(conn, why, now);
            return NextRead::Discard;
        }
        let outcome = self.answer(hello);
        let Some(connection) = self.connections.get_mut(conn) else { return NextRead::Discard };
        match outcome {
            Ok(channel) => {
                connection.channel = Some(Box::new(channel));
                connection.codec = connection.codec.within_records();
                mark(&mut self.dirty, conn, connection);
                self.take_in(conn, buffer, now)
            }
            Err(error) => {
                connection.codec.stay_plain(&mut connection.out);
                self.refuse_unauthorized(conn, &error, now);
                NextRead::Discard
            }
        }
    }

    fn answer(&self, hello: &ClientHello) -> Result<Channel, WireError> {
        let id = hello.key_id();
        if self.keys.is_empty() {
            let message = "this server has no secure key: connect without one (no --secure-key-file, no RINGPOST_SECURE_KEY)";
            return Err(WireError::new(Code::Unsupported, message));
        }
        let role = hello.role();
        // The same words for a key that is not known and for one that is for others: nobody has proven anything yet, so nobody
        // is told what a key is for.
        let known = self.keys.find(id);
        let Some((key, permissions)) = known.filter(|(_, permissions)| permissions.role.comes_as() == role)
        else {
            if let Some((_, permissions)) = known {
                tracing::debug!(%id, is = %permissions.role, comes_as = %role, "a key is for another role");
            }
            let message = format!(
                "this server does not know the secure key {id}, or not for a {role}: is it the same on both sides?"
            );
            return Err(WireError::new(Code::Unauthorized, message));
        };
        match Responder::answer(hello, key) {
            Ok(responder) => Ok(Channel::new(responder, id, permissions.clone())),
            Err(error) => {
                Err(WireError::new(Code::Unauthorized, format!("the handshake with the key {id}: {error}")))
            }
        }
    }

    /// A client without a key where one is needed: it is told in its own dialect.
    pub(super) fn refuse_plain(&mut self, conn: ConnId, now: Now) {
        let message = "this server needs a secure key: give the client the same one that the server has \
                       (--secure-key-file FILE, RINGPOST_SECURE_KEY, or .secure_key(..))";
        self.refuse_unauthorized(conn, &WireError::new(Code::Unauthorized, message), now);
    }

    fn refuse_unauthorized(&mut self, conn: ConnId, error: &WireError, now: Now) {
        if let Some(connection) = self.connections.get_mut(conn)
            && let Some(left_out) = self.unauthorized_lines.line(now.mono)
        {
            tracing::warn!(%conn, address = %connection.address, %error, left_out, "refused");
        }
        self.count(RefusalCause::Unauthorized, now);
        self.refuse(conn, error, now);
    }

    /// Those whose key is not known any more are told that their connection will end, as when the server leaves.
    fn retire_strangers(&mut self, now: Now) {
        let grace_ms = u32::try_from(self.config.drain_timeout.as_millis()).unwrap_or(u32::MAX);
        for conn in self.connections.numbers() {
            let Some(key) = self.connections.key(conn) else { continue };
            let Some(connection) = self.connections.get_mut(conn) else { continue };
            let Some(id) = connection.channel.as_ref().map(|channel| channel.key) else { continue };
            if connection.phase != Phase::Open || self.keys.find(id).is_some() {
                continue;
            }
            tracing::info!(%conn, %id, grace_ms, "its key was removed: it has to leave");
            let reason = "the server does not know this secure key any more".to_owned();
            self.send(conn, &ServerMessage::Goaway { grace_ms, reason }, now);
            self.retiring.push(now.mono, key);
        }
    }

    /// The time of those whose key was removed is over.
    pub(super) fn time_out_retiring(&mut self, now: Now) {
        while let Some(key) = self.retiring.expire(now.mono) {
            let connection = self.connections.find(key).filter(|connection| connection.phase == Phase::Open);
            let id = connection.and_then(|connection| Some(connection.channel.as_ref()?.key));
            // It may have come back meanwhile.
            if id.is_some_and(|id| self.keys.find(id).is_none()) {
                let message = "the server does not know this connection's secure key any more";
                self.refuse_unauthorized(key.conn, &WireError::new(Code::Unauthorized, message), now);
            }
        }
    }
}
