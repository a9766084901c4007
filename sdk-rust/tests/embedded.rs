//! Against a real server within the test: typed handlers, progress, and the server's own comings and goings.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use ringpost::{
    Client, ErrorKind, Event, HandlerError, HandlerOptions, Request, json,
    testing::{Config, Server},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::timeout};

/// Nothing in these tests takes this long; what does is broken.
const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Serialize, Deserialize)]
struct Order {
    items: Vec<Item>,
}

#[derive(Serialize, Deserialize)]
struct Item {
    price: f64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Total {
    total: f64,
}

/// A handler of typed data replies with typed data, by builder or client, with options or without.
#[tokio::test]
async fn typed_handlers() {
    let server = Server::start().await.unwrap();
    let total = |order: Order, _request: Request| async move {
        Ok(Total { total: order.items.iter().map(|item| item.price).sum() })
    };
    let client = Client::builder(server.address()).handler("total", json(total)).connect().await.unwrap();
    let order = Order { items: vec![Item { price: 1.5 }, Item { price: 2.0 }] };
    assert_eq!(client.request("total", &order).json::<Total>().await.unwrap(), Total { total: 3.5 });
    let options = HandlerOptions { concurrency: 1, ..HandlerOptions::default() };
    let refuse = json(|order: Order, request: Request| async move {
        assert_eq!(request.action(), "refuse");
        Err::<Total, _>(HandlerError::new(format!("{} items", order.items.len())).with_code("FULL"))
    });
    client.handle_with("refuse", options, refuse).await.unwrap();
    let error = client.request("refuse", &order).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.message(), error.handler_code()),
        (ErrorKind::Remote, "2 items", Some("FULL"))
    );
}

/// Data that is not of the handler's type is answered with the place where it is not, and the handler is not called; a
/// reply of another type is the requester's error, which names the place too.
#[tokio::test]
async fn what_cannot_be_read_is_named() {
    let server = Server::start().await.unwrap();
    let never = json(|_: Order, _request| async move { Err::<(), _>(HandlerError::new("was called")) });
    let numbers = json(|(): (), _request| async move { Ok(serde_json::json!({"items": [{"price": "2"}]})) });
    let client = Client::builder(server.address())
        .handler("total", never)
        .handler("numbers", numbers)
        .connect()
        .await
        .unwrap();
    for (data, place) in [
        (
            serde_json::json!({"items": [{"price": 1}, {"price": "2"}]}),
            "at `items[1].price`: invalid type: string",
        ),
        (serde_json::json!({"items": [{"cost": 1}]}), "at `items[0]`: missing field `price`"),
        (serde_json::json!({"things": []}), "missing field `items`"),
        (serde_json::json!(7), "invalid type: integer `7`, expected struct Order"),
    ] {
        let error = client.request("total", &data).await.unwrap_err();
        assert_eq!((error.kind(), error.handler_code()), (ErrorKind::Remote, Some("malformed")), "{error}");
        assert!(error.message().contains("the request's data") && error.message().contains(place), "{error}");
    }
    let error = client.request("numbers", &()).json::<Order>().await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert!(error.message().contains("the reply's data") && error.message().contains("`items[0].price`"));
    // What cannot be written is an error too, not a hung request.
    let unwritable = json(|(): (), _request| async move { Ok(BTreeMap::from([((1, 2), 3)])) });
    client.handle("unwritable", unwritable).await.unwrap();
    let error = client.request("unwritable", &()).await.unwrap_err();
    assert_eq!((error.kind(), error.handler_code()), (ErrorKind::Remote, Some("malformed")));
}

