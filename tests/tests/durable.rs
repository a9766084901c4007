//! Durable requests against real crashes: whatever is killed, nothing that was accepted is lost, and every request ends once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what is not right"
)]

mod common;

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    PATIENCE,
    load::{Ledger, Load, Plan, client},
    process::{self, Process, ServerProcess},
    run, until, wait_until_quiet,
};
use ringpost::Client;
use rustix::process::Signal;
use tokio::{sync::Notify, time::timeout};

/// How long the crash loop goes on, and how often it strikes at least.
const CRASH_TIME: Duration = Duration::from_secs(8);
const CRASHES: u32 = 12;
/// How many processes of all kinds are killed beside.
const KILLS: u64 = 60;
/// Numbers of requests that one process may use.
const NUMBERS: u64 = 1 << 32;

fn args(directory: &Path) -> Vec<String> {
    let directory = directory.to_str().unwrap().to_owned();
    // Small segments, so that they are switched and removed under way.
    let more = [
        "--max-payload",
        "16KiB",
        "--segment-size",
        "256KiB",
        "--max-disk",
        "64MiB",
        "--ping-interval",
        "10m",
    ];
    ["--data-dir".to_owned(), directory].into_iter().chain(more.map(str::to_owned)).collect()
}

fn start(directory: &Path) -> ServerProcess {
    let args = args(directory);
    ServerProcess::start(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

fn start_again(server: &ServerProcess, directory: &Path) -> ServerProcess {
    let args = args(directory);
    ServerProcess::at(server.address, &args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A server that is killed again and again under load, now and then with a handler: each durable request ends with its own
/// reply, once, and when all is over the log has nothing left that lives.
#[test]
fn killed_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = start(directory.path());
    let address = server.address;
    let ledger = Ledger::new();
    run(async {
        let handler = || process::handler(address, "work", ledger.path(), 32, 2);
        let mut handlers = vec![handler(), handler()];
        let client = client(address).await;
        let plan = Plan { from: 1, window: 32, max_attempts: 100, durable: true };
        let load = Load::start(&client, "work", plan);
        let (begun, mut crashes) = (Instant::now(), 0);
        while crashes < CRASHES || begun.elapsed() < CRASH_TIME {
            load.goes_on(if crashes % 3 == 0 { 1 } else { 100 }).await;
            server.process.kill();
            let dies = crashes % 4 == 1;
            if dies {
                handlers[0].kill();
            }
            server = start_again(&server, directory.path());
            if dies {
                handlers[0] = handler();
            }
            crashes += 1;
        }
        load.goes_on(100).await;
        let outcomes = load.stop().await;
        outcomes.assert_durable(&ledger.runs().0);
        println!("{} requests over {crashes} crashes", outcomes.len());
        client.close().await;
        handlers.into_iter().for_each(Process::finish);
    });
    wait_until_quiet(address, 1);
    assert_eq!(server.stats()["now"]["openRequests"], 0, "all of them are done");
}

/// Servers, handlers and requesters are killed, sixty of them, at random moments under load; requesters come back under their
/// sessions' names. Whatever was accepted runs, whatever ran is answered, no request has two outcomes, and in the end nothing
/// is left open and the log is whole.
#[test]
fn everybody_is_killed() {
    let seed = std::env::var("RINGPOST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| RandomState::new().hash_one(0));
    println!("RINGPOST_SEED={seed}");
    let mut draw = draws(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut server = start(directory.path());
    let address = server.address;
    let ledger = Ledger::new();
    let handler = || process::handler(address, "work", ledger.path(), 16, 2);
    let mut handlers = vec![handler(), handler()];
    let sessions = ["anna", "bert"];
    let mut born = 0;
    let mut heir = |session: usize, window| {
        born += 1;
        process::heir(address, "work", ledger.path(), born * NUMBERS, window, sessions[session])
    };
    let mut heirs = vec![heir(0, 16), heir(1, 16)];
    let mut killed = [0; 3];
    for _ in 0..KILLS {
        std::thread::sleep(Duration::from_millis(draw(150)));
        let (whom, which) = (draw(3) as usize, draw(2) as usize);
        killed[whom] += 1;
        match whom {
            0 => {
                server.process.kill();
                server = start_again(&server, directory.path());
            }
            1 => {
                handlers[which].kill();
                handlers[which] = handler();
            }
            _ => {
                heirs[which].kill();
                heirs[which] = heir(which, 16);
            }
        }
    }
    assert!(killed.iter().all(|killed| *killed > 5), "some of all kinds: {killed:?}");
    // The last of each session only collects what the others have left.
    for (which, last) in heirs.iter_mut().enumerate() {
        last.kill();
        *last = heir(which, 0);
    }
    until("all is answered and collected", || server.stats()["now"]["openRequests"] == 0);
    heirs.into_iter().chain(handlers).for_each(Process::finish);
    let inheritance = ledger.inheritance();
    inheritance.assert_whole(&ledger.runs().0);
    let seen_again = inheritance.outcomes.values().filter(|seen| seen.len() > 1).count();
    println!(
        "killed: {} servers, {} handlers, {} requesters; {} sends accepted; {} requests, {} answered, {seen_again} of them \
         more than once",
        killed[0],
        killed[1],
        killed[2] + sessions.len(),
        inheritance.accepted.len(),
        inheritance.asked.len(),
        inheritance.outcomes.len(),
    );
    assert!(
        inheritance.accepted.len() > 100 && inheritance.outcomes.len() > 100,
        "there was something to lose"
    );
    server.process.signal(Signal::TERM);
    assert_eq!(server.process.wait().code(), Some(0));
    assert_eq!(process::command(&["log", "verify", directory.path().to_str().unwrap()]).code(), Some(0));
}

/// Numbers from 0 up to, not including, a bound; always the same from a seed (SplitMix64).
fn draws(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |bound| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) % bound
    }
}

/// Sends that were accepted before the server and the requester died are handled after they are back, all of them.
#[test]
fn accepted_sends_outlive_everybody() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = start(directory.path());
    let address = server.address;
    let ledger = Ledger::new();
    run(async {
        {
            let client = Client::connect(&address.to_string()).await.unwrap();
            for number in 0..200_u64 {
                client.send("work", &number).durable().await.unwrap();
            }
        }
        for _ in 0..3 {
            server.process.kill();
            server = start_again(&server, directory.path());
        }
        let handler = process::handler(address, "work", ledger.path(), 32, 0);
        until("all of them ran", || ledger.runs().0.len() == 200);
        until("none is left", || server.stats()["now"]["openRequests"] == 0);
        handler.finish();
    });
}

/// A request that is made again with its idempotency key, by another process and over deaths of the server, runs once, and each
/// of those who asked gets its reply: while it waits, while it runs, and when it is long over.
#[test]
fn an_idempotency_key_outlives_everybody() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = start(directory.path());
    let address = server.address;
    let ledger = Ledger::new();
    run(async {
        let ask = async |client: &Client| {
            client
                .request("work", &1_u64)
                .durable()
                .idempotency_key("order-1")
                .timeout(Duration::from_secs(60))
                .await
        };
        let (first, second) = (client(address).await, client(address).await);
        let waits = tokio::spawn(async move { ask(&first).await });
        until("the first is accepted", || server.stats()["now"]["idempotencyKeys"] == 1);
        server.process.kill();
        server = start_again(&server, directory.path());
        let joins = tokio::spawn(async move { ask(&second).await });
        until("the second has joined", || server.stats()["total"]["joinedRequests"] == 1);
        server.process.kill();
        server = start_again(&server, directory.path());
        let handler = process::handler(address, "work", ledger.path(), 32, 0);
        let replies = [waits.await.unwrap().unwrap(), joins.await.unwrap().unwrap()];
        assert_eq!(replies[0].as_bytes(), replies[1].as_bytes());
        until("both have it", || server.stats()["now"]["openRequests"] == 0);
        server.process.kill();
        server = start_again(&server, directory.path());
        let third = client(address).await;
        assert_eq!(ask(&third).await.unwrap().as_bytes(), replies[0].as_bytes());
        assert_eq!(ledger.runs().0.len(), 1);
        handler.finish();
    });
}

/// A reply whose requester is gone comes, over a death of the server, to the next process of its session, with what was asked: the
/// action, the headers, and the idempotency key.
#[test]
fn an_heir_knows_what_was_asked() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = start(directory.path());
    let address = server.address;
    let ledger = Ledger::new();
    run(async {
        let named = || Client::builder(address.to_string()).session("orders");
        let first = named().connect().await.unwrap();
        let asked = first.request("work", &7_u64).durable().idempotency_key("order-7").header("mine", "1");
        asked.timeout(Duration::from_millis(300)).await.unwrap_err();
        // What is accepted behind it says that it is on the disk.
        first.send("nobody", &1).durable().await.unwrap();
        first.close().await;
        server.process.kill();
        server = start_again(&server, directory.path());
        let handler = process::handler(address, "work", ledger.path(), 32, 0);
        until("it ran", || ledger.runs().0.len() == 1);
        let heir = named().unclaimed_replies(true).connect().await.unwrap();
        let unclaimed = timeout(PATIENCE, heir.unclaimed_replies().next()).await.unwrap().unwrap();
        assert_eq!(unclaimed.result.unwrap().data::<u64>().unwrap(), 7);
        let asked = unclaimed.asked.unwrap();
        assert_eq!((asked.action(), asked.idempotency_key()), ("work", Some("order-7")));
        assert_eq!(asked.header("mine"), Some("1"));
        heir.close().await;
        handler.finish();
    });
}

