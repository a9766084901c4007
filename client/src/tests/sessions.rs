//! A session across connections: what is asked for, sent again, and given up.

use ringpost_protocol::message::{OpenState, Resume, Target};

use super::*;

pub(super) fn named() -> ClientConfig {
    ClientConfig { session: "tester".into(), instance: 7, ..ClientConfig::default() }
}

/// Loses the connection and comes back to a server of this boot, under this tenure; the first one has 5 and 1.
pub(super) fn come_back(rig: &mut Rig, boot: u64, tenure: u64) -> Vec<Output> {
    rig.lose("cut");
    come_back_from_pause(rig, boot, tenure)
}

pub(super) fn come_back_from_pause(rig: &mut Rig, boot: u64, tenure: u64) -> Vec<Output> {
    while !matches!(rig.pass(ms(100)).last(), Some(Output::Connect)) {}
    rig.client.connected(rig.now);
    rig.outputs();
    let ServerMessage::Welcome(welcome) = welcome() else { unreachable!() };
    let mut outputs = rig.receive(ServerMessage::Welcome(Welcome { boot, tenure, epoch: 2, ..welcome }));
    assert!(matches!(outputs.remove(0), Output::Event(Event::Connected { .. })));
    outputs
}

pub(super) fn outcome(number: u64, sequence: u64) -> ServerMessage {
    ServerMessage::Reply(Reply { number, sequence, content: Content::from_payload("3"), ..Reply::default() })
}

pub(super) fn resumed(open: &[(u64, OpenState)]) -> ServerMessage {
    ServerMessage::Resumed { open: open.to_vec(), forgotten: Vec::new(), attached: Vec::new() }
}

/// The acknowledgements among some outputs.
pub(super) fn acknowledged(outputs: &[Output]) -> Vec<u64> {
    let sequence = |output: &Output| match output {
        Output::Send(ClientMessage::Acknowledge(Target::Number(sequence))) => Some(*sequence),
        _ => None,
    };
    outputs.iter().filter_map(sequence).collect()
}

/// What is open stays open, and the broker's word decides on each: run on, outcome, send again, lost.
#[test]
fn open_requests_are_asked_for() {
    let mut rig = Rig::ready(named());
    for token in 1..=5 {
        rig.sent(RequestFlags::default(), token);
    }
    rig.receive(outcome(1, 1));
    let outputs = come_back(&mut rig, 5, 1);
    let expected =
        Resume { boot: 5, sequence: 1, open: vec![2, 3, 4, 5], held_boot: 0, held: vec![], unclaimed: false };
    assert_eq!(outputs, [Output::Send(ClientMessage::Resume(expected))]);
    rig.request(plain(), 6);
    assert_eq!(rig.outputs(), [], "new ones wait behind those that are sent again");
    let states =
        [(2, OpenState::Running), (3, OpenState::Outcome), (4, OpenState::Lost), (5, OpenState::NeverSeen)];
    let outputs = rig.receive(resumed(&states));
    assert_eq!(ends(&outputs), [(4, Some(Code::ConnectionLost), true)]);
    let numbers: Vec<_> = requests(&outputs).iter().map(|request| request.number).collect();
    assert_eq!(numbers, [5, 6]);
    assert!(requests(&outputs)[0].timeout_ms < 10_000, "what is left of its time");
    assert_eq!(ends(&rig.receive(outcome(3, 2))), [(3, None, true)]);
    assert_eq!(ends(&rig.receive(outcome(2, 3))), [(2, None, true)]);
}

/// An outcome that comes twice counts once.
#[test]
fn replayed_outcomes_count_once() {
    let mut rig = Rig::ready(named());
    let number = rig.sent(RequestFlags::BROADCAST, 1);
    let leg = |index, sequence| {
        let leg = Some(Leg { index, expected: 2 });
        ServerMessage::Reply(Reply { number, sequence, leg, ..Reply::default() })
    };
    assert_eq!(ends(&rig.receive(leg(0, 1))), [(1, None, false)]);
    come_back(&mut rig, 5, 1);
    rig.receive(resumed(&[(number, OpenState::Running)]));
    assert_eq!(rig.receive(leg(0, 1)), []);
    assert_eq!(ends(&rig.receive(leg(1, 2))), [(1, None, true)]);
}

