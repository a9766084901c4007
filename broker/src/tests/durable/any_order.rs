//! Anything that clients of durable requests can say, in any order, with crashes among it: nothing of it is left in the end.

use ringpost_protocol::{encode_headers, message::Tag};

use super::{super::any_order::Random, *};
use crate::ReadFault;

const STEPS: usize = 400;

/// A client's connection, as long as it is there.
#[derive(Clone, Copy)]
struct Peer {
    conn: ConnId,
    speaks: Speaks,
    next_number: u64,
}

struct World {
    logged: Logged,
    random: Random,
    peers: Vec<Peer>,
    /// What handlers hold: of which boot, and on which connection.
    held: Vec<(u64, ConnId, u64)>,
    /// Outcomes to acknowledge.
    told: Vec<(ConnId, u64, Tag)>,
    instances: u64,
    /// Of all boots: requests that joined another, deliveries taken up again, dead letters, outcomes replayed, payloads read
    /// back, damaged, and put off.
    seen: [u64; 7],
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let config = Config {
            durable_all: random.one_in(3),
            dead_limit: 3,
            dead_ttl: HOUR,
            idempotency_limit: 3,
            queue_memory_bytes: random.of(&[0, 400, 2000, 256 << 20]),
            ..Config::default()
        };
        let logged = Logged::new(config);
        Self {
            logged,
            random,
            peers: Vec::new(),
            held: Vec::new(),
            told: Vec::new(),
            instances: 1,
            seen: [0; 7],
        }
    }

    fn boot(&self) -> u64 {
        self.logged.broker.config.boot
    }

    fn step(&mut self) {
        match self.random.below(46) {
            0..4 => self.connect(),
            4..7 => self.register(),
            7..18 => self.request(),
            18..24 => self.answer(),
            24..27 => self.acknowledge(),
            27 => self.leave(),
            28 => self.cancel(),
            29 => self.operate(),
            30..32 => {
                let time = self.random.of(&[1, 150, 5001, 61_000, 3_600_000]);
                self.logged.pass(Duration::from_millis(time));
            }
            32..34 => {
                let operations = self.random.below(6);
                self.logged.sync_part(operations as usize);
            }
            40..46 => self.read(),
            34 if self.random.one_in(3) => {
                self.restart();
                // Those that held something may be back at once.
                for _ in 0..self.random.below(6) {
                    self.connect();
                    self.listen();
                }
            }
            _ => self.logged.sync(),
        }
        self.listen();
    }

    /// The disk reads something, and now and then not what is there, or it cannot be asked.
    fn read(&mut self) {
        let place = self.random.below(3) as usize;
        if self.random.one_in(4) {
            if let Some(read) = self.logged.reads.pop_front() {
                let result = Err(ReadFault::Unavailable("no descriptors".to_owned()));
                self.logged.input(Input::Read { id: read.id, result });
            }
            return;
        }
        let flip = self.random.one_in(3).then(|| self.random.below(8 << 20));
        self.logged.read(place.min(self.logged.reads.len().saturating_sub(1)), |bytes| {
            if let Some(bit) = flip.map(|bit| bit as usize % (bytes.len() * 8)) {
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        });
    }

    fn peer(&mut self) -> Option<usize> {
        let count = self.peers.len() as u64;
        (count > 0).then(|| self.random.below(count) as usize)
    }

    fn connect(&mut self) {
        let name = self.random.of(&["s", "s", "t", ""]);
        let conn = match (self.random.one_in(3), name) {
            (true, name) => {
                let conn = self.logged.connect(Speaks::Json);
                if !name.is_empty() {
                    let (action, session) = (self.random.of(&["a", "b"]).into(), name.into());
                    let register = Register { registration: 0, credit: 1, action, session };
                    self.logged.say(conn, ClientMessage::Register(register));
                }
                return self.peers.push(Peer { conn, speaks: Speaks::Json, next_number: 0 });
            }
            (false, "") => self.logged.connect(Speaks::Binary),
            (false, name) => {
                self.instances += self.random.below(2);
                self.logged.named_as(name, self.instances)
            }
        };
        if self.random.one_in(2) {
            self.logged.register(conn, 1, self.random.of(&["a", "b"]), 2);
        }
        let welcome = self.logged.sent.iter().rev().find_map(|(to, message)| match message {
            ServerMessage::Welcome(welcome) if *to == conn => Some(welcome.next_number),
            _ => None,
        });
        let next_number = welcome.unwrap_or(1);
        if !self.random.one_in(3) {
            let held_boot = self.boot() - u64::from(!self.random.one_in(4));
            let former = self.held.iter().filter(|(boot, _, _)| *boot == held_boot);
            let resume = Resume {
                boot: self.random.of(&[self.boot() - 1, self.boot()]),
                open: (1..next_number).filter(|_| self.random.one_in(2)).collect(),
                unclaimed: self.random.one_in(2),
                held_boot,
                held: former.map(|(_, _, delivery)| *delivery).collect(),
                ..Resume::default()
            };
            self.logged.say(conn, ClientMessage::Resume(resume));
        }
        self.peers.push(Peer { conn, speaks: Speaks::Binary, next_number });
    }

    fn register(&mut self) {
        let Some(peer) = self.peer().map(|peer| self.peers[peer]) else { return };
        let action = self.random.of(&["a", "b"]);
        match peer.speaks {
            Speaks::Binary if self.random.one_in(3) => {
                self.logged.say(peer.conn, ClientMessage::Deregister(Target::Number(1)));
            }
            Speaks::Binary => self.logged.register(peer.conn, 1, action, 2),
            Speaks::Json => self.logged.register(peer.conn, 0, action, 1),
        }
    }

    fn request(&mut self) {
        let Some(peer) = self.peer() else { return };
        let action = self.random.of(&[&b"a"[..], b"b", b"nobody"]);
        let key = self.random.of(&[None, None, Some("1"), Some("2"), Some("3"), Some("4")]);
        let headers = key.map(|key| encode_headers([("idempotency-key", key)]).unwrap());
        let plain = self.random.one_in(4);
        let kind = self.random.of(&[RequestFlags(0), RequestFlags(0), RequestFlags::SEND]);
        let payload = vec![b'1'; self.random.of(&[1, 1, 300])];
        let ttl_ms = self.random.of(&[0, 100, 6000, 120_000]);
        let max_attempts = self.random.of(&[0, 1, 2]);
        let peer = &mut self.peers[peer];
        let tag = if peer.speaks == Speaks::Json { &b"7"[..] } else { b"" };
        let content = Content::with_tag(action, tag, b"", &headers.unwrap_or_default(), &payload);
        let (conn, number) = (peer.conn, peer.next_number);
        peer.next_number += u64::from(peer.speaks == Speaks::Binary);
        self.logged.request(conn, number, |request| {
            request.flags = if plain { kind } else { kind.with(RequestFlags::DURABLE) };
            (request.ttl_ms, request.max_attempts, request.content) = (ttl_ms, max_attempts, content);
        });
    }

    fn answer(&mut self) {
        let boot = self.boot();
        let now: Vec<_> = (0..self.held.len()).filter(|place| self.held[*place].0 == boot).collect();
        if now.is_empty() {
            return;
        }
        let (_, conn, delivery) = self.held.swap_remove(self.random.of(&now));
        let verdict = self.random.of(&[
            Verdict::Reply,
            Verdict::Reply,
            Verdict::Error,
            Verdict::Retry(200),
            Verdict::Reject,
            Verdict::Cancelled,
        ]);
        self.logged.answer(conn, delivery, verdict);
    }

    fn acknowledge(&mut self) {
        for (conn, sequence, tag) in std::mem::take(&mut self.told) {
            let binary = self.peers.iter().any(|it| it.conn == conn && it.speaks == Speaks::Binary);
            let target = if binary { Target::Number(sequence) } else { Target::Name(tag.to_vec().into()) };
            self.logged.say(conn, ClientMessage::Acknowledge(target));
        }
    }

    fn leave(&mut self) {
        let Some(peer) = self.peer().map(|peer| self.peers[peer]) else { return };
        match self.random.below(3) {
            0 => self.logged.input(Input::Closed { conn: peer.conn }),
            1 => self.logged.input(Input::HalfClosed { conn: peer.conn }),
            _ => self.logged.say(peer.conn, ClientMessage::Goaway),
        }
        self.peers.retain(|it| it.conn != peer.conn);
    }

    fn cancel(&mut self) {
        let Some(peer) = self.peer().map(|peer| self.peers[peer]) else { return };
        let target = match peer.speaks {
            Speaks::Binary => Target::Number(self.random.below(peer.next_number + 1)),
            Speaks::Json => Target::Name("7".into()),
        };
        self.logged.say(peer.conn, ClientMessage::Cancel(target));
    }

    fn operate(&mut self) {
        let Some(peer) = self.peer() else { return };
        let (action, op) = self.random.of(&[
            (&b"$sys.dead"[..], r#"{"op":"resend"}"#),
            (b"$sys.dead", r#"{"op":"resend"}"#),
            (b"$sys.dead", r#"{"op":"drop"}"#),
            (b"$sys.dead", r#"{"op":"show"}"#),
            (b"$sys.queues", r#"{"op":"peek","action":"a"}"#),
        ]);
        let flags = self.random.of(&[RequestFlags(0), RequestFlags(0), RequestFlags::SEND]);
        let peer = &mut self.peers[peer];
        let (conn, number) = (peer.conn, peer.next_number);
        peer.next_number += u64::from(peer.speaks == Speaks::Binary);
        self.logged.request(conn, number, |request| {
            request.flags = flags;
            request.content = Content::from_parts(action, b"", b"", op.as_bytes());
        });
    }

    fn restart(&mut self) {
        let counters = self.logged.broker.counters();
        let seen = [
            counters.joined_requests,
            counters.reattached,
            counters.dead_letters,
            counters.outcomes_replayed,
            counters.read_back,
            counters.unreadable,
            counters.reads_put_off,
        ];
        self.seen.iter_mut().zip(seen).for_each(|(all, seen)| *all += seen);
        self.logged.restart();
        self.peers.clear();
        self.told.clear();
    }

    /// What the broker said meanwhile.
    fn listen(&mut self) {
        let boot = self.boot();
        for (conn, message) in std::mem::take(&mut self.logged.sent) {
            match message {
                ServerMessage::Deliver(deliver) => self.held.push((boot, conn, deliver.delivery)),
                ServerMessage::Resumed { attached, .. } => {
                    self.held.extend(attached.into_iter().map(|(_, now)| (boot, conn, now)));
                }
                ServerMessage::Reply(reply) => self.told.push((conn, reply.sequence, reply.tag)),
                _ => {}
            }
        }
        for (conn, _) in std::mem::take(&mut self.logged.closed) {
            self.logged.input(Input::Closed { conn });
            self.peers.retain(|peer| peer.conn != conn);
        }
    }

    /// All clients go, and all times end.
    fn end(&mut self) {
        for conn in 0..self.logged.connections {
            self.logged.input(Input::Closed { conn: ConnId(conn) });
        }
        for _ in 0..4 {
            self.logged.sync();
            self.logged.read_all();
            self.logged.pass(25 * HOUR);
        }
        self.logged.sync();
    }
}

/// Whatever was said: all that must hold holds after each step, and when all clients are gone and all times are over nothing
/// is left, in no table and in no count; nor is it after one more restart.
#[test]
fn nothing_is_left_in_the_end() {
    let mut all_seen = [0; 7];
    for seed in 0..700 {
        let trail = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
            }
            world.end();
            for restarted in [false, true] {
                if restarted {
                    world.restart();
                }
                let broker = &world.logged.broker;
                let left =
                    (broker.requests.len(), broker.kept.len(), broker.kept_bytes, broker.large.bytes());
                assert_eq!(left, (0, 0, 0, 0), "requests, what is kept of them, bytes");
                let left =
                    (broker.sessions.len(), broker.actions.len(), broker.deliveries.len(), broker.detached);
                assert_eq!(left, (0, 0, 0, 0), "sessions, actions, deliveries, sessions away");
                let left = (broker.keys.len(), broker.claimed, broker.formers.len(), broker.dead.len());
                assert_eq!(left, (0, 0, 0, 0), "keys, kept for them, waited for, dead letters");
                assert_eq!(broker.inquiries.len(), 0);
            }
            world.seen
        });
        match trail {
            Ok(seen) => all_seen.iter_mut().zip(seen).for_each(|(all, seen)| *all += seen),
            Err(trail) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(trail);
            }
        }
    }
    assert!(all_seen.iter().all(|seen| *seen > 10), "all of it was tried: {all_seen:?}");
}
