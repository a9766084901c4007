//! Leaving by signals. One test in a process of its own: signals are the whole process's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{net::SocketAddr, sync::mpsc, thread::JoinHandle, time::Duration};

use common::{Binary, connect_to};
use ringpost_protocol::message::ServerMessage;
use ringpost_server::{Config, Ended, Server};
use rustix::process::{Signal, getpid, kill_process};

/// A signal drains: what is open is answered first, and the exit code is 0. A second one does not wait for it.
#[test]
fn the_first_signal_drains_and_the_second_ends() {
    let (address, server) = start();
    let mut client = Binary::over(connect_to(address));
    client.register("self");
    client.request(1, "self", b"1");
    let ServerMessage::Deliver(deliver) = client.hear() else { panic!("no delivery") };
    kill_process(getpid(), Signal::TERM).unwrap();
    assert!(matches!(client.hear(), ServerMessage::Goaway { .. }));
    client.answer(deliver.delivery, 1, b"done");
    assert!(matches!(client.hear(), ServerMessage::Reply(reply) if reply.content.payload() == b"done"));
    assert!(client.hear_or_end().is_none());
    drop(client);
    let ended = server.join().unwrap();
    assert_eq!((ended, ended.exit_code()), (Ended::Stopped, 0));

    let (address, server) = start();
    let mut client = Binary::over(connect_to(address));
    client.register("self");
    client.request(1, "self", b"1");
    assert!(matches!(client.hear(), ServerMessage::Deliver(_)));
    kill_process(getpid(), Signal::INT).unwrap();
    assert!(matches!(client.hear(), ServerMessage::Goaway { .. }));
    kill_process(getpid(), Signal::INT).unwrap();
    assert!(client.hear_or_end().is_none());
    let ended = server.join().unwrap();
    assert_eq!((ended, ended.exit_code()), (Ended::BySignal(2), 130));
}

fn start() -> (SocketAddr, JoinHandle<Ended>) {
    let mut config = Config::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    config.drain_timeout = Duration::from_secs(3600);
    let (listening, address) = mpsc::channel();
    let server = std::thread::spawn(move || {
        let again = config.clone();
        Server::run_until_signalled(
            config,
            move || Ok(again.clone()),
            move |addresses| listening.send(addresses[0]).unwrap(),
        )
        .unwrap()
    });
    (address.recv().unwrap(), server)
}
