//! The core, the connections around it, and the turn. Nothing in here waits.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use bytes::BytesMut;
use ringpost_broker::{Broker, CloseReason, ConnId, Input, Output, Speaks};
use ringpost_io::{clock::Clock, event::Event, listener::Listener, stream::Stream};
use ringpost_protocol::{
    Code, Segment, WireError,
    dialect::{Decoded, Dialect, ServerCodec},
    json::Parser,
    message::ServerMessage,
    time::{Now, Time},
};

use crate::{
    Config,
    buffers::Buffers,
    connections::{Connection, Connections, Key, Phase, Waiting},
};

/// Connections beyond the limit that may be there at once to be told so.
const MAX_SURPLUS: usize = 64;
/// How long an ending connection may take for what still waits to be sent to it.
const FLUSH_TIME: Duration = Duration::from_secs(30);
/// How long a peer may take to end its half after we ended ours. What it sends meanwhile is read and thrown away: a
/// socket that is closed with unread bytes in it sends a reset, which can overtake our last words.
const LINGER_TIME: Duration = Duration::from_secs(1);
/// How long connections may take to end when the server leaves.
const LEAVE_TIME: Duration = Duration::from_secs(1);
/// Segments that may overtake a waiting list of receivers.
const MAX_OVERTAKEN: u8 = 64;

/// One thread's part of the server.
pub(crate) struct Shard {
    clock: Clock,
    state: RefCell<State>,
    /// Until when the timekeeper sleeps.
    armed: Cell<Time>,
    /// The turn has something for the flusher.
    pub(crate) flush: Event,
    /// There is an earlier deadline than the timekeeper knows.
    pub(crate) rearm: Event,
    /// The shard was told to leave, and its last connection is gone. Or it crashed.
    pub(crate) ended: Event,
    pub(crate) crashed: Cell<bool>,
}

struct State {
    config: Config,
    max_connections: usize,
    boot: u64,
    broker: Broker,
    connections: Connections,
    /// Those that have something to send since the last flush.
    dirty: Vec<ConnId>,
    parser: Parser,
    buffers: Buffers,
    listeners: Vec<Listener>,
    /// What the clocks showed at the first input of this turn.
    now: Option<Now>,
    handshakes: Waiting,
    flushing: Waiting,
    lingering: Waiting,
    leaving: Leaving,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    /// Until the core has nothing open any more, or until this time.
    Draining(Time),
    /// Until the last connection has ended, or until this time.
    Ending(Time),
    Gone,
}

/// What a reader does next.
pub(crate) enum NextRead {
    /// Read on; so many bytes complete what is in the buffer, as far as is known.
    Read(usize),
    /// Read on, and throw it away.
    Discard,
}

/// What a writer does next.
pub(crate) enum NextWrite {
    Write(Segment),
    Wait,
    End,
}

