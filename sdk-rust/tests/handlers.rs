//! Handlers of the client, against a server that is played by the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use std::time::Duration;

use fake::{DEADLINE, Peer, Server};
use ringpost::{Client, ClientBuilder, ErrorKind, HandlerError, HandlerOptions, Reply, Request};
use ringpost_protocol::message::{Answer, ClientMessage, ErrorReport, Scope, ServerMessage, Target, Verdict};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::timeout};

#[derive(Serialize, Deserialize)]
struct Sum {
    value: i64,
}

/// The handler of the README.
async fn add(req: Request) -> Result<Reply, HandlerError> {
    let sum: Sum = req.json()?;
    Ok(Reply::json(&Sum { value: sum.value + 1 })?)
}

/// Connects with one handler, which is granted.
async fn connected(server: &Server, builder: ClientBuilder) -> (Peer, Client) {
    let serve = async {
        let mut peer = server.accept().await;
        peer.hear_register().await;
        peer
    };
    let (peer, client) = tokio::join!(serve, builder.connect());
    (peer, client.unwrap())
}

async fn hear_answer(peer: &mut Peer) -> Answer {
    let message = peer.hear().await;
    let ClientMessage::Answer(answer) = message else { panic!("no answer: {message:?}") };
    answer
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A handler's reply goes back, and whatever error it meets, with the text of that error.
#[tokio::test]
async fn replies_and_errors_go_back() {
    let server = Server::start().await;
    let builder = Client::builder(server.address()).handler("client_1", |req: Request| async move {
        let sum: Sum = req.json()?;
        Ok(Reply::json(&Sum { value: sum.value + 1 })?)
    });
    let (mut peer, _client) = connected(&server, builder).await;
    peer.deliver(1, 1, "{\"value\":2}").await;
    let answer = hear_answer(&mut peer).await;
    assert_eq!(
        (answer.delivery, answer.verdict, text(answer.content.payload())),
        (1, Verdict::Reply, "{\"value\":3}")
    );
    peer.deliver(2, 1, "\"two\"").await;
    let answer = hear_answer(&mut peer).await;
    assert_eq!((answer.delivery, answer.verdict), (2, Verdict::Error));
    assert!(text(answer.content.payload()).contains("expected struct Sum"));
}

/// The reference's way to name a handler does the same, and credit is the concurrency.
#[tokio::test]
async fn the_references_options() {
    let server = Server::start().await;
    let address = server.address();
    let (host, port) = address.split_once(':').unwrap();
    let builder = Client::builder("elsewhere:1").host(host).port(port.parse().unwrap()).action("client_1");
    let serve = async {
        let mut peer = server.accept().await;
        (peer.hear_register().await, peer)
    };
    let ((register, mut peer), client) = tokio::join!(serve, builder.request_handler(add).connect());
    assert_eq!((&register.action[..], register.credit), (&b"client_1"[..], 64));
    peer.deliver(1, 1, "{\"value\":2}").await;
    assert_eq!(hear_answer(&mut peer).await.verdict, Verdict::Reply);
    drop(client);
    let error = Client::builder(address).request_handler(add).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Malformed);
}

/// A handler sees all that came with its request.
#[tokio::test]
async fn requests_tell_what_they_know() {
    let server = Server::start().await;
    let builder = Client::builder(server.address()).handler("facts", |req: Request| async move {
        assert_eq!((req.action(), req.attempt(), req.as_bytes()), ("facts", 2, &b"[1]"[..]));
        assert_eq!(req.options::<serde_json::Value>()?, Some(serde_json::json!({"o": 1})));
        assert_eq!((req.header("k"), req.header("none")), (Some("v"), None));
        assert!(req.time_left().is_some_and(|left| left > Duration::ZERO && left <= Duration::from_secs(5)));
        assert!(!req.is_cancelled() && !req.is_send() && !req.is_broadcast());
        assert!(req.progress(&50)?);
        Ok(Reply::bytes("ok").with_options(&1)?.with_headers([("x", "y")])?)
    });
    let (mut peer, _client) = connected(&server, builder).await;
    peer.deliver(9, 1, "[1]").await;
    let ClientMessage::Progress(progress) = peer.hear().await else { panic!("no progress") };
    assert_eq!((progress.number, progress.content.payload()), (9, &b"50"[..]));
    let content = hear_answer(&mut peer).await.content;
    assert_eq!(
        (text(content.payload()), text(content.options()), content.headers()),
        ("ok", "1", &b"\x01x\x01\x00y"[..])
    );
}

