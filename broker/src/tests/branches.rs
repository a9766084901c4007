//! Broadcasts that go to peers too: one branch for each, the sum over all of them, and every leg ends once.

use ringpost_protocol::message::{OpenState, Resume};

use super::*;

impl Stage {
    fn counted(&mut self, conn: ConnId, delivery: u64, expected: u32) {
        self.say(conn, ClientMessage::Legs { delivery, expected });
    }

    fn leg(&mut self, conn: ConnId, delivery: u64, verdict: Verdict) {
        let content = Content::from_payload("leg");
        self.say(conn, ClientMessage::Leg(Answer { delivery, sequence: 0, verdict, content }));
    }

    fn one_delivery(&mut self, conn: ConnId) -> u64 {
        let [delivery] = &self.deliveries(conn)[..] else { panic!("one delivery to {conn}") };
        assert!(delivery.flags.has(RequestFlags::BROADCAST));
        delivery.delivery
    }

    /// How many legs the requester was told of, then which leg ended how, of how many.
    fn heard(&mut self, conn: ConnId) -> (Vec<u32>, Vec<(u32, Option<Code>)>) {
        let (mut told, mut legs, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for message in self.take(conn) {
            match message {
                ServerMessage::Legs { expected, .. } => {
                    assert!(legs.is_empty(), "it is said first");
                    told.push(expected);
                }
                ServerMessage::Reply(reply) => {
                    let leg = reply.leg.expect("it is a leg");
                    legs.push(leg);
                    ends.push((leg.index, reply.code));
                }
                _ => {}
            }
        }
        assert!(told.iter().all(|told| legs.iter().all(|leg| leg.expected == *told)), "{told:?} {legs:?}");
        (told, ends)
    }

    fn nothing_is_left(&self) {
        assert_eq!((self.broker.open_requests(), self.broker.open_deliveries()), (0, 0));
        assert_eq!(self.broker.kept_bytes, 0);
    }
}

const LOST: Option<Code> = Some(Code::HandlerLost);
const BUSY: Option<Code> = Some(Code::Overloaded);

/// The requester is told the sum when every peer has said its part; outcomes that came before follow it, in their order.
/// A branch holds its peer's credit until its last leg.
#[test]
fn the_sum_is_told_when_all_have_counted() {
    let mut stage = Stage::new(Config::default());
    let (own, b, c) = (stage.handler("sum", 9), stage.far("b", 1), stage.far("c", 1));
    let requester = stage.connect(Speaks::Binary);
    stage.request(requester, 1, broadcast);
    let (here, at_b, at_c) = (stage.one_delivery(own), stage.one_delivery(b), stage.one_delivery(c));
    stage.answer(own, here, Verdict::Reply);
    stage.counted(b, at_b, 2);
    stage.leg(b, at_b, Verdict::Reply);
    assert_eq!(stage.heard(requester), (vec![], vec![]), "c has not said how many");
    stage.counted(c, at_c, 1);
    assert_eq!(stage.heard(requester), (vec![4], vec![(0, None), (1, None)]));
    stage.answer(c, at_c, Verdict::Error);
    assert_eq!(stage.heard(requester).1, [(2, Some(Code::Remote))]);
    stage.request(requester, 2, broadcast);
    assert!(stage.deliveries(b).is_empty(), "it has no credit until the last leg");
    stage.answer(b, at_b, Verdict::Failed(Code::HandlerLost));
    assert_eq!(stage.replies(requester)[0].leg.map(|leg| leg.index), Some(3));
    assert_eq!(stage.deliveries(b).len(), 1);
    assert_eq!(stage.broker.counters().forwarded, 4, "a branch is one");
}

/// With handlers of this server only, the number is told at once; what came from a peer stays here.
#[test]
fn own_handlers_are_counted_at_once() {
    let mut stage = Stage::new(Config::default());
    let (far, asking) = (stage.far("b", 9), stage.peer("c"));
    let own = stage.handler("sum", 9);
    stage.request(asking, 1, broadcast);
    assert!(stage.deliveries(far).is_empty());
    assert_eq!(stage.heard(asking).0, [1]);
    let here = stage.one_delivery(own);
    stage.answer(own, here, Verdict::Reply);
    stage.input(Input::Closed { conn: far });
    let requester = stage.connect(Speaks::Binary);
    stage.request(requester, 1, broadcast);
    assert_eq!(stage.heard(requester).0, [1]);
}

/// Where two links lead to the same server, it is asked once, on one that has credit.
#[test]
fn a_server_is_asked_once() {
    let mut stage = Stage::new(Config::default());
    stage.input(Input::Link { conn: ConnId(0), report: Box::default() });
    let (dialled, dialling) = (stage.far("b", 1), stage.far("b", 1));
    let requester = stage.connect(Speaks::Binary);
    for number in 1..=2 {
        stage.request(requester, number, broadcast);
    }
    for far in [dialled, dialling] {
        let delivery = stage.one_delivery(far);
        stage.counted(far, delivery, 1);
        stage.answer(far, delivery, Verdict::Reply);
    }
    assert_eq!(stage.codes(requester), [(1, None), (2, None)]);
    stage.nothing_is_left();
}

/// A peer that has nobody any more, or is leaving, is no leg; if that is all, nobody handles it. One that has not asked whom it
/// has is a leg that says why.
#[test]
fn who_declines() {
    for code in [Code::NoHandler, Code::Draining] {
        let mut stage = Stage::new(Config::default());
        let (far, requester) = (stage.far("b", 9), stage.connect(Speaks::Binary));
        stage.request(requester, 1, broadcast);
        let there = stage.one_delivery(far);
        stage.answer(far, there, Verdict::Declined(code));
        let reply = stage.replies(requester).remove(0);
        assert_eq!((reply.code, reply.leg, reply.attempt), (Some(Code::NoHandler), None, 0));
        let own = stage.handler("sum", 9);
        stage.request(requester, 2, broadcast);
        let (here, there) = (stage.one_delivery(own), stage.one_delivery(far));
        stage.answer(own, here, Verdict::Reply);
        stage.answer(far, there, Verdict::Declined(code));
        assert_eq!(stage.heard(requester), (vec![1], vec![(0, None)]));
        stage.nothing_is_left();
    }
    for code in [Code::Overloaded, Code::Forbidden] {
        let mut stage = Stage::new(Config::default());
        let (far, requester) = (stage.far("b", 9), stage.connect(Speaks::Binary));
        stage.request(requester, 1, broadcast);
        let there = stage.one_delivery(far);
        stage.answer(far, there, Verdict::Declined(code));
        assert_eq!(stage.heard(requester), (vec![1], vec![(0, Some(code))]));
        stage.nothing_is_left();
    }
}

/// A peer that does not say in time how many it asked is one leg, and is called back; so it is when the requester's time is
/// over before. What it says later is dropped, and its credit comes back with its answer.
#[test]
fn who_does_not_count() {
    for (timeout_ms, code) in [(10_000, BUSY), (500, Some(Code::Timeout))] {
        let mut stage = Stage::new(Config::default());
        let (own, far, requester) =
            (stage.handler("sum", 9), stage.far("b", 1), stage.connect(Speaks::Binary));
        stage.request(requester, 1, |request| {
            broadcast(request);
            request.timeout_ms = timeout_ms;
        });
        let (here, there) = (stage.one_delivery(own), stage.one_delivery(far));
        stage.answer(own, here, Verdict::Reply);
        stage.pass(Duration::from_millis(499));
        assert_eq!(stage.heard(requester), (vec![], vec![]));
        stage.pass(Duration::from_millis(502));
        assert_eq!(stage.heard(requester), (vec![2], vec![(0, None), (1, code)]));
        let called_back = |message: &ServerMessage| matches!(message, ServerMessage::Cancel { .. });
        assert!(stage.take(far).iter().any(called_back));
        stage.counted(far, there, 3);
        stage.leg(far, there, Verdict::Reply);
        assert_eq!(stage.broker.open_deliveries(), 1);
        stage.answer(far, there, Verdict::Reply);
        assert_eq!(stage.broker.counters().late_answers, 2);
        assert_eq!(stage.heard(requester), (vec![], vec![]));
        stage.nothing_is_left();
    }
}

/// A lost link ends at once what is open of its branch: of one that has not counted, one leg.
#[test]
fn a_lost_link_ends_its_legs() {
    let mut stage = Stage::new(Config::default());
    let (b, c, requester) = (stage.far("b", 9), stage.far("c", 9), stage.connect(Speaks::Binary));
    stage.request(requester, 1, broadcast);
    let there = stage.one_delivery(b);
    stage.counted(b, there, 3);
    stage.leg(b, there, Verdict::Reply);
    stage.input(Input::Closed { conn: b });
    assert_eq!(stage.heard(requester), (vec![], vec![]));
    stage.input(Input::Closed { conn: c });
    assert_eq!(stage.heard(requester), (vec![4], vec![(0, None), (1, LOST), (2, LOST), (3, LOST)]));
    stage.nothing_is_left();
}

/// An answer for the whole branch ends all of its legs: with a peer's code each of them, with a handler's own answer that one,
/// and the others are lost.
#[test]
fn one_answer_ends_a_branch() {
    let expired = Some(Code::Expired);
    for (verdict, ends) in [
        (Verdict::Failed(Code::Expired), [expired, expired, expired]),
        (Verdict::Reply, [None, LOST, LOST]),
        (Verdict::Error, [Some(Code::Remote), LOST, LOST]),
    ] {
        let mut stage = Stage::new(Config::default());
        let (far, requester) = (stage.far("b", 9), stage.connect(Speaks::Binary));
        stage.request(requester, 1, broadcast);
        let there = stage.one_delivery(far);
        stage.leg(far, there, Verdict::Reply);
        assert_eq!(stage.broker.counters().late_answers, 1, "nobody looks at a leg before the count");
        stage.counted(far, there, 3);
        stage.counted(far, there, 9);
        stage.answer(far, there, verdict);
        let ends: Vec<_> = (0..).zip(ends).collect();
        assert_eq!(stage.heard(requester), (vec![3], ends));
        stage.nothing_is_left();
    }
}

/// A peer without credit is waited for as a handler is: it may get it in time, or is one leg that is `overloaded`.
#[test]
fn a_branch_waits_for_credit() {
    let mut stage = Stage::new(Config { leg_queue_limit: 1, ..Config::default() });
    let (far, requester) = (stage.far("b", 1), stage.connect(Speaks::Binary));
    stage.set_credit(far, 0);
    stage.request(requester, 1, broadcast);
    stage.request(requester, 2, broadcast);
    assert_eq!(stage.heard(requester), (vec![1], vec![(0, BUSY)]), "one waits already");
    stage.set_credit(far, 1);
    let there = stage.one_delivery(far);
    stage.counted(far, there, 1);
    assert_eq!(stage.heard(requester), (vec![1], vec![]));
    stage.request(requester, 3, broadcast);
    stage.pass(Duration::from_millis(1001));
    assert_eq!(stage.heard(requester), (vec![1], vec![(0, BUSY)]));
    stage.answer(far, there, Verdict::Reply);
    assert!(stage.deliveries(far).is_empty(), "the third was given up");
    assert_eq!(stage.heard(requester).1, [(0, None)]);
    stage.nothing_is_left();
}

/// Who cancels, or leaves, has each branch called back; what was held back goes with it.
#[test]
fn cancellation_reaches_branches() {
    for leaves in [false, true] {
        let mut stage = Stage::new(Config::default());
        let (own, b, c) = (stage.handler("sum", 9), stage.far("b", 9), stage.far("c", 9));
        let requester = stage.connect(Speaks::Binary);
        stage.request(requester, 1, broadcast);
        let (here, at_b, at_c) = (stage.one_delivery(own), stage.one_delivery(b), stage.one_delivery(c));
        stage.answer(own, here, Verdict::Reply);
        stage.counted(b, at_b, 2);
        if leaves {
            stage.input(Input::Closed { conn: requester });
        } else {
            stage.say(requester, ClientMessage::Cancel(Target::Number(1)));
            let cancelled = Some(Code::Cancelled);
            let ends = vec![(0, None), (1, cancelled), (2, cancelled), (3, cancelled)];
            assert_eq!(stage.heard(requester), (vec![4], ends));
        }
        for (far, delivery) in [(b, at_b), (c, at_c)] {
            let [ServerMessage::Cancel { delivery: called_back, .. }] = stage.take(far)[..] else {
                panic!("each is called back")
            };
            assert_eq!(called_back, delivery);
            stage.answer(far, delivery, Verdict::Cancelled);
        }
        stage.nothing_is_left();
        stage.pass(Duration::from_secs(2));
    }
}

/// A peer's claim of more legs than there can be is one leg, and nothing is made of the number.
#[test]
fn too_many_legs() {
    for claim in [(1 << 16) + 1, u32::MAX] {
        let mut stage = Stage::new(Config::default());
        let (far, requester) = (stage.far("b", 9), stage.connect(Speaks::Binary));
        stage.request(requester, 1, broadcast);
        let there = stage.one_delivery(far);
        stage.counted(far, there, claim);
        assert_eq!(stage.heard(requester), (vec![1], vec![(0, BUSY)]));
        stage.answer(far, there, Verdict::Cancelled);
        stage.nothing_is_left();
    }
}

/// Who is no peer does not say such things.
#[test]
fn only_peers_have_legs() {
    for one in [true, false] {
        let mut stage = Stage::new(Config::default());
        let (own, requester) = (stage.handler("sum", 9), stage.connect(Speaks::Binary));
        stage.request(requester, 1, broadcast);
        let here = stage.one_delivery(own);
        if one {
            stage.leg(own, here, Verdict::Reply)
        } else {
            stage.counted(own, here, 7)
        }
        assert_eq!(stage.closed, [(own, CloseReason::Refused(Code::Malformed))]);
        assert_eq!(stage.heard(requester), (vec![1], vec![(0, LOST)]));
    }
}

/// A send goes to each peer once, and nobody counts what becomes of it there.
#[test]
fn sends_have_one_leg_for_each_peer() {
    let mut stage = Stage::new(Config::default());
    let (own, far, requester) = (stage.handler("sum", 9), stage.far("b", 9), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |request| {
        request.flags = RequestFlags::SEND.with(RequestFlags::BROADCAST);
    });
    let (here, there) = (stage.one_delivery(own), stage.one_delivery(far));
    stage.answer(far, there, Verdict::Reply);
    stage.answer(own, here, Verdict::Reply);
    assert_eq!(stage.heard(requester), (vec![], vec![]));
    stage.nothing_is_left();
}

/// Outcomes are not held back while memory is short: then who has not counted is given up.
#[test]
fn outcomes_wait_only_while_there_is_room() {
    let mut stage = Stage::new(Config { memory_bytes: 40_000, ..Config::default() });
    let (own, far, requester) = (stage.handler("sum", 9), stage.far("b", 9), stage.connect(Speaks::Binary));
    let large = "x".repeat(30_000);
    for (number, payload) in [(1, &large[..100]), (2, &large[..])] {
        stage.request(requester, number, broadcast);
        let (here, there) = (stage.one_delivery(own), stage.one_delivery(far));
        stage.answer_with(own, here, Verdict::Reply, payload);
        let given_up = stage.heard(requester) == (vec![2], vec![(0, None), (1, BUSY)]);
        assert_eq!(given_up, payload.len() == large.len());
        stage.answer(far, there, Verdict::Reply);
        stage.take(requester);
    }
    stage.nothing_is_left();
}

/// A client that comes back while the sum is not known gets it, and what waited for it.
#[test]
fn outcomes_wait_over_a_reconnect() {
    let mut stage = Stage::new(Config::default());
    let (own, far) = (stage.handler("sum", 9), stage.far("b", 9));
    let come = |stage: &mut Stage, connection| {
        let conn = ConnId(stage.connections);
        stage.connections += 1;
        stage.input(Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() });
        stage.say(conn, hello("r", 7, connection));
        conn
    };
    let first = come(&mut stage, 1);
    stage.request(first, 1, broadcast);
    let (here, there) = (stage.one_delivery(own), stage.one_delivery(far));
    stage.answer(own, here, Verdict::Reply);
    stage.input(Input::Closed { conn: first });
    let again = come(&mut stage, 2);
    let boot = stage.broker.config.boot;
    stage.say(again, ClientMessage::Resume(Resume { boot, open: vec![1], ..Resume::default() }));
    let running = |message: &ServerMessage| matches!(message, ServerMessage::Resumed { open, .. } if open[..] == [(1, OpenState::Running)]);
    assert!(stage.take(again).iter().any(running));
    stage.counted(far, there, 1);
    stage.answer(far, there, Verdict::Reply);
    assert_eq!(stage.heard(again), (vec![2], vec![(0, None), (1, None)]));
}
