//! Handlers that come back after a restart of the broker with what they held.

use super::*;

/// A handler of `sum` in a session of its own.
fn named_handler(logged: &mut Logged, session: &'static str) -> ConnId {
    let conn = logged.named_as(session, 7);
    logged.register(conn, 1, "sum", 9);
    conn
}

/// The handler says what it holds of an earlier boot: what goes on under which number, and what does not.
fn come_back(logged: &mut Logged, conn: ConnId, boot: u64, held: &[u64]) -> (Vec<(u64, u64)>, Vec<u64>) {
    let resume = Resume { boot, held_boot: boot, held: held.to_vec(), ..Resume::default() };
    logged.say(conn, ClientMessage::Resume(resume));
    let resumed = |(to, message): &(ConnId, ServerMessage)| match message {
        ServerMessage::Resumed { attached, forgotten, .. } if *to == conn => {
            Some((attached.clone(), forgotten.clone()))
        }
        _ => None,
    };
    let answer = logged.sent.iter().find_map(resumed).expect("an answer");
    logged.sent.retain(|said| resumed(said).is_none());
    answer
}

/// Two durable requests in the hands of a handler, and the broker dies.
fn held_by(session: &'static str) -> (Logged, Vec<u64>) {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (named_handler(&mut logged, session), logged.named("r"));
    logged.request(requester, 1, durable);
    logged.request(requester, 2, durable);
    logged.sync();
    let held = logged.deliveries(handler).iter().map(|deliver| deliver.delivery).collect();
    logged.sync();
    logged.restart();
    (logged, held)
}

/// What a handler holds when the broker dies is given to nobody else meanwhile; the handler goes on with it, and its answer is
/// that of the attempt that it had. What it does not hold any more goes to another one at once.
#[test]
fn a_handler_goes_on() {
    let (mut logged, held) = held_by("h");
    let other = logged.handler("sum", 9);
    logged.pass(Duration::from_millis(4900));
    assert!(logged.deliveries(other).is_empty());
    let handler = named_handler(&mut logged, "h");
    logged.take(handler);
    let (attached, forgotten) = come_back(&mut logged, handler, 1, &held[..1]);
    assert_eq!((attached.len(), forgotten), (1, vec![]));
    let again: Vec<_> = [handler, other].iter().flat_map(|conn| logged.deliveries(*conn)).collect();
    assert_eq!(again.len(), 1, "the one that it does not hold");
    assert_eq!((again[0].request_id.count, again[0].attempt), (2, 1));
    let requester = logged.named("r");
    logged.resume(requester, 1, &[1, 2]);
    logged.answered(handler, attached[0].1, 1);
    logged.sync();
    let reply = logged.replies(requester).remove(0);
    assert_eq!((reply.number, reply.code, reply.attempt), (1, None, 1));
    assert!(logged.take(handler).contains(&ServerMessage::Acknowledge { sequence: 1 }));
    assert_eq!(logged.broker.counters().reattached, 1);
}

/// If the handler does not come back in time, another one gets what it held, and the attempt does not count.
#[test]
fn a_handler_stays_away() {
    let (mut logged, held) = held_by("h");
    let other = logged.handler("sum", 9);
    logged.pass(Duration::from_millis(5100));
    let again = logged.deliveries(other);
    assert_eq!(again.iter().map(|deliver| deliver.attempt).collect::<Vec<_>>(), [1, 1]);
    let late = named_handler(&mut logged, "h");
    assert_eq!(come_back(&mut logged, late, 1, &held), (vec![], held));
}

/// Another session, another boot's numbers, and a handler of another action get nothing that is not theirs; nor is what the
/// requester has cancelled meanwhile given to anybody.
#[test]
fn only_what_was_theirs_goes_on() {
    let (mut logged, held) = held_by("h");
    let stranger = named_handler(&mut logged, "another");
    assert_eq!(come_back(&mut logged, stranger, 1, &held), (vec![], held.clone()));
    let requester = logged.named("r");
    logged.resume(requester, 1, &[1, 2]);
    logged.say(requester, ClientMessage::Cancel(Target::Number(1)));
    let handler = named_handler(&mut logged, "h");
    assert_eq!(come_back(&mut logged, handler, 77, &held), (vec![], held.clone()));
    let (attached, forgotten) = come_back(&mut logged, handler, 1, &held);
    assert_eq!((attached.len(), forgotten), (1, vec![held[0]]));
    assert!(logged.deliveries(stranger).is_empty());
}

