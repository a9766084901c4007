//! The clock, the queue of what will happen, and what connects the parts.

use std::{
    collections::{BTreeMap, BinaryHeap, VecDeque},
    time::Duration,
};

use ringpost_broker::{Config, Policy};
use ringpost_client::{ClientConfig, DeliveryKey};
use ringpost_protocol::time::{Now, Time};

use super::{
    json_peer::JsonPeer,
    network::{End, Link},
    oracle::Oracle,
    peer::Peer,
    rng::Rng,
    server::{Effect, Server},
};

/// Few actions, so that there are always several handlers of one, and sometimes none.
pub(crate) const ACTIONS: [&str; 3] = ["sum", "echo", "jobs"];

/// One history to be.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Everything random comes from it.
    pub seed: u64,
    /// Clients with the real core.
    pub peers: usize,
    /// Clients that know only the JSON table.
    pub json_peers: usize,
    /// Things that applications do.
    pub steps: u64,
    /// Whether links break, go dark, and connecting fails.
    pub faults: bool,
    /// How the broker chooses.
    pub policy: Policy,
    /// The broker's pace.
    pub dispatch_interval: Duration,
    /// Requests that may wait for one action.
    pub queue_limit: usize,
    /// Whether to print what happens.
    pub trace: bool,
}

impl Plan {
    /// The plan that a seed stands for.
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5eed);
        Self {
            seed,
            peers: rng.between(2, 6) as usize,
            json_peers: rng.below(3) as usize,
            steps: rng.between(50, 600),
            faults: rng.chance(700),
            policy: if rng.chance(500) { Policy::RoundRobin } else { Policy::LeastBusy },
            dispatch_interval: Duration::from_micros(if rng.chance(150) {
                rng.between(100, 5000)
            } else {
                0
            }),
            queue_limit: if rng.chance(300) { rng.between(1, 8) as usize } else { 1000 },
            trace: false,
        }
    }
}

/// What came out of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Of everything that happened, in order: two runs of a plan have the same.
    pub fingerprint: u64,
    /// How many requests ended how.
    pub endings: BTreeMap<String, u64>,
    /// Things that happened.
    pub events: u64,
}

/// What a peer wants the world to do.
pub(crate) enum Wish {
    Dial,
    Send { link: usize, bytes: Vec<u8> },
    HangUp { link: Option<usize> },
    Work { delivery: DeliveryKey, after: u64 },
}

#[derive(Debug)]
enum Event {
    /// A peer's try to connect comes to its end.
    Dialed {
        peer: usize,
    },
    /// Bytes arrive.
    Piece {
        link: usize,
        to: End,
        bytes: Vec<u8>,
    },
    /// An end learns that the link is gone.
    Gone {
        link: usize,
        to: End,
    },
    PeerTimer {
        peer: usize,
    },
    ServerTimer,
    /// A peer's application does one thing.
    Act {
        peer: usize,
    },
    /// A handler comes to its end.
    Work {
        peer: usize,
        delivery: DeliveryKey,
    },
    JsonWork {
        peer: usize,
        link: usize,
        delivery: String,
        token: u64,
    },
    /// Some link breaks or goes dark.
    Fault,
}

