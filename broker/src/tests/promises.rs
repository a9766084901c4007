//! What users may rely on, sentence by sentence, where no other test shows it. `docs/SEMANTICS.md` has the whole list.

use super::*;

/// Which requests a handler got, in order: the first that came in is 1.
fn counts(stage: &mut Stage, conn: ConnId) -> Vec<u64> {
    stage.deliveries(conn).iter().map(|deliver| deliver.request_id.count).collect()
}

/// Over the queue's bound it is the send itself that fails; with a place in the queue it is accepted.
#[test]
fn a_send_without_a_place() {
    let mut stage = Stage::new(Config { queue_limit: 1, ..Config::default() });
    let (_handler, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    stage.take(requester);
    for number in 1..=3 {
        stage.request(requester, number, send);
    }
    let said = stage.take(requester);
    let [
        ServerMessage::Accepted { upto: 1, .. },
        ServerMessage::Accepted { upto: 2, .. },
        ServerMessage::Reply(refused),
    ] = &said[..]
    else {
        panic!("{said:?}")
    };
    assert_eq!((refused.number, refused.code), (3, Some(Code::Overloaded)));
}

/// What went down with its handler is dispatched before all that waits, in the order in which it was accepted.
#[test]
fn what_was_lost_goes_first() {
    let mut stage = Stage::new(Config::default());
    let (dying, requester) = (stage.handler("sum", 2), stage.connect(Speaks::Binary));
    let heir = stage.handler("sum", 1);
    for number in 1..=6 {
        stage.request(requester, number, |request| request.max_attempts = 2);
    }
    assert_eq!((counts(&mut stage, dying), stage.deliveries(heir).len()), (vec![1, 3], 1));
    stage.input(Input::Closed { conn: dying });
    stage.say(heir, ClientMessage::Credit { registration: 1, credit: 9 });
    let again = stage.deliveries(heir);
    let order: Vec<_> = again.iter().map(|deliver| (deliver.request_id.count, deliver.attempt)).collect();
    assert_eq!(order, [(1, 2), (3, 2), (4, 1), (5, 1), (6, 1)]);
}

/// Replies come as handlers answer, not as requests were made: there is no order across handlers.
#[test]
fn no_order_across_handlers() {
    let mut stage = Stage::new(Config::default());
    let (slow, quick) = (stage.handler("sum", 1), stage.handler("sum", 1));
    let requester = stage.connect(Speaks::Binary);
    stage.request(requester, 1, |_| {});
    stage.request(requester, 2, |_| {});
    for handler in [quick, slow] {
        let delivery = stage.deliveries(handler)[0].delivery;
        stage.answer(handler, delivery, Verdict::Reply);
    }
    assert_eq!(stage.codes(requester), [(2, None), (1, None)]);
}

/// A plain request that says nothing of attempts has one: it ends with its handler, though there is another.
#[test]
fn one_attempt_unless_told_otherwise() {
    let mut stage = Stage::new(Config::default());
    let (dying, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |_| {});
    let other = stage.handler("sum", 1);
    stage.input(Input::Closed { conn: dying });
    assert_eq!(stage.codes(requester), [(1, Some(Code::HandlerLost))]);
    assert!(stage.deliveries(other).is_empty());
}

/// Attempts that are left are of no use when nobody else has the action: the request ends at once, and does not wait.
#[test]
fn attempts_left_and_nobody_there() {
    let mut stage = Stage::new(Config::default());
    let (only, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |request| request.max_attempts = 5);
    stage.input(Input::Closed { conn: only });
    assert_eq!(stage.codes(requester), [(1, Some(Code::HandlerLost))]);
    assert_eq!((stage.broker.counters().lost_attempts, stage.broker.open_requests()), (1, 0));
}

/// The reply of an attempt that was lost is refused and counted, also from the same client on a new connection; the
/// current attempt's counts.
#[test]
fn the_reply_of_an_earlier_attempt() {
    let mut stage = Stage::new(Config::default());
    let (first, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |request| request.max_attempts = 2);
    let earlier = stage.deliveries(first)[0].delivery;
    let heir = stage.handler("sum", 1);
    stage.input(Input::Closed { conn: first });
    let back = stage.connect(Speaks::Binary);
    stage.take(back);
    stage.answer(back, earlier, Verdict::Reply);
    assert!(matches!(&stage.take(back)[..], [ServerMessage::Error(report)] if report.number == earlier));
    assert_eq!((stage.codes(requester), stage.broker.counters().foreign_answers), (vec![], 1));
    let current = stage.deliveries(heir)[0].delivery;
    stage.answer(heir, current, Verdict::Reply);
    let [reply] = &stage.replies(requester)[..] else { panic!("one reply") };
    assert_eq!((reply.code, reply.attempt), (None, 2));
}

/// Without a log `retry` and `reject` are errors like any other; a request's error is its outcome, a send's is nobody's, and
/// neither is attempted again.
#[test]
fn an_error_is_no_lost_attempt() {
    for verdict in [Verdict::Error, Verdict::Retry(5), Verdict::Reject] {
        let mut stage = Stage::new(Config::default());
        let (handler, requester) = (stage.handler("sum", 9), stage.connect(Speaks::Binary));
        stage.request(requester, 1, |request| request.max_attempts = 3);
        stage.request(requester, 2, |request| {
            (request.flags, request.max_attempts) = (RequestFlags::SEND, 3);
        });
        for deliver in stage.deliveries(handler) {
            stage.answer(handler, deliver.delivery, verdict);
        }
        assert_eq!(stage.codes(requester), [(1, Some(Code::Remote))], "{verdict:?}");
        assert!(stage.deliveries(handler).is_empty());
        assert_eq!(stage.broker.open_requests(), 0);
    }
}

/// A handler that leaves costs no attempt: what it holds it may finish, and what waited goes to others as a first attempt.
#[test]
fn a_handler_that_leaves_costs_no_attempt() {
    let mut stage = Stage::new(Config::default());
    let (leaving, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |_| {});
    stage.request(requester, 2, |_| {});
    let held = stage.deliveries(leaving)[0].delivery;
    let other = stage.handler("sum", 0);
    stage.say(leaving, ClientMessage::Goaway);
    let [second] = &stage.deliveries(other)[..] else { panic!("what waited") };
    assert_eq!(second.attempt, 1);
    stage.answer(other, second.delivery, Verdict::Reply);
    stage.answer(leaving, held, Verdict::Reply);
    let replies: Vec<_> =
        stage.replies(requester).iter().map(|reply| (reply.number, reply.code, reply.attempt)).collect();
    assert_eq!(replies, [(2, None, 1), (1, None, 1)]);
    assert_eq!(stage.broker.counters().lost_attempts, 0);
}

/// Every kind of answer gives the slot back, in time and long after the outcome was decided; nothing else does.
#[test]
fn every_answer_gives_its_credit_back() {
    let verdicts = [Verdict::Reply, Verdict::Error, Verdict::Cancelled, Verdict::Retry(5), Verdict::Reject];
    for (verdict, late) in verdicts.into_iter().flat_map(|verdict| [(verdict, false), (verdict, true)]) {
        let mut stage = Stage::new(Config::default());
        let (handler, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
        stage.request(requester, 1, |request| request.timeout_ms = 100);
        let held = stage.deliveries(handler)[0].delivery;
        if late {
            stage.pass(Duration::from_secs(1));
        }
        stage.request(requester, 2, |_| {});
        stage.say(requester, ClientMessage::Cancel(Target::Number(1)));
        assert!(stage.deliveries(handler).is_empty(), "a timeout or a cancel gives nothing back");
        stage.answer(handler, held, verdict);
        assert_eq!(stage.deliveries(handler).len(), 1, "{verdict:?}, late: {late}");
    }
}

/// A stuck handler is visible in the stats and in the list of actions, until its next answer.
#[test]
fn a_stuck_handler_is_visible() {
    let mut stage = Stage::new(Config { ping_interval: Duration::from_secs(3600), ..Config::default() });
    let (handler, requester) = (stage.handler("sum", 2), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |request| request.timeout_ms = 1000);
    let sat_on = stage.deliveries(handler)[0].delivery;
    let mut number = 1;
    let mut shows = |stage: &mut Stage, action: &'static str, text: &str| {
        number += 1;
        stage.take(requester);
        stage.request(requester, number, |request| {
            request.content = Content::from_parts(action.as_bytes(), b"", b"", b"");
        });
        let reply = stage.replies(requester).remove(0);
        String::from_utf8_lossy(reply.content.payload()).contains(text)
    };
    stage.pass(Duration::from_secs(30));
    assert!(shows(&mut stage, "$sys.stats", "\"handlersStuck\":0"), "30 s from its timeout on");
    stage.pass(Duration::from_secs(1));
    assert!(shows(&mut stage, "$sys.stats", "\"handlersStuck\":1"));
    assert!(shows(&mut stage, "$sys.actions", "\"stuck\":true"));
    stage.answer(handler, sat_on, Verdict::Cancelled);
    assert!(shows(&mut stage, "$sys.stats", "\"handlersStuck\":0"));
}

/// The defaults: 10 s for a request, 10 s for a send, 60 s in JSON, credit 64, no interval between dispatches.
#[test]
fn defaults() {
    let mut stage = Stage::new(Config { ping_interval: Duration::from_secs(3600), ..Config::default() });
    let handler = stage.handler("sum", 0);
    let (requester, json) = (stage.connect(Speaks::Binary), stage.connect(Speaks::Json));
    for number in 1..=65 {
        stage.request(requester, number, |_| {});
    }
    assert_eq!(stage.deliveries(handler).len(), 64, "at once, for nothing holds dispatches apart");
    stage.request(requester, 66, send);
    stage.request(json, 0, |_| {});
    stage.pass(Duration::from_millis(9_999));
    assert_eq!((stage.codes(requester).len(), stage.broker.open_requests()), (0, 67));
    stage.pass(Duration::from_millis(2));
    assert_eq!(
        stage.codes(requester),
        (1..=65).map(|number| (number, Some(Code::Timeout))).collect::<Vec<_>>()
    );
    assert_eq!((stage.broker.counters().expired, stage.broker.open_requests()), (1, 1));
    stage.pass(Duration::from_millis(49_990));
    assert_eq!(stage.codes(json), []);
    stage.pass(Duration::from_millis(10));
    assert_eq!(stage.codes(json), [(1, Some(Code::Expired))]);
}

/// A plain request has no use of a ttl beyond its timeout; a send lives as long as the longer of the two.
#[test]
fn a_ttl_beyond_the_timeout() {
    let mut stage = Stage::new(Config { ping_interval: Duration::from_secs(3600), ..Config::default() });
    let (_handler, requester) = (stage.handler("other", 1), stage.connect(Speaks::Binary));
    stage.handler("sum", 1);
    let long = |request: &mut Request| (request.ttl_ms, request.timeout_ms) = (5000, 1000);
    stage.request(requester, 1, long);
    stage.request(requester, 2, |request| {
        long(request);
        request.flags = RequestFlags::SEND;
    });
    stage.pass(Duration::from_millis(1001));
    assert_eq!((stage.codes(requester), stage.broker.open_requests()), (vec![(1, Some(Code::Timeout))], 1));
    stage.pass(Duration::from_millis(4000));
    assert_eq!((stage.broker.open_requests(), stage.broker.counters().expired), (0, 1));
}

/// Deadlines do not follow the wall clock: it may jump as it likes, and requests end when they would have.
#[test]
fn the_wall_clock_may_jump() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.handler("sum", 9), stage.connect(Speaks::Binary));
    let began = stage.now.wall_ms;
    for number in 1..=2 {
        stage.request(requester, number, |request| request.timeout_ms = 1000);
    }
    let held = stage.deliveries(handler);
    stage.now.wall_ms = 0;
    stage.pass(Duration::from_millis(400));
    stage.now.wall_ms = began + 1_000_000_000;
    stage.pass(Duration::from_millis(500));
    assert_eq!(stage.codes(requester), []);
    stage.answer(handler, held[0].delivery, Verdict::Reply);
    let [reply] = &stage.replies(requester)[..] else { panic!("one reply") };
    assert_eq!((reply.received_at_ms, reply.handled_after_ms), (began, 900), "measured, not subtracted");
    stage.pass(Duration::from_millis(101));
    assert_eq!(stage.codes(requester), [(2, Some(Code::Timeout))]);
}

