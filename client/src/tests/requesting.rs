//! Requests: numbers, outcomes, deadlines, waiting for a connection.

use ringpost_protocol::message::Target;

use super::*;

/// A reply completes its request, with what the broker told about it; a second one is dropped and counted.
#[test]
fn a_reply_completes_its_request() {
    let mut rig = Rig::ready(config());
    let number = rig.sent(RequestFlags::default(), 7);
    let answer = Reply {
        number,
        attempt: 1,
        received_at_ms: 99,
        delivered_after_ms: 4,
        handled_after_ms: u32::MAX,
        content: Content::from_payload("3"),
        ..Reply::default()
    };
    let outputs = rig.receive(ServerMessage::Reply(answer.clone()));
    let end = completion(&outputs[0]).unwrap();
    assert_eq!((end.token, end.last, end.leg), (7, true, None));
    assert_eq!(end.result.as_ref().unwrap().payload(), b"3");
    assert_eq!(
        (end.info.received_at_ms, end.info.delivered_after_ms, end.info.handled_after_ms),
        (99, Some(4), None)
    );
    assert_eq!(rig.receive(ServerMessage::Reply(answer)), []);
    assert_eq!((rig.client.counters().late_replies, rig.client.open_requests()), (1, 0));
    assert!(rig.client.next_deadline() > Some(rig.now));
}

/// An error of the handler arrives with its message and its own code; one of the broker with its kind.
#[test]
fn errors_keep_what_they_say() {
    let mut rig = Rig::ready(config());
    let number = rig.sent(RequestFlags::default(), 1);
    let content = Content::from_parts(b"E42", b"", b"", b"it broke");
    let outputs = rig.receive(ServerMessage::Reply(Reply {
        number,
        code: Some(Code::Remote),
        content,
        ..Reply::default()
    }));
    let error = completion(&outputs[0]).unwrap().result.clone().unwrap_err();
    assert_eq!(
        (error.kind(), error.message(), error.handler_code()),
        (Code::Remote, "it broke", Some("E42"))
    );
    assert_eq!(error.to_string(), "remote (E42): it broke");
    let number = rig.sent(RequestFlags::default(), 2);
    assert_eq!(ends(&rig.receive(failure(number, Code::NoHandler))), [(2, Some(Code::NoHandler), true)]);
}

/// Sends that are all refused, and so never followed by an `accepted`, leave nothing behind: an invariant says so.
#[test]
fn refused_sends_are_forgotten() {
    let mut rig = Rig::ready(config());
    for token in 0..100 {
        let number = rig.sent(RequestFlags::SEND, token);
        rig.receive(failure(number, Code::NoHandler));
    }
    assert_eq!(rig.client.open_requests(), 0);
}

/// A welcome that leaves no numbers is no welcome.
#[test]
fn a_welcome_without_numbers() {
    let mut rig = Rig::new(config());
    rig.client.connected(rig.now);
    rig.outputs();
    let welcome = Welcome { next_number: u64::MAX, ..Welcome::default() };
    let outputs = rig.receive(ServerMessage::Welcome(welcome));
    assert_eq!(outputs[0], Output::Disconnect);
    assert!(!rig.client.is_ready());
}

/// Numbers begin where the welcome says, rise by one, and never fall back, whatever the next welcome says.
#[test]
fn numbers_rise() {
    let mut rig = Rig::new(config());
    rig.client.connected(rig.now);
    rig.outputs();
    rig.receive(ServerMessage::Welcome(Welcome { next_number: 40, ..Welcome::default() }));
    assert_eq!(rig.sent(RequestFlags::default(), 1), 40);
    assert_eq!(rig.sent(RequestFlags::SEND, 2), 41);
    rig.lose("cut");
    rig.pass(secs(2));
    rig.connect();
    assert_eq!(rig.sent(RequestFlags::default(), 3), 42);
}

/// Requests made without a connection leave in their order after the welcome, with what is left of their timeouts.
#[test]
fn waiting_requests_leave_in_order() {
    let mut rig = Rig::new(config());
    rig.request(RequestSpec { timeout: secs(2), ..plain() }, 1);
    rig.request(RequestSpec { timeout: ms(300), ..plain() }, 2);
    rig.request(RequestSpec { timeout: secs(3), ..plain() }, 3);
    let dropped = rig.request(plain(), 4);
    assert!(rig.client.cancel(dropped, rig.now));
    assert_eq!(ends(&rig.outputs()), [(4, Some(Code::Cancelled), true)]);
    let outputs = rig.pass(ms(500));
    assert_eq!(ends(&outputs), [(2, Some(Code::Timeout), true)]);
    let outputs = rig.connect();
    let sent: Vec<_> =
        requests(&outputs).iter().map(|request| (request.number, request.timeout_ms)).collect();
    assert_eq!(sent, [(1, 1500), (2, 2500)]);
    assert_eq!(ends(&rig.receive(reply(2))), [(3, None, true)]);
}

