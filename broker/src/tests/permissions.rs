//! What connections may not do is refused, in both dialects, and what they may not ask for is not shown to them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::{Allowed, Names, Permissions, Role};

fn only(names: &[&str]) -> Allowed {
    Allowed::Only(Names::new(names).unwrap())
}

/// A client that may handle `mine` and ask `sum` and all that begins with `log.`.
fn limited() -> Arc<Permissions> {
    Arc::new(Permissions {
        handle: only(&["mine"]),
        request: only(&["sum", "log.*"]),
        ..Permissions::default()
    })
}

impl Stage {
    fn connect_with(&mut self, speaks: Speaks, permissions: &Arc<Permissions>) -> ConnId {
        let permissions = Some(permissions.clone());
        self.connect_as(speaks, Identity { permissions, ..Identity::default() })
    }

    /// What a request to an action comes to at once: nothing, or a code and a message.
    fn asks(&mut self, conn: ConnId, number: u64, action: &str) -> Option<(Option<Code>, String)> {
        let content = Content::from_parts(action.as_bytes(), b"", b"", b"null");
        self.request(conn, number, |request| request.content = content);
        let reply = self.replies(conn).pop()?;
        Some((reply.code, String::from_utf8_lossy(reply.content.payload()).into_owned()))
    }

    /// The lists of receivers that a connection was told.
    fn lists(&mut self, conn: ConnId) -> Vec<Value> {
        let list = |message| match message {
            ServerMessage::Receivers(list) => Some(serde_json::from_slice(&list).unwrap()),
            _ => None,
        };
        self.take(conn).into_iter().filter_map(list).collect()
    }
}

/// A registration that is not on the key's list is refused with `forbidden` and says why; the connection goes on.
#[test]
fn registering() {
    let mut stage = Stage::new(Config::default());
    let conn = stage.connect_with(Speaks::Binary, &limited());
    stage.take(conn);
    stage.register(conn, 1, "sum", 4);
    let [ServerMessage::Error(report)] = &stage.take(conn)[..] else { panic!("one error") };
    assert_eq!((report.scope, report.number, report.code), (Scope::Registration, 1, Code::Forbidden));
    assert!(report.message.contains("`sum`") && report.message.contains("`handle`"), "{}", report.message);
    stage.register(conn, 2, "mine", 4);
    assert!(matches!(stage.take(conn)[..], [ServerMessage::Registered { registration: 2 }]));
    // Its name comes first: it is reserved for everybody.
    stage.register(conn, 3, "$sys.stats", 4);
    assert!(
        matches!(&stage.take(conn)[..], [ServerMessage::Error(report)] if report.code == Code::ReservedName)
    );
    assert_eq!(stage.broker.counters().refused_registrations, 2);
}

/// Requests, sends, broadcasts and durable ones to an action that is not on the list are refused with `forbidden` before
/// anything can be learned of it, and reach no handler.
#[test]
fn asking() {
    for speaks in [Speaks::Binary, Speaks::Json] {
        let mut stage = Stage::new(Config::default());
        let (open, closed) = (stage.handler("sum", 9), stage.handler("secret", 9));
        let conn = stage.connect_with(speaks, &limited());
        let kinds = [
            RequestFlags::default(),
            RequestFlags::SEND,
            RequestFlags::BROADCAST,
            RequestFlags::DURABLE,
            RequestFlags::SEND.with(RequestFlags::DURABLE),
        ];
        let mut number = 0;
        for flags in kinds {
            for action in ["secret", "nobody's", "lo", "\u{1}"] {
                number += 1;
                let content = Content::from_parts(action.as_bytes(), b"", b"", b"null");
                stage.request(conn, number, |request| (request.content, request.flags) = (content, flags));
                let replies = stage.replies(conn);
                let [reply] = &replies[..] else { panic!("{action} {flags:?}: {replies:?}") };
                assert_eq!((reply.number, reply.code), (number, Some(Code::Forbidden)), "{action} {flags:?}");
            }
        }
        assert!(stage.deliveries(closed).is_empty());
        assert_eq!(stage.broker.counters().refused_forbidden, number);
        assert_eq!(stage.asks(conn, number + 1, "log.nobody").unwrap().0, Some(Code::NoHandler));
        assert_eq!(stage.asks(conn, number + 2, "sum"), None);
        assert_eq!(stage.deliveries(open).len(), 1);
    }
}

