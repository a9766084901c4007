//! Connections that are half there: half-open ones, ones that break at any byte, clients that speak a byte at a time,
//! clients that never read. Each is told or cut with a reason and a counter, and nobody else notices.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what is not right"
)]

mod common;

use std::{net::SocketAddr, pin::pin, thread, time::Duration};

use common::{
    PATIENCE, Raw,
    frames::Frames,
    level::Level,
    load::{Ledger, Loads, Lost, client, works},
    process::{self, Process, ServerProcess},
    proxy::{Direction, Proxy},
    run, until,
};
use futures_util::future::join_all;
use ringpost::{Client, HandlerError, HandlerOptions, Reply, Request};
use ringpost_protocol::{
    Code,
    frame::Preface,
    message::{ClientMessage, ServerMessage},
};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

/// A silent client is lost after three times this. Longer than a busy machine lets a healthy one wait.
const PINGS: [&str; 2] = ["--ping-interval", "700ms"];
/// Memory may grow so much between two moments without load: what the allocator keeps for the next time.
const SLACK_KIB: u64 = 16 << 10;

fn handler(server: SocketAddr, ledger: &Ledger) -> Process {
    process::handler(server, "work", ledger.path(), 32, 10)
}

/// A handler whose cable is pulled out is noticed by its silence, passed over, and serves again once it has noticed, too.
#[test]
fn a_half_open_handler() {
    let server = ServerProcess::start(&PINGS);
    let proxy = Proxy::start(server.address);
    let ledger = Ledger::new();
    run(async {
        let (client, _steady) = (client(server.address).await, handler(server.address, &ledger));
        let victim = handler(proxy.address(), &ledger);
        let (mut level, mut lost) = (None, Lost::default());
        for round in 0..3 {
            let loads = Loads::start(&client, round);
            works(&victim, &ledger);
            let silent = server.total("connectionsSilent");
            proxy.half_open();
            until("the silence is noticed", || server.total("connectionsSilent") > silent);
            loads.go_on().await;
            works(&victim, &ledger);
            let (once, often) = loads.stop(&ledger).await;
            lost.add(&once, &often);
            // The socket on the proxy's side is not closed, but the server has let go of its own.
            level.get_or_insert_with(|| Level::settled(&server)).returns(&server, SLACK_KIB);
        }
        lost.assert_both();
        client.close().await;
    });
}

/// A requester whose cable is pulled out notices, comes back to its session, and gets every reply; nothing ran twice.
#[test]
fn a_half_open_requester() {
    let server = ServerProcess::start(&PINGS);
    let proxy = Proxy::start(server.address);
    let ledger = Ledger::new();
    run(async {
        let (client, _steady) = (client(proxy.address()).await, handler(server.address, &ledger));
        let loads = Loads::start(&client, 0);
        for connections in 1..4 {
            loads.go_on().await;
            proxy.half_open();
            until("it comes back", || proxy.accepted() > connections);
        }
        loads.go_on().await;
        let (once, often) = loads.stop(&ledger).await;
        once.assert_only(&[]);
        often.assert_only(&[]);
        for (number, attempts) in ledger.runs().0 {
            assert_eq!(attempts, [1], "request {number} ran once");
        }
        client.close().await;
    });
    assert!(server.total("sessionsResumed") >= 3, "{}", server.stats());
    common::wait_until_quiet(server.address, 1);
}

/// A slow, jerky network fails nothing.
#[test]
fn bad_weather() {
    let server = ServerProcess::start(&["--ping-interval", "10m"]);
    let proxy = Proxy::start(server.address);
    let ledger = Ledger::new();
    run(async {
        let (client, _handler) = (client(proxy.address()).await, handler(proxy.address(), &ledger));
        let loads = Loads::start(&client, 0);
        loads.go_on().await;
        for (delay_ms, rate) in [(20, None), (0, Some(200_000)), (5, Some(400_000)), (0, None)] {
            proxy.delay(Duration::from_millis(delay_ms));
            proxy.throttle(rate);
            loads.go_on().await;
            proxy.freeze();
            tokio::time::sleep(Duration::from_millis(200)).await;
            proxy.thaw();
            loads.go_on().await;
        }
        let (once, often) = loads.stop(&ledger).await;
        once.assert_only(&[]);
        often.assert_only(&[]);
        for (number, attempts) in ledger.runs().0 {
            assert_eq!(attempts, [1], "request {number} ran once");
        }
        client.close().await;
        assert_eq!(proxy.accepted(), 2, "no connection was given up");
    });
}

