//! The Rust client, JSON clients and a real server, in all pairs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at what is not right"
)]

mod common;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{PATIENCE, Raw, server, server_with, wait_until_quiet};
use futures_util::future::join_all;
use ringpost::{Client, ErrorKind, HandlerError, HandlerOptions, Reply, Request};
use ringpost_server::{Config, Handle, Server};
use serde_json::{Value, json};

/// Runs a test's future on a runtime of its own, and gives up after a while.
fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("in time") })
}

async fn client(server: &Handle) -> Client {
    Client::connect(server.address().to_string()).await.unwrap()
}

async fn echo(request: Request) -> Result<Reply, HandlerError> {
    Ok(Reply::bytes(request.bytes()))
}

/// The reference's example, in our terms.
#[test]
fn the_references_example() {
    let server = server();
    run(async {
        let client = Client::builder(server.address().to_string())
            .handler("client_1", |request: Request| async move {
                let sum: Value = request.json()?;
                let value = sum["value"].as_i64().ok_or("no value")?;
                Ok(Reply::json(&json!({"value": value + 1}))?)
            })
            .connect()
            .await
            .unwrap();
        let reply =
            client.request("client_1", &json!({"value": 2})).ttl(PATIENCE).timeout(PATIENCE).await.unwrap();
        assert_eq!(reply.data::<Value>().unwrap(), json!({"value": 3}));
        assert_eq!(reply.info().attempt, 1);
        let error = client.request("client_1", &json!({})).await.unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::Remote, "no value"));
        client.close().await;
    });
    wait_until_quiet(server.address(), 1);
}

/// Many requests of many tasks at once all get their own answers.
#[test]
fn a_thousand_at_once() {
    let server = server();
    run(async {
        let (handler, requester) = (client(&server).await, client(&server).await);
        handler
            .handle_with("echo", HandlerOptions { concurrency: 100, ..HandlerOptions::default() }, echo)
            .await
            .unwrap();
        let requests = (0..1000).map(|number| {
            let requester = requester.clone();
            tokio::spawn(async move {
                let reply = requester.request("echo", &number).await.unwrap();
                assert_eq!(reply.data::<i32>().unwrap(), number);
            })
        });
        for outcome in join_all(requests).await {
            outcome.unwrap();
        }
    });
}

