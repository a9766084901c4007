//! The connection's life: greeting, liveness, trying again, goodbyes, the end.

use ringpost_protocol::message::Verdict;

use super::*;
use crate::DeliveryKey;

/// The pause among some outputs.
fn pause(outputs: &[Output]) -> Option<Duration> {
    outputs.iter().find_map(|output| match output {
        Output::Event(Event::ReconnectIn { delay, .. }) => Some(*delay),
        _ => None,
    })
}

/// Why the client closed, among some outputs.
pub(super) fn closed(outputs: &[Output]) -> Option<Code> {
    outputs.iter().find_map(|output| match output {
        Output::Event(Event::Closed(reason)) => Some(reason.kind()),
        _ => None,
    })
}

/// What was sent ends with the connection, in the order of numbers, and says that it may have run.
#[test]
fn sent_requests_end_with_their_connection() {
    let mut rig = Rig::ready(config());
    for token in 1..=20 {
        rig.sent(RequestFlags::default(), token);
    }
    let outputs = rig.lose("cut");
    let tokens: Vec<_> = ends(&outputs).iter().map(|end| end.0).collect();
    assert_eq!(tokens, (1..=20).collect::<Vec<_>>());
    let error = completion(&outputs[0]).unwrap().result.clone().unwrap_err();
    assert_eq!(error.kind(), Code::ConnectionLost);
    assert!(error.message().contains("cut") && error.message().contains("may have run"));
}

/// Pauses have ± 20 % of jitter, double while tries fail, stop at ten intervals, and begin again after a welcome.
#[test]
fn pauses_grow_and_start_again() {
    let mut rig = Rig::ready(config());
    let mut pauses = vec![pause(&rig.lose("cut")).unwrap()];
    for _ in 0..7 {
        let waited = rig.pass(*pauses.last().unwrap() + ms(1));
        assert_eq!(waited, [Output::Connect]);
        rig.client.connect_failed("refused", rig.now);
        pauses.push(pause(&rig.outputs()).unwrap());
    }
    for (pause, nominal) in pauses.iter().zip([1, 1, 2, 4, 8, 10, 10, 10]) {
        assert!((secs(nominal).mul_f64(0.8)..=secs(nominal).mul_f64(1.2)).contains(pause), "{pauses:?}");
    }
    assert_ne!(pauses[0], pauses[1]);
    rig.pass(secs(12));
    rig.connect();
    assert!(pause(&rig.lose("cut")).unwrap() <= ms(1200));
}

/// An interval beyond all reason is no reason to panic.
#[test]
fn a_pause_has_an_end() {
    let mut rig = Rig::new(ClientConfig { reconnect_interval: Duration::MAX, ..config() });
    rig.client.connect_failed("refused", rig.now);
    assert!(pause(&rig.outputs()).is_some());
}

/// The same seed gives the same pauses.
#[test]
fn pauses_follow_the_seed() {
    let first = |seed| pause(&Rig::ready(ClientConfig { seed, ..config() }).lose("cut")).unwrap();
    assert_eq!(first(7), first(7));
    assert_ne!(first(7), first(8));
}

/// After silence the client asks, and answers that keep it alive; after three intervals the connection is lost.
#[test]
fn silence_is_noticed() {
    let mut rig = Rig::ready(config());
    assert_eq!(rig.pass(ms(4999)), []);
    assert_eq!(rig.pass(ms(1)), [Output::Send(ClientMessage::Ping(1))]);
    assert_eq!(rig.receive(ServerMessage::Pong(1)), []);
    assert_eq!(rig.receive(ServerMessage::Ping(77)), [Output::Send(ClientMessage::Pong(77))]);
    assert_eq!(rig.pass(secs(5)), [Output::Send(ClientMessage::Ping(2))]);
    let outputs = rig.pass(secs(10));
    assert_eq!(outputs[..2], [Output::Send(ClientMessage::Ping(3)), Output::Abort], "nobody reads a goodbye");
    assert!(pause(&outputs).is_some());
    assert_eq!(rig.client.counters().lost_connections, 1);
}

/// A server whose message takes long to arrive is not silent.
#[test]
fn a_slow_message_is_no_silence() {
    let mut rig = Rig::ready(config());
    for _ in 0..4 {
        rig.pass(secs(14));
        rig.client.heard(rig.now);
    }
    assert!(rig.client.is_ready());
    assert!(pause(&rig.pass(secs(20))).is_some());
}

