//! The client and a real server with secure keys.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use ringpost::{
    Client, ClientBuilder, ErrorKind, Event, SecureKey, json,
    testing::{Config, Server},
};
use ringpost_protocol::secure::Role;
use tokio::{sync::mpsc, time::timeout};

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

fn key(byte: u8) -> SecureKey {
    SecureKey::from_bytes([byte; 32])
}

async fn server(keys: &[(u8, Role)]) -> Server {
    let mut config = Config::default();
    config.secure_keys = keys.iter().map(|(byte, role)| (key(*byte), *role)).collect();
    Server::start_with(config).await.unwrap()
}

fn client(server: &Server) -> ClientBuilder {
    Client::builder(server.address())
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("it takes too long")
}

/// With one option on each side all goes as ever: small and large, many at once, in both directions; several keys at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_replies() {
    let server = server(&[(1, Role::Client), (2, Role::Admin)]).await;
    let handler = client(&server)
        .secure_key(key(1))
        .handler("echo", |request| async move { Ok(ringpost::Reply::bytes(request.bytes())) })
        .connect();
    let handler = within(handler).await.unwrap();
    let requester = within(client(&server).secure_key(key(2)).connect()).await.unwrap();
    for bytes in [1, 100, 16 << 10, 65_516, 65_517, 70_000, 1 << 20, 9 << 20] {
        let data = format!("\"{}\"", "x".repeat(bytes));
        let reply = within(requester.request_bytes("echo", data.clone()).into_future()).await.unwrap();
        assert!(*reply.as_bytes() == *data.as_bytes(), "{bytes} bytes");
    }
    let many = (0..2000u32).map(|number| {
        let request = requester.request("echo", &number);
        async move { assert_eq!(request.json::<u32>().await.unwrap(), number) }
    });
    within(futures_util::future::join_all(many)).await;
    within(requester.close()).await;
    within(handler.close()).await;
}

/// A text that is no generated key is a passphrase, and both sides make the same key of it.
#[tokio::test]
async fn passphrases() {
    let mut config = Config::default();
    config.secure_keys = vec![(SecureKey::parse("correct horse battery staple").unwrap(), Role::Client)];
    let server = Server::start_with(config).await.unwrap();
    let client = client(&server)
        .secure_key("correct horse battery staple")
        .handler("double", json(|value: i64, _request| async move { Ok(2 * value) }));
    let client = within(client.connect()).await.unwrap();
    assert_eq!(within(client.request("double", &21).json::<i64>()).await.unwrap(), 42);
    let error = within(Client::builder(server.address()).secure_key("rpk1_12").connect()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Malformed);
}

/// A wrong key, a key for something else, no key, and a key where none is wanted: one clear error each, which says what to do.
#[tokio::test]
async fn wrong_keys() {
    let keyed = server(&[(1, Role::Client), (2, Role::Peer)]).await;
    let plain = server(&[]).await;
    for (builder, kind, says) in [
        (client(&keyed).secure_key(key(9)), ErrorKind::Unauthorized, "is it the same on both sides?"),
        (client(&keyed).secure_key(key(2)), ErrorKind::Unauthorized, "not for a client"),
        (client(&keyed), ErrorKind::Unauthorized, "--secure-key-file"),
        (client(&plain).secure_key(key(1)), ErrorKind::Unauthorized, "no secure key"),
    ] {
        let error = within(builder.connect()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(says), "{error}");
    }
}

/// A client that is to go on trying does so, however the key is wrong, and is there when the server gets its key.
#[tokio::test]
async fn the_key_may_come_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let write = |byte| std::fs::write(&path, SecureKey::text_of(&[byte; 32]).as_bytes()).unwrap();
    write(1);
    let mut config = Config::default();
    config.secure_key_file = vec![path.to_str().unwrap().parse().unwrap()];
    let server = Server::start_with(config).await.unwrap();
    let (tell, mut told) = mpsc::unbounded_channel();
    let connecting = client(&server)
        .secure_key(key(2))
        .retry_initial(true)
        .reconnect_interval(Duration::from_millis(20))
        .on_event(move |event| drop(tell.send(event.clone())))
        .connect();
    let connecting = tokio::spawn(connecting);
    for _ in 0..2 {
        match within(told.recv()).await {
            Some(Event::ReconnectIn { reason, .. }) => assert_eq!(reason.kind(), ErrorKind::Unauthorized),
            other => panic!("{other:?}"),
        }
    }
    write(2);
    server.reload_keys();
    let client = within(connecting).await.unwrap().unwrap();
    within(client.request_bytes("$sys.receivers", "null").into_future()).await.unwrap();
}

/// Who came with a key that is removed is told to leave, finishes what it has open, and does not come back in.
#[tokio::test]
async fn a_removed_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let write = |byte| std::fs::write(&path, SecureKey::text_of(&[byte; 32]).as_bytes()).unwrap();
    write(1);
    let mut config = Config::default();
    config.secure_key_file = vec![path.to_str().unwrap().parse().unwrap()];
    config.secure_keys = vec![(key(3), Role::Client)];
    let server = Server::start_with(config).await.unwrap();
    let (tell, mut told) = mpsc::unbounded_channel();
    let (run, mut runs) = mpsc::unbounded_channel();
    let leaving = client(&server)
        .secure_key(key(1))
        .reconnect_interval(Duration::from_millis(20))
        .on_event(move |event| drop(tell.send(event.clone())))
        .handler("slow", move |_| {
            let run = run.clone();
            async move {
                run.send(()).unwrap();
                tokio::time::sleep(Duration::from_millis(300)).await;
                Ok(ringpost::Reply::bytes("1"))
            }
        })
        .connect();
    let leaving = within(leaving).await.unwrap();
    let staying = within(client(&server).secure_key(key(3)).connect()).await.unwrap();
    let open = tokio::spawn(staying.request_bytes("slow", "0").into_future());
    within(runs.recv()).await.unwrap();
    write(2);
    server.reload_keys();
    let mut said_goodbye = false;
    loop {
        match within(told.recv()).await.unwrap() {
            Event::Goaway { .. } => said_goodbye = true,
            Event::ReconnectIn { reason, .. } if reason.kind() == ErrorKind::Unauthorized => break,
            _ => {}
        }
    }
    assert!(said_goodbye);
    // What the handler held was answered before it left.
    assert_eq!(within(open).await.unwrap().unwrap().as_bytes(), b"1");
    within(leaving.close()).await;
    within(staying.close()).await;
}
