//! What users may rely on, where no other test shows it. `docs/SEMANTICS.md` has the whole list.

use ringpost_protocol::message::{Hello, OpenState, Speaker};

use super::{
    sessions::{come_back, come_back_from_pause, named, resumed},
    *,
};

/// What a client says in the hello of the connection that it has just been given: its session's name, and who it is.
fn said(rig: &mut Rig) -> (String, Speaker) {
    rig.client.connected(rig.now);
    let outputs = rig.outputs();
    let [Output::Send(ClientMessage::Hello(Hello { session, speaker, .. }))] = &outputs[..] else {
        panic!("{outputs:?}")
    };
    (String::from_utf8_lossy(session).into_owned(), *speaker)
}

/// The hello names the session, on the first connection and on each one after it.
#[test]
fn the_hello_names_the_session() {
    let mut rig = Rig::new(named());
    assert_eq!(said(&mut rig).0, "tester");
    rig.receive(welcome());
    rig.lose("cut");
    rig.pass(secs(2));
    assert_eq!(said(&mut rig).0, "tester");
}

/// The hello says who speaks, and on which of its connections, those included that never got their welcome: a hello of a
/// connection that the client has given up can be told from a later one.
#[test]
fn a_client_does_not_take_its_own_session_away() {
    let mut rig = Rig::new(named());
    for connection in 1..=3 {
        assert_eq!(said(&mut rig).1, Speaker { instance: 7, connection });
        let outputs = rig.pass(secs(6));
        assert_eq!(count(&outputs, &Output::Abort), 1, "there is no welcome: {outputs:?}");
        rig.pass(secs(20));
    }
    let connection = 4;
    assert_eq!(said(&mut rig).1, Speaker { instance: 7, connection });
    rig.receive(welcome());
    assert!(rig.client.is_ready());
}

/// A client that leaves a leaving server registers its handlers with the next one, before it sends what waited.
#[test]
fn handlers_move_with_their_client() {
    let mut rig = Rig::ready(named());
    rig.client.register("adder", 4).unwrap();
    rig.outputs();
    rig.receive(ServerMessage::Goaway { grace_ms: 10_000, reason: "restart".into() });
    rig.request(plain(), 1);
    let outputs = rig.receive(ServerMessage::Pong(1));
    assert_eq!(count(&outputs, &Output::Disconnect), 1, "nothing is open: it does not wait to be cut");
    let outputs = come_back_from_pause(&mut rig, 6, 1);
    let [Output::Send(ClientMessage::Register(register)), Output::Send(ClientMessage::Request(_))] =
        &outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!((&register.action[..], register.credit), (&b"adder"[..], 4));
}

/// What the broker never saw is sent again under its number, in the order in which it was made and before what is new: the
/// order of requests outlives the connection.
#[test]
fn order_outlives_the_connection() {
    let mut rig = Rig::ready(named());
    for token in 1..=4 {
        rig.sent(RequestFlags::default(), token);
    }
    come_back(&mut rig, 5, 1);
    rig.request(plain(), 5);
    let never_seen: Vec<_> = (2..=4).map(|number| (number, OpenState::NeverSeen)).collect();
    let outputs = rig.receive(resumed(&[&[(1, OpenState::Running)], &never_seen[..]].concat()));
    let numbers: Vec<_> = requests(&outputs).iter().map(|request| request.number).collect();
    assert_eq!(numbers, [2, 3, 4, 5]);
}

/// A request with one attempt is never sent to a second broker once it was sent to a first; one with more loses one by it.
#[test]
fn a_lost_broker_costs_an_attempt() {
    let mut rig = Rig::ready(named());
    for (token, max_attempts) in [(1, 1), (2, 2), (3, 3)] {
        rig.request(RequestSpec { max_attempts, ..plain() }, token);
    }
    rig.outputs();
    let attempts =
        |outputs: &[Output]| requests(outputs).iter().map(|request| request.max_attempts).collect::<Vec<_>>();
    let lost = Some(Code::ConnectionLost);
    let outputs = come_back(&mut rig, 6, 1);
    assert_eq!((ends(&outputs), attempts(&outputs)), (vec![(1, lost, true)], vec![1, 2]));
    let outputs = come_back(&mut rig, 7, 1);
    assert_eq!((ends(&outputs), attempts(&outputs)), (vec![(2, lost, true)], vec![1]));
    let outputs = come_back(&mut rig, 8, 1);
    assert_eq!((ends(&outputs), attempts(&outputs)), (vec![(3, lost, true)], vec![]));
}
