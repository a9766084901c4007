//! The client's core: whatever an application wants, a server says, and a network does.

use std::{collections::BTreeMap, time::Duration};

use ringpost_client::{
    Client, ClientConfig, DeliveryKey, Event, Output, RegistrationId, RequestKey, RequestSpec, UnclaimedKey,
};
use ringpost_protocol::{
    Code, Content,
    message::{
        ClientMessage, Deliver, ErrorReport, Leg, OpenState, Progress, Reply, RequestFlags, Scope,
        ServerMessage, Verdict, Welcome,
    },
    time::Time,
};

use crate::choices::Choices;

/// Histories beyond this are no better than two shorter ones.
const MAX_STEPS: u64 = 2000;

/// Reads bytes as a history of a client.
///
/// The invariants hold after each step. Every request ends once; nothing is said without a connection and nothing
/// follows the end; without a session's name numbers only rise; a delivery is handed out once, and told to stop at most
/// once. When the client closes, nothing is open.
///
/// # Panics
/// If something of that does not hold.
pub fn client(input: &[u8]) {
    let mut world = World::new(Choices::new(input));
    world.client.start(world.now);
    world.take();
    for token in 0..MAX_STEPS {
        if world.choices.are_over() {
            break;
        }
        world.step(token);
        world.take();
        assert_eq!(world.client.open_requests(), world.open.len(), "what is open did not complete");
    }
    world.client.close();
    world.take();
    assert!(world.closed && world.open.is_empty(), "closing ends everything");
}

/// A client with its clock, and what its outputs so far add up to.
struct World<'a> {
    choices: Choices<'a>,
    client: Client,
    now: Time,
    named: bool,
    /// Open requests by token.
    open: BTreeMap<u64, RequestKey>,
    /// Deliveries that handlers hold, and whether they were told to stop.
    held: BTreeMap<DeliveryKey, bool>,
    /// Outcomes of an earlier process that were not taken yet.
    unclaimed: Vec<UnclaimedKey>,
    claimed: Vec<UnclaimedKey>,
    last_number: u64,
    dialing: bool,
    connected: bool,
    closed: bool,
}

impl<'a> World<'a> {
    fn new(mut choices: Choices<'a>) -> Self {
        let session = choices.of(&["", "s"]);
        let config = ClientConfig {
            session: session.into(),
            instance: 1,
            seed: choices.below(256),
            reconnect: !choices.one_in(8),
            retry_initial: choices.one_in(2),
            max_reconnects: choices.of(&[None, Some(2)]),
            reconnect_interval: Duration::from_millis(50),
            task_interval: Duration::from_millis(choices.of(&[0, 30])),
            max_pending: choices.of(&[100, 3]),
            max_unclaimed: choices.of(&[0, 2]),
            ..ClientConfig::default()
        };
        Self {
            choices,
            client: Client::new(config),
            now: Time::from_micros(1_000_000),
            named: !session.is_empty(),
            open: BTreeMap::new(),
            held: BTreeMap::new(),
            unclaimed: Vec::new(),
            claimed: Vec::new(),
            last_number: 0,
            dialing: false,
            connected: false,
            closed: false,
        }
    }

    fn step(&mut self, token: u64) {
        match self.choices.below(24) {
            0..=4 => self.request(token),
            5..=13 => {
                let message = self.any_message();
                self.client.received(message, self.now);
            }
            14 => {
                if let Some(key) = self.open.values().nth(self.choices.below(8) as usize).copied() {
                    assert!(self.client.cancel(key, self.now), "what is open can be cancelled");
                }
            }
            15 => self.answer(),
            16 if self.choices.one_in(4) => {
                self.client.deregister(RegistrationId(self.choices.below(6) as u32));
            }
            // Refused once the client is closed: there is nothing to check then.
            16 => drop(self.client.register("adder", 1)),
            17 if self.choices.one_in(4) => {
                self.connected = false;
                self.client.disconnected("cut", self.now);
            }
            18 => {
                if let Some(key) = self.held.keys().next().copied() {
                    self.client.progress(key, Content::default());
                }
            }
            19 => self.client.watch_receivers(self.choices.one_in(2)),
            20 if self.choices.one_in(32) => {
                let until = self.now + Duration::from_millis(self.choices.of(&[0, 1_000, 100_000]));
                self.client.drain(until, self.now);
            }
            22 if !self.unclaimed.is_empty() => {
                let nth = self.choices.below(self.unclaimed.len().min(256) as u64) as usize;
                // At times one that was taken before.
                let key = self.unclaimed[nth];
                let taken = self.client.claim(key, self.now);
                assert!(!(taken && self.claimed.contains(&key)), "an outcome is taken once");
                self.claimed.push(key);
            }
            21 => self.client.set_credit(RegistrationId(self.choices.below(4) as u32), 2),
            _ => self.wait(),
        }
    }

    fn request(&mut self, token: u64) {
        let flags = self.choices.of(&[
            RequestFlags::default(),
            RequestFlags::SEND,
            RequestFlags::BROADCAST,
            RequestFlags::DURABLE,
        ]);
        let spec = RequestSpec {
            flags,
            max_attempts: self.choices.of(&[0, 3]),
            timeout: Duration::from_millis(1 + self.choices.below(3000)),
            content: Content::from_parts(self.choices.of(&[&b"adder"[..], b"", b"\n"]), b"", b"", b"2"),
            ..RequestSpec::default()
        };
        if let Ok(key) = self.client.request(spec, token, self.now) {
            self.open.insert(token, key);
        }
    }

