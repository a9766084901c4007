//! The end in good order: nothing new, all that is open, then the goodbye; and what a deadline cuts off.

use ringpost_protocol::message::{OpenState, Target, Verdict};

use super::{
    connection::closed,
    sessions::{come_back_from_pause, named, outcome, resumed},
    *,
};
use crate::{Cut, DeliveryKey};

const DEREGISTER: Output = Output::Send(ClientMessage::Deregister(Target::Number(1)));
const GOAWAY: Output = Output::Send(ClientMessage::Goaway);

/// A client with one handler, granted.
fn handling(config: ClientConfig) -> Rig {
    let mut rig = Rig::ready(config);
    rig.client.register("adder", 1).unwrap();
    rig.outputs();
    rig
}

fn answer(rig: &mut Rig, delivery: u64) -> Vec<Output> {
    let key = DeliveryKey { connection: 1, delivery };
    assert!(rig.client.answer(key, Verdict::Reply, Content::default(), rig.now));
    rig.outputs()
}

/// Draining takes nothing new, finishes requests and deliveries, and what crossed the deregistration, then ends.
#[test]
fn drain_loses_nothing() {
    let mut rig = handling(config());
    let number = rig.sent(RequestFlags::default(), 1);
    rig.client.drain(Time::NEVER, rig.now);
    assert_eq!(rig.outputs(), [DEREGISTER, Output::Send(ClientMessage::Ping(1))]);
    assert_eq!(rig.client.request(plain(), 2, rig.now).unwrap_err().kind(), Code::Closed);
    assert_eq!(rig.client.register("other", 1).unwrap_err().kind(), Code::Closed);
    assert_eq!(ends(&rig.receive(reply(number))), [(1, None, true)]);
    assert!(matches!(rig.receive(deliver(5, 1))[..], [Output::Deliver(_)]), "it crossed the deregistration");
    assert!(matches!(rig.receive(ServerMessage::Pong(1))[..], [Output::Deregistered(_)]));
    let outputs = answer(&mut rig, 5);
    assert!(matches!(outputs[0], Output::Send(ClientMessage::Answer(_))));
    assert_eq!(outputs[1..3], [GOAWAY, Output::Disconnect], "the answer goes first");
    assert_eq!((closed(&outputs), rig.client.cut()), (Some(Code::Closed), Cut::default()));
}

/// Draining without a connection still sends what waits; with nothing to do it ends at once.
#[test]
fn drain_before_the_welcome() {
    let mut rig = Rig::new(config());
    rig.request(plain(), 1);
    rig.client.drain(Time::NEVER, rig.now);
    assert_eq!(rig.outputs(), []);
    let outputs = rig.connect();
    assert_eq!((requests(&outputs).len(), outputs.len()), (1, 1));
    let outputs = rig.receive(reply(1));
    assert_eq!((ends(&outputs), closed(&outputs)), (vec![(1, None, true)], Some(Code::Closed)));

    let mut rig = Rig::new(config());
    rig.client.drain(Time::NEVER, rig.now);
    let outputs = rig.outputs();
    assert_eq!((&outputs[0], closed(&outputs)), (&Output::Disconnect, Some(Code::Closed)));
}

/// The deadline closes what is still open, in time order with everything else, and says how much it was.
#[test]
fn the_deadline_cuts() {
    let mut rig = handling(config());
    let number = rig.sent(RequestFlags::default(), 1);
    rig.receive(deliver(5, 1));
    rig.receive(deliver(6, 1));
    rig.receive(ServerMessage::Cancel { delivery: 6, tag: Default::default() });
    rig.client.drain(rig.now + ms(300), rig.now);
    rig.receive(ServerMessage::Pong(1));
    assert_eq!(closed(&rig.pass(ms(299))), None);
    let outputs = rig.pass(ms(1));
    let cancel = Output::Send(ClientMessage::Cancel(Target::Number(number)));
    assert_eq!(outputs[..3], [cancel, GOAWAY, Output::Disconnect]);
    assert_eq!(count(&outputs, &Output::CancelDelivery(DeliveryKey { connection: 1, delivery: 5 })), 1);
    assert_eq!((ends(&outputs), closed(&outputs)), (vec![(1, Some(Code::Closed), true)], Some(Code::Closed)));
    let cut = Cut { requests: 1, deliveries: 1 };
    assert_eq!(rig.client.cut(), cut, "nobody waits for the cancelled one");
}