/// A long handler's progress reaches the requester in order, before the reply.
#[tokio::test]
async fn progress_of_a_long_handler() {
    let server = Server::start().await.unwrap();
    let steps = json(|steps: u32, request: Request| async move {
        for step in 1..=steps {
            if !request.progress(&step)? {
                return Err(HandlerError::new("nobody waits"));
            }
        }
        Ok("done")
    });
    let client = Client::builder(server.address()).handler("steps", steps).connect().await.unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let request = client.request("steps", &5).on_progress({
        let seen = seen.clone();
        move |data| seen.lock().unwrap().push(data)
    });
    assert_eq!(request.json::<String>().await.unwrap(), "done");
    assert_eq!(*seen.lock().unwrap(), ["1", "2", "3", "4", "5"]);
}

/// A client that waits for its server tells why it does not connect, and connects when the server is there.
#[tokio::test]
async fn the_initial_connect_is_retried() {
    let mut server = Server::start().await.unwrap();
    server.stop().await;
    let (tell, mut events) = mpsc::unbounded_channel();
    let connecting = Client::builder(server.address())
        .retry_initial(true)
        .reconnect_interval(Duration::from_millis(20))
        // Nobody listens any more when the test is over.
        .on_event(move |event| drop(tell.send(event.clone())))
        .connect();
    let connecting = tokio::spawn(connecting);
    let event = timeout(DEADLINE, events.recv()).await.unwrap().unwrap();
    let Event::ReconnectIn { reason, .. } = event else { panic!("{event:?}") };
    assert_eq!(reason.kind(), ErrorKind::Connect);
    assert!(reason.message().contains(server.address()), "{reason}");
    server.restart().await.unwrap();
    let client = timeout(DEADLINE, connecting).await.unwrap().unwrap().unwrap();
    assert!(client.is_connected());
    while !matches!(timeout(DEADLINE, events.recv()).await.unwrap(), Some(Event::Connected { .. })) {}
}

/// A restarted server is at the same address: handlers come back by themselves. One that drains lets its clients end,
/// and one that is stopped or dropped is gone.
#[tokio::test]
async fn servers_come_and_go() {
    let mut server = Server::start().await.unwrap();
    let address = server.address().to_owned();
    let client = Client::builder(&address)
        .reconnect_interval(Duration::from_millis(20))
        .handler("echo", json(|data: u32, _request| async move { Ok(data) }))
        .connect()
        .await
        .unwrap();
    server.restart().await.unwrap();
    assert_eq!(server.address(), address);
    let echoed = async {
        loop {
            match client.request("echo", &1).json::<u32>().await {
                Ok(data) => return data,
                // The handler is on its way.
                Err(error) => assert!(
                    [ErrorKind::NoHandler, ErrorKind::ConnectionLost].contains(&error.kind()),
                    "{error}"
                ),
            }
        }
    };
    assert_eq!(timeout(DEADLINE, echoed).await.unwrap(), 1);
    let mut events = client.events();
    timeout(DEADLINE, server.drain(DEADLINE)).await.unwrap();
    assert!(matches!(timeout(DEADLINE, events.next()).await.unwrap(), Some(Event::Goaway { .. })));
    assert_eq!(Client::connect(&address).await.unwrap_err().kind(), ErrorKind::Connect);
    server.restart().await.unwrap();
    drop(Client::connect(&address).await.unwrap());
    drop(server);
    assert_eq!(Client::connect(&address).await.unwrap_err().kind(), ErrorKind::Connect);
}

/// A server has the configuration that it is given, but for where it listens; several run side by side.
#[tokio::test]
async fn servers_are_configured() {
    let mut config = Config::default();
    config.max_payload = 1000;
    let (small, usual) = tokio::join!(Server::start_with(config), Server::start());
    let (small, usual) = (small.unwrap(), usual.unwrap());
    assert_ne!(small.address(), usual.address());
    let data = "x".repeat(2000);
    let refused = Client::connect(small.address()).await.unwrap().request("any", &data).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge);
    let nobody = Client::connect(usual.address()).await.unwrap().request("any", &data).await.unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::NoHandler);
    let mut wrong = Config::default();
    wrong.id = String::new();
    assert!(Server::start_with(wrong).await.is_err());
}
