//! The same rules for clients of the JSON dialect: `concurrency`, `deinit`, `cancel`, `acknowledge`, `ping`, and what becomes
//! of them when a connection ends.

use ringpost_protocol::Span;

use super::*;

impl Stage {
    /// A JSON handler; `concurrency` 0 stands for none given.
    fn init(&mut self, action: &'static str, concurrency: u32) -> ConnId {
        let conn = self.connect(Speaks::Json);
        self.register(conn, 0, action, concurrency);
        conn
    }

    /// A JSON request to `sum` with this `clientId`.
    fn ask(&mut self, conn: ConnId, client_id: &str, with: impl FnOnce(&mut Request)) {
        let bytes = bytes::Bytes::from(format!("sum{client_id}2"));
        let tag = Span::new(3, bytes.len() - 1);
        let payload = Span::new(bytes.len() - 1, bytes.len());
        let none = Span::default();
        let content = Content::from_spans(bytes, Span::new(0, 3), tag, none, none, payload);
        self.request(conn, 0, |request| {
            request.content = content;
            with(request);
        });
    }

    /// The outcomes for this connection: `clientId` and code.
    fn outcomes(&mut self, conn: ConnId) -> Vec<(String, Option<Code>)> {
        let told = |reply: Reply| (String::from_utf8_lossy(&reply.tag).into_owned(), reply.code);
        self.replies(conn).into_iter().map(told).collect()
    }
}

fn outcome(client_id: &str, code: impl Into<Option<Code>>) -> (String, Option<Code>) {
    (client_id.to_owned(), code.into())
}

/// `concurrency` is the credit: handlers take turns, one without credit is passed over, and what none has credit for waits.
#[test]
fn concurrency() {
    let mut stage = Stage::new(Config::default());
    let handlers = [stage.init("sum", 2), stage.init("sum", 1)];
    let requester = stage.connect(Speaks::Json);
    let mut order = Vec::new();
    let mut held = Vec::new();
    for number in 1..=5 {
        stage.ask(requester, &number.to_string(), |_| {});
        for (index, handler) in handlers.into_iter().enumerate() {
            for deliver in stage.deliveries(handler) {
                order.push(index);
                held.push((handler, deliver.delivery));
            }
        }
    }
    assert_eq!(order, [0, 1, 0]);
    let (handler, delivery) = held[1];
    stage.answer(handler, delivery, Verdict::Reply);
    assert_eq!(stage.deliveries(handler).len(), 1, "what waited");
    // Registering again says how many it will hold from now on.
    stage.register(handlers[0], 0, "sum", 3);
    assert_eq!(stage.deliveries(handlers[0]).len(), 1);
    assert_eq!(stage.outcomes(requester), [outcome("2", None)]);
}

/// Without `concurrency` a handler holds 64.
#[test]
fn no_concurrency_given() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.init("sum", 0), stage.connect(Speaks::Json));
    for number in 1..=70 {
        stage.ask(requester, &number.to_string(), |_| {});
    }
    assert_eq!(stage.deliveries(handler).len(), 64);
}

/// `deinit`: nothing more comes, what is held may still be answered, and what waited fails if nobody else has the action.
#[test]
fn deinit() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.init("sum", 1), stage.connect(Speaks::Json));
    stage.ask(requester, "1", |_| {});
    stage.ask(requester, "2", |_| {});
    let held = stage.deliveries(handler)[0].delivery;
    stage.say(handler, ClientMessage::Deregister(Target::Name("other".into())));
    assert_eq!(stage.outcomes(requester), [], "it is not that action's handler");
    stage.say(handler, ClientMessage::Deregister(Target::Name("sum".into())));
    assert_eq!(stage.outcomes(requester), [outcome("2", Code::NoHandler)]);
    stage.ask(requester, "3", |_| {});
    stage.answer(handler, held, Verdict::Reply);
    assert_eq!(stage.outcomes(requester), [outcome("3", Code::NoHandler), outcome("1", None)]);
    assert!(stage.deliveries(handler).is_empty());
    assert!(stage.closed.is_empty(), "the connection goes on");
}

