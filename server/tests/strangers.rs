//! What those can do who have not said who they are: little, for a short time, and not in place of others. And who counts
//! as coming from where behind a balancer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use common::{Binary, DEADLINE, Json, connect, connect_to, until_closed};
use ringpost_protocol::{Code, frame::Preface, message::ServerMessage, proxy, secure::SecureKey};
use ringpost_server::{Config, Handle, KeyConfig, Listen, Server};
use serde_json::Value;

fn server_with(set: impl FnOnce(&mut Config)) -> Handle {
    let mut config = Config::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    // Nobody is hurried unless a test is about it.
    config.handshake_timeout = Duration::from_secs(600);
    set(&mut config);
    Server::builder().config(config).start().unwrap()
}

/// What one of the server's own actions says.
fn ask(asking: &mut Json, action: &str) -> Value {
    asking.say(&format!("{{\"id\":\"{action}\",\"data\":null}}\n"));
    asking.hear_a("response")["message"]["data"].clone()
}

/// Asks until a counter is as it should be.
fn until(asking: &mut Json, name: &str, holds: impl Fn(u64) -> bool) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let count = ask(asking, "$sys.stats")["total"][name].as_u64().unwrap();
        if holds(count) {
            return;
        }
        assert!(Instant::now() < deadline, "{name} is {count}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A connection whose PROXY header names `source`.
fn relayed(server: &Handle, source: &str) -> TcpStream {
    let mut socket = connect(server);
    let mut header = Vec::new();
    proxy::encode(source.parse().unwrap(), server.address(), &mut header);
    socket.write_all(&header).unwrap();
    socket
}

/// The code and message of what a JSON client is told before it is closed, or `None` if it is let in.
fn greeted(socket: TcpStream) -> Option<(String, String)> {
    let mut client = Json::over(socket);
    client.say("{\"action\":\"ping\"}\n");
    let answer = client.hear();
    let info = &answer["message"]["info"];
    (answer["action"] == "error")
        .then(|| (info["code"].as_str().unwrap().to_owned(), info["error"].as_str().unwrap().to_owned()))
}

/// Where the connections come from that the server knows, but for the asking one.
fn addresses(asking: &mut Json) -> Vec<String> {
    let list = ask(asking, "$sys.connections");
    let others = list.as_array().unwrap().iter().skip(1);
    others.map(|connection| connection["address"].as_str().unwrap().to_owned()).collect()
}

/// From one address only so many may be strangers; the next is told the bound and the setting, in its dialect, and counted.
/// As soon as one of them has said who it is, or is gone, there is room.
#[test]
fn an_address_has_a_bound() {
    let server = server_with(|config| config.max_unauthenticated_per_address = 2);
    let mut asking = Json::connect(&server);
    ask(&mut asking, "$sys.stats");
    let mut strangers = vec![connect(&server), connect(&server)];
    let (code, message) = until_turned_away(&server);
    assert!(code == "overloaded" && message.contains("max-unauthenticated-per-address = 2"), "{message}");
    assert!(message.contains("127.0.0.1"), "{message}");
    let mut binary = Binary::connect_without_hello(&server);
    match binary.hear() {
        ServerMessage::Error(report) => assert_eq!(report.code, Code::Overloaded, "{}", report.message),
        other => panic!("{other:?}"),
    }
    until(&mut asking, "connectionsCrowdedAddress", |count| count >= 2);
    let mut first = Json::over(strangers.remove(0));
    first.say("{\"action\":\"ping\"}\n");
    first.hear_a("pong");
    assert_eq!(greeted(connect(&server)), None);
    drop(strangers);
    let deadline = Instant::now() + DEADLINE;
    while greeted(connect(&server)).is_some() {
        assert!(Instant::now() < deadline, "the stranger that has gone still counts");
    }
}

/// The accept of the strangers before may be still under way.
fn until_turned_away(server: &Handle) -> (String, String) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(told) = greeted(connect(server)) {
            return told;
        }
        assert!(Instant::now() < deadline, "everybody is let in");
    }
}

