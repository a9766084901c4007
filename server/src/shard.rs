//! The core, the connections around it, and the turn. Nothing in here waits.

mod arriving;
mod ending;
mod links;
mod log;
mod memory;
mod secure;
mod traffic;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    time::Duration,
};

use bytes::BytesMut;
use ringpost_broker::{Broker, ConnId, Input, Read};
use ringpost_io::{clock::Clock, event::Event, listener::Listener};
use ringpost_protocol::{
    Segment,
    json::Parser,
    message::ServerMessage,
    time::{Now, Time},
};

pub(crate) use self::{
    arriving::TurnedAway,
    links::{LinkNext, LinkWrite, Linked},
    log::LogAtStart,
    memory::{Coming, HeldBytes, MayRead},
};
use crate::{
    Config,
    buffers::Buffers,
    connections::{Connection, Connections, Key, Phase, Waiting},
    keys::Keyring,
    peer::{Link, LinkSettings},
    storage::{LogFiles, StorageError},
    strangers::Strangers,
    throttle::Throttle,
};

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
    /// The log may have something to do.
    pub(crate) log: Event,
    /// The log was told to stop, and has.
    pub(crate) log_stopped: Event,
    /// The log does not work any more.
    pub(crate) log_failed: Cell<bool>,
    /// The log could not be read.
    pub(crate) log_unusable: RefCell<Option<StorageError>>,
    /// Keeps others out of the log's directory.
    pub(crate) lock: RefCell<Option<LogFiles>>,
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
    /// Those that have not been greeted.
    strangers: Strangers,
    /// Connections that are only there to be told that there is no room for them.
    turning_away: usize,
    /// Lines about strangers beyond their limits.
    crowded_lines: Throttle,
    /// Lines about connections without a PROXY header that should have one.
    unproxied_lines: Throttle,
    /// Lines about connections beyond the limit.
    surplus_lines: Throttle,
    /// Lines about connections that do not read.
    slow_lines: Throttle,
    /// Lines about connections that ended within a large message.
    starved_lines: Throttle,
    /// Lines about connections without the right key.
    unauthorized_lines: Throttle,
    /// The secure keys that are known now.
    keys: Keyring,
    /// Connections whose key is not known any more.
    retiring: Waiting,
    /// Clogged connections, to be looked at again.
    clogged: Waiting,
    /// Those that are held back because memory is short.
    held_back: Vec<Key>,
    /// Large messages that are half received.
    line: memory::Line,
    /// What all connections hold.
    bytes: HeldBytes,
    /// What is to be read from the log.
    reads: VecDeque<Read>,
    /// To other servers. The first connections' numbers are theirs.
    links: Vec<Linked>,
    /// Lines about reads of the log that were put off.
    unavailable_lines: Throttle,
    /// What the log has cannot be read, and no longer waited for: the server is to end.
    log_out_of_reach: bool,
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
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NextRead {
    /// Read on; so many bytes complete what is in the buffer, as far as is known.
    Read(usize),
    /// The same of a connection that has not said who it is: by reads that stay small.
    Greeting(usize),
    /// There is more in the buffer: take it in when others have had their turn.
    Later,
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
        seeds: [u64; 3],
        keys: Keyring,
        log: LogAtStart,
    ) -> Self {
        let [boot, hash_seed, strangers_seed] = seeds;
        let clock = Clock::start();
        let (broker, lock) = Self::broker(&config, boot, hash_seed, log, clock.now());
        let links: Vec<_> = (0..config.peers.len())
            .map(|index| Linked::new(Link::new(link_settings(&config, index, seeds))))
            .collect();
        let state = State {
            max_connections,
            boot,
            broker,
            connections: Connections::behind(links.len()),
            dirty: Vec::new(),
            parser: Parser::new(),
            buffers: Buffers::default(),
            listeners,
            now: None,
            handshakes: Waiting::new(config.handshake_timeout),
            flushing: Waiting::new(FLUSH_TIME),
            lingering: Waiting::new(LINGER_TIME),
            leaving: Leaving::No,
            strangers: Strangers::new(
                config.max_unauthenticated,
                config.max_unauthenticated_per_address,
                strangers_seed,
            ),
            turning_away: 0,
            crowded_lines: Throttle::default(),
            unproxied_lines: Throttle::default(),
            surplus_lines: Throttle::default(),
            slow_lines: Throttle::default(),
            starved_lines: Throttle::default(),
            unauthorized_lines: Throttle::default(),
            keys,
            retiring: Waiting::new(config.drain_timeout),
            clogged: Waiting::new(config.ping_interval * 3),
            held_back: Vec::new(),
            line: memory::Line::default(),
            bytes: HeldBytes::default(),
            reads: VecDeque::new(),
            links,
            unavailable_lines: Throttle::default(),
            log_out_of_reach: false,
            config,
        };
        Self {
            clock,
            state: RefCell::new(state),
            armed: Cell::new(Time::NEVER),
            flush: Event::default(),
            rearm: Event::default(),
            ended: Event::default(),
            crashed: Cell::new(false),
            log: Event::default(),
            log_stopped: Event::default(),
            log_failed: Cell::new(false),
            log_unusable: RefCell::new(None),
            lock: RefCell::new(lock),
        }
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Takes in what a read brought.
    pub(crate) fn take_in(&self, conn: ConnId, buffer: &mut BytesMut) -> NextRead {
        self.turn(|state, now| {
            let next = state.take_in(conn, buffer, now);
            state.act(now);
            next
        })
    }

    /// The client has ended its half. What the buffer still has is no whole message.
    pub(crate) fn half_closed(&self, conn: ConnId, buffer: &[u8]) {
        self.turn(|state, now| {
            // Of one that is ending what still comes is not read, and so not its last record either.
            let connection = state.connections.get_mut(conn).filter(|it| it.phase == Phase::Open);
            let channel = connection.and_then(|it| it.channel.as_ref());
            if channel.is_some_and(|channel| !channel.incoming.has_ended()) {
                tracing::debug!(%conn, "cut off: the stream ended without the record that ends it");
                state.lose(conn, now);
                return state.act(now);
            }
            if !buffer.is_empty() {
                state.refuse_truncated(conn, buffer, now);
                return state.act(now);
            }
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
            state.remove(conn, now);
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
        let ending = connection.phase >= Phase::Ending;
        let next = match &mut connection.channel {
            None => connection.out.pop(Vec::new),
            Some(channel) => channel
                .next(&mut connection.out, &mut state.buffers)
                .or_else(|| if ending { channel.end() } else { None }),
        };
        if let Some(segment) = next {
            (connection.in_flight, connection.in_flight_own) = (segment.as_ref().len(), segment.own_bytes());
            connection.overtaken =
                connection.overtaken.saturating_add(u8::from(connection.receivers.is_some()));
            return NextWrite::Write(segment);
        }
        if ending { NextWrite::End } else { NextWrite::Wait }
    }

    /// A segment was sent: its buffer can be used again.
    pub(crate) fn written(&self, conn: ConnId, segment: Segment) {
        let mut clogged = false;
        {
            let state = &mut *self.state.borrow_mut();
            if let Segment::Owned(buffer) = segment {
                state.buffers.give_back(buffer);
            }
            if let Some(connection) = state.connections.get_mut(conn) {
                (connection.in_flight, connection.in_flight_own) = (0, 0);
                connection.recount(&mut state.bytes);
                clogged = connection.clogged.is_some();
            }
        }
        if clogged {
            self.turn(|state, now| state.check_clogged(conn, now));
        }
    }

    /// All that waited was sent on a connection that ends: our half ends here.
    pub(crate) fn flushed(&self, conn: ConnId) {
        self.turn(|state, now| {
            let Some(key) = state.connections.key(conn) else { return };
            let Some(connection) = state.connections.get_mut(conn) else { return };
            if connection.phase == Phase::Ending {
                connection.phase = Phase::Flushed;
                ending::shut_down(connection, std::net::Shutdown::Write);
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
                connection.recount(&mut state.bytes);
            }
        }
        state.wake_links();
        state.relieve();
        state.now = None;
        if state.broker.log().is_some_and(|log| log.waiting_bytes() > 0) || !state.reads.is_empty() {
            self.log.set();
        }
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
            state.end_links(now);
            state.lose_all(now);
        });
        self.end_if_last();
    }

    /// After a crash: every connection is cut, and nothing else is done.
    pub(crate) fn cut_all(&self) {
        self.state.borrow_mut().cut_all();
    }

    fn end_if_last(&self) {
        let state = &mut *self.state.borrow_mut();
        let over = state.connections.len() == 0 && state.links_are_over();
        if matches!(state.leaving, Leaving::Ending(_)) && over {
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

fn link_settings(config: &Config, index: usize, seeds: [u64; 3]) -> LinkSettings {
    let [boot, _, seed] = seeds;
    LinkSettings {
        conn: ConnId(index as u32),
        server_id: config.id.clone(),
        boot,
        address: config.peers[index].address.clone(),
        action: config.peers[index].action.clone(),
        credit: config.peer_credit,
        seed: seed.wrapping_add(index as u64),
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

#[cfg(test)]
mod tests {
    use std::{io::Read, net::TcpStream, rc::Rc};

    use ringpost_io::{
        clock,
        ring::{self, RingConfig},
        stream::Stream,
    };

    use super::*;
    use crate::tasks;

    /// Clients of a shard that crashed see the end of their connection, and nothing is left in the ring.
    #[test]
    fn a_crash_cuts_every_connection() {
        let mut client = ring::run(&RingConfig { entries: 8, ..RingConfig::default() }, async {
            let listener = Listener::bind(([127, 0, 0, 1], 0).into(), 8).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let shard = Rc::new(Shard::new(
                Config::default(),
                vec![listener.clone()],
                8,
                [1, 2, 3],
                Keyring::default(),
                LogAtStart::None,
            ));
            ring::spawn(tasks::accept(shard.clone(), listener, false));
            ring::spawn(tasks::flush(shard.clone()));
            while shard.state.borrow().connections.len() == 0 {
                clock::sleep(Duration::from_millis(1)).await;
            }
            shard.cut_all();
            client
        })
        .unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    }

    /// A flood from one client is taken in piece by piece, and all of it; the pieces are smaller as long as it goes on.
    #[test]
    fn a_flood_is_taken_in_pieces() {
        ring::run(&RingConfig { entries: 8, ..RingConfig::default() }, async {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let shard =
                Shard::new(Config::default(), Vec::new(), 8, [1, 2, 3], Keyring::default(), LogAtStart::None);
            let (conn, _) = shard.admit(Stream::from_std(listener.accept().unwrap().0), false).unwrap();
            let pieces = |messages| {
                let mut buffer = BytesMut::from("{\"action\":\"ping\"}\n".repeat(messages).as_bytes());
                let mut pieces = 1;
                while shard.take_in(conn, &mut buffer) == NextRead::Later {
                    shard.end_turn();
                    pieces += 1;
                }
                assert!(buffer.is_empty());
                pieces
            };
            let (first, again) = (pieces(1000), pieces(1000));
            assert!(first > 2 && again > 5 * first, "{first} pieces, then {again}");
            assert!(pieces(100) > 1);
            assert_eq!(pieces(100), 1);
            assert_eq!(shard.state.borrow().broker.pending_outputs(), 0);
        })
        .unwrap();
    }
}
