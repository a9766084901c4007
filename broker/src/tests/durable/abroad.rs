//! Durable requests at peers: several brokers with logs, links between them that break, and an oracle that sees all of it.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_protocol::message::{Ended, Forward, PeerMessage, Run, Runs};

use super::{super::any_order::Random, *};

/// What is on its way over a link.
enum Carried {
    Says(Box<PeerMessage>),
    /// The other side has a handler now, or has none any more.
    Handles(bool),
}

/// A link between two servers. Both may have dialled, so there may be two.
struct Link {
    ends: [usize; 2],
    conns: [ConnId; 2],
    /// To each of its ends.
    carried: [VecDeque<Carried>; 2],
    registered: [bool; 2],
}

/// Something that a handler works at.
struct Work {
    server: usize,
    conn: ConnId,
    delivery: u64,
    /// Unlike its id, which counts within a log, this is its alone.
    payload: Vec<u8>,
    attempt: u16,
    cancelled: bool,
}

/// A requester's view of its requests at one server.
#[derive(Default)]
struct Asked {
    conn: Option<ConnId>,
    next_number: u64,
    /// All that were not lost before they were accepted.
    sent: BTreeSet<u64>,
    accepted: u64,
    outcomes: BTreeMap<u64, (Option<Code>, Vec<u8>)>,
}

impl Asked {
    fn open(&self) -> Vec<u64> {
        let accepted = self.sent.range(..=self.accepted);
        accepted.filter(|number| !self.outcomes.contains_key(number)).copied().collect()
    }
}

struct World {
    servers: Vec<Logged>,
    boots: Vec<u64>,
    handlers: Vec<Vec<ConnId>>,
    links: Vec<Link>,
    work: Vec<Work>,
    asked: Vec<Asked>,
    random: Random,
    /// Whether times may pass in which attempts are given up while they may still run.
    impatient: bool,
    /// What was answered by a handler.
    answers: BTreeSet<Vec<u8>>,
    runs: u64,
    requests: u64,
    seen: [u64; 6],
}

const NAMES: [&str; 3] = ["a", "b", "c"];
const ATTEMPTS: u8 = 200;

impl World {
    fn new(seed: u64, servers: usize, impatient: bool) -> Self {
        let mut random = Random(seed);
        let logged = |index: usize| {
            let queue_memory_bytes = random.of(&[0, 2000, 256 << 20]);
            let config = Config {
                server_id: NAMES[index].to_owned(),
                handle_timeout: if impatient { Duration::from_secs(20) } else { HOUR * 9 },
                peer_lost: if impatient { Duration::from_secs(9) } else { HOUR * 9 },
                queue_memory_bytes,
                ping_interval: HOUR * 99,
                default_credit: 2,
                ..Config::default()
            };
            Logged::new(config)
        };
        let mut world = Self {
            servers: (0..servers).map(logged).collect(),
            boots: vec![1; servers],
            handlers: vec![Vec::new(); servers],
            links: Vec::new(),
            work: Vec::new(),
            asked: (0..servers).map(|_| Asked { next_number: 1, ..Asked::default() }).collect(),
            random,
            impatient,
            answers: BTreeSet::new(),
            runs: 0,
            requests: 0,
            seen: [0; 6],
        };
        for index in 0..servers {
            world.come_back(index);
        }
        world
    }

    fn server(&mut self) -> usize {
        self.random.below(self.servers.len() as u64) as usize
    }

    fn step(&mut self) {
        match self.random.below(40) {
            0..7 => self.request(),
            7..10 => self.link(),
            10 => self.cut(),
            11 => self.handler_comes(),
            12 if self.random.one_in(3) => self.handler_goes(),
            13..24 => self.carry(),
            24..30 => self.answer(),
            30 => {
                let millis = self.random.of(if self.impatient { &[1, 300, 7000, 25_000] } else { &[1, 300] });
                self.pass(Duration::from_millis(millis));
            }
            31 if self.random.one_in(5) => {
                let server = self.server();
                self.crash(server);
            }
            32 => self.progress(),
            _ => {
                let server = self.server();
                self.servers[server].sync();
            }
        }
        self.settle();
    }

    fn pass(&mut self, time: Duration) {
        for server in &mut self.servers {
            server.pass(time);
        }
    }

