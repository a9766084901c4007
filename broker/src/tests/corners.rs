//! Where rules meet, and bounds are reached.

use ringpost_protocol::message::ClientMessage::{Cancel, Credit, Deregister, Goaway, WatchReceivers};

use super::*;

fn overloaded(stage: &mut Stage, conn: ConnId) -> Vec<u64> {
    let overloaded = |(number, code)| (code == Some(Code::Overloaded)).then_some(number);
    stage.codes(conn).into_iter().filter_map(overloaded).collect()
}

/// No number can follow the highest: it is refused, and wraps round to nothing.
#[test]
fn the_highest_number() {
    let mut stage = Stage::new(Config::default());
    let (_handler, requester) = (stage.handler("sum", 9), stage.connect(Speaks::Binary));
    stage.request(requester, u64::MAX - 1, |_| {});
    assert!(stage.closed.is_empty());
    stage.request(requester, u64::MAX, |_| {});
    assert_eq!(stage.closed, [(requester, CloseReason::Refused(Code::Malformed))]);
    assert_eq!(stage.broker.open_requests(), 0);
}

/// A broadcast that has ended takes no place in the queue of a handler without credit any more.
#[test]
fn ended_broadcasts_do_not_wait() {
    let mut stage = Stage::new(Config { leg_queue_limit: 2, ..Config::default() });
    let (handler, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    for number in 1..=3 {
        stage.request(requester, number, broadcast);
    }
    stage.say(requester, Cancel(Target::Number(2)));
    stage.say(requester, Cancel(Target::Number(3)));
    stage.take(requester);
    stage.request(requester, 4, broadcast);
    stage.request(requester, 5, broadcast);
    assert!(overloaded(&mut stage, requester).is_empty());
    stage.request(requester, 6, broadcast);
    assert_eq!(overloaded(&mut stage, requester), [6]);
    let first = stage.deliveries(handler)[0].delivery;
    stage.answer(handler, first, Verdict::Reply);
    assert_eq!(stage.codes(requester), [(1, None)]);
    assert_eq!(stage.deliveries(handler).len(), 1, "the fourth");
}

/// A leg that no handler got says so, whatever became of the others.
#[test]
fn a_leg_that_was_never_delivered() {
    let mut stage = Stage::new(Config::default());
    let (free, full) = (stage.handler("sum", 9), stage.handler("sum", 1));
    let requester = stage.connect(Speaks::Binary);
    stage.request(requester, 1, broadcast);
    stage.take(requester);
    stage.request(requester, 2, broadcast);
    stage.input(Input::Closed { conn: full });
    stage.input(Input::Closed { conn: free });
    let told: Vec<_> = stage
        .replies(requester)
        .into_iter()
        .map(|reply| (reply.number, reply.leg.unwrap().index, reply.attempt, reply.delivered_after_ms))
        .collect();
    assert_eq!(told, [(1, 1, 1, 0), (2, 1, 0, u32::MAX), (1, 0, 1, 0), (2, 0, 1, 0)]);
}

/// When handlers hold as many requests as can be counted, what would be dispatched next is refused, alone and in a
/// broadcast, also when it waited; answers make room again.
#[test]
fn no_more_deliveries_than_can_be_counted() {
    let mut stage = Stage::new(Config::default());
    stage.broker.deliveries.most = 2;
    let (sum, other) = (stage.handler("sum", 1), stage.handler("other", 9));
    let requester = stage.connect(Speaks::Binary);
    let to_other = |request: &mut Request| request.content = Content::from_parts(b"other", b"", b"", b"");
    stage.request(requester, 1, |_| {});
    stage.request(requester, 2, |_| {});
    stage.request(requester, 3, broadcast);
    stage.request(requester, 4, to_other);
    stage.take(requester);
    stage.request(requester, 5, to_other);
    assert_eq!(overloaded(&mut stage, requester), [5]);
    stage.say(sum, Credit { registration: 1, credit: 9 });
    assert_eq!(overloaded(&mut stage, requester), [3, 2]);
    let held = stage.deliveries(other)[0].delivery;
    stage.answer(other, held, Verdict::Reply);
    stage.take(requester);
    stage.request(requester, 6, to_other);
    assert!(overloaded(&mut stage, requester).is_empty());
}

/// A request that goes down with a handler which had left its action goes on, at once, to those who handle it now.
#[test]
fn redelivered_to_an_action_registered_anew() {
    let mut stage = Stage::new(Config::default());
    let (leaving, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |request| request.max_attempts = 2);
    stage.say(leaving, Deregister(Target::Number(1)));
    let heir = stage.handler("sum", 1);
    stage.input(Input::Closed { conn: leaving });
    let [deliver] = &stage.deliveries(heir)[..] else { panic!("one delivery") };
    assert_eq!(deliver.attempt, 2);
    stage.answer(heir, deliver.delivery, Verdict::Reply);
    assert_eq!(stage.codes(requester), [(1, None)]);
}

/// What goes down with one registration of a connection is not given to another of the same connection.
#[test]
fn redelivered_to_another_connection() {
    let mut stage = Stage::new(Config::default());
    let (dying, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    stage.register(dying, 2, "sum", 9);
    stage.request(requester, 1, |request| request.max_attempts = 2);
    let heir = stage.handler("sum", 1);
    stage.input(Input::HalfClosed { conn: dying });
    let delivery = stage.deliveries(heir)[0].delivery;
    stage.answer(heir, delivery, Verdict::Reply);
    assert_eq!(stage.codes(requester), [(1, None)]);
    assert_eq!(stage.deliveries(dying).len(), 1);
}

/// A number of a registration may be used again while the old one still holds something; each keeps its own.
#[test]
fn a_registration_number_used_again() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |_| {});
    stage.say(handler, Deregister(Target::Number(1)));
    stage.register(handler, 1, "sum", 1);
    stage.request(requester, 2, |_| {});
    let held = stage.deliveries(handler);
    assert_eq!(held.len(), 2);
    stage.say(handler, Deregister(Target::Number(1)));
    for deliver in held {
        stage.answer(handler, deliver.delivery, Verdict::Reply);
    }
    assert_eq!(stage.codes(requester), [(1, None), (2, None)]);
    assert!(stage.broker.handlers.len() + stage.broker.actions.len() == 0);
}

