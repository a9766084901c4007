//! A server whose log takes its time to be read: it serves what needs no log, and has all that was accepted when it is read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use common::{Binary, DEADLINE, connect};
use ringpost_io::{
    faults::{Fault, Faults},
    file_error::FileOperation,
};
use ringpost_protocol::{
    Code, Content,
    frame::Preface,
    message::{ClientMessage, Hello, Request, RequestFlags, ServerMessage, Speaker},
};
use ringpost_server::{Config, Ended, Handle, Server};
use serde_json::Value;
use tempfile::tempdir;

fn start(directory: &Path) -> Handle {
    let mut config = Config::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    Server::builder().config(config).data_dir(directory).start().unwrap()
}

/// Sends a durable request, and hears whether it is accepted.
fn ask(client: &mut Binary, number: u64) -> Option<Code> {
    let content = Content::from_parts(b"work", b"", b"", b"1");
    let flags = RequestFlags::DURABLE;
    client.say(&ClientMessage::Request(Request { number, flags, content, ..Request::default() }));
    match client.hear_all_or_end().expect("a word about it") {
        ServerMessage::Accepted { upto, .. } if upto >= number => None,
        ServerMessage::Reply(reply) if reply.number == number => reply.code,
        other => panic!("{other:?}"),
    }
}

/// A log in which a request waits.
fn log_with_one(directory: &Path) {
    let server = start(directory);
    let mut requester = Binary::connect_as(&server, "requester");
    assert_eq!(ask(&mut requester, 1), None);
    server.stop();
}

/// Lets no byte of a segment be read until the faults are cleared.
fn held_back(directory: &Path) -> Faults {
    let faults = Faults::under(directory);
    faults.inject(Fault::held(FileOperation::Read).of(".segment").lasting());
    faults
}

fn state(server: &Handle) -> String {
    let mut client = Binary::connect(server);
    client.request(1, "$sys.stats", b"null");
    let ServerMessage::Reply(reply) = client.hear() else { panic!("no reply") };
    let stats: Value = serde_json::from_slice(reply.content.payload()).unwrap();
    stats["state"].as_str().unwrap().to_owned()
}

/// Says hello under a name of its own, and gets the answer.
fn greets(server: &Handle, session: &'static str) -> ServerMessage {
    let mut client = Binary::connect_without_hello(server);
    let speaker = Speaker { instance: 1, connection: 2 };
    client.say(&ClientMessage::Hello(Hello { session: session.into(), speaker, ..Hello::default() }));
    client.hear()
}

/// While the log is read, plain requests are served, durable ones are told to come again, and so is who may be known to the log.
/// When it is read, what waited in it goes to the handler that came meanwhile, and its requester can come back.
#[test]
fn plain_requests_are_served_meanwhile() {
    let directory = tempdir().unwrap();
    log_with_one(directory.path());
    let faults = held_back(directory.path());
    let server = start(directory.path());
    assert_eq!(state(&server), "recovering");
    let (mut handler, mut stranger) = (Binary::connect(&server), Binary::connect(&server));
    handler.register("work");
    stranger.request(1, "work", b"1");
    let ServerMessage::Deliver(plain) = handler.hear() else { panic!("no delivery") };
    handler.answer(plain.delivery, 1, b"2");
    let ServerMessage::Reply(reply) = stranger.hear() else { panic!("no reply") };
    assert_eq!(reply.content.payload(), b"2");
    assert_eq!(ask(&mut stranger, 2), Some(Code::Recovering));
    let ServerMessage::Error(report) = greets(&server, "requester") else { panic!("no refusal") };
    assert_eq!(report.code, Code::Recovering);

    faults.clear();
    let ServerMessage::Deliver(durable) = handler.hear() else { panic!("no delivery") };
    assert!(durable.flags.has(RequestFlags::DURABLE));
    assert_eq!(state(&server), "serving");
    assert!(matches!(greets(&server, "requester"), ServerMessage::Welcome(_)));
    assert_eq!(ask(&mut stranger, 3), None);
}

/// A log that turns out to be corrupt when clients are connected already: they are told that the server leaves, and it ends with
/// the code of a corrupt log. All its files are as they were.
#[test]
fn a_corrupt_log_is_found_late() {
    let directory = tempdir().unwrap();
    log_with_one(directory.path());
    let segment = directory.path().join("0000000000000001.segment");
    let file = fs::File::options().write(true).open(&segment).unwrap();
    file.write_all_at(b"?", 40).unwrap();
    let before = fs::read(&segment).unwrap();
    let faults = held_back(directory.path());
    let server = start(directory.path());
    let mut client = Binary::connect(&server);
    faults.clear();
    assert!(matches!(client.hear(), ServerMessage::Goaway { .. }));
    let ended = server.wait().unwrap();
    assert_eq!((ended, ended.exit_code()), (Ended::LogUnusable(65), 65));
    assert_eq!(fs::read(&segment).unwrap(), before);
}

/// A server that is told to leave while it reads its log does not read on, and the log is as it was.
#[test]
fn leaving_while_it_is_read() {
    let directory = tempdir().unwrap();
    log_with_one(directory.path());
    let faults = held_back(directory.path());
    let server = start(directory.path());
    server.drain(Duration::from_secs(5));
    let deadline = Instant::now() + DEADLINE;
    while server_takes(&server) {
        assert!(Instant::now() < deadline, "it has stopped to listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    faults.clear();
    assert_eq!(server.wait().unwrap(), Ended::Stopped);
    let server = start(directory.path());
    let mut handler = Binary::connect(&server);
    handler.register("work");
    assert!(matches!(handler.hear(), ServerMessage::Deliver(_)));
}

/// Whether a server still speaks to who connects.
fn server_takes(server: &Handle) -> bool {
    use std::io::{Read, Write};
    let Ok(mut socket) = std::net::TcpStream::connect(server.address()) else { return false };
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.write_all(&Preface::plain().encode()).is_ok()
        && socket.read(&mut [0; 1]).is_ok_and(|read| read > 0)
}

/// A short log is read before anybody is served: nobody sees the server recover.
#[test]
fn a_short_log_is_there_at_once() {
    let directory = tempdir().unwrap();
    log_with_one(directory.path());
    let server = start(directory.path());
    drop(connect(&server));
    assert_eq!(state(&server), "serving");
    assert!(matches!(greets(&server, "requester"), ServerMessage::Welcome(_)));
}
