//! Anything that clients can say, in any order, with nonsense among it, while connections come and go.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_protocol::{
    Span,
    message::{Progress, Resume},
};

use super::*;

const NAMES: [&str; 8] = ["a", "a", "b", "b", "c", "$sys.stats", "ping", ""];
const SESSIONS: [&str; 4] = ["", "", "s", "t"];

/// splitmix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    pub(super) fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    pub(super) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// A connection, as its client and the driver see it.
struct Peer {
    speaks: Speaks,
    /// It has ended its half.
    quiet: bool,
    /// The broker has closed it, and was not yet told that this is done.
    ending: bool,
    next_number: u64,
    /// Requests that want a reply: `None` until it is known how many outcomes will come.
    open: BTreeMap<u64, Option<u32>>,
    held: BTreeSet<u64>,
}

struct World {
    broker: Broker,
    random: Random,
    now: Now,
    peers: BTreeMap<ConnId, Peer>,
    delivered: BTreeSet<u64>,
    transcript: String,
}

impl World {
    fn new(seed: u64, hash_seed: u64) -> Self {
        let mut random = Random(seed);
        let config = Config {
            boot: 7,
            hash_seed,
            policy: random.of(&[Policy::RoundRobin, Policy::LeastBusy]),
            dispatch_interval: Duration::from_millis(random.of(&[0, 0, 7])),
            queue_limit: 4,
            queue_limit_bytes: 100,
            leg_queue_limit: 2,
            max_actions: 3,
            default_credit: 2,
            ping_interval: Duration::from_secs(2),
            ..Config::default()
        };
        let mut broker = Broker::new(config);
        if random.one_in(3) {
            (broker.requests.most, broker.deliveries.most) = (9, 6);
        }
        let now = Now { mono: Time::from_micros(1), wall_ms: 0 };
        let (peers, delivered, transcript) = Default::default();
        Self { broker, random, now, peers, delivered, transcript }
    }

    fn input(&mut self, input: Input) {
        self.broker.handle(input, self.now);
        self.broker.check_invariants();
    }

    fn step(&mut self) {
        let conn = ConnId(self.random.below(7) as u32);
        match self.peers.get(&conn).map(|peer| (peer.quiet, peer.ending)) {
            None => self.open(conn),
            Some((_, true)) => self.close(conn),
            _ if self.random.one_in(60) => self.close(conn),
            Some((true, false)) => {}
            _ if self.random.one_in(60) => {
                self.act();
                if let Some(peer) = self.peers.get_mut(&conn).filter(|peer| !peer.ending) {
                    peer.quiet = true;
                    self.input(Input::HalfClosed { conn });
                }
            }
            Some((false, false)) => {
                let message = self.any_message(conn);
                self.input(Input::Message { conn, message });
            }
        }
        // Several inputs may share a turn.
        if !self.random.one_in(3) {
            self.act();
        }
        if self.random.one_in(5) {
            let time = self.random.of(&[1, 5, 40, 900]);
            self.pass(Duration::from_millis(time));
        }
    }

    fn open(&mut self, conn: ConnId) {
        let speaks = self.random.of(&[Speaks::Binary, Speaks::Binary, Speaks::Json]);
        let (open, held) = Default::default();
        self.peers.insert(conn, Peer { speaks, quiet: false, ending: false, next_number: 1, open, held });
        self.input(Input::Opened { conn, speaks, identity: Identity::default() });
        if speaks == Speaks::Binary && !self.random.one_in(20) {
            let (session, watch_receivers) = (self.random.of(&SESSIONS).into(), self.random.one_in(2));
            let speaker =
                Speaker { instance: self.random.below(20).min(2), connection: self.random.below(40) as u32 };
            let message =
                ClientMessage::Hello(Hello { session, speaker, watch_receivers, ..Hello::default() });
            self.input(Input::Message { conn, message });
        }
    }

    fn close(&mut self, conn: ConnId) {
        self.act();
        if self.peers.remove(&conn).is_some() {
            self.input(Input::Closed { conn });
            self.act();
        }
    }