/// A server that restarted and has forgotten that an outcome was acknowledged sends it again: nobody hears of it twice, and it is
/// acknowledged again.
#[test]
fn outcomes_that_were_acknowledged_may_come_again() {
    let mut rig = Rig::ready(named());
    let done = rig.sent(RequestFlags::DURABLE, 1);
    assert_eq!(ends(&rig.receive(outcome(done, 1))), [(1, None, true)]);
    assert_eq!(acknowledged(&rig.pass(ms(60))), [1]);
    let open = rig.sent(RequestFlags::DURABLE, 2);
    let outputs = come_back(&mut rig, 6, 2);
    assert!(matches!(&outputs[..], [Output::Send(ClientMessage::Resume(resume))] if resume.open == [open]));
    rig.receive(resumed(&[(open, OpenState::Running)]));
    assert!(ends(&rig.receive(outcome(done, 1))).is_empty(), "it has been told");
    assert_eq!(ends(&rig.receive(outcome(open, 2))), [(2, None, true)]);
    assert_eq!(acknowledged(&rig.pass(ms(60))), [2]);
}

/// A server that restarted, or forgot the session, or gave it to another client: what may have run ends, what has attempts
/// left goes again, first.
#[test]
fn a_session_that_is_not_known() {
    for (boot, tenure) in [(6, 1), (5, 2), (6, 2)] {
        let mut rig = Rig::ready(named());
        rig.sent(RequestFlags::default(), 1);
        rig.request(RequestSpec { max_attempts: 3, ..plain() }, 2);
        rig.outputs();
        rig.sent(RequestFlags::SEND, 3);
        rig.lose("cut");
        rig.request(plain(), 4);
        let outputs = come_back_from_pause(&mut rig, boot, tenure);
        let lost = Some(Code::ConnectionLost);
        assert_eq!(ends(&outputs), [(1, lost, true), (3, lost, true)]);
        let again: Vec<_> =
            requests(&outputs).iter().map(|request| (request.number, request.max_attempts)).collect();
        assert_eq!(again, [(4, 2), (5, 0)], "numbers never go back");
        assert_eq!(ends(&rig.receive(outcome(4, 1))), [(2, None, true)]);
    }
}

/// Two clients under one name do not mix up their numbers: who gets the session back from another one asks for nothing, and
/// its own new numbers are beyond the other's.
#[test]
fn two_clients_under_one_name_do_not_mix_their_numbers() {
    let mut rig = Rig::ready(named());
    let number = rig.sent(RequestFlags::default(), 1);
    rig.lose("cut");
    while !matches!(rig.pass(ms(100)).last(), Some(Output::Connect)) {}
    rig.client.connected(rig.now);
    rig.outputs();
    let ServerMessage::Welcome(welcome) = welcome() else { unreachable!() };
    let welcome = Welcome { epoch: 3, tenure: 9, next_number: 8, ..welcome };
    let outputs = rig.receive(ServerMessage::Welcome(welcome));
    assert_eq!(ends(&outputs), [(1, Some(Code::ConnectionLost), true)]);
    let resumes = |output: &Output| matches!(output, Output::Send(ClientMessage::Resume(_)));
    assert!(!outputs.iter().any(resumes), "{outputs:?}");
    assert_eq!(rig.sent(RequestFlags::default(), 2), 8);
    assert_eq!(rig.receive(outcome(number, 1)), [], "the other one's");
    assert_eq!(ends(&rig.receive(outcome(8, 2))), [(2, None, true)]);
}

/// A send counts as accepted when the broker says so after the return, and is sent again if it never came.
#[test]
fn sends_across_connections() {
    let mut rig = Rig::ready(named());
    rig.sent(RequestFlags::SEND, 1);
    rig.sent(RequestFlags::SEND, 2);
    come_back(&mut rig, 5, 1);
    let outputs = rig.receive(resumed(&[(1, OpenState::Running), (2, OpenState::NeverSeen)]));
    assert_eq!(requests(&outputs).len(), 1);
    let accepted = |upto| ServerMessage::Accepted { upto, tag: Default::default() };
    assert_eq!(ends(&rig.receive(accepted(1))), [(1, None, true)]);
    assert_eq!(ends(&rig.receive(accepted(2))), [(2, None, true)]);
}

/// While the connection is away, timeouts and cancels go on; the broker is not asked for what is over.
#[test]
fn the_time_away_counts() {
    let mut rig = Rig::ready(named());
    let cancelled = rig.request(plain(), 1);
    rig.request(RequestSpec { timeout: ms(10), ..plain() }, 2);
    rig.outputs();
    rig.sent(RequestFlags::default(), 3);
    rig.lose("cut");
    rig.client.cancel(cancelled, rig.now);
    assert_eq!(ends(&rig.outputs()), [(1, Some(Code::Cancelled), true)]);
    let outputs = rig.pass(ms(600));
    assert_eq!(ends(&outputs), [(2, Some(Code::Timeout), true)]);
    let outputs = come_back_from_pause(&mut rig, 5, 1);
    let expected =
        Resume { boot: 5, sequence: 0, open: vec![3], held_boot: 0, held: vec![], unclaimed: false };
    assert_eq!(outputs, [Output::Send(ClientMessage::Resume(expected))]);
}

