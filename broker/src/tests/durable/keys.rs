//! Idempotency keys: what comes a second time under a key does not run, and gets what the first one gets.

use ringpost_protocol::encode_headers;

use super::*;

/// A durable request to `sum` under a key, with other data than others under it.
fn keyed(key: &str) -> impl FnOnce(&mut Request) {
    let headers = encode_headers([("idempotency-key", key), ("traceparent", "00-1")]).unwrap();
    move |request| {
        let data = request.number.to_string();
        request.flags = request.flags.with(RequestFlags::DURABLE);
        request.content = Content::from_parts(b"sum", b"", &headers, data.as_bytes());
    }
}

fn keyed_send(key: &str) -> impl FnOnce(&mut Request) {
    let keyed = keyed(key);
    move |request| {
        keyed(request);
        request.flags = request.flags.with(RequestFlags::SEND);
    }
}

fn acknowledge(logged: &mut Logged, conn: ConnId, reply: &Reply) {
    logged.say(conn, ClientMessage::Acknowledge(Target::Number(reply.sequence)));
    logged.sync();
}

fn one_reply(logged: &mut Logged, conn: ConnId) -> Reply {
    let mut replies = logged.replies(conn);
    assert_eq!(replies.len(), 1);
    replies.remove(0)
}

/// A second request under a key that comes while the first is open does not run: both are accepted, and both get the one
/// outcome, also over a restart in between.
#[test]
fn a_second_request_joins_the_first() {
    for restarts in [false, true] {
        let mut logged = Logged::new(Config::default());
        let (one, other) = (logged.named("one"), logged.named("other"));
        logged.request(one, 1, keyed("k"));
        logged.request(other, 1, keyed("k"));
        logged.request(other, 2, keyed("another"));
        logged.sync();
        assert_eq!((logged.accepted(one), logged.accepted(other)), (Some(1), Some(2)));
        let (mut one, mut other) = (one, other);
        if restarts {
            logged.restart();
            (one, other) = (logged.named("one"), logged.named("other"));
            assert_eq!(logged.resume(one, 1, &[1]), [(1, OpenState::Running)]);
            assert_eq!(logged.resume(other, 1, &[1, 2]).len(), 2);
        }
        let handler = logged.handler("sum", 9);
        let held = logged.deliveries(handler);
        assert_eq!(held.iter().map(|it| it.content.payload()).collect::<Vec<_>>(), [b"1", b"2"]);
        logged.answered(handler, held[0].delivery, 1);
        assert!(logged.replies(one).is_empty() && logged.replies(other).is_empty());
        logged.sync();
        for conn in [one, other] {
            let reply = one_reply(&mut logged, conn);
            assert_eq!((reply.number, reply.code, reply.attempt), (1, None, 1));
            assert_eq!(reply.content.payload(), b"3");
            acknowledge(&mut logged, conn, &reply);
        }
        assert_eq!(logged.broker.open_requests(), 1, "the one under another key");
    }
}

/// After the first has ended, and everybody has its outcome, a request under its key gets that outcome, until the first's ttl
/// ends; then it runs. All of it is the same over restarts.
#[test]
fn an_outcome_is_kept_for_its_key_until_the_ttl_ends() {
    for restarts in [false, true] {
        let mut logged = Logged::new(Config::default());
        let requester = logged.named("r");
        let mut handler = logged.handler("sum", 9);
        logged.request(requester, 1, |request| {
            keyed("k")(request);
            request.ttl_ms = 3_600_000;
        });
        logged.sync();
        let held = logged.deliveries(handler).remove(0);
        logged.answered(handler, held.delivery, 1);
        logged.sync();
        let reply = one_reply(&mut logged, requester);
        acknowledge(&mut logged, requester, &reply);
        assert_eq!((logged.broker.open_requests(), logged.broker.keys.len()), (0, 1));
        logged.pass(HOUR / 2);
        if restarts {
            logged.restart();
            handler = logged.handler("sum", 9);
            assert_eq!((logged.broker.open_requests(), logged.broker.keys.len()), (0, 1));
        }
        let later = logged.named_as("later", 2);
        logged.request(later, 7, keyed("k"));
        logged.sync();
        assert_eq!(logged.accepted_and_replies(later), (Some(7), vec![(7, b"3".to_vec())]));
        assert!(logged.deliveries(handler).is_empty());
        logged.pass(HOUR);
        assert_eq!(logged.broker.keys.len(), 0);
        let (later, handler) = (logged.named_as("later", 2), logged.handler("sum", 9));
        logged.request(later, 8, keyed("k"));
        logged.sync();
        assert_eq!(logged.deliveries(handler).len(), 1);
    }
}

