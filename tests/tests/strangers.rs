//! Clients of the Rust library behind a balancer that tells where they are from, and with less than all permissions.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what is not right"
)]

mod common;

use std::net::SocketAddr;

use common::{Raw, run, server_with};
use ringpost::{Client, Reply, Request};
use ringpost_protocol::proxy;
use ringpost_server::Config;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

/// A relay that does what a balancer does: for each connection one to the server, with a header in front.
async fn relay(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, source)) = listener.accept().await {
            tokio::spawn(async move {
                let mut upstream = TcpStream::connect(server).await.unwrap();
                let mut header = Vec::new();
                proxy::encode(source, address, &mut header);
                upstream.write_all(&header).await.unwrap();
                // It ends with an error when one of them breaks, which is no matter of the relay's.
                copy_bidirectional(&mut client, &mut upstream).await.ok();
            });
        }
    });
    address
}

/// Through a relay that writes PROXY headers, a client of the library handles and asks as ever, and so does one of JSON; both
/// are shown where they really come from.
#[test]
fn clients_behind_a_relay() {
    let mut config = Config::default();
    config.proxy_from = vec!["127.0.0.1".parse().unwrap()];
    let server = server_with(config);
    run(async {
        let relay = relay(server.address()).await;
        let client = Client::connect(relay.to_string()).await.unwrap();
        client
            .handle("echo", |request: Request| async move { Ok(Reply::bytes(request.bytes())) })
            .await
            .unwrap();
        let socket = std::net::TcpStream::connect(relay).unwrap();
        let own = socket.local_addr().unwrap().to_string();
        let mut raw = Raw::over(socket);
        raw.object(&json!({"id": "echo", "clientId": 1, "data": 21}));
        assert_eq!(raw.answer()["message"]["data"], 21);
        let reply = client.request("$sys.connections", &Value::Null).await.unwrap();
        let connections: Vec<Value> = reply.data().unwrap();
        let shown: Vec<_> = connections.iter().map(|it| it["address"].as_str().unwrap()).collect();
        assert!(shown.len() == 2 && shown.contains(&own.as_str()), "{own} is not in {shown:?}");
        client.close().await;
    });
}
