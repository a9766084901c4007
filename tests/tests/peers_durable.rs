//! Durable requests over links between servers, for real: links that are cut, servers and handlers that are killed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what is not right"
)]

mod common;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    Raw,
    load::{Ledger, Load, Plan, client},
    process::{self, Process, ServerProcess},
    proxy::Proxy,
    run, until,
};
use serde_json::{Value, json};
use tokio::sync::Notify;

/// How long links and servers are cut and killed.
const CRASH_TIME: Duration = Duration::from_secs(6);

fn args<'a>(id: &'a str, directory: Option<&'a Path>, peer: Option<&'a str>) -> Vec<&'a str> {
    let mut args = vec!["--id", id];
    args.extend(directory.into_iter().flat_map(|directory| ["--data-dir", directory.to_str().unwrap()]));
    args.extend(peer.into_iter().flat_map(|peer| ["--peer", peer]));
    args
}

fn far_handlers(server: &ServerProcess) -> u64 {
    server.stats()["now"]["farHandlers"].as_u64().unwrap()
}

/// Links are cut, both servers killed, and handlers, under load: each durable request ends with its own reply, once, and in the
/// end nothing is left anywhere.
#[test]
fn everything_between_breaks() {
    let directory = tempfile::tempdir().unwrap();
    let mut b = ServerProcess::start(&args("b", None, None));
    let proxy = Proxy::start(b.address);
    let to_b = proxy.address().to_string();
    let mut a = ServerProcess::start(&args("a", Some(directory.path()), Some(&to_b)));
    let (address, at_b) = (a.address, b.address);
    let ledger = Ledger::new();
    run(async {
        let handler = || process::handler(at_b, "work", ledger.path(), 32, 2);
        let mut handlers = vec![handler(), handler()];
        let client = client(address).await;
        let plan = Plan { from: 1, window: 32, max_attempts: 100, durable: true };
        let load = Load::start(&client, "work", plan);
        let (begun, mut round) = (Instant::now(), 0);
        while round < 12 || begun.elapsed() < CRASH_TIME {
            load.goes_on(if round % 3 == 0 { 1 } else { 50 }).await;
            match round % 4 {
                0 | 2 => proxy.cut(),
                1 => {
                    b.process.kill();
                    b = ServerProcess::at(at_b, &args("b", None, None));
                }
                _ => {
                    a.process.kill();
                    a = ServerProcess::at(address, &args("a", Some(directory.path()), Some(&to_b)));
                }
            }
            if round % 5 == 4 {
                handlers[0].kill();
                handlers[0] = handler();
            }
            round += 1;
        }
        load.goes_on(50).await;
        let outcomes = load.stop().await;
        outcomes.assert_durable(&ledger.runs().0);
        println!("{} requests over {round} rounds", outcomes.len());
        until("nothing is open", || a.stats()["now"]["openRequests"] == 0);
        until("nothing is left of it at the peer", || b.stats()["now"]["openRequests"] == 0);
        client.close().await;
        handlers.into_iter().for_each(Process::finish);
    });
    assert!(a.stats()["total"]["forwardedDurable"].as_u64().unwrap() > 0);
}

