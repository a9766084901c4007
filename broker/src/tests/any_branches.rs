//! Peers that say whatever they like of broadcasts: requesters are told the truth all the same, and nothing is left.

use std::collections::{BTreeMap, BTreeSet};

use super::{any_order::Random, *};

const VERDICTS: [Verdict; 7] = [
    Verdict::Reply,
    Verdict::Error,
    Verdict::Cancelled,
    Verdict::Retry(1),
    Verdict::Failed(Code::HandlerLost),
    Verdict::Declined(Code::NoHandler),
    Verdict::Declined(Code::Overloaded),
];

/// What a requester knows of a broadcast.
#[derive(Default)]
struct Known {
    told: Option<u32>,
    indices: BTreeSet<u32>,
    over: bool,
}

struct Crowd {
    stage: Stage,
    requester: ConnId,
    /// Of each connection with a handler: what it has been given.
    held: BTreeMap<ConnId, Vec<u64>>,
    known: BTreeMap<u64, Known>,
}

impl Crowd {
    fn new(random: &mut Random) -> Self {
        let config = Config {
            leg_queue_limit: 1 + random.below(2) as usize,
            memory_bytes: random.of(&[1 << 30, 12_000]),
            ..Config::default()
        };
        let mut stage = Stage::new(config);
        let requester = stage.connect(Speaks::Binary);
        let own = stage.handler("sum", 2);
        let mut crowd = Self { stage, requester, held: BTreeMap::new(), known: BTreeMap::new() };
        crowd.held.insert(own, Vec::new());
        for server in ["b", "c", "d"] {
            crowd.join(server, 1 + random.below(3) as u32);
        }
        crowd
    }

    fn join(&mut self, server: &'static str, credit: u32) {
        let conn = self.stage.far(server, credit);
        self.held.insert(conn, Vec::new());
    }

    fn step(&mut self, random: &mut Random) {
        let conns: Vec<_> = self.held.keys().copied().collect();
        let conn = random.of(&conns);
        let of_peer = conn != conns[0];
        let held = &self.held[&conn];
        let delivery = if held.is_empty() { 7 } else { random.of(held) };
        match random.below(20) {
            0..=4 => {
                let number = self.known.len() as u64 + 1;
                self.known.insert(number, Known::default());
                let timeout_ms = random.of(&[300, 3000]);
                self.stage.request(self.requester, number, |request| {
                    broadcast(request);
                    request.timeout_ms = timeout_ms;
                });
            }
            5..=9 if of_peer => {
                let expected = random.of(&[0, 1, 1, 2, 3, 7, (1 << 16) + 1, u32::MAX]);
                self.stage.say(conn, ClientMessage::Legs { delivery, expected });
            }
            10..=13 if of_peer => {
                let (verdict, content) =
                    (random.of(&VERDICTS), Content::from_payload("x".repeat(random.below(900) as usize)));
                let answer = Answer { delivery, sequence: 0, verdict, content };
                self.stage.say(conn, ClientMessage::Leg(answer));
            }
            10..=16 => {
                self.stage.answer(conn, delivery, random.of(&VERDICTS));
                self.held.entry(conn).or_default().retain(|held| *held != delivery);
            }
            17 => self.stage.pass(Duration::from_millis(random.below(900))),
            18 => {
                let number = 1 + random.below(self.known.len() as u64 + 1);
                self.stage.say(self.requester, ClientMessage::Cancel(Target::Number(number)));
            }
            19 if of_peer && random.one_in(3) => {
                self.stage.input(Input::Closed { conn });
                self.held.remove(&conn);
                self.join(random.of(&["b", "c", "d", "e"]), 1 + random.below(3) as u32);
            }
            _ => {}
        }
        self.listen();
    }

    fn listen(&mut self) {
        for message in self.stage.take(self.requester) {
            match message {
                ServerMessage::Legs { number, expected } => {
                    let known = self.known.get_mut(&number).unwrap();
                    assert!(!known.over && known.indices.is_empty() && expected > 0, "it is told first");
                    assert_eq!(known.told.replace(expected), None, "and once");
                }
                ServerMessage::Reply(reply) => {
                    let known = self.known.get_mut(&reply.number).unwrap();
                    assert!(!known.over, "{reply:?} comes after the end");
                    if let Some(leg) = reply.leg {
                        assert_eq!(known.told, Some(leg.expected));
                        assert!(leg.index < leg.expected && known.indices.insert(leg.index), "{leg:?}");
                        known.over = known.indices.len() == leg.expected as usize;
                    } else {
                        assert!(known.told.is_none(), "nobody was asked: {reply:?}");
                        assert!(matches!(reply.code, Some(Code::NoHandler | Code::Overloaded)));
                        known.over = true;
                    }
                }
                _ => {}
            }
        }
        let sent = std::mem::take(&mut self.stage.sent);
        for (conn, message) in sent {
            if let (ServerMessage::Deliver(deliver), Some(held)) = (message, self.held.get_mut(&conn)) {
                held.push(deliver.delivery);
            }
        }
    }

    fn end(mut self) -> usize {
        let conns: Vec<_> = self.held.keys().copied().collect();
        self.stage.pass(Duration::from_secs(4));
        self.listen();
        for (number, known) in &self.known {
            assert!(known.over, "{number} has not ended: {:?} of {:?}", known.indices, known.told);
        }
        for conn in conns {
            self.stage.input(Input::Closed { conn });
        }
        assert_eq!((self.stage.broker.open_requests(), self.stage.broker.open_deliveries()), (0, 0));
        assert_eq!(self.stage.broker.kept_bytes, 0);
        self.known.values().filter(|known| known.indices.len() > 3).count()
    }
}

/// Counts before, after and instead of legs, legs beyond the count, answers for all at any time, links that come and go: every
/// broadcast has as many ends as its requester was told, and what was held for it is let go.
#[test]
fn whatever_peers_say() {
    let mut large = 0;
    for seed in 0..400 {
        eprintln!("seed {seed}");
        let mut random = Random(seed);
        let mut crowd = Crowd::new(&mut random);
        for _ in 0..200 {
            crowd.step(&mut random);
        }
        large += crowd.end();
    }
    assert!(large > 500, "{large} broadcasts had many legs");
}