/// A reply that is no JSON, for a requester that has ended its half: it is told so before it is closed.
#[test]
fn undeliverable_to_one_that_is_closed_next() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Json));
    stage.request(requester, 0, |_| {});
    stage.input(Input::HalfClosed { conn: requester });
    let delivery = stage.deliveries(handler)[0].delivery;
    let answer = Answer { delivery, content: Content::from_payload("no JSON"), ..Answer::default() };
    stage.broker.handle(Input::Message { conn: handler, message: ClientMessage::Answer(answer) }, stage.now);
    let Some(Output::Send { conn, message }) = stage.broker.poll_output() else { panic!("the reply") };
    stage.broker.handle(Input::Undeliverable { conn, message: Box::new(message) }, stage.now);
    let Some(Output::Send { message: ServerMessage::Reply(reply), .. }) = stage.broker.poll_output() else {
        panic!("the reply that stands for it")
    };
    assert_eq!((conn, reply.number, reply.code), (requester, 1, Some(Code::Unsupported)));
    stage.collect();
    assert_eq!(stage.closed, [(requester, CloseReason::Finished)]);
}

/// Whoever has ended its half is not lost for its silence: what it asked for is answered, however late.
#[test]
fn silent_after_a_half_close() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.connect(Speaks::Json), stage.connect(Speaks::Binary));
    stage.register(handler, 0, "sum", 1);
    stage.request(requester, 1, |request| request.timeout_ms = 60_000);
    stage.say(requester, Goaway);
    stage.input(Input::HalfClosed { conn: requester });
    stage.pass(Duration::from_secs(40));
    let delivery = stage.deliveries(handler)[0].delivery;
    stage.answer(handler, delivery, Verdict::Reply);
    assert_eq!(stage.codes(requester), [(1, None)]);
    assert_eq!(stage.closed, [(requester, CloseReason::Finished)]);
}

