//! The time in which the log is still being read: plain requests are served, and nobody can be told anything that the log might
//! contradict.
//!
//! ```text
//! recovering ── the log is read ──> what it has is put back among what is there ──> serving
//!     │ durable requests: `recovering`
//!     └ hellos that may be known to the log, and names that JSON clients give themselves: `recovering`, and the connection ends
//! ```
//!
//! A session that is entered meanwhile is new, so nothing in the log is its own. What tells it from others is its name, 128 random
//! bits as clients draw them, on the client's first connection. Who chose a name that only looks so loses its connection when the
//! log is read, and comes back.

use std::collections::BTreeSet;

use bytes::Bytes;
use ringpost_protocol::{Code, message::Speaker, time::Now};

use super::{Journal, Restore};
use crate::{Broker, ConnId, log::Writer, slab::Key};

/// A random name: 128 bits in hexadecimal.
const RANDOM_NAME_BYTES: usize = 32;

pub(crate) const MESSAGE: &str = "the server is reading its log after a start: try again soon";

impl Broker {
    /// The log has been read: what it has is put back, and durable requests are taken from now on.
    pub fn recovered(&mut self, writer: Writer, log_id: u64, restore: Restore, highest_count: u64, now: Now) {
        self.now = now;
        self.config.log_id = log_id;
        self.journal = Some(Journal::new(writer));
        self.send_away(restore.sessions());
        self.restore(restore, highest_count, now);
        self.recovering = false;
        // What expired while nobody was there is for no handler.
        self.let_time_pass();
        // Handlers may have come before what they are for.
        let actions: Vec<_> = self.actions.iter().map(|(key, _)| key).collect();
        for action in actions {
            self.dispatch(action);
        }
    }

    /// Whether a hello may be of one whom the log knows, while that is being read.
    pub(crate) fn may_be_in_log(&self, name: &Bytes, speaker: Speaker) -> bool {
        let is_random = name.len() == RANDOM_NAME_BYTES
            && name.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        self.recovering && !name.is_empty() && !(is_random && speaker.connection == 1)
    }

    pub(crate) fn refuse_as_recovering(&mut self, conn: ConnId) {
        self.counters.refused_recovering += 1;
        self.refuse_connection(conn, Code::Recovering, MESSAGE.to_owned());
        self.end_connection(conn);
    }

    /// Ends the sessions of those whose names the log has after all.
    fn send_away(&mut self, names: BTreeSet<Bytes>) {
        for name in &names {
            let Some(key) = self.session_by_name.get(name).copied() else { continue };
            if let Some(conn) = self.sessions.get(key).and_then(|session| session.conn) {
                self.refuse_as_recovering(conn);
            }
            if self.sessions.contains(key) {
                self.end_session(key);
            }
        }
        let others: Vec<Key<_>> =
            names.iter().filter_map(|name| self.session_by_name.get(name).copied()).collect();
        assert!(others.is_empty(), "sessions of the log are disjoint from those that came while it was read");
    }
}