    fn answer(&mut self) {
        // At times one that is not held any more.
        let key = if self.choices.one_in(4) {
            Some(DeliveryKey { connection: 1, delivery: self.choices.below(40) })
        } else {
            self.held.keys().next().copied()
        };
        if let Some(key) = key {
            let verdict = self.choices.of(&[Verdict::Reply, Verdict::Error, Verdict::Cancelled]);
            self.client.answer(key, verdict, Content::default(), self.now);
            self.held.remove(&key);
        }
    }

    /// Time passes, and what was dialed is there or is not.
    fn wait(&mut self) {
        if self.dialing {
            self.dialing = false;
            if self.choices.one_in(3) {
                self.client.connect_failed("refused", self.now);
            } else {
                self.connected = true;
                self.client.connected(self.now);
                if !self.choices.one_in(4) {
                    let welcome = self.any_welcome();
                    self.client.received(welcome, self.now);
                }
            }
        }
        self.now = self.now + Duration::from_millis(self.choices.of(&[0, 1, 20, 200, 6_000]));
        self.client.handle_timeout(self.now);
    }

    fn any_welcome(&mut self) -> ServerMessage {
        ServerMessage::Welcome(Welcome {
            server_id: "s1".into(),
            boot: self.choices.of(&[5, 5, 6]),
            epoch: self.choices.of(&[1, 2]),
            tenure: self.choices.of(&[1, 1, 2]),
            next_number: self.choices.of(&[1, 1, 7, u64::MAX]),
            max_payload: 1000,
            ping_interval_ms: self.choices.of(&[5000, 0]),
            ..Welcome::default()
        })
    }

    fn any_message(&mut self) -> ServerMessage {
        let kind = self.choices.below(44);
        let number = self.choices.below(40);
        let small = (number % 4) as u32;
        let report = |scope, number, code| {
            ServerMessage::Error(ErrorReport { scope, number, code, message: "because".into() })
        };
        let reply =
            Reply { number, sequence: number, content: Content::from_payload("3"), ..Reply::default() };
        match kind {
            0..=9 => ServerMessage::Reply(reply),
            10..=12 => ServerMessage::Reply(Reply { code: Some(Code::Overloaded), ..reply }),
            13..=16 => {
                let leg = Some(Leg { index: small, expected: small + self.choices.below(2) as u32 });
                ServerMessage::Reply(Reply { leg, ..reply })
            }
            17..=18 => ServerMessage::Legs { number, expected: small },
            19..=20 => ServerMessage::Accepted { upto: number, tag: Default::default() },
            21..=28 => ServerMessage::Deliver(Deliver {
                delivery: number,
                registration: small,
                attempt: 1,
                time_left_ms: self.choices.of(&[1000, 0, u32::MAX]),
                ..Deliver::default()
            }),
            29..=31 => ServerMessage::Cancel { delivery: number, tag: Default::default() },
            32 => ServerMessage::Pong(number),
            33 => ServerMessage::Ping(number),
            34 => ServerMessage::Registered { registration: small },
            35 => report(Scope::Registration, u64::from(small), Code::Forbidden),
            36 => report(Scope::Delivery, number, Code::Malformed),
            37 => ServerMessage::Receivers("[]".into()),
            38 => ServerMessage::Acknowledge { sequence: number },
            39..=41 => self.any_resumed(number),
            42 => match self.choices.below(4) {
                0 => report(Scope::Connection, 0, self.choices.of(&[Code::Malformed, Code::SessionTaken])),
                1 => ServerMessage::Goaway { grace_ms: 500, reason: "restart".into() },
                _ => self.any_welcome(),
            },
            _ => ServerMessage::Progress(Progress { number, ..Progress::default() }),
        }
    }

    fn any_resumed(&mut self, number: u64) -> ServerMessage {
        let states = [OpenState::Running, OpenState::Outcome, OpenState::NeverSeen, OpenState::Lost];
        let count = self.choices.below(4);
        let open = (number..number + count).map(|number| (number, self.choices.of(&states))).collect();
        ServerMessage::Resumed { open, forgotten: vec![number], attached: vec![(number, number / 2)] }
    }

    /// Takes the outputs, as a driver would.
    fn take(&mut self) {
        self.client.check_invariants();
        while let Some(output) = self.client.poll_output() {
            assert!(!self.closed, "nothing follows the end: {output:?}");
            match output {
                Output::Complete(end) => {
                    assert!(self.open.contains_key(&end.token), "{} completed twice", end.token);
                    if end.last {
                        self.open.remove(&end.token);
                    }
                }
                Output::Send(message) => self.said(&message),
                Output::Deliver(delivery) => assert_eq!(self.held.insert(delivery.key, false), None),
                Output::CancelDelivery(key) => assert_eq!(self.held.insert(key, true), Some(false)),
                Output::Connect => {
                    assert!(!self.dialing && !self.connected, "one connection at a time");
                    self.dialing = true;
                }
                Output::Disconnect | Output::Abort => {
                    assert!(self.dialing || self.connected, "there is nothing to disconnect");
                    (self.dialing, self.connected) = (false, false);
                }
                Output::Unclaimed(unclaimed) => {
                    assert!(self.named, "without a name there was no earlier process");
                    self.unclaimed.push(unclaimed.key);
                }
                Output::Event(Event::Closed(_)) => self.closed = true,
                _ => {}
            }
        }
    }

    fn said(&mut self, message: &ClientMessage) {
        assert!(self.connected, "said without a connection: {message:?}");
        if let ClientMessage::Request(request) = message {
            // A session with a name sends what the server never saw again, under its old number.
            assert!(self.named || request.number > self.last_number, "numbers rise");
            self.last_number = self.last_number.max(request.number);
        }
    }
}
