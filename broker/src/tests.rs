//! The core's rules, one by one. The simulation in `tests/` joins them with the client's side under a bad network.

mod any_branches;
mod any_order;
mod branches;
mod control;
mod corners;
mod durable;
mod json;
mod peers;
mod permissions;
mod promises;
mod sessions;

use std::{collections::VecDeque, time::Duration};

use ringpost_protocol::{
    Code, Content,
    message::{
        Answer, ClientMessage, Deliver, Hello, Register, Reply, Request, RequestFlags, Scope, ServerMessage,
        Speaker, Target, Verdict,
    },
    time::{Now, Time},
};

use crate::{
    Broker, CloseReason, Config, ConnId, Identity, Input, Output, Policy, Read, Speaks, Unavailable,
    Unreadable,
};

/// A broker, a clock, and what it said to whom. Invariants are checked after each step.
struct Stage {
    broker: Broker,
    now: Now,
    sent: Vec<(ConnId, ServerMessage)>,
    closed: Vec<(ConnId, CloseReason)>,
    drained: bool,
    peers_changed: u32,
    full: Vec<ConnId>,
    /// What it asked of the log's disk, and what it could not read there.
    reads: VecDeque<Read>,
    unreadable: Vec<Unreadable>,
    unavailable: Vec<Unavailable>,
    connections: u32,
}

/// The hello of an instance's so manieth connection.
fn hello(session: &'static str, instance: u64, connection: u32) -> ClientMessage {
    let speaker = Speaker { instance, connection };
    ClientMessage::Hello(Hello { session: session.into(), speaker, ..Hello::default() })
}

impl Stage {
    fn new(config: Config) -> Self {
        let now = Now { mono: Time::from_micros(1_000_000), wall_ms: 1_700_000_000_000 };
        let broker = Broker::new(Config { boot: 7, hash_seed: 1, ..config });
        Self {
            broker,
            now,
            sent: Vec::new(),
            closed: Vec::new(),
            drained: false,
            peers_changed: 0,
            full: Vec::new(),
            reads: VecDeque::new(),
            unreadable: Vec::new(),
            unavailable: Vec::new(),
            connections: 0,
        }
    }

    fn input(&mut self, input: Input) {
        self.broker.handle(input, self.now);
        self.collect();
    }

    fn collect(&mut self) {
        self.broker.check_invariants();
        while let Some(output) = self.broker.poll_output() {
            match output {
                Output::Send { conn, message } => self.sent.push((conn, message)),
                Output::Close { conn, reason } => self.closed.push((conn, reason)),
                Output::Full { conn } => self.full.push(conn),
                Output::Read(read) => self.reads.push_back(read),
                Output::Unreadable(what) => self.unreadable.push(what),
                Output::PeersChanged => self.peers_changed += 1,
                Output::Unavailable(what) => self.unavailable.push(what),
                Output::Drained => self.drained = true,
            }
        }
        self.broker.check_invariants();
    }

    /// Lets time pass, waking the broker exactly when it asks to be woken.
    fn pass(&mut self, time: Duration) {
        let end = self.now.mono + time;
        while let Some(deadline) = self.broker.next_deadline().filter(|deadline| *deadline <= end) {
            self.set_time(deadline.max(self.now.mono));
            self.broker.handle_timeout(self.now);
            self.collect();
        }
        self.set_time(end);
    }

    fn set_time(&mut self, mono: Time) {
        self.now.wall_ms += mono.since(self.now.mono).as_millis() as u64;
        self.now.mono = mono;
    }

    fn say(&mut self, conn: ConnId, message: ClientMessage) {
        self.input(Input::Message { conn, message });
    }

    fn connect(&mut self, speaks: Speaks) -> ConnId {
        self.connect_as(speaks, Identity::default())
    }

    fn connect_as(&mut self, speaks: Speaks, identity: Identity) -> ConnId {
        let conn = ConnId(self.connections);
        self.connections += 1;
        self.input(Input::Opened { conn, speaks, identity });
        if speaks == Speaks::Binary {
            self.say(conn, ClientMessage::Hello(Hello::default()));
        }
        conn
    }

    fn handler(&mut self, action: &'static str, credit: u32) -> ConnId {
        let conn = self.connect(Speaks::Binary);
        self.register(conn, 1, action, credit);
        conn
    }

