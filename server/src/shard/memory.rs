//! Bounds on what connections make us hold: one budget for all of them, and one for what each has not read yet.
//!
//! ```text
//! --memory, a quarter: large messages that are half received
//!     used up: they get no further; after 5 s the one that has been coming for longest is given up, and told so
//! --memory, the rest: everything else, whole messages above all
//!     used up: sockets are read once a second, and what would have to be held is refused
//! --outbound-limit
//!     half of it waits to be sent: no more deliveries, and the connection is read once a second
//!     all of it, or no progress for three ping intervals: the connection ends, and is told why
//! ```
//!
//! A handler that holds something is read in any case: its answers are what frees memory.

use std::{rc::Rc, time::Duration};

use ringpost_broker::{ConnId, Input, RefusalCause};
use ringpost_io::event::Event;
use ringpost_protocol::{Code, WireError, limits::MIN_COUNTED_BYTES, time::Now};

use super::{Shard, State};
use crate::connections::{Connection, Phase};

/// How long a large message waits for room before the one that has been coming for longest has to make it.
const STARVING_TIME: Duration = Duration::from_secs(5);
/// A segment that is larger goes to be sent: its buffer becomes free while others still wait.
pub(super) const MAX_SEGMENT_BYTES: usize = 256 << 10;

/// Whether a connection may be read.
pub(crate) enum MayRead {
    Now,
    /// After a while, or when there is room again.
    After(Rc<Event>),
    /// To be asked again after a while.
    NotYet,
}

impl Shard {
    /// Before a read: whether it has to wait, and how long. `allocated` is the buffer's size, of which `half_received` bytes
    /// are a message's beginning.
    #[inline]
    pub(crate) fn may_read(&self, conn: ConnId, allocated: usize, half_received: usize) -> MayRead {
        let large = half_received >= MIN_COUNTED_BYTES;
        {
            let state = &mut *self.state.borrow_mut();
            let Some(connection) = state.connections.get_mut(conn) else { return MayRead::Now };
            if connection.phase != Phase::Open {
                return MayRead::Now;
            }
            connection.buffer_bytes = allocated;
            if large && connection.coming_since.is_none() {
                connection.coming_since = Some(self.clock.now().mono);
            } else if !large {
                (connection.coming_since, connection.starving_since) = (None, None);
            }
            connection.recount(&mut state.bytes);
            state.broker.count_driver_bytes(state.bytes.whole, state.bytes.coming);
            let clogged = connection.clogged.is_some();
            let short = state.is_used_up() || (large && state.coming_is_used_up());
            if !clogged && !short {
                return MayRead::Now;
            }
        }
        self.turn(|state, now| {
            let may = state.may_read(conn, large, now);
            state.act(now);
            may
        })
    }
}

impl State {
    fn is_used_up(&self) -> bool {
        self.broker.memory_used() as u64 > self.config.memory / 4 * 3
    }

    fn coming_is_used_up(&self) -> bool {
        self.bytes.coming as u64 > self.config.memory / 4
    }

    fn may_read(&mut self, conn: ConnId, large: bool, now: Now) -> MayRead {
        let used_up = self.is_used_up();
        let waits = large && self.coming_is_used_up();
        let holds = self.broker.holds_deliveries(conn);
        let Some(connection) = self.connections.get_mut(conn) else { return MayRead::Now };
        if waits {
            let since = *connection.starving_since.get_or_insert(now.mono);
            if now.mono.since(since) >= STARVING_TIME {
                self.give_up_oldest(now);
            }
            self.broker.handle(Input::HeldBack { conn }, now);
            return MayRead::NotYet;
        }
        connection.starving_since = None;
        if holds {
            return MayRead::Now;
        }
        let relief = connection.relief.clone();
        if used_up {
            self.held_back.push(relief.clone());
        }
        self.broker.handle(Input::HeldBack { conn }, now);
        MayRead::After(relief)
    }

    /// A large message has waited for room for too long: the one that has been coming for longest is given up.
    fn give_up_oldest(&mut self, now: Now) {
        let coming = self.connections.numbers().into_iter().filter_map(|conn| {
            let connection = self.connections.get_mut(conn)?;
            let since = connection.coming_since.filter(|_| connection.phase == Phase::Open)?;
            Some((since, conn))
        });
        if let Some((_, oldest)) = coming.min() {
            self.starve(oldest, now);
        }
    }

    fn starve(&mut self, conn: ConnId, now: Now) {
        let coming = self.bytes.coming;
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let (peer, got) = (connection.peer(), connection.buffer_bytes);
        let message = format!(
            "large messages of {coming} bytes are half received, and there is no room for more (a quarter of memory): the \
             one on this connection was given up with {got} bytes; try again later"
        );
        // Its reader drops the buffer before it reads again.
        connection.buffer_bytes = 0;
        connection.recount(&mut self.bytes);
        if let Some(left_out) = self.starved_lines.line(now.mono) {
            tracing::warn!(%conn, peer, left_out, message);
        }
        self.count(RefusalCause::Starved, now);
        self.refuse(conn, &WireError::new(Code::Overloaded, message), now);
    }