/// Who registers after a broadcast has come in is not asked; who leaves, and had not got it, ends its leg.
#[test]
fn a_broadcasts_handlers_are_fixed() {
    let mut stage = Stage::new(Config::default());
    let (stays, leaves) = (stage.handler("sum", 1), stage.handler("sum", 1));
    let requester = stage.connect(Speaks::Binary);
    stage.request(requester, 1, broadcast);
    stage.request(requester, 2, broadcast);
    let late = stage.handler("sum", 9);
    stage.take(requester);
    stage.say(leaves, ClientMessage::Deregister(Target::Number(1)));
    let [reply] = &stage.replies(requester)[..] else { panic!("the leg that waited for it") };
    assert_eq!((reply.number, reply.code), (2, Some(Code::HandlerLost)));
    for handler in [stays, leaves] {
        let delivery = stage.deliveries(handler)[0].delivery;
        stage.answer(handler, delivery, Verdict::Reply);
    }
    assert_eq!(stage.codes(requester), [(1, None), (1, None)]);
    let delivery = stage.deliveries(stays)[0].delivery;
    stage.answer(stays, delivery, Verdict::Error);
    assert_eq!(stage.codes(requester), [(2, Some(Code::Remote))]);
    assert_eq!((stage.deliveries(late).len(), stage.broker.open_requests()), (0, 0));
}