/// A panic becomes an error answer with its text, before and within the future; others go on.
#[tokio::test]
async fn panics_become_answers() {
    let server = Server::start().await;
    let builder = Client::builder(server.address()).handler("panics", |req: Request| {
        assert_ne!(req.as_bytes(), b"1", "at once");
        async move {
            assert_ne!(req.as_bytes(), b"2", "later");
            Ok(Reply::default())
        }
    });
    let (mut peer, _client) = connected(&server, builder).await;
    for (delivery, expected) in [(1, "at once"), (2, "later")] {
        peer.deliver(delivery, 1, &delivery.to_string()).await;
        let answer = hear_answer(&mut peer).await;
        assert_eq!((answer.verdict, answer.content.name()), (Verdict::Error, &b"panic"[..]));
        assert!(text(answer.content.payload()).contains(expected));
    }
    peer.deliver(3, 1, "3").await;
    assert_eq!(hear_answer(&mut peer).await.verdict, Verdict::Reply);
}

/// The verdicts beside reply and error reach the broker.
#[tokio::test]
async fn verdicts_for_durable_requests() {
    let server = Server::start().await;
    let builder = Client::builder(server.address()).handler("moody", |req: Request| async move {
        match req.as_bytes() {
            b"1" => Err(HandlerError::retry_after(Duration::from_secs(2), "not now")),
            b"2" => Err(HandlerError::reject("never")),
            _ => Err(HandlerError::new("no").with_code("N")),
        }
    });
    let (mut peer, _client) = connected(&server, builder).await;
    for (delivery, verdict) in [(1, Verdict::Retry(2000)), (2, Verdict::Reject), (3, Verdict::Error)] {
        peer.deliver(delivery, 1, &delivery.to_string()).await;
        assert_eq!(hear_answer(&mut peer).await.verdict, verdict);
    }
}

/// A cancelled handler is told, and its slot comes back; one that is to stop is stopped.
#[tokio::test]
async fn cancellation_reaches_the_handler() {
    let server = Server::start().await;
    let (told, mut heard) = mpsc::unbounded_channel();
    let builder = Client::builder(server.address()).handler("told", move |req: Request| {
        let told = told.clone();
        async move {
            told.send(req.is_cancelled())?;
            req.cancelled().await;
            told.send(req.is_cancelled())?;
            Ok(Reply::bytes("nobody reads this"))
        }
    });
    let (mut peer, client) = connected(&server, builder).await;
    peer.deliver(1, 1, "1").await;
    assert_eq!(heard.recv().await, Some(false));
    peer.say(ServerMessage::Cancel { delivery: 1, tag: Default::default() }).await;
    assert_eq!(heard.recv().await, Some(true));
    let answer = hear_answer(&mut peer).await;
    assert_eq!((answer.verdict, answer.content.len()), (Verdict::Cancelled, 0));

    let options = HandlerOptions { stop_on_cancel: true, concurrency: 1 };
    let handling = client.handle_with("stopped", options, |_req: Request| std::future::pending());
    let (_registration, register) = tokio::join!(handling, peer.hear_register());
    assert_eq!((register.registration, register.credit), (2, 1));
    peer.deliver(2, 2, "1").await;
    peer.say(ServerMessage::Cancel { delivery: 2, tag: Default::default() }).await;
    assert_eq!(hear_answer(&mut peer).await.verdict, Verdict::Cancelled);
}

