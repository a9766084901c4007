//! How connections end, each by itself or all because the server leaves; and what is due when.

use ringpost_broker::{ConnId, Input, RefusalCause};
use ringpost_protocol::{
    WireError,
    time::{Now, Time},
};

use super::{HeldBytes, LEAVE_TIME, Leaving, State, traffic::mark};
use crate::{
    connections::{Connection, Key, Phase, Waiting},
    throttle::Throttle,
};

impl State {
    /// The core keeps the counters of all refusals, also of those that are not its own.
    pub(super) fn count(&mut self, cause: RefusalCause, now: Now) {
        self.broker.handle(Input::Refused { cause }, now);
    }

    /// Tells a client why it is closed, and closes.
    pub(super) fn refuse(&mut self, conn: ConnId, error: &WireError, now: Now) {
        if let Some(connection) = self.connections.get_mut(conn)
            && connection.phase == Phase::Open
        {
            connection.codec.refuse(error, &mut self.parser, &mut connection.out);
        }
        self.finish(conn, now);
    }

    /// Sends what waits, then ends the connection. For the core it is closed now.
    pub(super) fn finish(&mut self, conn: ConnId, now: Now) {
        let Some(key) = self.connections.key(conn) else { return self.drop_link(conn, now) };
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
    pub(super) fn lose(&mut self, conn: ConnId, now: Now) {
        let Some(connection) = self.connections.get_mut(conn) else { return };
        if connection.phase != Phase::Gone {
            cut(connection);
            self.forget(conn, now);
        }
    }

    /// Cuts every connection without a word to the core, which may be what crashed.
    pub(super) fn cut_all(&mut self) {
        self.close_listeners();
        self.cut_links();
        for conn in self.connections.numbers() {
            if let Some(connection) = self.connections.get_mut(conn) {
                connection.known = false;
                cut(connection);
            }
        }
    }

    /// Nothing of the connection is left, nor of what it made us hold.
    pub(super) fn remove(&mut self, conn: ConnId, now: Now) {
        if let Some(connection) = self.connections.remove(conn) {
            if let Some(stranger) = connection.stranger {
                self.strangers.leave(stranger);
            }
            self.turning_away -= usize::from(connection.turned_away.is_some());
            self.bytes.replace(connection.counted, HeldBytes::default());
            if let Some(coming) = connection.coming {
                self.leave_line(conn, coming, now.mono);
            }
        }
    }

    fn forget(&mut self, conn: ConnId, now: Now) {
        if let Some(connection) = self.connections.get_mut(conn)
            && std::mem::take(&mut connection.known)
        {
            self.broker.handle(Input::Closed { conn }, now);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        let leaving = match self.leaving {
            Leaving::Draining(deadline) | Leaving::Ending(deadline) => Some(deadline),
            Leaving::No | Leaving::Gone => None,
        };
        let ours = [&self.handshakes, &self.flushing, &self.lingering, &self.clogged, &self.retiring]
            .into_iter()
            .filter_map(Waiting::next_deadline);
        let lines = [
            &self.surplus_lines,
            &self.crowded_lines,
            &self.unproxied_lines,
            &self.unauthorized_lines,
            &self.slow_lines,
            &self.starved_lines,
        ];
        let lines = lines.into_iter().filter_map(Throttle::deadline);
        ours.chain(self.broker.next_deadline()).chain(self.links_deadline()).chain(leaving).chain(lines).min()
    }

    pub(super) fn time_out(&mut self, now: Now) {
        while let Some(key) = self.handshakes.expire(now.mono) {
            // Who is not read cannot say anything.
            if self
                .still(key, Phase::Open, |connection| !connection.greeted && connection.held_back.is_some())
            {
                self.handshakes.push(now.mono, key);
                continue;
            }
            if self.still(key, Phase::Open, |connection| !connection.greeted) {
                let message = format!(
                    "nothing whole was said within {:?} (handshake-timeout)",
                    self.config.handshake_timeout
                );
                tracing::debug!(conn = %key.conn, message);
                self.count(RefusalCause::Mute, now);
                self.refuse(key.conn, &WireError::malformed(message), now);
            }
        }
        while let Some(key) = self.flushing.expire(now.mono) {
            if self.still(key, Phase::Ending, |_| true) {
                tracing::debug!(conn = %key.conn, "cut: it did not read its last messages");
                if self.still(key, Phase::Ending, |connection| !connection.given_up) {
                    self.count(RefusalCause::Slow, now);
                }
                self.lose(key.conn, now);
            }
        }
        while let Some(key) = self.lingering.expire(now.mono) {
            if self.still(key, Phase::Flushed, |_| true) {
                self.lose(key.conn, now);
            }
        }
        self.time_out_clogged(now);
        self.time_out_retiring(now);
        self.time_out_links(now);
        match self.leaving {
            Leaving::Draining(deadline) if deadline <= now.mono => {
                tracing::warn!(
                    open_requests = self.broker.open_requests(),
                    "not everything ended within drain-timeout"
                );
                self.broker.handle(Input::DrainOver, now);
                // Its outputs first: they are the outcomes of what was open, and nothing is sent behind the end.
                self.act(now);
                self.end_all(now);
            }
            Leaving::Ending(deadline) if deadline <= now.mono => {
                self.leaving = Leaving::Ending(now.mono + LEAVE_TIME);
                self.lose_all(now);
            }
            _ => {}
        }
        if let Some(left_out) = self.surplus_lines.rest(now.mono) {
            tracing::warn!(
                limit = self.max_connections,
                left_out,
                "more connections refused (max-connections)"
            );
        }
        if let Some(left_out) = self.crowded_lines.rest(now.mono) {
            tracing::warn!(left_out, "more connections refused (max-unauthenticated, …-per-address)");
        }
        if let Some(left_out) = self.unproxied_lines.rest(now.mono) {
            tracing::warn!(left_out, "more connections refused (proxy-from)");
        }
        if let Some(left_out) = self.slow_lines.rest(now.mono) {
            let limit = self.config.outbound_limit;
            tracing::warn!(limit, left_out, "more connections closed that do not read (outbound-limit)");
        }
        if let Some(left_out) = self.unauthorized_lines.rest(now.mono) {
            tracing::warn!(left_out, "more connections refused that have not the right secure key");
        }
        if let Some(left_out) = self.starved_lines.rest(now.mono) {
            tracing::warn!(left_out, "more connections closed within large messages (memory)");
        }
        self.act(now);
    }

    fn still(&mut self, key: Key, phase: Phase, holds: impl FnOnce(&Connection) -> bool) -> bool {
        self.connections.find(key).is_some_and(|connection| connection.phase == phase && holds(connection))
    }

    /// Everything that was open has ended, or the time for it.
    pub(super) fn end_all(&mut self, now: Now) {
        if !matches!(self.leaving, Leaving::Draining(_)) {
            return;
        }
        self.leaving = Leaving::Ending(now.mono + LEAVE_TIME);
        for conn in self.connections.numbers() {
            self.finish(conn, now);
        }
        self.end_links(now);
    }

    pub(super) fn lose_all(&mut self, now: Now) {
        self.cut_links();
        for conn in self.connections.numbers() {
            self.lose(conn, now);
        }
    }

    pub(super) fn close_listeners(&mut self) {
        for listener in self.listeners.drain(..) {
            listener.close();
        }
    }
}

fn cut(connection: &mut Connection) {
    connection.phase = Phase::Gone;
    connection.out.clear();
    connection.receivers = None;
    shut_down(connection, std::net::Shutdown::Both);
    connection.wake.set();
    connection.relief.set();
}

pub(super) fn shut_down(connection: &Connection, how: std::net::Shutdown) {
    if let Err(error) = connection.stream.shutdown(how) {
        tracing::debug!(%error, "shutdown");
    }
}
