//! Links that delay, cut into pieces, stall and break. Bytes of one direction stay in order and as they were.

use super::rng::Rng;

/// One of a link's two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Client,
    Server,
}

/// A connection between a process and the server.
#[derive(Debug)]
pub(crate) struct Link {
    /// The process at its client's end.
    pub(crate) process: usize,
    latency: u64,
    /// When the last piece under way arrives, by the end that it goes to.
    arrives: [u64; 2],
    /// Whether an end still sends and receives.
    pub(crate) open: [bool; 2],
    /// Nothing arrives any more, and nobody is told.
    pub(crate) dark: bool,
    /// Bytes that were sent and have not arrived, by the end that they go to.
    pub(crate) under_way: [usize; 2],
    /// Bytes that still arrive, once the link is cut.
    left: [Option<usize>; 2],
    /// Until when the client does not read.
    pub(crate) unread_until: u64,
    rng: Rng,
}

impl Link {
    pub(crate) fn new(process: usize, mut rng: Rng) -> Self {
        Self {
            process,
            latency: rng.between(20, 2000),
            arrives: [0; 2],
            open: [true; 2],
            dark: false,
            under_way: [0; 2],
            left: [None; 2],
            unread_until: 0,
            rng,
        }
    }

    /// When something sent now to `to` arrives.
    pub(crate) fn arrival(&mut self, to: End, now: u64) -> u64 {
        let rng = &mut self.rng;
        let stall = if rng.chance(3) { rng.between(1000, 400_000) } else { 0 };
        let mut at = (now + self.latency + rng.below(self.latency) + stall).max(self.arrives[to as usize]);
        if to == End::Client {
            at = at.max(self.unread_until);
        }
        self.arrives[to as usize] = at;
        at
    }

    /// Cuts bytes into pieces, each with its time of arrival.
    pub(crate) fn pieces(&mut self, to: End, bytes: &[u8], now: u64) -> Vec<(u64, Vec<u8>)> {
        self.under_way[to as usize] += bytes.len();
        let mut pieces = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let longest = if self.rng.chance(100) { 20 } else { 8192 };
            let (piece, later) = rest.split_at((self.rng.between(1, longest) as usize).min(rest.len()));
            pieces.push((self.arrival(to, now), piece.to_vec()));
            rest = later;
        }
        pieces
    }

    /// Whether its client may be reached late.
    pub(crate) fn is_troubled(&self, now: u64) -> bool {
        self.dark || self.unread_until > now
    }

    /// Whether its end is seen as an end of stream, and not as a reset.
    pub(crate) fn is_orderly(&mut self) -> bool {
        self.rng.chance(500)
    }

    /// A piece comes to its end: as much of it as a cut has left.
    pub(crate) fn arrived(&mut self, to: End, bytes: &mut Vec<u8>) {
        let side = to as usize;
        // What arrives nowhere is not taken off the way.
        if !self.dark {
            self.under_way[side] -= bytes.len();
        }
        if let Some(left) = &mut self.left[side] {
            bytes.truncate(*left);
            *left -= bytes.len();
        }
        if self.dark || !self.open[side] {
            bytes.clear();
        }
    }

    /// The link is cut: of what is under way, the rest from some byte on is lost. When each end learns of it.
    pub(crate) fn cut(&mut self, now: u64) -> [(End, u64); 2] {
        [End::Client, End::Server].map(|to| {
            let side = to as usize;
            let left = self.rng.below(self.under_way[side] as u64 + 1) as usize;
            self.left[side] = Some(self.left[side].map_or(left, |before| before.min(left)));
            let last = self.arrives[side].min(now + 50_000);
            (to, last.max(now) + self.rng.below(5000))
        })
    }
}