/// Over several restarts, with compaction in between, a handler goes on as long as it comes back; without a name it cannot.
#[test]
fn a_handler_goes_on_and_on() {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (named_handler(&mut logged, "h"), logged.named("r"));
    logged.request(requester, 1, durable);
    logged.sync();
    let mut held = logged.deliveries(handler)[0].delivery;
    let mut number = 1;
    for boot in 1..=3 {
        let (quick, asker) = (logged.handler("quick", 9), logged.named_as("asker", 9));
        for _ in 0..400 {
            number += 1;
            logged.request(asker, number, |request| {
                durable(request);
                request.content = Content::from_parts(b"quick", b"", b"", b"1");
            });
            logged.sync();
            let delivery = logged.deliveries(quick).remove(0).delivery;
            logged.answered(quick, delivery, number);
            logged.sync();
            let sequence = logged.replies(asker).remove(0).sequence;
            logged.say(asker, ClientMessage::Acknowledge(Target::Number(sequence)));
            logged.take(quick);
        }
        logged.sync();
        logged.restart();
        let (unnamed, handler) = (logged.handler("sum", 1), named_handler(&mut logged, "h"));
        let (attached, _) = come_back(&mut logged, handler, boot, &[held]);
        assert!(logged.deliveries(unnamed).is_empty());
        held = attached[0].1;
        logged.sync();
    }
}

/// A failed attempt's record that compaction has copied behind that of the attempt under way does not hide the latter: its
/// handler goes on.
#[test]
fn compaction_does_not_hide_who_holds_it() {
    for others in (0..60).step_by(4) {
        let mut logged = Logged::new(Config::default());
        let (handler, sender) = (named_handler(&mut logged, "h"), logged.named("r"));
        logged.request(sender, 1, durable_send);
        logged.sync();
        let first = logged.deliveries(handler).remove(0).delivery;
        say_verdict(&mut logged, handler, first, Verdict::Retry(1000));
        fill(&mut logged, 30);
        logged.pass(Duration::from_secs(1));
        let second = logged.deliveries(handler).remove(0);
        assert_eq!(second.attempt, 2);
        fill(&mut logged, others);
        logged.restart();
        let handler = named_handler(&mut logged, "h");
        assert_eq!(come_back(&mut logged, handler, 1, &[second.delivery]).0.len(), 1, "with {others} others");
    }
}

/// The reply of a handler that went on says when it was given the request: before the restarts.
#[test]
fn the_reply_says_when_it_was_delivered() {
    let (mut logged, held) = held_by("h");
    let mut held = held[0];
    for boot in 1..=2 {
        logged.pass(Duration::from_secs(1));
        let handler = named_handler(&mut logged, "h");
        held = come_back(&mut logged, handler, boot, &[held]).0[0].1;
        logged.sync();
        if boot == 1 {
            logged.restart();
        } else {
            logged.answered(handler, held, 1);
        }
    }
    logged.sync();
    let requester = logged.named("r");
    logged.resume(requester, 1, &[1, 2]);
    let reply = logged.replies(requester).remove(0);
    assert_eq!((reply.delivered_after_ms, reply.handled_after_ms), (0, 2000));
}

/// So many requests that are answered, and done.
fn fill(logged: &mut Logged, times: u64) {
    let (quick, asker) = (logged.handler("quick", 9), logged.connect(Speaks::Binary));
    for number in 1..=times {
        logged.request(asker, number, |request| {
            durable(request);
            request.content = Content::from_parts(b"quick", b"", b"", b"1");
        });
        logged.sync();
        let delivery = logged.deliveries(quick).remove(0).delivery;
        logged.answered(quick, delivery, number);
        logged.sync();
        let sequence = logged.replies(asker).remove(0).sequence;
        logged.say(asker, ClientMessage::Acknowledge(Target::Number(sequence)));
    }
    logged.input(Input::Closed { conn: quick });
    logged.input(Input::Closed { conn: asker });
    logged.sync();
}

/// JSON handlers cannot say what they held: another one gets it at once, whatever name they had.
#[test]
fn json_handlers_are_not_waited_for() {
    let mut logged = Logged::new(Config::default());
    let handler = logged.connect(Speaks::Json);
    let (action, session) = ("sum".into(), "h".into());
    logged.say(handler, ClientMessage::Register(Register { registration: 0, credit: 1, action, session }));
    let requester = logged.named("r");
    logged.request(requester, 1, durable);
    logged.sync();
    assert_eq!(logged.deliveries(handler).len(), 1);
    logged.sync();
    logged.restart();
    let other = logged.handler("sum", 9);
    assert_eq!(logged.deliveries(other).len(), 1);
}
