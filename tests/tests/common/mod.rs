//! What the end-to-end and fault tests share: servers, here and as processes of their own, a client of the JSON dialect
//! made of a socket and nothing else, load, a proxy that breaks connections, and what a server's health is measured by.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "not every test uses all of it, and each is a crate of its own"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at what is not right"
)]

pub mod frames;
pub mod level;
pub mod load;
pub mod process;
pub mod proxy;

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use ringpost_server::{Config, Handle, Server};
use serde_json::{Value, json};
use socket2::SockRef;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait before looking again at what cannot be waited for.
pub const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Waits until something holds, looking again and again.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Runs a test's future on a runtime of its own. Its own thread drives it, so that it may start processes.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(future)
}

/// A server on a free port. It stops when it is dropped.
pub fn server() -> Handle {
    server_with(Config::default())
}

pub fn server_with(config: Config) -> Handle {
    let loopback = "127.0.0.1:0".parse().unwrap();
    Server::builder().config(config).listen([loopback]).start().unwrap()
}

/// A connection that says what it is told to, byte by byte, and reads JSON lines or whatever comes.
pub struct Raw {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Raw {
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, received: Vec::new() }
    }

    pub fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Says what a server that has had enough may not want to hear to its end. Whether it took it.
    pub fn try_to_say(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    pub fn object(&mut self, object: &Value) {
        self.say(format!("{object}\n"));
    }

    pub fn end(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// The system ends the connection, as it does for a process that died: by a reset if something was not read.
    pub fn die(self, by_reset: bool) {
        if by_reset {
            SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }

    /// The next JSON object, whether or not a new line ends it. `None` at the end of the stream.
    pub fn next(&mut self) -> Option<Value> {
        loop {
            let mut objects = serde_json::Deserializer::from_slice(&self.received).into_iter::<Value>();
            match objects.next() {
                Some(Ok(object)) => {
                    let used = objects.byte_offset();
                    self.received.drain(..used);
                    return Some(object);
                }
                Some(Err(error)) if !error.is_eof() => panic!("the server speaks JSON: {error}"),
                _ => {}
            }
            if !self.read_more() {
                return None;
            }
        }
    }

    /// The next object that is not about receivers.
    pub fn answer(&mut self) -> Value {
        loop {
            let object = self.next().expect("an answer, not the end");
            if object["action"] != "receivers" {
                return object;
            }
        }
    }

    /// Waits until the receivers hold this action.
    pub fn wait_for(&mut self, action: &str) {
        loop {
            let object = self.next().expect("receivers, not the end");
            let names = object["message"]["data"].as_array();
            if object["action"] == "receivers" && names.is_some_and(|names| names.contains(&json!(action))) {
                return;
            }
        }
    }

    /// What comes up to the next new line.
    pub fn line(&mut self) -> String {
        loop {
            // What is left of a line whose object was read before is no line.
            if self.received.first() == Some(&b'\n') {
                self.received.remove(0);
            }
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return String::from_utf8(line).unwrap();
            }
            assert!(self.read_more(), "a line, not the end");
        }
    }

    /// Some bytes, as they come. `None` at the end of the stream.
    pub fn some(&mut self) -> Option<Vec<u8>> {
        self.read_more().then(|| std::mem::take(&mut self.received))
    }

    fn read_more(&mut self) -> bool {
        let mut piece = [0; 16 << 10];
        match self.stream.read(&mut piece) {
            Ok(0) => false,
            Ok(read) => {
                self.received.extend_from_slice(&piece[..read]);
                true
            }
            // A reset is an end too.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("nothing came: {error}"),
        }
    }

    /// All that comes until the end of the stream.
    pub fn rest(mut self) -> Vec<u8> {
        while self.read_more() {}
        self.received
    }
}

/// What the server says of itself.
pub fn stats(address: SocketAddr) -> Value {
    let mut raw = Raw::connect(address);
    raw.object(&json!({"id": "$sys.stats", "clientId": 1, "data": null}));
    raw.answer()["message"]["data"].clone()
}

/// Waits until nothing is open any more and only `connections` are there, the asking one included.
pub fn wait_until_quiet(address: SocketAddr, connections: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stats = stats(address);
        let now = &stats["now"];
        let open = now["openRequests"].as_u64().unwrap() + now["openDeliveries"].as_u64().unwrap();
        let there = now["connectionsBinary"].as_u64().unwrap() + now["connectionsJson"].as_u64().unwrap();
        if open == 0 && there == connections {
            return;
        }
        assert!(Instant::now() < deadline, "something is left: {stats}");
        std::thread::sleep(LOOK_AGAIN);
    }
}