/// Ordered by time, then by when it was planned: the earliest first out of a heap.
struct Planned {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Planned {}
impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

struct World {
    rng: Rng,
    now: u64,
    planned: BinaryHeap<Planned>,
    order: u64,
    server: Server,
    server_timer: Option<u64>,
    /// Peers with the real core first, then the JSON ones.
    peers: Vec<Peer>,
    peer_timers: Vec<Option<u64>>,
    json_peers: Vec<JsonPeer>,
    links: Vec<Link>,
    /// Links on which nothing arrives any more, without anybody being told.
    dark: Vec<usize>,
    oracle: Oracle,
    steps: u64,
    last_step: u64,
    tokens: u64,
    plan: Plan,
    fingerprint: u64,
    events: u64,
}

/// When the history begins on the wall clock.
const WALL_START_MS: u64 = 1_700_000_000_000;
const SECOND: u64 = 1_000_000;

/// Runs a plan to its end, and checks on the way that all is as it should be.
///
/// # Panics
/// When it is not; the message says what. The same plan panics again at the same place.
pub fn run(plan: &Plan) -> Outcome {
    let mut world = World::new(plan);
    world.begin();
    while let Some(Planned { at, event, .. }) = world.planned.pop() {
        world.now = at;
        world.events += 1;
        world.note(&event);
        world.step(event);
        if world.is_over() {
            break;
        }
    }
    world.finish()
}

impl World {
    fn new(plan: &Plan) -> Self {
        let mut rng = Rng::new(plan.seed);
        let config = Config {
            boot: rng.next(),
            hash_seed: rng.next(),
            policy: plan.policy,
            dispatch_interval: plan.dispatch_interval,
            queue_limit: plan.queue_limit,
            leg_queue_limit: 2,
            ..Config::default()
        };
        let peers: Vec<_> = (0..plan.peers)
            .map(|index| {
                let session = format!("peer-{index}").into();
                let seed = rng.next();
                let reconnect_interval = Duration::from_millis(50);
                Peer::new(
                    index,
                    ClientConfig { session, seed, reconnect_interval, ..ClientConfig::default() },
                )
            })
            .collect();
        let json_peers = (0..plan.json_peers).map(|_| JsonPeer::new(rng.chance(500))).collect();
        Self {
            now: SECOND,
            planned: BinaryHeap::new(),
            order: 0,
            server: Server::new(config),
            server_timer: None,
            peer_timers: vec![None; peers.len()],
            peers,
            json_peers,
            links: Vec::new(),
            dark: Vec::new(),
            oracle: Oracle::new(plan.faults),
            steps: plan.steps,
            last_step: 0,
            tokens: 0,
            plan: plan.clone(),
            fingerprint: 0xcbf2_9ce4_8422_2325,
            events: 0,
            rng,
        }
    }

    fn begin(&mut self) {
        for index in 0..self.peers.len() {
            let now = self.clock();
            let action = self.rng.pick(&ACTIONS);
            let credit = self.rng.between(1, 8) as u32;
            self.peers[index].register(action, credit);
            self.peers[index].core.start(now.mono);
            self.turn_of(index);
            let first = self.now + self.rng.below(SECOND);
            self.plan_at(first, Event::Act { peer: index });
        }
        for index in 0..self.json_peers.len() {
            let peer = self.plan.peers + index;
            self.plan_at(self.now, Event::Dialed { peer });
            self.plan_at(self.now + SECOND / 10, Event::Act { peer });
        }
        if self.plan.faults {
            self.plan_at(self.now + SECOND / 5, Event::Fault);
        }
    }

    /// No more steps, and time for everything to end: timeouts are up to 3 s, work up to 30 s, liveness takes 15 s.
    fn is_over(&self) -> bool {
        self.steps == 0 && self.planned.peek().is_none_or(|next| next.at > self.last_step + 60 * SECOND)
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Dialed { peer } => self.dialed(peer),
            Event::Piece { link, to, bytes } => {
                if self.links[link].is_open(to) && !self.dark.contains(&link) {
                    self.arrived(link, to, &bytes);
                }
            }
            Event::Gone { link, to } => self.gone(link, to),
            Event::PeerTimer { peer } => {
                self.peer_timers[peer] = None;
                let now = self.clock();
                self.peers[peer].core.handle_timeout(now.mono);
                self.peers[peer].core.check_invariants();
                self.turn_of(peer);
            }
            Event::ServerTimer => {
                self.server_timer = None;
                let now = self.clock();
                let effects = self.server.handle_timeout(now);
                self.apply(effects);
            }
            Event::Act { peer } => self.act(peer),
            Event::Work { peer, delivery } => {
                let now = self.clock();
                self.peers[peer].finish_work(delivery, &mut self.oracle, &mut self.rng, now);
                self.turn_of(peer);
            }
            Event::JsonWork { peer, link, delivery, token } => {
                let json = &mut self.json_peers[peer - self.plan.peers];
                if json.link == Some(link) {
                    json.finish_work(&delivery, token, &mut self.oracle, &mut self.rng);
                    self.flush_json(peer);
                }
            }
            Event::Fault => self.fault(),
        }
    }

