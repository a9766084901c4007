//! Sessions: what goes on while a client is away, and what it is told when it is back.

use ringpost_protocol::message::{OpenState, Resume, Welcome};

use super::*;

/// Instances.
const ME: u64 = 1;
const OTHER: u64 = 2;

impl Stage {
    /// The next connection of the session "me" and its only client: its number, epoch and the next request's number.
    fn come(&mut self) -> (ConnId, u64, u64) {
        let (conn, welcome) = self.come_as(ME, self.connections + 1);
        (conn, welcome.epoch, welcome.next_number)
    }

    /// That connection of that instance, under the name "me".
    fn come_as(&mut self, instance: u64, connection: u32) -> (ConnId, Welcome) {
        let conn = self.greet(hello("me", instance, connection));
        match self.take(conn).swap_remove(0) {
            ServerMessage::Welcome(welcome) => (conn, welcome),
            other => panic!("{other:?}"),
        }
    }

    fn greet(&mut self, hello: ClientMessage) -> ConnId {
        let conn = ConnId(self.connections);
        self.connections += 1;
        self.input(Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() });
        self.say(conn, hello);
        conn
    }

    /// A hello of the session "me" that is refused as one that comes late.
    fn come_late(&mut self, instance: u64, connection: u32) {
        let closed = self.closed.len();
        let conn = self.greet(hello("me", instance, connection));
        let said = self.take(conn);
        assert!(
            matches!(&said[..], [ServerMessage::Error(report)] if report.code == Code::SessionTaken),
            "{said:?}"
        );
        assert_eq!(self.closed[closed..], [(conn, CloseReason::Refused(Code::SessionTaken))]);
        self.leave(conn);
    }

    fn resume(&mut self, conn: ConnId, sequence: u64, open: &[u64]) -> Vec<(u64, OpenState)> {
        let unclaimed = open.is_empty();
        let resume =
            Resume { boot: 7, sequence, open: open.to_vec(), held_boot: 7, held: vec![9], unclaimed };
        self.say(conn, ClientMessage::Resume(resume));
        let at = self
            .sent
            .iter()
            .position(|(to, message)| *to == conn && matches!(message, ServerMessage::Resumed { .. }));
        match self.sent.remove(at.expect("an answer")) {
            (_, ServerMessage::Resumed { open, forgotten, .. }) => {
                assert_eq!(forgotten, [9], "plain deliveries do not outlive their connection");
                open
            }
            _ => unreachable!(),
        }
    }

    fn leave(&mut self, conn: ConnId) {
        self.input(Input::Closed { conn });
    }
}

/// Requests go on while their requester is away; it is told of each, gets the outcomes that it missed, once, in order.
#[test]
fn a_client_comes_back() {
    let mut stage = Stage::new(Config::default());
    let handler = stage.handler("sum", 9);
    let (conn, epoch, next) = stage.come();
    assert_eq!((epoch, next), (1, 1));
    for number in 1..=4 {
        stage.request(conn, number, |_| {});
    }
    let held = stage.deliveries(handler);
    stage.answer(handler, held[0].delivery, Verdict::Reply);
    assert_eq!(stage.codes(conn), [(1, None)]);
    stage.leave(conn);
    stage.answer(handler, held[1].delivery, Verdict::Reply);
    stage.answer(handler, held[2].delivery, Verdict::Error);
    let (conn, epoch, next) = stage.come();
    assert_eq!((epoch, next), (2, 5));
    stage.answer(handler, held[3].delivery, Verdict::Reply);
    assert_eq!(stage.codes(conn), [], "nothing before it has said what it has");
    let states = stage.resume(conn, 1, &[2, 3, 4, 5]);
    let outcome = OpenState::Outcome;
    assert_eq!(states, [(2, outcome), (3, outcome), (4, outcome), (5, OpenState::NeverSeen)]);
    let replies = stage.replies(conn);
    let told: Vec<_> = replies.iter().map(|reply| (reply.number, reply.code, reply.sequence)).collect();
    assert_eq!(told, [(2, None, 2), (3, Some(Code::Remote), 3), (4, None, 4)]);
    stage.request(conn, 5, |_| {});
    stage.leave(conn);
    let (conn, ..) = stage.come();
    assert_eq!(stage.resume(conn, 4, &[5]), [(5, OpenState::Running)]);
    let held = stage.deliveries(handler);
    stage.answer(handler, held[0].delivery, Verdict::Reply);
    assert_eq!(stage.codes(conn), [(5, None)]);
    assert_eq!(stage.broker.counters().outcomes_replayed, 3);
}

