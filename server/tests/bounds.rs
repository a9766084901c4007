//! What a client can make the server hold, and what becomes of one that goes beyond it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{
    io::Write,
    net::{Shutdown, TcpStream},
    thread::JoinHandle,
    time::Duration,
};

use common::{Binary, Json, connect};
use ringpost_protocol::{
    Code, Content, Outgoing,
    frame::{self, Preface},
    message::{ClientMessage, Hello, Reply, Request, ServerMessage},
};
use ringpost_server::{Config, Handle, Server};
use serde_json::Value;

const MIB: usize = 1 << 20;

fn server_with(set: impl FnOnce(&mut Config)) -> Handle {
    let mut config = Config::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    config.max_payload = MIB as u64;
    config.outbound_limit = 8 << 20;
    set(&mut config);
    Server::builder().config(config).start().unwrap()
}

fn reply(client: &mut Binary) -> Reply {
    match client.hear() {
        ServerMessage::Reply(reply) => reply,
        other => panic!("no reply: {other:?}"),
    }
}

fn error_of(reply: &Reply) -> (Option<Code>, String) {
    (reply.code, String::from_utf8_lossy(reply.content.payload()).into_owned())
}

/// What `$sys.stats` shows under `part` and `name`.
fn stat(server: &Handle, part: &str, name: &str) -> u64 {
    let mut asking = Json::connect(server);
    asking.say("{\"id\":\"$sys.stats\",\"data\":null}\n");
    let stats: Value = asking.hear_a("response");
    stats["message"]["data"][part][name].as_u64().unwrap()
}