/// A leg has one attempt, whatever the request allows, and a reply after its end is dropped.
#[test]
fn a_leg_has_one_attempt() {
    let mut stage = Stage::new(Config::default());
    let handlers = [stage.handler("sum", 9), stage.handler("sum", 9)];
    let requester = stage.connect(Speaks::Binary);
    stage.request(requester, 1, |request| {
        (request.flags, request.max_attempts, request.timeout_ms) = (RequestFlags::BROADCAST, 9, 1000);
    });
    stage.take(requester);
    stage.input(Input::Closed { conn: handlers[0] });
    let [reply] = &stage.replies(requester)[..] else { panic!("one leg") };
    assert_eq!((reply.code, reply.attempt), (Some(Code::HandlerLost), 1));
    let held = stage.deliveries(handlers[1]);
    assert_eq!(held.len(), 1, "the other one's leg is not given to this one");
    stage.pass(Duration::from_millis(1001));
    assert_eq!(stage.codes(requester), [(1, Some(Code::Timeout))]);
    stage.answer(handlers[1], held[0].delivery, Verdict::Reply);
    assert_eq!((stage.codes(requester), stage.broker.counters().late_answers), (vec![], 1));
}

/// A broadcast that is cancelled ends all its open legs, and every handler that holds one is told.
#[test]
fn a_cancelled_broadcast() {
    let mut stage = Stage::new(Config::default());
    let handlers = [stage.handler("sum", 1), stage.handler("sum", 1), stage.handler("sum", 1)];
    let requester = stage.connect(Speaks::Binary);
    stage.request(requester, 1, broadcast);
    stage.take(requester);
    let delivery = stage.deliveries(handlers[1])[0].delivery;
    stage.answer(handlers[1], delivery, Verdict::Reply);
    stage.say(requester, ClientMessage::Cancel(Target::Number(1)));
    let cancelled = Some(Code::Cancelled);
    assert_eq!(stage.codes(requester), [(1, None), (1, cancelled), (1, cancelled)]);
    let told = handlers.map(|conn| {
        let cancels = |message: &ServerMessage| matches!(message, ServerMessage::Cancel { .. });
        stage.take(conn).iter().filter(|message| cancels(message)).count()
    });
    assert_eq!(told, [1, 0, 1]);
}

