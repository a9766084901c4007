//! The client's end: what is finished, what a deadline cuts off, and that a goodbye holds up nobody.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use std::{future::IntoFuture, time::Duration};

use fake::{DEADLINE, Server};
use futures_util::FutureExt;
use ringpost::{Client, ErrorKind, Event, HandlerOptions, Reply, Request, testing};
use ringpost_protocol::message::{ClientMessage, ServerMessage, Target, Welcome};
use tokio::{io::AsyncReadExt, sync::mpsc, time::timeout};

/// After the deadline the client closes, tells its handlers, and says how many requests and answers that cost.
#[tokio::test]
async fn the_deadline_tells_what_it_cut() {
    let server = Server::start().await;
    let (stopped, mut told) = mpsc::unbounded_channel();
    let builder = Client::builder(server.address()).handler("stuck", move |request: Request| {
        let stopped = stopped.clone();
        async move {
            request.cancelled().await;
            stopped.send(())?;
            Ok(Reply::default())
        }
    });
    let serve = async {
        let mut peer = server.accept().await;
        peer.hear_register().await;
        peer
    };
    let (mut peer, client) = tokio::join!(serve, builder.connect());
    let client = client.unwrap();
    peer.deliver(1, 1, "1").await;
    let asking = tokio::spawn(client.request("slow", &1).into_future());
    let number = peer.hear_request().await.number;
    let serve = async {
        assert_eq!(peer.hear().await, ClientMessage::Deregister(Target::Number(1)));
        assert_eq!(peer.hear().await, ClientMessage::Cancel(Target::Number(number)));
        assert_eq!(peer.hear().await, ClientMessage::Goaway);
        assert!(peer.ends().await);
        drop(peer);
    };
    let both = async { tokio::join!(client.drain(Duration::from_millis(50)), serve) };
    let (drained, ()) = timeout(DEADLINE, both).await.unwrap();
    assert_eq!((drained.requests, drained.handlers, drained.unsent_bytes), (1, 1, 0));
    assert!(!drained.is_complete());
    assert_eq!(asking.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    timeout(DEADLINE, told.recv()).await.unwrap().expect("the handler was told");
}

/// Answers that were given in time are sent whatever their size, also if the server begins to read only then.
#[tokio::test]
async fn large_answers_are_flushed() {
    const ANSWERS: u64 = 24;
    let server = Server::start().await;
    let (done, mut finished) = mpsc::unbounded_channel();
    let builder = Client::builder(server.address()).handler("large", move |_request: Request| {
        let done = done.clone();
        async move {
            done.send(())?;
            Ok(Reply::bytes(vec![b'x'; 1 << 20]))
        }
    });
    let serve = async {
        let mut peer = server.accept().await;
        peer.hear_register().await;
        peer
    };
    let (mut peer, client) = tokio::join!(serve, builder.connect());
    let client = client.unwrap();
    for delivery in 1..=ANSWERS {
        peer.deliver(delivery, 1, "1").await;
        finished.recv().await.unwrap();
    }
    let draining = tokio::spawn(async move { client.drain(DEADLINE).await });
    let mut answered = 0;
    loop {
        match peer.hear().await {
            ClientMessage::Answer(answer) => {
                assert_eq!(answer.content.payload().len(), 1 << 20);
                answered += 1;
            }
            ClientMessage::Deregister(_) => {}
            ClientMessage::Goaway => break,
            message => panic!("{message:?}"),
        }
    }
    assert!(peer.ends().await);
    drop(peer);
    assert_eq!(answered, ANSWERS);
    assert!(draining.await.unwrap().is_complete());
}

/// What a server does not take is given up some time after the deadline, and counted.
#[tokio::test]
async fn what_was_not_taken_is_told() {
    let server = Server::start().await;
    let (mut peer, client) = tokio::join!(server.accept(), Client::connect(server.address()));
    let client = client.unwrap();
    let data = vec![b'x'; 1 << 20];
    let mut asking: Vec<_> = (0..32)
        .map(|_| Box::pin(client.request_bytes("sink", &data).timeout(DEADLINE).into_future()))
        .collect();
    for request in &mut asking {
        assert!(request.now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    let drained = timeout(DEADLINE, client.drain(Duration::ZERO)).await.unwrap();
    assert!(drained.requests > 0 && drained.unsent_bytes > 0, "{drained:?}");
    let mut read = Vec::new();
    timeout(DEADLINE, peer.stream.read_to_end(&mut read)).await.unwrap().unwrap();
    assert!(!read.is_empty());
}

/// While a server that leaves keeps the old connection open, time goes on for everything else, and the next connection
/// waits for the goodbye.
#[tokio::test]
async fn a_goodbye_holds_up_nobody() {
    let server = Server::start().await;
    let builder = Client::builder(server.address()).reconnect_interval(Duration::from_millis(10));
    let (mut peer, client) = tokio::join!(server.accept(), builder.connect());
    let client = client.unwrap();
    let mut events = client.events();
    peer.say(ServerMessage::Goaway { grace_ms: 10_000, reason: "restart".into() }).await;
    assert_eq!(peer.hear().await, ClientMessage::Goaway);
    assert!(peer.ends().await);
    while !matches!(events.next().await, Some(Event::ReconnectIn { .. })) {}
    let request = client.request("late", &1).timeout(Duration::from_millis(30)).into_future();
    let outcome =
        timeout(Duration::from_secs(1), request).await.expect("sooner than the goodbye is given up");
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Timeout);
    drop(peer);
    drop(server.accept().await);
}

/// A server that says nothing any more is left at once, without waiting for it to take a goodbye.
#[tokio::test]
async fn a_silent_server_is_left_at_once() {
    let server = Server::start().await;
    let serve = async {
        let mut peer = server.accept_unwelcomed().await;
        let welcome = Welcome { next_number: 1, ping_interval_ms: 20, ..Welcome::default() };
        peer.say(ServerMessage::Welcome(welcome)).await;
        peer
    };
    let builder = Client::builder(server.address()).reconnect_interval(Duration::from_millis(10));
    let (silent, client) = tokio::join!(serve, builder.connect());
    let next = timeout(Duration::from_secs(1), server.accept()).await;
    let next = next.expect("sooner than a goodbye is given up");
    drop((silent, next, client.unwrap()));
}

/// Handlers that are drained one after the other under load cost nobody a request: what one of them takes it answers.
#[tokio::test]
async fn drained_handlers_lose_nothing() {
    let server = testing::Server::start().await.unwrap();
    let requester = Client::connect(server.address()).await.unwrap();
    let handler = || async {
        let client = Client::connect(server.address()).await?;
        let options = HandlerOptions { concurrency: 4, ..HandlerOptions::default() };
        let work = |request: Request| async move {
            tokio::task::yield_now().await;
            Ok(Reply::bytes(request.bytes()))
        };
        client.handle_with("work", options, work).await?;
        Ok::<_, ringpost::Error>(client)
    };
    let mut present = handler().await.unwrap();
    for round in 0..10u64 {
        let asking: Vec<_> = (0..100u64)
            .map(|index| tokio::spawn(requester.request("work", &(round * 100 + index)).json::<u64>()))
            .collect();
        let next = handler().await.unwrap();
        let drained = timeout(DEADLINE, present.drain(DEADLINE)).await.unwrap();
        assert!(drained.is_complete(), "{drained:?}");
        present = next;
        for (index, asked) in asking.into_iter().enumerate() {
            let reply = timeout(DEADLINE, asked).await.unwrap().unwrap();
            assert_eq!(reply.unwrap(), round * 100 + index as u64);
        }
    }
}
