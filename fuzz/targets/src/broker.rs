//! The broker's core: any history of connections, messages and time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ringpost_broker::{Broker, Config, ConnId, Identity, Input, Output, Policy, RefusalCause, Speaks};
use ringpost_protocol::{
    Content, Span,
    message::{
        Answer, ClientMessage, Hello, Progress, Register, Request, RequestFlags, Resume, ServerMessage,
        Speaker, Target, Verdict,
    },
    time::{Now, Time},
};

use crate::choices::Choices;

const BOOT: u64 = 7;
const NAMES: [&str; 8] = ["a", "a", "b", "b", "c", "$sys.stats", "ping", ""];
const SESSIONS: [&str; 4] = ["", "", "s", "t"];
/// Histories beyond this are no better than two shorter ones.
const MAX_STEPS: usize = 2000;

/// Reads bytes as a history of a broker with small limits.
///
/// The invariants hold after each step. No delivery's number is used twice, and none goes to who could not answer it;
/// nothing is said behind a connection's end; a request of a session without a name has one outcome, or one for each leg.
/// And when all have gone, nothing is left.
///
/// # Panics
/// If something of that does not hold.
pub fn broker(input: &[u8]) {
    let mut world = World::new(Choices::new(input));
    for _ in 0..MAX_STEPS {
        if world.choices.are_over() {
            break;
        }
        world.step();
    }
    world.end();
}

/// A connection, as its client and the driver see it.
struct Peer {
    speaks: Speaks,
    /// Its session has a name, so that outcomes of earlier connections may come too.
    named: bool,
    /// It has ended its half.
    quiet: bool,
    /// The broker has closed it, and was not yet told that this is done.
    ending: bool,
    next_number: u64,
    /// Requests that want a reply: `None` until it is known how many outcomes will come.
    open: BTreeMap<u64, Option<u32>>,
    held: BTreeSet<u64>,
}

struct World<'a> {
    choices: Choices<'a>,
    broker: Broker,
    now: Now,
    peers: BTreeMap<ConnId, Peer>,
    delivered: BTreeSet<u64>,
    draining: bool,
}

impl<'a> World<'a> {
    fn new(mut choices: Choices<'a>) -> Self {
        let config = Config {
            boot: BOOT,
            hash_seed: 1,
            policy: choices.of(&[Policy::RoundRobin, Policy::LeastBusy]),
            dispatch_interval: Duration::from_millis(choices.of(&[0, 0, 7])),
            queue_limit: 4,
            queue_limit_bytes: 100,
            memory_bytes: choices.of(&[1 << 20, 200]),
            leg_queue_limit: 2,
            window_bytes: choices.of(&[usize::MAX, 30]),
            max_actions: 3,
            default_credit: 2,
            ping_interval: Duration::from_secs(2),
            stuck_after: Duration::from_secs(choices.of(&[30, 1])),
            max_sessions_away: choices.of(&[16, 1]),
            outcome_limit_bytes: choices.of(&[1 << 10, 40]),
            ..Config::default()
        };
        Self {
            choices,
            broker: Broker::new(config),
            now: Now { mono: Time::from_micros(1), wall_ms: 1_000_000 },
            peers: BTreeMap::new(),
            delivered: BTreeSet::new(),
            draining: false,
        }
    }

    fn input(&mut self, input: Input) {
        self.broker.handle(input, self.now);
        self.broker.check_invariants();
    }

    fn say(&mut self, conn: ConnId, message: ClientMessage) {
        self.input(Input::Message { conn, message });
    }

    fn step(&mut self) {
        let conn = ConnId(self.choices.below(7) as u32);
        match self.peers.get(&conn).map(|peer| (peer.quiet, peer.ending)) {
            None => self.open(conn),
            Some((_, true)) => self.close(conn),
            Some((quiet, false)) => self.happen(conn, quiet),
        }
        // Several inputs may share a turn.
        if !self.choices.one_in(3) {
            self.act();
        }
    }

