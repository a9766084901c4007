//! Connections with a secure key, by sockets that speak handshake and records by hand: what a real server takes, and what it
//! does not, from who has a key, and from who sits in between.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use common::{Binary, DEADLINE, Json, builder, connect, connect_to, until_closed};
use ringpost_protocol::{
    Code,
    frame::{FrameReader, Preface, decode_server},
    message::ServerMessage,
    secure::{Incoming, Initiator, Opener, Role, Sealer, SecureKey, ServerHello},
};
use ringpost_server::{Config, Handle, Listen, Server};
use serde_json::Value;

fn key(byte: u8) -> SecureKey {
    SecureKey::from_bytes([byte; 32])
}

/// With one key for clients.
fn server() -> Handle {
    builder().secure_key(key(1), Role::Client).start().unwrap()
}

/// A client that has shaken hands, and says JSON in records.
struct Secured {
    socket: TcpStream,
    sealer: Sealer,
    incoming: Incoming,
    buffer: bytes::BytesMut,
}

impl Secured {
    fn connect(server: &Handle, key: &SecureKey) -> Self {
        let (socket, sealer, opener) = shake_hands(server, key);
        Self { socket, sealer, incoming: Incoming::new(opener), buffer: bytes::BytesMut::new() }
    }

    fn record(&mut self, text: &str) -> Vec<u8> {
        let mut record = Vec::new();
        self.sealer.seal(text.as_bytes(), &mut record);
        record
    }

    fn say(&mut self, text: &str) {
        let record = self.record(text);
        self.socket.write_all(&record).unwrap();
    }

    fn end_half(&mut self) {
        let mut record = Vec::new();
        self.sealer.end(&mut record);
        self.socket.write_all(&record).unwrap();
        self.socket.shutdown(Shutdown::Write).unwrap();
    }

    /// The next object that is not about receivers; `None` at the end. Whether the end was one in order says
    /// [`Incoming::has_ended`].
    fn hear(&mut self) -> Option<Value> {
        let until = Instant::now() + DEADLINE;
        loop {
            let text = self.incoming.plaintext(&self.buffer);
            if let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let value: Value = serde_json::from_slice(&text[..end]).unwrap();
                let rest = self.incoming.part(&mut self.buffer);
                drop(self.buffer.split_to(end + 1));
                self.incoming.rejoin(&mut self.buffer, rest);
                if value["action"] != "receivers" {
                    return Some(value);
                }
                continue;
            }
            assert!(Instant::now() < until, "nothing came");
            let mut piece = [0; 4096];
            match self.socket.read(&mut piece) {
                Ok(0) => return None,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                read => self.buffer.extend_from_slice(&piece[..read.unwrap()]),
            }
            self.incoming.open(&mut self.buffer).unwrap();
        }
    }

    fn code(&mut self) -> Option<String> {
        Some(self.hear()?["message"]["info"]["code"].as_str().unwrap().to_owned())
    }
}

fn shake_hands(server: &Handle, key: &SecureKey) -> (TcpStream, Sealer, Opener) {
    let mut socket = connect(server);
    let initiator = Initiator::new(key, Role::Client).unwrap();
    socket.write_all(initiator.hello()).unwrap();
    let mut answer = [0; ServerHello::BYTES];
    socket.read_exact(&mut answer).unwrap();
    let Ok(Some(ServerHello::Secure(message))) = ServerHello::decode(&answer) else { panic!("{answer:?}") };
    let (sealer, opener) = initiator.finish(&message).unwrap();
    (socket, sealer, opener)
}

/// What a server says in clear before it closes: preface and error frame.
fn refusal(mut socket: TcpStream) -> (Code, String) {
    let all = until_closed(&mut socket);
    assert_eq!(Preface::decode(&all), Ok(Some(Preface::plain())), "{all:?}");
    let mut frames = bytes::BytesMut::from(&all[Preface::BYTES..]);
    let frame = FrameReader::new(1 << 16).next(&mut frames).unwrap().unwrap();
    match decode_server(frame).unwrap().unwrap() {
        ServerMessage::Error(report) => (report.code, report.message),
        other => panic!("{other:?}"),
    }
}