/// Data from nothing to several megabytes arrives as it was.
#[test]
fn all_sizes() {
    let server = server();
    run(async {
        let (handler, requester) = (client(&server).await, client(&server).await);
        handler.handle("echo", echo).await.unwrap();
        for size in [0, 1, 127, 4096, 16 << 10, 65_537, 1 << 20, 8 << 20] {
            let data: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
            let reply = requester.request_bytes("echo", &data).await.unwrap();
            assert!(reply.as_bytes() == data, "{size} bytes");
        }
        let error = requester.request_bytes("echo", vec![0; (16 << 20) + 1]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        requester.request("echo", &1).await.unwrap();
    });
}

/// Options, headers, the time left and the attempt reach the handler; options and headers come back.
#[test]
fn what_travels_beside_the_data() {
    let server = server();
    run(async {
        let client = client(&server).await;
        client
            .handle("echo", |request: Request| async move {
                assert_eq!(
                    (request.action(), request.attempt(), request.header("traceparent")),
                    ("echo", 1, Some("00-ab"))
                );
                assert!(request.time_left().unwrap() <= Duration::from_secs(5));
                let options: Value = request.options()?.ok_or("no options")?;
                Ok(Reply::json(&1)?.with_options(&options)?.with_headers([("took", "long")])?)
            })
            .await
            .unwrap();
        let reply = client
            .request("echo", &0)
            .options(&json!({"colour": "red"}))
            .header("traceparent", "00-ab")
            .timeout(Duration::from_secs(5))
            .await
            .unwrap();
        assert_eq!(reply.options::<Value>().unwrap().unwrap(), json!({"colour": "red"}));
        assert_eq!(reply.headers().collect::<Vec<_>>(), [("took", "long")]);
    });
}

/// A broadcast brings every leg, replies and errors, in the order of the handlers.
#[test]
fn broadcast() {
    let server = server();
    run(async {
        let mut handlers = Vec::new();
        for number in 0..3 {
            let handler = client(&server).await;
            let answer = move |_: Request| async move {
                if number == 1 { Err("not today".into()) } else { Ok(Reply::json(&number)?) }
            };
            handler.handle("team", answer).await.unwrap();
            handlers.push(handler);
        }
        let legs = handlers[0].broadcast("team", &()).await.unwrap();
        let answers: Vec<_> =
            legs.into_iter().map(|leg| leg.map(|reply| reply.data::<i32>().unwrap())).collect();
        assert!(matches!(&answers[..], [Ok(0), Err(error), Ok(2)] if error.kind() == ErrorKind::Remote));
        let error = handlers[0].broadcast("nobody", &()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoHandler);
    });
}

/// Dropping a request's future reaches the handler, and its slot is free again.
#[test]
fn dropping_cancels() {
    let server = server();
    run(async {
        let (handler, requester) = (client(&server).await, client(&server).await);
        let (began, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let slow = move |request: Request| {
            let began = began.clone();
            async move {
                began.send(()).unwrap();
                request.cancelled().await;
                Err(HandlerError::new("cancelled"))
            }
        };
        let one = HandlerOptions { concurrency: 1, ..HandlerOptions::default() };
        handler.handle_with("slow", one, slow).await.unwrap();
        for _ in 0..5 {
            let request = requester.request("slow", &()).timeout(PATIENCE);
            tokio::select! {
                outcome = request => panic!("nobody answers: {outcome:?}"),
                _ = begins.recv() => {}
            }
        }
        wait_until_quiet_async(&server, 3).await;
    });
}

/// A timeout is the broker's: it comes in time, and the handler is told.
#[test]
fn timeout() {
    let server = server();
    run(async {
        let client = client(&server).await;
        let cancelled = Arc::new(AtomicUsize::new(0));
        let count = cancelled.clone();
        let never = move |request: Request| {
            let count = count.clone();
            async move {
                request.cancelled().await;
                count.fetch_add(1, Ordering::SeqCst);
                Err(HandlerError::new("too late"))
            }
        };
        client.handle("slow", never).await.unwrap();
        let error = client.request("slow", &()).timeout(Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        wait_until_quiet_async(&server, 2).await;
        assert_eq!(cancelled.load(Ordering::SeqCst), 1);
    });
}

/// A handler that goes away fails its requests at once, or hands them on if they have attempts left.
#[test]
fn a_handlers_death() {
    let server = server();
    run(async {
        let requester = client(&server).await;
        let dying = client(&server).await;
        let (began, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let hang = move |_: Request| {
            let began = began.clone();
            async move {
                began.send(()).unwrap();
                std::future::pending::<Result<Reply, HandlerError>>().await
            }
        };
        dying.handle("work", hang).await.unwrap();
        let once = tokio::spawn(requester.request("work", &1).timeout(PATIENCE).into_future());
        let twice =
            tokio::spawn(requester.request("work", &2).max_attempts(2).timeout(PATIENCE).into_future());
        begins.recv().await.unwrap();
        begins.recv().await.unwrap();
        let heir = client(&server).await;
        heir.handle("work", echo).await.unwrap();
        dying.close().await;
        assert_eq!(once.await.unwrap().unwrap_err().kind(), ErrorKind::HandlerLost);
        let reply = twice.await.unwrap().unwrap();
        assert_eq!((reply.data::<i32>().unwrap(), reply.info().attempt), (2, 2));
    });
}

/// A panic in a handler is an error for its requester and for nobody else.
#[test]
fn a_handlers_panic() {
    let server = server();
    run(async {
        let client = client(&server).await;
        let sometimes = |request: Request| async move {
            assert!(request.json::<i32>()? > 0, "only positive numbers");
            Ok(Reply::json(&())?)
        };
        client.handle("positive", sometimes).await.unwrap();
        assert_eq!(client.request("positive", &-1).await.unwrap_err().kind(), ErrorKind::Remote);
        client.request("positive", &1).await.unwrap();
    });
}

/// Sends are accepted or fail, and arrive in order.
#[test]
fn sends_in_order() {
    let server = server();
    run(async {
        let (handler, sender) = (client(&server).await, client(&server).await);
        let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
        let note = move |request: Request| {
            let arrived = arrived.clone();
            async move {
                arrived.send(request.json::<i32>()?).unwrap();
                Ok(Reply::json(&())?)
            }
        };
        handler
            .handle_with("jobs", HandlerOptions { concurrency: 1, ..HandlerOptions::default() }, note)
            .await
            .unwrap();
        for number in 0..100 {
            sender.send("jobs", &number).await.unwrap();
        }
        for number in 0..100 {
            assert_eq!(arrivals.recv().await, Some(number));
        }
        assert_eq!(sender.send("nobody", &1).await.unwrap_err().kind(), ErrorKind::NoHandler);
        let error = sender.request("jobs", &1).durable().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DurableUnavailable);
    });
}

/// Receivers: the list now, and its changes.
#[test]
fn receivers() {
    let server = server();
    run(async {
        let (watcher, other) = (client(&server).await, client(&server).await);
        assert!(watcher.receivers().await.unwrap().is_empty());
        let mut changes = watcher.receivers_changes();
        let registration = other.handle("news", echo).await.unwrap();
        while !changes.next().await.unwrap().iter().any(|name| name == "news") {}
        registration.deregister().await;
        while !changes.next().await.unwrap().is_empty() {}
    });
}

/// A server that comes back on its port finds its clients again: handlers registered, waiting requests served.
#[test]
fn reconnect() {
    let first = server();
    let address = first.address();
    run(async {
        let client = Client::builder(address.to_string())
            .handler("echo", echo)
            .reconnect_interval(Duration::from_millis(20))
            .connect()
            .await
            .unwrap();
        client.request("echo", &1).await.unwrap();
        tokio::task::spawn_blocking(move || first.stop()).await.unwrap();
        let second = Server::builder().listen([address]).start().unwrap();
        // The first try may go down with the connection, or find the handler not yet registered.
        loop {
            match client.request("echo", &2).await {
                Ok(reply) => break assert_eq!(reply.data::<i32>().unwrap(), 2),
                Err(error) => {
                    assert!(
                        matches!(error.kind(), ErrorKind::ConnectionLost | ErrorKind::NoHandler),
                        "{error}"
                    );
                }
            }
        }
        client.close().await;
        second.stop();
    });
}

/// Nobody there: an error that says so, unless the client is to keep trying.
#[test]
fn no_server() {
    run(async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = Client::builder(address.to_string()).retry_initial(false).connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connect);
        assert!(error.message().contains(&address.to_string()), "{error}");
    });
}

/// Draining: what is open is finished, then the client is closed, and its session is gone from the server.
#[test]
fn a_client_drains() {
    let server = server();
    run(async {
        let (handler, requester) = (client(&server).await, client(&server).await);
        let (began, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let (finish, finished) = tokio::sync::watch::channel(false);
        let work = move |_: Request| {
            let (began, mut finished) = (began.clone(), finished.clone());
            async move {
                began.send(()).unwrap();
                finished.wait_for(|done| *done).await?;
                Ok(Reply::json(&"done")?)
            }
        };
        handler.handle("work", work).await.unwrap();
        let request = tokio::spawn(requester.request("work", &()).into_future());
        begins.recv().await.unwrap();
        let draining = tokio::spawn({
            let handler = handler.clone();
            async move { handler.drain(Duration::from_secs(60)).await }
        });
        loop {
            match requester.request("work", &()).timeout(Duration::from_millis(20)).await {
                Err(error) if error.kind() == ErrorKind::NoHandler => break,
                _ => finish_later().await,
            }
        }
        finish.send(true).unwrap();
        assert_eq!(request.await.unwrap().unwrap().data::<String>().unwrap(), "done");
        assert!(draining.await.unwrap().is_complete());
        requester.close().await;
        wait_until_quiet_async(&server, 1).await;
    });
}

/// Lets other tasks go on.
async fn finish_later() {
    tokio::task::yield_now().await;
}

async fn wait_until_quiet_async(server: &Handle, connections: u64) {
    let address = server.address();
    tokio::task::spawn_blocking(move || wait_until_quiet(address, connections)).await.unwrap();
}

/// A JSON client asks a Rust handler, and gets the reference's shapes.
#[test]
fn json_asks_rust() {
    let server = server();
    run(async {
        let client = client(&server).await;
        client.handle("echo", echo).await.unwrap();
        let address = server.address();
        tokio::task::spawn_blocking(move || {
            let mut raw = Raw::connect(address);
            raw.object(&json!({"id": "echo", "clientId": "a", "data": {"value": [1, null, "ü"]}, "options": {"ttl": 5000}}));
            let answer = raw.answer();
            assert_eq!((&answer["action"], &answer["message"]["clientId"]), (&json!("response"), &json!("a")));
            assert_eq!(answer["message"]["data"], json!({"value": [1, null, "ü"]}));
            assert_eq!(answer["message"]["status"], "handled");
            raw.object(&json!({"id": "nobody", "clientId": 2, "data": 1}));
            let answer = raw.answer();
            assert_eq!((&answer["action"], &answer["message"]["clientId"]), (&json!("error"), &json!(2)));
            assert_eq!(answer["message"]["info"]["error"], "notDelivered");
            assert_eq!(answer["message"]["info"]["code"], "noHandler");
        })
        .await
        .unwrap();
    });
}

/// A Rust client asks a JSON handler; data that is not JSON fails that request alone, whichever half it is.
#[test]
fn rust_asks_json() {
    let server = server();
    let address = server.address();
    let handler = std::thread::spawn(move || {
        let mut raw = Raw::connect(address);
        raw.say(r#"{"id":"json","action":"init","concurrency":2}"#);
        while let Some(object) = raw.next() {
            if object["action"] == "request" {
                let message = &object["message"];
                let reply = json!({"serverId": message["serverId"], "clientId": message["clientId"], "data": message["data"]});
                raw.say(json!({"action": "response", "message": reply}).to_string());
            }
        }
    });
    run(async {
        let client = client(&server).await;
        let mut changes = client.receivers_changes();
        while !changes.next().await.unwrap().iter().any(|name| name == "json") {}
        for number in 0..50 {
            let reply = client.request("json", &json!({"n": number})).await.unwrap();
            assert_eq!(reply.data::<Value>().unwrap(), json!({"n": number}));
        }
        let error = client.request_bytes("json", b"\xff not JSON").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        client.request("json", &1).await.unwrap();
        client.handle("binary", |_: Request| async { Ok(Reply::bytes(&b"\xff"[..])) }).await.unwrap();
        let asked = tokio::task::spawn_blocking(move || {
            let mut raw = Raw::connect(address);
            raw.object(&json!({"id": "binary", "clientId": 1, "data": null}));
            raw.answer()
        });
        assert_eq!(asked.await.unwrap()["message"]["info"]["code"], "unsupported");
    });
    server.stop();
    handler.join().unwrap();
}

/// Two JSON clients, without new lines, several objects in one write and one object in many.
#[test]
fn json_asks_json() {
    let server = server();
    let mut handler = Raw::connect(server.address());
    for byte in br#"{"id":"sum","action":"init"}"# {
        handler.say([*byte]);
    }
    handler.wait_for("sum");
    let mut requester = Raw::connect(server.address());
    requester.say(r#"{"id":"sum","clientId":"1","data":1}{"action":"sum","clientId":"2","data":2} {"id":"#);
    requester.say(r#""sum","clientId":"3","data":3}"#);
    for _ in 0..3 {
        let message = handler.answer()["message"].clone();
        assert_eq!(message["id"], "sum");
        let reply = json!({"serverId": message["serverId"], "data": message["data"]});
        handler.say(json!({"action": "response", "message": reply}).to_string());
    }
    let mut data: Vec<_> = (0..3).map(|_| requester.answer()["message"]["data"].as_u64().unwrap()).collect();
    data.sort_unstable();
    assert_eq!(data, [1, 2, 3]);
}

/// Least-busy dispatch and the dispatch interval are settings of the server.
#[test]
fn settings_reach_the_core() {
    let mut config = Config::default();
    config.dispatch_interval = Duration::from_millis(5);
    let server = server_with(config);
    run(async {
        let client = client(&server).await;
        client.handle("echo", echo).await.unwrap();
        let requests: Vec<_> = (0..10).map(|number| client.request("echo", &number).into_future()).collect();
        let begun = std::time::Instant::now();
        for reply in join_all(requests).await {
            reply.unwrap();
        }
        // Nine pauses lie between ten dispatches: that they are at least as long is a promise, not a measurement.
        assert!(begun.elapsed() >= Duration::from_millis(45));
    });
}

/// A line is one object, also when another client laid out its data over several lines.
#[test]
fn lines_stay_lines() {
    let server = server();
    let mut handler = Raw::connect(server.address());
    handler.object(&json!({"id": "sum", "action": "init"}));
    handler.wait_for("sum");
    let mut requester = Raw::connect(server.address());
    requester
        .say("{\n  \"id\": \"sum\",\n  \"data\": [\n    1,\n    \"a\\nb\"\n  ],\n  \"options\": {\n  }\n}");
    let line = handler.line();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["message"]["data"], json!([1, "a\nb"]));
}
