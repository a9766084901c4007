//! Whatever a server says, in whatever order, and whenever connections break.

use std::collections::BTreeMap;

use ringpost_protocol::message::{OpenState, Verdict};

use super::*;
use crate::{DeliveryKey, RegistrationId, UnclaimedKey};

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// What the outputs so far add up to.
#[derive(Default)]
struct Ledger {
    /// Open requests by token.
    open: BTreeMap<u64, RequestKey>,
    /// Deliveries that handlers hold, and whether they were told to stop.
    held: BTreeMap<DeliveryKey, bool>,
    last_number: u64,
    /// Outcomes of an earlier process that are not taken yet.
    unclaimed: Vec<UnclaimedKey>,
    offered: usize,
    named: bool,
    dialing: bool,
    connected: bool,
    closed: bool,
}

impl Ledger {
    fn take(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            assert!(!self.closed, "nothing follows the end: {output:?}");
            match output {
                Output::Complete(end) => {
                    assert!(self.open.contains_key(&end.token), "completed twice");
                    if end.last {
                        self.open.remove(&end.token);
                    }
                }
                Output::Send(message) => {
                    assert!(self.connected, "said without a connection: {message:?}");
                    if let ClientMessage::Request(request) = message {
                        // Under a session's name, what the broker never saw is sent again.
                        assert!(request.number > self.last_number || self.named);
                        self.last_number = self.last_number.max(request.number);
                    }
                }
                Output::Deliver(delivery) => assert_eq!(self.held.insert(delivery.key, false), None),
                Output::CancelDelivery(key) => assert_eq!(self.held.insert(key, true), Some(false)),
                Output::Connect => {
                    assert!(!self.dialing && !self.connected);
                    self.dialing = true;
                }
                Output::Unclaimed(unclaimed) => {
                    assert!(self.named && !self.unclaimed.contains(&unclaimed.key), "offered twice");
                    self.unclaimed.push(unclaimed.key);
                    self.offered += 1;
                }
                Output::Disconnect | Output::Abort => {
                    assert!(self.dialing || self.connected);
                    (self.dialing, self.connected) = (false, false);
                }
                Output::Event(Event::Closed(_)) => self.closed = true,
                _ => {}
            }
        }
    }
}

fn any_message(random: &mut Random) -> ServerMessage {
    let number = random.below(40);
    let small = random.below(4) as u32;
    match random.below(40) {
        0..=9 => {
            let (sequence, content) = (random.below(60), Content::from_payload("3"));
            ServerMessage::Reply(Reply { number, sequence, content, ..Reply::default() })
        }
        10..=12 => failure(number, Code::Overloaded),
        13..=16 => leg(number, small, small + 1),
        17..=18 => ServerMessage::Legs { number, expected: small },
        19..=20 => ServerMessage::Accepted { upto: number, tag: Default::default() },
        21..=28 => deliver(random.below(1000), small),
        29..=31 => ServerMessage::Cancel { delivery: random.below(1000), tag: Default::default() },
        32 => ServerMessage::Pong(number),
        33 => ServerMessage::Ping(number),
        34 => ServerMessage::Registered { registration: small },
        35 => report(Scope::Registration, u64::from(small), Code::Forbidden),
        36 => report(Scope::Delivery, number, Code::Malformed),
        37 => ServerMessage::Receivers("[]".into()),
        38 => match random.below(8) {
            0 => report(Scope::Connection, 0, Code::Malformed),
            1 => welcome(),
            2..=5 => {
                let states = [OpenState::Running, OpenState::Outcome, OpenState::Lost, OpenState::NeverSeen];
                let state = |number| (number, states[number as usize % 4]);
                let open = (0..40).filter(|_| random.below(2) == 0).map(state).collect();
                ServerMessage::Resumed { open, forgotten: Vec::new(), attached: vec![(number, number + 1)] }
            }
            _ => ServerMessage::Acknowledge { sequence: number },
        },
        _ => match random.below(8) {
            0 => ServerMessage::Goaway { grace_ms: 500, reason: "restart".into() },
            _ => {
                ServerMessage::Progress(ringpost_protocol::message::Progress { number, ..Default::default() })
            }
        },
    }
}

