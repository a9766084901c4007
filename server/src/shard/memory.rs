//! Bounds on what connections make us hold: one budget for all of them, and one for what each has not read yet.
//!
//! ```text
//! --memory, a quarter: large messages that are half received
//!     used up: only the one that has been coming for longest gets further; if it does not for 5 s, it is given up, and
//!     told so
//! --memory, the rest: everything else, whole messages above all
//!     used up: sockets are read once a second, and what would have to be held is refused
//! --outbound-limit
//!     half of it waits to be sent: no more deliveries, and the connection is read once a second
//!     all of it, or no progress for three ping intervals: the connection ends, and is told why
//! ```
//!
//! A handler that holds something is read in any case: its answers are what frees memory.

use std::{collections::BTreeSet, rc::Rc, time::Duration};

use ringpost_broker::{ConnId, Input, RefusalCause};
use ringpost_io::event::Event;
use ringpost_protocol::{
    Code, WireError,
    limits::MIN_COUNTED_BYTES,
    time::{Now, Time},
};

use super::{Shard, State};
use crate::connections::{Connection, Phase};

/// How long the large message that has been coming for longest may stand still while others wait for its room.
const STARVING_TIME: Duration = Duration::from_secs(5);
/// A segment that is larger goes to be sent: its buffer becomes free while others still wait.
pub(super) const MAX_SEGMENT_BYTES: usize = 256 << 10;

/// Whether a connection may be read.
pub(crate) enum MayRead {
    Now,
    /// After a while, or when there is room again.
    After(Rc<Event>),
    /// To be asked again after a while, or when its turn may have come.
    NotYet(Rc<Event>),
}

impl Shard {
    /// The buffer that the next read goes into.
    #[inline]
    pub(crate) fn count_buffer(&self, conn: ConnId, allocated: usize) {
        let state = &mut *self.state.borrow_mut();
        if let Some(connection) = state.connections.get_mut(conn)
            && connection.phase == Phase::Open
        {
            connection.buffer_bytes = allocated;
            connection.recount(&mut state.bytes);
        }
    }

    /// A write failed. A peer that keeps its window closed for too long is cut off by the kernel: that is no lost peer, but
    /// one that does not read.
    pub(crate) fn lost_writing(&self, conn: ConnId, error: &std::io::Error) {
        self.turn(|state, now| {
            if error.kind() == std::io::ErrorKind::TimedOut {
                if let Some(left_out) = state.slow_lines.line(now.mono) {
                    tracing::warn!(%conn, left_out, "lost: it did not read what it was sent, or was not there any more");
                }
                state.count(RefusalCause::Slow, now);
            } else {
                tracing::debug!(%conn, %error, "lost");
            }
            state.lose(conn, now);
            state.act(now);
        });
    }

