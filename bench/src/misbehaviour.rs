//! A client that does what none should.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{anyhow, ensure};
use ringpost_protocol::{
    Content, Outgoing,
    frame::{Preface, encode_client},
    message::{ClientMessage, Hello, Request},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How a client misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misbehaviour {
    /// It makes requests, 50 a second of 16 KiB, to the action that all use, and reads none of the replies. No more of them:
    /// what it does by not reading is the question, not what its share of the work does.
    NeverReads,
    /// It writes requests as fast as its socket takes them, to an action that nobody has, and reads what comes.
    Floods,
    /// It says what it has to say at one byte a second.
    ByteASecond,
}

/// How long a call on the socket may wait: so late is the end noticed.
const TICK: Duration = Duration::from_millis(20);

impl Misbehaviour {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::NeverReads, Self::Floods, Self::ByteASecond];

    /// In words, behind "a client that".
    pub fn name(self) -> &'static str {
        match self {
            Self::NeverReads => "never reads",
            Self::Floods => "floods",
            Self::ByteASecond => "sends a byte a second",
        }
    }

    /// Its action, the length of a payload, how many requests it makes at once, and the pause behind them.
    fn manners(self) -> (&'static str, usize, usize, Duration) {
        match self {
            Self::NeverReads => ("bench", 16 << 10, 1, TICK),
            Self::Floods => ("nobody", 128, 512, Duration::ZERO),
            Self::ByteASecond => ("bench", 128, 1, Duration::ZERO),
        }
    }
}

/// A client at its work, on a thread of its own.
#[derive(Debug)]
pub struct Misbehaving {
    over: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Misbehaving {
    /// Lets one loose on a server.
    pub fn start(misbehaviour: Misbehaviour, server: SocketAddr) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let client = Client { misbehaviour, server, over: over.clone(), written: 0, next_number: 1 };
        Self { over, thread: thread::spawn(move || client.run()) }
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it could not even connect: then nothing was measured.
    pub fn end(self) -> anyhow::Result<()> {
        self.over.store(true, Ordering::Relaxed);
        let written = self.thread.join().map_err(|_| anyhow!("the client's thread has panicked"))?;
        ensure!(written > 0, "the client could not write a byte, so nobody was bothered");
        Ok(())
    }
}

struct Client {
    misbehaviour: Misbehaviour,
    server: SocketAddr,
    over: Arc<AtomicBool>,
    written: u64,
    next_number: u64,
}

impl Client {
    /// Connects, misbehaves, and when it is thrown out does so again. How many bytes the server's side took.
    fn run(mut self) -> u64 {
        while !self.is_over() {
            if let Ok(stream) = TcpStream::connect_timeout(&self.server, TICK * 50) {
                // An error is how the server ends it; that is what it is there for.
                let _ = self.misbehave(stream);
            }
            thread::sleep(TICK);
        }
        self.written
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn misbehave(&mut self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_write_timeout(Some(TICK))?;
        self.next_number = 1;
        let mut greeting = Outgoing::new();
        greeting.tail().extend_from_slice(&Preface::plain().encode());
        encode_client(&ClientMessage::Hello(Hello::default()), &mut greeting);
        let mut waiting = greeting.drain_to_vec();
        let (action, size, count, pause) = self.misbehaviour.manners();
        let content = Content::from_parts(action.as_bytes(), b"", b"", &vec![b'1'; size]);
        stream.set_nonblocking(self.misbehaviour == Misbehaviour::Floods)?;
        while !self.is_over() {
            if waiting.len() < size {
                waiting.extend(self.requests(&content, count));
            }
            match self.misbehaviour {
                Misbehaviour::ByteASecond => {
                    self.write(&mut stream, &mut waiting, 1)?;
                    self.sleep(Duration::from_secs(1));
                }
                Misbehaviour::NeverReads => {
                    self.write(&mut stream, &mut waiting, usize::MAX)?;
                    self.sleep(pause);
                }
                Misbehaviour::Floods => {
                    wait(&stream)?;
                    self.write(&mut stream, &mut waiting, usize::MAX)?;
                    discard(&mut stream)?;
                }
            }
        }
        Ok(())
    }

    fn requests(&mut self, content: &Content, count: usize) -> Vec<u8> {
        let mut out = Outgoing::new();
        for number in self.next_number..self.next_number + count as u64 {
            let request = Request { number, content: content.clone(), ..Request::default() };
            encode_client(&ClientMessage::Request(request), &mut out);
        }
        self.next_number += count as u64;
        out.drain_to_vec()
    }

    /// Writes what the socket takes, at most `most` bytes.
    fn write(&mut self, stream: &mut TcpStream, waiting: &mut Vec<u8>, most: usize) -> std::io::Result<()> {
        match stream.write(&waiting[..waiting.len().min(most)]) {
            Ok(count) => {
                self.written += count as u64;
                waiting.drain(..count);
                Ok(())
            }
            Err(error) if is_full(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn sleep(&self, pause: Duration) {
        let mut left = pause;
        while !self.is_over() && !left.is_zero() {
            let nap = left.min(TICK);
            thread::sleep(nap);
            left -= nap;
        }
    }
}

/// Waits until the socket takes or has something.
fn wait(stream: &TcpStream) -> std::io::Result<()> {
    let mut waiting = [PollFd::new(stream, PollFlags::IN | PollFlags::OUT)];
    let tick = Timespec { tv_sec: 0, tv_nsec: i64::from(TICK.subsec_nanos()) };
    poll(&mut waiting, Some(&tick))?;
    Ok(())
}

/// Reads what is there.
fn discard(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut waste = [0; 1 << 16];
    loop {
        match stream.read(&mut waste) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if is_full(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, time::Instant};

    use super::*;

    fn accept(listener: &TcpListener) -> TcpStream {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                    return stream;
                }
                Err(error) => assert!(is_full(&error) && Instant::now() < deadline, "nobody came: {error}"),
            }
            thread::sleep(TICK);
        }
    }

    /// Each connects, speaks the protocol's first bytes, comes again when it is thrown out, and ends when it is told to.
    #[test]
    fn comes_again() {
        for misbehaviour in Misbehaviour::ALL {
            let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            listener.set_nonblocking(true).unwrap();
            let client = Misbehaving::start(misbehaviour, listener.local_addr().unwrap());
            for _ in 0..2 {
                let mut first = [0];
                accept(&listener).read_exact(&mut first).unwrap();
                assert_eq!(first[0], Preface::MAGIC[0], "{misbehaviour:?}");
            }
            client.end().unwrap();
        }
    }
}