/// In all there are never more strangers than are allowed; from half of that on some are dropped, and yet who tries again
/// gets in.
#[test]
fn strangers_are_dropped_early_and_by_chance() {
    let server = server_with(|config| {
        config.max_unauthenticated = 40;
        config.max_unauthenticated_per_address = 1000;
    });
    let mut asking = Json::connect(&server);
    ask(&mut asking, "$sys.stats");
    // Each of these is let in or not before the next one comes.
    let mut silent = Vec::new();
    let mut dropped_at = Vec::new();
    for number in 0..400 {
        let before = ask(&mut asking, "$sys.stats")["total"]["connectionsCrowded"].as_u64().unwrap();
        silent.push(connect(&server));
        // Accepted in order: when the later one was decided, so was this.
        let tried = greeted(connect(&server));
        let after = ask(&mut asking, "$sys.stats")["total"]["connectionsCrowded"].as_u64().unwrap();
        if after - before > u64::from(tried.is_some()) {
            dropped_at.push(number);
            silent.pop();
        }
        if silent.len() == 40 {
            break;
        }
    }
    assert_eq!(silent.len(), 40, "so many may be there");
    assert!(dropped_at.first().is_some_and(|first| *first >= 20), "dropped below half: {dropped_at:?}");
    let (code, message) = greeted(connect(&server)).expect("the bound is reached");
    assert!(code == "overloaded" && message.contains("max-unauthenticated = 40"), "{message}");
    // Ten of them go: chance lets in who tries again and again.
    silent.truncate(30);
    let deadline = Instant::now() + DEADLINE;
    while greeted(connect(&server)).is_some() {
        assert!(Instant::now() < deadline, "nobody gets in");
    }
}

/// A stranger whose bytes come one by one has no more time than others, in both dialects and within a PROXY header, and is
/// told so.
#[test]
fn slow_strangers_have_no_more_time() {
    let server = server_with(|config| {
        config.handshake_timeout = Duration::from_millis(600);
        config.listen.push("[::1]:0".parse().unwrap());
        config.proxy_from = vec!["::1".parse().unwrap()];
    });
    let mut header = Vec::new();
    proxy::encode("192.0.2.7:1".parse().unwrap(), server.address(), &mut header);
    let long_string = [b"{\"id\":\"".to_vec(), vec![b'a'; 100_000]].concat();
    let hello = [Preface::plain().encode().to_vec(), vec![200, 0, 0, 0, 1, 0, 0, 0], vec![0; 200]].concat();
    let (own, relayed) = (server.addresses()[0], server.addresses()[1]);
    let said: Vec<_> = [
        (own, long_string, "handshake-timeout"),
        (own, hello, "handshake-timeout"),
        (relayed, header, "handshake-timeout"),
    ]
    .into_iter()
    .map(|(address, bytes, expected)| std::thread::spawn(move || (drip(address, &bytes), expected)))
    .collect();
    for thread in said {
        let (said, expected) = thread.join().unwrap();
        assert!(said.contains(expected), "{said}");
    }
    let mut asking = Json::connect(&server);
    until(&mut asking, "connectionsMute", |count| count == 3);
}

/// Says the bytes one by one, until the server has closed. What it said at the end.
fn drip(server: SocketAddr, bytes: &[u8]) -> String {
    let mut socket = connect_to(server);
    let mut reading = socket.try_clone().unwrap();
    let reader = std::thread::spawn(move || until_closed(&mut reading));
    let deadline = Instant::now() + DEADLINE;
    for byte in bytes {
        if reader.is_finished() || socket.write_all(&[*byte]).is_err() {
            break;
        }
        assert!(Instant::now() < deadline, "it may go on for ever");
        std::thread::sleep(Duration::from_millis(7));
    }
    String::from_utf8_lossy(&reader.join().unwrap()).into_owned()
}

