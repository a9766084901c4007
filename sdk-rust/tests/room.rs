//! Requests that cannot leave because too much is unsent: they have their time, can be given up, and say why they failed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use std::{future::IntoFuture, time::Duration};

use fake::{DEADLINE, Server};
use futures_util::FutureExt;
use ringpost::{Client, ErrorKind};
use tokio::time::timeout;

/// One whose timeout ends while it waits for room ends with the bound's name; one that is dropped is never sent; one that
/// gets room in time is sent with what is left of its time.
#[tokio::test]
async fn waiting_for_room_has_an_end() {
    let server = Server::start().await;
    let (mut peer, client) = tokio::join!(server.accept(), Client::connect(server.address()));
    let client = client.unwrap();
    let data = vec![b'x'; 1 << 20];
    // More than the sockets' buffers and the client's own take: the server does not read yet.
    let mut flood: Vec<_> = (0..48)
        .map(|_| Box::pin(client.send_bytes("flood", &data).timeout(DEADLINE).into_future()))
        .collect();
    for request in &mut flood {
        assert!(request.now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    let request = client.request("expired", &1).timeout(Duration::from_millis(30)).into_future();
    let error = timeout(DEADLINE, request).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.message().contains("not sent") && error.message().contains("4 MiB"), "{error}");
    let mut dropped = Box::pin(client.request("dropped", &2).into_future());
    assert!((&mut dropped).now_or_never().is_none());
    drop(dropped);

    let last = tokio::spawn(client.request("last", &3).timeout(DEADLINE).into_future());
    let flood = tokio::spawn(futures_util::future::join_all(flood));
    loop {
        let request = peer.hear_request().await;
        match request.content.name() {
            b"flood" => {}
            b"last" => {
                assert!(request.timeout_ms > 0 && u128::from(request.timeout_ms) <= DEADLINE.as_millis());
                peer.reply(request.number, "3").await;
                break;
            }
            name => panic!("{} was given up and is sent all the same", String::from_utf8_lossy(name)),
        }
    }
    assert_eq!(timeout(DEADLINE, last).await.unwrap().unwrap().unwrap().as_bytes(), b"3");
    client.close().await;
    flood.await.unwrap();
}