    fn request(&mut self) {
        let server = self.server();
        let asked = &mut self.asked[server];
        let (Some(conn), number) = (asked.conn, asked.next_number) else { return };
        asked.next_number += 1;
        asked.sent.insert(number);
        self.requests += 1;
        let payload = format!("{} of {}: {}", number, NAMES[server], self.requests).into_bytes();
        self.servers[server].request(conn, number, |request| {
            request.flags = RequestFlags::DURABLE;
            request.max_attempts = ATTEMPTS;
            request.content = Content::from_parts(b"sum", b"", b"", &payload);
        });
    }

    fn link(&mut self) {
        let (one, other) = (self.server(), self.server());
        let same = |link: &Link| link.ends == [one, other];
        if one == other || self.links.iter().any(same) {
            return;
        }
        let mut conns = [ConnId(0); 2];
        for (side, kept) in conns.iter_mut().enumerate() {
            let (here, there) = if side == 0 { (one, other) } else { (other, one) };
            let boot = self.boots[there];
            let stage = &mut self.servers[here];
            let conn = ConnId(stage.connections);
            stage.connections += 1;
            if side == 0 {
                stage.input(Input::Link { conn, report: Default::default() });
            }
            stage.input(Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() });
            let speaker = Speaker { instance: boot, connection: 1 };
            let peer = Some(NAMES[there].into());
            stage.say(conn, ClientMessage::Hello(Hello { peer, speaker, ..Hello::default() }));
            *kept = conn;
        }
        let mut link =
            Link { ends: [one, other], conns, carried: Default::default(), registered: [false; 2] };
        for side in 0..2 {
            let there = link.ends[1 - side];
            if !self.handlers[there].is_empty() {
                link.carried[side].push_back(Carried::Handles(true));
            }
        }
        self.links.push(link);
    }

    fn some_link(&mut self) -> Option<usize> {
        let count = self.links.len() as u64;
        (count > 0).then(|| self.random.below(count) as usize)
    }

    /// A link breaks. Each side may still read some of what was on its way before it hears of that.
    fn cut(&mut self) {
        let Some(index) = self.some_link() else { return };
        let mut link = self.links.swap_remove(index);
        for side in [0, 1] {
            for _ in 0..self.random.below(4) {
                self.carry_on(&mut link, side);
            }
            let conn = link.conns[side];
            self.servers[link.ends[side]].input(Input::Closed { conn });
            self.collect(link.ends[side]);
        }
        self.seen[0] += 1;
    }

    fn carry(&mut self) {
        let Some(index) = self.some_link() else { return };
        let mut link = self.links.swap_remove(index);
        let side = self.random.below(2) as usize;
        for _ in 0..=self.random.below(6) {
            self.carry_on(&mut link, side);
        }
        self.links.push(link);
    }

    fn carry_on(&mut self, link: &mut Link, to: usize) {
        let (server, conn) = (link.ends[to], link.conns[to]);
        match link.carried[to].pop_front() {
            Some(Carried::Says(message)) => {
                self.servers[server].say(conn, ClientMessage::Peer(message));
            }
            Some(Carried::Handles(true)) if !link.registered[to] => {
                link.registered[to] = true;
                self.servers[server].register(conn, 1, "sum", 3);
            }
            Some(Carried::Handles(false)) if link.registered[to] => {
                link.registered[to] = false;
                self.servers[server].say(conn, ClientMessage::Deregister(Target::Number(1)));
            }
            Some(Carried::Handles(_)) | None => {}
        }
        // What is said on this link while it is out of the list.
        self.collect_with(server, Some(link));
    }

    fn handler_comes(&mut self) {
        let server = self.server();
        if self.handlers[server].len() < 2 {
            let conn = self.servers[server].handler("sum", 2);
            self.handlers[server].push(conn);
            self.tell_handles(server);
        }
    }

    fn handler_goes(&mut self) {
        let server = self.server();
        if let Some(conn) = self.handlers[server].pop() {
            self.work.retain(|work| (work.server, work.conn) != (server, conn));
            self.servers[server].input(Input::Closed { conn });
            self.tell_handles(server);
        }
    }

    fn tell_handles(&mut self, server: usize) {
        let handles = !self.handlers[server].is_empty();
        for link in &mut self.links {
            for side in 0..2 {
                if link.ends[1 - side] == server {
                    link.carried[side].push_back(Carried::Handles(handles));
                }
            }
        }
    }

    fn some_work(&mut self) -> Option<usize> {
        let count = self.work.len() as u64;
        (count > 0).then(|| self.random.below(count) as usize)
    }

    fn answer(&mut self) {
        let Some(index) = self.some_work() else { return };
        let work = self.work.swap_remove(index);
        let verdict = if work.cancelled { Verdict::Cancelled } else { Verdict::Reply };
        self.runs += 1;
        let payload = format!("{}", self.runs);
        self.answers.insert(payload.clone().into_bytes());
        self.servers[work.server].answer_with(work.conn, work.delivery, verdict, &payload);
    }

    fn progress(&mut self) {
        let Some(index) = self.some_work() else { return };
        let (server, conn, number) =
            (self.work[index].server, self.work[index].conn, self.work[index].delivery);
        let progress = ringpost_protocol::message::Progress { number, ..Default::default() };
        self.servers[server].say(conn, ClientMessage::Progress(progress));
    }

    /// A server dies with what it had not synced, and comes back.
    fn crash(&mut self, server: usize) {
        for index in (0..self.links.len()).rev() {
            if !self.links[index].ends.contains(&server) {
                continue;
            }
            let mut link = self.links.swap_remove(index);
            let side = usize::from(link.ends[0] == server);
            // What it had said may still arrive.
            for _ in 0..self.random.below(4) {
                self.carry_on(&mut link, side);
            }
            let (other, conn) = (link.ends[side], link.conns[side]);
            self.servers[other].input(Input::Closed { conn });
            self.collect(other);
        }
        self.work.retain(|work| work.server != server);
        self.handlers[server].clear();
        self.servers[server].restart();
        self.boots[server] += 1;
        self.seen[1] += 1;
        self.come_back(server);
    }

    /// The requester of a server connects again, and asks for what it has open.
    fn come_back(&mut self, server: usize) {
        let logged = &mut self.servers[server];
        let conn = logged.named("r");
        let asked = &mut self.asked[server];
        // What of the rest is in the log was told to nobody: it may go on, and nobody relies on it.
        let accepted = asked.accepted;
        asked.sent.retain(|number| *number <= accepted);
        let open = asked.open();
        let boot = self.boots[server].saturating_sub(1);
        if self.boots[server] > 1 {
            let states = logged.resume(conn, boot, &open);
            for (number, state) in states {
                assert!(
                    matches!(state, OpenState::Running | OpenState::Outcome),
                    "{number} was accepted, and is {state:?}"
                );
            }
        }
        self.asked[server].conn = Some(conn);
        // Numbers that were not accepted may be used again: what was sent with them is not known.
        let next = logged.sent.iter().rev().find_map(|(to, message)| match message {
            ServerMessage::Welcome(welcome) if *to == conn => Some(welcome.next_number),
            _ => None,
        });
        self.asked[server].next_number = self.asked[server].next_number.max(next.unwrap_or(1));
        self.collect(server);
    }

    fn settle(&mut self) {
        for server in 0..self.servers.len() {
            self.collect(server);
        }
    }

    fn collect(&mut self, server: usize) {
        self.collect_with(server, None);
    }

    /// What a server has said goes where it belongs.
    fn collect_with(&mut self, server: usize, mut apart: Option<&mut Link>) {
        loop {
            while self.servers[server].read(0, |_| {}) {
                self.seen[2] += 1;
            }
            let sent = std::mem::take(&mut self.servers[server].sent);
            if sent.is_empty() {
                return;
            }
            for (conn, message) in sent {
                match message {
                    ServerMessage::Peer(message) => {
                        let at = |link: &Link| {
                            (0..2).find(|side| link.ends[*side] == server && link.conns[*side] == conn)
                        };
                        let link = match apart.as_deref_mut().filter(|link| at(link).is_some()) {
                            Some(link) => Some(link),
                            None => self.links.iter_mut().find(|link| at(link).is_some()),
                        };
                        if let Some(link) = link {
                            let to = 1 - at(link).unwrap();
                            link.carried[to].push_back(Carried::Says(message));
                        }
                    }
                    ServerMessage::Deliver(deliver) => self.begins(server, conn, &deliver),
                    ServerMessage::Cancel { delivery, .. } => {
                        let is_it = |work: &&mut Work| {
                            (work.server, work.conn, work.delivery) == (server, conn, delivery)
                        };
                        if let Some(work) = self.work.iter_mut().find(is_it) {
                            work.cancelled = true;
                        }
                    }
                    ServerMessage::Accepted { upto, .. } => {
                        let asked = &mut self.asked[server];
                        asked.accepted = asked.accepted.max(upto);
                    }
                    ServerMessage::Reply(reply) => self.ends(server, reply),
                    ServerMessage::Error(report) => panic!("{}: {report:?}", NAMES[server]),
                    _ => {}
                }
            }
        }
    }

    fn begins(&mut self, server: usize, conn: ConnId, deliver: &Deliver) {
        let (payload, attempt) = (deliver.content.payload().to_vec(), deliver.attempt);
        let text = String::from_utf8_lossy(&payload);
        // That an attempt begins is not waited for: an owner that was started anew may not know that it gave it away, and does
        // not believe what it is told of it.
        let owner = NAMES.iter().position(|name| text.contains(&format!(" of {name}: "))).unwrap();
        let counts = |server: usize, attempt: u16| {
            let (count, broker) = (deliver.request_id.count, &self.servers[owner].broker);
            server == owner || broker.expects(NAMES[server], count, attempt)
        };
        if counts(server, attempt) && !self.impatient {
            let mut others = self.work.iter().filter(|work| work.payload == payload && !work.cancelled);
            if let Some(other) = others.find(|work| counts(work.server, work.attempt)) {
                panic!(
                    "attempt {attempt} of {text} begins at {} while attempt {} may still report from {}",
                    NAMES[server], other.attempt, NAMES[other.server]
                );
            }
        }
        let delivery = deliver.delivery;
        self.work.push(Work { server, conn, delivery, payload, attempt, cancelled: false });
    }

    fn ends(&mut self, server: usize, reply: Reply) {
        let payload = reply.content.payload().to_vec();
        if reply.code.is_none() {
            assert!(self.answers.contains(&payload), "nobody has answered {payload:?}");
        }
        let outcome = (reply.code, payload);
        let known = self.asked[server].outcomes.entry(reply.number).or_insert_with(|| outcome.clone());
        assert_eq!(*known, outcome, "request {} of {} has one outcome", reply.number, NAMES[server]);
        let conn = self.asked[server].conn;
        if let Some(conn) = conn.filter(|_| self.random.one_in(2)) {
            let upto = Target::Number(reply.sequence);
            self.servers[server].say(conn, ClientMessage::Acknowledge(upto));
        }
    }

    /// Nothing breaks any more: all that was accepted ends.
    fn end(&mut self) {
        for server in 0..self.servers.len() {
            while self.handlers[server].is_empty() {
                let conn = self.servers[server].handler("sum", 2);
                self.handlers[server].push(conn);
                self.tell_handles(server);
            }
        }
        for _ in 0..600 {
            for _ in 0..8 {
                self.link();
            }
            for server in 0..self.servers.len() {
                self.servers[server].sync();
            }
            self.settle();
            for index in 0..self.links.len() {
                let mut link = self.links.swap_remove(index);
                for side in [0, 1] {
                    while !link.carried[side].is_empty() {
                        self.carry_on(&mut link, side);
                    }
                }
                self.links.push(link);
            }
            while !self.work.is_empty() {
                self.answer();
                self.settle();
            }
            self.pass(Duration::from_millis(300));
            self.settle();
        }
        for (server, asked) in self.asked.iter().enumerate() {
            let open = asked.open();
            assert!(open.is_empty(), "{}: {open:?} of {} have no outcome", NAMES[server], asked.accepted);
            let failed = asked.outcomes.values().filter(|(code, _)| code.is_some()).count();
            assert!(failed == 0 || self.impatient, "{}: {failed} failed", NAMES[server]);
        }
        let counters = self.servers.iter().map(|server| server.broker.counters());
        for counters in counters {
            self.seen[3] += counters.forwarded_durable;
            self.seen[4] += counters.stranded;
            self.seen[5] += counters.guests;
        }
        for server in &self.servers {
            assert_eq!(
                server.broker.between(),
                (0, 0),
                "{}: nothing is left",
                server.broker.config.server_id
            );
        }
    }
}

