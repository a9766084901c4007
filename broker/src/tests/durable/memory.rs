//! Payloads over the bound are only in the log: what is dispatched, and when, is the same.

use serde_json::{Value, json};

use super::*;
use crate::ReadFault;

/// A log whose broker holds so many bytes of payloads.
fn with_memory(queue_memory_bytes: usize) -> Logged {
    Logged::new(Config { queue_memory_bytes, ..Config::default() })
}

/// What the so manieth request carries: 100 bytes.
fn data(number: u64) -> String {
    format!("\"{number:098}\"")
}

/// Requests `1..=count`, accepted.
fn ask(logged: &mut Logged, requester: ConnId, count: u64, form: fn(&mut Request)) {
    for number in 1..=count {
        logged.request(requester, number, |request| {
            form(request);
            request.content = Content::from_parts(b"sum", b"{}", b"", data(number).as_bytes());
        });
    }
    logged.sync();
}

/// Gives the handler what it can have, with all that must be read for it.
fn dispatched(logged: &mut Logged, handler: ConnId) -> Vec<Deliver> {
    logged.read_all();
    logged.deliveries(handler)
}

fn carries(deliver: &Deliver, number: u64) -> bool {
    deliver.content.payload() == data(number).as_bytes()
        && (deliver.content.name(), deliver.content.options()) == (b"sum", b"{}")
}

fn bytes(logged: &Logged) -> (usize, usize) {
    let bytes = logged.broker.payload_bytes;
    (bytes.held, bytes.stored)
}

/// What comes over the bound is not held; all of it is dispatched in its order, whole, in few reads.
#[test]
fn a_long_queue_keeps_its_order() {
    let mut logged = with_memory(4000);
    let requester = logged.named("r");
    ask(&mut logged, requester, 200, durable);
    let (held, stored) = bytes(&logged);
    assert!((2000..=3200).contains(&held) && held + stored == 200 * 105, "{held} are held, {stored} stored");
    let handler = logged.handler("sum", 2);
    let (mut next, mut reads) = (1, 0);
    assert!(logged.reads.is_empty(), "the head is there");
    while next <= 200 {
        reads += logged.reads.len();
        for deliver in dispatched(&mut logged, handler) {
            assert!(carries(&deliver, next), "{next}: {deliver:?}");
            logged.answered(handler, deliver.delivery, next);
            next += 1;
        }
        assert!(bytes(&logged).0 <= 4200, "{} are held", bytes(&logged).0);
        logged.sync();
    }
    assert!((2..=200 / 4).contains(&reads), "{reads} reads");
    let last = logged.replies(requester).iter().map(|reply| reply.sequence).max().unwrap();
    logged.say(requester, ClientMessage::Acknowledge(Target::Number(last)));
    assert_eq!((bytes(&logged), logged.broker.requests.len()), ((0, 0), 0));
}

/// What an operator is answered, as soon as it is.
fn operate(logged: &mut Logged, conn: ConnId, number: u64, data: &str) -> Option<Value> {
    logged.take(conn);
    let action = if data.contains("peek") { &b"$sys.queues"[..] } else { b"$sys.dead" };
    logged.request(conn, number, |request| {
        request.content = Content::from_parts(action, b"", b"", data.as_bytes());
    });
    told(logged, conn)
}

fn told(logged: &mut Logged, conn: ConnId) -> Option<Value> {
    let reply = logged.replies(conn).pop()?;
    assert_eq!(reply.code, None, "{reply:?}");
    Some(serde_json::from_slice(reply.content.payload()).unwrap())
}

