//! A process under the name of an earlier one: what was kept for that one, and how long the broker must keep it.

use ringpost_protocol::message::{OpenState, Resume};

use super::{
    sessions::{acknowledged, come_back, come_back_from_pause, named, outcome, resumed},
    *,
};
use crate::{Unclaimed, UnclaimedKey};

/// A client that wants to have what an earlier process left, up to so many at once.
fn heir(max_unclaimed: usize) -> ClientConfig {
    ClientConfig { max_unclaimed, ..named() }
}

/// Connects to a broker that knows the session: numbers below 10 were used by an earlier process.
fn inherit(rig: &mut Rig) -> Vec<Output> {
    rig.client.connected(rig.now);
    rig.outputs();
    let ServerMessage::Welcome(welcome) = welcome() else { unreachable!() };
    let mut outputs = rig.receive(ServerMessage::Welcome(Welcome { epoch: 2, next_number: 10, ..welcome }));
    assert!(matches!(outputs.remove(0), Output::Event(Event::Connected { .. })));
    outputs
}

/// As [`inherit`], and the broker has answered the resume.
fn inherited(max_unclaimed: usize) -> Rig {
    let mut rig = Rig::new(heir(max_unclaimed));
    inherit(&mut rig);
    rig.receive(resumed(&[]));
    rig
}

fn accepted(upto: u64) -> ServerMessage {
    ServerMessage::Accepted { upto, tag: Default::default() }
}

fn unclaimed(outputs: &[Output]) -> Vec<&Unclaimed> {
    let mut found = Vec::new();
    for output in outputs {
        if let Output::Unclaimed(unclaimed) = output {
            found.push(unclaimed);
        }
    }
    found
}

/// The one unclaimed outcome that this message brings.
fn offered(rig: &mut Rig, message: ServerMessage) -> UnclaimedKey {
    let outputs = rig.receive(message);
    let [Output::Unclaimed(unclaimed)] = &outputs[..] else { panic!("{outputs:?}") };
    unclaimed.key
}

/// The heir resumes with nothing, gets what was kept, replies and errors, and its own requests go on as ever.
#[test]
fn an_heir_gets_what_was_kept() {
    let mut rig = Rig::new(heir(10));
    rig.request(plain(), 1);
    let expected = Resume { boot: 5, sequence: 0, open: vec![], held_boot: 0, held: vec![], unclaimed: true };
    assert_eq!(inherit(&mut rig), [Output::Send(ClientMessage::Resume(expected))], "own requests wait");
    let outputs = rig.receive(resumed(&[]));
    assert_eq!(requests(&outputs)[0].number, 10);
    let outputs = rig.receive(outcome(7, 21));
    let [kept] = unclaimed(&outputs)[..] else { panic!("{outputs:?}") };
    assert_eq!((kept.number, kept.result.as_ref().unwrap().payload()), (7, &b"3"[..]));
    let failed = Reply { number: 8, sequence: 22, code: Some(Code::Overloaded), ..Reply::default() };
    let outputs = rig.receive(ServerMessage::Reply(failed));
    assert_eq!(unclaimed(&outputs)[0].result.as_ref().unwrap_err().kind(), Code::Overloaded);
    assert_eq!(ends(&rig.receive(outcome(10, 23))), [(1, None, true)]);
    assert_eq!(rig.client.counters().late_replies, 0);
}

/// Who did not ask for it begins anew: no resume, and what comes all the same is nobody's.
#[test]
fn nothing_is_claimed_unasked() {
    let mut rig = Rig::new(named());
    assert_eq!(inherit(&mut rig), []);
    assert_eq!(rig.receive(outcome(7, 1)), []);
    // Nor is there anything to claim in a session that is new, or that has no name.
    for (config, epoch) in [(heir(10), 1), (ClientConfig { max_unclaimed: 10, ..config() }, 2)] {
        let mut rig = Rig::new(config);
        rig.client.connected(rig.now);
        rig.outputs();
        let ServerMessage::Welcome(welcome) = welcome() else { unreachable!() };
        assert_eq!(rig.receive(ServerMessage::Welcome(Welcome { epoch, ..welcome })).len(), 1);
    }
}