/// Of two deadlines the earlier one counts, whichever was told first.
#[test]
fn the_earlier_deadline_counts() {
    for deadlines in [[100, 500], [500, 100]] {
        let mut rig = handling(config());
        rig.receive(deliver(5, 1));
        for deadline in deadlines {
            rig.client.drain(rig.now + ms(deadline), rig.now);
        }
        assert_eq!(closed(&rig.pass(ms(99))), None);
        assert_eq!(closed(&rig.pass(ms(1))), Some(Code::Closed));
    }
}

/// A connection that breaks while its client drains is made again for what is open; handlers do not come back.
#[test]
fn a_broken_connection_is_made_again() {
    let mut rig = Rig::ready(named());
    rig.client.register("adder", 1).unwrap();
    let number = rig.sent_behind_registration(1);
    rig.receive(deliver(5, 1));
    rig.client.drain(Time::NEVER, rig.now);
    rig.lose("cut");
    let outputs = come_back_from_pause(&mut rig, 5, 1);
    assert!(matches!(outputs[..], [Output::Send(ClientMessage::Resume(_))]), "{outputs:?}");
    rig.receive(resumed(&[(number, OpenState::Running)]));
    let outputs = rig.receive(outcome(number, 1));
    assert_eq!((ends(&outputs), closed(&outputs)), (vec![(1, None, true)], Some(Code::Closed)));
    assert_eq!(rig.client.cut(), Cut { requests: 0, deliveries: 1 }, "its answer went with the connection");
}

/// Where no connection is made again, what was open is cut off with it.
#[test]
fn without_reconnect_a_loss_cuts() {
    let mut rig = handling(ClientConfig { reconnect: false, ..config() });
    rig.sent(RequestFlags::default(), 1);
    rig.client.drain(Time::NEVER, rig.now);
    let outputs = rig.lose("cut");
    assert_eq!(ends(&outputs), [(1, Some(Code::ConnectionLost), true)]);
    assert_eq!((closed(&outputs), rig.client.cut().requests), (Some(Code::Closed), 1));
}

/// A server that never comes is given up at the deadline.
#[test]
fn the_deadline_holds_without_a_connection() {
    let mut rig = Rig::new(config());
    rig.request(RequestSpec { timeout: secs(60), ..plain() }, 1);
    rig.client.drain(rig.now + secs(1), rig.now);
    let outputs = rig.pass(secs(1));
    assert_eq!((ends(&outputs), closed(&outputs)), (vec![(1, Some(Code::Closed), true)], Some(Code::Closed)));
    assert_eq!(rig.client.cut().requests, 1);
}

/// A send that is held back for the next server may be the first of several, of which others have ended.
#[test]
fn held_back_before_sends_that_ended() {
    let mut rig = Rig::ready(ClientConfig { session: "mine".into(), ..config() });
    let first = rig.sent(RequestFlags::SEND, 1);
    let second = rig.sent(RequestFlags::SEND, 2);
    rig.sent(RequestFlags::SEND, 3);
    assert_eq!(ends(&rig.receive(failure(second, Code::NoHandler))), [(2, Some(Code::NoHandler), true)]);
    rig.receive(ServerMessage::Goaway { grace_ms: 1000, reason: String::new() });
    assert_eq!(ends(&rig.receive(failure(first, Code::Draining))), []);
    rig.client.check_invariants();
    assert_eq!(rig.client.open_requests(), 2);
}