/// `cancel` ends the request and reaches the handler with its `clientId`; whichever of cancel and reply comes first wins.
#[test]
fn cancel() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.init("sum", 2), stage.connect(Speaks::Json));
    for client_id in ["\"a\"", "\"b\"", "\"waits\""] {
        stage.ask(requester, client_id, |_| {});
    }
    let held = stage.deliveries(handler);
    stage.say(requester, ClientMessage::Cancel(Target::Name("\"a\"".into())));
    let told = stage.take(handler);
    assert!(
        matches!(&told[..], [ServerMessage::Cancel { delivery, tag }] if *delivery == held[0].delivery && tag.as_slice() == b"\"a\""),
        "{told:?}"
    );
    stage.say(requester, ClientMessage::Cancel(Target::Name("\"waits\"".into())));
    stage.answer(handler, held[1].delivery, Verdict::Reply);
    stage.say(requester, ClientMessage::Cancel(Target::Name("\"b\"".into())));
    stage.answer(handler, held[0].delivery, Verdict::Reply);
    let expected =
        [outcome("\"a\"", Code::Cancelled), outcome("\"waits\"", Code::Cancelled), outcome("\"b\"", None)];
    assert_eq!(stage.outcomes(requester), expected);
    assert!(stage.take(handler).is_empty());
    assert_eq!(stage.broker.counters().late_answers, 1);
}

/// `ping` is answered; `acknowledge` is accepted and changes nothing while there is nothing durable.
#[test]
fn ping_and_acknowledge() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.init("sum", 1), stage.connect(Speaks::Json));
    stage.ask(requester, "1", |_| {});
    stage.say(requester, ClientMessage::Acknowledge(Target::Name("1".into())));
    assert!(stage.take(requester).is_empty());
    stage.say(requester, ClientMessage::Ping(0));
    assert!(matches!(stage.take(requester)[..], [ServerMessage::Pong(0)]));
    let delivery = stage.deliveries(handler)[0].delivery;
    stage.answer(handler, delivery, Verdict::Reply);
    assert_eq!(stage.outcomes(requester), [outcome("1", None)]);
}

/// A durable request is refused in JSON too, and so is a durable broadcast, each with its own reason.
#[test]
fn durable_is_refused() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.init("sum", 1), stage.connect(Speaks::Json));
    stage.ask(requester, "1", |request| request.flags = RequestFlags::DURABLE);
    stage.ask(requester, "2", |request| {
        request.flags = RequestFlags::DURABLE.with(RequestFlags::BROADCAST);
    });
    let expected = [outcome("1", Code::DurableUnavailable), outcome("2", Code::Unsupported)];
    assert_eq!(stage.outcomes(requester), expected);
    assert!(stage.deliveries(handler).is_empty());
}

/// A send over the queue's bound fails, as the only word that is said of it.
#[test]
fn sends() {
    let mut stage = Stage::new(Config { queue_limit: 1, ..Config::default() });
    let (handler, requester) = (stage.init("sum", 1), stage.connect(Speaks::Json));
    for client_id in ["1", "2", "3"] {
        stage.ask(requester, client_id, send);
    }
    let held = stage.deliveries(handler)[0].delivery;
    stage.answer(handler, held, Verdict::Error);
    let [second] = &stage.deliveries(handler)[..] else { panic!("what waited") };
    stage.answer(handler, second.delivery, Verdict::Reply);
    assert_eq!(stage.outcomes(requester), [outcome("3", Code::Overloaded)]);
}

/// Each leg is a message of its own that says how many there are; none has the number alone.
#[test]
fn broadcast_legs() {
    let mut stage = Stage::new(Config::default());
    let handlers = [stage.init("sum", 1), stage.init("sum", 1)];
    let requester = stage.connect(Speaks::Json);
    stage.ask(requester, "1", broadcast);
    assert!(stage.take(requester).is_empty());
    for handler in handlers {
        let delivery = stage.deliveries(handler)[0].delivery;
        stage.answer(handler, delivery, Verdict::Reply);
    }
    let legs: Vec<_> =
        stage.replies(requester).iter().map(|reply| reply.leg.map(|leg| (leg.index, leg.expected))).collect();
    assert_eq!(legs, [Some((0, 2)), Some((1, 2))]);
}