/// A server that accepts but does not greet is tried again, or, where that is not wanted, reported as not reached.
#[test]
fn a_silent_server_is_no_server() {
    let mut rig = Rig::new(config());
    rig.client.connected(rig.now);
    rig.outputs();
    let outputs = rig.pass(secs(5));
    assert!(outputs[0] == Output::Abort && pause(&outputs).is_some());
    let mut rig = Rig::new(ClientConfig { retry_initial: false, ..config() });
    rig.client.connected(rig.now);
    rig.outputs();
    assert_eq!(closed(&rig.lose("end of stream")), Some(Code::Connect));
}

/// What cannot become better is final: no further try, and all that waits ends with that reason.
#[test]
fn final_reasons_end_the_client() {
    for code in [Code::SessionTaken, Code::Unsupported] {
        let mut rig = Rig::new(config());
        rig.request(plain(), 1);
        rig.client.connected(rig.now);
        rig.outputs();
        let outputs = rig.receive(report(Scope::Connection, 0, code));
        assert_eq!((&outputs[0], closed(&outputs)), (&Output::Disconnect, Some(code)));
        assert_eq!(ends(&outputs), [(1, Some(code), true)]);
        assert_eq!(rig.client.request(plain(), 2, rig.now).unwrap_err().kind(), code);
        assert_eq!(rig.pass(secs(100)), []);
    }
    let mut rig = Rig::ready(config());
    let outputs = rig.receive(report(Scope::Connection, 0, Code::SessionTaken));
    assert_eq!((closed(&outputs), pause(&outputs)), (Some(Code::SessionTaken), None));
    let mut rig = Rig::ready(config());
    assert!(pause(&rig.receive(report(Scope::Connection, 0, Code::Malformed))).is_some());
}

/// A key that is wrong now may be right later, and nobody has proven to be the server: the client goes on, unless it wants
/// to know at once.
#[test]
fn a_wrong_key_is_not_final() {
    for code in [Code::Unauthorized, Code::Forbidden] {
        let mut rig = Rig::new(config());
        rig.client.connected(rig.now);
        rig.outputs();
        assert!(pause(&rig.receive(report(Scope::Connection, 0, code))).is_some());
        rig.pass(secs(2));
        rig.client.turned_away(Error::new(code, "another key"), rig.now);
        assert!(pause(&rig.outputs()).is_some());
        let mut rig = Rig::new(ClientConfig { retry_initial: false, ..config() });
        rig.client.turned_away(Error::new(code, "another key"), rig.now);
        assert_eq!(closed(&rig.outputs()), Some(code));
    }
}

/// Without reconnect a lost connection is the end; what was not sent ends with `connect`.
#[test]
fn without_reconnect_a_loss_is_the_end() {
    let mut rig = Rig::ready(ClientConfig { reconnect: false, ..config() });
    rig.sent(RequestFlags::default(), 1);
    let outputs = rig.lose("cut");
    assert_eq!(
        (ends(&outputs), closed(&outputs)),
        (vec![(1, Some(Code::ConnectionLost), true)], Some(Code::ConnectionLost))
    );
    assert_eq!(rig.client.request(plain(), 2, rig.now).unwrap_err().kind(), Code::Connect);
}

/// A client gives up after as many failures as it was told.
#[test]
fn tries_are_counted() {
    let mut rig = Rig::new(ClientConfig { max_reconnects: Some(1), ..config() });
    rig.request(RequestSpec { timeout: secs(60), ..plain() }, 1);
    rig.client.connect_failed("refused", rig.now);
    assert!(pause(&rig.outputs()).is_some());
    assert_eq!(rig.pass(secs(2)), [Output::Connect]);
    rig.client.connect_failed("refused", rig.now);
    let outputs = rig.outputs();
    assert_eq!(
        (ends(&outputs), closed(&outputs)),
        (vec![(1, Some(Code::Connect), true)], Some(Code::Connect))
    );
}

/// When the server leaves, what is open is finished, new requests wait for the next connection, then the client goes.
#[test]
fn goaway_finishes_then_reconnects() {
    let mut rig = Rig::ready(config());
    rig.client.register("adder", 1).unwrap();
    let number = rig.sent_behind_registration(1);
    rig.receive(deliver(5, 1));
    let outputs = rig.receive(ServerMessage::Goaway { grace_ms: 10_000, reason: "restart".into() });
    assert_eq!(outputs[1..], [Output::Send(ClientMessage::Goaway), Output::Send(ClientMessage::Ping(1))]);
    rig.request(plain(), 2);
    assert_eq!(rig.outputs(), []);
    assert_eq!(rig.receive(ServerMessage::Pong(1)), []);
    assert_eq!(ends(&rig.receive(reply(number))), [(1, None, true)]);
    assert!(rig.client.answer(
        DeliveryKey { connection: 1, delivery: 5 },
        Verdict::Reply,
        Content::default(),
        rig.now
    ));
    let outputs = rig.outputs();
    assert!(matches!(outputs[..2], [Output::Send(ClientMessage::Answer(_)), Output::Disconnect]));
    assert!(pause(&outputs).is_some());
    assert_eq!(rig.client.counters().lost_connections, 0);
    rig.pass(secs(2));
    assert_eq!(requests(&rig.connect()).len(), 1);
}