    fn register(&mut self, conn: ConnId, registration: u32, action: &'static str, credit: u32) {
        let (action, session) = (action.into(), Default::default());
        self.say(conn, ClientMessage::Register(Register { registration, credit, action, session }));
    }

    fn request(&mut self, conn: ConnId, number: u64, with: impl FnOnce(&mut Request)) {
        let content = Content::from_parts(b"sum", b"", b"", b"{\"value\":2}");
        let mut request = Request { number, content, ..Request::default() };
        with(&mut request);
        self.say(conn, ClientMessage::Request(request));
    }

    fn answer(&mut self, conn: ConnId, delivery: u64, verdict: Verdict) {
        self.answer_with(conn, delivery, verdict, "3");
    }

    fn answer_with(&mut self, conn: ConnId, delivery: u64, verdict: Verdict, payload: &str) {
        let content = Content::from_payload(payload.to_owned());
        self.say(conn, ClientMessage::Answer(Answer { delivery, sequence: 0, verdict, content }));
    }

    fn take(&mut self, conn: ConnId) -> Vec<ServerMessage> {
        let (mine, others) = std::mem::take(&mut self.sent).into_iter().partition(|(to, _)| *to == conn);
        self.sent = others;
        mine.into_iter().map(|(_, message)| message).collect()
    }

    fn deliveries(&mut self, conn: ConnId) -> Vec<Deliver> {
        let deliver =
            |message| if let ServerMessage::Deliver(deliver) = message { Some(deliver) } else { None };
        self.take(conn).into_iter().filter_map(deliver).collect()
    }

    fn replies(&mut self, conn: ConnId) -> Vec<Reply> {
        let reply = |message| if let ServerMessage::Reply(reply) = message { Some(reply) } else { None };
        self.take(conn).into_iter().filter_map(reply).collect()
    }

    fn codes(&mut self, conn: ConnId) -> Vec<(u64, Option<Code>)> {
        self.replies(conn).into_iter().map(|reply| (reply.number, reply.code)).collect()
    }
}

fn send(request: &mut Request) {
    request.flags = RequestFlags::SEND;
}

fn broadcast(request: &mut Request) {
    request.flags = RequestFlags::BROADCAST;
}

/// A request goes to a handler with its data and deadline, the reply back with its times.
#[test]
fn request_and_reply() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.handler("sum", 2), stage.connect(Speaks::Binary));
    stage.request(requester, 5, |request| request.timeout_ms = 2000);
    let [deliver] = &stage.deliveries(handler)[..] else { panic!("one delivery") };
    assert_eq!((deliver.registration, deliver.attempt, deliver.time_left_ms), (1, 1, 2000));
    assert_eq!(deliver.content.payload(), b"{\"value\":2}");
    stage.pass(Duration::from_millis(30));
    stage.answer(handler, deliver.delivery, Verdict::Reply);
    let [reply] = &stage.replies(requester)[..] else { panic!("one reply") };
    assert_eq!((reply.number, reply.code, reply.sequence, reply.attempt), (5, None, 1, 1));
    assert_eq!((reply.delivered_after_ms, reply.handled_after_ms), (0, 30));
    assert_eq!(reply.content.payload(), b"3");
    assert_eq!(stage.broker.open_requests(), 0);
    assert!(stage.broker.timers.len() <= 2, "only liveness timers are left");
}

/// Handlers take turns; one without credit is passed over and comes back behind the others.
#[test]
fn round_robin_with_credit() {
    let mut stage = Stage::new(Config::default());
    let handlers = [stage.handler("sum", 2), stage.handler("sum", 1), stage.handler("sum", 9)];
    let requester = stage.connect(Speaks::Binary);
    let mut order = Vec::new();
    let mut held = [vec![], vec![], vec![]];
    for number in 1..=7 {
        stage.request(requester, number, |_| {});
        for (index, handler) in handlers.iter().enumerate() {
            for deliver in stage.deliveries(*handler) {
                order.push(index);
                held[index].push(deliver.delivery);
            }
        }
    }
    assert_eq!(order, [0, 1, 2, 0, 2, 2, 2]);
    stage.answer(handlers[0], held[0][0], Verdict::Reply);
    for number in 8..=9 {
        stage.request(requester, number, |_| {});
    }
    assert_eq!((stage.deliveries(handlers[2]).len(), stage.deliveries(handlers[0]).len()), (1, 1));
}

