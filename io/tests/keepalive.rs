//! What the kernel is asked to watch.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

use std::{
    net::{TcpListener, TcpStream},
    time::Duration,
};

use ringpost_io::{endpoint::Endpoint, stream::Stream};
use socket2::SockRef;

/// A peer that vanishes is asked after the idle time, then three times at a third of it, and data that it does not
/// acknowledge is waited for twice as long: lost after twice the idle time in either case.
#[test]
fn a_vanished_peer_is_noticed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let same = socket.try_clone().unwrap();
    Stream::from_std(socket).set_keepalive(Duration::from_secs(6)).unwrap();
    let same = SockRef::from(&same);
    assert!(same.keepalive().unwrap());
    assert_eq!(same.tcp_keepalive_time().unwrap(), Duration::from_secs(6));
    assert_eq!(same.tcp_keepalive_interval().unwrap(), Duration::from_secs(2));
    assert_eq!(same.tcp_keepalive_retries().unwrap(), 3);
    assert_eq!(same.tcp_user_timeout().unwrap(), Some(Duration::from_secs(12)));
}

/// An endpoint's silent peer is asked in the same way; but one that is there and does not read is left alone.
#[test]
fn an_endpoint_leaves_slow_readers_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let same = socket.try_clone().unwrap();
    Endpoint::new(Stream::from_std(socket)).unwrap().set_keepalive(Duration::from_secs(6)).unwrap();
    let same = SockRef::from(&same);
    assert!(same.keepalive().unwrap());
    assert_eq!(same.tcp_keepalive_time().unwrap(), Duration::from_secs(6));
    assert_eq!(
        (same.tcp_keepalive_interval().unwrap(), same.tcp_keepalive_retries().unwrap()),
        (Duration::from_secs(2), 3)
    );
    assert_eq!(same.tcp_user_timeout().unwrap(), None);
}