    /// At the end of a turn: those that were held back are read again, once there is room.
    pub(super) fn relieve(&mut self) {
        if !self.held_back.is_empty() {
            self.broker.count_driver_bytes(self.bytes.whole, self.bytes.coming);
            if !self.is_used_up() {
                self.held_back.drain(..).for_each(|relief| relief.set());
            }
        }
    }

    /// After something was put behind what waits for a connection.
    #[inline]
    pub(super) fn check_outbound(&mut self, conn: ConnId, now: Now) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if connection.out.tail().len() > MAX_SEGMENT_BYTES {
            connection.out.seal();
        }
        let waiting = connection.waiting() as u64;
        if waiting <= self.config.outbound_limit / 2 {
            return;
        }
        if waiting > self.config.outbound_limit {
            self.give_up_on(conn, "more waits than is allowed", now);
        } else {
            self.clog(conn, now);
        }
    }

    /// The core has given much to a connection and waits for a word.
    pub(super) fn make_room(&mut self, conn: ConnId, now: Now) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if connection.waiting() as u64 <= self.config.outbound_limit / 4 {
            self.broker.handle(Input::Unclogged { conn }, now);
        } else {
            self.clog(conn, now);
        }
    }

    /// Notes that much waits on a connection, and when to look at it again.
    fn clog(&mut self, conn: ConnId, now: Now) {
        let Some(key) = self.connections.key(conn) else { return };
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if connection.clogged.is_none() {
            connection.clogged = Some(connection.stream.written_bytes());
            self.clogged.push(now.mono, key);
            self.broker.handle(Input::Clogged { conn }, now);
        }
    }

    /// The peer has read some of what waited.
    pub(super) fn check_clogged(&mut self, conn: ConnId, now: Now) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if connection.clogged.is_some() && connection.waiting() as u64 <= self.config.outbound_limit / 4 {
            connection.clogged = None;
            connection.relief.set();
            self.broker.handle(Input::Unclogged { conn }, now);
            self.act(now);
        }
    }

    /// Looks again at those that were clogged a while ago: who has read nothing since is given up.
    pub(super) fn time_out_clogged(&mut self, now: Now) {
        while let Some(key) = self.clogged.expire(now.mono) {
            let Some(connection) = self.connections.find(key) else { continue };
            let Some(before) = connection.clogged.filter(|_| connection.phase == Phase::Open) else {
                continue;
            };
            let written = connection.stream.written_bytes();
            if written == before {
                self.give_up_on(key.conn, "it has read nothing of it for three ping intervals", now);
            } else {
                connection.clogged = Some(written);
                self.clogged.push(now.mono, key);
            }
        }
    }

    /// A client that is too slow to read. It is told so behind what waits, should it still read that.
    fn give_up_on(&mut self, conn: ConnId, why: &str, now: Now) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let (peer, waiting, limit) = (connection.peer(), connection.waiting(), self.config.outbound_limit);
        let message = format!(
            "{waiting} bytes wait to be sent on this connection, and {why} (outbound-limit = {limit})"
        );
        if let Some(left_out) = self.slow_lines.line(now.mono) {
            tracing::warn!(%conn, peer, left_out, message);
        }
        connection.given_up = true;
        self.count(RefusalCause::Slow, now);
        if self.is_used_up() {
            self.lose(conn, now);
        } else {
            self.refuse(conn, &WireError::new(Code::Overloaded, message), now);
        }
    }
}

impl Connection {
    /// Bytes that wait to be sent or are on their way.
    pub(super) fn waiting(&self) -> usize {
        self.out.len() + self.in_flight
    }

    /// Brings the sums over all connections up to date.
    #[inline]
    pub(super) fn recount(&mut self, sums: &mut HeldBytes) {
        let out = self.out.own_bytes() + self.in_flight_own;
        let now = if self.coming_since.is_some() {
            HeldBytes { whole: out, coming: self.buffer_bytes }
        } else {
            HeldBytes { whole: out + self.buffer_bytes, coming: 0 }
        };
        sums.replace(self.counted, now);
        self.counted = now;
    }
}

/// What one connection, or all of them, make us hold beside what the core counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HeldBytes {
    /// Buffers to read into, and what is on its way out.
    whole: usize,
    /// Large messages that are half received.
    coming: usize,
}

impl HeldBytes {
    pub(super) fn replace(&mut self, before: Self, now: Self) {
        self.whole = self.whole + now.whole - before.whole;
        self.coming = self.coming + now.coming - before.coming;
    }
}