/// A leaving server is not waited for longer than it waits itself.
#[test]
fn goaway_has_an_end() {
    let mut rig = Rig::ready(config());
    rig.sent(RequestFlags::default(), 1);
    rig.receive(ServerMessage::Goaway { grace_ms: 1000, reason: "restart".into() });
    let outputs = rig.pass(secs(1));
    assert_eq!(
        (&outputs[0], ends(&outputs)),
        (&Output::Disconnect, vec![(1, Some(Code::ConnectionLost), true)])
    );
}

/// Closing cancels what is open at the broker, tells handlers, and is final.
#[test]
fn close_ends_everything() {
    let mut rig = Rig::ready(config());
    rig.client.register("adder", 1).unwrap();
    let number = rig.sent_behind_registration(1);
    rig.receive(deliver(5, 1));
    rig.client.close();
    let outputs = rig.outputs();
    let cancel = ClientMessage::Cancel(ringpost_protocol::message::Target::Number(number));
    let goodbye = [Output::Send(cancel), Output::Send(ClientMessage::Goaway), Output::Disconnect];
    assert_eq!(outputs[..3], goodbye);
    assert_eq!(count(&outputs, &Output::CancelDelivery(DeliveryKey { connection: 1, delivery: 5 })), 1);
    assert_eq!((ends(&outputs), closed(&outputs)), (vec![(1, Some(Code::Closed), true)], Some(Code::Closed)));
    rig.client.close();
    rig.client.start(rig.now);
    assert_eq!(rig.outputs(), []);
    // A connection that was on its way is not kept.
    rig.client.connected(rig.now);
    assert_eq!(rig.outputs(), [Output::Disconnect]);
}

/// The receivers are watched from the hello on or from later, on every connection.
#[test]
fn receivers_are_watched() {
    let mut rig = Rig::ready(config());
    rig.client.watch_receivers(true);
    rig.client.watch_receivers(true);
    assert_eq!(rig.outputs(), [Output::Send(ClientMessage::WatchReceivers(true))]);
    assert_eq!(
        rig.receive(ServerMessage::Receivers("[\"a\"]".into())),
        [Output::Receivers("[\"a\"]".into())]
    );
    rig.lose("cut");
    rig.pass(secs(2));
    rig.client.connected(rig.now);
    assert!(matches!(&rig.outputs()[0], Output::Send(ClientMessage::Hello(hello)) if hello.watch_receivers));
}

/// Before its welcome a server may only refuse, and after it not greet again.
#[test]
fn words_out_of_place_end_the_connection() {
    let mut rig = Rig::new(config());
    rig.client.connected(rig.now);
    rig.outputs();
    assert_eq!(rig.receive(ServerMessage::Registered { registration: 1 })[0], Output::Disconnect);
    let mut rig = Rig::ready(config());
    assert_eq!(rig.receive(welcome())[0], Output::Disconnect);
}

impl Rig {
    /// Like [`Rig::sent`], where a registration's message is still to be taken.
    pub(super) fn sent_behind_registration(&mut self, token: u64) -> u64 {
        self.outputs();
        self.sent(RequestFlags::default(), token)
    }
}

/// A server that still reads its log is waited for, also at the very first try, by clients that do not try in vain: as evenly as
/// it began. What waits for that ends at its own timeout, and goes out when the server is ready.
#[test]
fn a_recovering_server_is_waited_for() {
    let mut rig = Rig::new(ClientConfig { retry_initial: false, max_reconnects: Some(2), ..config() });
    rig.request(RequestSpec { timeout: secs(4), ..plain() }, 1);
    rig.request(RequestSpec { timeout: secs(60), ..plain() }, 2);
    let mut ended = Vec::new();
    for _ in 0..10 {
        rig.client.connected(rig.now);
        rig.outputs();
        let outputs = rig.receive(report(Scope::Connection, 0, Code::Recovering));
        let delay = pause(&outputs).expect("another try");
        assert!(delay <= ms(1200) && closed(&outputs).is_none(), "{outputs:?}");
        let outputs = rig.pass(delay + ms(1));
        assert!(outputs.contains(&Output::Connect), "{outputs:?}");
        ended.extend(ends(&outputs));
    }
    assert_eq!(ended, [(1, Some(Code::Timeout), true)]);
    assert_eq!(requests(&rig.connect()).len(), 1);
}
