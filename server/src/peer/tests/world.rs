//! Cores, links and clients in one place, and time that only passes when it is told to.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use ringpost_broker::{Broker, Config, ConnId, Identity, Input, LinkState, Output, Speaks};
use ringpost_protocol::{
    Code, Content,
    message::{
        Answer, ClientMessage, Hello, Register, Reply, Request, RequestFlags, ServerMessage, Target, Verdict,
    },
    time::{Now, Time},
};

use crate::peer::{Link, LinkOutput, LinkSettings};

/// Random numbers that a seed repeats. (splitmix64, Steele and others, 2014.)
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

struct Node {
    broker: Broker,
    connections: u32,
}

/// A link, and the wire that it speaks on now.
struct Wired {
    link: Link,
    from: usize,
    to: usize,
    wants: bool,
    forbidden: bool,
    wire: Option<Wire>,
}

struct Wire {
    /// The connection's number at the far end; `None` once that has closed it.
    conn: Option<ConnId>,
    to_server: VecDeque<ClientMessage>,
    to_client: VecDeque<ServerMessage>,
    /// The near end says nothing more.
    ending: bool,
}

struct Handler {
    node: usize,
    conn: ConnId,
    held: Vec<(u64, u64)>,
    gone: bool,
}

#[derive(Default)]
struct Asked {
    node: usize,
    attempts: u8,
    runs: Vec<usize>,
    outcome: Option<Reply>,
    /// Of a broadcast.
    every: Option<Every>,
}

/// What is known of a broadcast.
#[derive(Default)]
struct Every {
    /// Which handlers have had it.
    handlers: Vec<usize>,
    /// How many of them have answered with a reply.
    replied: usize,
    told: Option<u32>,
    legs: Vec<Reply>,
}

pub(super) struct World {
    nodes: Vec<Node>,
    links: Vec<Wired>,
    handlers: Vec<Handler>,
    requesters: Vec<ConnId>,
    asked: Vec<Asked>,
    numbers: BTreeMap<(usize, u64), usize>,
    now: Now,
}

impl World {
    pub(super) fn new(names: &[&str], links: &[(usize, usize)]) -> Self {
        let now = Now { mono: Time::from_micros(1_000_000), wall_ms: 1_700_000_000_000 };
        let mut world = Self {
            nodes: Vec::new(),
            links: Vec::new(),
            handlers: Vec::new(),
            requesters: Vec::new(),
            asked: Vec::new(),
            numbers: BTreeMap::new(),
            now,
        };
        for (node, name) in names.iter().enumerate() {
            let boot = 100 + node as u64;
            let config = Config { server_id: (*name).into(), boot, ..Config::default() };
            let dialled = links.iter().filter(|(from, _)| *from == node).count() as u32;
            world.nodes.push(Node { broker: Broker::new(config), connections: dialled });
        }
        for (at, (from, to)) in links.iter().enumerate() {
            let index = links[..at].iter().filter(|(other, _)| other == from).count() as u32;
            let link = Link::new(LinkSettings {
                conn: ConnId(index),
                server_id: names[*from].into(),
                boot: 100 + *from as u64,
                address: format!("{from} to {to}"),
                action: None,
                credit: 3,
                seed: at as u64,
            });
            world.links.push(Wired {
                link,
                from: *from,
                to: *to,
                wants: false,
                forbidden: false,
                wire: None,
            });
        }
        for node in 0..names.len() {
            let conn = world.connect(node);
            world.requesters.push(conn);
        }
        for link in 0..links.len() {
            world.with_link(link, |link, now| link.start(now));
        }
        world
    }

    // Clients.

    fn connect(&mut self, node: usize) -> ConnId {
        let conn = ConnId(self.nodes[node].connections);
        self.nodes[node].connections += 1;
        let identity = Identity::default();
        self.input(node, Input::Opened { conn, speaks: Speaks::Binary, identity });
        self.say(node, conn, ClientMessage::Hello(Hello::default()));
        conn
    }