fn step(rig: &mut Rig, ledger: &mut Ledger, random: &mut Random, token: u64) {
    match random.below(20) {
        0..=4 => {
            let flags = [RequestFlags::default(), RequestFlags::SEND, RequestFlags::BROADCAST]
                [random.below(3) as usize];
            let timeout = ms(1 + random.below(3000));
            if let Ok(key) = rig.client.request(RequestSpec { timeout, ..spec(flags) }, token, rig.now) {
                ledger.open.insert(token, key);
            }
        }
        5..=13 => rig.client.received(any_message(random), rig.now),
        14 => {
            let key = ledger.open.values().nth(random.below(8) as usize).copied();
            if let Some(key) = key {
                assert!(rig.client.cancel(key, rig.now));
            }
        }
        15 => {
            if let Some((key, _)) = ledger.held.pop_first() {
                rig.client.answer(key, Verdict::Reply, Content::default(), rig.now);
            }
        }
        16 if random.below(4) == 0 => {
            rig.client.deregister(RegistrationId(random.below(6) as u32));
        }
        16 => drop(rig.client.register("adder", 1)),
        17 if random.below(2) == 0 => {
            if let Some(key) = ledger.unclaimed.pop() {
                rig.client.claim(key, rig.now);
                assert!(!rig.client.claim(key, rig.now), "claimed twice");
            }
        }
        18 if random.below(100) == 0 => rig.client.drain(rig.now + ms(random.below(5000)), rig.now),
        17 if random.below(6) == 0 => {
            ledger.connected = false;
            rig.client.disconnected("cut", rig.now);
        }
        _ => {
            if ledger.dialing {
                ledger.dialing = false;
                if random.below(3) == 0 {
                    rig.client.connect_failed("refused", rig.now);
                } else {
                    ledger.connected = true;
                    rig.client.connected(rig.now);
                    if random.below(4) != 0 {
                        let ServerMessage::Welcome(welcome) = welcome() else { unreachable!() };
                        let (boot, epoch) = (5 + random.below(2), 1 + random.below(3));
                        let (tenure, next_number) = (random.below(2), random.below(20));
                        let welcome = Welcome { boot, epoch, tenure, next_number, ..welcome };
                        rig.client.received(ServerMessage::Welcome(welcome), rig.now);
                    }
                }
            }
            rig.now = rig.now + ms(random.below(200));
            rig.client.handle_timeout(rig.now);
        }
    }
}

/// Every request ends exactly once, numbers rise, nothing is said without a connection, each handler is told at most
/// once to stop, each kept outcome is offered once, and the invariants hold after each step.
#[test]
fn any_order_of_anything() {
    let mut offered = 0;
    for seed in 0..200 {
        let mut random = Random(seed);
        let task_interval = ms([0, 30][random.below(2) as usize]);
        let named = seed % 2 == 1;
        let session = if named { "s".into() } else { Default::default() };
        let config = ClientConfig {
            seed,
            session,
            task_interval,
            max_unclaimed: random.below(4) as usize,
            ..config()
        };
        let mut rig = Rig::new(ClientConfig { reconnect_interval: ms(50), ..config });
        let mut ledger = Ledger { dialing: true, named, ..Ledger::default() };
        for token in 0..600 {
            step(&mut rig, &mut ledger, &mut random, token);
            ledger.take(rig.outputs());
            assert_eq!(rig.client.open_requests(), ledger.open.len(), "seed {seed}");
        }
        if random.below(2) == 0 {
            rig.client.drain(rig.now + ms(1), rig.now);
            ledger.take(rig.outputs());
        }
        rig.client.close();
        ledger.take(rig.outputs());
        assert!(ledger.closed && ledger.open.is_empty(), "seed {seed}");
        offered += ledger.offered;
    }
    assert!(offered > 100, "{offered} kept outcomes: the histories hardly reach them");
}
