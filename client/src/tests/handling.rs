//! Registrations, deliveries and their answers.

use ringpost_protocol::message::{Answer, Register, Target, Verdict};

use super::*;
use crate::{Delivery, DeliveryKey, RegistrationId};

/// Ready, with one registration that the broker took.
fn handling(config: ClientConfig) -> Rig {
    let mut rig = Rig::ready(config);
    rig.client.register("adder", 4).unwrap();
    rig.outputs();
    assert_eq!(
        rig.receive(ServerMessage::Registered { registration: 1 }),
        [Output::Registered(RegistrationId(1))]
    );
    rig
}

fn key(connection: u32, delivery: u64) -> DeliveryKey {
    DeliveryKey { connection, delivery }
}

fn delivered(outputs: &[Output]) -> Vec<&Delivery> {
    outputs
        .iter()
        .filter_map(|output| if let Output::Deliver(delivery) = output { Some(delivery) } else { None })
        .collect()
}

fn answers(outputs: &[Output]) -> Vec<&Answer> {
    outputs
        .iter()
        .filter_map(|output| match output {
            Output::Send(ClientMessage::Answer(answer)) => Some(answer),
            _ => None,
        })
        .collect()
}

/// A delivery names its action, and its answer goes back under its number, counted.
#[test]
fn deliveries_are_answered_once() {
    let mut rig = handling(config());
    let outputs = rig.receive(deliver(31, 1));
    assert_eq!((&*delivered(&outputs)[0].action, delivered(&outputs)[0].key), ("adder", key(1, 31)));
    assert!(rig.client.progress(key(1, 31), Content::default()));
    assert!(rig.client.answer(key(1, 31), Verdict::Reply, Content::from_payload("3"), rig.now));
    let outputs = rig.outputs();
    let answer = answers(&outputs)[0];
    assert_eq!((answer.delivery, answer.sequence, answer.verdict), (31, 1, Verdict::Reply));
    assert!(!rig.client.answer(key(1, 31), Verdict::Reply, Content::default(), rig.now));
    assert!(!rig.client.progress(key(1, 31), Content::default()));
    assert_eq!((rig.outputs(), rig.client.counters().late_answers), (vec![], 1));
}

/// A cancelled delivery tells the handler once, and its answer is sent all the same: the credit hangs on it.
#[test]
fn cancelled_deliveries_are_answered_too() {
    let mut rig = handling(config());
    rig.receive(deliver(31, 1));
    let cancel = || ServerMessage::Cancel { delivery: 31, tag: Default::default() };
    assert_eq!(rig.receive(cancel()), [Output::CancelDelivery(key(1, 31))]);
    assert_eq!(rig.receive(cancel()), []);
    assert!(rig.client.answer(key(1, 31), Verdict::Cancelled, Content::default(), rig.now));
    assert_eq!(answers(&rig.outputs())[0].verdict, Verdict::Cancelled);
    assert_eq!(rig.receive(cancel()), []);
}

/// Registrations are made again on each connection, in order; handlers of the old one are told to stop, and their
/// answers do not reach the new one, even where the broker uses the number again.
#[test]
fn a_new_connection_starts_afresh() {
    let mut rig = handling(config());
    rig.client.register("other", 0).unwrap();
    rig.receive(deliver(8, 1));
    rig.receive(deliver(7, 1));
    let outputs = rig.lose("cut");
    assert_eq!(outputs[..2], [Output::CancelDelivery(key(1, 7)), Output::CancelDelivery(key(1, 8))]);
    rig.pass(secs(2));
    let register = |registration, credit, action: &'static str| {
        let action = action.into();
        Output::Send(ClientMessage::Register(Register {
            registration,
            credit,
            action,
            session: Default::default(),
        }))
    };
    assert_eq!(rig.connect(), [register(1, 4, "adder"), register(2, 0, "other")]);
    assert_eq!(delivered(&rig.receive(deliver(7, 1)))[0].key, key(2, 7));
    assert!(!rig.client.answer(key(1, 7), Verdict::Reply, Content::default(), rig.now));
    assert!(rig.client.answer(key(2, 7), Verdict::Reply, Content::default(), rig.now));
    assert_eq!(answers(&rig.outputs()).len(), 1);
}

/// The task interval spaces out what is handed to handlers, and shortens the time that they are told is left.
#[test]
fn the_task_interval_spaces_deliveries() {
    let mut rig = handling(ClientConfig { task_interval: ms(100), ..config() });
    assert_eq!(delivered(&rig.receive(deliver(1, 1))).len(), 1);
    assert_eq!(rig.receive(deliver(2, 1)), []);
    assert_eq!(rig.receive(deliver(3, 1)), []);
    assert_eq!(rig.receive(deliver(4, 1)), []);
    // One that waits can be cancelled without anybody having seen it.
    let outputs = rig.receive(ServerMessage::Cancel { delivery: 3, tag: Default::default() });
    assert_eq!((outputs.len(), answers(&outputs)[0].verdict), (1, Verdict::Cancelled));
    assert_eq!(rig.pass(ms(99)), []);
    let outputs = rig.pass(ms(1));
    let given: Vec<_> =
        delivered(&outputs).iter().map(|d| (d.key.delivery, d.message.time_left_ms)).collect();
    assert_eq!(given, [(2, 900)]);
    assert_eq!(delivered(&rig.pass(ms(100)))[0].key.delivery, 4);
    assert_eq!(delivered(&rig.pass(secs(1))).len(), 0);
    assert_eq!(delivered(&rig.receive(deliver(5, 1))).len(), 1);
}