fn play(seed: u64, steps: usize, impatient: bool) -> [u64; 6] {
    let servers = 2 + (seed % 2) as usize;
    let mut world = World::new(seed, servers, impatient);
    for _ in 0..steps {
        world.step();
    }
    world.end();
    world.seen
}

/// A server with a log, and a link to another one that is played here.
fn with_peer(config: Config) -> (Logged, ConnId) {
    let mut logged = Logged::new(Config { server_id: "a".to_owned(), ..config });
    let conn = linked(&mut logged, "b", 5);
    (logged, conn)
}

fn linked(logged: &mut Logged, name: &'static str, instance: u64) -> ConnId {
    let conn = ConnId(logged.connections);
    logged.stage.connections += 1;
    logged.input(Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() });
    let speaker = Speaker { instance, connection: 1 };
    logged.say(conn, ClientMessage::Hello(Hello { peer: Some(name.into()), speaker, ..Hello::default() }));
    conn
}

fn peer_says(logged: &mut Logged, conn: ConnId, message: PeerMessage) {
    logged.say(conn, ClientMessage::Peer(Box::new(message)));
}

fn told(logged: &mut Logged, conn: ConnId) -> Vec<PeerMessage> {
    let peer = |message| if let ServerMessage::Peer(message) = message { Some(*message) } else { None };
    logged.take(conn).into_iter().filter_map(peer).collect()
}