/// What is nested without an end is refused at its 65th level, however much of it comes, and nothing of it is kept.
#[test]
fn depth_bombs() {
    let server = server_with(|_| {});
    let mut asking = Json::connect(&server);
    let driver_bytes = |asking: &mut Json| ask(asking, "$sys.stats")["now"]["driverBytes"].as_u64().unwrap();
    let before = driver_bytes(&mut asking);
    for bomb in ["[", "{\"a\":", "{\"data\":[{\"b\":"] {
        let mut socket = connect(&server);
        let bytes = [b"{\"id\":\"a\",\"data\":".to_vec(), bomb.repeat(100_000).into_bytes()].concat();
        // It is closed before all of it was said.
        socket.write_all(&bytes).ok();
        let said = String::from_utf8_lossy(&until_closed_or_reset(&mut socket)).into_owned();
        assert!(said.contains("\"tooDeep\"") && said.contains("64"), "{bomb}: {said}");
    }
    let deadline = Instant::now() + DEADLINE;
    while driver_bytes(&mut asking) > before + (8 << 10) {
        assert!(Instant::now() < deadline, "something of them is kept");
    }
}

fn until_closed_or_reset(socket: &mut TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(read @ 1..) = std::io::Read::read(socket, &mut piece) {
        said.extend_from_slice(&piece[..read]);
    }
    said
}

/// From a network of balancers, a connection counts as coming from where its header says, in both dialects; a balancer's own
/// counts as its own.
#[test]
fn proxy_headers_are_believed() {
    let server = server_with(|config| {
        config.listen.push("[::1]:0".parse().unwrap());
        config.proxy_from = vec!["127.0.0.0/8".parse().unwrap()];
    });
    let mut asking = Json::over(connect_to(server.addresses()[1]));
    ask(&mut asking, "$sys.stats");
    let mut json = Json::over(relayed(&server, "192.0.2.7:40000"));
    json.say("{\"action\":\"ping\"}\n");
    json.hear_a("pong");
    assert_eq!(addresses(&mut asking), ["192.0.2.7:40000"]);
    let _binary = Binary::over(relayed(&server, "[2001:db8::7]:40000"));
    assert_eq!(addresses(&mut asking)[1], "[2001:db8::7]:40000");
    let mut local = connect(&server);
    let mut header = Vec::new();
    proxy::encode_local(&mut header);
    // Header and first message in one piece, as a balancer may send them.
    header.extend_from_slice(b"{\"action\":\"ping\"}\n");
    local.write_all(&header).unwrap();
    let own = local.local_addr().unwrap().to_string();
    Json::over(local.try_clone().unwrap()).hear_a("pong");
    assert_eq!(addresses(&mut asking)[2], own);
}