/// A second send under a key is accepted, once the first one is stable, and nothing is done; also when the first was handled,
/// or was given up.
#[test]
fn a_second_send_is_accepted_and_that_is_all() {
    let mut logged = Logged::new(Config::default());
    let (requester, mut handler) = (logged.named("r"), logged.handler("sum", 9));
    logged.take(requester);
    logged.request(requester, 1, keyed_send("k"));
    logged.request(requester, 2, keyed_send("k"));
    assert_eq!(logged.accepted(requester), None);
    logged.sync();
    assert_eq!(logged.accepted(requester), Some(2));
    let held = logged.deliveries(handler);
    assert_eq!(held.len(), 1);
    logged.answered(handler, held[0].delivery, 1);
    logged.request(requester, 3, keyed_send("given up"));
    logged.sync();
    let held = logged.deliveries(handler).remove(0);
    say_verdict(&mut logged, handler, held.delivery, Verdict::Reject);
    for boot in 1..=3 {
        let requester = logged.named("r");
        logged.take(requester);
        logged.request(requester, 10 * boot, keyed_send("k"));
        logged.request(requester, 10 * boot + 1, keyed_send("given up"));
        logged.sync();
        assert_eq!(logged.accepted(requester), Some(10 * boot + 1));
        assert!(logged.deliveries(handler).is_empty());
        assert_eq!((logged.broker.open_requests(), logged.broker.dead.len()), (1, 1), "the dead letter");
        logged.restart();
        handler = logged.handler("sum", 9);
    }
}

/// A cancel by one that joined ends its own waiting and nothing else; a cancel by the first ends them all, and that is the
/// outcome that is kept.
#[test]
fn who_was_first_may_cancel_for_all() {
    let mut logged = Logged::new(Config::default());
    let (one, other, handler) = (logged.named("one"), logged.named("other"), logged.handler("sum", 9));
    let third = logged.named("third");
    for conn in [one, other, third] {
        logged.request(conn, 1, keyed("k"));
    }
    logged.sync();
    assert_eq!(logged.deliveries(handler).len(), 1);
    logged.say(other, ClientMessage::Cancel(Target::Number(1)));
    logged.sync();
    assert_eq!(logged.codes(other), [(1, Some(Code::Cancelled))]);
    assert!(logged.take(handler).is_empty() && logged.codes(one).is_empty());
    logged.say(one, ClientMessage::Cancel(Target::Number(1)));
    logged.sync();
    assert!(matches!(logged.take(handler)[..], [ServerMessage::Cancel { .. }]));
    for conn in [one, third] {
        assert_eq!(logged.codes(conn), [(1, Some(Code::Cancelled))]);
    }
    logged.request(other, 2, keyed("k"));
    logged.sync();
    assert_eq!(logged.codes(other), [(2, Some(Code::Cancelled))]);
}

/// That the first's session is gone for good changes nothing for those that joined, or come later.
#[test]
fn the_first_may_be_gone() {
    let mut logged = Logged::new(Config::default());
    let nameless = logged.connect(Speaks::Binary);
    logged.request(nameless, 1, keyed("k"));
    logged.sync();
    let joined = logged.named("joined");
    logged.request(joined, 1, keyed("k"));
    logged.sync();
    logged.input(Input::Closed { conn: nameless });
    let handler = logged.handler("sum", 9);
    let held = logged.deliveries(handler).remove(0);
    logged.answered(handler, held.delivery, 1);
    logged.sync();
    assert_eq!(logged.codes(joined), [(1, None)]);
    logged.request(joined, 2, keyed("k"));
    logged.sync();
    assert_eq!(logged.codes(joined), [(2, None)]);
    assert!(logged.deliveries(handler).is_empty());
}

