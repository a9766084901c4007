//! The fault tests' own proxy does what it says: what it forwards is whole and in order, what it cuts is cut there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what is not right"
)]

mod common;

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use common::{
    PATIENCE,
    proxy::{Direction, Proxy},
    until,
};

/// Long enough to see that nothing comes, if something would; a slow machine only makes the test weaker.
const A_WHILE: Duration = Duration::from_millis(50);

/// A client and a server with the proxy between them.
struct Pair {
    proxy: Proxy,
    listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(prepare: impl FnOnce(&Proxy)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap());
        prepare(&proxy);
        let (client, server) = connect(&proxy, &listener);
        Self { proxy, listener, client, server }
    }
}

fn connect(proxy: &Proxy, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(proxy.address()).unwrap();
    let (server, _) = listener.accept().unwrap();
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    (client, server)
}

/// Bytes without a pattern that a swap of two pieces would keep.
fn bytes(count: usize) -> Vec<u8> {
    let mut state = 1u32;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

/// Sends all of it from one end to the other, and gives what arrived up to the end of the stream.
fn carry(from: &mut TcpStream, into: &mut TcpStream, data: &[u8]) -> Vec<u8> {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            from.write_all(data).unwrap();
            from.shutdown(Shutdown::Write).unwrap();
        });
        let mut arrived = Vec::new();
        into.read_to_end(&mut arrived).unwrap();
        arrived
    })
}

fn nothing_comes(socket: &mut TcpStream) {
    socket.set_read_timeout(Some(A_WHILE)).unwrap();
    let error = socket.read(&mut [0]).expect_err("nothing comes");
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
}

/// Both directions carry megabytes unchanged, then each end's own end; delayed and throttled too.
#[test]
fn forwards_whole_and_in_order() {
    for (delay_ms, rate) in [(0, None), (3, None), (0, Some(2 << 20)), (1, Some(4 << 20))] {
        let data = bytes(if rate.is_some() { 200_000 } else { 3 << 20 });
        let mut pair = Pair::new();
        pair.proxy.delay(Duration::from_millis(delay_ms));
        pair.proxy.throttle(rate);
        assert!(
            carry(&mut pair.client, &mut pair.server, &data) == data,
            "to the server, {delay_ms} ms, {rate:?}"
        );
        assert!(
            carry(&mut pair.server, &mut pair.client, &data) == data,
            "to the client, {delay_ms} ms, {rate:?}"
        );
        for direction in [Direction::ToServer, Direction::ToClient] {
            assert_eq!(pair.proxy.forwarded(direction), data.len() as u64);
        }
        until("the connection is gone", || pair.proxy.connections() == 0);
    }
}

/// Delay and throttle take at least the time that they say.
#[test]
fn delays_and_throttles() {
    let mut pair = Pair::new();
    pair.proxy.delay(A_WHILE);
    let begun = Instant::now();
    pair.client.write_all(b"a").unwrap();
    pair.server.read_exact(&mut [0]).unwrap();
    assert!(begun.elapsed() >= A_WHILE, "delayed by {A_WHILE:?}");
    pair.proxy.delay(Duration::ZERO);
    pair.proxy.throttle(Some(100_000));
    let begun = Instant::now();
    pair.client.write_all(&[0; 10_000]).unwrap();
    pair.server.read_exact(&mut [0; 10_000]).unwrap();
    // The pause behind the last step is not in it.
    assert!(begun.elapsed() >= Duration::from_millis(90), "10 kB at 100 kB/s took {:?}", begun.elapsed());
}

/// A frozen connection carries nothing, keeps what was sent, and carries it when it thaws.
#[test]
fn freezes_and_thaws() {
    let mut pair = Pair::new();
    pair.proxy.freeze();
    pair.client.write_all(b"later").unwrap();
    nothing_comes(&mut pair.server);
    let (mut client, mut server) = connect(&pair.proxy, &pair.listener);
    client.write_all(b"this too").unwrap();
    nothing_comes(&mut server);
    pair.proxy.thaw();
    for (socket, expected) in [(&mut pair.server, &b"later"[..]), (&mut server, b"this too")] {
        let mut arrived = vec![0; expected.len()];
        socket.read_exact(&mut arrived).unwrap();
        assert_eq!(arrived, expected);
    }
}

/// A half-open connection takes what both say and delivers none of it, their ends included. New ones work.
#[test]
fn half_open_connections() {
    let mut pair = Pair::new();
    pair.client.write_all(b"a").unwrap();
    pair.server.read_exact(&mut [0]).unwrap();
    pair.proxy.half_open();
    pair.client.write_all(&bytes(1 << 20)).unwrap();
    pair.server.write_all(b"answer").unwrap();
    nothing_comes(&mut pair.server);
    nothing_comes(&mut pair.client);
    pair.client.shutdown(Shutdown::Both).unwrap();
    drop(pair.client);
    nothing_comes(&mut pair.server);
    let (mut client, mut server) = connect(&pair.proxy, &pair.listener);
    assert_eq!(carry(&mut client, &mut server, b"fresh"), b"fresh");
    pair.proxy.cut();
    let error = pair.server.read(&mut [0]).expect_err("cut");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// A connection that is to be cut behind a byte carries up to that byte and ends by a reset.
#[test]
fn cuts_at_a_byte() {
    let data = bytes(100_000);
    for limit in [0, 1, 17, 16_384, 16_385, 99_999] {
        for direction in [Direction::ToServer, Direction::ToClient] {
            let mut pair = Pair::with(|proxy| proxy.cut_at(Some((direction, limit as u64))));
            let (from, into) = match direction {
                Direction::ToServer => (&mut pair.client, &mut pair.server),
                Direction::ToClient => (&mut pair.server, &mut pair.client),
            };
            // The reset may come while it is still writing.
            let _ = from.write_all(&data);
            let mut arrived = Vec::new();
            let error = into.read_to_end(&mut arrived).expect_err("a reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert!(arrived == data[..limit], "{} of {limit} bytes {direction:?}", arrived.len());
            assert_eq!(pair.proxy.forwarded(direction), limit as u64);
        }
    }
}

/// New connections go to the new target, and to nobody there is a connection that ends.
#[test]
fn changes_its_target() {
    let pair = Pair::new();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    pair.proxy.set_target(other.local_addr().unwrap());
    let (mut client, mut server) = connect(&pair.proxy, &other);
    assert_eq!(carry(&mut client, &mut server, b"elsewhere"), b"elsewhere");
    drop(other);
    let mut nowhere = TcpStream::connect(pair.proxy.address()).unwrap();
    nowhere.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(!matches!(nowhere.read(&mut [0]), Ok(1..)), "nobody is there to answer");
    assert_eq!(pair.proxy.accepted(), 3);
}