/// Least-busy gives each request to the one that holds the fewest, whatever the turn.
#[test]
fn least_busy() {
    let mut stage = Stage::new(Config { policy: Policy::LeastBusy, ..Config::default() });
    let (slow, fast) = (stage.handler("sum", 10), stage.handler("sum", 10));
    let requester = stage.connect(Speaks::Binary);
    let mut slow_total = 0;
    for number in 1..=10 {
        stage.request(requester, number, |_| {});
        slow_total += stage.deliveries(slow).len();
        for deliver in stage.deliveries(fast) {
            stage.answer(fast, deliver.delivery, Verdict::Reply);
        }
    }
    assert_eq!(slow_total, 1);
}

/// Without credit requests wait in order; over the bound they fail at once, by count and by bytes.
#[test]
fn the_queue_is_bounded_and_ordered() {
    let mut stage = Stage::new(Config { queue_limit: 2, queue_limit_bytes: 1000, ..Config::default() });
    let (handler, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    for number in 1..=4 {
        stage.request(requester, number, |_| {});
    }
    assert_eq!(stage.codes(requester), [(4, Some(Code::Overloaded))]);
    let mut seen = Vec::new();
    while let Some(deliver) = stage.deliveries(handler).pop() {
        seen.push(deliver.request_id.count);
        stage.answer(handler, deliver.delivery, Verdict::Reply);
    }
    assert_eq!(seen, [1, 2, 3]);
    stage.take(requester);
    stage.request(requester, 5, |_| {});
    stage.request(requester, 6, |request| {
        request.content = Content::from_parts(b"sum", b"", b"", &[b'1'; 2000])
    });
    let [reply] = &stage.replies(requester)[..] else { panic!("one refusal") };
    assert!(String::from_utf8_lossy(reply.content.payload()).contains("--queue-limit-bytes"));
}

/// The broker ends a request at its timeout, tells the handler, and the slot comes back only with its answer.
#[test]
fn timeout_is_ended_by_the_broker() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |request| request.timeout_ms = 100);
    stage.request(requester, 2, |request| request.timeout_ms = 100);
    let [deliver] = &stage.deliveries(handler)[..] else { panic!("credit is 1") };
    stage.pass(Duration::from_millis(99));
    assert_eq!(stage.codes(requester), []);
    stage.pass(Duration::from_millis(2));
    assert_eq!(stage.codes(requester), [(1, Some(Code::Timeout)), (2, Some(Code::Timeout))]);
    assert!(
        matches!(stage.take(handler)[..], [ServerMessage::Cancel { delivery, .. }] if delivery == deliver.delivery)
    );
    stage.request(requester, 3, |_| {});
    assert!(stage.deliveries(handler).is_empty(), "the handler still holds the first");
    stage.answer(handler, deliver.delivery, Verdict::Reply);
    assert_eq!(stage.broker.counters().late_answers, 1);
    assert_eq!(stage.deliveries(handler).len(), 1);
    assert_eq!(stage.codes(requester), []);
}

/// A ttl shorter than the timeout is raised to it; in JSON a ttl alone ends with `expired`.
#[test]
fn ttl_and_timeout() {
    let mut stage = Stage::new(Config { ping_interval: Duration::from_secs(3600), ..Config::default() });
    let requester = stage.connect(Speaks::Binary);
    let json = stage.connect(Speaks::Json);
    stage.handler("sum", 1);
    stage.request(requester, 1, |request| (request.ttl_ms, request.timeout_ms) = (10, 50));
    stage.request(json, 0, |request| request.ttl_ms = 20);
    stage.request(json, 0, |_| {});
    stage.pass(Duration::from_millis(49));
    assert_eq!(stage.codes(requester), []);
    assert_eq!(stage.codes(json), [(1, Some(Code::Expired))]);
    stage.pass(Duration::from_millis(2));
    assert_eq!(stage.codes(requester), [(1, Some(Code::Timeout))]);
    stage.pass(Duration::from_secs(60));
    assert_eq!(stage.codes(json), [(2, Some(Code::Expired))]);
}