fn counter(server: &Handle, name: &str) -> u64 {
    let mut asking = Secured::connect(server, &key(1));
    asking.say("{\"id\":\"$sys.stats\",\"data\":null}\n");
    asking.hear().unwrap()["message"]["data"]["total"][name].as_u64().unwrap()
}

/// Both dialects are the same within records as outside: here JSON, with what is said cut over several records.
#[test]
fn json_in_records() {
    let server = server();
    let mut client = Secured::connect(&server, &key(1));
    client.say("{\"id\":\"a\",\"action\":\"init\"}\n{\"id\":\"a\",\"cli");
    client.say("entId\":1,\"data\":[1,");
    client.say("2]}\n");
    let request = client.hear().unwrap();
    assert_eq!(request["message"]["data"].to_string(), "[1,2]");
    let id = request["message"]["serverId"].as_str().unwrap().to_owned();
    client.say(&format!("{{\"action\":\"response\",\"message\":{{\"serverId\":\"{id}\",\"data\":3}}}}\n"));
    assert_eq!(client.hear().unwrap()["message"]["data"], 3);
}

/// A client that says that nothing follows is answered, and the server says so too; one that is cut off has lost what it
/// had open, since it may not be its own end.
#[test]
fn the_end_is_a_record() {
    let server = server();
    let mut handler = Secured::connect(&server, &key(1));
    handler.say("{\"id\":\"a\",\"action\":\"init\"}\n");
    for in_order in [true, false] {
        let mut asking = Secured::connect(&server, &key(1));
        asking.say("{\"id\":\"a\",\"clientId\":1,\"data\":1,\"options\":{\"timeout\":20000}}\n");
        let request = handler.hear().unwrap();
        match in_order {
            true => asking.end_half(),
            false => asking.socket.shutdown(Shutdown::Write).unwrap(),
        }
        if !in_order {
            assert_eq!(asking.hear(), None);
            assert_eq!(handler.hear().unwrap()["action"], "cancel");
        }
        let id = request["message"]["serverId"].as_str().unwrap();
        handler
            .say(&format!("{{\"action\":\"response\",\"message\":{{\"serverId\":\"{id}\",\"data\":2}}}}\n"));
        if in_order {
            assert_eq!(asking.hear().unwrap()["message"]["data"], 2);
            assert_eq!(asking.hear(), None);
        }
        assert_eq!(asking.incoming.has_ended(), in_order);
    }
}

/// Who has no key is told so in the dialect that it speaks, and what to do; who has another one, or one for another role, in
/// clear, and all with the same words. Each is counted.
#[test]
fn without_the_right_key() {
    let server = builder().secure_key(key(1), Role::Client).secure_key(key(2), Role::Peer).start().unwrap();
    let mut json = Json::connect(&server);
    json.say("{\"id\":\"$sys.stats\",\"data\":null}\n");
    let info = json.hear()["message"]["info"].clone();
    assert_eq!(info["code"], "unauthorized");
    assert!(info["error"].as_str().unwrap().contains("--secure-key-file"), "{info}");
    assert_eq!(json.hear_or_end(), None);
    let mut binary = connect(&server);
    binary.write_all(&Preface::plain().encode()).unwrap();
    assert_eq!(refusal(binary).0, Code::Unauthorized);
    let mut told = std::collections::HashSet::new();
    for (with, role, code) in [
        (key(9), Role::Client, Code::Unauthorized),
        (key(2), Role::Client, Code::Unauthorized),
        (key(1), Role::Peer, Code::Unauthorized),
        (key(9), Role::Peer, Code::Unauthorized),
    ] {
        let mut socket = connect(&server);
        socket.write_all(Initiator::new(&with, role).unwrap().hello()).unwrap();
        let (said, message) = refusal(socket);
        assert_eq!(said, code, "{message}");
        // What is said depends on nothing but the hello: it tells nobody which keys there are for what.
        told.insert((role, message.replace(&with.id().to_string(), "ID")));
    }
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(counter(&server, "connectionsUnauthorized"), 6);
}

