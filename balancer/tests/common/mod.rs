//! What the balancer's tests share: instances made of sockets and nothing else, and a balancer in front of them.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what is not right, and not every test uses all of it"
)]

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ringpost_balancer::{Balancer, Config, Handle, Instance};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something holds, looking again and again.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A configuration for tests: free ports, probes often, and nothing that takes long.
pub fn config(instances: &[SocketAddr]) -> Config {
    let mut config = Config::default();
    config.listen = vec![([127, 0, 0, 1], 0).into()];
    config.admin = Some(([127, 0, 0, 1], 0).into());
    config.instances = instances.iter().map(|address| Instance::new(address.to_string())).collect();
    config.health_interval = Duration::from_millis(50);
    config.slow_start = Duration::ZERO;
    config
}

pub fn start(config: Config) -> Handle {
    Balancer::builder().config(config).start().unwrap()
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The body of an answer of the admin address.
pub fn ask(balancer: &Handle, request: &str) -> String {
    let mut socket = connect(balancer.listening().admin.unwrap());
    write!(socket, "{request} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200 OK"), "{head}");
    body.to_owned()
}

pub fn stats(balancer: &Handle) -> serde_json::Value {
    serde_json::from_str(&ask(balancer, "GET /stats")).unwrap()
}

/// The state of the instance at this place in the list.
pub fn state(balancer: &Handle, place: usize) -> String {
    stats(balancer)["instances"][place]["state"].as_str().unwrap().to_owned()
}

/// Waits until no session is left and all pipes are back, and gives the figures.
pub fn until_quiet(balancer: &Handle) -> serde_json::Value {
    until("all sessions have ended", || {
        let stats = stats(balancer);
        stats["connections"] == 0 && stats["pipes"] == stats["pipesIdle"]
    });
    stats(balancer)
}

/// An instance: a listener whose connections each get a thread, until it is dropped.
pub struct Service {
    pub address: SocketAddr,
    pub connections: Arc<AtomicU64>,
    listener: TcpListener,
    stopping: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Service {
    /// One that does this with each connection. What breaks there is the client's business.
    pub fn start(serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        Self::at(([127, 0, 0, 1], 0).into(), serve)
    }

    pub fn at(
        address: SocketAddr,
        serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, stopping) = (Arc::<AtomicU64>::default(), Arc::default());
        let (serve, accepting) = (Arc::new(serve), listener.try_clone().unwrap());
        let thread = std::thread::spawn({
            let (connections, stopping) =
                (connections.clone(), Arc::<std::sync::atomic::AtomicBool>::clone(&stopping));
            move || {
                while let Ok((socket, _)) = accepting.accept() {
                    if stopping.load(Ordering::SeqCst) {
                        return;
                    }
                    connections.fetch_add(1, Ordering::SeqCst);
                    let serve = serve.clone();
                    std::thread::spawn(move || {
                        // A client that goes while it is served is what many of these tests are about.
                        let _ = serve(socket);
                    });
                }
            }
        });
        Self { address, connections, listener, stopping, thread: Some(thread) }
    }

    /// One that sends back what it gets, and ends when its client does.
    pub fn echo() -> Self {
        Self::start(echo)
    }

    /// One that says its name, and then sends back what it gets.
    pub fn named(name: &'static str) -> Self {
        Self::start(move |mut socket| {
            writeln!(socket, "{name}")?;
            echo(socket)
        })
    }

    pub fn count(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // It waits in accept: a shutdown of a listening socket ends that.
        socket2::SockRef::from(&self.listener).shutdown(Shutdown::Both).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

pub fn echo(mut socket: TcpStream) -> std::io::Result<()> {
    std::io::copy(&mut socket.try_clone()?, &mut socket)?;
    socket.shutdown(Shutdown::Write)
}

/// The line that a named service says first.
pub fn name(socket: &mut TcpStream) -> String {
    let (mut line, mut byte) = (String::new(), [0]);
    loop {
        socket.read_exact(&mut byte).unwrap();
        if byte == *b"\n" {
            return line;
        }
        line.push(byte[0].into());
    }
}

/// Random numbers, reproducible: splitmix64.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// A hash of a stream: FNV-1a over words would do, order and every byte count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamHash {
    pub bytes: u64,
    hash: u64,
}

impl Default for StreamHash {
    fn default() -> Self {
        Self { bytes: 0, hash: 0xCBF2_9CE4_8422_2325 }
    }
}

impl StreamHash {
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        }
        self.bytes += bytes.len() as u64;
    }
}
