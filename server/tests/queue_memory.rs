//! Far more waits than is held in memory, under a real server and on a real disk: order and data are as if all were held.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use common::{Binary, DEADLINE};
use ringpost_io::{
    faults::{Fault, Faults},
    file_error::FileOperation,
};
use ringpost_protocol::{
    Code, Content,
    message::{ClientMessage, Deliver, Reply, Request, RequestFlags, ServerMessage, Target},
};
use ringpost_server::{Config, Handle, Server};
use rustix::io::Errno;
use serde_json::Value;
use tempfile::tempdir;

/// What is held, and many times that: what waits.
const QUEUE_MEMORY: u64 = 256 << 10;
const BYTES: usize = 10_000;
const REQUESTS: u64 = 1500;

fn start(directory: &Path) -> Handle {
    let mut config = Config::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    (config.max_payload, config.segment_size) = (16 << 10, 1 << 20);
    Server::builder().config(config).data_dir(directory).queue_memory(QUEUE_MEMORY).start().unwrap()
}

/// What the so manieth request carries.
fn data(number: u64) -> Vec<u8> {
    format!("{number:05}").repeat(BYTES / 5).into_bytes()
}

/// Sends them all, and waits until all are accepted.
fn ask(client: &mut Binary, numbers: std::ops::RangeInclusive<u64>) {
    let last = *numbers.end();
    for number in numbers {
        let content = Content::from_parts(b"work", b"", b"", &data(number));
        let flags = RequestFlags::DURABLE;
        client.say(&ClientMessage::Request(Request { number, flags, content, ..Request::default() }));
    }
    loop {
        match client.hear_all_or_end().expect("acceptance") {
            ServerMessage::Accepted { upto, .. } if upto >= last => return,
            ServerMessage::Accepted { .. } => {}
            other => panic!("refused: {other:?}"),
        }
    }
}

fn now(server: &Handle, figure: &str) -> u64 {
    let mut client = Binary::connect(server);
    client.request(1, "$sys.stats", b"null");
    let ServerMessage::Reply(reply) = client.hear() else { panic!("no reply") };
    let stats: Value = serde_json::from_slice(reply.content.payload()).unwrap();
    stats["now"].get(figure).or(stats["total"].get(figure)).and_then(Value::as_u64).unwrap()
}

fn delivery(handler: &mut Binary) -> Deliver {
    match handler.hear() {
        ServerMessage::Deliver(deliver) => deliver,
        other => panic!("no delivery: {other:?}"),
    }
}

fn reply(requester: &mut Binary) -> Reply {
    match requester.hear() {
        ServerMessage::Reply(reply) => reply,
        other => panic!("no reply: {other:?}"),
    }
}