/// A cancel ends the request and reaches the handler; after the reply it changes nothing.
#[test]
fn cancel_and_reply_race() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.handler("sum", 4), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |_| {});
    stage.request(requester, 2, |_| {});
    let held = stage.deliveries(handler);
    stage.say(requester, ClientMessage::Cancel(Target::Number(1)));
    assert!(matches!(stage.take(handler)[..], [ServerMessage::Cancel { .. }]));
    stage.answer(handler, held[0].delivery, Verdict::Cancelled);
    stage.answer(handler, held[1].delivery, Verdict::Reply);
    stage.say(requester, ClientMessage::Cancel(Target::Number(2)));
    assert_eq!(stage.codes(requester), [(1, Some(Code::Cancelled)), (2, None)]);
    assert!(stage.take(handler).is_empty());
}

/// JSON cancels by `clientId`; the newest request of that name is meant.
#[test]
fn cancel_by_tag() {
    let mut stage = Stage::new(Config::default());
    stage.handler("sum", 4);
    let requester = stage.connect(Speaks::Json);
    let bytes = bytes::Bytes::from_static(b"sum\"a\"");
    let span = ringpost_protocol::Span::new;
    let none = ringpost_protocol::Span::default();
    let content = Content::from_spans(bytes, span(0, 3), span(3, 6), none, none, none);
    stage.request(requester, 0, |request| request.content = content);
    stage.say(requester, ClientMessage::Cancel(Target::Name("\"b\"".into())));
    assert_eq!(stage.codes(requester), []);
    stage.say(requester, ClientMessage::Cancel(Target::Name("\"a\"".into())));
    let [reply] = &stage.replies(requester)[..] else { panic!("one outcome") };
    assert_eq!((reply.code, reply.tag.as_slice()), (Some(Code::Cancelled), &b"\"a\""[..]));
}

/// A handler's death is known at once: requests with attempts left go on, first ones first, others fail.
#[test]
fn handler_death() {
    let mut stage = Stage::new(Config::default());
    let (dying, requester) = (stage.handler("sum", 8), stage.connect(Speaks::Binary));
    for number in 1..=3 {
        stage.request(requester, number, |request| request.max_attempts = if number == 2 { 1 } else { 2 });
    }
    let first = stage.deliveries(dying);
    let heir = stage.handler("sum", 1);
    stage.input(Input::Closed { conn: dying });
    assert_eq!(stage.codes(requester), [(2, Some(Code::HandlerLost))]);
    let again = stage.deliveries(heir);
    assert_eq!((again[0].attempt, again[0].request_id), (2, first[0].request_id));
    stage.answer(heir, again[0].delivery, Verdict::Reply);
    assert_eq!(stage.deliveries(heir)[0].request_id, first[2].request_id);
    assert_eq!(stage.codes(requester), [(1, None)]);
    stage.input(Input::Closed { conn: heir });
    assert_eq!(stage.codes(requester), [(3, Some(Code::HandlerLost))]);
}

/// When the last handler leaves, what waits for the action fails at once.
#[test]
fn the_last_handler_leaves() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |_| {});
    stage.request(requester, 2, |_| {});
    let held = stage.deliveries(handler);
    stage.say(handler, ClientMessage::Deregister(Target::Number(1)));
    assert_eq!(stage.codes(requester), [(2, Some(Code::NoHandler))]);
    stage.answer(handler, held[0].delivery, Verdict::Reply);
    assert_eq!(stage.codes(requester), [(1, None)]);
    stage.request(requester, 3, |_| {});
    assert_eq!(stage.codes(requester), [(3, Some(Code::NoHandler))]);
}

/// A handler's error reaches the requester with its own code and message.
#[test]
fn a_handlers_error() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |_| {});
    let delivery = stage.deliveries(handler)[0].delivery;
    let content = Content::from_parts(b"E42", b"", b"", b"no such number");
    stage.say(
        handler,
        ClientMessage::Answer(Answer { delivery, sequence: 1, verdict: Verdict::Error, content }),
    );
    let reply = stage.replies(requester).remove(0);
    assert_eq!(
        (reply.code, reply.content.name(), reply.content.payload()),
        (Some(Code::Remote), &b"E42"[..], &b"no such number"[..])
    );
}

