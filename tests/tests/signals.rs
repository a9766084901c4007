//! Processes that are killed or stopped under load: handlers, requesters, the server. Every request ends once and truly,
//! whoever is well does not notice, and the server comes back to where it was.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what is not right"
)]

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::{
    PATIENCE, Raw,
    level::Level,
    load::{Ledger, Loads, Lost, client, works},
    process::{self, Process, ServerProcess},
    run, until,
};
use ringpost::{ErrorKind, Event, Reply, Request};
use rustix::process::Signal;
use serde_json::json;

/// Requests that a handler holds at most, and for how long each.
const CONCURRENCY: u32 = 32;
const HOLD_MS: u32 = 10;
/// No ping comes up within a test that this is the interval of.
const NEVER_PINGS: [&str; 4] = ["--ping-interval", "10m", "--session-linger", "500ms"];
/// A silent client is lost after three times this. Longer than a busy machine lets a healthy one wait.
const PINGS: [&str; 2] = ["--ping-interval", "700ms"];
/// Memory may grow so much between two moments without load: what the allocator keeps for the next time.
const SLACK_KIB: u64 = 16 << 10;

fn handler(server: &ServerProcess, ledger: &Ledger) -> Process {
    process::handler(server.address, "work", ledger.path(), CONCURRENCY, HOLD_MS)
}

/// A killed handler is noticed without any ping: what it held goes to another if it has attempts left, and is
/// `handlerLost` if not.
#[test]
fn a_killed_handler() {
    let server = ServerProcess::start(&NEVER_PINGS);
    let ledger = Ledger::new();
    run(async {
        let (client, _steady) = (client(server.address).await, handler(&server, &ledger));
        let (mut level, mut lost) = (None, Lost::default());
        for round in 0..4 {
            let loads = Loads::start(&client, round);
            let mut victim = handler(&server, &ledger);
            works(&victim, &ledger);
            victim.kill();
            loads.go_on().await;
            let (once, often) = loads.stop(&ledger).await;
            lost.add(&once, &often);
            // The first round is for warming up.
            level.get_or_insert_with(|| Level::settled(&server)).returns(&server, SLACK_KIB);
        }
        lost.assert_both();
        client.close().await;
    });
}

/// A stopped handler is noticed after three intervals of silence, is passed over, and serves again when it goes on.
#[test]
fn a_stopped_handler() {
    let server = ServerProcess::start(&PINGS);
    let ledger = Ledger::new();
    run(async {
        let (client, _steady) = (client(server.address).await, handler(&server, &ledger));
        let victim = handler(&server, &ledger);
        let (mut level, mut lost) = (None, Lost::default());
        for round in 0..3 {
            let loads = Loads::start(&client, round);
            works(&victim, &ledger);
            let silent = server.total("connectionsSilent");
            victim.signal(Signal::STOP);
            until("the silence is noticed", || server.total("connectionsSilent") > silent);
            loads.go_on().await;
            victim.signal(Signal::CONT);
            works(&victim, &ledger);
            let (once, often) = loads.stop(&ledger).await;
            lost.add(&once, &often);
            level.get_or_insert_with(|| Level::settled(&server)).returns(&server, SLACK_KIB);
        }
        lost.assert_both();
        client.close().await;
    });
}

/// A JSON handler whose process dies, by the end of its stream or by a reset, is noticed without any keepalive.
#[test]
fn a_json_handler_dies() {
    let server = ServerProcess::start(&NEVER_PINGS);
    run(async {
        let client = client(server.address).await;
        for by_reset in [false, true] {
            let mut victim = Raw::connect(server.address);
            victim.object(&json!({"id": "sum", "action": "init"}));
            victim.wait_for("sum");
            let request = |attempts| {
                let request = client.request("sum", &1).max_attempts(attempts).timeout(PATIENCE * 4);
                tokio::spawn(request.into_future())
            };
            let (once, twice) = (request(1), request(2));
            for _ in 0..2 {
                assert_eq!(victim.answer()["action"], "request");
            }
            let answer = |request: Request| async move { Ok(Reply::bytes(request.bytes())) };
            let heir = client.handle("sum", answer).await.unwrap();
            victim.die(by_reset);
            let error = once.await.unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::HandlerLost, "{error}");
            assert_eq!(twice.await.unwrap().unwrap().info().attempt, 2);
            heir.deregister().await;
        }
        client.close().await;
    });
    common::wait_until_quiet(server.address, 1);
}

/// `ringpost handle`, killed while its command runs: what it held ends or goes to another at once, though the command itself
/// lives on.
#[test]
fn a_killed_handle_command() {
    let server = ServerProcess::start(&NEVER_PINGS);
    let ledger = Ledger::new();
    run(async {
        let client = client(server.address).await;
        let script = r#"echo "ran $(cat) $RINGPOST_ATTEMPT $$" >> "$0"; exec sleep 60"#;
        let command = ["--", "sh", "-c", script, ledger.path().to_str().unwrap()];
        let args = [&["slow", "--concurrency", "2"][..], &command].concat();
        let mut victim = process::handle_command(server.address, &args);
        let request = |number: u64, attempts| {
            let request = client.request("slow", &number).max_attempts(attempts).timeout(PATIENCE);
            tokio::spawn(request.into_future())
        };
        let (once, twice) = (request(1, 1), request(2, 2));
        until("both run", || ledger.runs().0.len() == 2);
        let _heir = process::handle_command(server.address, &["slow", "--echo"]);
        victim.kill();
        // Nobody is there any more to do it, and nothing may be left behind.
        for command in ledger.runs().1.into_keys() {
            process::kill(command);
        }
        let error = once.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HandlerLost, "{error}");
        let reply = twice.await.unwrap().unwrap();
        assert_eq!((reply.data::<u64>().unwrap(), reply.info().attempt), (2, 2));
        client.close().await;
    });
}

