//! Requests of the client, against a server that is played by the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use std::{
    future::IntoFuture,
    sync::{Arc, Mutex},
    time::Duration,
};

use fake::{DEADLINE, Server};
use futures_util::FutureExt;
use ringpost::{Address, Client, ErrorKind, Event, raw};
use ringpost_protocol::{
    Content,
    message::{ClientMessage, Leg, Progress, Reply, RequestFlags, ServerMessage, Target},
};
use serde_json::{Value, json};
use tokio::time::timeout;

async fn connected() -> (Server, fake::Peer, Client) {
    let server = Server::start().await;
    let (peer, client) = tokio::join!(server.accept(), Client::connect(server.address()));
    (server, peer, client.unwrap())
}

/// A request carries what its builder was told, and its reply what the handler and the broker told.
#[tokio::test]
async fn request_and_reply() {
    let (_server, mut peer, client) = connected().await;
    let request = client
        .request("adder", &json!({"value": 2}))
        .ttl(Duration::from_secs(20))
        .timeout(Duration::from_secs(3))
        .options(&json!({"a": 1}))
        .header("traceparent", "00-1")
        .max_attempts(3);
    let serve = async {
        let request = peer.hear_request().await;
        assert_eq!(
            (request.content.name(), request.content.payload()),
            (&b"adder"[..], &br#"{"value":2}"#[..])
        );
        assert_eq!(
            (request.content.options(), request.content.headers()),
            (&br#"{"a":1}"#[..], &b"\x0btraceparent\x04\x0000-1"[..])
        );
        assert_eq!((request.ttl_ms, request.timeout_ms, request.max_attempts), (20_000, 3000, 3));
        let content = Content::from_parts(b"", b"{\"b\":2}", b"\x01k\x01\x00v", b"{\"value\":3}");
        let reply = Reply {
            number: request.number,
            attempt: 2,
            received_at_ms: 1000,
            delivered_after_ms: 5,
            handled_after_ms: 9,
            content,
            ..Reply::default()
        };
        peer.say(ServerMessage::Reply(reply)).await;
    };
    let (reply, ()) = tokio::join!(request.into_future(), serve);
    let reply = reply.unwrap();
    assert_eq!(reply.data::<Value>().unwrap(), json!({"value": 3}));
    assert_eq!(reply.options::<Value>().unwrap(), Some(json!({"b": 2})));
    assert_eq!(reply.headers().collect::<Vec<_>>(), [("k", "v")]);
    let info = reply.info();
    let at = |ms| Some(std::time::UNIX_EPOCH + Duration::from_millis(ms));
    assert_eq!(
        (Some(info.received_at), info.delivered_at, info.handled_at, info.attempt),
        (at(1000), at(1005), at(1009), 2)
    );
    assert_eq!(reply.data::<u8>().unwrap_err().kind(), ErrorKind::Malformed);
}

/// Every leg of a broadcast arrives, replies and errors, in the broker's order.
#[tokio::test]
async fn broadcast_gathers_every_leg() {
    let (_server, mut peer, client) = connected().await;
    let serve = async {
        let request = peer.hear_request().await;
        assert!(request.flags.has(RequestFlags::BROADCAST));
        let number = request.number;
        peer.say(ServerMessage::Legs { number, expected: 3 }).await;
        for (index, code) in [(2, None), (0, Some(ErrorKind::HandlerLost)), (1, None)] {
            let content = Content::from_payload(index.to_string());
            let leg = Some(Leg { index, expected: 3 });
            peer.say(ServerMessage::Reply(Reply { number, code, leg, content, ..Reply::default() })).await;
        }
        let request = peer.hear_request().await;
        peer.fail(request.number, ErrorKind::NoHandler, "", "nobody").await;
    };
    let ask = async {
        let legs = client.broadcast("all", &1).await.unwrap();
        assert_eq!(legs[0].as_ref().unwrap_err().kind(), ErrorKind::HandlerLost);
        let data: Vec<u8> = legs[1..].iter().map(|leg| leg.as_ref().unwrap().data().unwrap()).collect();
        assert_eq!(data, [1, 2]);
        assert_eq!(client.broadcast("all", &1).await.unwrap_err().kind(), ErrorKind::NoHandler);
    };
    tokio::join!(ask, serve);
}

/// A send gives when it is accepted, and fails alone.
#[tokio::test]
async fn sends_wait_for_acceptance() {
    let (_server, mut peer, client) = connected().await;
    let serve = async {
        let first = peer.hear_request().await;
        assert!(first.flags.has(RequestFlags::SEND));
        let second = peer.hear_request().await;
        peer.fail(first.number, ErrorKind::Overloaded, "", "full").await;
        peer.say(ServerMessage::Accepted { upto: second.number, tag: Default::default() }).await;
    };
    let (first, second, ()) = tokio::join!(
        client.send("log", &1).into_future(),
        client.send_bytes("log", b"2").into_future(),
        serve
    );
    assert_eq!(first.unwrap_err().kind(), ErrorKind::Overloaded);
    second.unwrap();
}

/// Errors arrive with kind, text and the handler's own code.
#[tokio::test]
async fn errors_are_mapped() {
    let (_server, mut peer, client) = connected().await;
    let serve = async {
        let number = peer.hear_request().await.number;
        peer.fail(number, ErrorKind::Remote, "E7", "no such user").await;
    };
    let (error, ()) = tokio::join!(client.request("users", &7).into_future(), serve);
    let error = error.unwrap_err();
    assert_eq!((error.kind(), error.code(), error.exit_code()), (ErrorKind::Remote, "remote", 1));
    assert_eq!((error.message(), error.handler_code()), ("no such user", Some("E7")));
    assert_eq!(client.request("", &7).await.unwrap_err().kind(), ErrorKind::Malformed);
    let unwritable = std::collections::HashMap::from([((1, 2), 3)]);
    assert_eq!(client.request("users", &unwritable).await.unwrap_err().kind(), ErrorKind::Malformed);
    let huge = vec![0; (1 << 20) + 1];
    assert_eq!(client.request_bytes("users", huge).await.unwrap_err().kind(), ErrorKind::TooLarge);
}

/// Dropping a request's future cancels the request at the broker.
#[tokio::test]
async fn dropping_a_future_cancels() {
    let (_server, mut peer, client) = connected().await;
    let asking = tokio::spawn(client.request("slow", &1).into_future());
    let number = peer.hear_request().await.number;
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    assert_eq!(peer.hear().await, ClientMessage::Cancel(Target::Number(number)));
    // One that was never polled was never made.
    drop(client.request("slow", &2).into_future());
    let serve = async {
        let request = peer.hear_request().await;
        assert_eq!(request.content.payload(), b"3");
        // A late outcome of the cancelled one reaches nobody, and not the next one in its slot.
        peer.reply(number, "late").await;
        peer.reply(request.number, "3").await;
    };
    let (reply, ()) = tokio::join!(client.request("slow", &3).into_future(), serve);
    assert_eq!(reply.unwrap().as_bytes(), b"3");
}

/// A handler's progress reaches the requester's callback.
#[tokio::test]
async fn progress_reaches_the_requester() {
    let (_server, mut peer, client) = connected().await;
    let (seen, mut progress) = tokio::sync::mpsc::unbounded_channel();
    let request = client.request("slow", &1).on_progress(move |data| seen.send(data).unwrap());
    let serve = async {
        let request = peer.hear_request().await;
        assert!(request.flags.has(RequestFlags::PROGRESS));
        let content = Content::from_payload("50");
        peer.say(ServerMessage::Progress(Progress {
            number: request.number,
            content,
            ..Progress::default()
        }))
        .await;
        peer.reply(request.number, "1").await;
    };
    let (reply, ()) = tokio::join!(request.into_future(), serve);
    reply.unwrap();
    assert_eq!(progress.recv().await.unwrap(), "50");
}

/// Requests of many tasks all get their own reply, whatever the order of the replies, and large ones pass too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_share_the_connection() {
    let (_server, mut peer, client) = connected().await;
    const TASKS: usize = 500;
    let asking: Vec<_> = (0..TASKS)
        .map(|index| {
            let client = client.clone();
            tokio::spawn(async move {
                let text = "x".repeat(index * 50);
                let reply = client.request("echo", &json!([index, text])).timeout(DEADLINE).await.unwrap();
                assert_eq!(reply.data::<Value>().unwrap(), json!([index, text]));
            })
        })
        .collect();
    let mut requests = Vec::new();
    for _ in 0..TASKS {
        requests.push(peer.hear_request().await);
    }
    for request in requests.into_iter().rev() {
        let text = std::str::from_utf8(request.content.payload()).unwrap().to_owned();
        peer.reply(request.number, &text).await;
    }
    for asked in asking {
        timeout(DEADLINE, asked).await.unwrap().unwrap();
    }
}

/// What was sent on a lost connection is asked for on the next one; a server that does not know the session ends it. What
/// is asked meanwhile goes out then.
#[tokio::test]
async fn reconnects_by_itself() {
    let server = Server::start().await;
    let connecting =
        Client::builder(server.address()).reconnect_interval(Duration::from_millis(10)).connect();
    let (peer, client) = tokio::join!(server.accept(), connecting);
    let (mut peer, client) = (peer, client.unwrap());
    let mut events = client.events();
    let asking = tokio::spawn(client.request("slow", &1).into_future());
    peer.hear_request().await;
    drop(peer);
    assert!(matches!(events.next().await, Some(Event::Disconnected(_))));
    assert!(matches!(events.next().await, Some(Event::ReconnectIn { .. })));
    let serve = async {
        let mut peer = server.accept().await;
        let number = peer.hear_request().await.number;
        peer.reply(number, "2").await;
        peer
    };
    let (reply, _peer) = tokio::join!(client.request("slow", &2).into_future(), serve);
    assert_eq!(reply.unwrap().as_bytes(), b"2");
    assert_eq!(asking.await.unwrap().unwrap_err().kind(), ErrorKind::ConnectionLost);
    assert!(matches!(events.next().await, Some(Event::Connected { .. })));
    assert!(client.is_connected());
}

/// A server that is not there is reported, unless it is to be waited for.
#[tokio::test]
async fn connecting_to_nobody_fails() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Client::connect(address.to_string()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(error.message().contains(&address.to_string()), "{error}");
    assert_eq!(Client::connect("no address").await.unwrap_err().kind(), ErrorKind::Malformed);
    let waiting = Client::builder(address.to_string()).retry_initial(true).max_reconnects(2);
    let waiting = waiting.reconnect_interval(Duration::from_millis(1)).connect();
    assert_eq!(timeout(DEADLINE, waiting).await.unwrap().unwrap_err().kind(), ErrorKind::Connect);
}

/// A port that speaks something else is told from a Ringpost port.
#[tokio::test]
async fn another_protocol_is_recognised() {
    let server = Server::start().await;
    let serve = async {
        use tokio::io::AsyncWriteExt;
        let mut stream = server.accept_raw().await;
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream
    };
    let (error, _stream) = tokio::join!(Client::connect(server.address()), serve);
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(error.message().contains("is this a Ringpost port"), "{error}");
}

/// The receivers are asked for once and then kept, as a list and as a stream that ends with the client.
#[tokio::test]
async fn receivers_are_kept() {
    let (_server, mut peer, client) = connected().await;
    let serve = async {
        assert_eq!(peer.hear().await, ClientMessage::WatchReceivers(true));
        peer.say(ServerMessage::Receivers("[\"a\"]".into())).await;
    };
    let (list, ()) = tokio::join!(client.receivers(), serve);
    assert_eq!(*list.unwrap(), ["a".to_owned()]);
    let mut changes = client.receivers_changes();
    assert_eq!(*changes.next().await.unwrap(), ["a".to_owned()]);
    peer.say(ServerMessage::Receivers("[\"a\",\"b\"]".into())).await;
    assert_eq!(*changes.next().await.unwrap(), ["a".to_owned(), "b".to_owned()]);
    assert_eq!(client.receivers().await.unwrap().len(), 2);
    client.close().await;
    assert!(changes.next().await.is_none());
    assert_eq!(client.receivers_changes().next().await.map(|list| list.len()), Some(2));
}

/// Closing ends what is open, at both ends; a closed client says so.
#[tokio::test]
async fn close_ends_requests() {
    let (_server, mut peer, client) = connected().await;
    let asking = tokio::spawn(client.request("slow", &1).into_future());
    let number = peer.hear_request().await.number;
    let serve = async {
        assert_eq!(peer.hear().await, ClientMessage::Cancel(Target::Number(number)));
        assert_eq!(peer.hear().await, ClientMessage::Goaway);
        assert!(peer.ends().await);
        drop(peer);
    };
    tokio::join!(client.close(), serve);
    assert_eq!(asking.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(client.request("slow", &2).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(client.closed().await.kind(), ErrorKind::Closed);
}

/// The last clone closes the connection when it is dropped, but not under a request that is still waited for.
#[tokio::test]
async fn the_last_clone_closes() {
    let (_server, mut peer, client) = connected().await;
    let clone = client.clone();
    drop(client);
    let request = clone.request("echo", &1).into_future();
    drop(clone);
    let serve = async {
        let number = peer.hear_request().await.number;
        peer.reply(number, "1").await;
        assert_eq!(peer.hear().await, ClientMessage::Goaway);
        assert!(peer.ends().await);
    };
    let (reply, ()) = tokio::join!(request, serve);
    assert_eq!(reply.unwrap().as_bytes(), b"1");
}

/// A client that was not to start makes its requests when it is started.
#[tokio::test]
async fn start_may_come_later() {
    let server = Server::start().await;
    let client = Client::builder(server.address()).auto_start(false).connect().await.unwrap();
    let asking = tokio::spawn(client.request("echo", &1).into_future());
    let serve = async {
        let mut peer = server.accept().await;
        let number = peer.hear_request().await.number;
        peer.reply(number, "1").await;
        peer
    };
    let (started, _peer) = tokio::join!(client.start(), serve);
    started.unwrap();
    assert_eq!(asking.await.unwrap().unwrap().as_bytes(), b"1");
}

/// A client that nobody drives any more, because its runtime is gone, leaves nobody waiting.
#[test]
fn a_runtime_that_ends_leaves_nobody_waiting() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let theirs = runtime();
    let (_server, _peer, client) = theirs.block_on(connected());
    let request = client.request("slow", &1).into_future();
    runtime().block_on(async {
        let asking = tokio::spawn(request);
        tokio::task::yield_now().await;
        theirs.shutdown_background();
        let outcome = timeout(DEADLINE, asking).await.unwrap().unwrap();
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Closed);
        client.closed().await;
    });
}

/// So it is when the runtime ends before the client's own task has run at all.
#[test]
fn a_runtime_that_never_ran_leaves_nobody_waiting() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let theirs = runtime();
    let client = {
        let _entered = theirs.enter();
        let client = Client::builder("127.0.0.1:1").auto_start(false).connect();
        client.now_or_never().unwrap().unwrap()
    };
    drop(theirs);
    let closed = runtime().block_on(async { timeout(DEADLINE, client.closed()).await });
    assert_eq!(closed.unwrap().kind(), ErrorKind::Closed);
}