/// Asks until what `$sys.stats` shows is as it should be.
fn until(server: &Handle, part: &str, name: &str, holds: impl Fn(u64) -> bool) {
    for _ in 0..1600 {
        if holds(stat(server, part, name)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    let memory = stat(server, "now", "memoryBytes");
    panic!("{name} stays at {} ({memory} bytes are held)", stat(server, part, name));
}

fn falls_to(server: &Handle, name: &str, at_most: u64) {
    until(server, "now", name, |bytes| bytes <= at_most);
}

fn happens(server: &Handle, name: &str) {
    until(server, "total", name, |count| count > 0);
}

/// A client that lives and says so, but reads nothing.
fn keep_pinging(mut socket: TcpStream) -> JoinHandle<()> {
    let mut ping = Outgoing::new();
    frame::encode_client(&ClientMessage::Ping(1), &mut ping);
    let ping = ping.drain_to_vec();
    std::thread::spawn(move || {
        while socket.write_all(&ping).is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    })
}

/// A handler that reads nothing gets no more deliveries; the action's other handler gets them. After a while without any
/// progress it is closed, and what it held is lost with it.
#[test]
fn slow_consumers_get_nothing_more_and_are_closed() {
    let server = server_with(|config| config.ping_interval = Duration::from_millis(500));
    let (mut deaf, mut quick, mut other) =
        (Binary::connect(&server), Binary::connect(&server), Binary::connect(&server));
    deaf.register("a");
    let pinging = keep_pinging(deaf.socket.try_clone().unwrap());
    quick.register("a");
    let answering = std::thread::spawn(move || {
        let mut sequence = 0;
        while let Some(message) = quick.hear_or_end() {
            if let ServerMessage::Deliver(deliver) = message {
                sequence += 1;
                quick.answer(deliver.delivery, sequence, b"1");
            }
        }
        sequence
    });
    // Fewer than the credit of the deaf one, so that it is not credit which keeps the rest from it.
    let payload = vec![7; MIB];
    for number in 1..=120 {
        other.request(number, "a", &payload);
    }
    let replies: Vec<_> = (1..=120).map(|_| reply(&mut other)).collect();
    let lost = replies.iter().filter(|reply| reply.code == Some(Code::HandlerLost)).count();
    let answered = replies.iter().filter(|reply| reply.code.is_none()).count();
    // Half of the bound is 4 MiB, and the sockets' buffers hold a few more.
    assert!(lost + answered == 120 && (4..=30).contains(&lost), "{lost} lost, {answered} answered");
    assert_eq!(stat(&server, "total", "connectionsSlow"), 1);
    assert!(stat(&server, "total", "connectionsClogged") >= 1);
    server.stop();
    pinging.join().unwrap();
    assert_eq!(answering.join().unwrap() as usize, answered);
}

/// A slow client that does read is told why it is closed, behind what waited for it.
#[test]
fn a_slow_consumer_is_told_why() {
    let server = server_with(|config| {
        config.outbound_limit = 3 << 20;
        config.ping_interval = Duration::from_millis(500);
    });
    let (mut slow, mut other) = (Binary::connect(&server), Binary::connect(&server));
    slow.register("slow");
    let pinging = keep_pinging(slow.socket.try_clone().unwrap());
    let payload = vec![7; MIB];
    for number in 1..=40 {
        other.request(number, "slow", &payload);
    }
    for _ in 1..=40 {
        assert!(reply(&mut other).code.is_some());
    }
    let mut last = None;
    while let Some(message) = slow.hear_or_end() {
        last = Some(message);
    }
    let Some(ServerMessage::Error(report)) = last else { panic!("no reason") };
    assert_eq!(report.code, Code::Overloaded);
    assert!(report.message.contains("outbound-limit"), "{}", report.message);
    drop(slow);
    pinging.join().unwrap();
}

/// A client that goes on reading after a pause gets deliveries again, all of them, and stays.
#[test]
fn a_clogged_handler_that_catches_up_goes_on() {
    let server = server_with(|config| config.outbound_limit = 3 << 20);
    let (mut handler, mut other) = (Binary::connect(&server), Binary::connect(&server));
    handler.register("a");
    let payload = vec![7; MIB];
    for number in 1..=40 {
        other.request(number, "a", &payload);
    }
    happens(&server, "connectionsClogged");
    for sequence in 1..=40 {
        let ServerMessage::Deliver(deliver) = handler.hear() else { panic!("no delivery") };
        handler.answer(deliver.delivery, sequence, b"1");
    }
    for _ in 1..=40 {
        assert_eq!(reply(&mut other).code, None);
    }
    assert_eq!(stat(&server, "total", "connectionsSlow"), 0);
}

/// Messages that are half received count: over the budget they get no further, nobody else is hurt for long, and when they
/// are gone nothing of them is left.
#[test]
fn half_received_messages_are_bounded() {
    let server = server_with(|config| config.memory = 16 << 20);
    let mut handler = Binary::connect(&server);
    handler.register("a");
    let mut hello = Outgoing::new();
    frame::encode_client(&ClientMessage::Hello(Hello::default()), &mut hello);
    let mut large = Outgoing::new();
    let content = Content::from_parts(b"a", b"", b"", &vec![7; MIB]);
    frame::encode_client(
        &ClientMessage::Request(Request { number: 1, content, ..Request::default() }),
        &mut large,
    );
    let large = large.drain_to_vec();
    let beginning =
        [&Preface::plain().encode()[..], &hello.drain_to_vec(), &large[..large.len() - 1]].concat();
    // Eight times what is allowed, but for one byte each.
    let half: Vec<_> = (0..16).map(|_| connect(&server)).collect();
    let mut writing = Vec::new();
    for socket in &half {
        let (mut socket, beginning) = (socket.try_clone().unwrap(), beginning.clone());
        // A connection that is given up is closed while it still writes.
        writing.push(std::thread::spawn(move || drop(socket.write_all(&beginning))));
    }
    happens(&server, "connectionsStarved");
    assert!(stat(&server, "now", "memoryBytes") < 12 << 20);
    // Nobody else is held up by them.
    let mut other = Binary::connect(&server);
    let small = b"small";
    other.request(1, "a", small);
    let ServerMessage::Deliver(deliver) = handler.hear() else { panic!("no delivery") };
    handler.answer(deliver.delivery, 1, b"1");
    assert_eq!(reply(&mut other).code, None);
    for socket in half {
        // The server may have reset it already.
        drop(socket.shutdown(Shutdown::Both));
    }
    for writing in writing {
        writing.join().unwrap();
    }
    falls_to(&server, "connectionsBinary", 2);
    falls_to(&server, "memoryBytes", 128 << 10);
}

/// Requests that would have to be kept beyond the budget are refused with the bound's name. When all is over, nothing is held.
#[test]
fn over_the_budget_requests_are_refused() {
    let server = server_with(|config| {
        config.memory = 16 << 20;
        config.outbound_limit = 64 << 20;
    });
    let (mut handler, mut other) = (Binary::connect(&server), Binary::connect(&server));
    handler.register("a");
    handler.say(&ClientMessage::Credit { registration: 1, credit: 1 });
    let payload = vec![7; MIB / 2];
    for number in 1..=32 {
        other.request(number, "a", &payload);
    }
    // One is held, some wait, the rest is refused.
    let refused = reply(&mut other);
    let (code, message) = error_of(&refused);
    assert_eq!(code, Some(Code::Overloaded), "{message}");
    assert!(message.contains("--memory"), "{message}");
    assert!(stat(&server, "now", "memoryBytes") <= 18 << 20);
    assert!(stat(&server, "total", "refusedMemory") > 0);
    drop(other);
    drop(handler);
    falls_to(&server, "memoryBytes", 128 << 10);
}

/// Replies that wait for a client who does not read count as well. As long as they use up the budget, others are read more
/// slowly and refused, but not the handler whose answers are waited for; when they are gone, all is as before.
#[test]
fn short_memory_slows_reading() {
    let server = server_with(|config| {
        config.memory = 16 << 20;
        config.outbound_limit = 64 << 20;
    });
    let (mut handler, mut deaf, mut other) =
        (Binary::connect(&server), Binary::connect(&server), Binary::connect(&server));
    handler.register("a");
    // More than the sockets' buffers and the budget together, less than half of what may wait for one connection.
    for number in 1..=30 {
        deaf.request(number, "a", b"small");
    }
    let held: Vec<_> = (0..30)
        .map(|_| {
            let ServerMessage::Deliver(deliver) = handler.hear() else { panic!("no delivery") };
            deliver.delivery
        })
        .collect();
    let payload = vec![7; MIB];
    for (delivery, sequence) in held.into_iter().zip(1..) {
        handler.answer(delivery, sequence, &payload);
    }
    until(&server, "total", "replies", |replies| replies == 30);
    other.request(1, "a", b"small");
    let (code, message) = error_of(&reply(&mut other));
    assert!(code == Some(Code::Overloaded) && message.contains("--memory"), "{message}");
    assert!(stat(&server, "total", "readsHeldBack") > 0);
    assert_eq!(stat(&server, "total", "connectionsSlow"), 0);
    for _ in 0..30 {
        assert_eq!(reply(&mut deaf).content.payload().len(), MIB);
    }
    falls_to(&server, "memoryBytes", 256 << 10);
    other.request(2, "a", b"small");
    assert!(matches!(handler.hear(), ServerMessage::Deliver(_)));
}

/// A large payload that goes to many handlers is one buffer, and counts as one.
#[test]
fn a_shared_payload_counts_once() {
    let server = server_with(|config| config.memory = 16 << 20);
    let mut handlers: Vec<_> = (0..16)
        .map(|_| {
            let mut handler = Binary::connect(&server);
            handler.register("a");
            handler
        })
        .collect();
    let mut other = Binary::connect(&server);
    let content = Content::from_parts(b"a", b"", b"", &vec![7; MIB]);
    let flags = ringpost_protocol::message::RequestFlags::BROADCAST;
    other.say(&ClientMessage::Request(Request { number: 1, flags, content, ..Request::default() }));
    assert!(matches!(other.hear(), ServerMessage::Legs { expected: 16, .. }));
    for handler in &mut handlers {
        let ServerMessage::Deliver(deliver) = handler.hear() else { panic!("no delivery") };
        assert_eq!(deliver.content.payload().len(), MIB);
        handler.answer(deliver.delivery, 1, b"1");
    }
    for _ in 0..16 {
        assert_eq!(reply(&mut other).code, None);
    }
    assert_eq!(stat(&server, "total", "connectionsSlow"), 0);
    falls_to(&server, "largeBytes", 0);
}

/// Many large messages at once, more than there is room for: all of them come in, one after the other.
#[test]
fn large_messages_make_way_for_each_other() {
    const UPLOADS: u64 = 48;
    // A quarter of it for half-received ones, which is half of what comes; the rest is enough for all.
    let server = server_with(|config| config.memory = 96 << 20);
    let mut handler = Binary::connect(&server);
    handler.register("a");
    let mut request = Outgoing::new();
    let content = Content::from_parts(b"a", b"", b"", &vec![7; MIB - 100]);
    let message = ClientMessage::Request(Request { number: 1, content, ..Request::default() });
    frame::encode_client(&message, &mut request);
    let request = request.drain_to_vec();
    let uploads: Vec<_> = (0..UPLOADS)
        .map(|_| {
            let (mut client, request) = (Binary::connect(&server), request.clone());
            std::thread::spawn(move || {
                // As fast as the others, so that all are half received at the same time.
                for piece in request.chunks(64 << 10) {
                    client.socket.write_all(piece).unwrap();
                    std::thread::sleep(Duration::from_millis(10));
                }
                error_of(&reply(&mut client))
            })
        })
        .collect();
    for sequence in 1..=UPLOADS {
        let ServerMessage::Deliver(deliver) = handler.hear() else { panic!("no delivery") };
        handler.answer(deliver.delivery, sequence, b"1");
    }
    for upload in uploads {
        assert_eq!(upload.join().unwrap(), (None, "1".into()));
    }
    assert!(stat(&server, "total", "readsHeldBack") > 0);
    assert_eq!(stat(&server, "total", "connectionsStarved"), 0);
}

/// A client that reads all the time, only more slowly than it is sent, stays, however often it falls behind.
#[test]
fn a_steady_reader_stays() {
    let server = server_with(|config| {
        config.outbound_limit = 4 << 20;
        config.ping_interval = Duration::from_millis(400);
    });
    let (mut handler, mut other) = (Binary::connect(&server), Binary::connect(&server));
    handler.register("a");
    let payload = vec![7; MIB - 100];
    for number in 1..=60 {
        other.request(number, "a", &payload);
    }
    let asking = std::thread::spawn(move || (1..=60).map(|_| reply(&mut other).code).collect::<Vec<_>>());
    for sequence in 1..=60 {
        let ServerMessage::Deliver(deliver) = handler.hear() else { panic!("no delivery") };
        handler.answer(deliver.delivery, sequence, b"1");
        std::thread::sleep(Duration::from_millis(40));
    }
    assert_eq!(asking.join().unwrap(), vec![None; 60]);
    assert!(stat(&server, "total", "connectionsClogged") > 1);
    assert_eq!(stat(&server, "total", "connectionsSlow"), 0);
}
