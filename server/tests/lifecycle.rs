//! Starting, limits, draining, stopping.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::{Binary, Json, builder, connect, server, until_closed};
use ringpost_protocol::{
    Code,
    message::{ClientMessage, ServerMessage},
};
use ringpost_server::{Config, Server, StartError};
use serde_json::Value;

/// Descriptors and threads are counted per process, and tests are threads of one: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(what: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count()
}

/// A stopped server leaves no descriptor and no thread, whatever its clients were doing.
#[test]
fn stop_leaves_nothing_behind() {
    let _alone = alone();
    server().stop();
    let before = (count("fd"), count("task"));
    for _ in 0..3 {
        let server = server();
        let mut handler = Binary::connect(&server);
        handler.register("a");
        let mut requester = Json::connect(&server);
        requester.say("{\"id\":\"a\",\"data\":1}");
        handler.hear();
        let silent = connect(&server);
        let address = server.address();
        server.stop();
        assert!(handler.hear_or_end().is_none() && requester.hear_or_end().is_none());
        assert!(TcpStream::connect(address).is_err());
        drop((handler, requester, silent));
    }
    assert_eq!((count("fd"), count("task")), before);
}

/// A connection that is accepted while the server stops is closed too, not forgotten in the ring.
#[test]
fn stop_right_after_a_connection() {
    let _alone = alone();
    server().stop();
    let before = count("fd");
    for _ in 0..20 {
        let server = server();
        let mut client = connect(&server);
        server.stop();
        assert!(matches!(client.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
    assert_eq!(count("fd"), before);
}

/// A draining server tells its clients, refuses new requests, lets the open one end, and is gone then.
#[test]
fn drain_waits_for_what_is_open() {
    let _alone = alone();
    let server = server();
    let (mut handler, mut requester) = (Binary::connect(&server), Binary::connect(&server));
    handler.register("slow");
    requester.request(1, "slow", b"1");
    let ServerMessage::Deliver(deliver) = handler.hear() else { panic!("no delivery") };
    server.drain(Duration::from_secs(20));
    assert!(matches!(requester.hear(), ServerMessage::Goaway { .. }));
    assert!(matches!(handler.hear(), ServerMessage::Goaway { .. }));
    assert!(TcpStream::connect(server.address()).is_err());
    requester.request(2, "slow", b"2");
    let ServerMessage::Reply(reply) = requester.hear() else { panic!("no reply") };
    assert_eq!((reply.number, reply.code), (2, Some(Code::Draining)));
    handler.answer(deliver.delivery, 1, b"done");
    let ServerMessage::Reply(reply) = requester.hear() else { panic!("no reply") };
    assert_eq!((reply.number, reply.content.payload()), (1, &b"done"[..]));
    assert!(requester.hear_or_end().is_none());
    server.wait().unwrap();
}

/// What does not end in time ends with `draining`, in either dialect, before the connection does.
#[test]
fn drain_has_an_end() {
    let _alone = alone();
    let server = server();
    let (mut handler, mut json) = (Binary::connect(&server), Json::connect(&server));
    let mut requester = Binary::connect(&server);
    handler.register("never");
    json.say("{\"id\":\"never\",\"data\":1,\"clientId\":\"a\"}\n");
    assert!(matches!(handler.hear(), ServerMessage::Deliver(_)));
    requester.request(1, "never", b"1");
    assert!(matches!(handler.hear(), ServerMessage::Deliver(_)));
    server.drain(Duration::from_millis(50));
    let failure = json.hear_a("error");
    assert_eq!(failure["message"]["clientId"], "a", "{failure}");
    assert_eq!(failure["message"]["info"]["code"], "draining", "{failure}");
    assert!(json.hear_or_end().is_none());
    assert!(matches!(requester.hear(), ServerMessage::Goaway { .. }));
    let ServerMessage::Reply(reply) = requester.hear() else { panic!("no reply") };
    assert_eq!((reply.number, reply.code), (1, Some(Code::Draining)));
    assert!(requester.hear_or_end().is_none());
    server.wait().unwrap();
}

/// One connection more than allowed is told which limit it is, in its own dialect; a place that is given up is free.
#[test]
fn connections_are_limited() {
    let _alone = alone();
    let server = builder().max_connections(1).start().unwrap();
    let first = Binary::connect(&server);
    let mut json = Json::connect(&server);
    json.say("{\"action\":\"ping\"}\n");
    let refusal = json.hear();
    assert_eq!(refusal["message"]["info"]["code"], "overloaded");
    assert!(refusal["message"]["info"]["error"].as_str().unwrap().contains("max-connections"));
    assert!(json.hear_or_end().is_none());
    let mut binary = Binary::connect_without_hello(&server);
    let Some(ServerMessage::Error(report)) = binary.hear_or_end() else { panic!("no error") };
    assert_eq!(report.code, Code::Overloaded);
    drop((first, json, binary));
    // The server learns of it a little later: ask until there is a place.
    let until = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let mut again = Binary::connect_without_hello(&server);
        again.say(&ClientMessage::Hello(Default::default()));
        if matches!(again.hear_or_end(), Some(ServerMessage::Welcome(_))) {
            break;
        }
        assert!(std::time::Instant::now() < until, "the place was not given free");
    }
}

/// A connection that says nothing is told so and closed; one that has spoken may be silent.
#[test]
fn silence_at_the_beginning_is_limited() {
    let _alone = alone();
    let mut config = Config::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    config.handshake_timeout = Duration::from_millis(50);
    let server = Server::builder().config(config).start().unwrap();
    let mut handler = Json::connect(&server);
    handler.register("a");
    let mut silent = connect(&server);
    let told: Value = serde_json::from_slice(&until_closed(&mut silent)).unwrap();
    assert!(told["message"]["info"]["error"].as_str().unwrap().contains("handshake-timeout"), "{told}");
    handler.say("{\"action\":\"ping\"}\n");
    assert_eq!(handler.hear_a("pong")["action"], "pong");
}

/// What the driver refuses by itself is counted beside what the core refuses, and `$sys.stats` shows it.
#[test]
fn refusals_are_counted() {
    let _alone = alone();
    let mut config = Config::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    config.max_connections = Some(3);
    config.handshake_timeout = Duration::from_millis(200);
    let server = Server::builder().config(config).start().unwrap();
    let mut asking = Binary::connect(&server);
    let mut stranger = connect(&server);
    stranger.write_all(b"hello\n").unwrap();
    until_closed(&mut stranger);
    drop(stranger);
    until_closed(&mut connect(&server));
    let mut number = 0;
    let mut total = |name: &str| {
        number += 1;
        asking.request(number, "$sys.stats", b"null");
        let ServerMessage::Reply(reply) = asking.hear() else { panic!("no reply") };
        let stats: Value = serde_json::from_slice(reply.content.payload()).unwrap();
        stats["total"][name].as_u64().unwrap()
    };
    assert_eq!(total("connectionsUnreadable"), 1);
    assert_eq!(total("connectionsMute"), 1);
    let _others: Vec<_> = (0..3)
        .map(|_| {
            let mut other = Json::connect(&server);
            other.say("{\"action\":\"ping\"}\n");
            other.hear();
            other
        })
        .collect();
    // One, or one more if the server had not yet seen the end of an earlier connection.
    assert!(total("connectionsSurplus") >= 1);
}

/// Each way in which a server does not start says what to do and how the command is to exit.
#[test]
fn failures_to_start_are_explained() {
    let _alone = alone();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = Server::builder().listen([address]).start().unwrap_err();
    assert!(matches!(error, StartError::Bind(_)) && error.exit_code() == 69);
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    let error = builder().max_connections(usize::MAX / 2).start().unwrap_err();
    assert!(
        matches!(error, StartError::Descriptors { .. }) && error.to_string().contains("ulimit"),
        "{error}"
    );
    let error = builder().max_payload(0).start().unwrap_err();
    assert_eq!(error.exit_code(), 78);
    assert!(error.to_string().contains("max-payload"), "{error}");
}
