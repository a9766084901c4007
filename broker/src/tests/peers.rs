//! Links to other servers, from one core's side: who may be a peer, what goes there, and what becomes of it.

use ringpost_protocol::secure::Role;

use super::*;
use crate::Permissions;

const PEER: u64 = 0x5eed;

fn peer_hello(server_id: &'static str, instance: u64) -> ClientMessage {
    let speaker = Speaker { instance, connection: 1 };
    ClientMessage::Hello(Hello {
        peer: Some(server_id.into()),
        speaker,
        watch_receivers: true,
        ..Hello::default()
    })
}

impl Stage {
    pub(super) fn peer(&mut self, server_id: &'static str) -> ConnId {
        self.peer_as(server_id, PEER, Identity::default())
    }

    fn peer_as(&mut self, server_id: &'static str, instance: u64, identity: Identity) -> ConnId {
        let conn = ConnId(self.connections);
        self.connections += 1;
        self.input(Input::Opened { conn, speaks: Speaks::Binary, identity });
        self.say(conn, peer_hello(server_id, instance));
        conn
    }

    pub(super) fn far(&mut self, server_id: &'static str, credit: u32) -> ConnId {
        let conn = self.peer(server_id);
        self.register(conn, 1, "sum", credit);
        self.take(conn);
        conn
    }

    pub(super) fn set_credit(&mut self, conn: ConnId, credit: u32) {
        self.say(conn, ClientMessage::Credit { registration: 1, credit });
    }

    fn told(&mut self, conn: ConnId) -> Vec<String> {
        let text = |message| match message {
            ServerMessage::Receivers(list) => Some(String::from_utf8(list.to_vec()).unwrap()),
            _ => None,
        };
        self.take(conn).into_iter().filter_map(text).collect()
    }
}