/// The acknowledgement never passes one that nobody has taken, whatever is taken behind it and comes after it.
#[test]
fn the_untaken_is_not_acknowledged() {
    let mut rig = inherited(10);
    let [first, second, third] = [1, 2, 3].map(|sequence| offered(&mut rig, outcome(sequence, sequence)));
    let own = rig.sent(RequestFlags::default(), 1);
    rig.receive(outcome(own, 4));
    assert!(acknowledged(&rig.pass(ms(200))).is_empty());
    assert!(rig.client.claim(second, rig.now));
    assert!(acknowledged(&rig.pass(ms(200))).is_empty());
    assert!(rig.client.claim(first, rig.now));
    assert!(!rig.client.claim(first, rig.now), "that is not news");
    assert_eq!(acknowledged(&rig.pass(ms(200))), [2]);
    assert!(rig.client.claim(third, rig.now));
    assert_eq!(acknowledged(&rig.pass(ms(200))), [4], "with what is behind it");
}

/// Over a reconnect the broker is told up to where all is taken; what comes again for that counts once.
#[test]
fn a_reconnect_keeps_the_untaken() {
    let mut rig = inherited(10);
    let first = offered(&mut rig, outcome(1, 1));
    let second = offered(&mut rig, outcome(2, 2));
    let own = rig.sent(RequestFlags::default(), 1);
    assert_eq!(ends(&rig.receive(outcome(own, 3))), [(1, None, true)]);
    rig.client.claim(first, rig.now);
    let outputs = come_back(&mut rig, 5, 1);
    let expected = Resume { boot: 5, sequence: 1, open: vec![], held_boot: 0, held: vec![], unclaimed: true };
    assert_eq!(outputs, [Output::Send(ClientMessage::Resume(expected))]);
    rig.receive(resumed(&[]));
    assert_eq!(rig.receive(outcome(2, 2)), [], "it is here, and not taken yet");
    assert_eq!(rig.receive(outcome(own, 3)), []);
    assert!(rig.client.claim(second, rig.now));
    assert_eq!(acknowledged(&rig.pass(ms(200))), [3]);
}

/// So many wait at most. The rest stays with the broker, and comes with the next connection.
#[test]
fn too_many_stay_with_the_broker() {
    let mut rig = inherited(2);
    let keys = [1, 2].map(|sequence| offered(&mut rig, outcome(sequence, sequence)));
    for sequence in [3, 4] {
        assert_eq!(rig.receive(outcome(sequence, sequence)), []);
    }
    for key in keys {
        rig.client.claim(key, rig.now);
    }
    assert_eq!(rig.receive(outcome(5, 5)), [], "there is room, but they come in order");
    assert_eq!(acknowledged(&rig.pass(ms(200))), [2]);
    let outputs = come_back(&mut rig, 5, 1);
    assert!(matches!(&outputs[..], [Output::Send(ClientMessage::Resume(resume))] if resume.sequence == 2));
    rig.receive(resumed(&[]));
    let keys = [3, 4].map(|sequence| offered(&mut rig, outcome(sequence, sequence)));
    for key in keys {
        rig.client.claim(key, rig.now);
    }
    assert_eq!(acknowledged(&rig.pass(ms(200))), [4], "the fifth came before, but was not given out");
    let key = offered(&mut rig, outcome(5, 5));
    rig.receive(accepted(9));
    rig.client.claim(key, rig.now);
    assert_eq!(acknowledged(&rig.pass(ms(200))), [5]);
}

/// A broker that restarted has forgotten what it had kept: an old claim says nothing about its new outcomes.
#[test]
fn claims_end_with_the_brokers_memory() {
    let mut rig = inherited(10);
    let old = offered(&mut rig, outcome(1, 1));
    rig.lose("cut");
    rig.request(plain(), 1);
    let outputs = come_back_from_pause(&mut rig, 6, 2);
    assert!(matches!(&outputs[..], [Output::Send(ClientMessage::Resume(resume))] if resume.boot == 6));
    rig.receive(resumed(&[]));
    assert!(!rig.client.claim(old, rig.now));
    assert!(acknowledged(&rig.pass(ms(200))).is_empty());
}

/// What the heir had open itself is lost or sent again, as with any broker that does not know it.
#[test]
fn an_heirs_own_requests_at_another_broker() {
    let mut rig = inherited(10);
    let own = rig.sent(RequestFlags::default(), 1);
    rig.lose("cut");
    let outputs = come_back_from_pause(&mut rig, 6, 2);
    assert_eq!(ends(&outputs), [(1, Some(Code::ConnectionLost), true)]);
    assert_eq!(rig.receive(resumed(&[(own, OpenState::Lost)])), []);
}

