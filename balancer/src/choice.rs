//! Which instance a new connection goes to. Pure, and seeded: the same connections in the same order choose alike.

use std::net::IpAddr;

use serde::Deserialize;

/// How an instance is chosen for a connection. A connection stays with its instance until it ends, however long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Choice {
    /// One after the other, each as often as its weight. Even among connections that come evenly; with connections that
    /// last long it drifts, as those of an instance that was away went elsewhere and stay there.
    #[default]
    RoundRobin,
    /// The one with the fewest connections for its weight. The one to use where connections last, as those of Ringpost's
    /// clients do: an instance that comes back gets all new ones until it has its share.
    LeastConnections,
    /// At random, by weight. Several balancers that know nothing of each other then do not move in step.
    Weighted,
    /// By the client's address: a client comes back to the same instance. When an instance leaves, only its own clients
    /// move; when one comes, it takes an even share from all (rendezvous hashing). All balancers agree. Clients behind one
    /// address all go to one instance.
    ClientHash,
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "round-robin" => Ok(Self::RoundRobin),
            "least-connections" => Ok(Self::LeastConnections),
            "weighted" => Ok(Self::Weighted),
            "client-hash" => Ok(Self::ClientHash),
            _ => Err(format!(
                "`{text}` is no choice: round-robin, least-connections, weighted and client-hash are"
            )),
        }
    }
}

/// An instance that may be chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    /// What it is known by, over restarts and in every balancer: see [`identity`].
    pub(crate) identity: u64,
    /// Its weight now, in any unit that is the same for all; at least 1.
    pub(crate) weight: u32,
    /// Its connections.
    pub(crate) active: usize,
}

/// What an instance is known by: a hash of its address as it is written.
pub(crate) fn identity(address: &str) -> u64 {
    hash(0, address.as_bytes())
}

/// Chooses.
#[derive(Debug)]
pub(crate) struct Chooser {
    choice: Choice,
    random: u64,
    seen: Vec<Seen>,
    picks: u64,
}

/// What is remembered of an instance from one pick to the next.
#[derive(Debug)]
struct Seen {
    identity: u64,
    /// How much of its share it has still to get: see [`Chooser::in_turn`].
    due: i64,
    /// When it was picked last.
    picked: u64,
}

impl Chooser {
    pub(crate) fn new(choice: Choice, seed: u64) -> Self {
        Self { choice, random: seed, seen: Vec::new(), picks: 0 }
    }

    /// The place of the one that is chosen. `None`: there are no candidates.
    pub(crate) fn pick(&mut self, candidates: &[Candidate], client: IpAddr) -> Option<usize> {
        let place = match self.choice {
            Choice::RoundRobin => self.in_turn(candidates)?,
            Choice::LeastConnections => self.least(candidates)?,
            Choice::Weighted => self.at_random(candidates)?,
            Choice::ClientHash => by_hash(candidates, client)?,
        };
        self.picks += 1;
        let picks = self.picks;
        self.seen(candidates[place].identity).picked = picks;
        Some(place)
    }

    /// Of an instance that is gone nothing need be remembered.
    pub(crate) fn forget(&mut self, identity: u64) {
        self.seen.retain(|seen| seen.identity != identity);
    }

    /// Smooth weighted round-robin, as nginx has it: each becomes due by its weight, and who is most due is picked and
    /// pays for all. Weights 2 and 1 give a b a, not a a b.
    fn in_turn(&mut self, candidates: &[Candidate]) -> Option<usize> {
        let total: i64 = candidates.iter().map(|candidate| i64::from(candidate.weight)).sum();
        let mut most: Option<(i64, usize)> = None;
        for (place, candidate) in candidates.iter().enumerate() {
            let seen = self.seen(candidate.identity);
            // An instance that the others were chosen without for long must not get a burst.
            seen.due = (seen.due + i64::from(candidate.weight)).min(total);
            if most.is_none_or(|(due, _)| seen.due > due) {
                most = Some((seen.due, place));
            }
        }
        let (_, place) = most?;
        self.seen(candidates[place].identity).due -= total;
        Some(place)
    }

    fn least(&mut self, candidates: &[Candidate]) -> Option<usize> {
        let mut best: Option<usize> = None;
        for place in 0..candidates.len() {
            let Some(other) = best else {
                best = Some(place);
                continue;
            };
            // (active + 1) / weight, compared without the division.
            let load = |of: usize, by: usize| {
                (candidates[of].active as u128 + 1) * u128::from(candidates[by].weight)
            };
            let order = load(place, other).cmp(&load(other, place));
            let longer_ago =
                self.seen(candidates[place].identity).picked < self.seen(candidates[other].identity).picked;
            if order.is_lt() || order.is_eq() && longer_ago {
                best = Some(place);
            }
        }
        best
    }

    fn at_random(&mut self, candidates: &[Candidate]) -> Option<usize> {
        let total: u64 = candidates.iter().map(|candidate| u64::from(candidate.weight)).sum();
        if total == 0 {
            return None;
        }
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut at = mix(self.random) % total;
        candidates.iter().position(|candidate| match at.checked_sub(u64::from(candidate.weight)) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        })
    }

    fn seen(&mut self, identity: u64) -> &mut Seen {
        let place = self.seen.iter().position(|seen| seen.identity == identity).unwrap_or_else(|| {
            self.seen.push(Seen { identity, due: 0, picked: 0 });
            self.seen.len() - 1
        });
        &mut self.seen[place]
    }
}

