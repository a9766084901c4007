//! Durable deliveries over a lost connection: a server that was restarted takes them back.

use ringpost_protocol::message::{Answer, Resume, Verdict};

use super::{
    sessions::{come_back, named},
    *,
};
use crate::DeliveryKey;

/// Ready under a name, with one registration, and these deliveries: durable ones, and the plain 99.
fn holding(durable: &[u64]) -> Rig {
    let mut rig = Rig::ready(named());
    rig.client.register("adder", 4).unwrap();
    rig.outputs();
    rig.receive(ServerMessage::Registered { registration: 1 });
    for delivery in durable {
        let ServerMessage::Deliver(deliver) = deliver(*delivery, 1) else { unreachable!() };
        rig.receive(ServerMessage::Deliver(Deliver { flags: RequestFlags::DURABLE, ..deliver }));
    }
    rig.receive(deliver(99, 1));
    rig
}

fn key(connection: u32, delivery: u64) -> DeliveryKey {
    DeliveryKey { connection, delivery }
}

fn resume(outputs: &[Output]) -> Option<&Resume> {
    outputs.iter().find_map(|output| match output {
        Output::Send(ClientMessage::Resume(resume)) => Some(resume),
        _ => None,
    })
}

fn resumed(attached: &[(u64, u64)]) -> ServerMessage {
    ServerMessage::Resumed { open: Vec::new(), forgotten: Vec::new(), attached: attached.to_vec() }
}

fn answers(outputs: &[Output]) -> Vec<&Answer> {
    let answer = |output| match output {
        &Output::Send(ClientMessage::Answer(ref answer)) => Some(answer),
        _ => None,
    };
    outputs.iter().filter_map(answer).collect()
}

/// A restarted server is asked to take back what handlers are at work on: what it takes goes on under its old key, what it does
/// not is cancelled. Plain deliveries are cancelled at once.
#[test]
fn handlers_go_on_over_a_restart() {
    let mut rig = holding(&[31, 32]);
    rig.client.disconnected("cut", rig.now);
    assert_eq!(count(&rig.outputs(), &Output::CancelDelivery(key(1, 99))), 1);
    assert!(rig.client.progress(key(1, 31), Content::default()), "it is wanted, though nobody can be told");
    let outputs = super::sessions::come_back_from_pause(&mut rig, 6, 1);
    let resume = resume(&outputs).unwrap();
    assert_eq!((resume.held_boot, &resume.held[..], &resume.open[..]), (5, &[31, 32][..], &[][..]));
    assert_eq!(rig.receive(resumed(&[(31, 1)])), [Output::CancelDelivery(key(1, 32))]);
    assert!(!rig.client.answer(key(1, 32), Verdict::Cancelled, Content::default(), rig.now));
    assert!(rig.client.progress(key(1, 31), Content::default()));
    assert!(rig.client.answer(key(1, 31), Verdict::Reply, Content::from_payload("3"), rig.now));
    let outputs = rig.outputs();
    let [Output::Send(ClientMessage::Progress(progress)), Output::Send(ClientMessage::Answer(answer))] =
        &outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!((progress.number, answer.delivery, answer.verdict), (1, 1, Verdict::Reply));
    assert!(!rig.client.answer(key(1, 31), Verdict::Reply, Content::default(), rig.now));
}

/// An answer that was given without a connection, and one of which the server has not said that it took it, are sent again; one
/// that it took is not.
#[test]
fn answers_are_sent_again() {
    let mut rig = holding(&[31, 32, 33]);
    for delivery in [31, 32] {
        rig.client.answer(key(1, delivery), Verdict::Reply, Content::from_payload("3"), rig.now);
    }
    rig.outputs();
    rig.receive(ServerMessage::Acknowledge { sequence: 1 });
    rig.client.disconnected("cut", rig.now);
    assert!(rig.client.answer(key(1, 33), Verdict::Error, Content::from_payload("no"), rig.now));
    assert!(answers(&rig.outputs()).is_empty());
    let outputs = super::sessions::come_back_from_pause(&mut rig, 6, 1);
    assert_eq!(resume(&outputs).unwrap().held, [32, 33]);
    let outputs = rig.receive(resumed(&[(32, 8), (33, 7)]));
    let said: Vec<_> = answers(&outputs).iter().map(|it| (it.delivery, it.sequence, it.verdict)).collect();
    assert_eq!(said, [(8, 3, Verdict::Reply), (7, 4, Verdict::Error)]);
}

/// The server that lost the connection has given them to others: they are cancelled, and what was answered is not sent again.
#[test]
fn the_same_server_does_not_want_them_back() {
    let mut rig = holding(&[31, 32]);
    rig.client.answer(key(1, 32), Verdict::Reply, Content::default(), rig.now);
    rig.outputs();
    let outputs = come_back(&mut rig, 5, 1);
    assert_eq!(count(&outputs, &Output::CancelDelivery(key(1, 31))), 1);
    assert!(resume(&outputs).is_some_and(|resume| resume.held.is_empty()));
    assert!(answers(&outputs).is_empty());
    assert!(!rig.client.answer(key(1, 31), Verdict::Cancelled, Content::default(), rig.now));
}

/// A delivery that went on can be called back, by the key that its handler knows; and it goes on over the next restart.
#[test]
fn what_went_on_is_like_others() {
    let mut rig = holding(&[31, 32]);
    come_back(&mut rig, 6, 1);
    rig.receive(resumed(&[(31, 1), (32, 2)]));
    let cancel = ServerMessage::Cancel { delivery: 1, tag: Default::default() };
    assert_eq!(rig.receive(cancel), [Output::CancelDelivery(key(1, 31))]);
    assert!(rig.client.answer(key(1, 31), Verdict::Cancelled, Content::default(), rig.now));
    assert_eq!(answers(&rig.outputs())[0].delivery, 1);
    let outputs = come_back(&mut rig, 7, 1);
    let resume = resume(&outputs).unwrap();
    assert_eq!((resume.held_boot, &resume.held[..]), (6, &[2][..]));
    rig.receive(resumed(&[(2, 40)]));
    assert!(rig.client.answer(key(1, 32), Verdict::Reply, Content::default(), rig.now));
    assert_eq!(answers(&rig.outputs())[0].delivery, 40);
}

/// A client that ends tells its handlers, also those that wait for a server.
#[test]
fn the_end_is_the_end() {
    let mut rig = holding(&[31]);
    rig.client.disconnected("cut", rig.now);
    rig.outputs();
    rig.client.close();
    assert_eq!(count(&rig.outputs(), &Output::CancelDelivery(key(1, 31))), 1);
}