impl Shard {
    pub(crate) fn new(
        config: Config,
        listeners: Vec<Listener>,
        max_connections: usize,
        seeds: [u64; 2],
    ) -> Self {
        let [boot, hash_seed] = seeds;
        let state = State {
            max_connections,
            boot,
            broker: Broker::new(config.broker(boot, hash_seed)),
            connections: Connections::default(),
            dirty: Vec::new(),
            parser: Parser::new(),
            buffers: Buffers::default(),
            listeners,
            now: None,
            handshakes: Waiting::new(config.handshake_timeout),
            flushing: Waiting::new(FLUSH_TIME),
            lingering: Waiting::new(LINGER_TIME),
            leaving: Leaving::No,
            config,
        };
        Self {
            clock: Clock::start(),
            state: RefCell::new(state),
            armed: Cell::new(Time::NEVER),
            flush: Event::default(),
            rearm: Event::default(),
            ended: Event::default(),
            crashed: Cell::new(false),
        }
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Takes in a new connection, unless there are far too many: then it is closed.
    pub(crate) fn admit(&self, stream: Stream) -> Option<(ConnId, Rc<Event>)> {
        self.turn(|state, now| {
            // An accept that was under way when the listener was closed may still bring one.
            if state.leaving != Leaving::No {
                return None;
            }
            let surplus = state.connections.len() >= state.max_connections;
            if surplus && state.connections.len() >= state.max_connections + MAX_SURPLUS {
                tracing::warn!(
                    limit = state.max_connections,
                    "connection refused: max-connections, far exceeded"
                );
                return None;
            }
            if let Err(error) = stream.set_nodelay() {
                tracing::debug!(%error, "a connection was gone before it was accepted");
                return None;
            }
            let codec = ServerCodec::new(state.boot, state.config.max_payload_bytes());
            let connection = Connection::new(stream, codec, surplus);
            let wake = connection.wake.clone();
            let key = state.connections.insert(connection);
            state.handshakes.push(now.mono, key);
            Some((key.conn, wake))
        })
    }

    /// Takes in what a read brought.
    pub(crate) fn take_in(&self, conn: ConnId, buffer: &mut BytesMut) -> NextRead {
        self.turn(|state, now| {
            let next = state.take_in(conn, buffer, now);
            state.act(now);
            next
        })
    }

    /// The client has ended its half.
    pub(crate) fn half_closed(&self, conn: ConnId) {
        self.turn(|state, now| {
            let known = state.connections.get_mut(conn).is_some_and(|connection| connection.known);
            if known {
                state.broker.handle(Input::HalfClosed { conn }, now);
            } else {
                state.finish(conn, now);
            }
            state.act(now);
        });
    }

    /// The connection broke.
    pub(crate) fn lost(&self, conn: ConnId) {
        self.turn(|state, now| {
            state.lose(conn, now);
            state.act(now);
        });
    }

    /// Both tasks of the connection have ended.
    pub(crate) fn remove(&self, conn: ConnId) {
        self.turn(|state, now| {
            state.lose(conn, now);
            state.act(now);
            state.connections.remove(conn);
            tracing::debug!(%conn, "closed");
        });
        self.end_if_last();
    }

    /// What the connection's writer does now. While the turn still goes on, nothing: there may come more to send.
    pub(crate) fn next_write(&self, conn: ConnId) -> NextWrite {
        let state = &mut *self.state.borrow_mut();
        let Some(connection) = state.connections.get_mut(conn) else { return NextWrite::End };
        if connection.phase == Phase::Gone {
            return NextWrite::End;
        }
        if connection.dirty {
            return NextWrite::Wait;
        }
        if connection.receivers.is_some()
            && (connection.out.is_empty() || connection.overtaken >= MAX_OVERTAKEN)
        {
            connection.append_receivers(&mut state.parser, &mut state.buffers);
        }
        if let Some(segment) = connection.out.pop(Vec::new) {
            connection.overtaken =
                connection.overtaken.saturating_add(u8::from(connection.receivers.is_some()));
            return NextWrite::Write(segment);
        }
        if connection.phase >= Phase::Ending { NextWrite::End } else { NextWrite::Wait }
    }

    /// A segment was sent: its buffer can be used again.
    pub(crate) fn written(&self, segment: Segment) {
        if let Segment::Owned(buffer) = segment {
            self.state.borrow_mut().buffers.give_back(buffer);
        }
    }

    /// All that waited was sent on a connection that ends: our half ends here.
    pub(crate) fn flushed(&self, conn: ConnId) {
        self.turn(|state, now| {
            let Some(key) = state.connections.key(conn) else { return };
            let Some(connection) = state.connections.get_mut(conn) else { return };
            if connection.phase == Phase::Ending {
                connection.phase = Phase::Flushed;
                shut_down(connection, std::net::Shutdown::Write);
                state.lingering.push(now.mono, key);
            }
        });
    }

    /// The end of a turn: wakes the writers that have something to send.
    pub(crate) fn end_turn(&self) {
        let state = &mut *self.state.borrow_mut();
        for conn in state.dirty.drain(..) {
            if let Some(connection) = state.connections.get_mut(conn) {
                connection.dirty = false;
                connection.wake.set();
            }
        }
        state.now = None;
        if state.next_deadline().is_some_and(|deadline| deadline < self.armed.get()) {
            self.rearm.set();
        }
    }

    /// Until when the timekeeper is to sleep.
    pub(crate) fn arm(&self) -> Option<Time> {
        let deadline = self.state.borrow().next_deadline();
        self.armed.set(deadline.unwrap_or(Time::NEVER));
        deadline
    }

    /// Does what is due.
    pub(crate) fn time_out(&self) {
        self.state.borrow_mut().now = None;
        self.turn(|state, now| {
            state.broker.handle_timeout(now);
            state.act(now);
            state.time_out(now);
        });
        self.end_if_last();
    }

    /// Leaves in order: accepts nothing new, lets what is open end for as long as `grace`, then sends what waits.
    pub(crate) fn drain(&self, grace: Duration) {
        self.turn(|state, now| {
            if state.leaving != Leaving::No {
                return;
            }
            let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
            tracing::info!(grace_ms, connections = state.connections.len(), "draining");
            state.close_listeners();
            state.leaving = Leaving::Draining(now.mono + grace);
            state.broker.handle(Input::Drain { grace_ms }, now);
            state.act(now);
        });
        self.end_if_last();
    }

    /// Leaves at once: every connection is cut.
    pub(crate) fn stop(&self) {
        self.turn(|state, now| {
            state.close_listeners();
            state.leaving = Leaving::Ending(now.mono + LEAVE_TIME);
            state.lose_all(now);
        });
        self.end_if_last();
    }

    fn end_if_last(&self) {
        let state = &mut *self.state.borrow_mut();
        if matches!(state.leaving, Leaving::Ending(_)) && state.connections.len() == 0 {
            state.leaving = Leaving::Gone;
            self.ended.set();
        }
    }

    /// Runs a part of a turn. The first one of a turn reads the clocks and calls for the flusher.
    #[inline]
    fn turn<T>(&self, part: impl FnOnce(&mut State, Now) -> T) -> T {
        let state = &mut *self.state.borrow_mut();
        let now = match state.now {
            Some(now) => now,
            None => {
                self.flush.set();
                *state.now.insert(self.clock.now())
            }
        };
        part(state, now)
    }
}

impl State {
    #[inline]
    fn take_in(&mut self, conn: ConnId, buffer: &mut BytesMut, now: Now) -> NextRead {
        let Some(connection) = self.connections.get_mut(conn) else { return NextRead::Discard };
        if connection.phase != Phase::Open {
            return NextRead::Discard;
        }
        loop {
            match connection.codec.decode(&mut self.parser, buffer, &mut connection.out) {
                Ok(Decoded::Message(message)) => {
                    connection.greeted = true;
                    self.broker.handle(Input::Message { conn, message }, now);
                }
                Ok(Decoded::NeedMore) => return NextRead::Read(connection.codec.missing(buffer)),
                Ok(Decoded::Opened(dialect)) if !connection.surplus => {
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
                    tracing::debug!(%conn, peer = connection.peer(), ?speaks, "opened");
                    self.broker.handle(Input::Opened { conn, speaks }, now);
                }
                Ok(Decoded::Opened(_)) => {
                    let message = format!(
                        "this server has all the connections that it may have (max-connections = {})",
                        self.max_connections
                    );
                    tracing::warn!(%conn, peer = connection.peer(), message);
                    self.refuse(conn, &WireError::new(Code::Overloaded, message), now);
                    return NextRead::Discard;
                }
                Err(error) => {
                    tracing::debug!(%conn, peer = connection.peer(), %error, "refused");
                    self.refuse(conn, &error, now);
                    return NextRead::Discard;
                }
            }
        }
    }