/// How many may wait is bounded, and how long anything may be.
#[test]
fn bounds_are_kept() {
    let mut rig = Rig::new(ClientConfig { max_pending: 2, ..config() });
    let content = Content::from_parts(b"adder", b"", b"", &[b'1'; 1001]);
    rig.request(RequestSpec { content: content.clone(), ..plain() }, 1);
    rig.request(plain(), 2);
    assert_eq!(rig.client.request(plain(), 3, rig.now).unwrap_err().kind(), Code::Overloaded);
    let outputs = rig.connect();
    assert_eq!((ends(&outputs), requests(&outputs).len()), (vec![(1, Some(Code::TooLarge), true)], 1));
    let mut refused = |content| {
        let refused = rig.client.request(RequestSpec { content, ..plain() }, 4, rig.now).unwrap_err().kind();
        assert_eq!(rig.outputs(), []);
        refused
    };
    assert_eq!(refused(content), Code::TooLarge);
    assert_eq!(refused(Content::from_parts(b"", b"", b"", b"1")), Code::Malformed);
    assert_eq!(refused(Content::from_parts(b"a", &[b' '; 65536], b"", b"1")), Code::TooLarge);
}

/// The broker ends a request at its timeout; the client does so only when the broker does not.
#[test]
fn the_client_is_the_backstop_of_the_timeout() {
    let mut rig = Rig::ready(config());
    rig.request(RequestSpec { timeout: secs(1), ..plain() }, 1);
    rig.request(plain(), 2);
    let timeouts: Vec<_> = requests(&rig.outputs()).iter().map(|request| request.timeout_ms).collect();
    assert_eq!(timeouts, [1000, 10_000]);
    assert_eq!(rig.pass(ms(1499)), []);
    assert_eq!(ends(&rig.pass(ms(2))), [(1, Some(Code::Timeout), true)]);
    assert_eq!(rig.receive(reply(1)), []);
}

/// A cumulative acceptance completes the sends up to it, but neither requests nor sends that failed before.
#[test]
fn sends_complete_when_accepted() {
    let mut rig = Rig::ready(config());
    rig.sent(RequestFlags::SEND, 1);
    rig.sent(RequestFlags::SEND, 2);
    rig.sent(RequestFlags::default(), 3);
    rig.sent(RequestFlags::SEND, 4);
    rig.sent(RequestFlags::SEND, 5);
    assert_eq!(ends(&rig.receive(failure(2, Code::Overloaded))), [(2, Some(Code::Overloaded), true)]);
    let outputs = rig.receive(ServerMessage::Accepted { upto: 4, tag: Default::default() });
    assert_eq!(ends(&outputs), [(1, None, true), (4, None, true)]);
    assert_eq!(
        ends(&rig.lose("cut")),
        [(3, Some(Code::ConnectionLost), true), (5, Some(Code::ConnectionLost), true)]
    );
}

/// Each leg completes by itself and the last one ends the broadcast, whether or not its number came first.
#[test]
fn the_last_leg_ends_a_broadcast() {
    let mut rig = Rig::ready(config());
    let number = rig.sent(RequestFlags::BROADCAST, 1);
    assert_eq!(rig.receive(ServerMessage::Legs { number, expected: 2 }), []);
    assert_eq!(ends(&rig.receive(leg(number, 1, 2))), [(1, None, false)]);
    assert_eq!(ends(&rig.receive(leg(number, 0, 2))), [(1, None, true)]);
    let number = rig.sent(RequestFlags::BROADCAST, 2);
    assert_eq!(ends(&rig.receive(leg(number, 0, 1))), [(2, None, true)]);
    let number = rig.sent(RequestFlags::BROADCAST, 3);
    assert_eq!(ends(&rig.receive(failure(number, Code::NoHandler))), [(3, Some(Code::NoHandler), true)]);
}

