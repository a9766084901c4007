//! Endpoints and pipes against real sockets: readiness, moving without waiting, and ends of every kind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at what is not right")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    time::Duration,
};

use ringpost_io::{
    endpoint::Endpoint,
    pipe::Pipe,
    ring::{self, RingConfig},
    signals,
    stream::Stream,
};

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(20);

fn run<T>(future: impl Future<Output = T>) -> T {
    ring::run(&RingConfig { entries: 8, ..RingConfig::default() }, future).unwrap()
}

/// An endpoint and its peer.
fn pair() -> (Endpoint, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    (Endpoint::new(Stream::from_std(listener.accept().unwrap().0)).unwrap(), peer)
}

/// Nothing there and no room are told at once; readiness comes when there is, and the end is a read of nothing.
#[test]
fn readiness() {
    run(async {
        let (endpoint, mut peer) = pair();
        let mut buffer = [0; 8];
        assert_eq!(endpoint.try_read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
        peer.write_all(b"hello").unwrap();
        endpoint.readable().await.unwrap();
        assert_eq!(endpoint.try_read(&mut buffer).unwrap(), 5);
        let mut written = 0;
        while let Ok(more) = endpoint.try_write(&[7; 1 << 16]) {
            written += more;
        }
        assert_eq!(endpoint.try_write(&[7]).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(endpoint.write(vec![7], 0..1).await.0.unwrap_err().kind(), ErrorKind::WouldBlock);
        let reader = std::thread::spawn(move || {
            peer.read_exact(&mut vec![0; written]).unwrap();
            peer
        });
        endpoint.writable().await.unwrap();
        assert!(endpoint.try_write(&[7]).is_ok());
        let (written, back) = endpoint.write(vec![7; 3], 1..3).await;
        assert_eq!((written.unwrap(), back), (2, vec![7; 3]));
        assert_eq!(endpoint.write(vec![7; 3], 1..4).await.0.unwrap_err().kind(), ErrorKind::InvalidInput);
        reader.join().unwrap().shutdown(Shutdown::Write).unwrap();
        endpoint.readable().await.unwrap();
        assert_eq!(endpoint.try_read(&mut buffer).unwrap(), 0);
    });
}

/// A wait ends with its time, with a shutdown and with an abort, and the peer of an aborted one sees a reset.
#[test]
fn waits_end() {
    run(async {
        let (endpoint, _peer) = pair();
        let waits = ring::spawn({
            let endpoint = endpoint.clone();
            async move { endpoint.readable().await }
        });
        ring::give_way().await;
        endpoint.shutdown(Shutdown::Both).unwrap();
        waits.join().await.unwrap().unwrap();

        let (endpoint, mut peer) = pair();
        let waits = ring::spawn({
            let endpoint = endpoint.clone();
            async move { endpoint.readable().await }
        });
        ring::give_way().await;
        endpoint.abort().unwrap();
        waits.join().await.unwrap().unwrap();
        assert_eq!(peer.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);

        let (endpoint, mut peer) = pair();
        let error = endpoint.readable_within(Duration::from_millis(5)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(peer.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        endpoint.shutdown(Shutdown::Both).unwrap();
    });
}

/// Connecting succeeds, is refused, or is given up when nobody answers.
#[test]
fn connecting() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = Endpoint::connect(address).unwrap();
        endpoint.writable_within(PATIENCE).await.unwrap();
        endpoint.take_error().unwrap();
        assert_eq!(endpoint.peer_addr().unwrap(), address);
        let (accepted, from) = listener.accept().unwrap();
        assert_eq!(endpoint.local_addr().unwrap(), from);
        drop((listener, accepted));
        match Endpoint::connect(address) {
            Ok(endpoint) => {
                endpoint.writable_within(PATIENCE).await.unwrap();
                assert_eq!(endpoint.take_error().unwrap_err().kind(), ErrorKind::ConnectionRefused);
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused),
        }
        // A listener whose backlog is full lets further ones wait: what they send is dropped.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        socket.listen(0).unwrap();
        let full = socket.local_addr().unwrap().as_socket().unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            assert!(waiting.len() < 10, "a backlog of nothing is not full");
            let endpoint = Endpoint::connect(full).unwrap();
            match endpoint.writable_within(Duration::from_millis(20)).await {
                Ok(()) => waiting.push(endpoint),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    });
}

/// All bytes go through a pipe, in order; it says when the source is empty and when it ends.
#[test]
fn splices() {
    run(async {
        let ((from, mut source), (to, mut sink)) = (pair(), pair());
        let bytes: Vec<u8> = (0..3_000_000u32).map(|at| (at ^ (at >> 8)) as u8).collect();
        let sent = bytes.clone();
        let sender = std::thread::spawn(move || {
            source.write_all(&sent).unwrap();
            source.shutdown(Shutdown::Write).unwrap();
            source
        });
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; 3_000_000];
            sink.read_exact(&mut got).unwrap();
            got
        });
        let mut pipe = Pipe::open(64 << 10).unwrap();
        loop {
            match pipe.fill(&from, 1 << 20) {
                Ok(0) => break,
                Ok(filled) => assert_eq!(pipe.held_bytes(), filled),
                Err(error) if error.kind() == ErrorKind::WouldBlock => from.readable().await.unwrap(),
                Err(error) => panic!("{error}"),
            }
            while pipe.held_bytes() > 0 {
                match pipe.drain(&to) {
                    Ok(drained) => assert!(drained > 0),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => to.writable().await.unwrap(),
                    Err(error) => panic!("{error}"),
                }
            }
        }
        assert_eq!(reader.join().unwrap(), bytes);
        drop(sender.join().unwrap());
    });
}

/// A pipe is full before it has taken all, says so, and goes on when it was drained.
#[test]
fn a_full_pipe() {
    run(async {
        let ((from, mut source), (to, mut sink)) = (pair(), pair());
        source.set_nodelay(true).unwrap();
        source.write_all(&[3; 300_000]).unwrap();
        let mut pipe = Pipe::open(4096).unwrap();
        let mut filled = 0;
        let full = loop {
            from.readable().await.unwrap();
            match pipe.fill(&from, 1 << 20) {
                Ok(bytes) => filled += bytes,
                Err(error) => break error,
            }
        };
        assert_eq!((full.kind(), pipe.held_bytes()), (ErrorKind::WouldBlock, filled));
        let mut drained = 0;
        while pipe.held_bytes() > 0 {
            drained += pipe.drain(&to).unwrap();
        }
        assert_eq!(drained, filled);
        sink.read_exact(&mut vec![0; drained]).unwrap();
        assert!(pipe.fill(&from, 1 << 20).unwrap() > 0);
    });
}

/// Draining into a connection that is gone is an error, and does not end the process.
#[test]
fn no_broken_pipe_signal() {
    run(async {
        signals::survive_broken_pipes().unwrap();
        let ((from, mut source), (to, sink)) = (pair(), pair());
        drop(sink);
        source.write_all(&[3; 1000]).unwrap();
        let mut pipe = Pipe::open(4096).unwrap();
        let error = loop {
            from.readable().await.unwrap();
            pipe.fill(&from, 100).unwrap();
            to.writable().await.unwrap();
            if let Err(error) = pipe.drain(&to) {
                break error;
            }
        };
        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    });
}