/// What a returning client does not ask for, it gave up: the handler is told. Sends go on.
#[test]
fn what_is_not_asked_for_is_called_back() {
    let mut stage = Stage::new(Config::default());
    let handler = stage.handler("sum", 9);
    let (conn, ..) = stage.come();
    stage.request(conn, 1, |_| {});
    stage.request(conn, 2, send);
    stage.leave(conn);
    stage.take(handler);
    let (conn, ..) = stage.come();
    stage.resume(conn, 0, &[]);
    assert!(matches!(stage.take(handler)[..], [ServerMessage::Cancel { .. }]));
    assert!(matches!(stage.take(conn)[..], [ServerMessage::Accepted { upto: 2, .. }]));
    assert_eq!(stage.broker.open_requests(), 1);
}

/// A session is forgotten a while after its client went; then nothing is left of it.
#[test]
fn lingering_ends() {
    let mut stage = Stage::new(Config { default_timeout: Duration::from_secs(600), ..Config::default() });
    let handler = stage.handler("sum", 9);
    let (conn, ..) = stage.come();
    stage.request(conn, 1, |_| {});
    stage.leave(conn);
    stage.say(handler, ClientMessage::Ping(1));
    for _ in 0..59 {
        stage.pass(Duration::from_secs(1));
        stage.say(handler, ClientMessage::Ping(1));
    }
    assert_eq!(stage.broker.open_requests(), 1);
    stage.pass(Duration::from_secs(2));
    assert_eq!((stage.broker.open_requests(), stage.broker.counters().sessions_forgotten), (0, 1));
    assert!(matches!(stage.take(handler).last(), Some(ServerMessage::Cancel { .. })));
    let (conn, epoch, _) = stage.come();
    assert_eq!(epoch, 1);
    assert_eq!(stage.resume(conn, 0, &[1]), [(1, OpenState::Lost)]);
}

/// A newer connection takes the session with all that is open in it; the older one is told and closed.
#[test]
fn a_session_is_taken_over() {
    let mut stage = Stage::new(Config::default());
    let handler = stage.handler("sum", 9);
    let (older, ..) = stage.come();
    stage.request(older, 1, |_| {});
    let (newer, epoch, _) = stage.come();
    assert_eq!(epoch, 2);
    assert_eq!(stage.closed, [(older, CloseReason::Refused(Code::SessionTaken))]);
    assert_eq!(stage.resume(newer, 0, &[1]), [(1, OpenState::Running)]);
    stage.leave(older);
    let held = stage.deliveries(handler);
    stage.answer(handler, held[0].delivery, Verdict::Reply);
    assert_eq!(stage.codes(newer), [(1, None)]);
    assert_eq!(stage.codes(older), []);
}

/// A client gives up on a connection whose hello is still under way, and connects again: when the old hello arrives, the
/// session stays with the newer connection, while that is there and while it is lost.
#[test]
fn a_client_does_not_take_its_own_session_away() {
    let mut stage = Stage::new(Config::default());
    let handler = stage.handler("sum", 9);
    let (conn, welcome) = stage.come_as(ME, 3);
    stage.request(conn, 1, |_| {});
    stage.come_late(ME, 2);
    stage.come_late(ME, 3);
    stage.leave(conn);
    stage.come_late(ME, 1);
    let (conn, returned) = stage.come_as(ME, 4);
    assert_eq!((returned.epoch, returned.tenure), (2, welcome.tenure), "nobody has had it meanwhile");
    assert_eq!(stage.resume(conn, 0, &[1]), [(1, OpenState::Running)]);
    let held = stage.deliveries(handler);
    stage.answer(handler, held[0].delivery, Verdict::Reply);
    assert_eq!(stage.codes(conn), [(1, None)]);
    assert_eq!(stage.broker.counters().sessions_taken, 0);
}

