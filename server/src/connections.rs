//! What is known of each connection, and the numbers by which the core knows them.

use std::{collections::VecDeque, net::SocketAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use ringpost_broker::ConnId;
use ringpost_io::{event::Event, stream::Stream};
use ringpost_protocol::{Outgoing, dialect::ServerCodec, time::Time};

use crate::{
    channel::Channel,
    shard::{Coming, HeldBytes, TurnedAway},
    strangers::Stranger,
};

/// How far a connection's life has come. It only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Messages come and go.
    Open,
    /// What waits is still sent; what comes is thrown away. The core has forgotten it.
    Ending,
    /// All was sent and our half has ended; the peer has a moment for its own.
    Flushed,
    /// The socket is shut down.
    Gone,
}

/// A connection, from its accept until both of its tasks have ended.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: Stream,
    /// Where it comes from: the other end of the socket, or whom a PROXY header names.
    pub(crate) address: SocketAddr,
    /// It comes from a network whose connections begin with a PROXY header, and that is not there yet.
    pub(crate) awaits_header: bool,
    /// Its listener takes only connections with a key.
    pub(crate) secure: bool,
    /// How it is counted as long as it is not greeted.
    pub(crate) stranger: Option<Stranger>,
    pub(crate) codec: ServerCodec,
    /// Its records, if its client has a secure key. Boxed: most servers have only one kind of clients.
    pub(crate) channel: Option<Box<Channel>>,
    pub(crate) out: Outgoing,
    /// The latest list of receivers, as long as it was not sent.
    pub(crate) receivers: Option<Bytes>,
    /// Wakes the writer.
    pub(crate) wake: Rc<Event>,
    pub(crate) phase: Phase,
    /// It is in the list of those that the flusher wakes.
    pub(crate) dirty: bool,
    /// Its first message has come.
    pub(crate) greeted: bool,
    /// The core knows it: it was told that it opened, and not that it closed.
    pub(crate) known: bool,
    /// There is no room for it: it is only told so.
    pub(crate) turned_away: Option<TurnedAway>,
    /// Since when much waits to be sent on it, as bytes that had been sent by then.
    pub(crate) clogged: Option<(u64, Time)>,
    /// It is in the line of those that are looked at again.
    pub(crate) watched: bool,
    /// Wakes the reader when it is held back for no reason any more.
    pub(crate) relief: Rc<Event>,
    /// The large message that is half received.
    pub(crate) coming: Option<Coming>,
    /// Since when it is not read, because of a bound.
    pub(crate) held_back: Option<Time>,
    /// It is in the line of those to be told when there is memory again.
    pub(crate) in_line: bool,
    /// Messages that were taken in since the last read, before the turn that is on.
    pub(crate) taken: u32,
    /// The last read whose messages are all taken in brought more of them than one turn takes.
    pub(crate) floods: bool,
    /// Bytes of the buffer that is read into.
    pub(crate) buffer_bytes: usize,
    /// Bytes that are being written.
    pub(crate) in_flight: usize,
    /// Of these, those that are in no large buffer, which is counted elsewhere.
    pub(crate) in_flight_own: usize,
    /// What was counted of it last.
    pub(crate) counted: HeldBytes,
    /// It was too slow to read, and was told so.
    pub(crate) given_up: bool,
    /// Segments that went out while a list of receivers waited.
    pub(crate) overtaken: u8,
}

impl Connection {
    pub(crate) fn new(stream: Stream, address: SocketAddr, codec: ServerCodec) -> Self {
        Self {
            stream,
            address,
            awaits_header: false,
            secure: false,
            stranger: None,
            codec,
            channel: None,
            out: Outgoing::new(),
            receivers: None,
            wake: Rc::default(),
            phase: Phase::Open,
            dirty: false,
            greeted: false,
            known: false,
            turned_away: None,
            clogged: None,
            watched: false,
            relief: Rc::default(),
            coming: None,
            held_back: None,
            in_line: false,
            taken: 0,
            floods: false,
            buffer_bytes: 0,
            in_flight: 0,
            in_flight_own: 0,
            given_up: false,
            counted: HeldBytes::default(),
            overtaken: 0,
        }
    }
}

/// A connection's number together with the count of connections that had it: never the same twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) conn: ConnId,
    generation: u32,
}

/// All connections by number. Numbers are dense: the core and we index by them.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    slots: Vec<Slot>,
    free: Vec<u32>,
    live: usize,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

impl Connections {
    /// Without any. The first numbers are left out: they are given to what has no socket of its own here.
    pub(crate) fn behind(reserved: usize) -> Self {
        Self {
            slots: std::iter::repeat_with(Slot::default).take(reserved).collect(),
            free: Vec::new(),
            live: 0,
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn insert(&mut self, connection: Connection) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        debug_assert!(slot.connection.is_none());
        slot.connection = Some(connection);
        self.live += 1;
        Key { conn: ConnId(index), generation: slot.generation }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.slots.get_mut(conn.0 as usize)?.connection.as_mut()
    }

    /// The connection that the key was made for, unless it is gone.
    pub(crate) fn find(&mut self, key: Key) -> Option<&mut Connection> {
        let slot = self.slots.get_mut(key.conn.0 as usize)?;
        if slot.generation == key.generation { slot.connection.as_mut() } else { None }
    }

    pub(crate) fn key(&self, conn: ConnId) -> Option<Key> {
        let slot = self.slots.get(conn.0 as usize)?;
        slot.connection.as_ref().map(|_| Key { conn, generation: slot.generation })
    }

    /// Both of its tasks have ended, and the core was told: the number is free.
    pub(crate) fn remove(&mut self, conn: ConnId) -> Option<Connection> {
        let slot = self.slots.get_mut(conn.0 as usize)?;
        let connection = slot.connection.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(conn.0);
        self.live -= 1;
        Some(connection)
    }

    /// The numbers of all, in order.
    pub(crate) fn numbers(&self) -> Vec<ConnId> {
        let used = self.slots.iter().enumerate().filter(|(_, slot)| slot.connection.is_some());
        used.map(|(index, _)| ConnId(index as u32)).collect()
    }
}

/// Connections that all have the same time for something, in the order in which it will be over.
#[derive(Debug)]
pub(crate) struct Waiting {
    time: Duration,
    queue: VecDeque<(Time, Key)>,
}

impl Waiting {
    pub(crate) fn new(time: Duration) -> Self {
        Self { time, queue: VecDeque::new() }
    }

    pub(crate) fn push(&mut self, now: Time, key: Key) {
        self.queue.push_back((now + self.time, key));
    }

    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.queue.front().map(|(time, _)| *time)
    }

    /// The next whose time is over. It may long have done what it had the time for.
    pub(crate) fn expire(&mut self, now: Time) -> Option<Key> {
        if self.next_deadline()? > now {
            return None;
        }
        self.queue.pop_front().map(|(_, key)| key)
    }
}