    /// Something happens on a connection, or to the broker.
    fn happen(&mut self, conn: ConnId, quiet: bool) {
        match self.choices.below(64) {
            0..=9 => {
                let time = self.choices.of(&[1, 1, 5, 40, 900, 7_000, 70_000]);
                self.pass(Duration::from_millis(time));
            }
            10..=12 => self.close(conn),
            13 => self.now.wall_ms = self.choices.of(&[0, 1_000_000, u64::MAX / 2]),
            14 => self.input(Input::Heard { conn }),
            19 => self.input(Input::Clogged { conn }),
            20 | 21 => self.input(Input::Unclogged { conn }),
            22 => self.input(Input::HeldBack { conn }),
            15 => self.input(Input::Refused { cause: RefusalCause::Mute }),
            16 if !self.draining && self.choices.one_in(4) => {
                self.draining = true;
                self.input(Input::Drain { grace_ms: 1000 });
            }
            17 if self.draining => self.input(Input::DrainOver),
            18 if !quiet => {
                self.act();
                if let Some(peer) = self.peers.get_mut(&conn).filter(|peer| !peer.ending) {
                    peer.quiet = true;
                    self.input(Input::HalfClosed { conn });
                }
            }
            _ if quiet => {}
            _ => {
                let message = self.any_message(conn);
                self.say(conn, message);
            }
        }
    }

