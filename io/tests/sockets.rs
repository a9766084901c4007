//! Real sockets over loopback, on a real ring.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a test fails by panicking")]

use std::{
    future::Future,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Mutex,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use ringpost_io::{
    clock,
    listener::{AcceptError, Listener},
    read_size::ReadSize,
    ring::{self, RingConfig},
    stream::Stream,
};
use ringpost_protocol::Segment;

/// Descriptors are counted per process, and tests are threads of one: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn on_a_ring<T>(test: impl Future<Output = T>) -> T {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // The first runtime of a process opens a pair of sockets for signals, which stay.
    ring::run(&RingConfig { entries: 8, ..RingConfig::default() }, async {}).unwrap();
    let before = open_descriptors();
    let output = ring::run(&RingConfig { entries: 64, ..RingConfig::default() }, async {
        clock::within(Duration::from_secs(30), test).await.expect("the test did not end in time")
    })
    .unwrap();
    assert_eq!(open_descriptors(), before, "descriptors were leaked");
    output
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// What went in on one side comes back unchanged, however the reads and writes were cut.
#[test]
fn echoes_what_it_reads() {
    on_a_ring(async {
        let listener = Listener::bind(loopback(), 16).unwrap();
        let address = listener.local_addr().unwrap();
        let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let client = std::thread::spawn(move || {
            let mut socket = TcpStream::connect(address).unwrap();
            let mut writer = socket.try_clone().unwrap();
            let writing = sent.clone();
            let writing = std::thread::spawn(move || {
                writer.write_all(&writing).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let mut received = Vec::new();
            socket.read_to_end(&mut received).unwrap();
            writing.join().unwrap();
            received == sent
        });
        let stream = listener.accept().await.unwrap();
        stream.set_nodelay().unwrap();
        stream.set_keepalive(Duration::from_secs(5)).unwrap();
        assert_eq!(stream.peer_addr().unwrap().ip(), address.ip());
        let (mut size, mut buffer) = (ReadSize::default(), BytesMut::new());
        loop {
            size.prepare(&mut buffer, 0);
            let offered = buffer.capacity() - buffer.len();
            let (read, filled) = stream.read(buffer).await;
            buffer = filled;
            let read = read.unwrap();
            if read == 0 {
                break;
            }
            size.observe(read, offered);
            stream.write_all(Segment::Shared(buffer.split().freeze())).await.0.unwrap();
        }
        stream.write_all(Vec::new()).await.0.unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert!(client.join().unwrap());
    });
}

/// A listener's close ends the accept that is pending, and the port is free again.
#[test]
fn close_ends_a_pending_accept() {
    on_a_ring(async {
        let listener = Listener::bind(loopback(), 16).unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = listener.clone();
        let accepting = ring::spawn(async move { acceptor.accept().await });
        // One round trip through the ring: after it the accept is pending in the kernel.
        clock::sleep(Duration::from_millis(1)).await;
        listener.close();
        assert!(matches!(accepting.join().await, Some(Err(AcceptError::Closed))));
        assert!(matches!(listener.accept().await, Err(AcceptError::Closed)));
        assert!(TcpStream::connect(address).is_err());
        drop(listener);
        Listener::bind(address, 16).unwrap();
    });
}

/// Shutting a connection down ends a read and a write that are pending on it.
#[test]
fn shutdown_ends_what_is_pending() {
    on_a_ring(async {
        let (stream, client) = connected().await;
        let (reader, writer) = (stream.clone(), stream.clone());
        let reading = ring::spawn(async move { reader.read(BytesMut::with_capacity(100)).await.0 });
        // Far more than the sockets' buffers hold, and nobody reads it.
        let writing = ring::spawn(async move { writer.write_all(Bytes::from(vec![0; 64 << 20])).await.0 });
        clock::sleep(Duration::from_millis(1)).await;
        stream.shutdown(Shutdown::Both).unwrap();
        assert_eq!(reading.join().await.unwrap().unwrap(), 0);
        assert!(writing.join().await.unwrap().is_err());
        drop(client);
    });
}

/// A peer that resets the connection is an error of the operation, not a signal and not a panic.
#[test]
fn a_reset_is_an_error() {
    on_a_ring(async {
        let (stream, client) = connected().await;
        Stream::from_std(client).abort_on_close().unwrap();
        let (read, _) = stream.read(BytesMut::with_capacity(100)).await;
        assert!(read.is_err());
        assert!(stream.write_all(vec![1; 100]).await.0.is_err());
        stream.shutdown(Shutdown::Both).unwrap();
    });
}

/// A future that ends while others wait for sockets: what they hold is given back, not leaked.
#[test]
fn leaves_nothing_behind_when_sockets_are_shut() {
    on_a_ring(async {
        let (stream, client) = connected().await;
        let reader = stream.clone();
        drop(ring::spawn(async move { reader.read(BytesMut::with_capacity(100)).await.0 }));
        clock::sleep(Duration::from_millis(1)).await;
        stream.shutdown(Shutdown::Both).unwrap();
        drop(client);
    });
}

/// A port that is taken is named, with what to do.
#[test]
fn a_taken_port_is_explained() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let taken = TcpListener::bind(loopback()).unwrap();
    let address = taken.local_addr().unwrap();
    let error = Listener::bind(address, 16).unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("--listen"), "{error}");
}

async fn connected() -> (Stream, TcpStream) {
    let listener = Listener::bind(loopback(), 16).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().await.unwrap(), client)
}

/// A connection that is begun comes to something, or to the reason why not; one that nobody answers can be given up.
#[test]
fn connects_or_says_why_not() {
    on_a_ring(async {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.bind(&loopback().into()).unwrap();
        // One connection may wait to be accepted; the next one's packets are dropped.
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let one = Stream::connect(address).unwrap();
        one.connected().await.unwrap();
        assert_eq!(one.peer_addr().unwrap(), address);
        one.write_all(b"hello".to_vec()).await.0.unwrap();
        let waits = Stream::connect(address).unwrap();
        let waiting = waits.clone();
        let task = ring::spawn(async move { waiting.connected().await });
        ring::give_way().await;
        waits.abort().unwrap();
        task.join().await.unwrap().unwrap_err();
        drop(listener);
        // The system may say it at once, or a moment later.
        let refused = match Stream::connect(address) {
            Ok(stream) => stream.connected().await,
            Err(error) => Err(error),
        };
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    });
}
