//! What an idle connection costs the server: many are opened, each says something and is answered, and the growth of
//! the process's resident memory is divided by their number. The kernel's own memory for sockets is not in it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use bytes::BytesMut;
use ringpost_cli::load::Server;
use ringpost_protocol::{
    Outgoing,
    frame::{FrameReader, Preface, decode_server, encode_client},
    message::{ClientMessage, Hello, ServerMessage, Speaker},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::contest::{Plan, Side};

/// How many connections are wanted.
const CONNECTIONS: usize = 10_000;
/// Descriptors that each process needs for itself.
const OTHER_DESCRIPTORS: usize = 100;
/// How long the server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What idle connections speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// Frames: a hello with a session's name, as the SDKs say it, and a ping.
    Binary,
    /// JSON: a request to an action that nobody has, which is answered with an error.
    Json,
}

impl Speaks {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Binary => "binary, with a session",
            Self::Json => "JSON",
        }
    }
}

/// The memory of idle connections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Idle {
    /// What they speak.
    pub speaks: Speaks,
    /// How many there were.
    pub connections: usize,
    /// The server's resident memory without them, in bytes.
    pub before: u64,
    /// The same with them.
    pub with: u64,
}

impl Idle {
    /// Bytes for each.
    pub fn each(&self) -> f64 {
        self.with.saturating_sub(self.before) as f64 / self.connections as f64
    }
}

/// Measures both dialects, each with a fresh server.
///
/// # Errors
/// A server that does not start or does not answer.
pub fn measure(ringpost: &Path, plan: Plan, tell: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Idle>> {
    let connections = CONNECTIONS.min(descriptors()?.saturating_sub(OTHER_DESCRIPTORS));
    ensure!(connections > 0, "there are no descriptors for connections: raise `ulimit -n`");
    let mut all = Vec::new();
    for speaks in [Speaks::Binary, Speaks::Json] {
        let idle = measure_one(ringpost.to_owned(), speaks, connections, plan)
            .with_context(|| format!("{connections} idle connections, {}", speaks.name()))?;
        tell(&format!("idle, {}: {:.0} bytes each of {connections}", speaks.name(), idle.each()));
        all.push(idle);
    }
    Ok(all)
}

/// How many descriptors this process may have, after it has asked for as many as possible; its children may too.
fn descriptors() -> anyhow::Result<usize> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("raising `ulimit -n`")?;
    Ok(maximum.map_or(usize::MAX, |maximum| maximum as usize))
}

fn measure_one(ringpost: PathBuf, speaks: Speaks, connections: usize, plan: Plan) -> anyhow::Result<Idle> {
    let server = Server::spawn(Side::Ringpost(ringpost).command(), plan.cores.map(|cores| cores.server))?;
    // What is allocated once, for the first connection, is none of theirs.
    let first = open(server.address(), speaks, 0)?;
    let before = resident(server.pid())?;
    let mut idle = Vec::with_capacity(connections);
    for number in 1..=connections {
        idle.push(open(server.address(), speaks, number).with_context(|| format!("connection {number}"))?);
    }
    let with = resident(server.pid())?;
    // The server must hold all of them still, or there is nothing to divide by.
    for (number, stream) in idle.iter_mut().enumerate() {
        stream.set_nonblocking(true)?;
        let end = matches!(stream.read(&mut [0; 512]), Ok(0));
        ensure!(!end, "the server has closed connection {}", number + 1);
    }
    drop(first);
    Ok(Idle { speaks, connections, before, with })
}

/// Connects, and comes back when the server has answered.
fn open(server: SocketAddr, speaks: Speaks, number: usize) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    match speaks {
        Speaks::Binary => greet(&stream, number)?,
        Speaks::Json => {
            (&stream).write_all(b"{\"id\":\"nobody\",\"clientId\":1,\"data\":1}\n")?;
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line)?;
            ensure!(line.contains("noHandler"), "an unexpected answer: {line}");
        }
    }
    Ok(stream)
}

fn greet(mut stream: &TcpStream, number: usize) -> anyhow::Result<()> {
    let session = format!("{number:032x}").into();
    let mut out = Outgoing::new();
    out.tail().extend_from_slice(&Preface::plain().encode());
    let speaker = Speaker { instance: 1, connection: 1 };
    encode_client(&ClientMessage::Hello(Hello { session, speaker, ..Hello::default() }), &mut out);
    encode_client(&ClientMessage::Ping(1), &mut out);
    stream.write_all(&out.drain_to_vec())?;
    stream.read_exact(&mut [0; Preface::BYTES])?;
    let (reader, mut buffer) = (FrameReader::new(1 << 16), BytesMut::new());
    loop {
        while let Some(frame) = reader.next(&mut buffer)? {
            match decode_server(frame)? {
                Some(ServerMessage::Pong(1)) => return Ok(()),
                Some(ServerMessage::Error(error)) => bail!("refused: {}", error.message),
                _ => {}
            }
        }
        let mut piece = [0; 512];
        let count = stream.read(&mut piece)?;
        ensure!(count > 0, "the server closed the connection");
        buffer.extend_from_slice(&piece[..count]);
    }
}

/// A process's resident memory in bytes.
pub(crate) fn resident(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).context(path)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib =
        line.and_then(|line| line.trim().strip_suffix(" kB")).context("no VmRSS in /proc/PID/status")?;
    Ok(1024 * kib.trim().parse::<u64>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This process has memory, and its growth is divided by the number of connections.
    #[test]
    fn memory() {
        assert!(resident(std::process::id()).unwrap() > 1 << 20);
        let idle = Idle { speaks: Speaks::Json, connections: 4, before: 1000, with: 9000 };
        assert_eq!(idle.each(), 2000.0);
    }
}