/// What a key cannot do is refused, with the remedy: a plain request or send, in both dialects, has no use for one; a request
/// and a send cannot share one; and it has a length.
#[test]
fn misuse_names_the_remedy() {
    let mut logged = Logged::new(Config::default());
    let (requester, handler) = (logged.named("r"), logged.handler("sum", 9));
    let refusal = |logged: &mut Logged, conn: ConnId, with: &dyn Fn(&mut Request)| {
        let number = if conn == ConnId(0) {
            0
        } else {
            logged.broker.durable_count + logged.broker.request_count + 50
        };
        logged.request(conn, number, with);
        logged.sync();
        let reply = one_reply(logged, conn);
        (reply.code, String::from_utf8_lossy(reply.content.payload()).into_owned())
    };
    let json = logged.connect(Speaks::Json);
    for conn in [requester, json] {
        for flags in [RequestFlags(0), RequestFlags::SEND, RequestFlags::BROADCAST] {
            logged.request(conn, if conn == json { 0 } else { u64::from(flags.0) + 1 }, |request| {
                keyed("k")(request);
                request.flags = flags;
            });
            let reply = one_reply(&mut logged, conn);
            assert_eq!(reply.code, Some(Code::Unsupported));
            assert!(String::from_utf8_lossy(reply.content.payload()).contains("`durable`"));
        }
    }
    logged.request(requester, 10, keyed("k"));
    logged.sync();
    let (code, message) = refusal(&mut logged, requester, &|request| keyed_send("k")(request));
    assert_eq!(code, Some(Code::Malformed));
    assert!(message.contains("a key of its own"), "{message}");
    for key in [String::new(), "k".repeat(256)] {
        let (code, message) = refusal(&mut logged, requester, &|request| keyed(&key)(request));
        assert_eq!(code, Some(Code::Malformed));
        assert!(message.contains("255"), "{message}");
    }
    assert_eq!(logged.deliveries(handler).len(), 1);
}

/// Keys are bounded in number, and count in the memory budget for as long as they are remembered.
#[test]
fn keys_are_bounded() {
    let mut logged = Logged::new(Config { idempotency_limit: 2, ..Config::default() });
    let (requester, handler) = (logged.named("r"), logged.handler("sum", 9));
    let before = logged.broker.memory_used();
    for number in 1..=3 {
        logged.request(requester, number, |request| {
            keyed(&format!("k{number}"))(request);
            request.ttl_ms = 3_600_000;
        });
    }
    logged.sync();
    let refused = one_reply(&mut logged, requester);
    assert_eq!((refused.number, refused.code), (3, Some(Code::Overloaded)));
    assert!(String::from_utf8_lossy(refused.content.payload()).contains("--idempotency-limit"));
    for (sequence, held) in (1..).zip(logged.deliveries(handler)) {
        logged.answered(handler, held.delivery, sequence);
    }
    logged.sync();
    for reply in logged.replies(requester) {
        acknowledge(&mut logged, requester, &reply);
    }
    assert_eq!(logged.broker.open_requests(), 0);
    assert!(logged.broker.memory_used() > before + 1000, "two outcomes and their keys");
    logged.request(requester, 4, keyed("k1"));
    logged.sync();
    let reply = one_reply(&mut logged, requester);
    assert_eq!((reply.number, reply.code), (4, None));
    acknowledge(&mut logged, requester, &reply);
    logged.pass(2 * HOUR);
    assert_eq!((logged.broker.keys.len(), logged.broker.claimed), (0, 0));
    logged.sync();
    logged.restart();
    assert_eq!((logged.broker.requests.len(), logged.broker.kept_bytes), (0, 0));
}

/// Compaction carries forward what keys need, and no more: the action, the key, and the outcome.
#[test]
fn keys_survive_compaction() {
    let mut logged = Logged::new(Config::default());
    let (requester, handler) = (logged.named("r"), logged.handler("sum", 9));
    logged.request(requester, 1, keyed("k"));
    logged.request(requester, 2, keyed_send("s"));
    logged.sync();
    for held in logged.deliveries(handler) {
        logged.answered(handler, held.delivery, held.request_id.count);
    }
    logged.sync();
    let reply = one_reply(&mut logged, requester);
    acknowledge(&mut logged, requester, &reply);
    for number in 3..=600 {
        logged.request(requester, number, durable);
        logged.sync();
        let held = logged.deliveries(handler).remove(0);
        logged.answered(handler, held.delivery, number);
        logged.sync();
        let reply = one_reply(&mut logged, requester);
        acknowledge(&mut logged, requester, &reply);
    }
    let (disk, living) = logged.broker.log().unwrap().disk_and_living_bytes();
    assert!(disk <= 16 * 4096 && living < 4096, "{disk} bytes, of which {living} live");
    logged.restart();
    let (requester, handler) = (logged.named_as("r", 2), logged.handler("sum", 9));
    logged.take(requester);
    logged.request(requester, 1000, keyed("k"));
    logged.request(requester, 1001, keyed_send("s"));
    logged.sync();
    assert_eq!(logged.accepted_and_replies(requester), (Some(1001), vec![(1000, b"3".to_vec())]));
    assert!(logged.deliveries(handler).is_empty());
}