fn forwarded(logged: &mut Logged, conn: ConnId) -> Vec<Forward> {
    let forward = |message| if let PeerMessage::Forward(forward) = message { Some(forward) } else { None };
    told(logged, conn).into_iter().filter_map(forward).collect()
}

fn ended(run: Run, verdict: Verdict) -> PeerMessage {
    PeerMessage::Ended(Ended { run, verdict, content: Content::from_payload("3") })
}

fn list(tie: u64, runs: Vec<Run>) -> Runs {
    Runs { tie, more: false, runs }
}

/// A durable request that no handler of its server has room for goes to a peer, once it is stable; the reply goes out once that
/// is stable here, and only then the peer may forget it.
#[test]
fn there_and_back() {
    let (mut logged, peer) = with_peer(Config::default());
    logged.register(peer, 1, "sum", 4);
    let (own, requester) = (logged.handler("sum", 1), logged.named("r"));
    for number in 1..=2 {
        logged.request(requester, number, durable);
    }
    assert!(forwarded(&mut logged, peer).is_empty());
    logged.sync();
    assert_eq!(logged.deliveries(own).len(), 1);
    let forward = forwarded(&mut logged, peer).remove(0);
    assert_eq!((forward.run.attempt, forward.flags), (1, RequestFlags::DURABLE));
    assert_eq!((forward.content.name(), forward.content.payload()), (&b"sum"[..], &b"{\"value\":2}"[..]));
    logged.take(requester);
    peer_says(&mut logged, peer, ended(forward.run, Verdict::Reply));
    assert!(logged.replies(requester).is_empty() && told(&mut logged, peer).is_empty());
    logged.sync();
    let reply = logged.replies(requester).remove(0);
    assert_eq!((reply.number, reply.code, reply.content.payload()), (2, None, &b"3"[..]));
    assert_eq!(told(&mut logged, peer), [PeerMessage::Taken(forward.run)]);
    // Told once more, it changes nothing, and need not be kept there.
    peer_says(&mut logged, peer, ended(forward.run, Verdict::Error));
    assert_eq!(told(&mut logged, peer), [PeerMessage::Taken(forward.run)]);
    assert!(logged.replies(requester).is_empty());
}