    pub(super) fn handler(&mut self, node: usize, action: &'static str, credit: u32) -> usize {
        let conn = self.connect(node);
        self.handlers.push(Handler { node, conn, held: Vec::new(), gone: false });
        let register =
            Register { registration: 1, credit, action: action.into(), session: Default::default() };
        self.say(node, conn, ClientMessage::Register(register));
        self.handlers.len() - 1
    }

    pub(super) fn held(&self, handler: usize) -> &[(u64, u64)] {
        &self.handlers[handler].held
    }

    pub(super) fn answer(&mut self, handler: usize, at: usize, verdict: Verdict) {
        let Handler { node, conn, held, .. } = &mut self.handlers[handler];
        let (node, conn, (delivery, id)) = (*node, *conn, held.remove(at));
        if let Some(every) = &mut self.asked[id as usize].every {
            every.replied += usize::from(verdict == Verdict::Reply);
        }
        let name: &[u8] = if verdict == Verdict::Error { b"E42" } else { b"" };
        let content = Content::from_parts(name, b"", b"", format!("r{id}").as_bytes());
        self.say(node, conn, ClientMessage::Answer(Answer { delivery, sequence: 0, verdict, content }));
    }

    /// It handles nothing more, but may answer.
    pub(super) fn leave(&mut self, handler: usize) {
        let Handler { node, conn, .. } = self.handlers[handler];
        self.say(node, conn, ClientMessage::Deregister(Target::Number(1)));
    }

    pub(super) fn kill(&mut self, handler: usize) {
        let Handler { node, conn, .. } = self.handlers[handler];
        if !std::mem::replace(&mut self.handlers[handler].gone, true) {
            self.handlers[handler].held.clear();
            self.input(node, Input::Closed { conn });
        }
    }

    pub(super) fn ask(&mut self, node: usize, action: &'static str, attempts: u8) -> usize {
        self.ask_as(node, action, Asked { node, attempts, ..Asked::default() })
    }

    pub(super) fn broadcast(&mut self, node: usize, action: &'static str) -> usize {
        let every = Some(Every::default());
        self.ask_as(node, action, Asked { node, attempts: 1, every, ..Asked::default() })
    }

    fn ask_as(&mut self, node: usize, action: &'static str, asked: Asked) -> usize {
        let (id, conn) = (self.asked.len(), self.requesters[node]);
        let flags = if asked.every.is_some() { RequestFlags::BROADCAST } else { RequestFlags::default() };
        let max_attempts = asked.attempts;
        self.asked.push(asked);
        let number = id as u64 + 1;
        self.numbers.insert((node, number), id);
        let content = Content::from_parts(action.as_bytes(), b"", b"", id.to_string().as_bytes());
        let request =
            Request { number, flags, max_attempts, timeout_ms: 20_000, content, ..Request::default() };
        self.say(node, conn, ClientMessage::Request(request));
        id
    }

    /// How many legs a broadcast has, as far as its requester knows, and how those ended that have.
    pub(super) fn legs(&self, request: usize) -> (Option<u32>, Vec<Option<Code>>) {
        let every = self.asked[request].every.as_ref().expect("it is a broadcast");
        (every.told, every.legs.iter().map(|leg| leg.code).collect())
    }

    pub(super) fn cancel(&mut self, request: usize) {
        let node = self.asked[request].node;
        let target = Target::Number(request as u64 + 1);
        self.say(node, self.requesters[node], ClientMessage::Cancel(target));
    }

    pub(super) fn outcome(&self, request: usize) -> Option<Option<Code>> {
        self.asked[request].outcome.as_ref().map(|reply| reply.code)
    }