/// The server's own actions: numbers are for everybody; what names others or changes anything is for keys that may.
#[test]
fn the_servers_own_actions() {
    let mut stage = Stage::new(Config::default());
    let _handlers = (stage.handler("sum", 9), stage.handler("secret", 9));
    let control = ["$sys.actions", "$sys.connections", "$sys.queues", "$sys.dead", "$sys.nothing"];
    let client = stage.connect_with(Speaks::Binary, &limited());
    for (number, action) in (1..).zip(control) {
        let (code, message) = stage.asks(client, number, action).unwrap();
        assert!(code == Some(Code::Forbidden) && message.contains("sys = true"), "{action}: {message}");
    }
    assert_eq!(stage.asks(client, 10, "$sys.stats").unwrap().0, None);
    assert_eq!(stage.asks(client, 11, "$sys.receivers"), Some((None, "[\"sum\"]".into())));
    let may = |role, sys| Arc::new(Permissions { role, sys, request: only(&[]), ..Permissions::default() });
    for permissions in [may(Role::Client, true), may(Role::Peer, true), may(Role::Admin, false)] {
        let conn = stage.connect_with(Speaks::Binary, &permissions);
        for (number, action) in (1..).zip(&control[..4]) {
            assert_eq!(stage.asks(conn, number, action).unwrap().0, None, "{action} {permissions:?}");
        }
        assert_eq!(stage.asks(conn, 5, "$sys.nothing").unwrap().0, Some(Code::NoHandler));
    }
}

/// Each is told only the receivers that it may ask, and told again only if these change; connections with equal lists share
/// one buffer.
#[test]
fn receivers() {
    let mut stage = Stage::new(Config::default());
    let permissions = [limited(), limited(), Arc::new(Permissions::default())];
    let watchers = permissions.each_ref().map(|it| {
        let conn = stage.connect_with(Speaks::Binary, it);
        stage.say(conn, ClientMessage::WatchReceivers(true));
        conn
    });
    stage.pass(Duration::from_secs(1));
    assert_eq!(watchers.map(|conn| stage.lists(conn)), [(); 3].map(|()| vec![json!([])]));
    let _handlers = (stage.handler("sum", 1), stage.handler("secret", 1));
    stage.pass(Duration::from_secs(1));
    let buffers: Vec<_> = stage
        .sent
        .iter()
        .filter_map(|(conn, message)| match message {
            ServerMessage::Receivers(list) if watchers[..2].contains(conn) => Some(list.as_ptr()),
            _ => None,
        })
        .collect();
    assert!(buffers.len() == 2 && buffers[0] == buffers[1], "{buffers:?}");
    assert_eq!(stage.lists(watchers[0]), [json!(["sum"])]);
    assert_eq!(stage.lists(watchers[1]), [json!(["sum"])]);
    assert_eq!(stage.lists(watchers[2]), [json!(["secret", "sum"])]);
    // A change that they may not see is none for them.
    let _handler = stage.handler("secret2", 1);
    stage.pass(Duration::from_secs(1));
    assert_eq!(stage.lists(watchers[0]), [] as [Value; 0]);
    assert_eq!(stage.lists(watchers[2]), [json!(["secret", "secret2", "sum"])]);
    let _handler = stage.handler("log.a", 1);
    stage.pass(Duration::from_secs(1));
    assert_eq!(stage.lists(watchers[0]), [json!(["log.a", "sum"])]);
    // Who asks again is told, though nothing has changed.
    stage.say(watchers[1], ClientMessage::WatchReceivers(true));
    stage.pass(Duration::from_secs(1));
    assert_eq!(stage.lists(watchers[1]), [json!(["log.a", "sum"]), json!(["log.a", "sum"])]);
}