/// Wherever the log ends at a crash, whoever was accepted gets an outcome, and the handler is asked once more at most.
#[test]
fn a_crash_at_any_record() {
    for records in 0..20 {
        let mut logged = Logged::new(Config::default());
        let (one, other, handler) = (logged.named("one"), logged.named("other"), logged.handler("sum", 9));
        logged.request(one, 1, keyed("k"));
        logged.request(other, 1, keyed("k"));
        logged.sync();
        let held = logged.deliveries(handler).remove(0);
        logged.answered(handler, held.delivery, 1);
        logged.sync_part(records);
        logged.restart();
        let (one, other, handler) = (logged.named("one"), logged.named("other"), logged.handler("sum", 9));
        for held in logged.deliveries(handler) {
            logged.answered(handler, held.delivery, 1);
        }
        logged.sync();
        for conn in [one, other] {
            assert_eq!(logged.resume(conn, 1, &[1]).len(), 1);
            let reply = one_reply(&mut logged, conn);
            assert_eq!((reply.number, reply.code, reply.content.payload()), (1, None, &b"3"[..]));
        }
    }
}

/// One that joined and was ended by itself, by its ttl or a cancel, has had its outcome: what the first one comes to changes
/// nothing of that, and it is not remembered by the first.
#[test]
fn who_joined_may_end_before_the_first() {
    let mut logged = Logged::new(Config::default());
    let (one, other, handler) = (logged.named("one"), logged.named("other"), logged.handler("sum", 9));
    logged.request(one, 1, keyed("k"));
    logged.request(other, 1, keyed("k"));
    logged.sync();
    logged.say(other, ClientMessage::Cancel(Target::Number(1)));
    logged.sync();
    let told = one_reply(&mut logged, other);
    logged.input(Input::Closed { conn: other });
    let poller = logged.named("poller");
    for number in 1..=200 {
        logged.request(poller, number, |request| {
            keyed("k")(request);
            request.ttl_ms = 1;
        });
        logged.sync();
        logged.pass(Duration::from_millis(2));
        logged.sync();
        let reply = one_reply(&mut logged, poller);
        acknowledge(&mut logged, poller, &reply);
    }
    let first = *logged.broker.keys.values().next().unwrap();
    let joined = logged.broker.durable(first).unwrap().keyed.as_ref().unwrap().joined.len();
    assert!(joined < 20, "{joined} of 200 that are over");
    let held = logged.deliveries(handler).remove(0);
    logged.answered(handler, held.delivery, 1);
    logged.sync();
    assert_eq!(logged.codes(one), [(1, None)]);
    let other = logged.named("other");
    assert_eq!(logged.resume(other, 1, &[1]), [(1, OpenState::Outcome)]);
    assert_eq!(one_reply(&mut logged, other), told);
}

impl Logged {
    /// What a connection was told meanwhile: how far it is accepted, and the outcomes.
    fn accepted_and_replies(&mut self, conn: ConnId) -> (Option<u64>, Vec<(u64, Vec<u8>)>) {
        let (mut accepted, mut replies) = (None, Vec::new());
        for message in self.take(conn) {
            match message {
                ServerMessage::Accepted { upto, .. } => accepted = accepted.max(Some(upto)),
                ServerMessage::Reply(reply) => {
                    assert_eq!(reply.code, None);
                    replies.push((reply.number, reply.content.payload().to_vec()));
                }
                _ => {}
            }
        }
        (accepted, replies)
    }

    /// The disk does so much of what it was asked for.
    pub(super) fn sync_part(&mut self, operations: usize) {
        let now = self.stage.now;
        for _ in 0..operations {
            let Some(operation) = self.stage.broker.log().unwrap().poll(now) else { break };
            let result = perform(&mut self.disk, &operation.action);
            self.stage.broker.log().unwrap().done(operation.id, result);
        }
    }
}
