//! Links that delay, cut into pieces, stall and break. Bytes of one direction stay in order and as they were.

use super::rng::Rng;

/// One of a link's two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Client,
    Server,
}

/// A connection between a peer and the server.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) peer: usize,
    latency: u64,
    /// When the last piece under way arrives, by the end that it goes to.
    arrives: [u64; 2],
    /// Whether an end still sends and receives.
    pub(crate) open: [bool; 2],
}

impl Link {
    pub(crate) fn new(peer: usize, rng: &mut Rng) -> Self {
        Self { peer, latency: rng.between(20, 2000), arrives: [0; 2], open: [true; 2] }
    }

    pub(crate) fn is_open(&self, end: End) -> bool {
        self.open[end as usize]
    }

    /// When something sent now to `to` arrives.
    pub(crate) fn arrival(&mut self, to: End, now: u64, rng: &mut Rng) -> u64 {
        let stall = if rng.chance(3) { rng.between(1000, 400_000) } else { 0 };
        let at = (now + self.latency + rng.below(self.latency) + stall).max(self.arrives[to as usize]);
        self.arrives[to as usize] = at;
        at
    }

    /// Cuts bytes into pieces, each with its time of arrival.
    pub(crate) fn pieces(&mut self, to: End, bytes: &[u8], now: u64, rng: &mut Rng) -> Vec<(u64, Vec<u8>)> {
        let mut pieces = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let longest = if rng.chance(200) { 20 } else { 4096 };
            let (piece, later) = rest.split_at((rng.between(1, longest) as usize).min(rest.len()));
            pieces.push((self.arrival(to, now, rng), piece.to_vec()));
            rest = later;
        }
        pieces
    }
}