/// A restarted broker has this process's own numbers in its log, beside those of earlier ones: an outcome goes to the
/// request that waits for it, or to nobody if it was told before, and only what an earlier process left is unclaimed.
#[test]
fn own_outcomes_are_not_unclaimed_after_a_restart() {
    let mut rig = inherited(10);
    let told = rig.sent(RequestFlags::DURABLE, 1);
    let waits = rig.sent(RequestFlags::DURABLE, 2);
    assert_eq!(ends(&rig.receive(outcome(told, 1))), [(1, None, true)]);
    rig.lose("cut");
    while !matches!(rig.pass(ms(100)).last(), Some(Output::Connect)) {}
    rig.client.connected(rig.now);
    rig.outputs();
    let ServerMessage::Welcome(welcome) = welcome() else { unreachable!() };
    let next_number = waits + 1;
    rig.receive(ServerMessage::Welcome(Welcome { boot: 6, epoch: 2, next_number, ..welcome }));
    rig.receive(resumed(&[(waits, OpenState::Running)]));
    offered(&mut rig, outcome(7, 1));
    assert_eq!(rig.receive(outcome(told, 2)), [], "it has it");
    assert_eq!(ends(&rig.receive(outcome(waits, 3))), [(2, None, true)]);
}

/// A client that closes says goodbye only when all is taken: else the session waits for the next process.
#[test]
fn what_is_untaken_outlives_the_client() {
    let goodbyes = |rig: &mut Rig| {
        rig.client.close();
        count(&rig.outputs(), &Output::Send(ClientMessage::Goaway))
    };
    let mut rig = inherited(10);
    assert_eq!(goodbyes(&mut rig), 0, "more may be on its way");
    for (claimed, goodbye) in [(false, 0), (true, 1)] {
        let mut rig = inherited(10);
        let key = offered(&mut rig, outcome(1, 1));
        rig.receive(accepted(9));
        if claimed {
            rig.client.claim(key, rig.now);
        }
        assert_eq!(goodbyes(&mut rig), goodbye);
    }
}

/// What a durable request was comes with its reply, and with no other.
#[test]
fn what_was_asked_comes_with_the_reply() {
    let mut rig = inherited(10);
    let content = Content::from_parts(b"mail", b"", b"hh", b"");
    assert_eq!(rig.receive(ServerMessage::Asked { number: 7, tag: Default::default(), content }), []);
    let outputs = rig.receive(outcome(7, 21));
    let asked = unclaimed(&outputs)[0].asked.as_ref().unwrap();
    assert_eq!((asked.name(), asked.headers()), (&b"mail"[..], &b"hh"[..]));
    let outputs = rig.receive(outcome(8, 22));
    assert_eq!(unclaimed(&outputs)[0].asked, None);
}

/// After a restart of the server a durable request of one's own, whose number lies below those that the server begins with, is
/// still one's own.
#[test]
fn an_own_request_is_not_unclaimed_after_a_restart() {
    let mut rig = inherited(10);
    let own = rig.sent(RequestFlags::DURABLE, 1);
    rig.client.disconnected("gone", rig.now);
    rig.outputs();
    while !matches!(rig.pass(ms(100)).last(), Some(Output::Connect)) {}
    rig.client.connected(rig.now);
    rig.outputs();
    let ServerMessage::Welcome(welcome) = welcome() else { unreachable!() };
    let welcome = Welcome { boot: 6, epoch: 2, next_number: own + 1, ..welcome };
    let outputs = rig.receive(ServerMessage::Welcome(welcome));
    let Some(Output::Send(ClientMessage::Resume(resume))) = outputs.last() else { panic!("{outputs:?}") };
    assert_eq!((resume.boot, &resume.open[..], resume.unclaimed), (5, &[own][..], true));
    rig.receive(resumed(&[(own, OpenState::Outcome)]));
    assert_eq!(ends(&rig.receive(outcome(own, 1))), [(1, None, true)]);
    assert_eq!(unclaimed(&rig.receive(outcome(own - 1, 2))).len(), 1);
}