    fn any_message(&mut self, conn: ConnId) -> ClientMessage {
        let random = &mut self.random;
        let json = self.peers[&conn].speaks == Speaks::Json;
        let name = random.of(&NAMES);
        let number = random.below(12);
        let registration = if json { 0 } else { 1 + random.below(4) as u32 };
        let credit = random.of(&[0, 1, 1, 3, u32::MAX]);
        match random.below(40) {
            0..=13 => ClientMessage::Request(self.any_request(conn, name)),
            14..=22 => {
                let (delivery, verdict) = (self.any_delivery(conn), self.any_verdict());
                let content = Content::from_payload("3");
                if let Some(peer) = self.peers.get_mut(&conn) {
                    peer.held.remove(&delivery);
                }
                ClientMessage::Answer(Answer { delivery, sequence: number, verdict, content })
            }
            23..=27 => {
                let session = if json { random.of(&SESSIONS).into() } else { Default::default() };
                ClientMessage::Register(Register { registration, credit, action: name.into(), session })
            }
            28 | 29 if json => ClientMessage::Deregister(Target::Name(name.into())),
            28 | 29 => ClientMessage::Deregister(Target::Number(registration.into())),
            30 => ClientMessage::Credit { registration, credit },
            31..=33 if json => ClientMessage::Cancel(Target::Name(random.of(&["1", "2"]).into())),
            31..=33 => ClientMessage::Cancel(Target::Number(number)),
            34 => {
                let number = self.any_delivery(conn);
                ClientMessage::Progress(Progress { number, ..Progress::default() })
            }
            35 => ClientMessage::WatchReceivers(random.one_in(2)),
            36 => ClientMessage::Acknowledge(Target::Number(number)),
            37 => {
                ClientMessage::Resume(Resume { open: vec![number], held: vec![number], ..Resume::default() })
            }
            38 if !json && random.one_in(3) => ClientMessage::Goaway,
            39 if !json && random.one_in(6) => ClientMessage::Hello(Hello::default()),
            _ => ClientMessage::Ping(number),
        }
    }

    fn any_request(&mut self, conn: ConnId, name: &str) -> Request {
        let random = &mut self.random;
        let flags = RequestFlags(random.of(&[0, 0, 0, 1, 2, 3, 4, 6, 8, 15]));
        let peer = self.peers.get_mut(&conn).unwrap();
        let json = peer.speaks == Speaks::Json;
        let text = format!("{name}{}{}", random.of(&[1, 2]), "x".repeat(random.below(40) as usize));
        let tag = if json { Span::new(name.len(), name.len() + 1) } else { Span::default() };
        let payload = Span::new(name.len() + 1, text.len());
        let empty = Span::default();
        let content = Content::from_spans(text.into(), Span::new(0, name.len()), tag, empty, empty, payload);
        let mut number = peer.next_number;
        if !json && random.one_in(50) {
            number = random.of(&[1, u64::MAX - 1, u64::MAX]);
        }
        if number >= peer.next_number && number < u64::MAX {
            peer.next_number = number + 1;
            if !flags.has(RequestFlags::SEND) {
                peer.open.insert(number, None);
            }
        }
        Request {
            number: if json { 0 } else { number },
            flags,
            max_attempts: random.of(&[0, 1, 2, 255]),
            ttl_ms: random.of(&[0, 0, 1, 700, u32::MAX]),
            timeout_ms: random.of(&[0, 3, 300, 300, 5000]),
            content,
        }
    }

    /// Mostly one that the connection holds, else another's, or none.
    fn any_delivery(&mut self, conn: ConnId) -> u64 {
        let held = &self.peers[&conn].held;
        if !held.is_empty() && !self.random.one_in(8) {
            return held.iter().nth(self.random.below(held.len() as u64) as usize).copied().unwrap();
        }
        let others = self.delivered.iter().copied().nth(self.random.below(20) as usize);
        others.unwrap_or(self.random.of(&[0, 1, u64::MAX]))
    }

    fn any_verdict(&mut self) -> Verdict {
        let reply = Verdict::Reply;
        self.random.of(&[
            reply,
            reply,
            reply,
            Verdict::Error,
            Verdict::Cancelled,
            Verdict::Retry(5),
            Verdict::Reject,
        ])
    }

    /// Does what the broker says, as a driver would.
    fn act(&mut self) {
        while let Some(output) = self.broker.poll_output() {
            self.transcript.push_str(&format!("{output:?}\n"));
            match output {
                Output::Send { conn, message } => self.sent(conn, message),
                Output::Close { conn, .. } => {
                    let peer = self.peers.get_mut(&conn).expect("who is closed was there");
                    assert!(!std::mem::replace(&mut peer.ending, true), "{conn} is closed once");
                }
                Output::Full { .. } => panic!("there is no bound"),
                Output::Read(_) | Output::Unreadable(_) | Output::Unavailable(_) => panic!("there is no log"),
                Output::PeersChanged => panic!("there are no peers"),
                Output::Drained => assert_eq!(self.broker.open_requests(), 0),
            }
            self.broker.check_invariants();
        }
    }