    /// The code of a handler's own, and its message.
    pub(super) fn words(&self, request: usize) -> (String, String) {
        let content = &self.asked[request].outcome.as_ref().expect("it has an outcome").content;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(content.name()), text(content.payload()))
    }

    /// The code with which a request ends that nobody gets.
    pub(super) fn refused(&mut self, node: usize, action: &'static str) -> Code {
        let request = self.ask(node, action, 1);
        self.settle();
        assert!(self.asked[request].runs.is_empty());
        self.outcome(request).expect("it is refused").expect("with an error")
    }

    pub(super) fn answer_all(&mut self) {
        loop {
            self.settle();
            let Some(handler) = self.handlers.iter().position(|handler| !handler.held.is_empty()) else {
                return;
            };
            self.answer(handler, 0, Verdict::Reply);
        }
    }

    // Links.

    pub(super) fn state(&self, link: usize) -> &LinkState {
        self.links[link].link.state()
    }

    /// The wire breaks: each end learns of it, and what was on its way is gone.
    pub(super) fn cut(&mut self, link: usize) {
        let Some(wire) = self.links[link].wire.take() else { return };
        if let Some(conn) = wire.conn {
            self.input(self.links[link].to, Input::Closed { conn });
        }
        self.with_link(link, |link, now| link.disconnected("cut".to_owned(), now));
    }

    /// It cannot connect any more.
    pub(super) fn forbid(&mut self, link: usize) {
        self.links[link].forbidden = true;
    }

    pub(super) fn heal(&mut self) {
        self.links.iter_mut().for_each(|link| link.forbidden = false);
    }

    fn with_link(&mut self, at: usize, call: impl FnOnce(&mut Link, Time)) {
        call(&mut self.links[at].link, self.now.mono);
        self.links[at].link.check_invariants();
        while let Some(output) = self.links[at].link.poll_output() {
            let wired = &mut self.links[at];
            match output {
                LinkOutput::Core(input) => self.nodes[wired.from].broker.handle(input, self.now),
                LinkOutput::Connect => wired.wants = true,
                LinkOutput::Send(message) => {
                    wired.wire.as_mut().expect("it is connected").to_server.push_back(message);
                }
                LinkOutput::Disconnect => {
                    wired.wants = false;
                    if let Some(wire) = &mut wired.wire {
                        wire.ending = true;
                    }
                }
                LinkOutput::Abort => {
                    wired.wants = false;
                    if let Some(conn) = wired.wire.take().and_then(|wire| wire.conn) {
                        let to = wired.to;
                        self.input(to, Input::Closed { conn });
                    }
                }
            }
        }
        self.act(self.links[at].from);
    }

    /// Moves one thing on a link. Whether there was one.
    fn move_one(&mut self, at: usize, to_server: bool) -> bool {
        let wired = &mut self.links[at];
        let (to, wants) = (wired.to, wired.wants);
        if wants && wired.wire.is_none() {
            wired.wants = false;
            if wired.forbidden {
                let error = ringpost_client::Error::new(Code::Connect, "forbidden");
                self.with_link(at, |link, now| link.turned_away(error, now));
                return true;
            }
            let conn = ConnId(self.nodes[to].connections);
            self.nodes[to].connections += 1;
            let (to_server, to_client) = (VecDeque::new(), VecDeque::new());
            self.links[at].wire = Some(Wire { conn: Some(conn), to_server, to_client, ending: false });
            self.input(to, Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() });
            self.with_link(at, |link, now| link.connected(now));
            return true;
        }
        let Some(wire) = &mut wired.wire else { return false };
        if to_server {
            match (wire.to_server.pop_front(), wire.conn) {
                (Some(message), Some(conn)) => self.say(to, conn, message),
                (Some(_), None) => {}
                (None, conn) if wire.ending => {
                    wired.wire = None;
                    if let Some(conn) = conn {
                        self.input(to, Input::Closed { conn });
                    }
                }
                (None, _) => return false,
            }
            return true;
        }
        match wire.to_client.pop_front() {
            Some(_) if wire.ending => {}
            Some(message) => self.with_link(at, |link, now| link.received(message, now)),
            None if wire.conn.is_none() && !wire.ending => {
                wired.wire = None;
                self.with_link(at, |link, now| link.disconnected("closed".to_owned(), now));
            }
            None => return false,
        }
        true
    }

    // Cores.

    fn say(&mut self, node: usize, conn: ConnId, message: ClientMessage) {
        self.input(node, Input::Message { conn, message });
    }

    fn input(&mut self, node: usize, input: Input) {
        self.nodes[node].broker.handle(input, self.now);
        self.act(node);
    }

    fn act(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].broker.poll_output() {
            match output {
                Output::Send { conn, message } => self.sent(node, conn, message),
                Output::Close { conn, .. } => self.closed(node, conn),
                Output::PeersChanged => self.peers_changed(node),
                Output::Read(_) | Output::Unreadable(_) | Output::Unavailable(_) => panic!("there is no log"),
                Output::Full { .. } | Output::Drained => panic!("nobody asked for that"),
            }
        }
        self.nodes[node].broker.check_invariants();
    }

    fn link_of(&self, node: usize, conn: ConnId) -> Option<usize> {
        let mine = self.links.iter().enumerate().filter(|(_, link)| link.from == node);
        mine.map(|(at, _)| at).nth(conn.0 as usize)
    }

    fn wire_of(&mut self, node: usize, conn: ConnId) -> Option<&mut Wire> {
        let wires =
            self.links.iter_mut().filter(|link| link.to == node).filter_map(|link| link.wire.as_mut());
        wires.into_iter().find(|wire| wire.conn == Some(conn))
    }

    fn sent(&mut self, node: usize, conn: ConnId, message: ServerMessage) {
        if let Some(link) = self.link_of(node, conn) {
            return self.with_link(link, |link, now| link.heard_from_core(message, now));
        }
        if let Some(wire) = self.wire_of(node, conn) {
            return wire.to_client.push_back(message);
        }
        match message {
            ServerMessage::Ping(token) => self.say(node, conn, ClientMessage::Pong(token)),
            ServerMessage::Deliver(deliver) => {
                let id: u64 = std::str::from_utf8(deliver.content.payload()).unwrap().parse().unwrap();
                let handler = self.handlers.iter().position(|it| it.node == node && it.conn == conn);
                let handler = handler.expect("deliveries go to handlers");
                self.handlers[handler].held.push((deliver.delivery, id));
                self.ran(id as usize, node, handler);
            }
            ServerMessage::Cancel { delivery, .. } => {
                let handler = self.handlers.iter().position(|it| it.node == node && it.conn == conn).unwrap();
                let at = self.handlers[handler].held.iter().position(|(held, _)| *held == delivery);
                at.into_iter().for_each(|at| self.answer(handler, at, Verdict::Cancelled));
            }
            ServerMessage::Legs { number, expected } => {
                let id = self.numbers[&(node, number)];
                let every = self.asked[id].every.as_mut().expect("only broadcasts have legs");
                assert!(every.told.is_none() && every.legs.is_empty() && expected > 0, "{id} is told once");
                every.told = Some(expected);
            }
            ServerMessage::Reply(reply) => self.replied(node, reply),
            _ => {}
        }
    }

    fn closed(&mut self, node: usize, conn: ConnId) {
        if let Some(link) = self.link_of(node, conn) {
            return self.with_link(link, |link, now| link.dropped_by_core(now));
        }
        if let Some(wire) = self.wire_of(node, conn) {
            wire.conn = None;
        }
        self.input(node, Input::Closed { conn });
    }

    fn peers_changed(&mut self, node: usize) {
        for at in 0..self.links.len() {
            let Some(peer) = self.links[at].link.peer_id().filter(|_| self.links[at].from == node) else {
                continue;
            };
            let dialled = self.nodes[node].broker.has_dialling_peer(peer);
            self.with_link(at, |link, now| link.peers_changed(dialled, now));
        }
    }

    // What must hold.

    fn ran(&mut self, id: usize, node: usize, handler: usize) {
        let linked = |one: usize, other: usize| {
            self.links.iter().any(|link| [(one, other), (other, one)].contains(&(link.from, link.to)))
        };
        let origin = self.asked[id].node;
        assert!(
            origin == node || linked(origin, node),
            "{id} of {origin} went further than one hop, to {node}"
        );
        let asked = &mut self.asked[id];
        asked.runs.push(node);
        if let Some(every) = &mut asked.every {
            assert!(!every.handlers.contains(&handler), "{id} runs twice in handler {handler}");
            return every.handlers.push(handler);
        }
        // What was given up may be on its way still; what has a reply, or was refused, is not.
        let over = |reply: &Reply| matches!(reply.code, None | Some(Code::NoHandler | Code::Overloaded));
        assert!(!asked.outcome.as_ref().is_some_and(over), "{id} runs after its end: {:?}", asked.outcome);
        assert!(asked.runs.len() <= usize::from(asked.attempts), "{id} runs too often: {:?}", asked.runs);
    }

    fn replied(&mut self, node: usize, reply: Reply) {
        let id = self.numbers[&(node, reply.number)];
        let asked = &mut self.asked[id];
        assert!(asked.outcome.is_none(), "{id} ends twice: {:?}, then {reply:?}", asked.outcome);
        if let (Some(every), Some(leg)) = (&mut asked.every, reply.leg) {
            assert_eq!(every.told, Some(leg.expected), "{id} has so many legs");
            let new = every.legs.iter().all(|known| known.leg.map(|known| known.index) != Some(leg.index));
            assert!(new && leg.index < leg.expected, "{id}: {leg:?} ends once");
            if reply.code.is_none() {
                assert_eq!(reply.content.payload(), format!("r{id}").as_bytes(), "its own reply");
            }
            every.legs.push(reply.clone());
            let replies = every.legs.iter().filter(|leg| leg.code.is_none()).count();
            assert!(replies <= every.replied, "{id}: a reply for each that was given");
            if every.legs.len() == leg.expected as usize {
                asked.outcome = Some(reply);
            }
            return;
        }
        match reply.code {
            None => assert_eq!(reply.content.payload(), format!("r{id}").as_bytes(), "its own reply"),
            Some(Code::NoHandler | Code::Overloaded) => {
                assert!(asked.runs.is_empty(), "{id} has run: {:?}, {reply:?}", asked.runs);
            }
            Some(Code::Remote) => assert!(!asked.runs.is_empty()),
            Some(_) => {}
        }
        asked.outcome = Some(reply);
    }

    // Time.

    /// All that is on its way arrives, and a moment passes: lists of receivers are not told at once.
    pub(super) fn settle(&mut self) {
        for _ in 0..3 {
            self.arrive();
            self.tick(Duration::from_millis(20));
        }
        self.arrive();
    }

    /// All that is on its way arrives, without a moment passing.
    fn arrive(&mut self) {
        while (0..self.links.len()).any(|link| self.move_one(link, true) || self.move_one(link, false)) {}
    }

    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now.mono + time;
        while self.now.mono < end {
            self.tick(Duration::from_millis(20));
            self.arrive();
        }
    }

    fn tick(&mut self, time: Duration) {
        self.now.mono = self.now.mono + time;
        self.now.wall_ms += time.as_millis() as u64;
        self.wake();
    }

    fn wake(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].broker.next_deadline().is_some_and(|deadline| deadline <= self.now.mono) {
                self.nodes[node].broker.handle_timeout(self.now);
                self.act(node);
            }
        }
        for link in 0..self.links.len() {
            if self.links[link].link.next_deadline().is_some_and(|deadline| deadline <= self.now.mono) {
                self.with_link(link, |link, now| link.handle_timeout(now));
            }
        }
    }

    /// Something happens.
    pub(super) fn step(&mut self, rng: &mut Rng) {
        let (nodes, links, handlers) = (self.nodes.len(), self.links.len(), self.handlers.len());
        let action = ["sum", "mail"][rng.below(2)];
        match rng.below(32) {
            0..=9 if links > 0 => {
                self.move_one(rng.below(links), rng.below(2) == 0);
            }
            10..=13 => {
                self.ask(rng.below(nodes), action, 1 + rng.below(3) as u8);
            }
            14..=15 => {
                self.broadcast(rng.below(nodes), action);
            }
            16..=20 if handlers > 0 => {
                let handler = rng.below(handlers);
                if let Some(at) =
                    self.handlers[handler].held.len().checked_sub(1).map(|last| rng.below(last + 1))
                {
                    self.answer(handler, at, [Verdict::Reply, Verdict::Error][rng.below(2)]);
                }
            }
            21..=22 if self.handlers.iter().filter(|handler| !handler.gone).count() < 6 => {
                self.handler(rng.below(nodes), action, 1 + rng.below(3) as u32);
            }
            23 if handlers > 0 => self.kill(rng.below(handlers)),
            24 if handlers > 0 => {
                let handler = rng.below(handlers);
                if !self.handlers[handler].gone {
                    self.leave(handler);
                }
            }
            25 if links > 0 => {
                if rng.below(4) == 0 {
                    self.cut(rng.below(links));
                }
            }
            26 => {
                let last = self.asked.len().saturating_sub(1);
                if let Some(asked) =
                    self.asked.get(rng.below(last + 1)).filter(|asked| asked.outcome.is_none())
                {
                    let node = asked.node;
                    let number = self
                        .numbers
                        .iter()
                        .rev()
                        .find(|((of, _), id)| *of == node && self.asked[**id].outcome.is_none());
                    let number = number.map(|((_, number), _)| *number);
                    if let Some(number) = number {
                        self.say(node, self.requesters[node], ClientMessage::Cancel(Target::Number(number)));
                    }
                }
            }
            27 => self.settle(),
            28 => self.tick(Duration::from_millis(rng.below(3000) as u64)),
            _ => self.tick(Duration::from_millis(rng.below(40) as u64)),
        }
    }

    /// How often requests went to a peer, and how often a peer declined one.
    pub(super) fn forwarded(&self) -> (u64, u64) {
        let counters = self.nodes.iter().map(|node| node.broker.counters());
        counters.fold((0, 0), |sum, its| (sum.0 + its.forwarded, sum.1 + its.declined))
    }

    /// How many broadcasts had replies from several servers.
    pub(super) fn spread(&self) -> usize {
        let replies = |every: &Every| every.legs.iter().filter(|leg| leg.code.is_none()).count();
        let spread = |asked: &&Asked| {
            let several = asked.runs.iter().any(|node| *node != asked.runs[0]);
            several && asked.every.as_ref().is_some_and(|every| replies(every) == asked.runs.len())
        };
        self.asked.iter().filter(spread).count()
    }

    /// How many requests that are no broadcasts ended so.
    pub(super) fn ended(&self, code: Option<Code>) -> usize {
        let ended = |asked: &&Asked| {
            asked.every.is_none() && asked.outcome.as_ref().is_some_and(|reply| reply.code == code)
        };
        self.asked.iter().filter(ended).count()
    }

    /// All is answered, and nothing is left.
    pub(super) fn end(&mut self) {
        self.answer_all();
        self.pass(Duration::from_secs(15));
        self.answer_all();
        self.pass(Duration::from_secs(15));
        self.answer_all();
        for (id, asked) in self.asked.iter().enumerate() {
            assert!(asked.outcome.is_some(), "{id} has no outcome");
        }
        for node in &self.nodes {
            assert_eq!((node.broker.open_requests(), node.broker.open_deliveries()), (0, 0));
        }
    }
}