/// From there every connection begins with a header, and from elsewhere none does: neither is guessed.
#[test]
fn proxy_headers_are_not_guessed() {
    let server = server_with(|config| config.proxy_from = vec!["127.0.0.0/8".parse().unwrap()]);
    for bytes in
        [&b"{\"action\":\"ping\"}\n"[..], &Preface::plain().encode(), b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r\n"]
    {
        let mut socket = connect(&server);
        socket.write_all(bytes).unwrap();
        let said = String::from_utf8_lossy(&until_closed(&mut socket)).into_owned();
        assert!(said.contains("send-proxy-v2"), "{said}");
    }
    let mut asking = Json::over(relayed(&server, "192.0.2.7:40000"));
    until(&mut asking, "connectionsUnproxied", |count| count == 3);
}

/// Whoever sends no header where one is wanted, or one where none is, is told what to change at either end, in the dialect that
/// it speaks: a binary client by a frame. Each is counted.
#[test]
fn mistakes_with_proxy_headers_are_explained() {
    let wanted = server_with(|config| config.proxy_from = vec!["127.0.0.0/8".parse().unwrap()]);
    let unwanted = server_with(|config| config.proxy_from = vec!["10.0.0.0/8".parse().unwrap()]);
    let header = {
        let mut header = Vec::new();
        let (client, port) = ("192.0.2.7:40000".parse().unwrap(), "198.51.100.1:8888".parse().unwrap());
        proxy::encode(client, port, &mut header);
        header
    };
    let (binary, json) = (Preface::plain().encode(), *b"{\"action\":\"ping\"}\n");
    for (server, first, advice) in [
        (&wanted, &[][..], ["--proxy-v2", "--proxy-from"]),
        (&unwanted, &header, ["without --proxy-v2", "--proxy-from"]),
        (&unwanted, b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r\n", ["without --proxy-v2", "127.0.0.1"]),
    ] {
        for (words, speaks_binary) in [(&binary[..], true), (&json, false)] {
            // A header of version 1 is not read: nobody knows what is behind it.
            let speaks_binary = speaks_binary && !first.starts_with(b"PROXY");
            let mut socket = connect(server);
            let (one, two) = first.split_at(first.len() / 2);
            for piece in [one, two, words] {
                socket.write_all(piece).unwrap();
                std::thread::yield_now();
            }
            let said = until_closed(&mut socket);
            assert_eq!(said.starts_with(&Preface::MAGIC), speaks_binary, "{said:?}");
            let said = String::from_utf8_lossy(&said).into_owned();
            assert!(advice.iter().all(|part| said.contains(part)), "{said}");
        }
    }
    let mut asking = Json::over(relayed(&wanted, "192.0.2.7:40000"));
    until(&mut asking, "connectionsUnproxied", |count| count == 2);
    until(&mut Json::over(connect(&unwanted)), "connectionsUnproxied", |count| count == 4);
    // White space alone is no header.
    let mut blank = connect(&unwanted);
    blank.write_all(b"\r\n\r\n{\"action\":\"ping\"}\n").unwrap();
    Json::over(blank).hear_a("pong");
}

/// Behind a balancer, the bound of an address is for the one that the header names: one client's strangers do not count for
/// another's, nor all of them for the balancer.
#[test]
fn proxied_addresses_have_the_bound() {
    let server = server_with(|config| {
        config.max_unauthenticated_per_address = 2;
        config.proxy_from = vec!["127.0.0.0/8".parse().unwrap()];
    });
    let mut asking = Json::over(relayed(&server, "198.51.100.1:1"));
    let _strangers: Vec<_> =
        (0..10).map(|number| relayed(&server, &format!("192.0.2.{}:1", number % 5))).collect();
    // Those may still be on their way: each further one is a stranger of its address for a moment only.
    let deadline = Instant::now() + DEADLINE;
    let (code, message) = loop {
        if let Some(told) = greeted(relayed(&server, "192.0.2.1:9")) {
            break told;
        }
        assert!(Instant::now() < deadline, "everybody is let in");
    };
    assert!(code == "overloaded" && message.contains("192.0.2.1"), "{message}");
    assert_eq!(greeted(relayed(&server, "192.0.2.77:1")), None);
    until(&mut asking, "connectionsCrowdedAddress", |count| count >= 1);
}

/// A listener that is not plain takes nobody without a key on a server that has one; a plain one beside it takes everybody.
#[test]
fn listeners_have_kinds() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(SecureKey::text_of(&[7; 32]).as_bytes()).unwrap();
    let server = server_with(|config| {
        config.keys = vec![KeyConfig::new(file.path().into(), Default::default())];
        config.listen.push("[::1]:0,plain".parse::<Listen>().unwrap());
    });
    let mut socket = connect(&server);
    socket.write_all(b"{\"action\":\"receivers\"}\n").unwrap();
    let said = String::from_utf8_lossy(&until_closed(&mut socket)).into_owned();
    assert!(said.contains("unauthorized") && said.contains("key"), "{said}");
    assert_eq!(greeted(connect_to(server.addresses()[1])), None);
}
