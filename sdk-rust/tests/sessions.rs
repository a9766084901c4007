//! The names under which a server knows its clients, and what is left of one that has gone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{sync::Arc, time::Duration};

use ringpost::{Client, HandlerOptions, Reply, Request, testing::Server};
use serde_json::Value;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

/// Nothing in these tests takes this long; what does is broken.
const DEADLINE: Duration = Duration::from_secs(20);

/// A client without a session's name of its own has a random one of 128 bits, so that it can come back after a broken
/// connection; one that does not reconnect has none, and one that names its own has that.
#[tokio::test]
async fn clients_have_names_to_come_back_under() {
    let server = Server::start().await.unwrap();
    let builder = || Client::builder(server.address());
    let clients = [
        builder().connect().await.unwrap(),
        builder().connect().await.unwrap(),
        builder().reconnect(false).connect().await.unwrap(),
        builder().session("mine").connect().await.unwrap(),
    ];
    let connections: Vec<Value> = clients[0].request("$sys.connections", &()).json().await.unwrap();
    let mut names: Vec<_> = connections.iter().map(|it| it["session"].as_str().unwrap()).collect();
    names.sort_by_key(|name| name.len());
    let [none, own, first, second] = names[..] else { panic!("{names:?}") };
    assert_eq!((none, own), ("", "mine"));
    for random in [first, second] {
        assert!(random.len() == 32 && u128::from_str_radix(random, 16).is_ok(), "{random}");
    }
    assert_ne!(first, second);
}

/// Sends that the server has taken go on when their client has ended, by `close` or by a drain, also those that still wait.
#[tokio::test]
async fn accepted_sends_outlive_their_client() {
    let server = Server::start().await.unwrap();
    let (gate, (began, mut begins)) = (Arc::new(Semaphore::new(0)), mpsc::unbounded_channel());
    let handler = Client::connect(server.address()).await.unwrap();
    let open = gate.clone();
    let handle = move |request: Request| {
        began.send(request.json::<u32>().unwrap()).unwrap();
        let open = open.clone();
        async move {
            open.acquire().await.unwrap().forget();
            Ok(Reply::json(&())?)
        }
    };
    let one = HandlerOptions { concurrency: 1, ..HandlerOptions::default() };
    handler.handle_with("work", one, handle).await.unwrap();
    for (number, drains) in [(0, false), (10, true)] {
        let sender = Client::connect(server.address()).await.unwrap();
        for count in 0..3 {
            sender.send("work", &(number + count)).await.unwrap();
        }
        if drains {
            assert!(sender.drain(DEADLINE).await.is_complete());
        } else {
            sender.close().await;
        }
        drop(sender);
        for count in 0..3 {
            assert_eq!(timeout(DEADLINE, begins.recv()).await.unwrap(), Some(number + count));
            gate.add_permits(1);
        }
    }
    handler.close().await;
}
