//! Clients with a secure key behind somebody who changes bytes on their way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{PATIENCE, run, server_with};
use ringpost::{Client, Reply, SecureKey};
use ringpost_protocol::secure::Role;
use ringpost_server::Config;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Connections of which a byte is changed; the others are left alone.
const CHANGED: usize = 24;

/// A relay that changes one byte of each of the first connections, in turns on the way to the server and back: in the hello, and
/// further on. How many it has seen.
async fn relay(listener: TcpListener, server: SocketAddr, seen: Arc<AtomicUsize>) {
    while let Ok((client, _)) = listener.accept().await {
        let connection = seen.fetch_add(1, Ordering::Relaxed);
        // 37 is prime to 500: each is at another place.
        let place = (connection < CHANGED).then_some(connection * 37 % 500);
        let (up, down) = if connection.is_multiple_of(2) { (place, None) } else { (None, place) };
        let Ok(server) = TcpStream::connect(server).await else { continue };
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::spawn(forward(from_client, to_server, up));
        tokio::spawn(forward(from_server, to_client, down));
    }
}

async fn forward(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    change: Option<usize>,
) {
    let (mut piece, mut passed) = (vec![0; 4096], 0);
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        if let Some(at) = change.and_then(|at| at.checked_sub(passed)).filter(|at| *at < read) {
            piece[at] ^= 0x10;
        }
        passed += read;
        if to.write_all(&piece[..read]).await.is_err() {
            return;
        }
    }
    // It fails where the other side has gone already.
    let _ = to.shutdown().await;
}

/// Whatever byte is changed on the way, in the handshake or behind it: the connection ends there, the client makes another one,
/// and every request gets its own reply.
#[test]
fn a_byte_is_changed_on_the_way() {
    let key = SecureKey::from_bytes([7; 32]);
    let mut config = Config::default();
    config.secure_keys = vec![(key.clone(), Role::Client)];
    let server = server_with(config);
    let address = server.address();
    run(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (relayed, seen) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        tokio::spawn(relay(listener, address, seen.clone()));
        let echo = |request: ringpost::Request| async move { Ok(Reply::bytes(request.bytes())) };
        let handling = Client::builder(address.to_string()).secure_key(&key).handler("echo", echo).connect();
        let handler = timeout(PATIENCE, handling).await.unwrap().unwrap();
        let asking = Client::builder(relayed.to_string())
            .secure_key(&key)
            .retry_initial(true)
            .reconnect_interval(Duration::from_millis(10))
            .default_request_timeout(PATIENCE)
            .connect();
        let requester = timeout(PATIENCE, asking).await.unwrap().unwrap();
        let mut number = 0;
        while seen.load(Ordering::Relaxed) <= CHANGED || number < 100 {
            let reply = requester.request("echo", &number).json::<u32>();
            assert_eq!(timeout(PATIENCE, reply).await.unwrap().unwrap(), number);
            number += 1;
        }
        timeout(PATIENCE, requester.close()).await.unwrap();
        timeout(PATIENCE, handler.close()).await.unwrap();
    });
    server.stop();
}
