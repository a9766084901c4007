//! Whether a way's bytes are copied or spliced, by what it has seen of them. Pure.
//!
//! A copy costs by the byte, a splice by the call and by the piece: the least message for which splicing pays stands in
//! `bench/RESULTS.md`, with what copying alone and splicing alone cost. Reads that fill their buffer say that more
//! is there than a copy should carry; thin fills say that it is not, or that it comes in pieces so small that a pipe's
//! slots are used up by little. Between the two lies a gap, and each return to copying makes the next try later, so that
//! a stream at the edge does not go to and fro.

use crate::config::Splicing;

/// Bytes of a buffer that is copied through.
pub(crate) const BUFFER_BYTES: usize = 16 << 10;
/// Reads that fill their buffer, one after the other, before it is spliced.
const FULL_READS: u16 = 2;
/// A fill of less is thin.
const THIN_BYTES: usize = 8 << 10;
/// Thin fills, one after the other, before it is copied again.
const THIN_FILLS: u8 = 4;
/// Each return to copying doubles the reads before the next try, this many times at most.
const MOST_DOUBLED: u8 = 6;
/// Fills that are not thin, one after the other, after which the doubling is forgotten.
const THICK_FILLS: u8 = 16;

/// What carries bytes from one socket to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// A buffer of this process.
    Copy,
    /// A pipe.
    Splice,
}

/// What one way has seen.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    splicing: Splicing,
    carrier: Carrier,
    full_reads: u16,
    thin_fills: u8,
    thick_fills: u8,
    doubled: u8,
}

impl Pace {
    pub(crate) fn new(splicing: Splicing) -> Self {
        let carrier = if splicing == Splicing::Always { Carrier::Splice } else { Carrier::Copy };
        Self { splicing, carrier, full_reads: 0, thin_fills: 0, thick_fills: 0, doubled: 0 }
    }

    /// What the next bytes go through.
    pub(crate) fn carrier(&self) -> Carrier {
        self.carrier
    }

    /// Learns from bytes that came into so much room.
    pub(crate) fn came(&mut self, bytes: usize, room: usize) {
        match self.carrier {
            Carrier::Copy if bytes < room => self.full_reads = 0,
            Carrier::Copy => {
                self.full_reads = self.full_reads.saturating_add(1);
                if self.splicing != Splicing::Never && self.full_reads >= FULL_READS << self.doubled {
                    (self.carrier, self.thin_fills, self.thick_fills) = (Carrier::Splice, 0, 0);
                }
            }
            Carrier::Splice if bytes >= THIN_BYTES => {
                self.thin_fills = 0;
                self.thick_fills = self.thick_fills.saturating_add(1);
                if self.thick_fills >= THICK_FILLS {
                    self.doubled = 0;
                }
            }
            Carrier::Splice => {
                self.thick_fills = 0;
                self.thin_fills = self.thin_fills.saturating_add(1);
                if self.thin_fills >= THIN_FILLS && self.splicing == Splicing::Auto {
                    self.copy_again();
                }
            }
        }
    }

    /// There was no pipe to be had: this is copied, whatever was asked for.
    pub(crate) fn no_pipe(&mut self) {
        self.copy_again();
    }

    fn copy_again(&mut self) {
        (self.carrier, self.full_reads, self.thin_fills) = (Carrier::Copy, 0, 0);
        self.doubled = (self.doubled + 1).min(MOST_DOUBLED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(pace: &mut Pace, bytes: usize, times: usize) {
        for _ in 0..times {
            let room = if pace.carrier() == Carrier::Copy { BUFFER_BYTES } else { 1 << 20 };
            pace.came(bytes.min(room), room);
        }
    }

    /// Small messages are never spliced, bulk soon is, and small ones behind it are copied again.
    #[test]
    fn follows_what_comes() {
        let mut pace = Pace::new(Splicing::Auto);
        feed(&mut pace, 128, 1000);
        assert_eq!(pace.carrier(), Carrier::Copy);
        feed(&mut pace, 1 << 18, 2);
        assert_eq!(pace.carrier(), Carrier::Splice);
        feed(&mut pace, 128, usize::from(THIN_FILLS) - 1);
        feed(&mut pace, 1 << 18, 1);
        feed(&mut pace, 128, usize::from(THIN_FILLS) - 1);
        assert_eq!(pace.carrier(), Carrier::Splice, "a message's end is no reason");
        feed(&mut pace, 128, 1);
        assert_eq!(pace.carrier(), Carrier::Copy);
    }

    /// What looks like bulk and is thin in a pipe is tried more and more rarely, until it really is bulk.
    #[test]
    fn going_to_and_fro_wears_off() {
        let mut pace = Pace::new(Splicing::Auto);
        let mut switches = 0;
        for _ in 0..4000 {
            let before = pace.carrier();
            let bytes = if before == Carrier::Copy { BUFFER_BYTES } else { 2048 };
            feed(&mut pace, bytes, 1);
            switches += usize::from(pace.carrier() != before);
        }
        assert!(switches < 80, "{switches}");
        feed(&mut pace, 1 << 18, usize::from(FULL_READS << MOST_DOUBLED) + usize::from(THICK_FILLS));
        assert_eq!((pace.carrier(), pace.doubled), (Carrier::Splice, 0));
    }

    /// What is configured holds, but that there is nothing to splice through without a pipe.
    #[test]
    fn configured() {
        let mut pace = Pace::new(Splicing::Never);
        feed(&mut pace, 1 << 20, 1000);
        assert_eq!(pace.carrier(), Carrier::Copy);
        let mut pace = Pace::new(Splicing::Always);
        feed(&mut pace, 1, 1000);
        assert_eq!(pace.carrier(), Carrier::Splice);
        pace.no_pipe();
        assert_eq!(pace.carrier(), Carrier::Copy);
        feed(&mut pace, 1 << 20, 4);
        assert_eq!(pace.carrier(), Carrier::Splice);
    }
}