/// Two living processes under one name do not mix up their numbers: the one that comes back is not told of the other one's
/// requests, nor of its own, which the other one's had called back.
#[test]
fn two_processes_under_one_name_do_not_mix_their_numbers() {
    let mut stage = Stage::new(Config::default());
    let handler = stage.handler("sum", 9);
    let (mine, welcome) = stage.come_as(ME, 1);
    stage.request(mine, 1, |_| {});
    stage.leave(mine);
    let (others, taken) = stage.come_as(OTHER, 1);
    assert_ne!(welcome.tenure, taken.tenure);
    stage.request(others, 2, |_| {});
    let held = stage.deliveries(handler);
    stage.leave(others);
    stage.answer(handler, held[1].delivery, Verdict::Reply);
    let (mine, again) = stage.come_as(ME, 2);
    assert!(again.tenure != welcome.tenure && again.tenure != taken.tenure, "it is not what it was");
    let lost = OpenState::Lost;
    assert_eq!(stage.resume(mine, 0, &[1, 2, 3]), [(1, lost), (2, lost), (3, lost)]);
    assert_eq!(stage.codes(mine), [], "that reply is the other one's");
    stage.request(mine, again.next_number, |_| {});
    let held = stage.deliveries(handler);
    stage.answer(handler, held[0].delivery, Verdict::Reply);
    assert_eq!(stage.codes(mine), [(3, None)]);
}

/// A session that another process has taken over is taken back by a later hello of the first one, and by no earlier one.
#[test]
fn two_processes_fight_for_a_name() {
    let mut stage = Stage::new(Config::default());
    let (mine, _) = stage.come_as(ME, 4);
    let (others, _) = stage.come_as(OTHER, 1);
    stage.come_late(ME, 3);
    stage.come_late(ME, 4);
    let (again, _) = stage.come_as(ME, 5);
    stage.come_late(OTHER, 1);
    let taken: Vec<_> = stage.closed.iter().map(|(conn, _)| *conn).collect();
    assert!(taken.contains(&mine) && taken.contains(&others) && !taken.contains(&again));
    assert_eq!(stage.broker.counters().sessions_taken, 2);
}

/// However many processes fight for a name, what is remembered of them is bounded.
#[test]
fn a_crowd_under_one_name() {
    let mut stage = Stage::new(Config::default());
    for instance in 1..=99 {
        stage.come_as(instance, 1);
    }
    for instance in [92, 98, 99] {
        stage.come_late(instance, 1);
    }
    assert_eq!(stage.come_as(1, 1).1.epoch, 100, "that one is forgotten");
}

/// Another process may ask for what is kept, with nothing open of its own; that does not make its numbers known.
#[test]
fn an_heir_asks_with_nothing_open() {
    let mut stage = Stage::new(Config::default());
    let handler = stage.handler("sum", 9);
    let (conn, ..) = stage.come();
    stage.request(conn, 1, |_| {});
    stage.leave(conn);
    let held = stage.deliveries(handler);
    stage.answer(handler, held[0].delivery, Verdict::Reply);
    let (heir, _) = stage.come_as(OTHER, 1);
    assert_eq!(stage.resume(heir, 0, &[1]), [(1, OpenState::Lost)]);
    assert_eq!(stage.codes(heir), []);
    assert_eq!(stage.resume(heir, 0, &[]), []);
    assert_eq!(stage.codes(heir), [(1, None)]);
}

/// Who comes under a name says which instance it is, and for the how manieth time.
#[test]
fn a_name_alone_says_not_who_speaks() {
    let mut stage = Stage::new(Config::default());
    for (instance, connection) in [(0, 0), (0, 1), (1, 0)] {
        let conn = stage.greet(hello("me", instance, connection));
        assert!(matches!(
            &stage.take(conn)[..],
            [ServerMessage::Error(report)] if report.code == Code::Malformed
        ));
    }
    assert_eq!((stage.broker.sessions.len(), stage.closed.len()), (0, 3));
}

/// When a leg's outcome had to make room, its broadcast can never end for its requester: it is lost, and what still runs of
/// it is called back.
#[test]
fn a_broadcast_without_one_of_its_legs_is_lost() {
    for still_running in [false, true] {
        let mut stage = Stage::new(Config { outcome_limit_bytes: 2000, ..Config::default() });
        let handlers = [stage.handler("sum", 99), stage.handler("sum", 99), stage.handler("sum", 99)];
        let (conn, ..) = stage.come();
        stage.request(conn, 1, |request| request.flags = RequestFlags::BROADCAST);
        stage.leave(conn);
        let held = handlers.map(|handler| stage.deliveries(handler)[0].delivery);
        let large = "x".repeat(900);
        for leg in 0..if still_running { 2 } else { 3 } {
            stage.answer_with(handlers[leg], held[leg], Verdict::Reply, &large);
        }
        assert!(stage.broker.counters().outcomes_dropped > 0);
        let (conn, ..) = stage.come();
        assert_eq!(stage.resume(conn, 0, &[1]), [(1, OpenState::Lost)]);
        let called_back = stage.take(handlers[2]).iter().any(|it| matches!(it, ServerMessage::Cancel { .. }));
        assert_eq!(called_back, still_running);
        assert_eq!(stage.broker.open_requests(), 0);
    }
}

