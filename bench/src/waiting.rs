//! What a durable request costs while it waits for a handler: memory, disk, and time at the next start.
//!
//! One client sends a great many, as fast as they are accepted; the server is killed, and started again on its log.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bytes::BytesMut;
use ringpost_cli::load::{Disk, Server};
use ringpost_protocol::{
    Content, Outgoing,
    frame::{FrameReader, Preface, decode_server, encode_client},
    message::{ClientMessage, Hello, Request, RequestFlags, ServerMessage, Speaker},
};

use crate::{idle::resident, serving::until_serving};

/// How many requests wait, and how many bytes of data each has.
const REQUESTS: u64 = 1_000_000;
const BYTES: usize = 1024;
/// Requests that are sent at once, and how many may be on their way.
const BATCH: u64 = 256;
const WINDOW: u64 = 8192;
/// Nothing takes so long that works.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that the kernel counts a file's blocks by, see stat(2).
const BLOCK_BYTES: u64 = 512;

/// A great many waiting requests, and what they cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Waiting {
    /// How many there were.
    pub requests: u64,
    /// How long it took to have them accepted, in seconds.
    pub accepting_s: f64,
    /// The server's resident memory in bytes: without them, with them, and with them after the restart.
    pub resident: [u64; 3],
    /// Bytes of the log's files on the disk.
    pub disk: u64,
    /// From the start of the process until it has its log: with an empty folder, and with the log, in seconds.
    pub starting_s: [f64; 2],
}

impl Waiting {
    /// Bytes of memory for each, before and after the restart.
    pub fn memory_each(&self) -> [f64; 2] {
        let [before, with, after] = self.resident;
        [with, after].map(|bytes| bytes.saturating_sub(before) as f64 / self.requests as f64)
    }

    /// Bytes on the disk for each.
    pub fn disk_each(&self) -> f64 {
        self.disk as f64 / self.requests as f64
    }
}

impl std::fmt::Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ([with, after], [empty, full]) = (self.memory_each(), self.starting_s);
        write!(
            f,
            "{} durable requests of {BYTES} bytes wait: accepted in {:.1} s; {with:.0} bytes of memory each, {after:.0} after \
             a restart; {:.0} bytes on the disk each; the server starts in {full:.2} s, with an empty folder in {empty:.2} s",
            self.requests,
            self.accepting_s,
            self.disk_each(),
        )
    }
}

/// Measures it, on a disk.
///
/// # Errors
/// No disk, a server that does not start, or refuses one of the requests.
pub fn measure(ringpost: &Path) -> anyhow::Result<Waiting> {
    let disk = Disk::temporary()?;
    measure_on(ringpost, disk.path(), REQUESTS)
}

fn measure_on(ringpost: &Path, folder: &Path, requests: u64) -> anyhow::Result<Waiting> {
    let start = || {
        let begun = Instant::now();
        let server = Server::spawn(command(ringpost, folder), None)?;
        until_serving(server.address())?;
        anyhow::Ok((server, begun.elapsed().as_secs_f64()))
    };
    let (server, empty_s) = start()?;
    let mut client = Client::connect(&server)?;
    client.send(1)?;
    let before = resident(server.pid())?;
    let begun = Instant::now();
    client.send(requests)?;
    let accepting_s = begun.elapsed().as_secs_f64();
    let with = resident(server.pid())?;
    drop((client, server));
    let mut disk = 0;
    for entry in fs::read_dir(folder)? {
        disk += entry?.metadata()?.blocks() * BLOCK_BYTES;
    }
    let (server, full_s) = start()?;
    Client::connect(&server)?;
    let after = resident(server.pid())?;
    Ok(Waiting {
        requests,
        accepting_s,
        resident: [before, with, after],
        disk,
        starting_s: [empty_s, full_s],
    })
}

