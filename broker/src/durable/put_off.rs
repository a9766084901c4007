//! What cannot be read from the log for now: for want of memory or descriptors, or because its file is out of reach.
//!
//! That says nothing of what is there, so nobody's request ends by it: what was asked for is asked for again, after a pause that
//! doubles. If it has been in vain for [`GIVE_UP_AFTER`], people have to do something about it, and the server ends rather than
//! to keep what it has accepted from everybody ([`Output::Unavailable`]). Nothing is lost by that: it is all in the log.

use std::time::Duration;

use ringpost_protocol::time::Time;

use super::{Payload, readback::Piece};
use crate::{Broker, Output, ReadId, Unavailable, state::Timer};

/// The pause behind the first try that was in vain; each further one doubles it, …
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long the same bytes are tried: some thirty-five times.
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);

/// How a read has gone that could not be tried so far.
#[derive(Debug, Default)]
pub(super) struct PutOff {
    tries: u32,
    since: Option<Time>,
}

impl PutOff {
    /// It was in vain once more. How long to wait, if it is worth another try.
    fn again_after(&mut self, now: Time) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        let doubled = FIRST_PAUSE * (1 << self.tries.min(6));
        self.tries += 1;
        (now.since(since) < GIVE_UP_AFTER).then_some(doubled.min(LONGEST_PAUSE))
    }
}

impl Broker {
    /// Whether anybody still needs what is read.
    pub(super) fn is_wanted(&self, piece: &Piece) -> bool {
        piece.records.iter().any(|(key, _)| self.payload_of(*key) == Payload::Reading)
    }

    /// A read could not be tried. Its segment stays, and who waits for it goes on waiting.
    #[cold]
    pub(super) fn put_off(&mut self, id: ReadId, mut piece: Piece, why: &str) {
        self.counters.reads_put_off += 1;
        let again_after = piece.put_off.again_after(self.now.mono);
        let (segment, offset, tries) = (piece.segment, piece.offset, piece.put_off.tries);
        let why = why.to_owned();
        self.outputs.push_back(Output::Unavailable(Unavailable { segment, offset, tries, why, again_after }));
        if let Some(pause) = again_after {
            self.timers.insert(self.now.mono + pause, Timer::Reread(id));
        }
        if let Some(journal) = &mut self.journal {
            journal.reads.resting.insert(id, piece);
        }
    }

    /// The pause is over.
    pub(crate) fn read_again(&mut self, id: ReadId) {
        let piece = self.journal.as_mut().and_then(|journal| journal.reads.resting.remove(&id));
        if let Some(piece) = piece {
            self.ask(piece);
        }
    }
}