/// What a handler at a peer says of a send has the effect that it has here: a pause, or a dead letter.
#[test]
fn sends_fail_there_as_here() {
    let (mut logged, peer) = with_peer(Config::default());
    logged.register(peer, 1, "sum", 4);
    let requester = logged.named("r");
    logged.request(requester, 1, durable_send);
    logged.sync();
    let first = forwarded(&mut logged, peer).remove(0);
    assert!(first.flags.has(RequestFlags::SEND), "the handler is told what it is");
    peer_says(&mut logged, peer, ended(first.run, Verdict::Retry(3000)));
    logged.sync();
    logged.pass(Duration::from_millis(2999));
    assert!(forwarded(&mut logged, peer).is_empty());
    logged.pass(Duration::from_millis(1));
    let second = forwarded(&mut logged, peer).remove(0);
    assert_eq!(second.run.attempt, 2);
    peer_says(&mut logged, peer, ended(second.run, Verdict::Reject));
    logged.sync();
    assert_eq!(logged.broker.counters().dead_letters, 1);
    assert_eq!(told(&mut logged, peer), [PeerMessage::Taken(second.run)]);
}

/// When a link breaks, what the peer has stays with it: nobody else gets it until the peer is back and says that it has it not, or
/// has stayed away for `peer_lost`; only the latter uses up an attempt.
#[test]
fn stays_with_a_peer_that_is_away() {
    for comes_back in [true, false] {
        let (mut logged, peer) = with_peer(Config { ping_interval: HOUR, ..Config::default() });
        logged.register(peer, 1, "sum", 4);
        let requester = logged.named("r");
        logged.request(requester, 1, durable);
        logged.sync();
        let run = forwarded(&mut logged, peer).remove(0).run;
        logged.input(Input::Closed { conn: peer });
        let own = logged.handler("sum", 1);
        logged.pass(Duration::from_millis(59_999));
        assert!(logged.deliveries(own).is_empty());
        if comes_back {
            let peer = linked(&mut logged, "b", 6);
            let PeerMessage::Abroad(there) = told(&mut logged, peer).remove(0) else { panic!("a list") };
            assert_eq!(there.runs, [run]);
            peer_says(&mut logged, peer, PeerMessage::Unknown(there));
        } else {
            logged.pass(Duration::from_millis(1));
        }
        let attempt = logged.deliveries(own).remove(0).attempt;
        assert_eq!(attempt, if comes_back { 1 } else { 2 });
        let lost = (logged.broker.counters().stranded, logged.broker.counters().peers_lost);
        assert_eq!(lost, (1, u64::from(!comes_back)));
    }
}