/// An answer counts once, and only from the one that holds the delivery.
#[test]
fn foreign_and_double_answers() {
    let mut stage = Stage::new(Config::default());
    let (handler, other) = (stage.handler("sum", 1), stage.handler("other", 1));
    let requester = stage.connect(Speaks::Binary);
    stage.request(requester, 1, |_| {});
    let delivery = stage.deliveries(handler)[0].delivery;
    stage.take(other);
    stage.answer(other, delivery, Verdict::Reply);
    assert!(
        matches!(&stage.take(other)[..], [ServerMessage::Error(report)] if report.scope == Scope::Delivery)
    );
    assert_eq!(stage.codes(requester), []);
    stage.answer(handler, delivery, Verdict::Reply);
    stage.answer(handler, delivery, Verdict::Reply);
    assert!(matches!(&stage.take(handler)[..], [ServerMessage::Error(report)] if report.number == delivery));
    assert_eq!(stage.codes(requester), [(1, None)]);
    assert_eq!(stage.broker.counters().foreign_answers, 2);
}

/// A broadcast asks every handler, tells how many at once, and each leg ends once.
#[test]
fn broadcast_legs() {
    let mut stage = Stage::new(Config { leg_queue_limit: 1, ..Config::default() });
    let handlers = [stage.handler("sum", 3), stage.handler("sum", 1), stage.handler("sum", 3)];
    let requester = stage.connect(Speaks::Binary);
    stage.take(requester);
    stage.request(requester, 1, broadcast);
    assert!(matches!(stage.take(requester)[..], [ServerMessage::Legs { number: 1, expected: 3 }]));
    let first = stage.deliveries(handlers[1]);
    stage.request(requester, 2, broadcast);
    assert!(stage.deliveries(handlers[1]).is_empty(), "it waits for credit");
    stage.request(requester, 3, broadcast);
    let overloaded: Vec<_> = stage
        .replies(requester)
        .into_iter()
        .map(|reply| (reply.number, reply.leg.map(|leg| leg.index), reply.code))
        .collect();
    assert_eq!(overloaded, [(3, Some(1), Some(Code::Overloaded))]);
    stage.answer(handlers[1], first[0].delivery, Verdict::Reply);
    assert_eq!(stage.deliveries(handlers[1]).len(), 1, "the leg that waited");
    stage.input(Input::Closed { conn: handlers[0] });
    let lost: Vec<_> = stage.codes(requester);
    assert_eq!(
        lost,
        [(1, None), (1, Some(Code::HandlerLost)), (2, Some(Code::HandlerLost)), (3, Some(Code::HandlerLost))]
    );
    stage.pass(Duration::from_secs(11));
    let ends = stage.codes(requester);
    assert_eq!(
        ends,
        [
            (1, Some(Code::Timeout)),
            (2, Some(Code::Timeout)),
            (2, Some(Code::Timeout)),
            (3, Some(Code::Timeout))
        ]
    );
    assert_eq!(stage.broker.open_requests(), 0);
}

/// Nobody there: the broadcast fails as a whole. A durable one is refused.
#[test]
fn broadcast_to_nobody() {
    let mut stage = Stage::new(Config::default());
    let requester = stage.connect(Speaks::Binary);
    stage.request(requester, 1, broadcast);
    stage
        .request(requester, 2, |request| request.flags = RequestFlags::BROADCAST.with(RequestFlags::DURABLE));
    assert_eq!(stage.codes(requester), [(1, Some(Code::NoHandler)), (2, Some(Code::Unsupported))]);
}

/// A send is accepted, or fails; nothing else is heard of it. Acceptance is one number for many.
#[test]
fn sends() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    stage.take(requester);
    let request = |number| {
        let content = Content::from_parts(b"sum", b"", b"", b"1");
        Input::Message {
            conn: requester,
            message: ClientMessage::Request(Request {
                number,
                content,
                flags: RequestFlags::SEND,
                ..Request::default()
            }),
        }
    };
    stage.broker.handle(request(1), stage.now);
    stage.input(request(2));
    assert!(matches!(stage.take(requester)[..], [ServerMessage::Accepted { upto: 2, .. }]));
    let held = stage.deliveries(handler);
    stage.answer(handler, held[0].delivery, Verdict::Error);
    assert!(stage.take(requester).is_empty());
    stage.input(Input::Closed { conn: handler });
    stage.request(requester, 3, send);
    assert_eq!(stage.codes(requester), [(3, Some(Code::NoHandler))]);
}