/// A server with room for all of them, of which it holds few: what each costs beside its data.
fn command(ringpost: &Path, folder: &Path) -> Command {
    let mut command = Command::new(ringpost);
    command.args(["serve", "--listen", "127.0.0.1:0", "--log", "warn", "--data-dir"]).arg(folder);
    command.args(["--queue-memory", "16MiB", "--queue-limit-bytes", "8GiB", "--max-disk", "16GiB"]);
    command.args(["--queue-limit", "2000000", "--parent"]).arg(std::process::id().to_string());
    command
}

/// A requester that counts how far its sends are accepted.
struct Client {
    stream: TcpStream,
    reader: FrameReader,
    buffer: BytesMut,
    sent: u64,
    accepted: u64,
}

impl Client {
    fn connect(server: &Server) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&server.address(), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let reader = FrameReader::new(1 << 20);
        let mut client = Self { stream, reader, buffer: BytesMut::new(), sent: 0, accepted: 0 };
        let mut out = Outgoing::new();
        out.tail().extend_from_slice(&Preface::plain().encode());
        let (session, speaker) = ("waiting".into(), Speaker { instance: 1, connection: 1 });
        encode_client(&ClientMessage::Hello(Hello { session, speaker, ..Hello::default() }), &mut out);
        client.stream.write_all(&out.drain_to_vec())?;
        client.stream.read_exact(&mut [0; Preface::BYTES])?;
        client.hear().context("no welcome")?;
        Ok(client)
    }

    /// Sends so many more, and waits until all are accepted.
    fn send(&mut self, requests: u64) -> anyhow::Result<()> {
        let end = self.sent + requests;
        let data = [b'1'; BYTES];
        while self.accepted < end {
            if self.sent < end && self.sent - self.accepted < WINDOW {
                let mut out = Outgoing::new();
                for number in self.sent + 1..=(self.sent + BATCH).min(end) {
                    let content = Content::from_parts(b"waiting", b"", b"", &data);
                    let flags = RequestFlags::DURABLE.with(RequestFlags::SEND);
                    let request = Request { number, flags, content, ..Request::default() };
                    encode_client(&ClientMessage::Request(request), &mut out);
                    self.sent = number;
                }
                self.stream.write_all(&out.drain_to_vec())?;
            } else {
                self.hear()?;
            }
        }
        Ok(())
    }

    /// The next frames, at least one.
    fn hear(&mut self) -> anyhow::Result<()> {
        loop {
            let mut heard = false;
            while let Some(frame) = self.reader.next(&mut self.buffer)? {
                heard = true;
                match decode_server(frame)? {
                    Some(ServerMessage::Accepted { upto, .. }) => self.accepted = upto,
                    Some(ServerMessage::Reply(reply)) => {
                        bail!("refused: {}", String::from_utf8_lossy(reply.content.payload()))
                    }
                    Some(ServerMessage::Error(error)) => bail!("refused: {}", error.message),
                    Some(ServerMessage::Ping(number)) => {
                        let mut out = Outgoing::new();
                        encode_client(&ClientMessage::Pong(number), &mut out);
                        self.stream.write_all(&out.drain_to_vec())?;
                    }
                    _ => {}
                }
            }
            if heard {
                return Ok(());
            }
            let mut piece = [0; 16 << 10];
            let count = self.stream.read(&mut piece)?;
            ensure!(count > 0, "the server closed the connection");
            self.buffer.extend_from_slice(&piece[..count]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Growth is divided by the number of requests; what was there before is none of theirs.
    #[test]
    fn each() {
        let waiting = Waiting {
            requests: 10,
            accepting_s: 1.0,
            resident: [100, 1100, 2100],
            disk: 500,
            starting_s: [0.1, 0.2],
        };
        assert_eq!((waiting.memory_each(), waiting.disk_each()), ([100.0, 200.0], 50.0));
        assert!(waiting.to_string().contains("100 bytes of memory each, 200 after"), "{waiting}");
    }
}