/// A broadcast that wants no replies reaches every handler, and its requester hears that it was accepted and nothing else.
#[test]
fn a_broadcast_that_is_a_send() {
    let mut stage = Stage::new(Config::default());
    let handlers = [stage.handler("sum", 1), stage.handler("sum", 1)];
    let requester = stage.connect(Speaks::Binary);
    stage.take(requester);
    stage.request(requester, 1, |request| {
        request.flags = RequestFlags::BROADCAST.with(RequestFlags::SEND);
    });
    for handler in handlers {
        let delivery = stage.deliveries(handler)[0].delivery;
        stage.answer(handler, delivery, Verdict::Reply);
    }
    let said = stage.take(requester);
    assert!(matches!(said[..], [ServerMessage::Accepted { upto: 1, .. }]), "{said:?}");
    assert_eq!(stage.broker.open_requests(), 0);
}

/// The welcome says who the server is, which of its lives this is, the session's epoch, and the next request's number.
#[test]
fn the_welcome() {
    let mut stage = Stage::new(Config { server_id: "here".into(), ..Config::default() });
    let mut welcome = |conn, connection| {
        stage.input(Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() });
        stage.say(conn, hello("me", 1, connection));
        let said = stage.take(conn);
        let [ServerMessage::Welcome(welcome)] = &said[..] else { panic!("{said:?}") };
        stage.request(conn, welcome.next_number, |_| {});
        stage.take(conn);
        stage.input(Input::Closed { conn });
        (
            welcome.server_id.clone(),
            welcome.boot,
            welcome.epoch,
            welcome.next_number,
            welcome.ping_interval_ms,
        )
    };
    assert_eq!(welcome(ConnId(0), 1), ("here".into(), 7, 1, 1, 5000));
    assert_eq!(welcome(ConnId(0), 2), ("here".into(), 7, 2, 2, 5000));
}