/// A ping, and nothing else, is answered to who has no key, however it comes, and the connection ends there: nothing behind it
/// is looked at, the core does not know of it, and nobody is counted as refused.
#[test]
fn a_ping_needs_no_key() {
    let server = server();
    let before = counter(&server, "requests");
    for (ping, pieces) in [
        ("{\"action\":\"ping\"}\n", 1),
        (" \r\n{ \"action\" : \"ping\" }", 3),
        ("{\"action\":\"ping\"}\n{\"id\":\"a\",\"data\":1}\n{\"action\":\"ping\"}\n", 1),
    ] {
        let mut socket = connect(&server);
        for piece in ping.as_bytes().chunks(ping.len().div_ceil(pieces)) {
            socket.write_all(piece).unwrap();
            // Each in a segment of its own, as far as that is for us to say.
            std::thread::yield_now();
        }
        assert_eq!(until_closed(&mut socket), b"{\"action\":\"pong\"}\n", "{ping}");
    }
    assert_eq!(counter(&server, "connectionsUnauthorized"), 0);
    assert_eq!(counter(&server, "requests"), before + 2, "those of this test's own looks");
    // What only looks like one is refused at its first byte that does not.
    for other in ["{\"action\":\"pink", "{\"action\":\"ping\",", "{\"id\":\"ping\"}\n", "{}"] {
        let mut socket = connect(&server);
        socket.write_all(other.as_bytes()).unwrap();
        let answer = String::from_utf8(until_closed(&mut socket)).unwrap();
        assert!(answer.contains("\"unauthorized\"") && answer.ends_with("}\n"), "{other}: {answer}");
    }
    assert_eq!(counter(&server, "connectionsUnauthorized"), 4);
}

/// Who pings is a stranger all the time: beyond their bounds even a ping is refused, and one that is never whole has their time.
#[test]
fn pings_are_strangers() {
    let mut config = Config::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    config.secure_keys = vec![(key(1), Role::Client)];
    config.max_unauthenticated_per_address = 2;
    config.handshake_timeout = Duration::from_millis(300);
    let server = Server::builder().config(config).start().unwrap();
    let mut begun = connect(&server);
    begun.write_all(b"{\"action\":").unwrap();
    // It has its pong, but is still there.
    let mut answered = Json::connect(&server);
    answered.say("{\"action\":\"ping\"}\n");
    assert_eq!(answered.hear()["action"], "pong");
    let mut third = Json::connect(&server);
    third.say("{\"action\":\"ping\"}\n");
    assert_eq!(third.hear()["message"]["info"]["code"], "overloaded");
    let told = String::from_utf8(until_closed(&mut begun)).unwrap();
    assert!(told.contains("handshake-timeout"), "{told}");
    drop(answered);
}

/// A key where none is wanted is refused, and so is no key where the listener wants one; a plain listener takes both.
#[test]
fn listeners() {
    let without = common::server();
    let mut socket = connect(&without);
    socket.write_all(Initiator::new(&key(1), Role::Client).unwrap().hello()).unwrap();
    let (code, message) = refusal(socket);
    assert!(code == Code::Unsupported && message.contains("no secure key"), "{message}");
    let listen = |text: &str| text.parse::<Listen>().unwrap();
    let mut config = Config::default();
    config.listen = vec![listen("127.0.0.1:0"), listen("127.0.0.1:0,plain")];
    config.secure_keys = vec![(key(1), Role::Client)];
    let server = Server::builder().config(config).start().unwrap();
    let mut json = Json::over(connect_to(server.addresses()[1]));
    json.register("a");
    let mut other = Json::over(connect_to(server.addresses()[0]));
    other.say("{\"action\":\"receivers\"}\n");
    assert_eq!(other.hear()["message"]["info"]["code"], "unauthorized");
    let mut secured = Secured::connect(&server, &key(1));
    secured.say("{\"id\":\"$sys.receivers\",\"data\":null}\n");
    assert_eq!(secured.hear().unwrap()["message"]["data"][0], "a");
}