/// A server that was killed finds in its log who has what, and waits for them; what a peer has done meanwhile is told.
#[test]
fn the_owner_is_started_anew() {
    let (mut logged, peer) = with_peer(Config::default());
    logged.register(peer, 1, "sum", 4);
    let requester = logged.named("r");
    logged.request(requester, 1, durable);
    logged.sync();
    let run = forwarded(&mut logged, peer).remove(0).run;
    logged.sync();
    logged.restart();
    let (own, requester) = (logged.handler("sum", 1), logged.named("r"));
    logged.resume(requester, 1, &[1]);
    logged.pass(Duration::from_secs(10));
    assert!(logged.deliveries(own).is_empty());
    let peer = linked(&mut logged, "b", 5);
    let PeerMessage::Abroad(there) = told(&mut logged, peer).remove(0) else { panic!("a list") };
    assert_eq!(there.runs, [Run { tie: 0, ..run }], "whichever it was");
    peer_says(&mut logged, peer, PeerMessage::Unknown(list(there.tie, Vec::new())));
    peer_says(&mut logged, peer, ended(run, Verdict::Reply));
    logged.sync();
    assert_eq!(logged.codes(requester), [(1, None)]);
    assert!(logged.deliveries(own).is_empty());
}

/// What a peer declines is offered again after a while, and used up no attempt.
#[test]
fn declined_for_now() {
    let (mut logged, peer) = with_peer(Config::default());
    logged.register(peer, 1, "sum", 4);
    let requester = logged.named("r");
    logged.request(requester, 1, durable);
    logged.sync();
    for _ in 0..3 {
        let forward = forwarded(&mut logged, peer).remove(0);
        assert_eq!(forward.run.attempt, 1);
        peer_says(&mut logged, peer, ended(forward.run, Verdict::Declined(Code::Overloaded)));
        assert!(forwarded(&mut logged, peer).is_empty());
        logged.pass(Duration::from_millis(250));
    }
    let own = logged.handler("sum", 1);
    let forward = forwarded(&mut logged, peer).remove(0);
    peer_says(&mut logged, peer, ended(forward.run, Verdict::Declined(Code::NoHandler)));
    assert_eq!(logged.deliveries(own).len(), 1, "at once where there is room");
}