/// What ends with its requester's connection is not first given to another handler, because one on the same connection
/// held it.
#[test]
fn what_ends_with_its_connection_is_not_redispatched() {
    let mut stage = Stage::new(Config::default());
    let both = stage.handler("sum", 9);
    stage.request(both, 1, |request| request.max_attempts = 2);
    assert_eq!(stage.deliveries(both).len(), 1);
    let other = stage.handler("sum", 9);
    stage.take(other);
    stage.leave(both);
    assert_eq!(stage.take(other), []);
    assert_eq!((stage.broker.open_requests(), stage.broker.open_deliveries()), (0, 0));
}

/// A new process under an old name does not resume: what the older one had open is called back, with its outcomes.
#[test]
fn a_new_process_begins_anew() {
    let mut stage = Stage::new(Config::default());
    let handler = stage.handler("sum", 9);
    let (conn, ..) = stage.come();
    stage.request(conn, 1, |_| {});
    stage.request(conn, 2, |_| {});
    let held = stage.deliveries(handler);
    stage.leave(conn);
    stage.answer(handler, held[0].delivery, Verdict::Reply);
    let (conn, welcome) = stage.come_as(OTHER, 1);
    stage.request(conn, welcome.next_number, |_| {});
    let to_handler = stage.take(handler);
    assert!(
        matches!(to_handler[..], [ServerMessage::Cancel { .. }, ServerMessage::Deliver(_)]),
        "{to_handler:?}"
    );
    assert_eq!(stage.codes(conn), []);
    assert_eq!(stage.broker.open_requests(), 1);
}

/// Kept outcomes are released by acknowledgement and bounded; what had to make room is lost, and said to be.
#[test]
fn kept_outcomes_are_bounded() {
    let mut stage = Stage::new(Config { outcome_limit_bytes: 2000, ..Config::default() });
    let handler = stage.handler("sum", 99);
    let (conn, ..) = stage.come();
    let answer_all = |stage: &mut Stage| {
        for deliver in stage.deliveries(handler) {
            stage.answer(handler, deliver.delivery, Verdict::Reply);
        }
    };
    for number in 1..=5 {
        stage.request(conn, number, |_| {});
    }
    answer_all(&mut stage);
    stage.say(conn, ClientMessage::Acknowledge(Target::Number(5)));
    for number in 6..=25 {
        stage.request(conn, number, |_| {});
    }
    answer_all(&mut stage);
    let dropped = stage.broker.counters().outcomes_dropped;
    assert!((5..20).contains(&dropped), "{dropped} of 20");
    stage.leave(conn);
    let (conn, ..) = stage.come();
    let states = stage.resume(conn, 5, &(6..=25).collect::<Vec<_>>());
    let lost = states.iter().filter(|(_, state)| *state == OpenState::Lost).count() as u64;
    assert_eq!(lost, dropped);
    assert_eq!(stage.codes(conn).len() as u64, 20 - dropped);
}

/// Who says goodbye, or has no name, is not waited for; nor is anybody when the server leaves.
#[test]
fn sessions_that_end_at_once() {
    let mut stage = Stage::new(Config::default());
    stage.handler("sum", 9);
    let (conn, ..) = stage.come();
    stage.say(conn, ClientMessage::Goaway);
    stage.leave(conn);
    let nameless = stage.connect(Speaks::Binary);
    stage.request(nameless, 1, |_| {});
    stage.leave(nameless);
    assert_eq!((stage.broker.sessions.len(), stage.broker.open_requests()), (1, 0));
    let (conn, ..) = stage.come();
    stage.request(conn, 1, |_| {});
    stage.leave(conn);
    assert_eq!(stage.broker.open_requests(), 1);
    stage.input(Input::Drain { grace_ms: 1000 });
    assert!(stage.drained);
}

/// A retired handler that goes down after its action was registered anew hands its requests on all the same.
#[test]
fn a_retired_handlers_requests_reach_the_actions_heir() {
    let mut stage = Stage::new(Config::default());
    let (retired, requester) = (stage.handler("sum", 9), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |request| request.max_attempts = 2);
    stage.say(retired, ClientMessage::Deregister(Target::Number(1)));
    let heir = stage.handler("sum", 9);
    stage.leave(retired);
    assert_eq!(stage.deliveries(heir).len(), 1);
}