/// Weighted rendezvous hashing: every instance draws a number for the client, -ln(u)/weight, and the least wins. Who leaves
/// changes nobody else's number. (Thaler and Ravishankar 1998; the weights as in Schindelhauer and Schomaker 2005.)
fn by_hash(candidates: &[Candidate], client: IpAddr) -> Option<usize> {
    let number = |candidate: &Candidate| {
        let drawn = match client {
            IpAddr::V4(address) => hash(candidate.identity, &address.octets()),
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                Some(address) => hash(candidate.identity, &address.octets()),
                None => hash(candidate.identity, &address.octets()),
            },
        };
        // 53 bits, as many as a double has, and never 0 or 1.
        let uniform = ((drawn >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -uniform.ln() / f64::from(candidate.weight.max(1))
    };
    let numbers = candidates.iter().map(number).enumerate();
    numbers.min_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(place, _)| place)
}

/// FNV-1a with a finish that spreads what little it is fed over all bits.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let start = 0xCBF2_9CE4_8422_2325 ^ mix(seed);
    mix(bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)))
}

/// The finish of splitmix64.
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn candidates(weights: &[u32]) -> Vec<Candidate> {
        let named = |(place, weight): (usize, &u32)| Candidate {
            identity: identity(&format!("10.0.0.{place}:8888")),
            weight: *weight,
            active: 0,
        };
        weights.iter().enumerate().map(named).collect()
    }

    fn client(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0A00_0000 + number).into()
    }

    fn picks(chooser: &mut Chooser, candidates: &[Candidate], times: u32) -> Vec<usize> {
        (0..times).map(|number| chooser.pick(candidates, client(number)).unwrap()).collect()
    }

    fn counts(picked: &[usize], of: usize) -> Vec<usize> {
        (0..of).map(|place| picked.iter().filter(|pick| **pick == place).count()).collect()
    }

    /// Equal ones take turns in order; weights are met in every round, and spread within it.
    #[test]
    fn round_robin() {
        let mut chooser = Chooser::new(Choice::RoundRobin, 0);
        assert_eq!(picks(&mut chooser, &candidates(&[1, 1, 1]), 6), [0, 1, 2, 0, 1, 2]);
        let mut chooser = Chooser::new(Choice::RoundRobin, 0);
        assert_eq!(picks(&mut chooser, &candidates(&[2, 1]), 6), [0, 1, 0, 0, 1, 0]);
        let all = candidates(&[5, 3, 2]);
        assert_eq!(counts(&picks(&mut chooser, &all, 1000), 3), [500, 300, 200]);
    }

    /// One that was away gets its share again, not a burst for the time it missed.
    #[test]
    fn no_burst_after_an_absence() {
        let mut chooser = Chooser::new(Choice::RoundRobin, 0);
        let all = candidates(&[1, 1, 1]);
        picks(&mut chooser, &all, 10);
        picks(&mut chooser, &all[..2], 1000);
        let after = picks(&mut chooser, &all, 9);
        assert_eq!(counts(&after, 3), [3, 3, 3], "{after:?}");
    }

    /// The least loaded for its weight is taken; equals take turns.
    #[test]
    fn least_connections() {
        let mut chooser = Chooser::new(Choice::LeastConnections, 0);
        let mut all = candidates(&[1, 1, 2]);
        let mut taken = Vec::new();
        for number in 0..400 {
            let place = chooser.pick(&all, client(number)).unwrap();
            all[place].active += 1;
            taken.push(place);
        }
        assert_eq!(counts(&taken, 3), [100, 100, 200]);
        all[1].active = 0;
        assert!(picks(&mut chooser, &all, 5).iter().all(|place| *place == 1), "until it has its share");
        let equal = candidates(&[1, 1]);
        let mut chooser = Chooser::new(Choice::LeastConnections, 0);
        assert_eq!(counts(&picks(&mut chooser, &equal, 10), 2), [5, 5]);
    }

    /// By weight, and alike for one seed.
    #[test]
    fn weighted() {
        let all = candidates(&[1, 3]);
        let drawn = |seed| picks(&mut Chooser::new(Choice::Weighted, seed), &all, 4000);
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        let first = counts(&drawn(7), 2)[0];
        assert!((900..1100).contains(&first), "{first}");
    }

    /// Clients are spread by weight; when an instance leaves only its clients move, and they come back with it.
    #[test]
    fn client_hash_moves_few() {
        let mut chooser = Chooser::new(Choice::ClientHash, 0);
        let all = candidates(&[1, 1, 1, 2]);
        let before = picks(&mut chooser, &all, 10_000);
        for (count, share) in counts(&before, 4).into_iter().zip([2000, 2000, 2000, 4000]) {
            assert!(count.abs_diff(share) < 200, "{count} for {share}");
        }
        let without: Vec<_> = [0, 2, 3].map(|place| all[place]).to_vec();
        for (number, place) in before.iter().enumerate() {
            let client = client(number as u32);
            let moved = [0, 2, 3][chooser.pick(&without, client).unwrap()];
            assert!(*place == 1 || moved == *place, "client {number} moved from {place} to {moved}");
            assert_eq!(chooser.pick(&all, client).unwrap(), *place);
        }
        let mapped = "::ffff:10.0.0.5".parse().unwrap();
        assert_eq!(chooser.pick(&all, mapped), chooser.pick(&all, client(5)));
    }

    /// Without candidates there is nothing to choose.
    #[test]
    fn nobody() {
        for choice in [Choice::RoundRobin, Choice::LeastConnections, Choice::Weighted, Choice::ClientHash] {
            assert_eq!(Chooser::new(choice, 0).pick(&[], client(0)), None);
        }
    }
}