    /// Does what the core says, until it has nothing more to say.
    #[inline]
    fn act(&mut self, now: Now) {
        while let Some(output) = self.broker.poll_output() {
            match output {
                Output::Send { conn, message } => self.send(conn, message, now),
                Output::Close { conn, reason } => {
                    if reason != CloseReason::Finished {
                        tracing::debug!(%conn, ?reason, "closing");
                    }
                    self.finish(conn, now);
                }
                Output::Drained => self.end_all(now),
            }
        }
    }

    #[inline]
    fn send(&mut self, conn: ConnId, message: ServerMessage, now: Now) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        if let ServerMessage::Receivers(list) = message {
            connection.receivers = Some(list);
            return mark(&mut self.dirty, conn, connection);
        }
        if connection.out.is_empty() && connection.out.tail().capacity() == 0 {
            *connection.out.tail() = self.buffers.take();
        }
        let encoded = connection.codec.encode(&message, now.wall_ms, &mut self.parser, &mut connection.out);
        let waiting = connection.out.len();
        if waiting > 0 {
            mark(&mut self.dirty, conn, connection);
        } else {
            self.buffers.give_back(std::mem::take(connection.out.tail()));
        }
        if encoded.is_err() {
            self.broker.handle(Input::Undeliverable { conn, message: Box::new(message) }, now);
        } else if waiting as u64 > self.config.outbound_limit {
            let (peer, limit) = (connection.peer(), self.config.outbound_limit);
            tracing::warn!(%conn, peer, waiting, limit, "closed: it does not read what it is sent (outbound-limit)");
            self.lose(conn, now);
        }
    }