/// Outcomes are acknowledged many at a time, or after a while.
#[test]
fn outcomes_are_acknowledged() {
    let mut rig = Rig::ready(named());
    for number in 1..=63 {
        rig.sent(RequestFlags::default(), number);
        assert!(acknowledged(&rig.receive(outcome(number, number))).is_empty());
    }
    rig.sent(RequestFlags::default(), 64);
    assert_eq!(acknowledged(&rig.receive(outcome(64, 64))), [64]);
    rig.sent(RequestFlags::default(), 65);
    rig.receive(outcome(65, 65));
    assert_eq!(acknowledged(&rig.pass(ms(60))), [65]);
    assert!(acknowledged(&rig.pass(ms(600))).is_empty());
}

/// A client that is closed says goodbye, so that its session is not waited for.
#[test]
fn goodbye() {
    let mut rig = Rig::ready(named());
    rig.client.close();
    assert_eq!(count(&rig.outputs(), &Output::Send(ClientMessage::Goaway)), 1);
}

/// A durable request that a leaving server did not take goes to the next one with all its attempts: also with those that it
/// did not name.
#[test]
fn what_a_leaving_server_did_not_take_keeps_its_attempts() {
    let mut rig = Rig::ready(named());
    for (token, max_attempts) in [(1, 0), (2, 3)] {
        let flags = RequestFlags::DURABLE;
        rig.request(RequestSpec { max_attempts, flags, ..plain() }, token);
    }
    rig.outputs();
    rig.receive(ServerMessage::Goaway { grace_ms: 10_000, reason: "restart".into() });
    for (number, sequence) in [(1, 1), (2, 2)] {
        let code = Some(Code::Draining);
        let refused = ServerMessage::Reply(Reply { number, sequence, code, ..Reply::default() });
        assert_eq!(ends(&rig.receive(refused)), []);
    }
    rig.receive(ServerMessage::Pong(1));
    let outputs = come_back_from_pause(&mut rig, 6, 1);
    let again: Vec<_> = requests(&outputs).iter().map(|request| request.max_attempts).collect();
    assert_eq!(again, [0, 3]);
}

/// What a leaving server did not take, or gave up on, goes to the next one, before what was made later and with the attempts
/// that are left; without any left, and for a broadcast, `draining` is the outcome.
#[test]
fn what_a_leaving_server_did_not_take() {
    let mut rig = Rig::ready(named());
    for (token, max_attempts) in [(1, 0), (2, 0), (3, 3), (4, 1)] {
        rig.request(RequestSpec { max_attempts, ..plain() }, token);
    }
    rig.outputs();
    rig.sent(RequestFlags::SEND, 5);
    rig.sent(RequestFlags::BROADCAST, 6);
    rig.receive(ServerMessage::Goaway { grace_ms: 10_000, reason: "restart".into() });
    rig.request(plain(), 7);
    let refused = |number, attempt, sequence| {
        ServerMessage::Reply(Reply {
            number,
            attempt,
            sequence,
            code: Some(Code::Draining),
            ..Reply::default()
        })
    };
    for (number, attempt, sequence) in [(2, 0, 1), (1, 0, 2), (3, 2, 3), (5, 0, 4)] {
        assert_eq!(ends(&rig.receive(refused(number, attempt, sequence))), []);
    }
    let draining = Some(Code::Draining);
    assert_eq!(ends(&rig.receive(refused(4, 1, 5))), [(4, draining, true)]);
    assert_eq!(ends(&rig.receive(refused(6, 0, 6))), [(6, draining, true)]);
    let outputs = rig.receive(ServerMessage::Pong(1));
    assert_eq!(count(&outputs, &Output::Disconnect), 1, "nothing is open here: {outputs:?}");
    let outputs = come_back_from_pause(&mut rig, 6, 1);
    let again: Vec<_> = requests(&outputs).iter().map(|request| request.max_attempts).collect();
    assert_eq!(again, [1, 1, 1, 1, 0], "1, 2, 3, 5 and 7");
    let accepted = ServerMessage::Accepted { upto: 10, tag: Default::default() };
    assert_eq!(ends(&rig.receive(accepted)), [(5, None, true)]);
    assert_eq!(ends(&rig.receive(outcome(7, 1))), [(1, None, true)]);
}