/// What a key may do stands in its table, and holds for the connections that prove it.
#[test]
fn permissions_of_keys() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, SecureKey::text_of(&[1; 32]).as_bytes()).unwrap();
    let table = format!("[[key]]\nfile = {file:?}\nhandle = [\"b*\"]\nrequest = [\"c\"]\n");
    let mut config = Config::from_toml_text(&table).unwrap();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    config.secure_keys = vec![(key(2), Role::Admin)];
    let server = Server::builder().config(config).start().unwrap();
    let mut limited = Secured::connect(&server, &key(1));
    limited.say("{\"id\":\"a\",\"action\":\"init\"}\n");
    assert_eq!(limited.code().unwrap(), "forbidden");
    limited.say("{\"id\":\"b\",\"clientId\":1,\"data\":null}\n");
    assert_eq!(limited.code().unwrap(), "forbidden");
    limited.say("{\"id\":\"$sys.connections\",\"data\":null}\n");
    assert_eq!(limited.code().unwrap(), "forbidden");
    limited.say("{\"id\":\"c\",\"clientId\":1,\"data\":null}\n");
    assert_eq!(limited.code().unwrap(), "noHandler");
    let mut admin = Secured::connect(&server, &key(2));
    admin.say("{\"id\":\"$sys.connections\",\"data\":null}\n");
    let roles = admin.hear().unwrap()["message"]["data"].to_string();
    assert!(roles.contains("\"client\"") && roles.contains("\"admin\""), "{roles}");
}

/// A client's hello with any byte changed leads to no connection; nor does one that somebody has heard and repeats.
#[test]
fn changed_and_repeated_hellos() {
    let server = server();
    let initiator = Initiator::new(&key(1), Role::Client).unwrap();
    for at in 0..initiator.hello().len() {
        let mut hello = *initiator.hello();
        hello[at] ^= 0x40;
        let mut socket = connect(&server);
        socket.write_all(&hello).unwrap();
        // A length may have changed: what is missing does not come.
        socket.shutdown(Shutdown::Write).unwrap();
        let answer = until_closed(&mut socket);
        assert!(!matches!(ServerHello::decode(&answer), Ok(Some(ServerHello::Secure(_)))), "byte {at}");
    }
    let mut heard = connect(&server);
    heard.write_all(initiator.hello()).unwrap();
    heard.read_exact(&mut [0; ServerHello::BYTES]).unwrap();
    let before = counter(&server, "requests");
    heard.write_all(&[40, 0, 0, 0].into_iter().chain([7; 56]).collect::<Vec<u8>>()).unwrap();
    // What it is told it could only read with the keys that it has not.
    assert!(until_closed(&mut heard).len() > 16);
    assert_eq!(counter(&server, "requests"), before + 1, "the one that asked");
}