/// A requester's connection breaks at byte after byte, of either direction: every request has its reply and ran once.
#[test]
fn cuts_at_many_bytes() {
    let server = ServerProcess::start(&["--ping-interval", "10m"]);
    let proxy = Proxy::start(server.address);
    let ledger = Ledger::new();
    run(async {
        let (client, _handler) = (client(proxy.address()).await, handler(server.address, &ledger));
        let loads = Loads::start(&client, 0);
        loads.go_on().await;
        let small = (0..64).step_by(7);
        let large = (64..6000).step_by(777);
        for limit in small.chain(large) {
            for direction in [Direction::ToServer, Direction::ToClient] {
                let accepted = proxy.accepted();
                proxy.cut_at(Some((direction, limit)));
                proxy.cut();
                until("a connection comes to its end", || proxy.accepted() > accepted + 1);
            }
        }
        proxy.cut_at(None);
        proxy.cut();
        loads.go_on().await;
        let (once, often) = loads.stop(&ledger).await;
        once.assert_only(&[]);
        often.assert_only(&[]);
        for (number, attempts) in ledger.runs().0 {
            assert_eq!(attempts, [1], "request {number} ran once");
        }
        client.close().await;
    });
    common::wait_until_quiet(server.address, 1);
}

/// Says bytes one by one with a pause behind each, until the server has enough of it.
fn trickle(raw: &mut Raw, bytes: &[u8], pause: Duration) {
    for byte in bytes {
        if !raw.try_to_say([*byte]) {
            return;
        }
        thread::sleep(pause);
    }
}

/// What the server says last before it closes: the report's code and message.
fn told(raw: Raw) -> (String, String) {
    let rest = raw.rest();
    if rest.starts_with(&Preface::MAGIC) {
        let frame = ringpost_protocol::frame::FrameReader::new(1 << 20)
            .next(&mut rest[Preface::BYTES..].into())
            .unwrap()
            .expect("a frame");
        return match ringpost_protocol::frame::decode_server(frame).unwrap() {
            Some(ServerMessage::Error(report)) => (report.code.text().to_owned(), report.message),
            other => panic!("an error, not {other:?}"),
        };
    }
    let info: Value = serde_json::from_slice(&rest).expect("one object");
    let info = &info["message"]["info"];
    (info["code"].as_str().unwrap().to_owned(), info["error"].as_str().unwrap().to_owned())
}

/// A client that takes too long for its first message is told so, and which bound it was, in both dialects.
#[test]
fn a_slow_greeting() {
    let server = ServerProcess::start(&["--handshake-timeout", "300ms"]);
    let ledger = Ledger::new();
    run(async {
        let (client, _handler) = (client(server.address).await, handler(server.address, &ledger));
        let loads = Loads::start(&client, 0);
        let json = br#"{"id":"work","clientId":"1","data":1,"options":{"ttl":1000}}"#.to_vec();
        let mut binary = Preface::plain().encode().to_vec();
        binary.extend_from_slice(&[0; 60]);
        for (number, greeting) in [json, binary, b"   ".repeat(30), Vec::new()].into_iter().enumerate() {
            let mut raw = Raw::connect(server.address);
            trickle(&mut raw, &greeting, Duration::from_millis(30));
            let (code, message) = told(raw);
            assert!(
                code == "malformed" && message.contains("handshake-timeout"),
                "{number}: {code}: {message}"
            );
            assert_eq!(server.total("connectionsMute"), number as u64 + 1);
        }
        loads.go_on().await;
        let (once, often) = loads.stop(&ledger).await;
        once.assert_only(&[]);
        often.assert_only(&[]);
        client.close().await;
    });
    common::wait_until_quiet(server.address, 1);
}