/// What cannot come in is refused with its reason, on that request alone.
#[test]
fn refusals() {
    let mut stage = Stage::new(Config::default());
    let requester = stage.connect(Speaks::Binary);
    let named = |name: &'static str| {
        move |request: &mut Request| request.content = Content::from_parts(name.as_bytes(), b"", b"", b"")
    };
    stage.request(requester, 1, named("nobody"));
    stage.request(requester, 2, named(""));
    stage.request(requester, 3, named("ping"));
    stage.request(requester, 4, named("$sys.nothing"));
    stage.request(requester, 5, named("$other"));
    stage.request(requester, 6, |request| request.flags = RequestFlags::DURABLE);
    let expected = [
        (1, Code::NoHandler),
        (2, Code::Malformed),
        (3, Code::ReservedName),
        (4, Code::NoHandler),
        (5, Code::ReservedName),
        (6, Code::DurableUnavailable),
    ];
    assert_eq!(stage.codes(requester), expected.map(|(number, code)| (number, Some(code))));
    stage.request(requester, 7, named("$sys.stats"));
    let stats = stage.replies(requester).remove(0);
    assert!(String::from_utf8_lossy(stats.content.payload()).contains("\"refusedDurable\":1"));
}

/// Registrations: reserved names, too many, twice the same.
#[test]
fn registrations() {
    let mut stage = Stage::new(Config { max_actions: 2, ..Config::default() });
    let conn = stage.connect(Speaks::Binary);
    stage.take(conn);
    stage.register(conn, 1, "$sys.mine", 1);
    stage.register(conn, 2, "a", 1);
    stage.register(conn, 2, "b", 1);
    stage.register(conn, 3, "b", 1);
    stage.register(conn, 4, "c", 1);
    let codes: Vec<_> = stage
        .take(conn)
        .into_iter()
        .map(|message| match message {
            ServerMessage::Error(report) => (report.number, Some(report.code)),
            ServerMessage::Registered { registration } => (u64::from(registration), None),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        (1, Some(Code::ReservedName)),
        (2, None),
        (2, Some(Code::Malformed)),
        (3, None),
        (4, Some(Code::Overloaded)),
    ];
    assert_eq!(codes, expected);
}

/// Receivers: told to those who watch, once for changes close together, and to newcomers without delay.
#[test]
fn receivers() {
    let mut stage = Stage::new(Config::default());
    let watcher = stage.connect(Speaks::Json);
    stage.register(watcher, 0, "b", 1);
    stage.pass(Duration::from_millis(1));
    let list = |stage: &mut Stage| {
        let text = |message| match message {
            ServerMessage::Receivers(list) => String::from_utf8(list.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        };
        stage.take(watcher).into_iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(list(&mut stage), ["[\"b\"]"]);
    let other = stage.handler("a", 1);
    stage.handler("c\"", 1);
    stage.handler("a", 1);
    stage.input(Input::Closed { conn: other });
    stage.pass(Duration::from_millis(100));
    assert_eq!(list(&mut stage), [r#"["a","b","c\""]"#]);
    stage.pass(Duration::from_secs(1));
    assert!(list(&mut stage).is_empty());
}

/// The dispatch interval keeps dispatches apart, over all actions.
#[test]
fn dispatch_interval() {
    let mut stage = Stage::new(Config { dispatch_interval: Duration::from_millis(10), ..Config::default() });
    let (sum, other) = (stage.handler("sum", 9), stage.handler("other", 9));
    let requester = stage.connect(Speaks::Binary);
    for number in 1..=4 {
        let name: &[u8] = if number % 2 == 0 { b"sum" } else { b"other" };
        stage
            .request(requester, number, |request| request.content = Content::from_parts(name, b"", b"", b""));
    }
    let mut counts = Vec::new();
    for _ in 0..5 {
        counts.push(stage.deliveries(sum).len() + stage.deliveries(other).len());
        stage.pass(Duration::from_millis(10));
    }
    assert_eq!(counts, [1, 1, 1, 1, 0]);
}

/// A requester that has said all it had to say is answered, then closed; a handler loses what it holds.
#[test]
fn half_close() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.handler("sum", 2), stage.connect(Speaks::Json));
    stage.request(requester, 0, |_| {});
    stage.input(Input::HalfClosed { conn: requester });
    assert!(stage.closed.is_empty());
    let delivery = stage.deliveries(handler)[0].delivery;
    stage.answer(handler, delivery, Verdict::Reply);
    assert_eq!(stage.codes(requester), [(1, None)]);
    assert_eq!(stage.closed, [(requester, CloseReason::Finished)]);
    let requester = stage.connect(Speaks::Binary);
    stage.request(requester, 1, |_| {});
    stage.input(Input::HalfClosed { conn: handler });
    assert_eq!(stage.codes(requester), [(1, Some(Code::HandlerLost))]);
    assert_eq!(stage.closed.last(), Some(&(handler, CloseReason::Gone)));
}

/// In the binary dialect an end of stream is an end in order only behind a goodbye: a client that was killed has none.
#[test]
fn an_end_without_goodbye() {
    let mut stage = Stage::new(Config::default());
    let (handler, polite, killed) =
        (stage.handler("sum", 2), stage.connect(Speaks::Binary), stage.connect(Speaks::Binary));
    stage.request(polite, 1, |_| {});
    stage.request(killed, 1, |_| {});
    let held = stage.deliveries(handler);
    stage.say(polite, ClientMessage::Goaway);
    stage.input(Input::HalfClosed { conn: polite });
    stage.input(Input::HalfClosed { conn: killed });
    assert_eq!(stage.closed, [(killed, CloseReason::Gone)]);
    assert!(
        matches!(stage.take(handler)[..], [ServerMessage::Cancel { delivery, .. }] if delivery == held[1].delivery)
    );
    stage.answer(handler, held[0].delivery, Verdict::Reply);
    assert_eq!(stage.codes(polite), [(1, None)]);
}

/// What waits when the handlers leave a draining server is told so: it did not run, and may be sent elsewhere.
#[test]
fn handlers_leave_a_draining_server() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |_| {});
    stage.request(requester, 2, |_| {});
    stage.input(Input::Drain { grace_ms: 1000 });
    stage.say(handler, ClientMessage::Goaway);
    assert_eq!(stage.codes(requester), [(2, Some(Code::Draining))]);
    let delivery = stage.deliveries(handler)[0].delivery;
    stage.answer(handler, delivery, Verdict::Reply);
    assert_eq!(stage.codes(requester), [(1, None)]);
}

/// When the drain's time is over, everybody who still waits has an outcome; no handlers are taken meanwhile.
#[test]
fn the_end_of_a_drain() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester, json) =
        (stage.handler("sum", 1), stage.connect(Speaks::Binary), stage.connect(Speaks::Json));
    stage.request(requester, 1, |_| {});
    stage.request(json, 0, |_| {});
    stage.request(requester, 2, broadcast);
    stage.take(handler);
    stage.input(Input::Drain { grace_ms: 1000 });
    stage.take(json);
    stage.register(json, 0, "late", 1);
    assert!(matches!(&stage.take(json)[..], [ServerMessage::Error(report)] if report.code == Code::Draining));
    stage.take(handler);
    assert!(!stage.drained);
    stage.input(Input::DrainOver);
    let draining = Some(Code::Draining);
    assert_eq!(stage.codes(requester), [(1, draining), (2, draining)]);
    assert_eq!(stage.codes(json), [(1, draining)]);
    assert!(matches!(stage.take(handler)[..], [ServerMessage::Cancel { .. }]));
    assert!(stage.drained);
}