/// Records that were changed, repeated, reordered, sent back, or are of another connection end the connection, and nothing of
/// them is done.
#[test]
fn records_in_between() {
    let server = server();
    let ask = "{\"id\":\"a\",\"clientId\":1,\"data\":1}\n";
    let other_record = Secured::connect(&server, &key(1)).record(ask);
    type Change<'a> = &'a dyn Fn(Vec<u8>, Vec<u8>) -> Vec<u8>;
    let changes: [(&str, u64, Change<'_>); 6] = [
        ("nothing", 2, &|one, two| [one, two].concat()),
        ("changed", 1, &|one, mut two| {
            two[10] ^= 1;
            [one, two].concat()
        }),
        ("repeated", 1, &|one, _| [one.clone(), one].concat()),
        ("reordered", 0, &|one, two| [two, one].concat()),
        ("of another connection", 1, &|one, _| [one, other_record.clone()].concat()),
        ("cut", 1, &|one, two| [one, two[..20].to_vec()].concat()),
    ];
    for (name, done, change) in changes {
        let before = counter(&server, "requests");
        let mut client = Secured::connect(&server, &key(1));
        let (one, two) = (client.record(ask), client.record(ask));
        client.socket.write_all(&change(one, two)).unwrap();
        client.socket.shutdown(Shutdown::Write).unwrap();
        while client.hear().is_some() {}
        assert_eq!(counter(&server, "requests"), before + done + 1, "{name}");
    }
}

/// Until its first record verifies a client is a stranger: it has the time of one, and the core does not know it.
#[test]
fn a_handshake_alone_is_not_enough() {
    let mut config = Config::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    config.secure_keys = vec![(key(1), Role::Client)];
    config.handshake_timeout = Duration::from_millis(300);
    let server = Server::builder().config(config).start().unwrap();
    let (mut socket, _, opener) = shake_hands(&server, &key(1));
    let answer = until_closed(&mut socket);
    let (mut incoming, mut buffer) = (Incoming::new(opener), bytes::BytesMut::from(&answer[..]));
    incoming.open(&mut buffer).unwrap();
    let told = String::from_utf8_lossy(incoming.plaintext(&buffer)).into_owned();
    assert!(told.contains("handshake-timeout") && incoming.has_ended(), "{told}");
    assert_eq!(counter(&server, "connectionsMute"), 1);
}

/// A key file is read again when it is asked for; one that cannot be used changes nothing, and the connections of a removed
/// key are told to go.
#[test]
fn keys_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write(&SecureKey::text_of(&[2; 32]));
    let mut config = Config::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    config.secure_keys = vec![(key(1), Role::Client)];
    config.secure_key_file = vec![file.to_str().unwrap().parse().unwrap()];
    config.drain_timeout = Duration::from_millis(300);
    let server = Server::builder().config(config).start().unwrap();
    let mut leaving = Secured::connect(&server, &key(2));
    leaving.say("{\"id\":\"$sys.receivers\",\"data\":null}\n");
    leaving.hear().unwrap();
    write("rpk1_cut");
    server.reload_keys();
    write(&SecureKey::text_of(&[3; 32]));
    server.reload_keys();
    // JSON knows no goodbye: its time ends with a reason.
    assert_eq!(leaving.code().unwrap(), "unauthorized");
    assert_eq!(leaving.hear(), None);
    assert!(leaving.incoming.has_ended());
    let mut socket = connect(&server);
    socket.write_all(Initiator::new(&key(2), Role::Client).unwrap().hello()).unwrap();
    assert_eq!(refusal(socket).0, Code::Unauthorized);
    drop(Secured::connect(&server, &key(3)));
}

/// Large messages go both ways through records, also many times as large as one; the server takes them in one piece.
#[test]
fn large_messages() {
    let server = builder().secure_key(key(1), Role::Client).start().unwrap();
    let mut client = Secured::connect(&server, &key(1));
    client.say("{\"id\":\"a\",\"action\":\"init\"}\n");
    for bytes in [60_000, 70_000, 1 << 20, 5 << 20] {
        let data = "y".repeat(bytes);
        let mut records = client.record(&format!("{{\"id\":\"a\",\"clientId\":1,\"data\":\"{data}\"}}\n"));
        let mut socket = client.socket.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            socket.write_all(&records).unwrap();
            records.clear();
        });
        let request = client.hear().unwrap();
        assert!(request["message"]["data"] == data.as_str(), "{bytes}");
        writer.join().unwrap();
        let id = request["message"]["serverId"].as_str().unwrap().to_owned();
        client
            .say(&format!("{{\"action\":\"response\",\"message\":{{\"serverId\":\"{id}\",\"data\":0}}}}\n"));
        assert_eq!(client.hear().unwrap()["message"]["data"], 0);
    }
    // Plain servers are not concerned.
    drop(Binary::connect(&common::server()));
}
