//! The instances: who they are, how they are, what they have; and who gets the next connection. Nothing in here waits.

use std::{cell::Cell, net::IpAddr, net::SocketAddr, rc::Rc};

use ringpost_protocol::time::Time;

use crate::{
    Config, Instance,
    choice::{Candidate, Chooser, identity},
    health::{Change, Health, Observation, Rules},
    relay::Way,
};

/// What an instance is known by here. Never the same twice: one that is taken out and put in again is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MemberId(u64);

/// Counters of one instance, which its sessions add to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Sessions since the start.
    pub(crate) sessions: Cell<u64>,
    /// Connections that could not be had.
    pub(crate) connect_failures: Cell<u64>,
    /// Sessions that it ended before it said anything.
    pub(crate) early_ends: Cell<u64>,
    /// Sessions that ended by a broken connection, on either side.
    pub(crate) resets: Cell<u64>,
    /// Sessions that were cut: idle, drained, or the balancer left.
    pub(crate) cuts: Cell<u64>,
    /// Probes that failed.
    pub(crate) probe_failures: Cell<u64>,
    /// Times that it was found to be down.
    pub(crate) downs: Cell<u64>,
    bytes: [Cell<u64>; 2],
    spliced_bytes: [Cell<u64>; 2],
}

impl Tally {
    /// Bytes went this way.
    pub(crate) fn carried(&self, way: Way, bytes: usize, spliced: bool) {
        add(&self.bytes[way.index()], bytes as u64);
        if spliced {
            add(&self.spliced_bytes[way.index()], bytes as u64);
        }
    }

    pub(crate) fn bytes(&self, way: Way) -> u64 {
        self.bytes[way.index()].get()
    }

    pub(crate) fn spliced_bytes(&self, way: Way) -> u64 {
        self.spliced_bytes[way.index()].get()
    }
}

pub(crate) fn add(counter: &Cell<u64>, more: u64) {
    counter.set(counter.get() + more);
}

/// An instance.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) id: MemberId,
    pub(crate) instance: Instance,
    identity: u64,
    /// Where it is, the best one first. Empty: its name was not found.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) health: Health,
    /// Sessions that it has, those that are being connected too.
    pub(crate) active: usize,
    /// How often it has begun to drain: the time of one drain is not another's.
    drains: u32,
    /// It is no instance any more, and stays until its sessions have ended.
    pub(crate) removed: bool,
    pub(crate) tally: Rc<Tally>,
}

impl Member {
    /// In a word.
    pub(crate) fn state(&self) -> &'static str {
        match self {
            Self { removed: true, .. } => "removed",
            Self { instance: Instance { drain: true, .. }, .. } => "draining",
            Self { addresses, .. } if addresses.is_empty() => "unresolved",
            Self { health, .. } if health.is_up() => "up",
            _ => "down",
        }
    }

    fn is_open(&self) -> bool {
        self.health.is_up()
            && !self.removed
            && !self.instance.drain
            && !self.addresses.is_empty()
            && self.instance.max.is_none_or(|max| self.active < max)
    }
}

/// What a new list of instances changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) added: Vec<MemberId>,
    pub(crate) removed: Vec<MemberId>,
    /// Those that begin to drain.
    pub(crate) draining: Vec<MemberId>,
}

/// All instances.
#[derive(Debug)]
pub(crate) struct Roster {
    rules: Rules,
    chooser: Chooser,
    members: Vec<Member>,
    named: u64,
}

impl Roster {
    pub(crate) fn new(config: &Config, seed: u64) -> Self {
        let chooser = Chooser::new(config.choice, seed);
        let mut roster = Self { rules: config.rules(), chooser, members: Vec::new(), named: 0 };
        roster.replace(&config.instances);
        roster
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    pub(crate) fn get(&self, id: MemberId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    fn get_mut(&mut self, id: MemberId) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.id == id)
    }