/// A client that is known may take its time for a message, longer than it may be silent: it is heard. Nobody waits for it.
#[test]
fn a_slow_speaker() {
    let server = ServerProcess::start(&["--ping-interval", "500ms"]);
    let ledger = Ledger::new();
    run(async {
        let (client, _handler) = (client(server.address).await, handler(server.address, &ledger));
        let loads = Loads::start(&client, 0);
        let speakers = [
            thread::spawn({
                let mut raw = Raw::connect(server.address);
                move || {
                    raw.object(&json!({"action": "ping"}));
                    raw.answer();
                    let padding = "x".repeat(150);
                    let request =
                        json!({"id": "work", "clientId": "slow", "data": 7, "options": {"note": padding}});
                    trickle(&mut raw, request.to_string().as_bytes(), Duration::from_millis(8));
                    assert_eq!(raw.answer()["message"]["data"], 7);
                }
            }),
            thread::spawn({
                let mut frames = Frames::connect(server.address);
                move || {
                    let request = frames.encoded_request(1, "work", format!("{:200}", 8).as_bytes());
                    trickle(&mut frames.raw, &request, Duration::from_millis(8));
                    assert_eq!(frames.reply_among_pings().content.payload(), b"8");
                }
            }),
        ];
        for speaker in speakers {
            speaker.join().unwrap();
        }
        loads.go_on().await;
        let (once, often) = loads.stop(&ledger).await;
        once.assert_only(&[]);
        often.assert_only(&[]);
        assert_eq!(server.total("connectionsSilent"), 0);
        client.close().await;
    });
    common::wait_until_quiet(server.address, 1);
}

/// A client that falls silent within a frame is lost like any other silent one, and told so.
#[test]
fn silent_within_a_frame() {
    let server = ServerProcess::start(&["--ping-interval", "100ms"]);
    let mut frames = Frames::connect(server.address);
    let request = frames.encoded_request(1, "work", b"1");
    frames.raw.say(&request[..request.len() / 2]);
    let report = loop {
        match frames.next().expect("a reason before the end") {
            ServerMessage::Error(report) => break report,
            ServerMessage::Ping(_) => {}
            other => panic!("pings and an error, not {other:?}"),
        }
    };
    assert_eq!(report.code, Code::ConnectionLost, "{}", report.message);
    assert!(frames.next().is_none());
    assert_eq!(server.total("connectionsSilent"), 1);
    common::wait_until_quiet(server.address, 1);
}

/// Bounds that a client which does not read reaches soon, and has soon been at for too long.
const SMALL: [&str; 6] = ["--max-payload", "256KiB", "--outbound-limit", "1MiB", "--ping-interval", "700ms"];
/// Data of which a few dozen fill whatever the kernel keeps for a connection.
const BLOB_BYTES: usize = 100 << 10;

/// A connection whose own kernel takes little that is not read.
fn deaf(server: SocketAddr) -> Raw {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&server.into()).unwrap();
    Raw::over(socket.into())
}

/// A client that says that it is there, and reads nothing.
enum Deaf {
    Json(Raw),
    Binary(Frames),
}

impl Deaf {
    fn says_something(&mut self) {
        // It may be over with it already.
        match self {
            Self::Json(raw) => raw.try_to_say("{\"action\":\"ping\"}\n"),
            Self::Binary(frames) => frames.try_to_say(&ClientMessage::Ping(1)),
        };
    }

    /// Lives on until the server has closed one more connection that does not read, and has said why.
    fn until_closed(&mut self, server: &ServerProcess, before: u64) {
        until("the deaf client is closed", || {
            self.says_something();
            server.total("connectionsSlow") > before
        });
        until("the log says why", || server.process.logged("outbound-limit"));
    }
}

/// A requester that never reads its replies, in both dialects, is cut; meanwhile others' requests go on.
#[test]
fn a_deaf_requester() {
    let server = ServerProcess::start(&SMALL);
    let ledger = Ledger::new();
    run(async {
        let (client, _handler) = (client(server.address).await, handler(server.address, &ledger));
        let blob = json!("x".repeat(BLOB_BYTES));
        let reply = move |_: Request| {
            let reply = Reply::json(&blob);
            async move { Ok::<_, HandlerError>(reply?) }
        };
        client.handle("blob", reply).await.unwrap();
        let mut level = None;
        for round in 0..3 {
            let loads = Loads::start(&client, round);
            let cut = server.total("connectionsSlow");
            let mut json = deaf(server.address);
            for number in 0..300 {
                json.try_to_say(format!("{}\n", json!({"id": "blob", "clientId": number, "data": null})));
            }
            Deaf::Json(json).until_closed(&server, cut);
            let mut binary = Frames::greet(deaf(server.address));
            for number in 1..300 {
                let request = binary.encoded_request(number, "blob", b"null");
                binary.raw.try_to_say(request);
            }
            Deaf::Binary(binary).until_closed(&server, cut + 1);
            loads.go_on().await;
            let (once, often) = loads.stop(&ledger).await;
            once.assert_only(&[]);
            often.assert_only(&[]);
            level.get_or_insert_with(|| Level::settled(&server)).returns(&server, SLACK_KIB);
        }
        client.close().await;
    });
}