/// A requester that is gone leaves nothing behind, and its handlers are told.
#[test]
fn requester_gone() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |_| {});
    stage.request(requester, 2, |_| {});
    stage.input(Input::Closed { conn: requester });
    assert_eq!(stage.broker.open_requests(), 0);
    let messages = stage.take(handler);
    assert!(matches!(messages.last(), Some(ServerMessage::Cancel { .. })));
}

/// A silent binary connection is pinged, then lost; one that answers stays.
#[test]
fn liveness() {
    let mut stage = Stage::new(Config::default());
    let (silent, alive) = (stage.connect(Speaks::Binary), stage.connect(Speaks::Binary));
    for _ in 0..4 {
        stage.pass(Duration::from_secs(4));
        for message in stage.take(alive) {
            if let ServerMessage::Ping(token) = message {
                stage.say(alive, ClientMessage::Pong(token));
            }
        }
    }
    assert_eq!(stage.closed, [(silent, CloseReason::Silent)]);
    stage.pass(Duration::from_secs(2));
    assert_eq!(stage.closed.len(), 1);
}

/// A client whose message takes long to arrive is not silent.
#[test]
fn a_slow_message_is_no_silence() {
    let mut stage = Stage::new(Config::default());
    let slow = stage.connect(Speaks::Binary);
    for _ in 0..4 {
        stage.pass(Duration::from_secs(14));
        stage.input(Input::Heard { conn: slow });
    }
    assert_eq!(stage.closed, []);
    stage.pass(Duration::from_secs(20));
    assert_eq!(stage.closed, [(slow, CloseReason::Silent)]);
}