/// A queue of many times the bound is held up to it only, before and after a restart, and is handled whole and in its order.
#[test]
fn many_times_what_is_held() {
    let directory = tempdir().unwrap();
    let server = start(directory.path());
    let mut requester = Binary::connect_as(&server, "requester");
    ask(&mut requester, 1..=REQUESTS);
    let held_and_stored = |server: &Handle| {
        let [held, stored] = ["durableHeldBytes", "durableStoredBytes"].map(|figure| now(server, figure));
        assert_eq!(held + stored, REQUESTS * (BYTES as u64 + 4), "{held} held, {stored} stored");
        held
    };
    assert!((QUEUE_MEMORY / 2..=QUEUE_MEMORY).contains(&held_and_stored(&server)));
    drop(requester);
    server.stop();

    let server = start(directory.path());
    assert!((QUEUE_MEMORY / 2..=QUEUE_MEMORY).contains(&held_and_stored(&server)));
    let mut handler = Binary::connect(&server);
    handler.register("work");
    for number in 1..=REQUESTS {
        let deliver = delivery(&mut handler);
        assert!(deliver.content.payload() == data(number), "request {number}, in its turn and whole");
        handler.answer(deliver.delivery, number, b"1");
    }
    let deadline = Instant::now() + DEADLINE;
    while now(&server, "durableHeldBytes") + now(&server, "durableStoredBytes") > 0 {
        assert!(Instant::now() < deadline, "all of them are decided");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(now(&server, "readBack") > REQUESTS / 2);
    assert_eq!(now(&server, "unreadable"), 0);
}

/// What cannot be read back ends with an error for its requester, and nothing else does: a bit that has flipped on the disk,
/// and a disk that does not read.
#[test]
fn what_cannot_be_read_back() {
    let directory = tempdir().unwrap();
    let server = start(directory.path());
    let mut requester = Binary::connect_as(&server, "requester");
    ask(&mut requester, 1..=100);
    // The last but one has its bit flipped in its middle.
    let damaged = data(99);
    let segments = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut flipped = false;
    for path in segments.filter(|path| path.extension().is_some_and(|extension| extension == "segment")) {
        let bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(BYTES).position(|window| window == damaged) {
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.write_all_at(&[bytes[at + BYTES / 2] ^ 4], (at + BYTES / 2) as u64).unwrap();
            flipped = true;
        }
    }
    assert!(flipped, "its record is found");
    let mut handler = Binary::connect(&server);
    handler.register("work");
    for number in (1..=100).filter(|number| *number != 99) {
        let deliver = delivery(&mut handler);
        assert!(deliver.content.payload() == data(number), "request {number}, in its turn and whole");
        handler.answer(deliver.delivery, number, b"1");
    }
    let mut errors = Vec::new();
    for _ in 1..=100 {
        let reply = reply(&mut requester);
        requester.say(&ClientMessage::Acknowledge(Target::Number(reply.sequence)));
        errors.extend(reply.code.map(|code| (reply.number, code)));
    }
    assert_eq!(errors, [(99, Code::DurableUnavailable)]);
    assert_eq!(now(&server, "unreadable"), 1);

    // More than is held again, without a handler; then the disk reads nothing any more, twice.
    drop(handler);
    let deadline = Instant::now() + DEADLINE;
    while now(&server, "handlers") > 0 {
        assert!(Instant::now() < deadline, "the handler has gone");
        std::thread::sleep(Duration::from_millis(10));
    }
    ask(&mut requester, 101..=130);
    let faults = Faults::under(directory.path());
    let fails = Fault::fails(FileOperation::Read, Errno::IO.raw_os_error()).of(".segment");
    faults.inject(fails.lasting());
    let mut handler = Binary::connect(&server);
    handler.register("work");
    let first = reply(&mut requester);
    assert_eq!(first.code, Some(Code::DurableUnavailable));
    assert!(String::from_utf8_lossy(first.content.payload()).contains("segment"), "{first:?}");
    assert_plain_goes_on(&server);
    faults.clear();
}

/// A log that cannot be read for now (no memory for it here; no descriptors, no file) ends nobody's request: all of them are
/// handled, whole and in their order, once it can.
#[test]
fn what_is_out_of_reach_for_a_while() {
    let directory = tempdir().unwrap();
    let server = start(directory.path());
    let mut requester = Binary::connect_as(&server, "requester");
    ask(&mut requester, 1..=100);
    let faults = Faults::under(directory.path());
    faults.inject(Fault::fails(FileOperation::Read, Errno::NOMEM.raw_os_error()).of(".segment").lasting());
    let mut handler = Binary::connect(&server);
    handler.register("work");
    let mut next = 1;
    let deadline = Instant::now() + DEADLINE;
    while now(&server, "readsPutOff") < 3 {
        assert!(Instant::now() < deadline, "what is not held is asked for");
        if now(&server, "openDeliveries") > 0 {
            let deliver = delivery(&mut handler);
            assert!(deliver.content.payload() == data(next), "request {next} was held");
            handler.answer(deliver.delivery, next, b"1");
            next += 1;
        }
    }
    assert_eq!(now(&server, "unreadable"), 0);
    assert_plain_goes_on(&server);
    faults.clear();
    for number in next..=100 {
        let deliver = delivery(&mut handler);
        assert!(deliver.content.payload() == data(number), "request {number}, in its turn and whole");
        handler.answer(deliver.delivery, number, b"1");
    }
    for _ in 1..=100 {
        let reply = reply(&mut requester);
        assert_eq!(reply.code, None, "{reply:?}");
        requester.say(&ClientMessage::Acknowledge(Target::Number(reply.sequence)));
    }
}

fn assert_plain_goes_on(server: &Handle) {
    let (mut handler, mut requester) = (Binary::connect(server), Binary::connect(server));
    handler.register("plain");
    requester.request(1, "plain", b"1");
    let deliver = delivery(&mut handler);
    handler.answer(deliver.delivery, 1, b"2");
    assert_eq!(reply(&mut requester).content.payload(), b"2");
}