    fn act(&mut self, peer: usize) {
        if self.steps == 0 {
            return;
        }
        self.steps -= 1;
        self.last_step = self.now;
        self.tokens += 1;
        let now = self.clock();
        if peer < self.plan.peers {
            self.peers[peer].act(self.tokens, &mut self.oracle, &mut self.rng, now);
            self.turn_of(peer);
        } else {
            let json = &mut self.json_peers[peer - self.plan.peers];
            if json.link.is_some() {
                json.ask(self.tokens, &mut self.oracle, &mut self.rng, now);
                self.flush_json(peer);
            }
        }
        // Bursts, then a pause.
        let pause = if self.rng.chance(800) { self.rng.below(200) } else { self.rng.below(100_000) };
        self.plan_at(self.now + pause, Event::Act { peer });
    }

    fn dialed(&mut self, peer: usize) {
        let now = self.clock();
        if self.plan.faults && self.steps > 0 && self.rng.chance(100) {
            match peer.checked_sub(self.plan.peers) {
                None => {
                    self.peers[peer].core.connect_failed("nobody listens", now.mono);
                    self.turn_of(peer);
                }
                Some(_) => self.plan_at(self.now + SECOND / 20, Event::Dialed { peer }),
            }
            return;
        }
        let link = self.links.len();
        self.links.push(Link::new(peer, &mut self.rng));
        self.server.accept(link);
        if peer < self.plan.peers {
            self.peers[peer].connected(link, now);
            self.turn_of(peer);
        } else {
            let (action, credit) = (self.rng.pick(&ACTIONS), self.rng.between(1, 8));
            let json = &mut self.json_peers[peer - self.plan.peers];
            json.connected(link);
            json.register(action, credit);
            self.flush_json(peer);
        }
    }

    fn arrived(&mut self, link: usize, to: End, bytes: &[u8]) {
        let (now, peer) = (self.clock(), self.links[link].peer);
        match to {
            End::Server => {
                let effects = self.server.receive(link, bytes, now);
                self.apply(effects);
            }
            End::Client if peer < self.plan.peers => {
                if self.peers[peer].link == Some(link) {
                    self.peers[peer].receive(bytes, now);
                    self.turn_of(peer);
                }
            }
            End::Client => {
                let json = &mut self.json_peers[peer - self.plan.peers];
                if json.link == Some(link) {
                    for (delivery, token, after) in json.receive(bytes, &mut self.oracle, &mut self.rng, now)
                    {
                        self.plan_at(self.now + after, Event::JsonWork { peer, link, delivery, token });
                    }
                }
            }
        }
    }

    fn gone(&mut self, link: usize, to: End) {
        if !std::mem::replace(&mut self.links[link].open[to as usize], false) {
            return;
        }
        let (now, peer) = (self.clock(), self.links[link].peer);
        match to {
            End::Server => {
                if self.rng.chance(500) {
                    let effects = self.server.half_closed(link, now);
                    self.apply(effects);
                }
                let effects = self.server.closed(link, now);
                self.apply(effects);
            }
            End::Client if peer < self.plan.peers => {
                if self.peers[peer].link == Some(link) {
                    self.peers[peer].disconnected(now);
                    self.turn_of(peer);
                }
            }
            End::Client => {
                let json = &mut self.json_peers[peer - self.plan.peers];
                if json.link == Some(link) {
                    json.disconnected(&mut self.oracle, now);
                    self.plan_at(self.now + SECOND / 20, Event::Dialed { peer });
                }
            }
        }
    }

    /// A link breaks: both ends learn of it, each in its time. Or it goes dark: nobody is told.
    fn fault(&mut self) {
        if self.steps == 0 {
            return;
        }
        let open: Vec<_> = (0..self.links.len()).filter(|link| self.links[*link].open == [true; 2]).collect();
        if !open.is_empty() {
            let link = self.rng.pick(&open);
            let has_core = self.links[link].peer < self.plan.peers;
            // JSON has no pings: there the operating system notices, which is not simulated.
            if has_core && self.rng.chance(150) {
                self.dark.push(link);
            } else {
                self.break_link(link);
            }
        }
        let pause = self.rng.between(SECOND / 50, SECOND);
        self.plan_at(self.now + pause, Event::Fault);
    }

