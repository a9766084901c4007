//! Very many connections: idle ones cost little, a stampede of them leaves nothing behind, and what all of them are told
//! is bounded. Somebody else's requests all have their replies meanwhile.
//!
//! Each connection is a descriptor here and one in the server, so these tests take turns.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at what is not right"
)]

mod common;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    PATIENCE, Raw,
    level::{Level, resident_kib},
    load::{Ledger, Loads, client},
    process::{self, Process, ServerProcess},
    run, until, wait_until_quiet,
};
use ringpost_protocol::{
    Outgoing,
    frame::{Preface, encode_client},
    message::{ClientMessage, Hello, Register, Speaker},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// Nobody is pinged, sessions of the binary ones are soon forgotten, nobody is hurried, and all may come from one address.
const ARGS: [&str; 10] = [
    "--ping-interval",
    "10m",
    "--session-linger",
    "500ms",
    "--handshake-timeout",
    "2m",
    "--max-unauthenticated",
    "100000",
    "--max-unauthenticated-per-address",
    "100000",
];
/// Descriptors that a process needs beside those of a crowd.
const OTHER_DESCRIPTORS: u64 = 300;
/// Memory may grow so much between two moments without a crowd: what the allocator keeps for the next one.
const SLACK_KIB: u64 = 24 << 10;

static TURN: Mutex<()> = Mutex::new(());

/// Takes the turn, and so many connections, or fewer where the limit of open files is too low for them.
fn room_for(wanted: usize) -> (MutexGuard<'static, ()>, usize) {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let most = limit.maximum.unwrap_or(u64::MAX).saturating_sub(OTHER_DESCRIPTORS);
    let room = wanted.min(usize::try_from(most).unwrap_or(usize::MAX));
    if room < wanted {
        eprintln!("{room} connections instead of {wanted}: `ulimit -Hn` is {:?}", limit.maximum);
    }
    (turn, room)
}

fn handler(server: &ServerProcess, ledger: &Ledger) -> Process {
    process::handler(server.address, "work", ledger.path(), 32, 10)
}

fn connect(server: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(server).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A JSON client that has said something.
fn json_client(server: SocketAddr) -> TcpStream {
    let mut socket = connect(server);
    socket.write_all(b"{\"action\":\"ping\"}\n").unwrap();
    assert!(socket.read(&mut [0; 64]).unwrap() > 0, "a pong");
    socket
}

/// What a binary client with a session says first.
fn binary_greeting(session: &str) -> Vec<u8> {
    let mut out = Outgoing::new();
    let speaker = Speaker { instance: 1, connection: 1 };
    let hello = Hello { session: session.to_owned().into(), speaker, ..Hello::default() };
    encode_client(&ClientMessage::Hello(hello), &mut out);
    [&Preface::plain().encode()[..], &out.drain_to_vec()].concat()
}

fn binary_client(server: SocketAddr, session: usize) -> TcpStream {
    let mut socket = connect(server);
    // As long as the names that clients draw for themselves.
    socket.write_all(&binary_greeting(&format!("{session:032}"))).unwrap();
    assert!(socket.read(&mut [0; 256]).unwrap() > 0, "a welcome");
    socket
}

/// Ten thousand idle connections, of both dialects, take at most 8 KiB of the server's memory each.
#[test]
fn idle_connections_cost_little() {
    let (_turn, count) = room_for(10_000);
    let server = ServerProcess::start(&ARGS);
    let ledger = Ledger::new();
    let crowd = |kind: usize, count: usize| -> Vec<TcpStream> {
        let member = |number| match kind {
            0 => json_client(server.address),
            _ => binary_client(server.address, number),
        };
        (0..count).map(member).collect()
    };
    drop((crowd(0, 200), crowd(1, 200)));
    let before = Level::settled(&server);
    let mut kept = Vec::new();
    for (kind, dialect) in ["JSON", "binary"].into_iter().enumerate() {
        let empty = resident_kib(server.process.id());
        kept.push(crowd(kind, count / 2));
        let grown = resident_kib(server.process.id()).saturating_sub(empty);
        let each = grown * 1024 / (count as u64 / 2);
        eprintln!("{} idle {dialect} connections: {grown} KiB, {each} bytes each", count / 2);
        assert!(each <= 8 << 10, "{each} bytes for each idle {dialect} connection: {}", server.stats());
    }
    run(async {
        let (client, _handler) = (client(server.address).await, handler(&server, &ledger));
        let loads = Loads::start(&client, 0);
        loads.go_on().await;
        let (once, often) = loads.stop(&ledger).await;
        once.assert_only(&[]);
        often.assert_only(&[]);
        client.close().await;
    });
    drop(kept);
    // The allocator gives back what is at the top of its heap, and keeps the rest for the next crowd.
    before.returns(&server, count as u64 * 8);
    let emptied = Level::settled(&server);
    drop((crowd(0, count / 2), crowd(1, count / 2)));
    emptied.returns(&server, SLACK_KIB);
}

/// One of a stampede: what it says before it goes, and whether it goes by a reset.
fn passer_by(server: SocketAddr, number: usize) -> TcpStream {
    let mut socket = connect(server);
    let greeting = binary_greeting(&format!("{number:032}"));
    let words = match number % 8 {
        0 => Vec::new(),
        1 => b"{\"action\":\"ping\"}\n".to_vec(),
        2 => b"{\"id\":\"work\",\"clientId\":".to_vec(),
        3 => format!("{{\"id\":\"passing{}\",\"action\":\"init\"}}\n", number % 100).into_bytes(),
        4 => greeting[..4].to_vec(),
        5 => greeting,
        6 => {
            let mut out = Outgoing::new();
            let action = format!("passing{}", number % 100).into();
            let register = Register { registration: 1, credit: 4, action, session: Default::default() };
            encode_client(&ClientMessage::Register(register), &mut out);
            [greeting, out.drain_to_vec()].concat()
        }
        _ => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    };
    socket.write_all(&words).unwrap();
    if number.is_multiple_of(3) {
        SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    }
    socket
}

/// Twenty thousand connections come and go, up to five thousand at once, in every state that one can be left in. Not one
/// request of others fails, and nothing is left.
#[test]
fn a_stampede() {
    let (_turn, at_once) = room_for(5000);
    let server = ServerProcess::start(&ARGS);
    let ledger = Ledger::new();
    run(async {
        let (client, _handler) = (client(server.address).await, handler(&server, &ledger));
        let mut level = None;
        for round in 0..4 {
            let opened = server.total("connectionsOpened");
            let loads = Loads::start(&client, round);
            let crowd: Vec<_> = (0..at_once).map(|number| passer_by(server.address, number)).collect();
            // Of eight kinds, two stay unknown: the one that says nothing, and the one with half a preface.
            until("all of them are there", || {
                server.total("connectionsOpened") >= opened + at_once as u64 * 5 / 8
            });
            loads.go_on().await;
            drop(crowd);
            loads.go_on().await;
            let (once, often) = loads.stop(&ledger).await;
            once.assert_only(&[]);
            often.assert_only(&[]);
            level.get_or_insert_with(|| Level::settled(&server)).returns(&server, SLACK_KIB);
        }
        client.close().await;
    });
}

/// The beginning of something that never gets to its end, or nothing.
fn beginning(number: usize) -> Vec<u8> {
    let greeting = binary_greeting(&format!("{number:032}"));
    match number % 6 {
        0 => Vec::new(),
        1 => greeting[..4].to_vec(),
        2 => greeting[..Preface::BYTES].to_vec(),
        3 => greeting[..greeting.len() - 1].to_vec(),
        4 => b"{".to_vec(),
        _ => b"{\"id\":\"work\",\"data\":[[[".to_vec(),
    }
}

/// Whether somebody who comes now is let in. Who is not is told so, or finds the connection closed.
fn is_let_in(server: SocketAddr) -> bool {
    let mut socket = connect(server);
    let mut answer = [0; 512];
    let asked = socket.write_all(b"{\"action\":\"ping\"}\n").and_then(|()| socket.read(&mut answer));
    asked.is_ok_and(|read| answer[..read].starts_with(b"{\"action\":\"pong\""))
}

/// Twenty thousand connections that never finish saying who they are, up to five thousand at once. No more of them are held
/// than the bound, not one request of others fails, a newcomer gets in with a few tries, and nothing is left.
#[test]
fn strangers_who_never_finish() {
    const BOUND: usize = 1000;
    /// Those that are being told that there is no room, and the newcomers of this test.
    const BESIDE: usize = 64 + 16;
    let (_turn, at_once) = room_for(5000);
    let mut args = ARGS.map(str::to_owned);
    args[5] = "1s".into();
    args[7] = BOUND.to_string();
    let server = ServerProcess::start(&args.each_ref().map(String::as_str));
    let ledger = Ledger::new();
    run(async {
        let (client, _handler) = (client(server.address).await, handler(&server, &ledger));
        let mut asking = Raw::connect(server.address);
        let mut total = |name: &str| {
            asking.object(&json!({"id": "$sys.stats", "clientId": 1, "data": null}));
            asking.answer()["message"]["data"]["total"][name].as_u64().unwrap()
        };
        let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", server.process.id())).unwrap().count();
        assert_eq!(total("connectionsCrowded"), 0);
        let level = Level::settled(&server);
        let before = descriptors();
        for round in 0..4 {
            let dropped = total("connectionsCrowded");
            let loads = Loads::start(&client, round);
            let mut most = 0;
            let crowd: Vec<_> = (0..at_once)
                .map(|number| {
                    let mut socket = connect(server.address);
                    // It may have been closed already.
                    socket.write_all(&beginning(number)).ok();
                    if number % 100 == 0 {
                        most = most.max(descriptors());
                    }
                    socket
                })
                .collect();
            loads.go_on().await;
            until("those that there is no room for are dropped", || {
                total("connectionsCrowded") - dropped >= (at_once - BOUND) as u64 / 2
            });
            most = most.max(descriptors());
            assert!(
                most <= before + BOUND + BESIDE,
                "{most} descriptors, {before} before: {}",
                total("connectionsCrowded")
            );
            until("a newcomer gets in", || is_let_in(server.address));
            loads.go_on().await;
            drop(crowd);
            let (once, often) = loads.stop(&ledger).await;
            once.assert_only(&[]);
            often.assert_only(&[]);
        }
        assert!(total("connectionsMute") > 0, "those who were let in had their time");
        level.returns(&server, SLACK_KIB);
        client.close().await;
    });
}

/// What one of many JSON clients was told.
#[derive(Debug, Default)]
struct Told {
    bytes: AtomicU64,
    /// Bytes of the last list, and whether the last flip was in it.
    list_bytes: AtomicU64,
    last_flip: AtomicU64,
}

/// Registers an action, and reads what it is told about receivers until the end.
async fn listener(server: SocketAddr, action: String, told: Arc<Told>) {
    let mut socket = tokio::net::TcpStream::connect(server).await.unwrap();
    socket.write_all(format!("{}\n", json!({"id": action, "action": "init"})).as_bytes()).await.unwrap();
    let mut lines = BufReader::with_capacity(4096, socket);
    let mut line = String::new();
    while matches!(lines.read_line(&mut line).await, Ok(1..)) {
        let object: Value = serde_json::from_str(&line).expect("a line is an object");
        assert_eq!(object["action"], "receivers", "they are told nothing else");
        let names = object["message"]["data"].as_array().unwrap();
        let flip = names.iter().filter_map(|name| name.as_str()?.strip_prefix("flip")?.parse::<u64>().ok());
        told.bytes.fetch_add(line.len() as u64, Ordering::SeqCst);
        told.list_bytes.store(line.len() as u64, Ordering::SeqCst);
        told.last_flip.store(flip.max().unwrap_or(0), Ordering::SeqCst);
        line.clear();
    }
}

/// Waits until all of them know of a flip, and gives the bytes that each was told.
fn until_all_know(crowd: &[Arc<Told>], flip: u64) -> Vec<u64> {
    let knows = |told: &Arc<Told>| told.last_flip.load(Ordering::SeqCst) == flip;
    until(&format!("all {} know of flip {flip}", crowd.len()), || crowd.iter().all(knows));
    crowd.iter().map(|told| told.bytes.load(Ordering::SeqCst)).collect()
}

/// Five thousand JSON clients are told of hundreds of changes: in a bounded number of bytes, the latest last.
#[test]
fn receivers_do_not_flood() {
    receivers_among(5000, 500);
}

/// The same with as many actions as clients: one list for all of them is 100 MB.
#[test]
#[ignore = "takes a minute: make faults"]
fn receivers_of_many_actions_do_not_flood() {
    receivers_among(5000, 5000);
}

fn receivers_among(clients: usize, actions: usize) {
    /// All lists together stay below this, as docs/ARCHITECTURE.md has it.
    const BYTES_PER_SECOND: f64 = (16 << 20) as f64;
    let (_turn, clients) = room_for(clients);
    let server = ServerProcess::start(&ARGS);
    let ledger = Ledger::new();
    run(async {
        let (bystander, _handler) = (client(server.address).await, handler(&server, &ledger));
        let loads = Loads::start(&bystander, 0);
        let mut flipper = Raw::connect(server.address);
        let crowd: Vec<Arc<Told>> = (0..clients).map(|_| Arc::default()).collect();
        for (number, told) in crowd.iter().enumerate() {
            let action = format!("action{:05}", number % actions);
            tokio::spawn(listener(server.address, action, told.clone()));
        }
        until("all are there", || server.stats()["now"]["handlers"] == clients + 1);
        flipper.object(&json!({"id": "flip1", "action": "init"}));
        let before = until_all_know(&crowd, 1);
        let list_bytes = crowd[0].list_bytes.load(Ordering::SeqCst) as f64;
        let begun = Instant::now();
        for flip in 2..=400 {
            flipper.object(&json!({"id": format!("flip{flip}"), "action": "init"}));
            flipper.object(&json!({"id": format!("flip{}", flip - 1), "action": "deinit"}));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        loads.go_on().await;
        let after = until_all_know(&crowd, 400);
        let told: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        // The round before was not paid for within this time, and the last one is paid for behind it.
        let paid_for = begun.elapsed().as_secs_f64() * BYTES_PER_SECOND / clients as f64;
        let bound = paid_for + 3.0 * list_bytes;
        let most = told.iter().copied().max().unwrap_or(0);
        eprintln!(
            "{clients} clients, {actions} actions, {list_bytes} bytes a list: at most {most} bytes to each in {:?}, server \
             {} KiB",
            begun.elapsed(),
            resident_kib(server.process.id())
        );
        assert!(most as f64 <= bound, "{most} bytes to one client, {bound} are allowed: {}", server.stats());
        let (once, often) = loads.stop(&ledger).await;
        once.assert_only(&[]);
        often.assert_only(&[]);
        bystander.close().await;
    });
    wait_until_quiet(server.address, 1);
}