/// Deliveries that crossed a deregistration are still handled; the pong behind it says that no more can come.
#[test]
fn deregistration_waits_for_what_crossed_it() {
    let mut rig = handling(config());
    rig.client.deregister(RegistrationId(1));
    let outputs = rig.outputs();
    let Output::Send(ClientMessage::Ping(fence)) = outputs[1] else { panic!("{outputs:?}") };
    assert_eq!(outputs[0], Output::Send(ClientMessage::Deregister(Target::Number(1))));
    assert_eq!(delivered(&rig.receive(deliver(1, 1))).len(), 1);
    assert_eq!(rig.receive(ServerMessage::Pong(fence)), [Output::Deregistered(RegistrationId(1))]);
    // A broker that delivers even so gets an error instead of silence.
    assert_eq!(answers(&rig.receive(deliver(2, 1)))[0].verdict, Verdict::Error);
    rig.client.deregister(RegistrationId(1));
    assert_eq!(rig.outputs(), []);
}

/// Names are checked here; what the broker refuses is forgotten, with its reason.
#[test]
fn refused_registrations_are_forgotten() {
    let mut rig = handling(config());
    assert_eq!(rig.client.register("ping", 1).unwrap_err().kind(), Code::ReservedName);
    assert_eq!(rig.client.register("", 1).unwrap_err().kind(), Code::Malformed);
    rig.client.set_credit(RegistrationId(1), 9);
    assert_eq!(rig.outputs(), [Output::Send(ClientMessage::Credit { registration: 1, credit: 9 })]);
    let outputs = rig.receive(report(Scope::Registration, 1, Code::Forbidden));
    assert!(
        matches!(&outputs[..], [Output::RegistrationFailed(RegistrationId(1), error)] if error.kind() == Code::Forbidden)
    );
    rig.lose("cut");
    rig.pass(secs(2));
    assert_eq!(rig.connect(), []);
}

/// An answer that the server would not take becomes an error that it does.
#[test]
fn oversize_answers_become_errors() {
    let mut rig = handling(config());
    rig.receive(deliver(1, 1));
    rig.client.answer(key(1, 1), Verdict::Reply, Content::from_payload(vec![0; 1001]), rig.now);
    let outputs = rig.outputs();
    assert_eq!(
        (answers(&outputs)[0].verdict, answers(&outputs)[0].content.name()),
        (Verdict::Error, &b"tooLarge"[..])
    );
}

/// A number that is given to two deliveries at once cannot be answered: the connection is ended.
#[test]
fn a_delivery_number_used_twice_is_refused() {
    let mut rig = handling(config());
    rig.receive(deliver(1, 1));
    let outputs = rig.receive(deliver(1, 1));
    assert!(outputs.contains(&Output::Disconnect) && outputs.contains(&Output::CancelDelivery(key(1, 1))));
}

/// A broadcast's legs go out one by one under the delivery's number, which is held until its answer; once nobody waits they do
/// not.
#[test]
fn a_delivery_has_legs() {
    let mut rig = handling(config());
    rig.receive(deliver(31, 1));
    assert!(rig.client.legs(key(1, 31), 2));
    assert!(rig.client.leg(key(1, 31), Verdict::Reply, Content::from_payload("3")));
    let leg = |sequence, verdict, content| Answer { delivery: 31, sequence, verdict, content };
    assert_eq!(
        rig.outputs(),
        [
            Output::Send(ClientMessage::Legs { delivery: 31, expected: 2 }),
            Output::Send(ClientMessage::Leg(leg(1, Verdict::Reply, Content::from_payload("3")))),
        ]
    );
    assert_eq!(rig.client.held_deliveries(), 1);
    let long = "x".repeat(1001);
    assert!(rig.client.leg(key(1, 31), Verdict::Reply, Content::from_payload(long)));
    let outputs = rig.outputs();
    let [Output::Send(ClientMessage::Leg(refused))] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(
        (refused.sequence, refused.verdict, refused.content.name()),
        (2, Verdict::Error, &b"tooLarge"[..])
    );
    rig.receive(ServerMessage::Cancel { delivery: 31, tag: Default::default() });
    assert!(!rig.client.leg(key(1, 31), Verdict::Reply, Content::default()));
    assert!(!rig.client.legs(key(1, 31), 3) && !rig.client.legs(key(1, 99), 3));
    assert!(rig.client.answer(key(1, 31), Verdict::Cancelled, Content::default(), rig.now));
    assert_eq!(answers(&rig.outputs())[0].sequence, 3);
    assert!(!rig.client.leg(key(1, 31), Verdict::Reply, Content::default()));
    assert_eq!(rig.outputs(), []);
}