/// End of stream from a JSON requester means "no more requests"; from a handler it loses what it holds, and the others'
/// turn goes on.
#[test]
fn the_end_of_a_stream() {
    let mut stage = Stage::new(Config::default());
    let (ending, other) = (stage.init("sum", 9), stage.init("sum", 9));
    let requester = stage.connect(Speaks::Json);
    for (client_id, max_attempts) in [("1", 1), ("2", 1), ("3", 2)] {
        stage.ask(requester, client_id, |request| request.max_attempts = max_attempts);
    }
    stage.input(Input::HalfClosed { conn: requester });
    stage.input(Input::HalfClosed { conn: ending });
    assert_eq!(stage.outcomes(requester), [outcome("1", Code::HandlerLost)]);
    assert_eq!(stage.closed, [(ending, CloseReason::Finished)], "the requester waits for its answers");
    let held = stage.deliveries(other);
    assert_eq!(held.iter().map(|it| (it.request_id.count, it.attempt)).collect::<Vec<_>>(), [(2, 1), (3, 2)]);
    for deliver in held {
        stage.answer(other, deliver.delivery, Verdict::Reply);
    }
    assert_eq!(stage.outcomes(requester), [outcome("2", None), outcome("3", None)]);
    assert_eq!(stage.closed.last(), Some(&(requester, CloseReason::Finished)));
}

/// A JSON session ends with its connection, named or not: what it had open is called back.
#[test]
fn a_session_ends_with_its_connection() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.init("sum", 9), stage.connect(Speaks::Json));
    let (action, session) = ("own".into(), "me".into());
    stage.say(requester, ClientMessage::Register(Register { registration: 0, credit: 1, action, session }));
    stage.ask(requester, "1", |_| {});
    stage.take(handler);
    stage.input(Input::Closed { conn: requester });
    assert!(matches!(stage.take(handler)[..], [ServerMessage::Cancel { .. }]));
    assert_eq!((stage.broker.open_requests(), stage.broker.sessions.len()), (0, 1));
}

/// A session's name belongs to the newest connection that says it, in JSON too.
#[test]
fn a_name_is_taken() {
    let mut stage = Stage::new(Config::default());
    let named = [stage.connect(Speaks::Json), stage.connect(Speaks::Json)];
    for conn in named {
        let (action, session) = ("sum".into(), "me".into());
        stage.say(conn, ClientMessage::Register(Register { registration: 0, credit: 1, action, session }));
    }
    assert_eq!(stage.closed, [(named[0], CloseReason::Refused(Code::SessionTaken))]);
    assert!(
        matches!(stage.take(named[0]).last(), Some(ServerMessage::Error(report)) if report.code == Code::SessionTaken)
    );
    let requester = stage.connect(Speaks::Json);
    stage.ask(requester, "1", |_| {});
    assert_eq!(stage.deliveries(named[1]).len(), 1, "the older one's handlers are gone");
}

/// A handler that sits on a slot is stuck in JSON too: it is told to stop, gets nothing more, and is forgiven at its answer.
#[test]
fn a_stuck_handler() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.init("sum", 2), stage.connect(Speaks::Json));
    stage.ask(requester, "1", |request| request.timeout_ms = 1000);
    let sat_on = stage.deliveries(handler)[0].delivery;
    stage.pass(Duration::from_secs(32));
    assert!(
        matches!(stage.take(handler).last(), Some(ServerMessage::Cancel { delivery, .. }) if *delivery == sat_on)
    );
    stage.ask(requester, "2", |_| {});
    assert!(stage.deliveries(handler).is_empty());
    stage.answer(handler, sat_on, Verdict::Cancelled);
    assert_eq!(stage.deliveries(handler).len(), 1);
    assert_eq!(stage.outcomes(requester), [outcome("1", Code::Timeout)]);
}

/// A JSON connection is never lost for its silence: TCP watches it, not pings.
#[test]
fn silence_is_no_loss() {
    let mut stage = Stage::new(Config::default());
    let handler = stage.init("sum", 1);
    stage.pass(Duration::from_secs(3600));
    let said = stage.take(handler);
    assert!(said.iter().all(|message| matches!(message, ServerMessage::Receivers(_))), "{said:?}");
    assert!(stage.closed.is_empty());
}

/// A draining server refuses what is new with `draining`, and lets what is open end.
#[test]
fn draining() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.init("sum", 1), stage.connect(Speaks::Json));
    stage.ask(requester, "1", |_| {});
    stage.ask(requester, "2", |_| {});
    let held = stage.deliveries(handler)[0].delivery;
    stage.input(Input::Drain { grace_ms: 1000 });
    stage.ask(requester, "3", |_| {});
    stage.answer(handler, held, Verdict::Reply);
    let [second] = &stage.deliveries(handler)[..] else { panic!("what waited is still served") };
    stage.answer(handler, second.delivery, Verdict::Reply);
    let expected = [outcome("3", Code::Draining), outcome("1", None), outcome("2", None)];
    assert_eq!(stage.outcomes(requester), expected);
    assert!(stage.drained);
}