/// Who asks for the receivers is told them, also if it watches them already and nothing has changed.
#[test]
fn asking_again_for_the_receivers() {
    let mut stage = Stage::new(Config::default());
    let watcher = stage.connect(Speaks::Json);
    stage.register(watcher, 0, "sum", 1);
    stage.pass(Duration::from_secs(1));
    assert_eq!(stage.take(watcher).len(), 1);
    stage.say(watcher, WatchReceivers(true));
    stage.say(watcher, WatchReceivers(true));
    stage.register(watcher, 0, "sum", 2);
    stage.pass(Duration::from_secs(1));
    assert_eq!(stage.take(watcher).len(), 1);
    stage.say(watcher, WatchReceivers(false));
    stage.handler("other", 1);
    stage.pass(Duration::from_secs(1));
    assert!(stage.take(watcher).is_empty());
}

/// A send to one of the server's own actions is accepted, and nothing else is heard of it.
#[test]
fn a_send_to_the_server() {
    let mut stage = Stage::new(Config::default());
    let requester = stage.connect(Speaks::Binary);
    stage.take(requester);
    stage.request(requester, 1, |request| {
        request.flags = RequestFlags::SEND;
        request.content = Content::from_parts(b"$sys.stats", b"", b"", b"");
    });
    assert!(matches!(stage.take(requester)[..], [ServerMessage::Accepted { upto: 1, .. }]));
}

/// Credit 0 pauses a handler, more credit wakes it, less takes nothing back.
#[test]
fn credit_changes() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.handler("sum", 2), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |_| {});
    stage.say(handler, Credit { registration: 1, credit: 0 });
    stage.say(handler, Credit { registration: 7, credit: 9 });
    stage.request(requester, 2, |_| {});
    let held = stage.deliveries(handler);
    assert_eq!(held.len(), 1);
    stage.answer(handler, held[0].delivery, Verdict::Reply);
    assert!(stage.deliveries(handler).is_empty(), "paused");
    stage.say(handler, Credit { registration: 1, credit: u32::MAX });
    assert_eq!(stage.deliveries(handler).len(), 1);
}

/// A handler that changes its credit, and has some before and after, keeps its turn.
#[test]
fn a_change_of_credit_keeps_the_turn() {
    let mut stage = Stage::new(Config::default());
    let (first, second) = (stage.handler("sum", 4), stage.handler("sum", 4));
    let requester = stage.connect(Speaks::Binary);
    stage.say(first, ClientMessage::Credit { registration: 1, credit: 3 });
    for number in 1..=4 {
        stage.request(requester, number, |_| {});
        stage.say(second, ClientMessage::Credit { registration: 1, credit: 3 + (number % 2) as u32 });
    }
    let mut numbers = |conn| stage.deliveries(conn).iter().map(|it| it.request_id.count).collect::<Vec<_>>();
    assert_eq!((numbers(first), numbers(second)), (vec![1, 3], vec![2, 4]));
}

/// A session that is taken over keeps its requests and loses its handlers. A taker that does not resume begins anew.
#[test]
fn taken_over_in_flight() {
    let mut stage = Stage::new(Config::default());
    let handler = stage.handler("sum", 1);
    let (old, new) = (ConnId(20), ConnId(21));
    stage.input(Input::Opened { conn: old, speaks: Speaks::Binary, identity: Identity::default() });
    stage.say(old, hello("me", 1, 1));
    stage.register(old, 1, "own", 1);
    stage.request(old, 1, |_| {});
    stage.request(old, 2, |request| request.content = Content::from_parts(b"own", b"", b"", b""));
    stage.input(Input::Opened { conn: new, speaks: Speaks::Binary, identity: Identity::default() });
    stage.say(new, hello("me", 2, 1));
    assert_eq!(stage.broker.open_requests(), 1, "the other one went with its handler");
    stage.input(Input::Closed { conn: old });
    stage.take(handler);
    stage.request(new, 3, |_| {});
    assert!(
        matches!(stage.take(handler)[..], [ServerMessage::Cancel { .. }]),
        "the old one, for the new one"
    );
    assert_eq!(stage.codes(new), []);
    assert_eq!((stage.broker.open_requests(), stage.broker.counters().sessions_taken), (1, 1));
}