    /// Tells a client why it is closed, and closes.
    fn refuse(&mut self, conn: ConnId, error: &WireError, now: Now) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.codec.refuse(error, &mut self.parser, &mut connection.out);
        }
        self.finish(conn, now);
    }

    /// Sends what waits, then ends the connection. For the core it is closed now.
    fn finish(&mut self, conn: ConnId, now: Now) {
        let Some(key) = self.connections.key(conn) else { return };
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if connection.phase == Phase::Open {
            connection.phase = Phase::Ending;
            connection.receivers = None;
            self.flushing.push(now.mono, key);
            mark(&mut self.dirty, conn, connection);
            self.forget(conn, now);
        }
    }

    /// Cuts the connection: what waits is dropped, and both tasks end.
    fn lose(&mut self, conn: ConnId, now: Now) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if connection.phase != Phase::Gone {
            connection.phase = Phase::Gone;
            connection.out.clear();
            connection.receivers = None;
            shut_down(connection, std::net::Shutdown::Both);
            connection.wake.set();
            self.forget(conn, now);
        }
    }

    fn forget(&mut self, conn: ConnId, now: Now) {
        if let Some(connection) = self.connections.get_mut(conn)
            && std::mem::take(&mut connection.known)
        {
            self.broker.handle(Input::Closed { conn }, now);
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        let leaving = match self.leaving {
            Leaving::Draining(deadline) | Leaving::Ending(deadline) => Some(deadline),
            Leaving::No | Leaving::Gone => None,
        };
        let ours = [&self.handshakes, &self.flushing, &self.lingering]
            .into_iter()
            .filter_map(Waiting::next_deadline);
        ours.chain(self.broker.next_deadline()).chain(leaving).min()
    }

    fn time_out(&mut self, now: Now) {
        while let Some(key) = self.handshakes.expire(now.mono) {
            if self.still(key, Phase::Open, |connection| !connection.greeted) {
                let message = format!(
                    "nothing whole was said within {:?} (handshake-timeout)",
                    self.config.handshake_timeout
                );
                tracing::debug!(conn = %key.conn, message);
                self.refuse(key.conn, &WireError::malformed(message), now);
            }
        }
        while let Some(key) = self.flushing.expire(now.mono) {
            if self.still(key, Phase::Ending, |_| true) {
                tracing::debug!(conn = %key.conn, "cut: it did not read its last messages");
                self.lose(key.conn, now);
            }
        }
        while let Some(key) = self.lingering.expire(now.mono) {
            if self.still(key, Phase::Flushed, |_| true) {
                self.lose(key.conn, now);
            }
        }
        match self.leaving {
            Leaving::Draining(deadline) if deadline <= now.mono => {
                tracing::warn!(
                    open_requests = self.broker.open_requests(),
                    "not everything ended within drain-timeout"
                );
                self.end_all(now);
            }
            Leaving::Ending(deadline) if deadline <= now.mono => {
                self.leaving = Leaving::Ending(now.mono + LEAVE_TIME);
                self.lose_all(now);
            }
            _ => {}
        }
        self.act(now);
    }

    fn still(&mut self, key: Key, phase: Phase, holds: impl FnOnce(&Connection) -> bool) -> bool {
        self.connections.find(key).is_some_and(|connection| connection.phase == phase && holds(connection))
    }

    /// Everything that was open has ended, or the time for it.
    fn end_all(&mut self, now: Now) {
        if !matches!(self.leaving, Leaving::Draining(_)) {
            return;
        }
        self.leaving = Leaving::Ending(now.mono + LEAVE_TIME);
        for conn in self.connections.numbers() {
            self.finish(conn, now);
        }
    }

    fn lose_all(&mut self, now: Now) {
        for conn in self.connections.numbers() {
            self.lose(conn, now);
        }
    }

    fn close_listeners(&mut self) {
        for listener in self.listeners.drain(..) {
            listener.close();
        }
    }
}

impl Connection {
    /// Puts the list of receivers behind what waits, in a send of its own.
    fn append_receivers(&mut self, parser: &mut Parser, buffers: &mut Buffers) {
        let Some(list) = self.receivers.take() else { return };
        self.overtaken = 0;
        self.out.seal();
        *self.out.tail() = buffers.take();
        let encoded = self.codec.encode(&ServerMessage::Receivers(list), 0, parser, &mut self.out);
        debug_assert!(encoded.is_ok(), "a list of names is JSON");
        self.out.seal();
    }
}

/// Notes that the flusher has to wake the connection's writer.
#[inline]
fn mark(dirty: &mut Vec<ConnId>, conn: ConnId, connection: &mut Connection) {
    if !connection.dirty {
        connection.dirty = true;
        dirty.push(conn);
    }
}

fn shut_down(connection: &Connection, how: std::net::Shutdown) {
    if let Err(error) = connection.stream.shutdown(how) {
        tracing::debug!(%error, "shutdown");
    }
}