/// A handler that never reads its deliveries, in both dialects, is cut; what it was given goes to one that reads.
#[test]
fn a_deaf_handler() {
    let server = ServerProcess::start(&SMALL);
    run(async {
        let (requester, reader) = (client(server.address).await, client(server.address).await);
        // What it holds at once stays below the bound.
        let few = HandlerOptions { concurrency: 4, ..HandlerOptions::default() };
        let measure = |request: Request| async move { Ok(Reply::json(&request.as_bytes().len())?) };
        let mut level = None;
        for _ in 0..3 {
            for dialect in ["json", "binary"] {
                let cut = server.total("connectionsSlow");
                let mut deaf = match dialect {
                    "json" => {
                        let mut raw = deaf(server.address);
                        raw.object(&json!({"id": "pit", "action": "init", "concurrency": 1000}));
                        raw.wait_for("pit");
                        Deaf::Json(raw)
                    }
                    _ => {
                        let mut frames = Frames::greet(deaf(server.address));
                        frames.register_with("pit", 1000);
                        Deaf::Binary(frames)
                    }
                };
                let good = reader.handle_with("pit", few, measure).await.unwrap();
                all_answered(&requester, &server, &mut deaf).await;
                deaf.until_closed(&server, cut);
                good.deregister().await;
            }
            // How much of a round's peak the allocator keeps is not the same each time.
            level.get_or_insert_with(|| Level::settled(&server)).returns(&server, 2 * SLACK_KIB);
        }
        requester.close().await;
        reader.close().await;
    });
}

/// Sends more than the deaf handler's share of what its connection may keep; all have to be answered.
async fn all_answered(requester: &Client, server: &ServerProcess, deaf: &mut Deaf) {
    let data = format!("\"{}\"", "x".repeat(BLOB_BYTES));
    let requests = (0..400).map(|_| {
        let request = requester.request_bytes("pit", &data).max_attempts(3).timeout(PATIENCE);
        tokio::spawn(request.into_future())
    });
    let mut answers = pin!(join_all(requests));
    let answers = loop {
        tokio::select! {
            answers = &mut answers => break answers,
            () = tokio::time::sleep(common::LOOK_AGAIN) => deaf.says_something(),
        }
    };
    for answer in answers {
        let reply = answer.unwrap().unwrap_or_else(|error| panic!("{error}: {}", server.stats()));
        assert_eq!(reply.data::<usize>().unwrap(), data.len());
    }
}

/// A handler that reads as fast as it can is not taken for a deaf one, though what it may hold at once is many times what may
/// wait for a connection.
#[test]
fn a_burst_is_no_deafness() {
    let server = ServerProcess::start(&SMALL);
    run(async {
        let (requester, reader) = (client(server.address).await, client(server.address).await);
        let many = HandlerOptions { concurrency: 300, ..HandlerOptions::default() };
        let measure = |request: Request| async move { Ok(Reply::json(&request.as_bytes().len())?) };
        reader.handle_with("measure", many, measure).await.unwrap();
        let data = format!("\"{}\"", "x".repeat(BLOB_BYTES));
        let requests = (0..300).map(|_| {
            let request = requester.request_bytes("measure", &data).timeout(PATIENCE);
            tokio::spawn(request.into_future())
        });
        for answer in join_all(requests).await {
            let reply = answer.unwrap().unwrap_or_else(|error| panic!("{error}: {}", server.stats()));
            assert_eq!(reply.data::<usize>().unwrap(), data.len());
        }
        requester.close().await;
        reader.close().await;
    });
    assert_eq!(server.total("connectionsSlow"), 0, "{}", server.stats());
}
