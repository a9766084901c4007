//! Connections that break under load: the client comes back, and nothing is lost, doubled or left hanging.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what is not right"
)]

mod common;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use common::{PATIENCE, server, server_with, stats, wait_until_quiet};
use futures_util::future::join_all;
use ringpost::{Client, ErrorKind, HandlerError, HandlerOptions, Reply, Request};
use ringpost_server::Config;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

/// A relay in front of the server whose connections can be cut.
struct Relay {
    address: SocketAddr,
    accepting: AbortHandle,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Relay {
    async fn new(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections: Arc<Mutex<Vec<AbortHandle>>> = Arc::default();
        let known = connections.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let relay = tokio::spawn(async move {
                    let mut server = TcpStream::connect(server).await.unwrap();
                    // Ends by a reset when it is dropped, as a connection whose other end crashed.
                    server.set_zero_linger().unwrap();
                    client.set_zero_linger().unwrap();
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
                known.lock().unwrap().push(relay.abort_handle());
            }
        });
        Self { address, accepting: accepting.abort_handle(), connections }
    }

    /// Cuts all connections that there are. What was under way is gone.
    fn cut(&self) {
        self.connections.lock().unwrap().drain(..).for_each(|relay| relay.abort());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE * 2, future).await.expect("in time") })
}

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
        let relay = Relay::new(server.address()).await;
        let requester = Client::builder(relay.address.to_string())
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
            relay.cut();
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
        let relay = Relay::new(server.address()).await;
        let _handlers = join_all((0..2).map(|_| async {
            Client::builder(relay.address.to_string())
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
            relay.cut();
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
        let relay = Relay::new(server.address()).await;
        let requester = Client::builder(relay.address.to_string())
            .reconnect_interval(Duration::from_millis(200))
            .connect()
            .await
            .unwrap();
        let request = tokio::spawn(requester.request("hang", &1).timeout(PATIENCE).into_future());
        begins.recv().await.unwrap();
        relay.cut();
        assert_eq!(request.await.unwrap().unwrap_err().kind(), ErrorKind::ConnectionLost);
    });
}
