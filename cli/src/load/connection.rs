//! One nonblocking socket with its two buffers.

use std::io::{self, ErrorKind, Read, Write};

use anyhow::{Context, bail};
use mio::net::TcpStream;

use super::{
    engine::{Clock, Tally},
    records::Records,
    window::Window,
    wire::{Event, Role, Wire},
};

/// The first size of the receive buffer: more than the socket brings at once under the usual load.
const INPUT_BYTES: usize = 64 << 10;

/// A connection of the load generator.
pub(super) struct Connection<W> {
    stream: TcpStream,
    role: Role,
    index: u32,
    wire: W,
    window: Window,
    records: Option<Records>,
    input: Input,
    output: Output,
}

impl<W: Wire> Connection<W> {
    /// Takes a connected socket over and says the protocol's first words.
    pub(super) fn open(
        mut stream: TcpStream,
        role: Role,
        index: u32,
        mut wire: W,
        mut records: Option<Records>,
        window: Window,
    ) -> io::Result<Self> {
        let mut output = Output::default();
        wire.open(&mut output.said);
        output.flush(&mut stream, records.as_mut())?;
        Ok(Self { stream, role, index, wire, window, records, input: Input::new(), output })
    }

    /// The socket, to register it.
    pub(super) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Sends the first requests.
    pub(super) fn start(&mut self, in_flight: u32, now_ns: u64) -> anyhow::Result<()> {
        for _ in 0..in_flight {
            let number = self.window.send(now_ns);
            self.wire.request(number, &mut self.output.said);
        }
        self.flush()
    }

    /// Says the protocol's last words.
    pub(super) fn close(&mut self) -> anyhow::Result<()> {
        self.wire.close(&mut self.output.said);
        self.flush()
    }

    /// Requests without an outcome.
    pub(super) fn open_requests(&self) -> usize {
        self.window.open()
    }

    /// Reads all that the socket has, handles it, and sends what came of it in one go.
    ///
    /// `closing`: the server will send no more.
    pub(super) fn receive(&mut self, closing: bool, clock: &Clock, tally: &mut Tally) -> anyhow::Result<()> {
        self.receive_all(closing, clock, tally).with_context(|| self.name())?;
        self.flush()
    }

    /// Sends what waits, as far as the socket takes it; the rest goes when it is writable again.
    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        let flushed = self.output.flush(&mut self.stream, self.records.as_mut());
        flushed.with_context(|| format!("{}: sending", self.name()))
    }

    fn receive_all(&mut self, closing: bool, clock: &Clock, tally: &mut Tally) -> anyhow::Result<()> {
        loop {
            let filled = self.input.fill(&mut self.stream).context("receiving")?;
            self.input.open(self.records.as_mut())?;
            // One reading for all that one system call brought: with one request in flight that is one per reply.
            let now_ns = clock.now_ns();
            self.handle(now_ns, tally)?;
            match filled {
                Filled::Whole => {}
                // A short read has emptied the socket: for a stream that is as good as EAGAIN, see epoll(7), and
                // spares a system call. But there is no further event for an end that came with the data.
                Filled::Part if closing => {}
                Filled::Part | Filled::Nothing => return Ok(()),
                Filled::End => bail!("the server closed the connection"),
            }
        }
    }

    #[inline]
    fn handle(&mut self, now_ns: u64, tally: &mut Tally) -> anyhow::Result<()> {
        while let Some((bytes, event)) = self.wire.next(self.input.unread(), &mut self.output.said)? {
            self.input.consume(bytes);
            match event {
                Event::Other => {}
                Event::Replied(number) => match self.window.end(number) {
                    Some(sent_ns) => {
                        tally.replied(now_ns - sent_ns);
                        self.send_next(now_ns, tally);
                    }
                    None => tally.failed(format!("a reply to request {number}, which is not open")),
                },
                Event::Failed(number, reason) => {
                    tally.failed(reason.into());
                    if number.is_some_and(|number| self.window.end(number).is_some()) {
                        self.send_next(now_ns, tally);
                    }
                }
                Event::Ready => tally.ready += 1,
            }
        }
        self.input.compact();
        Ok(())
    }

    #[inline]
    fn send_next(&mut self, now_ns: u64, tally: &Tally) {
        if tally.sending {
            let number = self.window.send(now_ns);
            self.wire.request(number, &mut self.output.said);
        }
    }

    fn name(&self) -> String {
        let role = match self.role {
            Role::Requester => "requester",
            Role::Handler => "handler",
        };
        format!("{role} {} ({})", self.index, W::NAME)
    }
}

/// What a read brought.
enum Filled {
    /// As much as there was room for: there may be more.
    Whole,
    /// All that there was.
    Part,
    /// Nothing, for now.
    Nothing,
    /// The stream's end.
    End,
}

/// Bytes that came in and are not yet handled.
struct Input {
    bytes: Vec<u8>,
    start: usize,
    /// Where what can be read ends: behind it lies a part of a record.
    plain: usize,
    end: usize,
}

impl Input {
    fn new() -> Self {
        Self { bytes: vec![0; INPUT_BYTES], start: 0, plain: 0, end: 0 }
    }

    /// Reads once.
    fn fill(&mut self, stream: &mut TcpStream) -> io::Result<Filled> {
        loop {
            let room = &mut self.bytes[self.end..];
            let size = room.len();
            return match stream.read(room) {
                Ok(0) => Ok(Filled::End),
                Ok(count) => {
                    self.end += count;
                    Ok(if count == size { Filled::Whole } else { Filled::Part })
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Filled::Nothing),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
        }
    }

    /// Makes readable what came.
    #[inline]
    fn open(&mut self, records: Option<&mut Records>) -> anyhow::Result<()> {
        match records {
            None => self.plain = self.end,
            Some(records) => {
                (self.plain, self.end) = records.open(&mut self.bytes[..self.end], self.plain)?;
            }
        }
        Ok(())
    }

    fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.plain]
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
    }

    /// Moves the beginning of a message to the front, and makes room if it fills the buffer.
    fn compact(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.plain -= self.start;
        self.start = 0;
        if self.end == self.bytes.len() {
            self.bytes.resize(2 * self.end, 0);
        }
    }
}

/// Bytes that are not yet sent.
#[derive(Default)]
struct Output {
    /// As the wire says it.
    said: Vec<u8>,
    /// On its way: the same, or in records.
    bytes: Vec<u8>,
    sent: usize,
}

impl Output {
    fn flush(&mut self, stream: &mut TcpStream, records: Option<&mut Records>) -> io::Result<()> {
        match records {
            Some(records) => records.seal(&mut self.said, &mut self.bytes),
            None if self.bytes.is_empty() => std::mem::swap(&mut self.said, &mut self.bytes),
            None => self.bytes.append(&mut self.said),
        }
        while self.sent < self.bytes.len() {
            match stream.write(&self.bytes[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }
}