/// A handler that is at work when the server dies goes on, and what it does is done once: the next server waits for it.
#[test]
fn a_handler_works_through_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = start(directory.path());
    let address = server.address;
    run(async {
        let (runs, go_on) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let (counted, gone_on) = (runs.clone(), go_on.clone());
        let worker = client(address).await;
        let _handler = worker
            .handle("work", move |request: ringpost::Request| {
                let (runs, go_on) = (counted.clone(), gone_on.clone());
                async move {
                    runs.fetch_add(1, Ordering::SeqCst);
                    go_on.notified().await;
                    Ok(ringpost::Reply::json(&request.attempt())?)
                }
            })
            .await
            .unwrap();
        let requester = client(address).await;
        let waits = tokio::spawn(async move {
            requester.request("work", &1_u64).durable().timeout(Duration::from_secs(60)).await
        });
        until("the handler is at work", || runs.load(Ordering::SeqCst) == 1);
        // That it was delivered is written with the next thing that somebody waits for.
        client(address).await.send("other", &0_u64).durable().await.unwrap();
        server.process.kill();
        server = start_again(&server, directory.path());
        let ledger = Ledger::new();
        let other = process::handler(address, "work", ledger.path(), 32, 0);
        until("the handler has come back", || server.stats()["total"]["reattached"] == 1);
        go_on.notify_one();
        let reply = waits.await.unwrap().unwrap();
        assert_eq!((reply.data::<u16>().unwrap(), reply.info().attempt), (1, 1));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert!(ledger.runs().0.is_empty());
        other.finish();
    });
}
