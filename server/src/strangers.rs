//! Connections that have not said who they are: how many there may be, in all and from one address.
//!
//! What is counted is whoever was accepted and has not been greeted: has not completed a handshake, or without keys has not
//! said a first whole message. Each costs a socket and a buffer of a few KiB, for at most `--handshake-timeout`.
//!
//! From half of the bound on it is left to chance who may come in: with a hard bound alone, whoever fills it keeps everybody
//! else out, and with chance everybody gets in with a few tries. The random numbers come from a seed.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv4Addr},
};

/// The networks that one party most likely has all of: one address of IPv4, a /64 of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Block {
    V4(Ipv4Addr),
    V6([u8; 8]),
}

impl From<IpAddr> for Block {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// A stranger that is counted. It is given back once, with [`Strangers::leave`].
#[derive(Debug)]
#[must_use]
pub(crate) struct Stranger(Option<Block>);

/// Why a stranger is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crowded {
    /// There are so many that chance decided, or as many as may be.
    All,
    /// There are as many from its address as may be.
    Address,
}

/// Counts them.
#[derive(Debug)]
pub(crate) struct Strangers {
    most: usize,
    most_per_address: usize,
    there: usize,
    by_block: HashMap<Block, usize>,
    random: u64,
}

impl Strangers {
    pub(crate) fn new(most: usize, most_per_address: usize, seed: u64) -> Self {
        Self { most, most_per_address, there: 0, by_block: HashMap::new(), random: seed }
    }

    /// Lets one in, or not. `block` is `None` for whom the bound per address is not for, or not yet.
    pub(crate) fn enter(&mut self, block: Option<Block>) -> Result<Stranger, Crowded> {
        if block.is_some_and(|block| self.is_full(block)) {
            return Err(Crowded::Address);
        }
        if self.is_dropped() {
            return Err(Crowded::All);
        }
        self.there += 1;
        let mut stranger = Stranger(None);
        if let Some(block) = block {
            self.count(&mut stranger, block);
        }
        Ok(stranger)
    }

    /// It has turned out where one comes from that was let in without a block.
    pub(crate) fn locate(&mut self, stranger: &mut Stranger, block: Block) -> Result<(), Crowded> {
        if self.is_full(block) {
            return Err(Crowded::Address);
        }
        self.count(stranger, block);
        Ok(())
    }

    /// It has said who it is, or is gone.
    pub(crate) fn leave(&mut self, Stranger(block): Stranger) {
        self.there -= 1;
        if let Some(block) = block
            && let Entry::Occupied(mut count) = self.by_block.entry(block)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    fn is_full(&self, block: Block) -> bool {
        self.by_block.get(&block).is_some_and(|count| *count >= self.most_per_address)
    }

    fn count(&mut self, stranger: &mut Stranger, block: Block) {
        debug_assert!(stranger.0.is_none(), "who is located is not located again");
        stranger.0 = Some(block);
        *self.by_block.entry(block).or_default() += 1;
    }

    /// Whether the next one is dropped: surely at the bound, by chance from half of it on.
    fn is_dropped(&mut self) -> bool {
        let half = self.most / 2;
        if self.there < half {
            return false;
        }
        let (over, span) = ((self.there - half) as u64, (self.most - half) as u64);
        over >= span || self.draw() % span < over
    }

    /// SplitMix64: enough to be fair, and nobody gains by guessing it.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> Block {
        text.parse::<IpAddr>().unwrap().into()
    }

    /// Below half of the bound everybody comes in, at the bound nobody, and between them fewer and fewer.
    #[test]
    fn chance_rises_with_the_crowd() {
        let dropped_of_1000 = |there: usize| {
            let mut strangers = Strangers::new(100, 1000, 7);
            strangers.there = there;
            (0..1000).filter(|_| strangers.is_dropped()).count()
        };
        assert_eq!((dropped_of_1000(0), dropped_of_1000(49), dropped_of_1000(50)), (0, 0, 0));
        for (there, about) in [(55, 100), (75, 500), (90, 800)] {
            let dropped = dropped_of_1000(there);
            assert!(dropped.abs_diff(about) < 60, "{dropped} of 1000 with {there} of 100 there");
        }
        assert_eq!((dropped_of_1000(100), dropped_of_1000(200)), (1000, 1000));
    }

    /// The bound holds whatever the order, and who leaves makes room.
    #[test]
    fn the_bound_holds() {
        let mut strangers = Strangers::new(10, 1000, 7);
        let mut inside: Vec<_> = (0..1000).filter_map(|_| strangers.enter(None).ok()).collect();
        assert_eq!((inside.len(), strangers.enter(None).err()), (10, Some(Crowded::All)));
        for stranger in inside.drain(5..) {
            strangers.leave(stranger);
        }
        assert!(strangers.enter(None).is_ok());
        // A bound of one lets one in.
        let mut strangers = Strangers::new(1, 1, 7);
        assert!(strangers.enter(None).is_ok() && strangers.enter(None).is_err());
    }

    /// One address has its own bound, one /64 counts as an address, and nothing is left of who is gone.
    #[test]
    fn the_bound_of_an_address() {
        let mut strangers = Strangers::new(1000, 2, 7);
        let mut inside = Vec::new();
        for (address, comes_in) in [
            ("192.0.2.1", true),
            ("::ffff:192.0.2.1", true),
            ("192.0.2.1", false),
            ("192.0.2.2", true),
            ("2001:db8::1", true),
            ("2001:db8::ffff:2", true),
            ("2001:db8::3", false),
            ("2001:db8:0:1::1", true),
        ] {
            match strangers.enter(Some(block(address))) {
                Ok(stranger) => inside.push(stranger),
                Err(crowded) => assert!(crowded == Crowded::Address && !comes_in, "{address}"),
            }
        }
        assert_eq!(inside.len(), 6);
        inside.into_iter().for_each(|stranger| strangers.leave(stranger));
        assert!(strangers.there == 0 && strangers.by_block.is_empty());
    }

    /// Who comes through a balancer is counted under its own address once that is known.
    #[test]
    fn located_later() {
        let mut strangers = Strangers::new(1000, 1, 7);
        let mut both = [(); 2].map(|()| strangers.enter(None).unwrap());
        assert_eq!(strangers.locate(&mut both[0], block("192.0.2.1")), Ok(()));
        assert_eq!(strangers.locate(&mut both[1], block("192.0.2.1")), Err(Crowded::Address));
        both.into_iter().for_each(|stranger| strangers.leave(stranger));
        assert!(strangers.enter(Some(block("192.0.2.1"))).is_ok());
    }
}