    fn sent(&mut self, conn: ConnId, message: ServerMessage) {
        let peer = self.peers.get_mut(&conn).filter(|peer| !peer.ending);
        let Some(peer) = peer else { panic!("said behind the end of {conn}: {message:?}") };
        let json = peer.speaks == Speaks::Json;
        let carries = matches!(&message, ServerMessage::Deliver(_))
            || matches!(&message, ServerMessage::Reply(reply) if reply.code.is_none());
        if json && carries && self.random.one_in(10) {
            return self.input(Input::Undeliverable { conn, message: Box::new(message) });
        }
        match message {
            ServerMessage::Deliver(deliver) => {
                assert!(!peer.quiet, "nothing is delivered to {conn}, which could not answer");
                assert!(self.delivered.insert(deliver.delivery), "a delivery's number is never used again");
                peer.held.insert(deliver.delivery);
            }
            ServerMessage::Reply(reply) => {
                if let Some(left) = peer.open.remove(&reply.number) {
                    let expected = left.or(reply.leg.map(|leg| leg.expected)).unwrap_or(1);
                    if expected > 1 {
                        peer.open.insert(reply.number, Some(expected - 1));
                    }
                } else {
                    // All that is ever heard of a send is that it was refused.
                    let refused = reply.code.is_some() && reply.attempt == 0;
                    assert!(refused, "an outcome nobody waits for: {reply:?}");
                }
            }
            _ => {}
        }
    }

    fn pass(&mut self, time: Duration) {
        self.act();
        let end = self.now.mono + time;
        while let Some(deadline) = self.broker.next_deadline().filter(|deadline| *deadline <= end) {
            self.now.mono = deadline.max(self.now.mono);
            self.broker.handle_timeout(self.now);
            self.broker.check_invariants();
            self.act();
        }
        self.now.mono = end;
    }

    /// Binary clients that are pinged.
    fn talking(&self) -> Vec<ConnId> {
        let talking = |peer: &Peer| peer.speaks == Speaks::Binary && !peer.quiet && !peer.ending;
        self.peers.iter().filter(|(_, peer)| talking(peer)).map(|(conn, _)| *conn).collect()
    }

    /// Whoever is still there has all its outcomes in the end, and when all have gone, nothing is left.
    fn end(&mut self) {
        self.act();
        // Binary clients that talk wait for 10 s at most; others may wait for a week.
        for second in 0..11 {
            for conn in self.talking() {
                self.input(Input::Message { conn, message: ClientMessage::Pong(second) });
            }
            self.pass(Duration::from_secs(1));
        }
        for conn in self.talking() {
            let open = &self.peers[&conn].open;
            assert!(open.is_empty(), "{conn} has its outcomes but for {open:?}");
        }
        self.pass(Duration::from_secs(8 * 24 * 3600));
        assert_eq!(self.talking(), [], "who was silent for a week is lost");
        for (conn, Peer { open, .. }) in self.peers.iter().filter(|(_, peer)| !peer.ending) {
            assert!(open.is_empty(), "{conn} has its outcomes but for {open:?}");
        }
        for conn in self.peers.keys().copied().collect::<Vec<_>>() {
            self.close(conn);
        }
        self.pass(Duration::from_secs(3600));
        let broker = &self.broker;
        let slabs = [
            broker.sessions.len(),
            broker.actions.len(),
            broker.handlers.len(),
            broker.requests.len(),
            broker.kept.len(),
            broker.deliveries.len(),
            broker.session_by_name.len(),
            broker.action_by_name.len(),
            broker.timers.len(),
            broker.receivers.watchers.len(),
            broker.paced.len(),
            broker.accepted.len(),
        ];
        assert_eq!(slabs, [0; 12], "nothing is left of those who are gone");
    }
}

fn run(seed: u64, hash_seed: u64) -> String {
    let mut world = World::new(seed, hash_seed);
    for step in 0..400 {
        if step == 350 && seed.is_multiple_of(4) {
            world.input(Input::Drain { grace_ms: 1000 });
        }
        world.step();
    }
    world.end();
    world.transcript
}

/// Each request that wants a reply has its outcomes, once each; nothing is delivered twice under one number or to one who
/// cannot answer; the invariants hold after each input; and in the end nothing is left.
#[test]
fn any_order_of_anything() {
    for seed in 0..400 {
        let outcome = std::panic::catch_unwind(|| run(seed, 1));
        assert!(outcome.is_ok(), "seed {seed}");
    }
}

/// What follows from what does not depend on how the tables are hashed.
#[test]
fn hashing_decides_nothing() {
    for seed in 0..20 {
        assert!(run(seed, 1) == run(seed, 2), "seed {seed}");
    }
}
