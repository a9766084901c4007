//! The broker's core behind the server's codec, driven as the server drives it.

use std::collections::BTreeMap;

use bytes::BytesMut;
use ringpost_broker::{Broker, Config, ConnId, Input, Output, Speaks};
use ringpost_protocol::{
    Outgoing,
    dialect::{Decoded, Dialect, ServerCodec},
    json::Parser,
    time::Now,
};

/// What the server wants the world to do.
pub(crate) enum Effect {
    Bytes { link: usize, bytes: Vec<u8> },
    Close { link: usize },
}

pub(crate) struct Server {
    pub(crate) broker: Broker,
    boot: u64,
    connections: BTreeMap<ConnId, Connection>,
    by_link: BTreeMap<usize, ConnId>,
    free: Vec<ConnId>,
    next: u32,
    parser: Parser,
}

struct Connection {
    link: usize,
    codec: ServerCodec,
    received: BytesMut,
    outgoing: Outgoing,
    opened: bool,
    closing: bool,
}

const MAX_PAYLOAD: u32 = 1 << 20;

impl Server {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            boot: config.boot,
            broker: Broker::new(config),
            connections: BTreeMap::new(),
            by_link: BTreeMap::new(),
            free: Vec::new(),
            next: 0,
            parser: Parser::new(),
        }
    }

    pub(crate) fn accept(&mut self, link: usize) {
        let conn = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            ConnId(self.next - 1)
        });
        self.by_link.insert(link, conn);
        let codec = ServerCodec::new(self.boot, MAX_PAYLOAD);
        let (received, outgoing) = (BytesMut::new(), Outgoing::new());
        self.connections
            .insert(conn, Connection { link, codec, received, outgoing, opened: false, closing: false });
    }

    pub(crate) fn receive(&mut self, link: usize, bytes: &[u8], now: Now) -> Vec<Effect> {
        let Some(conn) = self.by_link.get(&link).copied() else { return Vec::new() };
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.received.extend_from_slice(bytes);
        }
        while let Some(input) = self.next_input(conn) {
            self.broker.handle(input, now);
            self.broker.check_invariants();
        }
        self.turn(now)
    }

    fn next_input(&mut self, conn: ConnId) -> Option<Input> {
        let connection = self.connections.get_mut(&conn).filter(|connection| !connection.closing)?;
        match connection.codec.decode(&mut self.parser, &mut connection.received, &mut connection.outgoing) {
            Ok(Decoded::Opened(dialect)) => {
                connection.opened = true;
                let speaks = if dialect == Dialect::Json { Speaks::Json } else { Speaks::Binary };
                Some(Input::Opened { conn, speaks })
            }
            Ok(Decoded::Message(message)) => Some(Input::Message { conn, message }),
            Ok(Decoded::NeedMore) => None,
            Err(error) => panic!("the peers of this simulation keep to the protocol: {error}"),
        }
    }

    /// The client's half is closed.
    pub(crate) fn half_closed(&mut self, link: usize, now: Now) -> Vec<Effect> {
        if let Some(conn) = self.opened(link) {
            self.broker.handle(Input::HalfClosed { conn }, now);
        }
        self.turn(now)
    }

    /// The link is gone.
    pub(crate) fn closed(&mut self, link: usize, now: Now) -> Vec<Effect> {
        if let Some(conn) = self.opened(link) {
            self.broker.handle(Input::Closed { conn }, now);
        }
        if let Some(conn) = self.by_link.remove(&link) {
            self.connections.remove(&conn);
            self.free.push(conn);
        }
        self.turn(now)
    }

    fn opened(&self, link: usize) -> Option<ConnId> {
        let conn = *self.by_link.get(&link)?;
        self.connections.get(&conn).filter(|connection| connection.opened).map(|_| conn)
    }

    pub(crate) fn handle_timeout(&mut self, now: Now) -> Vec<Effect> {
        self.broker.handle_timeout(now);
        self.turn(now)
    }

    /// Does what the core says, then sends what there is for each connection at once.
    fn turn(&mut self, now: Now) -> Vec<Effect> {
        let mut closing = Vec::new();
        while let Some(output) = self.broker.poll_output() {
            match output {
                Output::Send { conn, message } => {
                    let Some(connection) = self.connections.get_mut(&conn) else { continue };
                    let parser = &mut self.parser;
                    if connection
                        .codec
                        .encode(&message, now.wall_ms, parser, &mut connection.outgoing)
                        .is_err()
                    {
                        self.broker.handle(Input::Undeliverable { conn, message: Box::new(message) }, now);
                    }
                }
                Output::Close { conn, .. } => closing.push(conn),
                Output::Drained => {}
            }
        }
        self.broker.check_invariants();
        let mut effects = Vec::new();
        for connection in self.connections.values_mut().filter(|connection| !connection.outgoing.is_empty()) {
            effects.push(Effect::Bytes { link: connection.link, bytes: connection.outgoing.drain_to_vec() });
        }
        for conn in closing {
            if let Some(connection) = self.connections.get_mut(&conn) {
                connection.closing = true;
                effects.push(Effect::Close { link: connection.link });
            }
        }
        effects
    }
}