/// A handler at a peer that is at work when the link breaks goes on, whoever has dialled: nobody else gets the request meanwhile,
/// though there is somebody, and its reply comes when the link is back; also if the requester's server was killed meanwhile.
#[test]
fn work_at_a_peer_goes_on() {
    for (a_dials, a_dies) in [(true, false), (false, false), (true, true)] {
        let directory = tempfile::tempdir().unwrap();
        let directory = Some(directory.path());
        let nowhere = "127.0.0.1:1".parse().unwrap();
        let proxy = Proxy::start(nowhere);
        let dialled = proxy.address().to_string();
        let (to_b, to_a) = if a_dials { (Some(&*dialled), None) } else { (None, Some(&*dialled)) };
        let mut a = ServerProcess::start(&args("a", directory, to_b));
        let b = ServerProcess::start(&args("b", None, to_a));
        let target = if a_dials { b.address } else { a.address };
        proxy.set_target(target);
        run(async {
            let (runs, go_on) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
            let (counted, goes_on) = (runs.clone(), go_on.clone());
            let worker = client(b.address).await;
            let work = move |request: ringpost::Request| {
                let (runs, go_on) = (counted.clone(), goes_on.clone());
                async move {
                    runs.fetch_add(1, Ordering::SeqCst);
                    go_on.notified().await;
                    Ok(ringpost::Reply::json(&request.attempt())?)
                }
            };
            worker.handle("work", work).await.unwrap();
            until("a knows the handler", || far_handlers(&a) == 1);
            let requester = client(a.address).await;
            let waits = tokio::spawn(async move {
                requester.request("work", &1_u64).durable().timeout(Duration::from_secs(60)).await
            });
            until("it is at work", || runs.load(Ordering::SeqCst) == 1);
            // That it was delivered is written with the next thing that somebody waits for.
            client(a.address).await.send("other", &0_u64).durable().await.unwrap();
            proxy.set_target(nowhere);
            proxy.cut();
            if a_dies {
                a.process.kill();
                a = ServerProcess::at(a.address, &args("a", directory, to_b));
            } else {
                until("the link is gone", || a.stats()["now"]["links"] == 0);
                assert_eq!(a.stats()["total"]["stranded"], 1);
            }
            let ledger = Ledger::new();
            let other = process::handler(a.address, "work", ledger.path(), 32, 0);
            // A request behind it finds the other handler: the first one is not offered to it.
            let second = client(a.address).await;
            second.request("work", &2_u64).durable().await.unwrap();
            proxy.set_target(target);
            until("the link is back", || a.stats()["now"]["links"] == 1);
            go_on.notify_one();
            let reply = waits.await.unwrap().unwrap();
            assert_eq!((reply.data::<u16>().unwrap(), reply.info().attempt), (1, 1));
            assert_eq!(runs.load(Ordering::SeqCst), 1);
            assert_eq!(ledger.runs().0.len(), 1, "the second one");
            other.finish();
            // But for what nobody handles.
            until("nothing is left", || a.stats()["now"]["openRequests"] == 1);
            assert_eq!(b.stats()["now"]["openRequests"], 0);
        });
    }
}

/// A peer that stays away for longer than `--peer-lost` has lost what it had: the next attempt is made elsewhere.
#[test]
fn a_peer_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut b = ServerProcess::start(&args("b", None, None));
    let to_b = b.address.to_string();
    let mut with = args("a", Some(directory.path()), Some(&to_b));
    with.extend(["--peer-lost", "300ms"]);
    let a = ServerProcess::start(&with);
    let mut handler = Raw::connect(b.address);
    handler.object(&json!({"id": "work", "action": "init"}));
    handler.wait_for("work");
    until("a knows the handler", || far_handlers(&a) == 1);
    let mut requester = Raw::connect(a.address);
    let options = json!({"durable": true, "timeout": 60_000});
    requester.object(&json!({"id": "work", "clientId": "x", "data": 1, "options": options}));
    assert_eq!(handler.answer()["message"]["info"]["attempt"], 1);
    b.process.kill();
    let mut own = Raw::connect(a.address);
    own.object(&json!({"id": "work", "action": "init"}));
    let second = own.answer();
    assert_eq!(second["message"]["info"]["attempt"], 2, "{second}");
    own.object(&json!({"action": "response", "message": {"serverId": second["message"]["serverId"], "data": "done"}}));
    until_reply(&mut requester, "done");
    assert_eq!(a.stats()["total"]["peersLost"], 1);
}

fn until_reply(requester: &mut Raw, data: &str) {
    loop {
        let answer: Value = requester.answer();
        if answer["action"] != "acknowledge" {
            return assert_eq!(answer["message"]["data"], data, "{answer}");
        }
    }
}

/// JSON clients on both sides: the handler is told that the request is durable, its error is the requester's, and the requester is
/// told that it was accepted.
#[test]
fn json_over_a_link() {
    let directory = tempfile::tempdir().unwrap();
    let b = ServerProcess::start(&args("b", None, None));
    let to_b = b.address.to_string();
    let a = ServerProcess::start(&args("a", Some(directory.path()), Some(&to_b)));
    let mut handler = Raw::connect(b.address);
    handler.object(&json!({"id": "work", "action": "init"}));
    handler.wait_for("work");
    until("a knows the handler", || far_handlers(&a) == 1);
    let mut requester = Raw::connect(a.address);
    requester.object(&json!({"id": "work", "clientId": "x", "data": 1, "options": {"durable": true}}));
    let accepted = requester.answer();
    assert_eq!(accepted["action"], "acknowledge", "{accepted}");
    let request = handler.answer();
    handler.object(&json!({"action": "error", "message": {
        "serverId": request["message"]["serverId"], "info": {"error": "no such order"},
    }}));
    let answer = requester.answer();
    assert_eq!(answer["message"]["info"]["error"], "no such order", "{answer}");
    assert_eq!(answer["message"]["info"]["code"], "remote", "{answer}");
    until("b keeps nothing", || b.stats()["now"]["openRequests"] == 0);
}