/// Handlers of this server come first; what they have no credit for goes to the peer, and what nobody has credit for waits for
/// whoever is free first.
#[test]
fn own_handlers_first() {
    let mut stage = Stage::new(Config::default());
    let far = stage.far("b", 2);
    let (own, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    for number in 1..=5 {
        stage.request(requester, number, |_| {});
    }
    let (here, there) = (stage.deliveries(own), stage.deliveries(far));
    assert_eq!((here.len(), there.len()), (1, 2));
    assert_eq!(stage.broker.counters().forwarded, 2);
    stage.answer(far, there[0].delivery, Verdict::Reply);
    assert_eq!(stage.deliveries(far).len(), 1, "the fourth");
    stage.answer(own, here[0].delivery, Verdict::Reply);
    assert_eq!(stage.deliveries(own).len(), 1, "the fifth");
    assert_eq!(stage.codes(requester), [(2, None), (1, None)]);
}

/// The policy holds for peers among themselves as it does for handlers.
#[test]
fn peers_take_turns() {
    for (policy, expected) in [(Policy::RoundRobin, [2, 2]), (Policy::LeastBusy, [2, 2])] {
        let mut stage = Stage::new(Config { policy, ..Config::default() });
        let (one, other) = (stage.far("b", 9), stage.far("c", 9));
        let requester = stage.connect(Speaks::Binary);
        for number in 1..=4 {
            stage.request(requester, number, |_| {});
        }
        assert_eq!([stage.deliveries(one).len(), stage.deliveries(other).len()], expected, "{policy:?}");
    }
}

/// A peer that declines has not run it: no attempt is used up, the next one is asked, and each at most once. The last word is
/// the last one's.
#[test]
fn a_declined_request_goes_to_the_next() {
    let mut stage = Stage::new(Config::default());
    let (one, other) = (stage.far("b", 9), stage.far("c", 9));
    let requester = stage.connect(Speaks::Binary);
    stage.request(requester, 1, |_| {});
    let first = stage.deliveries(one).remove(0);
    stage.answer_with(one, first.delivery, Verdict::Declined(Code::Draining), "b is leaving");
    let second = stage.deliveries(other).remove(0);
    assert_eq!((first.attempt, second.attempt), (1, 1));
    assert_eq!(first.content.payload(), second.content.payload());
    stage.answer_with(other, second.delivery, Verdict::Declined(Code::NoHandler), "c has nobody");
    assert!(stage.deliveries(one).is_empty(), "it has declined");
    let reply = stage.replies(requester).remove(0);
    assert_eq!((reply.code, reply.attempt), (Some(Code::NoHandler), 0));
    assert_eq!(reply.content.payload(), b"c has nobody");
    assert_eq!((stage.broker.counters().declined, stage.broker.open_requests()), (2, 0));
}

/// What a peer has declined waits for a handler of this server, if there is one; if only another peer has it that has no
/// room, it fails.
#[test]
fn a_declined_request_may_wait_here() {
    let mut stage = Stage::new(Config::default());
    let far = stage.far("b", 9);
    let (own, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |_| {});
    stage.request(requester, 2, |_| {});
    let (here, there) = (stage.deliveries(own), stage.deliveries(far));
    stage.answer(far, there[0].delivery, Verdict::Declined(Code::Overloaded));
    assert!(stage.replies(requester).is_empty());
    stage.answer(own, here[0].delivery, Verdict::Reply);
    let waited = stage.deliveries(own).remove(0);
    stage.answer(own, waited.delivery, Verdict::Reply);
    assert_eq!(stage.codes(requester), [(1, None), (2, None)]);

    let full = stage.far("c", 1);
    stage.input(Input::Closed { conn: own });
    stage.request(requester, 3, |_| {});
    stage.request(requester, 4, |_| {});
    assert_eq!(stage.deliveries(full).len(), 1);
    let there = stage.deliveries(far).remove(0);
    stage.answer(far, there.delivery, Verdict::Declined(Code::NoHandler));
    let codes = stage.codes(requester);
    assert_eq!(codes.len(), 1);
    assert_eq!(codes[0].1, Some(Code::Overloaded));
}

/// What became of a request at the peer keeps its code; from anybody else such an answer is an error like others.
#[test]
fn codes_of_peers_are_kept() {
    for code in [Code::Timeout, Code::HandlerLost, Code::Unsupported, Code::TooLarge] {
        let mut stage = Stage::new(Config::default());
        let (far, requester) = (stage.far("b", 9), stage.connect(Speaks::Binary));
        stage.request(requester, 1, |_| {});
        let delivery = stage.deliveries(far).remove(0).delivery;
        stage.answer_with(far, delivery, Verdict::Failed(code), "so it was");
        let reply = stage.replies(requester).remove(0);
        assert_eq!((reply.code, reply.content.payload()), (Some(code), &b"so it was"[..]));
        stage.input(Input::Closed { conn: far });
        let own = stage.handler("sum", 9);
        for (number, verdict) in [(2, Verdict::Failed(code)), (3, Verdict::Declined(code))] {
            stage.request(requester, number, |_| {});
            let delivery = stage.deliveries(own).remove(0).delivery;
            stage.answer(own, delivery, verdict);
            assert_eq!(stage.codes(requester), [(number, Some(Code::Remote))]);
        }
    }
}

/// A handler that is lost at the peer is a lost attempt, known at once; so is the link. With attempts left, another gets it.
#[test]
fn lost_there_is_lost_here() {
    let mut stage = Stage::new(Config::default());
    let (far, requester) = (stage.far("b", 9), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |request| request.max_attempts = 2);
    let first = stage.deliveries(far).remove(0);
    stage.answer(far, first.delivery, Verdict::Failed(Code::HandlerLost));
    let second = stage.deliveries(far).remove(0);
    assert_eq!(second.attempt, 2);
    stage.request(requester, 2, |_| {});
    stage.input(Input::Closed { conn: far });
    assert_eq!(stage.codes(requester), [(1, Some(Code::HandlerLost)), (2, Some(Code::HandlerLost))]);
    stage.request(requester, 3, |_| {});
    assert_eq!(stage.codes(requester), [(3, Some(Code::NoHandler))]);
}

/// What comes from a peer goes to handlers of this server only, and is refused where those are elsewhere: no loop.
#[test]
fn one_hop() {
    let mut stage = Stage::new(Config::default());
    let (far, asking) = (stage.far("b", 9), stage.peer("c"));
    stage.request(asking, 1, |_| {});
    assert_eq!(stage.codes(asking), [(1, Some(Code::NoHandler))]);
    let own = stage.handler("sum", 1);
    stage.request(asking, 2, |_| {});
    stage.request(asking, 3, |_| {});
    assert!(stage.deliveries(far).is_empty(), "it waits, though b has room");
    let delivery = stage.deliveries(own).remove(0).delivery;
    stage.answer(own, delivery, Verdict::Reply);
    assert_eq!(stage.codes(asking), [(2, None)]);
    stage.input(Input::Closed { conn: own });
    assert_eq!(stage.codes(asking), [(3, Some(Code::HandlerLost))]);
}

/// When the last handler of this server goes, what waits goes on to peers; what came from a peer does not.
#[test]
fn what_waits_goes_on_to_peers() {
    let mut stage = Stage::new(Config::default());
    let (own, asking, requester) = (stage.handler("sum", 1), stage.peer("c"), stage.connect(Speaks::Binary));
    stage.set_credit(own, 0);
    stage.request(requester, 1, |_| {});
    stage.request(asking, 1, |_| {});
    let far = stage.peer("b");
    stage.register(far, 1, "sum", 1);
    assert_eq!(stage.deliveries(far).len(), 1, "it had been waiting");
    stage.request(requester, 2, |_| {});
    stage.input(Input::Closed { conn: own });
    assert_eq!(stage.codes(asking), [(1, Some(Code::NoHandler))]);
    assert!(stage.codes(requester).is_empty(), "b has it, and no credit yet");
    stage.set_credit(far, 2);
    assert_eq!(stage.deliveries(far).len(), 1);
}

/// Sends go to peers as requests do.
#[test]
fn sends_go() {
    let mut stage = Stage::new(Config::default());
    let (far, requester) = (stage.far("b", 9), stage.connect(Speaks::Binary));
    stage.request(requester, 1, send);
    let delivery = stage.deliveries(far).remove(0);
    assert_eq!(delivery.flags, RequestFlags::SEND);
    stage.answer(far, delivery.delivery, Verdict::Reply);
    assert_eq!(stage.broker.open_requests(), 0);
}

/// Peers are told of actions that have handlers here, clients also of those that only peers handle; who asks again is told
/// again.
#[test]
fn receivers_for_peers() {
    let mut stage = Stage::new(Config::default());
    let far = stage.far("b", 9);
    let peer = stage.peer("c");
    let client = stage.connect(Speaks::Binary);
    stage.say(client, ClientMessage::WatchReceivers(true));
    stage.handler("own", 1);
    stage.pass(Duration::from_millis(100));
    assert_eq!(stage.told(peer).last().unwrap(), "[\"own\"]");
    assert_eq!(stage.told(client).last().unwrap(), "[\"own\",\"sum\"]");
    stage.say(peer, ClientMessage::WatchReceivers(true));
    stage.pass(Duration::from_millis(100));
    assert_eq!(stage.told(peer), ["[\"own\"]"]);
    stage.input(Input::Closed { conn: far });
    stage.pass(Duration::from_millis(100));
    assert_eq!(stage.told(client), ["[\"own\"]"]);
    assert!(stage.told(peer).is_empty(), "nothing that it would be told has changed");
}

/// Only a key of the role peer is for links; equal names are refused, and so is a second server of a name, but not the same
/// server on a new connection.
#[test]
fn who_may_be_a_peer() {
    let config = || Config { server_id: "a".into(), ..Config::default() };
    let refused = |stage: &mut Stage, conn| match stage.take(conn).pop() {
        Some(ServerMessage::Error(report)) => Some(report.code),
        _ => None,
    };
    let mut stage = Stage::new(config());
    for (role, expected) in
        [(Role::Client, Some(Code::Forbidden)), (Role::Admin, Some(Code::Forbidden)), (Role::Peer, None)]
    {
        let permissions = Some(std::sync::Arc::new(Permissions { role, ..Permissions::default() }));
        let conn = stage.peer_as("b", PEER, Identity { permissions, ..Identity::default() });
        assert_eq!(refused(&mut stage, conn), expected, "{role}");
    }
    let own_name = stage.peer_as("a", PEER, Identity::default());
    assert_eq!(refused(&mut stage, own_name), Some(Code::Forbidden));
    let another = stage.peer_as("b", PEER + 1, Identity::default());
    assert_eq!(refused(&mut stage, another), Some(Code::Forbidden));
    assert!(stage.broker.has_dialling_peer(b"b") && !stage.broker.has_dialling_peer(b"a"));
    let again = stage.peer_as("b", PEER, Identity::default());
    assert_eq!(refused(&mut stage, again), None);
    assert_eq!(stage.closed.last().unwrap().1, CloseReason::Refused(Code::SessionTaken));
    stage.input(Input::Closed { conn: again });
    assert!(!stage.broker.has_dialling_peer(b"b") && stage.peers_changed >= 3);
}

/// A link of one's own is one that is dialled here: it does not count as one of the peer's.
#[test]
fn both_kinds_of_links() {
    let mut stage = Stage::new(Config::default());
    stage.input(Input::Link { conn: ConnId(0), report: Box::default() });
    let own = stage.peer("b");
    assert!(!stage.broker.has_dialling_peer(b"b"));
    let theirs = stage.peer("b");
    assert!(stage.broker.has_dialling_peer(b"b"));
    for conn in [own, theirs] {
        stage.register(conn, 1, "sum", 1);
    }
    let requester = stage.connect(Speaks::Binary);
    for number in 1..=2 {
        stage.request(requester, number, |_| {});
    }
    assert_eq!((stage.deliveries(own).len(), stage.deliveries(theirs).len()), (1, 1));
}

/// A leaving server tells peers before clients, and lets them take what waits.
#[test]
fn draining_tells_peers_first() {
    let mut stage = Stage::new(Config::default());
    let (requester, far) = (stage.connect(Speaks::Binary), stage.far("b", 1));
    let own = stage.handler("sum", 1);
    for conn in [own, far] {
        stage.set_credit(conn, 0);
    }
    stage.request(requester, 1, |_| {});
    stage.input(Input::Drain { grace_ms: 100 });
    let told: Vec<_> = stage
        .sent
        .iter()
        .filter_map(|(conn, message)| matches!(message, ServerMessage::Goaway { .. }).then_some(*conn))
        .collect();
    assert_eq!(told.first(), Some(&far));
    assert!(told.contains(&requester));
    stage.set_credit(far, 1);
    let delivery = stage.deliveries(far).remove(0).delivery;
    stage.answer(far, delivery, Verdict::Reply);
    assert_eq!(stage.codes(requester), [(1, None)]);
    assert!(stage.drained);
}

/// `$sys.peers`, `$sys.actions` and `$sys.stats` show links and what goes there.
#[test]
fn links_can_be_seen() {
    let mut stage = Stage::new(Config::default());
    let report = crate::LinkReport {
        address: "127.0.0.1:1".into(),
        state: crate::LinkState::Failed("nobody is there".into()),
        ..crate::LinkReport::default()
    };
    stage.input(Input::Link { conn: ConnId(99), report: Box::new(report) });
    let (_far, requester) = (stage.far("b", 9), stage.connect(Speaks::Binary));
    stage.request(requester, 1, |_| {});
    let mut ask = |number: u64, action: &str| -> serde_json::Value {
        let content = Content::from_parts(action.as_bytes(), b"", b"", b"null");
        stage.request(requester, number, |request| request.content = content);
        serde_json::from_slice(stage.replies(requester).remove(0).content.payload()).unwrap()
    };
    let peers = ask(2, "$sys.peers");
    assert_eq!((&peers[0]["state"], &peers[0]["error"]), (&"failed".into(), &"nobody is there".into()));
    assert_eq!((&peers[1]["serverId"], &peers[1]["dialled"]), (&"b".into(), &false.into()));
    assert_eq!(peers[1]["actions"], serde_json::json!([{"action": "sum", "held": 1, "credit": 9}]));
    let actions = ask(3, "$sys.actions");
    assert_eq!(actions[0]["handlers"][0]["server"], "b");
    let stats = ask(4, "$sys.stats");
    assert_eq!((&stats["now"]["links"], &stats["now"]["farHandlers"]), (&1.into(), &1.into()));
    assert_eq!(stats["total"]["forwarded"], 1);
}