/// Who looks at a queue sees the data of all that it shows: what is only in the log is read for that, a bounded part at a time, and
/// goes again.
#[test]
fn a_look_reads_what_is_stored() {
    let mut logged = with_memory(4000);
    let requester = logged.named("r");
    ask(&mut logged, requester, 200, durable);
    let operator = logged.connect(Speaks::Binary);
    let before = bytes(&logged);
    assert_eq!(operate(&mut logged, operator, 1, r#"{"op":"peek","action":"sum","count":200}"#), None);
    assert!(!logged.reads.is_empty());
    while logged.read(0, |_| {}) {
        assert!(bytes(&logged).0 <= 4200, "{} are held", bytes(&logged).0);
    }
    let seen = told(&mut logged, operator).unwrap();
    assert_eq!(seen.as_array().unwrap().len(), 100);
    assert!((1..=100).all(|number| seen[number - 1]["data"] == *data(number as u64)), "{seen}");
    assert!(bytes(&logged).0 <= before.0 && logged.broker.requests.len() == 200, "{:?}", bytes(&logged));
}

/// A look at what has its turn meanwhile shows the rest, and holds nothing up.
#[test]
fn a_look_at_what_is_being_dispatched() {
    let mut logged = with_memory(0);
    let requester = logged.named("r");
    ask(&mut logged, requester, 3, durable);
    let operator = logged.connect(Speaks::Binary);
    assert_eq!(operate(&mut logged, operator, 1, r#"{"op":"peek","action":"sum"}"#), None);
    logged.say(requester, ClientMessage::Cancel(Target::Number(1)));
    let handler = logged.handler("sum", 1);
    let delivered = dispatched(&mut logged, handler);
    assert!(delivered.len() == 1 && carries(&delivered[0], 2), "{delivered:?}");
    let seen = told(&mut logged, operator).unwrap();
    let seen: Vec<_> = seen.as_array().unwrap().iter().map(|it| it["data"].as_str().unwrap()).collect();
    assert_eq!(seen, [data(2), data(3)]);
}

/// Nobody waits for ever for a look: it can be cancelled, it times out, and it ends with who asked.
#[test]
fn a_look_that_nobody_waits_for() {
    let mut logged = with_memory(0);
    let requester = logged.named("r");
    ask(&mut logged, requester, 3, durable);
    let operators = [0, 1, 2].map(|_| logged.connect(Speaks::Binary));
    for operator in operators {
        assert_eq!(operate(&mut logged, operator, 1, r#"{"op":"peek","action":"sum"}"#), None);
    }
    logged.say(operators[0], ClientMessage::Cancel(Target::Number(1)));
    logged.input(Input::Closed { conn: operators[1] });
    logged.pass(Duration::from_secs(11));
    let codes = operators.map(|operator| logged.codes(operator));
    assert_eq!(codes, [vec![(1, Some(Code::Cancelled))], vec![], vec![(1, Some(Code::Timeout))]]);
    logged.read_all();
    assert_eq!((logged.broker.inquiries.len(), logged.broker.requests.len()), (0, 3));
}

/// A dead letter is shown whole, though its data is only in the log; the list says that it is there.
#[test]
fn a_stored_dead_letter_is_shown() {
    let mut logged = with_memory(0);
    let operator = bury_all(&mut logged, 2);
    let list = operate(&mut logged, operator, 1, r#"{"op":"list"}"#).unwrap();
    assert!(list[1]["data"].is_null() && list[1]["stored"] == true, "{list}");
    let show = json!({"op": "show", "requestId": list[1]["requestId"]}).to_string();
    assert_eq!(operate(&mut logged, operator, 2, &show), None);
    logged.read_all();
    let letter = told(&mut logged, operator).unwrap();
    assert_eq!((&letter["data"], &letter["stored"]), (&json!(data(2)), &json!(false)), "{letter}");
    assert_eq!(bytes(&logged), (0, 210), "it is not held");
}

/// So many sends expire; who asks for them is connected.
fn bury_all(logged: &mut Logged, count: u64) -> ConnId {
    let requester = logged.named("r");
    ask(logged, requester, count, |request| {
        durable_send(request);
        request.ttl_ms = 1000;
    });
    logged.pass(Duration::from_secs(2));
    logged.sync();
    assert_eq!(logged.broker.dead.len() as u64, count);
    logged.connect(Speaks::Binary)
}

/// All dead letters are sent again in steps: at no time is more in memory than the bound says, however many they are, and when all
/// have been sent it is told how many. What was damaged stays, and is told.
#[test]
fn all_dead_letters_are_sent_again_in_steps() {
    let mut logged = with_memory(4000);
    let operator = bury_all(&mut logged, 500);
    assert_eq!(operate(&mut logged, operator, 1, r#"{"op":"resend"}"#), None);
    let third = data(300);
    let (mut reads, mut damaged) = (0, 0);
    while !logged.broker.inquiries.is_empty() {
        let held = bytes(&logged).0;
        assert!(held <= 4200, "{held} are held");
        while logged.read(0, |bytes| {
            if let Some(at) = bytes.windows(100).position(|piece| piece == third.as_bytes()) {
                bytes[at] ^= 1;
                damaged += 1;
            }
        }) {
            reads += 1;
            assert!(bytes(&logged).0 <= 4200, "{} are held", bytes(&logged).0);
        }
        logged.sync();
    }
    assert_eq!(damaged, 2);
    assert!((50..=250).contains(&reads), "{reads} reads: not all at once, and not one by one");
    assert_eq!(told(&mut logged, operator), Some(json!({"sent": 499, "damaged": 1})));
    assert_eq!(logged.broker.dead.len(), 1);
    let handler = logged.handler("sum", 500);
    let mut delivered = Vec::new();
    while delivered.len() < 499 {
        delivered.extend(dispatched(&mut logged, handler));
        logged.sync();
    }
    delivered.sort_unstable_by_key(|deliver| deliver.request_id.count);
    let numbers = (1..=500).filter(|number| *number != 300);
    assert!(delivered.iter().zip(numbers).all(|(deliver, number)| carries(deliver, number)));
}

/// To send dead letters again goes on without who asked for it; the next one's turn comes after it.
#[test]
fn sending_again_goes_on_alone() {
    let mut logged = with_memory(400);
    let operator = bury_all(&mut logged, 50);
    assert_eq!(operate(&mut logged, operator, 1, r#"{"op":"resend"}"#), None);
    let other = logged.connect(Speaks::Json);
    assert_eq!(operate(&mut logged, other, 0, r#"{"op":"resend"}"#), None);
    logged.input(Input::HalfClosed { conn: other });
    assert_eq!(logged.closed, [], "its answer is still to come");
    logged.input(Input::Closed { conn: operator });
    while !logged.broker.inquiries.is_empty() {
        logged.read_all();
        logged.sync();
    }
    assert_eq!(logged.broker.dead.len(), 0);
    assert_eq!(told(&mut logged, other), Some(json!({"sent": 0, "damaged": 0})));
    assert_eq!(logged.closed, [(other, CloseReason::Finished)]);
}

/// After a restart no more is held than before, and all of it is there.
#[test]
fn a_restart_holds_no_more() {
    let mut logged = with_memory(2000);
    let requester = logged.named("r");
    ask(&mut logged, requester, 50, durable);
    logged.restart();
    let (held, stored) = bytes(&logged);
    assert!((1000..=1500).contains(&held) && held + stored == 50 * 105, "{held} are held, {stored} stored");
    let handler = logged.handler("sum", 50);
    let mut numbers = 1..;
    while logged.broker.deliveries.len() < 50 {
        for deliver in dispatched(&mut logged, handler) {
            assert!(carries(&deliver, numbers.next().unwrap()), "{deliver:?}");
        }
    }
    assert_eq!(numbers.next(), Some(51));
}

/// What ends while it is read has ended: cancelled, expired, or ended by an operator. The next one gets its handler.
#[test]
fn what_ends_while_it_is_read() {
    let mut logged = with_memory(0);
    let requester = logged.named("r");
    ask(&mut logged, requester, 40, |request| {
        durable(request);
        request.ttl_ms = if request.number == 2 { 1000 } else { 0 };
    });
    let handler = logged.handler("sum", 1);
    assert!(!logged.reads.is_empty() && logged.deliveries(handler).is_empty());
    logged.say(requester, ClientMessage::Cancel(Target::Number(1)));
    logged.pass(Duration::from_secs(2));
    logged.sync();
    assert_eq!(logged.codes(requester), [(1, Some(Code::Cancelled)), (2, Some(Code::Expired))]);
    let delivered = dispatched(&mut logged, handler);
    assert!(delivered.len() == 1 && carries(&delivered[0], 3), "{delivered:?}");

    logged.input(Input::Closed { conn: handler });
    let handler = logged.handler("sum", 1);
    assert!(!logged.reads.is_empty());
    let operator = logged.connect(Speaks::Binary);
    logged.request(operator, 1, |request| {
        let purge = br#"{"op":"purge","action":"sum"}"#;
        request.content = Content::from_parts(b"$sys.queues", b"", b"", purge);
    });
    assert_eq!(logged.replies(operator)[0].content.payload(), br#"{"ended":38}"#);
    assert_eq!(dispatched(&mut logged, handler), []);
    assert_eq!(bytes(&logged), (0, 0));
}

/// No handler's credit is used before there is something to give it; one that leaves meanwhile leaves the queue as it was, and
/// what a lost one had comes first again.
#[test]
fn a_handler_that_leaves_while_it_is_read_for() {
    let mut logged = with_memory(0);
    let requester = logged.named("r");
    ask(&mut logged, requester, 10, durable);
    let first = logged.handler("sum", 4);
    assert_eq!(logged.broker.deliveries.len(), 0);
    logged.input(Input::Closed { conn: first });
    logged.read_all();
    let second = logged.handler("sum", 4);
    let numbers =
        |delivered: &[Deliver]| -> Vec<_> { delivered.iter().map(|it| it.request_id.count).collect() };
    assert_eq!(numbers(&dispatched(&mut logged, second)), [1, 2, 3, 4]);
    logged.input(Input::Closed { conn: second });
    let third = logged.handler("sum", 6);
    let again = dispatched(&mut logged, third);
    assert_eq!(numbers(&again), [1, 2, 3, 4, 5, 6]);
    assert!(again.iter().zip(1..).all(|(deliver, number)| carries(deliver, number)), "{again:?}");
    assert_eq!(again[0].attempt, 2);
}

/// A bit that flips on the way is read once more. One that has flipped on the disk ends that request, and no other; its
/// requester is told, and so is whoever looks after the disk.
#[test]
fn damage_ends_one_request() {
    let mut logged = with_memory(0);
    let requester = logged.named("r");
    ask(&mut logged, requester, 10, durable);
    let handler = logged.handler("sum", 20);
    assert_eq!(logged.reads.len(), 1, "one piece for all of them");
    // The third record's data, by what it carries.
    let flip = |bytes: &mut [u8]| {
        let third = data(3);
        let at = bytes.windows(100).position(|piece| piece == third.as_bytes()).unwrap();
        bytes[at + 50] ^= 1;
    };
    logged.read(0, flip);
    assert_eq!((logged.deliveries(handler).len(), logged.reads.len()), (2, 1), "the third is read again");
    logged.read(0, flip);
    logged.sync();
    let delivered = logged.deliveries(handler);
    assert!(delivered.iter().zip(4..=10).all(|(deliver, number)| carries(deliver, number)), "{delivered:?}");
    assert_eq!(delivered.len(), 7);
    let reply = logged.replies(requester).remove(0);
    assert_eq!((reply.number, reply.code), (3, Some(Code::DurableUnavailable)));
    assert!(String::from_utf8_lossy(reply.content.payload()).contains("checksum"), "{reply:?}");
    let told = logged.unreadable.pop().unwrap();
    assert_eq!((told.count, told.segment.0, logged.unreadable.len()), (3, 1, 0));
    assert_eq!(logged.broker.counters.unreadable, 1);
}

/// A disk that cannot read says so for that request only; a send is a dead letter then, which cannot be sent again, as nobody knows
/// what it was.
#[test]
fn an_unreadable_send_is_a_dead_letter() {
    let mut logged = with_memory(0);
    let requester = logged.named("r");
    ask(&mut logged, requester, 1, durable_send);
    let handler = logged.handler("sum", 1);
    for _ in 0..2 {
        let id = logged.reads.pop_front().unwrap().id;
        logged.input(Input::Read { id, result: Err(ReadFault::Damaged("an error of the disk".to_owned())) });
    }
    logged.sync();
    assert_eq!((logged.broker.dead.len(), logged.deliveries(handler).len()), (1, 0));
    for boot in ["this one", "after a restart"] {
        let operator = logged.connect(Speaks::Binary);
        let told = operate(&mut logged, operator, 1, r#"{"op":"resend"}"#);
        assert_eq!(told, Some(json!({"sent": 0, "damaged": 1})), "{boot}");
        assert_eq!(logged.broker.dead.len(), 1);
        logged.restart();
    }
}

/// What is out of reach is not damaged: it is asked for again, after pauses that grow, and nobody's request ends by it. When it can
/// be read, all of it is dispatched in its order.
#[test]
fn what_is_out_of_reach_is_waited_for() {
    let mut logged = with_memory(0);
    let requester = logged.named("r");
    ask(&mut logged, requester, 10, durable);
    let handler = logged.handler("sum", 20);
    for tries in 1..=12 {
        refuse(&mut logged);
        let told = logged.unavailable.pop().unwrap();
        assert_eq!((told.tries, told.segment.0, told.why.as_str()), (tries, 1, "no descriptors"));
        let pause = told.again_after.unwrap();
        assert_eq!(pause, Duration::from_millis(20 << (tries - 1).min(6)).min(Duration::from_secs(1)));
        logged.pass(pause - Duration::from_millis(1));
        assert!(logged.reads.is_empty(), "not before its time");
        logged.pass(Duration::from_millis(1));
    }
    logged.read_all();
    let delivered = logged.deliveries(handler);
    assert!(delivered.iter().zip(1..=10).all(|(deliver, number)| carries(deliver, number)), "{delivered:?}");
    let counters = logged.broker.counters();
    assert_eq!((delivered.len(), counters.reads_put_off, counters.unreadable), (10, 12, 0));
    assert_eq!(logged.codes(requester), []);
}

/// The disk cannot be asked for what it was asked for first.
fn refuse(logged: &mut Logged) {
    let id = logged.reads.pop_front().unwrap().id;
    let result = Err(ReadFault::Unavailable("no descriptors".to_owned()));
    logged.input(Input::Read { id, result });
}

/// What stays out of reach is given up after half a minute: not the requests, but the server, whose next start finds them all.
#[test]
fn out_of_reach_for_too_long() {
    let mut logged = with_memory(0);
    let requester = logged.named("r");
    ask(&mut logged, requester, 3, durable);
    logged.handler("sum", 20);
    let begun = logged.now.mono;
    loop {
        refuse(&mut logged);
        let told = logged.unavailable.pop().unwrap();
        let Some(pause) = told.again_after else { break };
        logged.pass(pause);
    }
    let tried = logged.now.mono.since(begun);
    assert!((Duration::from_secs(30)..Duration::from_secs(32)).contains(&tried), "{tried:?}");
    assert_eq!((logged.codes(requester), logged.broker.counters.unreadable), (vec![], 0));
    logged.pass(HOUR);
    assert!(logged.reads.is_empty(), "it is not tried any more");
    logged.restart();
    let handler = logged.handler("sum", 20);
    let delivered = dispatched(&mut logged, handler);
    assert!(delivered.len() == 3 && delivered.iter().zip(1..).all(|(it, number)| carries(it, number)));
}

/// What ends while it is out of reach has ended, and holds no segment any more.
#[test]
fn what_ends_while_it_is_out_of_reach() {
    let mut logged = with_memory(0);
    let requester = logged.named("r");
    ask(&mut logged, requester, 1, durable);
    let handler = logged.handler("sum", 1);
    refuse(&mut logged);
    logged.say(requester, ClientMessage::Cancel(Target::Number(1)));
    logged.sync();
    assert_eq!(logged.codes(requester), [(1, Some(Code::Cancelled))]);
    logged.pass(Duration::from_secs(1));
    refuse(&mut logged);
    logged.pass(HOUR);
    assert!(logged.reads.is_empty() && logged.deliveries(handler).is_empty());
    let reads = &logged.broker.journal.as_ref().unwrap().reads;
    assert_eq!(reads.requests().count(), 0);
}

/// Requests through many segments, all of which but the first are handled, while a handler holds the first, whose record is only in
/// the log: the log wants to copy that forward.
fn held_in_an_old_segment() -> (Logged, ConnId, ConnId, Deliver) {
    let mut logged = with_memory(0);
    let (requester, holder) = (logged.named("r"), logged.handler("sum", 1));
    ask(&mut logged, requester, 1, durable);
    let held = dispatched(&mut logged, holder).remove(0);
    let other = logged.handler("other", 1);
    let mut sequence = 0;
    while logged.reads.is_empty() {
        sequence += 1;
        assert!(sequence < 500, "the oldest segment is to be emptied");
        logged.request(requester, sequence + 1, |request| {
            durable_send(request);
            request.content = Content::from_parts(b"other", b"{}", b"", data(sequence).as_bytes());
        });
        logged.sync();
        logged.deliveries(other).iter().for_each(|it| logged.answered(other, it.delivery, sequence));
        logged.sync();
    }
    (logged, requester, holder, held)
}

fn oldest_segment(logged: &Logged) -> u64 {
    let names = logged.disk.list().unwrap();
    let numbers = names.iter().filter_map(|name| name.strip_suffix(".segment"));
    numbers.map(|number| u64::from_str_radix(number, 16).unwrap()).min().unwrap()
}

/// Compaction finds a record damaged whose request a handler has: the record stays, and with it its segment; the handler's answer
/// counts, and then the segment goes.
#[test]
fn damage_does_not_end_what_a_handler_has() {
    let (mut logged, requester, holder, held) = held_in_an_old_segment();
    for _ in 0..2 {
        logged.read(0, |bytes| bytes[40] ^= 1);
    }
    let told = logged.unreadable.pop().unwrap();
    assert_eq!((told.segment.0, told.ended, logged.reads.len()), (1, false, 0));
    let counters = logged.broker.counters();
    assert_eq!((counters.unreadable, counters.left_damaged), (0, 1));
    logged.sync();
    assert!(logged.reads.is_empty() && oldest_segment(&logged) == 1, "it is left alone");
    assert_eq!(logged.take(holder), [], "nobody calls it back");
    logged.take(requester);
    logged.answered(holder, held.delivery, 1);
    for _ in 0..3 {
        logged.sync();
    }
    let reply = logged.replies(requester).remove(0);
    assert_eq!((reply.number, reply.code, reply.content.payload()), (1, None, &b"3"[..]));
    assert!(oldest_segment(&logged) > 1, "its outcome was copied forward");
    logged.restart();
    let requester = logged.named("r");
    assert_eq!(logged.resume(requester, 1, &[1]), [(1, OpenState::Outcome)]);
}

/// What was left damaged is needed after all, since its handler is lost: then its request ends, with an error that says so, and the
/// segment goes.
#[test]
fn damage_ends_what_a_handler_has_lost() {
    let (mut logged, requester, holder, _) = held_in_an_old_segment();
    for _ in 0..2 {
        logged.read(0, |bytes| bytes[40] ^= 1);
    }
    logged.take(requester);
    logged.input(Input::Closed { conn: holder });
    logged.handler("sum", 1);
    for _ in 0..2 {
        assert!(logged.read(0, |bytes| bytes[40] ^= 1), "it is read for its next handler");
    }
    for _ in 0..3 {
        logged.sync();
    }
    assert_eq!(logged.codes(requester), [(1, Some(Code::DurableUnavailable))]);
    assert_eq!(logged.broker.counters.unreadable, 1);
    assert!(oldest_segment(&logged) > 1);
}

/// What compaction cannot read for now keeps its segment until it can be read, and is then copied whole.
#[test]
fn compaction_waits_for_what_is_out_of_reach() {
    let (mut logged, _, holder, _) = held_in_an_old_segment();
    for _ in 0..5 {
        refuse(&mut logged);
        logged.sync();
        assert_eq!(oldest_segment(&logged), 1);
        logged.pass(Duration::from_secs(1));
    }
    logged.read_all();
    for _ in 0..3 {
        logged.sync();
    }
    assert!(oldest_segment(&logged) > 1);
    logged.input(Input::Closed { conn: holder });
    let next = logged.handler("sum", 1);
    let delivered = dispatched(&mut logged, next);
    assert!(delivered.len() == 1 && carries(&delivered[0], 1), "{delivered:?}");
}

/// A dead letter whose data is only in the log is read, and then sent again, whole.
#[test]
fn a_stored_dead_letter_is_sent_again() {
    let mut logged = with_memory(0);
    let requester = logged.named("r");
    ask(&mut logged, requester, 1, |request| {
        durable_send(request);
        request.ttl_ms = 1000;
    });
    logged.pass(Duration::from_secs(2));
    logged.sync();
    assert_eq!((logged.broker.dead.len(), bytes(&logged)), (1, (0, 105)));
    let handler = logged.handler("sum", 1);
    let operator = logged.connect(Speaks::Binary);
    assert_eq!(operate(&mut logged, operator, 1, r#"{"op":"resend"}"#), None, "it has to be read first");
    logged.read_all();
    assert_eq!(told(&mut logged, operator), Some(json!({"sent": 1, "damaged": 0})));
    logged.sync();
    let delivered = dispatched(&mut logged, handler);
    assert!(delivered.len() == 1 && carries(&delivered[0], 1), "{delivered:?}");
    assert!(logged.broker.dead.is_empty());
}

/// What is only in the log is copied forward whole when its segment is emptied, and is found where it is then; a segment stays
/// as long as it is read.
#[test]
fn compaction_takes_along_what_is_stored() {
    let mut logged = with_memory(0);
    let requester = logged.named("r");
    // One of a few waits; the others come and go, through many segments.
    let waits = |number: u64| number % 20 == 1;
    let handler = logged.handler("other", 1);
    for number in 1..=400 {
        let action = if waits(number) { &b"sum"[..] } else { b"other" };
        logged.request(requester, number, |request| {
            durable_send(request);
            request.content = Content::from_parts(action, b"{}", b"", data(number).as_bytes());
        });
        logged.sync();
        for deliver in logged.deliveries(handler) {
            logged.answered(handler, deliver.delivery, number);
        }
        if number % 3 == 0 {
            logged.read_all();
        }
        logged.sync();
    }
    let segments = logged.disk.list().unwrap();
    let oldest = segments.iter().filter_map(|name| name.strip_suffix(".segment")).min().unwrap();
    assert!(u64::from_str_radix(oldest, 16).unwrap() > 3, "{segments:?}");
    assert!(logged.broker.counters.read_back > 0);
    for restarted in [false, true] {
        if restarted {
            logged.restart();
        }
        let handler = logged.handler("sum", 400);
        let mut delivered = Vec::new();
        while delivered.len() < 20 {
            delivered.extend(dispatched(&mut logged, handler));
            logged.sync();
        }
        let mut numbers = (1..=400).filter(|number| waits(*number));
        assert!(delivered.iter().all(|it| carries(it, numbers.next().unwrap())), "{delivered:?}");
        logged.input(Input::Closed { conn: handler });
    }
}
