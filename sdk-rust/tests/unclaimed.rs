//! A process that comes after one that died, under the same session's name, at a real server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{future::IntoFuture, time::Duration};

use futures_util::FutureExt;
use ringpost::{Client, ClientBuilder, ErrorKind, HandlerError, Reply, Request, testing::Server};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

/// Nothing in these tests takes this long; what does is broken.
const DEADLINE: Duration = Duration::from_secs(20);

fn named(server: &Server) -> ClientBuilder {
    Client::builder(server.address()).session("orders")
}

/// Makes requests as a process of its own would, and dies over them without a word.
async fn ask_and_die(builder: ClientBuilder, requests: u64, at_work: &mut mpsc::UnboundedReceiver<()>) {
    let theirs = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let asking = theirs.spawn(async move {
        let client = builder.connect().await.unwrap();
        let all = (1..=requests).map(|data| client.request("work", &data).into_future());
        futures_util::future::join_all(all).await
    });
    for _ in 0..requests {
        timeout(DEADLINE, at_work.recv()).await.unwrap().unwrap();
    }
    theirs.shutdown_background();
    assert!(asking.await.unwrap_err().is_cancelled());
}

/// A handler that answers when it is told to, odd numbers with an error; and what tells how many it has begun.
async fn handler(server: &Server) -> (Client, watch::Sender<bool>, mpsc::UnboundedReceiver<()>) {
    let (go, went) = watch::channel(false);
    let (begins, at_work) = mpsc::unbounded_channel();
    let client = Client::connect(server.address()).await.unwrap();
    let work = move |request: Request| {
        let (mut went, begins) = (went.clone(), begins.clone());
        async move {
            begins.send(())?;
            went.wait_for(|went| *went).await?;
            match request.json::<u64>()? {
                odd if odd % 2 == 1 => Err(HandlerError::new("odd").with_code("ODD")),
                even => Ok(Reply::json(&even)?.with_headers([("parity", "even")])?),
            }
        }
    };
    client.handle("work", work).await.unwrap();
    client.handle("echo", |request: Request| async move { Ok(Reply::bytes(request.bytes())) }).await.unwrap();
    (client, go, at_work)
}

/// Lets the handler answer, and waits until the broker has what it said.
async fn answer(handler: &Client, go: &watch::Sender<bool>, server: &Server) {
    go.send_replace(true);
    let observer = Client::connect(server.address()).await.unwrap();
    timeout(DEADLINE, async {
        loop {
            // Behind the answers of the same connection.
            handler.request("echo", &1).await.unwrap();
            let stats: serde_json::Value = observer.request("$sys.stats", &()).json().await.unwrap();
            if stats["now"]["openRequests"] == 0 {
                return;
            }
        }
    })
    .await
    .unwrap();
}

/// The replies that a process did not live to get come to its successor, in order, errors too. One that the successor
/// has, but has not gone on from, comes to the next one again; what it was done with does not.
#[tokio::test]
async fn replies_come_to_the_heir() {
    let server = Server::start().await.unwrap();
    let (handling, go, mut at_work) = handler(&server).await;
    ask_and_die(named(&server), 3, &mut at_work).await;
    answer(&handling, &go, &server).await;

    let heir = named(&server).unclaimed_replies(true).connect().await.unwrap();
    let mut unclaimed = heir.unclaimed_replies();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let next = timeout(DEADLINE, unclaimed.next()).await.unwrap().unwrap();
        assert!(next.leg.is_none() && next.info.attempt == 1);
        seen.push(match next.result {
            Ok(reply) => {
                assert_eq!(reply.header("parity"), Some("even"));
                (next.number, Ok(reply.data::<u64>().unwrap()))
            }
            Err(error) => (next.number, Err((error.kind(), error.handler_code().map(str::to_owned)))),
        });
    }
    let odd = Err((ErrorKind::Remote, Some("ODD".to_owned())));
    seen.sort_by_key(|(number, _)| *number);
    assert_eq!(seen, [(1, odd.clone()), (2, Ok(2)), (3, odd)]);
    // Its own requests are its own.
    assert_eq!(heir.request("echo", &7).json::<u64>().await.unwrap(), 7);
    assert!(unclaimed.next().now_or_never().is_none());
    heir.close().await;
    assert!(unclaimed.next().await.is_none());
}

/// What an heir has taken, but was not done with, comes to the next one; what it was done with does not.
#[tokio::test]
async fn what_was_not_finished_comes_again() {
    let server = Server::start().await.unwrap();
    let (handling, go, mut at_work) = handler(&server).await;
    ask_and_die(named(&server), 2, &mut at_work).await;
    answer(&handling, &go, &server).await;

    let heir = named(&server).unclaimed_replies(true).connect().await.unwrap();
    let mut unclaimed = heir.unclaimed_replies();
    let first = timeout(DEADLINE, unclaimed.next()).await.unwrap().unwrap();
    let second = timeout(DEADLINE, unclaimed.next()).await.unwrap().unwrap();
    assert_ne!(first.number, second.number);
    heir.close().await;

    let next = named(&server).unclaimed_replies(true).connect().await.unwrap();
    let mut unclaimed = next.unclaimed_replies();
    let again = timeout(DEADLINE, unclaimed.next()).await.unwrap().unwrap();
    assert_eq!(again.number, second.number);
    assert!(unclaimed.next().now_or_never().is_none(), "the first was done with");
    assert_eq!(next.request("echo", &1).json::<u64>().await.unwrap(), 1);
    next.close().await;
}

/// Without asking for them nobody gets them, and it takes a session's name to ask.
#[tokio::test]
async fn unclaimed_replies_are_opt_in() {
    let server = Server::start().await.unwrap();
    let (handling, go, mut at_work) = handler(&server).await;
    ask_and_die(named(&server), 1, &mut at_work).await;
    answer(&handling, &go, &server).await;
    let heir = named(&server).connect().await.unwrap();
    let mut unclaimed = heir.unclaimed_replies();
    assert_eq!(heir.request("echo", &1).json::<u64>().await.unwrap(), 1);
    assert!(unclaimed.next().now_or_never().is_none());
    heir.close().await;
    assert!(unclaimed.next().await.is_none());
    let nameless = Client::builder(server.address()).unclaimed_replies(true).connect().await;
    assert_eq!(nameless.unwrap_err().kind(), ErrorKind::Malformed);
}