/// A guest's handler is told the request's own id, attempt and flags; its end is kept until the owner has it, over links that
/// break; then the handler is told that its answer is stable.
#[test]
fn a_guest() {
    let (mut logged, owner) = with_peer(Config::default());
    let handler = logged.handler("sum", 1);
    let run =
        Run { request: ringpost_protocol::message::RequestId { boot: 77, count: 8 }, attempt: 3, tie: 5 };
    peer_says(&mut logged, owner, PeerMessage::Abroad(list(5, Vec::new())));
    let forward = Forward {
        run,
        flags: RequestFlags::DURABLE,
        time_left_ms: 5000,
        received_at_ms: 1234,
        content: Content::from_parts(b"sum", b"", b"", b"1"),
    };
    told(&mut logged, owner);
    peer_says(&mut logged, owner, PeerMessage::Forward(forward.clone()));
    let deliver = logged.deliveries(handler).remove(0);
    assert_eq!((deliver.request_id, deliver.attempt, deliver.flags), (run.request, 3, RequestFlags::DURABLE));
    assert_eq!((deliver.received_at_ms, deliver.time_left_ms), (1234, 5000));
    logged.input(Input::Closed { conn: owner });
    logged.answered(handler, deliver.delivery, 1);
    assert!(logged.take(handler).is_empty(), "nobody has it yet");
    let owner = linked(&mut logged, "b", 5);
    told(&mut logged, owner);
    peer_says(&mut logged, owner, PeerMessage::Abroad(list(6, vec![run])));
    let answer = [PeerMessage::Unknown(list(6, Vec::new())), ended(run, Verdict::Reply)];
    assert_eq!(told(&mut logged, owner), answer);
    peer_says(&mut logged, owner, PeerMessage::Taken(run));
    assert!(matches!(logged.take(handler)[..], [ServerMessage::Acknowledge { sequence: 1 }]));
    assert_eq!(logged.broker.between(), (0, 0));
    // One that was sent before that list, and comes behind it.
    peer_says(&mut logged, owner, PeerMessage::Forward(forward));
    assert!(logged.deliveries(handler).is_empty());
}

/// What its owner does not list ends, and its handler is told.
#[test]
fn a_guest_that_nobody_knows() {
    let (mut logged, owner) = with_peer(Config::default());
    let handler = logged.handler("sum", 1);
    let run = Run { attempt: 1, tie: 5, ..Run::default() };
    let content = Content::from_parts(b"sum", b"", b"", b"1");
    let forward = Forward { run, time_left_ms: 5000, content, ..Forward::default() };
    peer_says(&mut logged, owner, PeerMessage::Forward(forward));
    assert_eq!(logged.deliveries(handler).len(), 1);
    peer_says(&mut logged, owner, PeerMessage::Abroad(list(6, Vec::new())));
    assert!(matches!(logged.take(handler)[..], [ServerMessage::Cancel { .. }]));
    assert_eq!(logged.broker.between(), (0, 0));
}

/// Those frames are for servers: who is none has broken the protocol.
#[test]
fn only_servers() {
    let mut logged = Logged::new(Config::default());
    let client = logged.connect(Speaks::Binary);
    peer_says(&mut logged, client, PeerMessage::Abroad(list(1, Vec::new())));
    assert_eq!(logged.closed, [(client, CloseReason::Refused(Code::Malformed))]);
    let mut hello = Hello { session: b"\0peer\0b"[..].into(), ..Hello::default() };
    hello.speaker = Speaker { instance: 1, connection: 1 };
    let conn = ConnId(logged.connections);
    logged.stage.connections += 1;
    logged.input(Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() });
    logged.say(conn, ClientMessage::Hello(hello));
    assert_eq!(logged.closed[1], (conn, CloseReason::Refused(Code::Malformed)));
}

/// Whatever links and servers do: all that was accepted has one outcome, which a handler gave; no attempt begins while an earlier one
/// may still report; and nothing is left in the end. Prints the seed that it fails with.
#[test]
fn any_order() {
    let mut seen = [0; 6];
    for seed in 0..40 {
        for impatient in [false, true] {
            let result = std::panic::catch_unwind(|| play(seed, 400, impatient));
            match result {
                Ok(these) => seen.iter_mut().zip(these).for_each(|(sum, it)| *sum += it),
                Err(panic) => {
                    eprintln!("seed {seed}, impatient: {impatient}");
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
    assert!(
        seen.iter().all(|count| *count > 100),
        "cuts, crashes, reads, forwarded, stranded, guests: {seen:?}"
    );
}
