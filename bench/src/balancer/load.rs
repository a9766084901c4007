//! What goes through a balancer: both ends of it in one thread, clients that send messages and a service that sends them back.
//!
//! One thread on one core, so that the balancer's core is its own and both ends cost the same whoever is between them. What
//! arrives is counted, not compared: that is what the balancer's tests do.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};

/// How long nothing may happen before the run is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is read or written at once.
const PIECE_BYTES: usize = 256 << 10;

/// A load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Clients.
    pub connections: usize,
    /// Messages of each that are under way at once.
    pub in_flight: usize,
    /// Bytes of a message.
    pub size: usize,
    /// Whether the service sends them back. Otherwise they are a stream.
    pub echo: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Carried {
    /// Messages that arrived: back at the client, or at the service.
    pub messages: u64,
    /// In this time.
    pub elapsed: Duration,
    /// Their median time there and back in µs, if they are sent back.
    pub p50_us: f64,
    /// The same, that 99 of 100 do not exceed.
    pub p99_us: f64,
}

/// A running load: its connections are there, and go with it.
#[derive(Debug)]
pub struct Ends {
    load: Load,
    poll: Poll,
    /// Clients first, then the service's ends.
    sockets: Vec<Socket>,
    piece: Vec<u8>,
}

#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    /// Bytes to be written as soon as there is room.
    owed: usize,
    /// Bytes that came of the message that is not whole yet.
    part: usize,
    /// When the messages under way were sent.
    sent: VecDeque<Instant>,
}

impl Ends {
    /// Connects all clients to a balancer at `address`, which connects each to the service behind `listener`.
    ///
    /// # Errors
    /// When one of them cannot be had.
    pub fn connect(
        address: SocketAddr,
        listener: &std::net::TcpListener,
        load: Load,
    ) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let mut ends = Self { load, poll, sockets: Vec::new(), piece: vec![7; PIECE_BYTES] };
        let mut service = Vec::new();
        for number in 0..load.connections {
            let client = std::net::TcpStream::connect(address).with_context(|| format!("client {number}"))?;
            ends.add(client)?;
            service.push(listener.accept().with_context(|| format!("the service's end {number}"))?.0);
        }
        service.into_iter().try_for_each(|stream| ends.add(stream))?;
        Ok(ends)
    }

    fn add(&mut self, stream: std::net::TcpStream) -> anyhow::Result<()> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let mut stream = TcpStream::from_std(stream);
        let token = Token(self.sockets.len());
        self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        self.sockets.push(Socket { stream, owed: 0, part: 0, sent: VecDeque::new() });
        Ok(())
    }

    /// Sends messages for a time, or so many of them; then waits until none is under way.
    ///
    /// # Errors
    /// When a connection breaks, or nothing happens for long.
    pub fn run(&mut self, time: Duration, most: u64) -> anyhow::Result<Carried> {
        let mut latencies = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
        let (clients, begun) = (self.load.connections, Instant::now());
        let (mut messages, mut asked, mut last, mut counted) = (0, 0, begun, None);
        let mut events = Events::with_capacity(1024);
        for number in 0..clients {
            for _ in 0..self.load.in_flight {
                self.ask(number, &mut asked);
            }
            self.write(number)?;
        }
        loop {
            self.poll.poll(&mut events, Some(Duration::from_millis(100)))?;
            let now = Instant::now();
            let over = now - begun >= time || asked >= most;
            if over && counted.is_none() {
                counted = Some((messages, now));
            }
            for event in &events {
                let number = event.token().0;
                if event.is_readable() {
                    last = now;
                    let whole = self.read(number)?;
                    let is_end = if self.load.echo { number < clients } else { number >= clients };
                    if is_end {
                        messages += whole;
                        let client = number % clients;
                        for _ in 0..whole {
                            if let Some(sent) = self.sockets[client].sent.pop_front() {
                                let taken = u64::try_from(sent.elapsed().as_nanos()).unwrap_or(u64::MAX);
                                latencies.saturating_record(taken);
                            }
                            if !over {
                                self.ask(client, &mut asked);
                            }
                        }
                        self.write(client)?;
                    }
                }
                self.write(number)?;
            }
            if over && messages == asked {
                break;
            }
            ensure!(now - last < PATIENCE, "nothing came for {PATIENCE:?}: {messages} of {asked}");
        }
        let (messages, until) = match counted {
            // A number of messages is over with the last of them.
            Some(_) if asked >= most => (messages, Instant::now()),
            Some(counted) => counted,
            None => (messages, Instant::now()),
        };
        let us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
        Ok(Carried { messages, elapsed: until - begun, p50_us: us(0.5), p99_us: us(0.99) })
    }

    fn ask(&mut self, client: usize, asked: &mut u64) {
        *asked += 1;
        self.sockets[client].owed += self.load.size;
        self.sockets[client].sent.push_back(Instant::now());
    }

    /// Reads all that is there, and gives the number of messages that are whole by it.
    fn read(&mut self, number: usize) -> anyhow::Result<u64> {
        let Load { size, connections, echo, .. } = self.load;
        let Socket { stream, owed, part, .. } = &mut self.sockets[number];
        let mut whole = 0;
        loop {
            match stream.read(&mut self.piece) {
                Ok(0) => anyhow::bail!("end {number} was closed"),
                Ok(read) => {
                    if echo && number >= connections {
                        *owed += read;
                    }
                    *part += read;
                    whole += (*part / size) as u64;
                    *part %= size;
                    if read < self.piece.len() {
                        return Ok(whole);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(whole),
                Err(error) => return Err(error).with_context(|| format!("end {number}")),
            }
        }
    }

    fn write(&mut self, number: usize) -> anyhow::Result<()> {
        let Socket { stream, owed, .. } = &mut self.sockets[number];
        while *owed > 0 {
            match stream.write(&self.piece[..(*owed).min(PIECE_BYTES)]) {
                Ok(written) => *owed -= written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).with_context(|| format!("end {number}")),
            }
        }
        Ok(())
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        for socket in &self.sockets {
            // One that broke has ended already.
            let _ = socket.stream.shutdown(Shutdown::Both);
        }
    }
}

/// A service's listener that waits in accept; it is not polled.
///
/// # Errors
/// When there is no port.
pub fn listen() -> anyhow::Result<std::net::TcpListener> {
    std::net::TcpListener::bind("127.0.0.1:0").context("a port for the service")
}

/// A port that nobody has, for a program that has to be told one.
///
/// # Errors
/// When there is none.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0".parse()?)?;
    Ok(listener.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a balancer between them, all messages come back, and a stream arrives.
    #[test]
    fn both_ends() {
        for echo in [true, false] {
            let listener = listen().unwrap();
            let load = Load { connections: 3, in_flight: 4, size: 100_000, echo };
            let mut ends = Ends::connect(listener.local_addr().unwrap(), &listener, load).unwrap();
            let carried = ends.run(Duration::from_secs(60), 50).unwrap();
            // Each of those that are under way when the last one is asked for may ask for one more.
            assert!((50..=62).contains(&carried.messages), "{carried:?}");
            assert!(carried.p50_us > 0.0);
        }
    }
}