/// A client that leaves keeps what it holds and what it asked for, and is closed with the last of it.
#[test]
fn a_client_that_leaves() {
    let mut stage = Stage::new(Config::default());
    let (leaving, other) = (stage.handler("sum", 9), stage.handler("other", 9));
    stage.request(leaving, 1, |request| request.content = Content::from_parts(b"other", b"", b"", b""));
    stage.request(other, 1, |_| {});
    let (held, asked) = (stage.deliveries(leaving)[0].delivery, stage.deliveries(other)[0].delivery);
    stage.say(leaving, Goaway);
    stage.request(other, 2, |_| {});
    assert_eq!(stage.codes(other), [(2, Some(Code::NoHandler))]);
    stage.answer(leaving, held, Verdict::Reply);
    assert_eq!((stage.codes(other), stage.closed.len()), (vec![(1, None)], 0));
    stage.answer(other, asked, Verdict::Reply);
    assert_eq!(stage.codes(leaving), [(1, None)]);
    assert_eq!(stage.closed, [(leaving, CloseReason::Finished)]);
}

/// Under the dispatch interval, actions that go and come again while they wait for their turn hold nobody up.
#[test]
fn an_action_gone_while_it_was_paced() {
    let interval = Duration::from_millis(10);
    let mut stage = Stage::new(Config { dispatch_interval: interval, ..Config::default() });
    let (requester, gone) = (stage.connect(Speaks::Binary), stage.handler("sum", 9));
    for number in 1..=3 {
        stage.request(requester, number, |_| {});
    }
    stage.input(Input::Closed { conn: gone });
    stage.take(requester);
    let handler = stage.handler("sum", 9);
    stage.request(requester, 4, |_| {});
    stage.request(requester, 5, |_| {});
    stage.pass(interval * 3);
    assert_eq!(stage.deliveries(handler).len(), 2);
    assert!(stage.broker.paced.is_empty());
}

/// Values at their ends: times of 2^32 - 1 ms, 255 attempts, no wall clock.
#[test]
fn extreme_values() {
    let mut stage = Stage::new(Config::default());
    stage.now.wall_ms = 0;
    let requester = stage.connect(Speaks::Json);
    let extreme = |request: &mut Request| {
        (request.ttl_ms, request.timeout_ms, request.max_attempts) = (u32::MAX, u32::MAX, 255)
    };
    let mut handler = stage.handler("sum", 1);
    stage.request(requester, 0, extreme);
    for attempt in 1..=255 {
        let deliver = stage.deliveries(handler).remove(0);
        assert_eq!((deliver.attempt, deliver.time_left_ms), (attempt, 7 * 24 * 3600 * 1000));
        let heir = stage.handler("sum", 1);
        stage.input(Input::Closed { conn: handler });
        handler = heir;
    }
    assert_eq!(stage.codes(requester), [(1, Some(Code::HandlerLost))]);
}

/// What is kept, queued or for a further attempt, is bounded over all actions by three quarters of the budget; what goes
/// through at once is not kept.
#[test]
fn memory_is_bounded() {
    let mut stage = Stage::new(Config { memory_bytes: 160, ..Config::default() });
    let (handler, requester) = (stage.handler("sum", 2), stage.connect(Speaks::Binary));
    let big = |request: &mut Request| {
        request.content = Content::from_parts(b"sum", b"", b"", &[b'1'; 80]);
        request.max_attempts = 2;
    };
    stage.request(requester, 1, big);
    stage.request(requester, 2, big);
    let [reply] = &stage.replies(requester)[..] else { panic!("one refusal") };
    assert!(String::from_utf8_lossy(reply.content.payload()).contains("--memory"));
    stage.request(requester, 3, |request| {
        request.content = Content::from_parts(b"sum", b"", b"", &[b'1'; 800])
    });
    let held = stage.deliveries(handler);
    assert_eq!(held.len(), 2);
    stage.answer(handler, held[0].delivery, Verdict::Reply);
    stage.request(requester, 4, big);
    assert_eq!(stage.deliveries(handler).len(), 1);
}