    fn break_link(&mut self, link: usize) {
        for to in [End::Client, End::Server] {
            let at = self.now + self.rng.below(5000);
            self.plan_at(at, Event::Gone { link, to });
        }
    }

    fn turn_of(&mut self, peer: usize) {
        let now = self.clock();
        let wishes: VecDeque<_> = self.peers[peer].turn(&mut self.oracle, &mut self.rng, now).into();
        for wish in wishes {
            match wish {
                Wish::Dial => {
                    let at = self.now + self.rng.between(50, 3000);
                    self.plan_at(at, Event::Dialed { peer });
                }
                Wish::Send { link, bytes } => self.transmit(link, End::Server, &bytes),
                Wish::HangUp { link: Some(link) } => {
                    self.links[link].open[End::Client as usize] = false;
                    let at = self.links[link].arrival(End::Server, self.now, &mut self.rng);
                    self.plan_at(at, Event::Gone { link, to: End::Server });
                }
                Wish::HangUp { link: None } => {}
                Wish::Work { delivery, after } => {
                    self.plan_at(self.now + after, Event::Work { peer, delivery })
                }
            }
        }
        let deadline =
            self.peers[peer].core.next_deadline().map(|deadline| deadline.micros().max(self.now + 1));
        if let Some(at) = deadline
            && self.peer_timers[peer].is_none_or(|planned| at < planned)
        {
            self.peer_timers[peer] = Some(at);
            self.plan_at(at, Event::PeerTimer { peer });
        }
    }

    fn flush_json(&mut self, peer: usize) {
        let json = &mut self.json_peers[peer - self.plan.peers];
        let (link, bytes) = (json.link, json.take_outgoing());
        if let Some(link) = link {
            self.transmit(link, End::Server, &bytes);
        }
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Bytes { link, bytes } => self.transmit(link, End::Client, &bytes),
                Effect::Close { link } => {
                    let at = self.links[link].arrival(End::Client, self.now, &mut self.rng);
                    self.plan_at(at, Event::Gone { link, to: End::Client });
                    self.plan_at(at, Event::Gone { link, to: End::Server });
                }
            }
        }
        let deadline = self.server.broker.next_deadline().map(|deadline| deadline.micros().max(self.now + 1));
        if let Some(at) = deadline
            && self.server_timer.is_none_or(|planned| at < planned)
        {
            self.server_timer = Some(at);
            self.plan_at(at, Event::ServerTimer);
        }
    }

    fn transmit(&mut self, link: usize, to: End, bytes: &[u8]) {
        for (at, bytes) in self.links[link].pieces(to, bytes, self.now, &mut self.rng) {
            self.plan_at(at, Event::Piece { link, to, bytes });
        }
    }

    fn plan_at(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.planned.push(Planned { at, order: self.order, event });
    }

    fn clock(&self) -> Now {
        Now { mono: Time::from_micros(self.now), wall_ms: WALL_START_MS + self.now / 1000 }
    }

    fn note(&mut self, event: &Event) {
        let text = match event {
            Event::Piece { link, to, bytes } => format!("{link} {to:?} {} bytes", bytes.len()),
            other => format!("{other:?}"),
        };
        for byte in self.now.to_le_bytes().into_iter().chain(text.bytes()) {
            self.fingerprint = (self.fingerprint ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        if self.plan.trace {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{:>12} {text}", self.now);
        }
    }

    /// All is over: nothing is open, and nothing is left behind.
    fn finish(mut self) -> Outcome {
        self.oracle.finish();
        for peer in &self.peers {
            assert_eq!(peer.core.open_requests(), 0, "open requests of peer {}", peer.index);
            assert_eq!(peer.core.held_deliveries(), 0, "held deliveries of peer {}", peer.index);
        }
        self.server.broker.check_invariants();
        assert_eq!(self.server.broker.open_requests(), 0, "open requests of the broker");
        assert_eq!(self.server.broker.open_deliveries(), 0, "open deliveries of the broker");
        let endings = std::mem::take(&mut self.oracle.endings);
        Outcome { fingerprint: self.fingerprint, endings, events: self.events }
    }
}