/// A session belongs to the newest connection that names it.
#[test]
fn session_taken() {
    let mut stage = Stage::new(Config::default());
    for (conn, connection) in [(ConnId(10), 1), (ConnId(11), 2)] {
        stage.input(Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() });
        stage.say(conn, hello("me", 1, connection));
    }
    assert!(matches!(&stage.take(ConnId(11))[..], [ServerMessage::Welcome(welcome)] if welcome.epoch == 2));
    assert_eq!(stage.closed, [(ConnId(10), CloseReason::Refused(Code::SessionTaken))]);
}

/// Draining: clients are told, nothing new comes in, and it ends when all is answered.
#[test]
fn drain() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |_| {});
    let delivery = stage.deliveries(handler)[0].delivery;
    stage.input(Input::Drain { grace_ms: 10_000 });
    assert!(matches!(stage.take(handler)[..], [ServerMessage::Goaway { grace_ms: 10_000, .. }]));
    assert!(!stage.drained);
    stage.request(requester, 2, |_| {});
    assert_eq!(stage.codes(requester), [(2, Some(Code::Draining))]);
    stage.answer(handler, delivery, Verdict::Reply);
    assert!(stage.drained);
}

/// What breaks the protocol's order ends that connection, with a reason.
#[test]
fn broken_rules() {
    let mut stage = Stage::new(Config::default());
    let conn = ConnId(9);
    stage.input(Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() });
    stage.request(conn, 1, |_| {});
    assert!(
        matches!(&stage.take(conn)[..], [ServerMessage::Error(report)] if report.code == Code::Malformed)
    );
    let conn = stage.connect(Speaks::Binary);
    stage.handler("sum", 1);
    stage.request(conn, 7, |_| {});
    stage.request(conn, 7, |_| {});
    assert!(
        matches!(stage.take(conn).last(), Some(ServerMessage::Error(report)) if report.message.contains("8 or more"))
    );
    assert_eq!(stage.closed.len(), 2);
    stage.request(conn, 8, |_| {});
    assert!(stage.take(conn).is_empty(), "it is not listened to any more");
}

/// A handler that sits on a slot long after it was called back gets nothing more, and is forgiven at its next answer.
#[test]
fn stuck_handlers() {
    let mut stage = Stage::new(Config { ping_interval: Duration::from_secs(3600), ..Config::default() });
    let (handler, requester) = (stage.handler("sum", 2), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |request| request.timeout_ms = 1000);
    let sat_on = stage.deliveries(handler)[0].delivery;
    stage.pass(Duration::from_secs(32));
    assert_eq!(stage.broker.counters().stuck_handlers, 1);
    stage.take(requester);
    stage.take(handler);
    stage.request(requester, 2, |_| {});
    assert!(stage.deliveries(handler).is_empty(), "it has credit, but is stuck");
    stage.answer(handler, sat_on, Verdict::Cancelled);
    assert_eq!(stage.deliveries(handler).len(), 1);
    let timers = stage.broker.timers.len();
    stage.say(requester, ClientMessage::Cancel(Target::Number(2)));
    assert_eq!(stage.broker.timers.len(), timers, "the request's timer goes, the delivery's comes");
    stage.input(Input::Closed { conn: handler });
    assert_eq!(stage.broker.timers.len(), timers - 2, "and goes with the handler, like its liveness");
}
