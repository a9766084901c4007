//! Connections that break under load: the client comes back, and nothing is lost, doubled or left hanging.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what is not right"
)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use common::{PATIENCE, proxy::Proxy, run, server, server_with, stats, wait_until_quiet};
use futures_util::future::join_all;
use ringpost::{Client, ErrorKind, HandlerError, HandlerOptions, Reply, Request};
use ringpost_server::Config;

/// A requester whose connection is cut again and again gets every reply, and the handler sees every request once.
#[test]
fn a_requesters_connection_breaks() {
    let server = server();
    run(async {
        let runs: Arc<Vec<AtomicU64>> = Arc::new((0..2000).map(|_| AtomicU64::new(0)).collect());
        let handler = Client::connect(server.address().to_string()).await.unwrap();
        let seen = runs.clone();
        let count = move |request: Request| {
            let seen = seen.clone();
            async move {
                let number: usize = request.json()?;
                seen[number].fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(number as u64 % 7)).await;
                Ok::<_, HandlerError>(Reply::json(&number)?)
            }
        };
        let options = HandlerOptions { concurrency: 256, ..HandlerOptions::default() };
        handler.handle_with("count", options, count).await.unwrap();
        let proxy = Proxy::start(server.address());
        let requester = Client::builder(proxy.address().to_string())
            .reconnect_interval(Duration::from_millis(10))
            .connect()
            .await
            .unwrap();
        for batch in 0..20 {
            let requests: Vec<_> = (batch * 100..batch * 100 + 100)
                .map(|number: usize| {
                    let request = requester.request("count", &number).timeout(PATIENCE);
                    tokio::spawn(async move { (number, request.await) })
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(batch as u64 % 5)).await;
            proxy.cut();
            for answer in join_all(requests).await {
                let (number, reply) = answer.unwrap();
                assert_eq!(reply.unwrap().data::<usize>().unwrap(), number);
            }
        }
        for (number, times) in runs.iter().enumerate() {
            assert_eq!(times.load(Ordering::SeqCst), 1, "request {number} ran once");
        }
        requester.close().await;
        handler.close().await;
    });
    assert!(stats(server.address())["total"]["sessionsResumed"].as_u64().unwrap() > 0);
    wait_until_quiet(server.address(), 1);
}

/// A handler whose connection is cut registers again; requests with attempts left are answered all the same.
#[test]
fn a_handlers_connection_breaks() {
    let server = server();
    run(async {
        let proxy = Proxy::start(server.address());
        let _handlers = join_all((0..2).map(|_| async {
            Client::builder(proxy.address().to_string())
                .handler("echo", |request: Request| async move { Ok(Reply::bytes(request.bytes())) })
                .reconnect_interval(Duration::from_millis(10))
                .connect()
                .await
                .unwrap()
        }))
        .await;
        let steady = Client::connect(server.address().to_string()).await.unwrap();
        steady
            .handle("echo", |request: Request| async move { Ok(Reply::bytes(request.bytes())) })
            .await
            .unwrap();
        let requester = Client::connect(server.address().to_string()).await.unwrap();
        for batch in 0..20u32 {
            let requests: Vec<_> = (0..50)
                .map(|number| {
                    let request = requester.request("echo", &number).max_attempts(10).timeout(PATIENCE);
                    tokio::spawn(async move { (number, request.await) })
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(u64::from(batch) % 3)).await;
            proxy.cut();
            for answer in join_all(requests).await {
                let (number, reply) = answer.unwrap();
                assert_eq!(reply.unwrap().data::<i32>().unwrap(), number);
            }
        }
    });
}

/// A client that stays away for longer than its session lingers is told that its requests may have run.
#[test]
fn a_session_is_forgotten() {
    let mut config = Config::default();
    config.session_linger = Duration::from_millis(1);
    let server = server_with(config);
    run(async {
        let handler = Client::connect(server.address().to_string()).await.unwrap();
        let (began, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let hang = move |request: Request| {
            began.send(()).unwrap();
            async move {
                request.cancelled().await;
                Err(HandlerError::new("nobody waits"))
            }
        };
        handler.handle("hang", hang).await.unwrap();
        let proxy = Proxy::start(server.address());
        let requester = Client::builder(proxy.address().to_string())
            .reconnect_interval(Duration::from_millis(200))
            .connect()
            .await
            .unwrap();
        let request = tokio::spawn(requester.request("hang", &1).timeout(PATIENCE).into_future());
        begins.recv().await.unwrap();
        proxy.cut();
        assert_eq!(request.await.unwrap().unwrap_err().kind(), ErrorKind::ConnectionLost);
    });
}