/// When a broadcast ends early, each leg that is missing ends with the reason, so that none is forgotten.
#[test]
fn missing_legs_end_with_the_reason() {
    let mut rig = Rig::ready(config());
    let number = rig.sent(RequestFlags::BROADCAST, 1);
    rig.receive(leg(number, 1, 3));
    let lost = Some(Code::ConnectionLost);
    assert_eq!(ends(&rig.lose("cut")), [(1, lost, false), (1, lost, true)]);
}

/// A client that comes as a peer is told of legs before they end, and one word ends all that are left, however many.
#[test]
fn a_peer_is_told_of_legs() {
    let mut rig = Rig::ready(ClientConfig { peer: Some("a".into()), ..config() });
    let number = rig.sent(RequestFlags::BROADCAST, 1);
    let legs = Output::Legs { token: 1, expected: 1 << 20 };
    assert_eq!(rig.receive(ServerMessage::Legs { number, expected: 1 << 20 }), [legs]);
    assert_eq!(ends(&rig.receive(leg(number, 0, 1 << 20))), [(1, None, false)]);
    assert_eq!(ends(&rig.lose("cut")), [(1, Some(Code::ConnectionLost), true)]);
}

/// A server that claims more legs than there can be is no server to talk to.
#[test]
fn absurd_leg_counts_are_refused() {
    for absurd in [ServerMessage::Legs { number: 1, expected: u32::MAX }, leg(1, 0, u32::MAX)] {
        let mut rig = Rig::ready(config());
        rig.sent(RequestFlags::BROADCAST, 1);
        let outputs = rig.receive(absurd);
        assert_eq!(
            (&outputs[0], ends(&outputs)),
            (&Output::Disconnect, vec![(1, Some(Code::ConnectionLost), true)])
        );
    }
}

/// Cancelling tells the broker and completes at once; a send that has left goes on.
#[test]
fn cancel_tells_the_broker() {
    let mut rig = Rig::ready(config());
    let key = rig.request(plain(), 1);
    let sent = rig.request(spec(RequestFlags::SEND), 2);
    rig.outputs();
    assert!(rig.client.cancel(key, rig.now));
    let outputs = rig.outputs();
    assert_eq!(ends(&outputs), [(1, Some(Code::Cancelled), true)]);
    assert_eq!(count(&outputs, &Output::Send(ClientMessage::Cancel(Target::Number(1)))), 1);
    assert!(!rig.client.cancel(key, rig.now));
    assert!(rig.client.cancel(sent, rig.now));
    assert_eq!(rig.outputs().len(), 1);
    assert_eq!(rig.receive(failure(1, Code::Cancelled)), []);
}

/// A handler's progress reaches its requester under the request's token.
#[test]
fn progress_names_the_token() {
    let mut rig = Rig::ready(config());
    let number = rig.sent(RequestFlags::PROGRESS, 9);
    let progress = ringpost_protocol::message::Progress { number, ..Default::default() };
    let outputs = rig.receive(ServerMessage::Progress(progress));
    assert_eq!(outputs, [Output::Progress { token: 9, content: Content::default() }]);
}

/// To a server that treats everything as durable, the client does so too: what waited for the connection, and what comes later,
/// and nothing that cannot be.
#[test]
fn a_server_may_make_everything_durable() {
    let mut rig = Rig::new(super::sessions::named());
    rig.request(plain(), 1);
    rig.client.connected(rig.now);
    rig.outputs();
    let ServerMessage::Welcome(welcome) = welcome() else { unreachable!() };
    let outputs = rig.receive(ServerMessage::Welcome(Welcome { durable_all: true, ..welcome }));
    assert!(requests(&outputs)[0].flags.has(RequestFlags::DURABLE));
    rig.request(plain(), 2);
    rig.request(spec(RequestFlags::BROADCAST), 3);
    let outputs = rig.outputs();
    let flags: Vec<_> = requests(&outputs).iter().map(|request| request.flags).collect();
    assert_eq!(flags, [RequestFlags::DURABLE, RequestFlags::BROADCAST]);
    assert_eq!(requests(&outputs)[0].ttl_ms, requests(&outputs)[0].timeout_ms);
    // After a restart they are asked for, not given up.
    let outputs = super::sessions::come_back(&mut rig, 6, 1);
    assert!(outputs.iter().any(|output| {
        matches!(output, Output::Send(ClientMessage::Resume(resume)) if resume.open == [1, 2])
    }));
}