    /// Before a read: whether it has to wait, and how long. `allocated` is the buffer's size, of which `half_received` bytes
    /// are a message's beginning.
    #[inline]
    pub(crate) fn may_read(&self, conn: ConnId, allocated: usize, half_received: usize) -> MayRead {
        let large = half_received >= MIN_COUNTED_BYTES;
        {
            let state = &mut *self.state.borrow_mut();
            let links = state.links_bytes();
            let Some(connection) = state.connections.get_mut(conn) else { return MayRead::Now };
            if connection.phase != Phase::Open {
                return MayRead::Now;
            }
            connection.buffer_bytes = allocated;
            let mut complete = None;
            if large {
                connection.comes(conn, half_received, self.clock.now().mono, &mut state.line);
            } else {
                complete = connection.coming.take();
            }
            connection.held_back = None;
            connection.recount(&mut state.bytes);
            state.broker.count_driver_bytes(state.bytes.whole + links, state.bytes.coming);
            let clogged = connection.clogged.is_some();
            if let Some(coming) = complete {
                state.leave_line(conn, coming, self.clock.now().mono);
            }
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
        let waits = large && self.coming_is_used_up() && !self.is_first_to_come(conn, now);
        let holds = self.broker.holds_deliveries(conn);
        let Some(connection) = self.connections.get_mut(conn).filter(|it| it.phase == Phase::Open) else {
            return MayRead::Now;
        };
        if holds && !waits {
            return MayRead::Now;
        }
        if !waits && !used_up && connection.clogged.is_none() {
            return MayRead::Now;
        }
        connection.held_back = Some(now.mono);
        let relief = connection.relief.clone();
        if used_up && !std::mem::replace(&mut connection.in_line, true) {
            self.held_back.extend(self.connections.key(conn));
        }
        self.broker.handle(Input::HeldBack { conn }, now);
        if waits { MayRead::NotYet(relief) } else { MayRead::After(relief) }
    }

    /// Whether this connection's large message has been coming for longer than all others: it may go on, or none would ever
    /// be complete. One that is first and does not go on is given up.
    fn is_first_to_come(&mut self, conn: ConnId, now: Now) -> bool {
        while let Some((first, turn_since)) = self.line.first(now.mono) {
            if first == conn {
                return true;
            }
            // One that is on its way out will not go on, and need not be waited for.
            let connection = self.connections.get_mut(first).filter(|it| it.phase == Phase::Open);
            match connection.and_then(|it| it.coming) {
                Some(coming) if now.mono.since(coming.progress_at.max(turn_since)) < STARVING_TIME => {
                    return false;
                }
                Some(coming) => self.starve(first, coming, now),
                None => self.line.pop_first(),
            }
        }
        false
    }

    /// A large message does not come any more, or is complete: the next one in line has its turn.
    pub(super) fn leave_line(&mut self, conn: ConnId, coming: Coming, now: Time) {
        self.line.leave(conn, coming);
        if let Some((first, _)) = self.line.first(now)
            && let Some(next) = self.connections.get_mut(first)
        {
            next.relief.set();
        }
    }

    fn starve(&mut self, conn: ConnId, place: Coming, now: Now) {
        let coming = self.bytes.coming;
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let (address, got) = (connection.address, connection.buffer_bytes);
        let message = format!(
            "large messages of {coming} bytes are half received, and there is no room for more (a quarter of memory): the \
             one on this connection was given up with {got} bytes; try again later"
        );
        // Its reader throws away what it gets by the read that is under way, and the buffer.
        (connection.buffer_bytes, connection.coming) = (0, None);
        connection.recount(&mut self.bytes);
        self.leave_line(conn, place, now.mono);
        if let Some(left_out) = self.starved_lines.line(now.mono) {
            tracing::warn!(%conn, %address, left_out, message);
        }
        self.count(RefusalCause::Starved, now);
        self.refuse(conn, &WireError::new(Code::Overloaded, message), now);
    }

    /// At the end of a turn: those that were held back are read again, once there is room.
    pub(super) fn relieve(&mut self) {
        if !self.held_back.is_empty() {
            self.broker.count_driver_bytes(self.bytes.whole + self.links_bytes(), self.bytes.coming);
            if !self.is_used_up() {
                for key in self.held_back.drain(..) {
                    if let Some(connection) = self.connections.find(key) {
                        connection.in_line = false;
                        connection.relief.set();
                    }
                }
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
        let Some(connection) = self.connections.get_mut(conn) else {
            return self.make_room_on_link(conn, now);
        };
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
            connection.clogged = Some((connection.stream.written_bytes(), now.mono));
            // One entry for each connection: it may be there still, of a time before.
            if !std::mem::replace(&mut connection.watched, true) {
                self.clogged.push(now.mono, key);
            }
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
            connection.watched = false;
            let Some((before, since)) = connection.clogged.filter(|_| connection.phase == Phase::Open) else {
                continue;
            };
            let written = connection.stream.written_bytes();
            if written == before && now.mono.since(since) >= self.config.ping_interval * 3 {
                self.give_up_on(key.conn, "it has read nothing of it for three ping intervals", now);
                continue;
            }
            if written != before {
                connection.clogged = Some((written, now.mono));
            }
            connection.watched = true;
            self.clogged.push(now.mono, key);
        }
    }

    /// A client that is too slow to read. It is told so behind what waits, should it still read that.
    fn give_up_on(&mut self, conn: ConnId, why: &str, now: Now) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        let (address, waiting, limit) =
            (connection.address, connection.waiting(), self.config.outbound_limit);
        let message = format!(
            "{waiting} bytes wait to be sent on this connection, and {why} (outbound-limit = {limit})"
        );
        if let Some(left_out) = self.slow_lines.line(now.mono) {
            tracing::warn!(%conn, %address, left_out, message);
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
    /// A large message is coming, of which so much is here.
    fn comes(&mut self, conn: ConnId, bytes: usize, now: Time, line: &mut Line) {
        let coming = self.coming.get_or_insert_with(|| {
            line.waiting.insert((now, conn));
            Coming { since: now, bytes: 0, progress_at: now }
        });
        if bytes > coming.bytes {
            (coming.bytes, coming.progress_at) = (bytes, now);
        }
    }

    /// Bytes that wait to be sent or are on their way.
    pub(super) fn waiting(&self) -> usize {
        self.out.len() + self.in_flight + self.channel.as_ref().map_or(0, |channel| channel.waiting())
    }

    /// Brings the sums over all connections up to date.
    #[inline]
    pub(super) fn recount(&mut self, sums: &mut HeldBytes) {
        let sealing = self.channel.as_ref().map_or(0, |channel| channel.own_bytes());
        let out = self.out.own_bytes() + self.in_flight_own + sealing;
        let now = if self.coming.is_some() {
            HeldBytes { whole: out, coming: self.buffer_bytes }
        } else {
            HeldBytes { whole: out + self.buffer_bytes, coming: 0 }
        };
        sums.replace(self.counted, now);
        self.counted = now;
    }
}

/// A large message that is half received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coming {
    since: Time,
    bytes: usize,
    /// When the last of them came.
    progress_at: Time,
}

/// Large messages that are half received, by the time at which they began.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: BTreeSet<(Time, ConnId)>,
    /// Which of them is first, and since when.
    turn: Option<((Time, ConnId), Time)>,
}

impl Line {
    /// Whose turn it is, and since when.
    fn first(&mut self, now: Time) -> Option<(ConnId, Time)> {
        let first = *self.waiting.first()?;
        let turn = self.turn.filter(|(its, _)| *its == first).unwrap_or((first, now));
        self.turn = Some(turn);
        Some((first.1, turn.1))
    }

    fn leave(&mut self, conn: ConnId, coming: Coming) {
        self.waiting.remove(&(coming.since, conn));
    }

    fn pop_first(&mut self) {
        self.waiting.pop_first();
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