    /// The one by this address that is not on its way out.
    pub(crate) fn named(&self, address: &str) -> Option<MemberId> {
        let member =
            self.members.iter().find(|member| !member.removed && member.instance.address == address)?;
        Some(member.id)
    }

    /// Chooses an instance for a client, none of those that were tried, and counts the session.
    pub(crate) fn pick(&mut self, client: IpAddr, tried: &[MemberId], now: Time) -> Option<MemberId> {
        let open = |member: &&Member| member.is_open() && !tried.contains(&member.id);
        let (rules, chosen) = (&self.rules, self.members.iter().filter(open));
        let (ids, candidates): (Vec<_>, Vec<_>) = chosen
            .map(|member| {
                let weight = member.instance.weight * member.health.part(rules, now);
                (member.id, Candidate { identity: member.identity, weight, active: member.active })
            })
            .unzip();
        let id = ids[self.chooser.pick(&candidates, client)?];
        self.get_mut(id)?.active += 1;
        Some(id)
    }

    /// A session that was counted has ended.
    pub(crate) fn ended(&mut self, id: MemberId) {
        if let Some(member) = self.get_mut(id) {
            debug_assert!(member.active > 0, "more sessions ended than began");
            member.active = member.active.saturating_sub(1);
        }
        self.members.retain(|member| !member.removed || member.active > 0);
    }

    /// Takes in what was seen of an instance; a change is told once.
    pub(crate) fn observe(&mut self, id: MemberId, seen: Observation, now: Time) -> Option<Change> {
        let rules = self.rules;
        let member = self.get_mut(id)?;
        let change = member.health.observe(seen, &rules, now)?;
        if change == Change::Down {
            add(&member.tally.downs, 1);
        }
        Some(change)
    }

    /// Where an instance is was looked up. Whether that is news.
    pub(crate) fn resolved(&mut self, id: MemberId, addresses: Vec<SocketAddr>) -> bool {
        let Some(member) = self.get_mut(id) else { return false };
        let same = |address: &SocketAddr| addresses.contains(address);
        if member.addresses.len() == addresses.len() && member.addresses.iter().all(same) {
            return false;
        }
        member.addresses = addresses;
        true
    }

    /// This address of an instance worked: it is tried first from now on.
    pub(crate) fn prefer(&mut self, id: MemberId, address: SocketAddr) {
        if let Some(member) = self.get_mut(id)
            && let Some(place) = member.addresses.iter().position(|other| *other == address)
        {
            member.addresses.swap(0, place);
        }
    }

    /// Begins or ends the draining of an instance. Whether that changes anything.
    pub(crate) fn drain(&mut self, id: MemberId, drain: bool) -> bool {
        self.get_mut(id).is_some_and(|member| {
            let changes = std::mem::replace(&mut member.instance.drain, drain) != drain;
            member.drains += u32::from(drain && changes);
            changes
        })
    }

    /// Which drain an instance is in, if it is in one.
    pub(crate) fn drain_of(&self, id: MemberId) -> Option<u32> {
        self.get(id).filter(|member| member.instance.drain).map(|member| member.drains)
    }