/// A killed requester takes nobody with it: what it had open is called back when its session is forgotten, others' requests
/// all have their replies, and nothing of it is left.
#[test]
fn a_killed_requester() {
    let server = ServerProcess::start(&NEVER_PINGS);
    let ledger = Ledger::new();
    run(async {
        let (client, _steady) = (client(server.address).await, handler(&server, &ledger));
        let mut level = None;
        for round in 0..4 {
            let loads = Loads::start(&client, round);
            let mut victim = process::requester(server.address, "work", ledger.path(), round << 24, 32, 1);
            let is_its = |number: &u64| *number >> 24 == round;
            until("it gets replies", || {
                ledger.ends().range(round << 24..).take_while(|(number, _)| is_its(number)).count() > 300
            });
            victim.kill();
            loads.go_on().await;
            let (once, often) = loads.stop(&ledger).await;
            once.assert_only(&[]);
            often.assert_only(&[]);
            level.get_or_insert_with(|| Level::settled(&server)).returns(&server, SLACK_KIB);
        }
        assert_true_ends(&ledger, true);
        assert!(server.total("sessionsForgotten") >= 4, "{}", server.stats());
        client.close().await;
    });
}

/// A requester that is stopped for longer than it may be silent comes back to its session: each of its requests ends once,
/// with a reply, and ran once.
#[test]
fn a_stopped_requester() {
    let server = ServerProcess::start(&PINGS);
    let ledger = Ledger::new();
    run(async {
        let (client, _steady) = (client(server.address).await, handler(&server, &ledger));
        let loads = Loads::start(&client, 0);
        let victim = process::requester(server.address, "work", ledger.path(), 0, 32, 1);
        for _ in 0..3 {
            let ended = ledger.ends().len();
            until("it goes on", || ledger.ends().len() > ended + 200);
            let silent = server.total("connectionsSilent");
            victim.signal(Signal::STOP);
            until("the silence is noticed", || server.total("connectionsSilent") > silent);
            victim.signal(Signal::CONT);
        }
        let resumed = server.total("sessionsResumed");
        assert!(resumed >= 2, "it came back to its session: {}", server.stats());
        victim.finish();
        let (once, often) = loads.stop(&ledger).await;
        once.assert_only(&[]);
        often.assert_only(&[]);
        assert_true_ends(&ledger, false);
        client.close().await;
    });
    common::wait_until_quiet(server.address, 1);
}

/// What a requester process wrote of its requests agrees with what handlers wrote: one outcome each, `ok` for what ran, and
/// at most one run. The last ones of a killed requester are open.
fn assert_true_ends(ledger: &Ledger, was_killed: bool) {
    let (runs, _): (BTreeMap<u64, Vec<u16>>, _) = ledger.runs();
    let ends = ledger.ends();
    assert!(!ends.is_empty());
    for (number, codes) in ends {
        let runs = runs.get(&number).map_or(0, Vec::len);
        match &codes[..] {
            [code] if code == "ok" => assert_eq!(runs, 1, "request {number} has its reply"),
            [] if was_killed => assert!(runs <= 1, "request {number} ran {runs} times"),
            other => panic!("request {number} ended with {other:?} and ran {runs} times"),
        }
    }
}

/// A server that is stopped for a while, and nobody gives it up: not one request fails.
#[test]
fn a_server_stopped_for_a_moment() {
    let server = ServerProcess::start(&NEVER_PINGS);
    let ledger = Ledger::new();
    run(async {
        let (client, _steady) = (client(server.address).await, handler(&server, &ledger));
        let loads = Loads::start(&client, 0);
        for _ in 0..3 {
            loads.go_on().await;
            server.process.signal(Signal::STOP);
            tokio::time::sleep(Duration::from_millis(500)).await;
            server.process.signal(Signal::CONT);
        }
        let (once, often) = loads.stop(&ledger).await;
        once.assert_only(&[]);
        often.assert_only(&[]);
        client.close().await;
    });
    common::wait_until_quiet(server.address, 1);
}

/// A server that is stopped for so long that its clients give it up: they come back to it, requests that went down with
/// their handlers end with that, and those that nobody had begun run.
#[test]
fn a_server_stopped_for_long() {
    let server = ServerProcess::start(&PINGS);
    let ledger = Ledger::new();
    run(async {
        let (client, _steady) = (client(server.address).await, handler(&server, &ledger));
        let loads = Loads::start(&client, 0);
        for _ in 0..2 {
            loads.go_on().await;
            let mut events = client.events();
            server.process.signal(Signal::STOP);
            let lost = tokio::time::timeout(PATIENCE, async {
                while !matches!(events.next().await, Some(Event::Disconnected(_)) | None) {}
            });
            lost.await.expect("the client notices");
            server.process.signal(Signal::CONT);
        }
        loads.go_on().await;
        let (once, often) = loads.stop(&ledger).await;
        // Its only handler is gone too, for a moment.
        let with_the_handler = [ErrorKind::HandlerLost, ErrorKind::NoHandler];
        once.assert_only(&with_the_handler);
        often.assert_only(&with_the_handler);
        client.close().await;
    });
    common::wait_until_quiet(server.address, 1);
}