/// What a request's callback holds is dropped without any lock, so it may hold a request too.
#[tokio::test]
async fn a_callback_may_hold_a_request() {
    let (_server, mut peer, client) = connected().await;
    let mut held = Box::pin(client.request("slow", &1).into_future());
    assert!((&mut held).now_or_never().is_none());
    let first = peer.hear_request().await.number;
    let held = Mutex::new(held);
    let request = client.request("slow", &2).on_progress(move |_| assert!(!held.is_poisoned()));
    let serve = async {
        let second = peer.hear_request().await.number;
        peer.reply(second, "2").await;
        let ClientMessage::Cancel(cancelled) = peer.hear().await else { panic!("no cancel") };
        assert_eq!(cancelled, Target::Number(first));
    };
    let both = async { tokio::join!(request.into_future(), serve) };
    timeout(DEADLINE, both).await.expect("no lock is held over the callback's end").0.unwrap();
}

/// A sink that panics ends its client, and not the process; whoever waits for the end sees it.
#[tokio::test]
async fn a_panicking_sink_ends_its_client() {
    struct Panics;
    impl raw::CompletionSink for Panics {
        fn complete(&self, _: &raw::Client, _: &mut Vec<raw::Completion>) {
            panic!("as the test wants it");
        }
        fn deliver(&self, _: &raw::Client, _: &mut Vec<raw::Delivery>) {}
        fn notice(&self, _: &raw::Client, _: raw::Notice) {}
    }
    let server = Server::start().await;
    let address = Address::parse(&server.address()).unwrap();
    let config = raw::ClientConfig { session: "s".into(), ..raw::ClientConfig::default() };
    let client = raw::Client::new(config, address, Arc::new(Panics)).unwrap();
    client.start();
    let mut peer = server.accept().await;
    for token in 1..=2 {
        let content = raw::Content::from_parts(b"slow", b"", b"", b"1");
        client.request(raw::RequestSpec { content, ..raw::RequestSpec::default() }, token).unwrap();
    }
    let first = peer.hear_request().await.number;
    peer.hear_request().await;
    peer.reply(first, "1").await;
    timeout(DEADLINE, client.ended()).await.unwrap();
    assert!(peer.ends().await);
}