/// What waits while a connection is clogged is shared by all its handlers when it is not any more.
#[test]
fn handlers_that_are_unclogged_share() {
    let mut stage = Stage::new(Config { policy: Policy::LeastBusy, ..Config::default() });
    let (conn, requester) = (stage.handler("sum", 4), stage.connect(Speaks::Binary));
    stage.register(conn, 2, "sum", 4);
    stage.input(Input::Clogged { conn });
    for number in 1..=4 {
        stage.request(requester, number, |_| {});
    }
    assert!(stage.deliveries(conn).is_empty(), "clogged");
    stage.input(Input::Unclogged { conn });
    let registrations: Vec<_> = stage.deliveries(conn).iter().map(|it| it.registration).collect();
    assert_eq!(registrations, [1, 2, 1, 2]);
}

/// A server that leaves takes no new handlers, but those that it has may still change their credit, in both dialects.
#[test]
fn credit_changes_while_draining() {
    for speaks in [Speaks::Binary, Speaks::Json] {
        let mut stage = Stage::new(Config::default());
        let (handler, requester) = (stage.connect(speaks), stage.connect(Speaks::Binary));
        let registration = u32::from(speaks == Speaks::Binary);
        stage.register(handler, registration, "sum", 1);
        stage.request(requester, 1, |_| {});
        stage.request(requester, 2, |_| {});
        assert_eq!(stage.deliveries(handler).len(), 1);
        stage.input(Input::Drain { grace_ms: 1000 });
        match speaks {
            Speaks::Binary => stage.say(handler, ClientMessage::Credit { registration, credit: 2 }),
            Speaks::Json => stage.register(handler, 0, "sum", 2),
        }
        assert_eq!(stage.deliveries(handler).len(), 1, "{speaks:?}");
    }
}

/// Large messages count once, for as long as anybody holds a part of them, and what the driver holds counts too.
#[test]
fn all_that_is_held_counts() {
    let mut stage = Stage::new(Config { memory_bytes: 400_000, ..Config::default() });
    let handlers = [stage.handler("sum", 2), stage.handler("sum", 2)];
    let requester = stage.connect(Speaks::Binary);
    let payload = vec![b'1'; 100_000];
    let large = |request: &mut Request| {
        request.flags = RequestFlags::BROADCAST;
        request.content = Content::from_parts(b"sum", b"", b"", &payload);
    };
    stage.request(requester, 1, large);
    let held = handlers.map(|handler| stage.deliveries(handler).remove(0));
    assert_eq!(stage.broker.memory_used(), 100_003, "one buffer, for both legs");
    for (handler, deliver) in handlers.into_iter().zip(held) {
        stage.answer(handler, deliver.delivery, Verdict::Reply);
    }
    assert_eq!(stage.broker.memory_used(), 0);
    stage.broker.count_driver_bytes(300_001, 99_999);
    assert_eq!(stage.broker.memory_used(), 300_001);
    stage.request(requester, 2, |_| {});
    assert!(stage.codes(requester).contains(&(2, Some(Code::Overloaded))));
    assert_eq!(stage.broker.counters().refused_memory, 1);
}

/// Who has been given as much as may wait for it gets nothing more until the driver says that it has read; then it gets
/// what waited, again no more than that.
#[test]
fn a_full_window_stops_deliveries() {
    let mut stage = Stage::new(Config { window_bytes: 200, ..Config::default() });
    let (handler, requester) = (stage.handler("sum", 64), stage.connect(Speaks::Binary));
    for number in 1..=9 {
        stage.request(requester, number, |request| {
            request.content = Content::from_parts(b"sum", b"", b"", &[b'1'; 97]);
        });
    }
    for _ in 0..4 {
        assert_eq!(std::mem::take(&mut stage.full), [handler]);
        assert_eq!(stage.deliveries(handler).len(), 2);
        stage.input(Input::Unclogged { conn: handler });
    }
    assert_eq!(stage.deliveries(handler).len(), 1);
    assert!(stage.full.is_empty());
    // A connection that the driver finds clogged is passed over, also by what is registered on it then.
    stage.input(Input::Clogged { conn: handler });
    let other = stage.handler("sum", 64);
    for number in 10..=13 {
        stage.request(requester, number, |_| {});
    }
    assert_eq!((stage.deliveries(handler).len(), stage.deliveries(other).len()), (0, 4));
}