/// A silent handler is lost after three intervals, not before; in that moment its requests go on or end, and its action is
/// nobody's.
#[test]
fn silence_loses_a_handler_in_that_moment() {
    let mut stage = Stage::new(Config::default());
    let (silent, requester) = (stage.handler("sum", 9), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |request| request.timeout_ms = 60_000);
    stage.request(requester, 2, |request| (request.timeout_ms, request.max_attempts) = (60_000, 2));
    let heir = stage.handler("sum", 9);
    stage.take(silent);
    for second in 1..=15 {
        assert_eq!((stage.closed.len(), stage.deliveries(heir).len()), (0, 0), "after {second} s");
        stage.pass(Duration::from_secs(1));
        for alive in [requester, heir] {
            stage.input(Input::Heard { conn: alive });
        }
    }
    assert_eq!(stage.closed, [(silent, CloseReason::Silent)]);
    assert_eq!(stage.codes(requester), [(1, Some(Code::HandlerLost))]);
    assert_eq!(stage.deliveries(heir)[0].attempt, 2);
    let pings = stage.take(silent).iter().filter(|it| matches!(it, ServerMessage::Ping(_))).count();
    assert_eq!(pings, 2, "after 5 s and after 10 s");
}

/// A send that was accepted goes on when its sender ends in order, and while a session that was cut may come back; with the
/// session it ends.
#[test]
fn an_accepted_send_outlives_its_senders_connection() {
    for (session, goodbye, goes_on) in
        [("", true, true), ("", false, false), ("me", true, true), ("me", false, true)]
    {
        let mut stage = Stage::new(Config::default());
        let handler = stage.handler("sum", 1);
        let sender = ConnId(9);
        stage.input(Input::Opened { conn: sender, speaks: Speaks::Binary, identity: Identity::default() });
        stage.say(sender, hello(session, 1, 1));
        for number in 1..=2 {
            stage.request(sender, number, send);
        }
        let held = stage.deliveries(handler)[0].delivery;
        if goodbye {
            stage.say(sender, ClientMessage::Goaway);
        }
        stage.input(Input::HalfClosed { conn: sender });
        stage.answer(handler, held, Verdict::Reply);
        let waited = !stage.deliveries(handler).is_empty();
        assert_eq!(waited, goes_on, "session {session:?}, goodbye: {goodbye}");
    }
}

/// A handler that hangs is still somebody: requests wait for it, each for its own time, and are not told that nobody is there.
#[test]
fn a_stuck_handler_is_waited_for() {
    let mut stage = Stage::new(Config { ping_interval: Duration::from_secs(3600), ..Config::default() });
    let (_stuck, requester) = (stage.handler("sum", 2), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |request| request.timeout_ms = 1000);
    stage.pass(Duration::from_secs(32));
    stage.take(requester);
    stage.request(requester, 2, |request| request.timeout_ms = 1000);
    assert_eq!(stage.codes(requester), []);
    stage.pass(Duration::from_millis(1001));
    assert_eq!(stage.codes(requester), [(2, Some(Code::Timeout))]);
}

/// What is open for a client that is away when a server begins to leave ends then: it could not come back.
#[test]
fn a_leaving_server_waits_for_nobody_who_is_away() {
    let mut stage = Stage::new(Config::default());
    let handler = stage.handler("sum", 1);
    let away = ConnId(9);
    stage.input(Input::Opened { conn: away, speaks: Speaks::Binary, identity: Identity::default() });
    stage.say(away, hello("me", 1, 1));
    stage.request(away, 1, |_| {});
    stage.input(Input::Closed { conn: away });
    assert_eq!(stage.broker.open_requests(), 1);
    stage.take(handler);
    stage.input(Input::Drain { grace_ms: 1000 });
    assert!(stage.take(handler).iter().any(|message| matches!(message, ServerMessage::Cancel { .. })));
    assert!(stage.drained);
}

/// Clients that are away are remembered up to a bound: one more with nothing open is forgotten at once, and counted; one that
/// has something open is remembered all the same.
#[test]
fn a_crowd_that_is_away() {
    let mut stage = Stage::new(Config { max_sessions_away: 1, ..Config::default() });
    let handler = stage.handler("sum", 9);
    let mut come = |conn, session: &'static str, asks: bool| {
        stage.input(Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() });
        stage.say(conn, hello(session, 1, 1));
        if asks {
            stage.request(conn, 1, |_| {});
        }
        stage.input(Input::Closed { conn });
        (stage.broker.detached, stage.broker.counters().sessions_forgotten)
    };
    assert_eq!(come(ConnId(10), "first", false), (1, 0));
    assert_eq!(come(ConnId(11), "nothing open", false), (1, 1));
    assert_eq!(come(ConnId(12), "", false), (1, 1), "who has no name cannot be remembered");
    assert_eq!(come(ConnId(13), "asks", true), (2, 1));
    assert_eq!(stage.deliveries(handler).len(), 1);
}