/// After a lost connection handlers are registered again; those at work are told, and their answers go nowhere.
#[tokio::test]
async fn handlers_come_back() {
    let server = Server::start().await;
    let (done, mut finished) = mpsc::unbounded_channel();
    let builder = Client::builder(server.address()).reconnect_interval(Duration::from_millis(10));
    let builder = builder.handler("worker", move |req: Request| {
        let done = done.clone();
        async move {
            if req.as_bytes() == b"wait" {
                req.cancelled().await;
                done.send(())?;
            }
            Ok(Reply::bytes("done"))
        }
    });
    let (mut peer, _client) = connected(&server, builder).await;
    peer.deliver(1, 1, "wait").await;
    // The delivery must have been read before the connection goes.
    peer.deliver(2, 1, "go").await;
    assert_eq!(hear_answer(&mut peer).await.delivery, 2);
    drop(peer);
    let mut peer = server.accept().await;
    assert_eq!(peer.hear_register().await.registration, 1);
    timeout(DEADLINE, finished.recv()).await.unwrap();
    peer.deliver(1, 1, "go").await;
    let answer = hear_answer(&mut peer).await;
    assert_eq!((answer.delivery, answer.verdict), (1, Verdict::Reply));
}

/// Draining waits for handlers at work: their results arrive before the connection ends.
#[tokio::test]
async fn drain_loses_no_result() {
    let server = Server::start().await;
    let (go, went) = tokio::sync::watch::channel(false);
    let builder = Client::builder(server.address()).handler("worker", move |_req: Request| {
        let mut went = went.clone();
        async move {
            went.wait_for(|went| *went).await?;
            Ok(Reply::bytes("done"))
        }
    });
    let (mut peer, client) = connected(&server, builder).await;
    peer.deliver(1, 1, "1").await;
    peer.deliver(2, 1, "2").await;
    let serve = async {
        assert_eq!(peer.hear().await, ClientMessage::Deregister(Target::Number(1)));
        go.send_replace(true);
        let mut answered = [hear_answer(&mut peer).await.delivery, hear_answer(&mut peer).await.delivery];
        answered.sort_unstable();
        assert_eq!(answered, [1, 2]);
        assert_eq!(peer.hear().await, ClientMessage::Goaway);
        assert!(peer.ends().await);
        drop(peer);
    };
    let (drained, ()) =
        timeout(DEADLINE, async { tokio::join!(client.drain(DEADLINE), serve) }).await.unwrap();
    assert!(drained.is_complete(), "{drained:?}");
    assert_eq!(client.closed().await.kind(), ErrorKind::Closed);
}

/// A refused registration is an error of whoever asked; one that ends says when nothing more can come.
#[tokio::test]
async fn registrations_begin_and_end() {
    let server = Server::start().await;
    let (mut peer, client) =
        connected(&server, Client::builder(server.address()).handler("client_1", add)).await;
    assert_eq!(client.handle("ping", add).await.unwrap_err().kind(), ErrorKind::ReservedName);
    let refuse = async {
        let ClientMessage::Register(register) = peer.hear().await else { panic!("no registration") };
        let number = u64::from(register.registration);
        let (scope, code, message) = (Scope::Registration, ErrorKind::Forbidden, "not you".to_owned());
        peer.say(ServerMessage::Error(ErrorReport { scope, number, code, message })).await;
    };
    let (refused, ()) = tokio::join!(client.handle("secret", add), refuse);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Forbidden);
    let (registration, register) = tokio::join!(client.handle("late", add), peer.hear_register());
    let registration = registration.unwrap();
    registration.set_concurrency(3);
    assert_eq!(peer.hear().await, ClientMessage::Credit { registration: register.registration, credit: 3 });
    let serve = async {
        let target = Target::Number(u64::from(register.registration));
        assert_eq!(peer.hear().await, ClientMessage::Deregister(target));
        // The pong that ends it comes with the next thing that is heard.
        peer.deliver(5, 1, "{\"value\":1}").await;
        hear_answer(&mut peer).await
    };
    let ((), _) = timeout(DEADLINE, async { tokio::join!(registration.deregister(), serve) }).await.unwrap();
}