    /// Takes over a new list: those that stay keep their sessions, their health and their place in turn; those that go
    /// keep their sessions until these end.
    pub(crate) fn replace(&mut self, instances: &[Instance]) -> Changes {
        let mut changes = Changes::default();
        for member in &mut self.members {
            match instances.iter().find(|instance| instance.address == member.instance.address) {
                _ if member.removed => {}
                Some(instance) => {
                    if instance.drain && !member.instance.drain {
                        member.drains += 1;
                        changes.draining.push(member.id);
                    }
                    member.instance = instance.clone();
                }
                None => {
                    member.removed = true;
                    self.chooser.forget(member.identity);
                    changes.removed.push(member.id);
                }
            }
        }
        self.members.retain(|member| !member.removed || member.active > 0);
        for instance in instances {
            if self.named(&instance.address).is_none() {
                self.named += 1;
                let id = MemberId(self.named);
                self.members.push(Member {
                    id,
                    identity: identity(&instance.address),
                    instance: instance.clone(),
                    drains: 0,
                    addresses: Vec::new(),
                    health: Health::default(),
                    active: 0,
                    removed: false,
                    tally: Rc::default(),
                });
                changes.added.push(id);
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn roster(instances: &[&str]) -> Roster {
        let instances = instances.iter().map(|text| text.parse().unwrap()).collect();
        let config = Config { instances, ..Config::default() };
        let mut roster = Roster::new(&config, 0);
        let ids: Vec<_> = roster.members().iter().map(|member| member.id).collect();
        for id in ids {
            roster.resolved(id, vec!["127.0.0.1:1".parse().unwrap()]);
        }
        roster
    }

    fn pick(roster: &mut Roster, tried: &[MemberId]) -> Option<String> {
        let id = roster.pick(CLIENT, tried, Time::ZERO)?;
        roster.get(id).map(|member| member.instance.address.clone())
    }

    /// Nobody gets a connection who is down, full, draining, removed, not found or was tried.
    #[test]
    fn only_open_ones_are_picked() {
        let mut roster = roster(&["a:1,max=1", "b:1", "c:1", "d:1,drain"]);
        let [a, b, c] = ["a:1", "b:1", "c:1"].map(|address| roster.named(address).unwrap());
        assert_eq!(pick(&mut roster, &[b, c]).as_deref(), Some("a:1"));
        assert_eq!(pick(&mut roster, &[b, c]), None, "it is full");
        roster.ended(a);
        assert_eq!(pick(&mut roster, &[b, c]).as_deref(), Some("a:1"));
        for _ in 0..3 {
            roster.observe(b, Observation::Failed, Time::ZERO);
        }
        assert_eq!(roster.get(b).map(Member::state), Some("down"));
        assert_eq!(pick(&mut roster, &[]).as_deref(), Some("c:1"));
        assert!(roster.resolved(c, Vec::new()));
        assert_eq!(pick(&mut roster, &[]), None);
    }

    /// One drain is not another: the time of one that was ended does not count for the next.
    #[test]
    fn drains_are_told_apart() {
        let mut roster = roster(&["a:1"]);
        let a = roster.named("a:1").unwrap();
        assert_eq!(roster.drain_of(a), None);
        assert!(roster.drain(a, true) && !roster.drain(a, true));
        let first = roster.drain_of(a);
        assert!(first.is_some() && roster.drain(a, false));
        assert_eq!(roster.drain_of(a), None);
        assert!(roster.drain(a, true));
        assert!(roster.drain_of(a).is_some_and(|second| Some(second) != first));
    }

    /// A new list keeps what stays as it was, and those that go until their last session has ended.
    #[test]
    fn replacing() {
        let mut roster = roster(&["a:1", "b:1"]);
        let [a, b] = ["a:1", "b:1"].map(|address| roster.named(address).unwrap());
        for _ in 0..3 {
            roster.observe(a, Observation::ProbeFailed, Time::ZERO);
        }
        assert_eq!(roster.pick(CLIENT, &[], Time::ZERO), Some(b));
        let list = ["a:1,weight=5,drain", "c:1"].map(|text| text.parse().unwrap());
        let changes = roster.replace(&list);
        let c = roster.named("c:1").unwrap();
        assert_eq!(changes, Changes { added: vec![c], removed: vec![b], draining: vec![a] });
        let kept = roster.get(a).unwrap();
        assert!(!kept.health.is_up() && kept.instance.weight == 5);
        assert_eq!((roster.get(b).map(Member::state), roster.named("b:1")), (Some("removed"), None));
        roster.ended(b);
        assert!(roster.get(b).is_none());
        assert_eq!(roster.replace(&list), Changes::default());
        let again = roster.replace(&["b:1".parse().unwrap()]);
        assert_ne!(again.added, [b], "it is another one");
    }
}