    fn open(&mut self, conn: ConnId) {
        let speaks = self.choices.of(&[Speaks::Binary, Speaks::Binary, Speaks::Json]);
        let session = self.choices.of(&SESSIONS);
        let peer = Peer {
            speaks,
            named: !session.is_empty(),
            quiet: false,
            ending: false,
            next_number: 1,
            open: BTreeMap::new(),
            held: BTreeSet::new(),
        };
        self.peers.insert(conn, peer);
        self.input(Input::Opened { conn, speaks, identity: Identity::default() });
        if speaks == Speaks::Binary && !self.choices.one_in(20) {
            let (session, watch_receivers) = (session.into(), self.choices.one_in(2));
            let speaker = Speaker {
                instance: self.choices.of(&[1, 1, 1, 2, 2, 0]),
                connection: self.choices.of(&[1, 2, 3, 4, 5, 6, 7, 0]),
            };
            let hello = Hello { session, speaker, watch_receivers, ..Hello::default() };
            self.say(conn, ClientMessage::Hello(hello));
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
        let json = self.peers[&conn].speaks == Speaks::Json;
        let choices = &mut self.choices;
        let kind = choices.below(42);
        let name = choices.of(&NAMES);
        let number = choices.below(12);
        let registration = if json { 0 } else { 1 + (number % 4) as u32 };
        let credit = [0, 1, 1, 3, 3, u32::MAX][number as usize % 6];
        match kind {
            0..=13 => ClientMessage::Request(self.any_request(conn, name)),
            14..=22 => self.any_answer(conn, number),
            23..=27 => {
                let session = if json { self.choices.of(&SESSIONS) } else { "" };
                if let Some(peer) = self.peers.get_mut(&conn).filter(|_| !session.is_empty()) {
                    peer.named = true;
                }
                let (action, session) = (name.into(), session.into());
                ClientMessage::Register(Register { registration, credit, action, session })
            }
            28 | 29 if json => ClientMessage::Deregister(Target::Name(name.into())),
            28 | 29 => ClientMessage::Deregister(Target::Number(registration.into())),
            30 => ClientMessage::Credit { registration, credit },
            31..=33 if json => ClientMessage::Cancel(Target::Name(choices.of(&["1", "2"]).into())),
            31..=33 => ClientMessage::Cancel(Target::Number(number)),
            34 => {
                let number = self.any_delivery(conn);
                ClientMessage::Progress(Progress { number, ..Progress::default() })
            }
            35 => ClientMessage::WatchReceivers(number.is_multiple_of(2)),
            36 => ClientMessage::Acknowledge(Target::Number(number)),
            37..=39 if !json => self.any_resume(number),
            40 if !json && choices.one_in(3) => ClientMessage::Goaway,
            41 if !json && choices.one_in(6) => ClientMessage::Hello(Hello::default()),
            _ => ClientMessage::Ping(number),
        }
    }

    fn any_request(&mut self, conn: ConnId, name: &str) -> Request {
        let choices = &mut self.choices;
        let flags = RequestFlags(choices.of(&[0, 0, 0, 1, 2, 3, 4, 6, 8, 15]));
        let Some(peer) = self.peers.get_mut(&conn) else { return Request::default() };
        let json = peer.speaks == Speaks::Json;
        let text = format!("{name}{}{}", choices.of(&[1, 2]), "x".repeat(choices.below(40) as usize));
        let tag = if json { Span::new(name.len(), name.len() + 1) } else { Span::default() };
        let payload = Span::new(name.len() + 1, text.len());
        let empty = Span::default();
        let content = Content::from_spans(text.into(), Span::new(0, name.len()), tag, empty, empty, payload);
        let mut number = peer.next_number;
        if !json && choices.one_in(50) {
            number = choices.of(&[1, u64::MAX - 1, u64::MAX]);
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
            max_attempts: choices.of(&[0, 1, 2, 255]),
            ttl_ms: choices.of(&[0, 0, 1, 700, u32::MAX]),
            timeout_ms: choices.of(&[0, 3, 300, 300, 5000]),
            content,
        }
    }

    fn any_answer(&mut self, conn: ConnId, sequence: u64) -> ClientMessage {
        let delivery = self.any_delivery(conn);
        let reply = Verdict::Reply;
        let others = [Verdict::Error, Verdict::Cancelled, Verdict::Retry(5), Verdict::Reject];
        let verdict = if self.choices.one_in(2) { self.choices.of(&others) } else { reply };
        if let Some(peer) = self.peers.get_mut(&conn) {
            peer.held.remove(&delivery);
        }
        let content = Content::from_payload("3");
        ClientMessage::Answer(Answer { delivery, sequence, verdict, content })
    }

    fn any_resume(&mut self, number: u64) -> ClientMessage {
        let boot = self.choices.of(&[BOOT, BOOT, 0]);
        let sequence = self.choices.below(8);
        let open = (number..number + self.choices.below(4)).collect();
        ClientMessage::Resume(Resume {
            boot,
            sequence,
            open,
            held_boot: boot,
            held: vec![number],
            unclaimed: number & 1 == 1,
        })
    }

    /// Mostly one that the connection holds, else another's, or none.
    fn any_delivery(&mut self, conn: ConnId) -> u64 {
        let held = &self.peers[&conn].held;
        if !held.is_empty() && !self.choices.one_in(8) {
            let nth = self.choices.below(held.len() as u64) as usize;
            return held.iter().nth(nth).copied().unwrap_or(0);
        }
        let others = self.delivered.iter().copied().nth(self.choices.below(20) as usize);
        others.unwrap_or(self.choices.of(&[0, 1, u64::MAX]))
    }

    /// Does what the broker says, as a driver would.
    fn act(&mut self) {
        while let Some(output) = self.broker.poll_output() {
            match output {
                Output::Send { conn, message } => self.sent(conn, message),
                Output::Close { conn, .. } => {
                    let peer = self.peers.get_mut(&conn).expect("who is closed was there");
                    assert!(!std::mem::replace(&mut peer.ending, true), "{conn} is closed once");
                }
                Output::Full { conn } => {
                    // What was sent has left, or has not: then it does later, or never.
                    if self.choices.one_in(2) {
                        self.input(Input::Unclogged { conn });
                    }
                }
                Output::Read(_) | Output::Unreadable(_) | Output::Unavailable(_) => panic!("there is no log"),
                // A hello may say that it comes from a server.
                Output::PeersChanged => {}
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
        if json && carries && self.choices.one_in(10) {
            return self.input(Input::Undeliverable { conn, message: Box::new(message) });
        }
        match message {
            ServerMessage::Welcome(welcome) => peer.next_number = welcome.next_number,
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
                } else if !peer.named {
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

    /// Whoever stays has its outcomes in the end, and when all have gone, nothing is left.
    fn end(&mut self) {
        self.act();
        self.pass(Duration::from_secs(8 * 24 * 3600));
        for (conn, peer) in self.peers.iter().filter(|(_, peer)| !peer.ending && !peer.named) {
            assert!(peer.open.is_empty(), "{conn} has its outcomes but for {:?}", peer.open);
        }
        for conn in self.peers.keys().copied().collect::<Vec<_>>() {
            self.close(conn);
        }
        self.pass(Duration::from_secs(2 * 3600));
        let left = (self.broker.open_requests(), self.broker.open_deliveries(), self.broker.next_deadline());
        assert_eq!(left, (0, 0, None), "nothing is left of those who are gone");
    }
}
