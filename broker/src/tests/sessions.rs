//! Sessions: what goes on while a client is away, and what it is told when it is back.

use ringpost_protocol::message::{OpenState, Resume};

use super::*;

impl Stage {
    /// A connection of the session "me": its number, epoch and the next request's number.
    fn come(&mut self) -> (ConnId, u64, u64) {
        let conn = ConnId(self.connections);
        self.connections += 1;
        self.input(Input::Opened { conn, speaks: Speaks::Binary });
        self.say(conn, ClientMessage::Hello(Hello { session: "me".into(), ..Hello::default() }));
        match self.take(conn).first() {
            Some(ServerMessage::Welcome(welcome)) => (conn, welcome.epoch, welcome.next_number),
            other => panic!("{other:?}"),
        }
    }

    fn resume(&mut self, conn: ConnId, sequence: u64, open: &[u64]) -> Vec<(u64, OpenState)> {
        let resume = Resume { boot: 7, sequence, open: open.to_vec(), held: vec![9] };
        self.say(conn, ClientMessage::Resume(resume));
        let at = self
            .sent
            .iter()
            .position(|(to, message)| *to == conn && matches!(message, ServerMessage::Resumed { .. }));
        match self.sent.remove(at.expect("an answer")) {
            (_, ServerMessage::Resumed { open, forgotten }) => {
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
    let (conn, _, next) = stage.come();
    stage.request(conn, next, |_| {});
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
