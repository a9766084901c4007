//! `serve --durable all`, the reference's behaviour, and durable requests of the JSON dialect: what a client of a few lines that
//! never heard of durability can rely on when the server is killed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what is not right"
)]

mod common;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use common::{
    PATIENCE, Raw,
    load::{Ledger, client},
    process::{self, ServerProcess},
    run, until,
};
use serde_json::{Value, json};
use tokio::time::timeout;

fn args(directory: &Path, more: &[&'static str]) -> Vec<String> {
    let directory = directory.to_str().unwrap();
    ["--data-dir", directory].into_iter().chain(more.iter().copied()).map(str::to_owned).collect()
}

fn start(directory: &Path, more: &[&'static str]) -> ServerProcess {
    let args = args(directory, more);
    ServerProcess::start(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn kill_and_start_again(mut server: ServerProcess, directory: &Path, more: &[&'static str]) -> ServerProcess {
    server.process.kill();
    let args = args(directory, more);
    ServerProcess::at(server.address, &args.iter().map(String::as_str).collect::<Vec<_>>())
}

const DURABLE_ALL: &[&str] = &["--durable", "all"];

/// A JSON client with a session, which its registration names. What is kept for it comes at once.
fn named(address: SocketAddr, name: &str) -> Raw {
    let mut raw = Raw::connect(address);
    raw.object(&json!({"id": name, "action": "init", "session": name}));
    raw
}

/// Under `--durable all` what nobody asked to be durable waits for a handler, outlives the server's death, and is answered: of
/// the SDK, and of a JSON client that knows nothing of durability.
#[test]
fn everything_outlives_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let server = start(directory.path(), DURABLE_ALL);
    let address = server.address;
    let ledger = Ledger::new();
    run(async {
        let requester = client(address).await;
        let waits = tokio::spawn(async move {
            requester
                .request("work", &1_u64)
                .timeout(Duration::from_secs(60))
                .await
                .map(|it| it.data::<u64>())
        });
        let mut script = named(address, "script");
        script.object(&json!({"id": "work", "clientId": "mine", "data": 2, "options": {"ttl": 60_000}}));
        until("both wait", || server.stats()["now"]["openRequests"] == 2);
        // What is accepted behind them says that they are on the disk.
        client(address).await.send("nobody", &0_u64).await.unwrap();
        let server = kill_and_start_again(server, directory.path(), DURABLE_ALL);
        assert_eq!(server.stats()["now"]["openRequests"], 3, "they were restored");
        let mut script = named(address, "script");
        let handler = process::handler(address, "work", ledger.path(), 8, 0);
        assert_eq!(timeout(PATIENCE, waits).await.unwrap().unwrap().unwrap().unwrap(), 1);
        // The new connection is told first which request it is about to hear of.
        let (asked, reply) = (script.answer(), script.answer());
        assert_eq!((&asked["action"], &asked["message"]["id"]), (&json!("asked"), &json!("work")), "{asked}");
        assert_eq!(reply["action"], "response", "{reply}");
        assert_eq!((&reply["message"]["clientId"], &reply["message"]["data"]), (&json!("mine"), &json!(2)));
        handler.finish();
    });
    assert_eq!(ledger.runs().0.len(), 2, "each ran once");
}

/// A broadcast stays plain under `--durable all`: with nobody there it fails at once, and nothing of it is kept.
#[test]
fn broadcasts_stay_plain() {
    let directory = tempfile::tempdir().unwrap();
    let server = start(directory.path(), DURABLE_ALL);
    let mut script = Raw::connect(server.address);
    script.object(&json!({"id": "work", "clientId": 1, "data": 1, "options": {"broadcast": true}}));
    let answer = script.answer();
    assert_eq!(answer["message"]["info"]["code"], "noHandler", "{answer}");
    assert_eq!(server.stats()["now"]["openRequests"], 0);
}

/// JSON requesters that ask for durability, each under its own name, over ten deaths of the server: every request whose
/// acceptance they read is answered, to them, with its own data. Nothing is left open in the end.
#[test]
fn json_requests_outlive_the_server() {
    const REQUESTS: u64 = 20;
    const CRASHES: u64 = 10;
    let directory = tempfile::tempdir().unwrap();
    let mut server = start(directory.path(), &[]);
    let address = server.address;
    let ledger = Ledger::new();
    let handler = process::handler(address, "work", ledger.path(), 16, 2);
    let (mut accepted, mut answered) = (BTreeSet::new(), BTreeSet::new());
    // What is told of a request: that it is accepted, or its reply, which is acknowledged.
    let note =
        |script: &mut Raw, message: &Value, accepted: &mut BTreeSet<u64>, answered: &mut BTreeSet<u64>| {
            let number = message["message"]["clientId"].as_u64().unwrap();
            match message["action"].as_str().unwrap() {
                "acknowledge" => {
                    accepted.insert(number);
                }
                "response" => {
                    assert_eq!(message["message"]["data"], number, "{message}");
                    answered.insert(number);
                    script.try_to_say(format!(
                        "{}\n",
                        json!({"action": "acknowledge", "message": {"clientId": number}})
                    ));
                }
                // Before a reply to what an earlier connection asked.
                "asked" => assert_eq!(message["message"]["id"], "work"),
                _ => panic!("{message}"),
            }
        };
    let mut script = named(address, "script");
    for crash in 0..CRASHES {
        for number in crash * REQUESTS..(crash + 1) * REQUESTS {
            let options = json!({"durable": true, "ttl": 120_000, "maxAttempts": 100});
            script.object(&json!({"id": "work", "clientId": number, "data": number, "options": options}));
        }
        // Some of them are accepted before the server dies, and what it had said by then is read, too.
        let before = accepted.len();
        while accepted.len() <= before + crash as usize {
            let message = script.answer();
            note(&mut script, &message, &mut accepted, &mut answered);
        }
        server = kill_and_start_again(server, directory.path(), &[]);
        while let Some(message) = script.next() {
            if message["action"] != "receivers" {
                note(&mut script, &message, &mut accepted, &mut answered);
            }
        }
        script = named(address, "script");
    }
    // What was read when the server was dead already is told again: it could not be acknowledged.
    let deadline = Instant::now() + PATIENCE;
    let mut open = u64::MAX;
    while open > 0 {
        assert!(Instant::now() < deadline, "{open} are left open");
        script.object(&json!({"id": "$sys.stats", "clientId": "stats", "data": null}));
        let stats = loop {
            let message = script.answer();
            if message["message"]["clientId"] == "stats" {
                break message;
            }
            note(&mut script, &message, &mut accepted, &mut answered);
        };
        open = stats["message"]["data"]["now"]["openRequests"].as_u64().unwrap();
    }
    println!("{} accepted, {} answered", accepted.len(), answered.len());
    assert!(accepted.len() >= 55, "there was something to lose");
    assert!(accepted.is_subset(&answered), "accepted and not answered: {:?}", accepted.difference(&answered));
    handler.finish();
}