/// Where nobody watches a list any more it is not kept.
#[test]
fn lists_are_forgotten() {
    let mut stage = Stage::new(Config::default());
    let stays = stage.connect(Speaks::Binary);
    stage.say(stays, ClientMessage::WatchReceivers(true));
    for number in 0..10 {
        let request = only(&[&format!("a{number}")]);
        let permissions = Arc::new(Permissions { request, ..Permissions::default() });
        let conn = stage.connect_with(Speaks::Binary, &permissions);
        stage.say(conn, ClientMessage::WatchReceivers(true));
        stage.pass(Duration::from_secs(1));
        stage.input(Input::Closed { conn });
    }
    let _handler = stage.handler("sum", 1);
    stage.pass(Duration::from_secs(1));
    assert_eq!(stage.broker.receivers.lists.len(), 1);
}

/// `$sys.connections` shows where a connection comes from and what its key is for.
#[test]
fn connections_show_who_they_are() {
    let mut stage = Stage::new(Config::default());
    let address = Some(Box::new("192.0.2.7:40000".parse().unwrap()));
    stage.connect_as(Speaks::Json, Identity { address, permissions: Some(limited()) });
    let asker = stage.connect(Speaks::Binary);
    let (code, list) = stage.asks(asker, 1, "$sys.connections").unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(
        (code, &list[0]["address"], &list[0]["role"]),
        (None, &json!("192.0.2.7:40000"), &json!("client"))
    );
    assert_eq!((&list[1]["address"], &list[1]["role"]), (&Value::Null, &Value::Null));
}

/// A session cannot be had by who may do other things than its owner: not by a hello, nor under a name that is given with a
/// registration; nor does its owner lose it by such a try. Keys with the same permissions share their sessions, and an admin may
/// have all.
#[test]
fn sessions_are_not_taken_across_permissions() {
    let other = || Arc::new(Permissions { request: only(&["sum"]), ..Permissions::default() });
    let everything = || Identity::default();
    let with = |permissions| Identity { permissions: Some(permissions), ..Identity::default() };
    let mut stage = Stage::new(Config::default());
    let come = |stage: &mut Stage, identity: Identity, session: &'static str, instance: u64| {
        let conn = ConnId(stage.connections);
        stage.connections += 1;
        stage.input(Input::Opened { conn, speaks: Speaks::Binary, identity });
        stage.say(conn, hello(session, instance, 1));
        match stage.take(conn).swap_remove(0) {
            ServerMessage::Welcome(_) => None,
            ServerMessage::Error(report) => Some((report.scope, report.code)),
            message => panic!("{message:?}"),
        }
    };
    let forbidden = Some((Scope::Connection, Code::Forbidden));
    assert_eq!(come(&mut stage, with(limited()), "mine", 1), None);
    assert_eq!(come(&mut stage, with(other()), "mine", 2), forbidden);
    assert_eq!(stage.closed.pop(), Some((ConnId(1), CloseReason::Refused(Code::Forbidden))));
    assert!(stage.closed.is_empty(), "its owner still has it");
    let json = stage.connect_as(Speaks::Json, with(other()));
    let register = Register { registration: 0, credit: 1, action: "a".into(), session: "mine".into() };
    stage.say(json, ClientMessage::Register(register));
    let refused = |message: &ServerMessage| matches!(message, ServerMessage::Error(report) if report.code == Code::Forbidden);
    assert!(matches!(&stage.take(json)[..], [message] if refused(message)));
    assert_eq!(come(&mut stage, with(limited()), "mine", 3), None, "another key with the same permissions");
    let admin = Permissions { role: Role::Admin, ..Permissions::default() };
    assert_eq!(come(&mut stage, with(Arc::new(admin)), "mine", 4), None);
    assert_eq!(come(&mut stage, with(limited()), "mine", 5), forbidden, "it is the admin's now");
    assert_eq!(come(&mut stage, everything(), "mine", 6), None);
    assert_eq!(come(&mut stage, with(limited()), "", 7), None, "no name, no session to take");
}
