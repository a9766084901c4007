//! Messages on their way: out of a read into the core, and out of the core into what waits to be sent.

use bytes::BytesMut;
use ringpost_broker::{CloseReason, ConnId, Input, Output, RefusalCause};
use ringpost_protocol::{
    WireError,
    dialect::{Decoded, Dialect},
    frame::Preface,
    message::ServerMessage,
    time::Now,
};

use super::{NextRead, State};
use crate::connections::{Connection, Phase};

/// Messages of one connection that are taken in before others have their turn. No figure gains by more.
const MAX_MESSAGES: u32 = 256;
/// The same for a connection that last had more than that to say: others then wait for a few of its messages, not for many.
const MAX_MESSAGES_OF_A_FLOOD: u32 = 32;
/// The same for what follows from them: one broadcast can be a delivery to each of many handlers.
const MAX_OUTPUTS: usize = 1024;

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// It waits to be sent, or the connection is on its way out.
    Done,
    /// It is for a JSON client and is not JSON: nothing was written.
    NotJson,
}

impl State {
    /// Takes in whole messages from the buffer, up to a bound: a flood from one client must not make others wait.
    #[inline]
    pub(super) fn take_in(&mut self, conn: ConnId, buffer: &mut BytesMut, now: Now) -> NextRead {
        let Some(connection) = self.connections.get_mut(conn) else { return NextRead::Discard };
        if connection.phase != Phase::Open {
            return NextRead::Discard;
        }
        let has_records = connection.channel.is_some();
        if !connection.greeted
            && let Some(next) = self.arrive(conn, buffer, now)
        {
            return next;
        }
        if has_records {
            return self.take_in_records(conn, buffer, now);
        }
        self.take_in_messages(conn, buffer, now)
    }

    /// The same for what needs no opening any more.
    #[inline]
    pub(super) fn take_in_messages(&mut self, conn: ConnId, buffer: &mut BytesMut, now: Now) -> NextRead {
        let Some(mut connection) = self.connections.get_mut(conn) else { return NextRead::Discard };
        let most = if connection.floods { MAX_MESSAGES_OF_A_FLOOD } else { MAX_MESSAGES };
        let mut taken = 0;
        loop {
            match connection.codec.decode(&mut self.parser, buffer, &mut connection.out) {
                Ok(Decoded::Message(message)) => {
                    if !std::mem::replace(&mut connection.greeted, true)
                        && let Some(stranger) = connection.stranger.take()
                    {
                        self.strangers.leave(stranger);
                    }
                    self.broker.handle(Input::Message { conn, message }, now);
                    taken += 1;
                    let enough = taken >= most || self.broker.pending_outputs() >= MAX_OUTPUTS;
                    if enough && !buffer.is_empty() {
                        connection.taken += taken;
                        return NextRead::Later;
                    }
                }
                Ok(Decoded::NeedMore) => {
                    if taken == 0 && connection.known {
                        self.broker.handle(Input::Heard { conn }, now);
                    }
                    connection.floods = std::mem::take(&mut connection.taken) + taken >= MAX_MESSAGES;
                    let missing = connection.codec.missing(buffer);
                    return match connection.greeted {
                        true => NextRead::Read(missing),
                        false => NextRead::Greeting(missing),
                    };
                }
                Ok(Decoded::Opened(dialect)) => {
                    if !self.open(conn, dialect, now) {
                        return NextRead::Discard;
                    }
                    let Some(opened) = self.connections.get_mut(conn) else { return NextRead::Discard };
                    connection = opened;
                }
                Ok(Decoded::Secure(hello)) => return self.shake_hands(conn, &hello, buffer, now),
                Err(error) => {
                    self.refuse_unreadable(conn, &error, now);
                    return NextRead::Discard;
                }
            }
        }
    }

    /// The client ended its half within something.
    pub(super) fn refuse_truncated(&mut self, conn: ConnId, begun: &[u8], now: Now) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        let within = match connection.codec.dialect() {
            Some(Dialect::Binary) => "a frame",
            Some(Dialect::Json) => "an object",
            None if connection.awaits_header => "the PROXY header",
            None if Preface::MAGIC.starts_with(&begun[..begun.len().min(Preface::MAGIC.len())]) => {
                "the preface"
            }
            None => "the first message",
        };
        let message = format!("the stream ended within {within}, of which {} bytes had come", begun.len());
        self.refuse_unreadable(conn, &WireError::malformed(message), now);
    }

    /// What came on this connection cannot be read.
    pub(super) fn refuse_unreadable(&mut self, conn: ConnId, error: &WireError, now: Now) {
        if let Some(connection) = self.connections.get_mut(conn) {
            tracing::debug!(%conn, address = %connection.address, %error, "refused");
        }
        // First the answers to what came before it: nothing is sent behind a refusal.
        self.act(now);
        self.count(RefusalCause::Unreadable, now);
        self.refuse(conn, error, now);
    }

    /// Does what the core says, until it has nothing more to say.
    #[inline]
    pub(super) fn act(&mut self, now: Now) {
        while let Some(output) = self.broker.poll_output() {
            match &output {
                Output::Send { conn, message } => {
                    if self.send(*conn, message, now) == Sent::NotJson
                        && let Output::Send { conn, message } = output
                    {
                        self.broker.handle(Input::Undeliverable { conn, message: Box::new(message) }, now);
                    }
                }
                Output::Close { conn, reason } => {
                    if *reason != CloseReason::Finished {
                        tracing::debug!(%conn, ?reason, "closing");
                    }
                    self.finish(*conn, now);
                }
                Output::Full { conn } => self.make_room(*conn, now),
                Output::Read(read) => self.reads.push_back(*read),
                Output::PeersChanged => self.peers_changed(now),
                Output::Unreadable(what) => self.report_unreadable(what),
                Output::Unavailable(what) => self.report_unavailable(what, now),
                Output::Drained => self.end_all(now),
            }
        }
    }

    /// Encodes a message behind what waits. By reference: a message is some 200 bytes, and each move copies them.
    #[inline]
    pub(super) fn send(&mut self, conn: ConnId, message: &ServerMessage, now: Now) -> Sent {
        let Some(connection) = self.connections.get_mut(conn) else {
            self.send_to_link(conn, message, now);
            return Sent::Done;
        };
        if connection.phase != Phase::Open {
            return Sent::Done;
        }
        if let ServerMessage::Receivers(list) = message {
            connection.receivers = Some(list.clone());
            mark(&mut self.dirty, conn, connection);
            return Sent::Done;
        }
        if connection.out.tail().capacity() == 0 {
            *connection.out.tail() = self.buffers.take();
        }
        let encoded = connection.codec.encode(message, now.wall_ms, &mut self.parser, &mut connection.out);
        let waiting = connection.out.len();
        if waiting > 0 {
            mark(&mut self.dirty, conn, connection);
        } else {
            self.buffers.give_back(std::mem::take(connection.out.tail()));
        }
        self.check_outbound(conn, now);
        if encoded.is_ok() { Sent::Done } else { Sent::NotJson }
    }
}

/// Notes that the flusher has to wake the connection's writer.
#[inline]
pub(super) fn mark(dirty: &mut Vec<ConnId>, conn: ConnId, connection: &mut Connection) {
    if !connection.dirty {
        connection.dirty = true;
        dirty.push(conn);
    }
}
