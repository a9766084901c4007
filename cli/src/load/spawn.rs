//! A server of the run's own: started on a core of its own, gone when the run is over.

use std::{
    io::{BufRead, BufReader, PipeReader},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::cpu;

/// How long a server may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is tried to connect to one that does not say that it listens.
const CONNECT_PAUSE: Duration = Duration::from_millis(5);

/// A server process. It is killed when this is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
    /// Reads what the server writes, to its end: a full pipe would stop it.
    reader: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server, on `core` if one is given, and waits until it says where it listens.
    ///
    /// The command should make it listen on a free port of a loopback address (`--listen 127.0.0.1:0`). Its first
    /// line, on standard output or error, that has the word "listening" and an address in it is believed.
    ///
    /// # Errors
    /// When it cannot be started or pinned, ends, or does not listen within 10 s; with what it had written.
    pub fn spawn(command: Command, core: Option<usize>) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let (mut server, received) = Self::start(command, core)?;
        server.address = wait_for_address(&received).with_context(|| format!("starting {name}"))?;
        Ok(server)
    }

    /// The same for a server that was told where to listen and does not say that it does: waits until it can be connected to.
    ///
    /// # Errors
    /// As [`Server::spawn`].
    pub fn spawn_at(command: Command, core: Option<usize>, address: SocketAddr) -> anyhow::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let (mut server, received) = Self::start(command, core)?;
        server.address = address;
        wait_for_connection(address, &received).with_context(|| format!("starting {name}"))?;
        Ok(server)
    }

    fn start(mut command: Command, core: Option<usize>) -> anyhow::Result<(Self, Receiver<String>)> {
        let (output, input) = std::io::pipe().context("a pipe for the server's output")?;
        command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
        let name = command.get_program().to_string_lossy().into_owned();
        let child = cpu::on_core(core, || command.spawn().with_context(|| format!("starting {name}")))?;
        // The command holds the pipe's writing end: without it, the server's end is the pipe's end.
        drop(command);
        let (lines, received) = mpsc::channel();
        let reader = thread::spawn(move || read_lines(output, &lines));
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok((Self { child, address: nowhere, reader: Some(reader) }, received))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and was waited for: then there is nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Passes lines on for as long as somebody wants them, and reads the rest to the end.
fn read_lines(output: PipeReader, lines: &mpsc::Sender<String>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while matches!(output.read_until(b'\n', &mut line), Ok(1..)) {
        // Nobody listens any more once the address is known.
        let _ = lines.send(String::from_utf8_lossy(&line).trim_end().to_owned());
        line.clear();
    }
}

fn wait_for_address(lines: &Receiver<String>) -> anyhow::Result<SocketAddr> {
    let deadline = Instant::now() + START_TIMEOUT;
    let mut written = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if let Some(address) = listening_address(&line) {
                    return Ok(address);
                }
                written.push(line);
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "it did not say within {START_TIMEOUT:?} where it listens; it wrote:\n{}",
                    written.join("\n")
                )
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("it ended before it listened; it wrote:\n{}", written.join("\n"))
            }
        }
    }
}

fn wait_for_connection(address: SocketAddr, lines: &Receiver<String>) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    let mut written = Vec::new();
    while Instant::now() < deadline {
        if TcpStream::connect_timeout(&address, START_TIMEOUT).is_ok() {
            return Ok(());
        }
        match lines.recv_timeout(CONNECT_PAUSE) {
            Ok(line) => written.push(line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                bail!("it ended before it took connections; it wrote:\n{}", written.join("\n"))
            }
        }
    }
    bail!("nobody could connect to {address} within {START_TIMEOUT:?}; it wrote:\n{}", written.join("\n"))
}

/// The address in a line that says "listening".
fn listening_address(line: &str) -> Option<SocketAddr> {
    if !line.to_ascii_lowercase().contains("listening") {
        return None;
    }
    line.split(|c: char| c.is_whitespace() || matches!(c, ',' | '=' | '"'))
        .find_map(|word| word.trim_end_matches('.').parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    /// The address is found in what servers really write, and only there.
    #[test]
    fn finds_the_address() {
        let address: SocketAddr = "127.0.0.1:4222".parse().unwrap();
        for line in [
            "[7] 2026/01/01 00:00:00.1 [INF] Listening for client connections on 127.0.0.1:4222",
            "2026-01-01T00:00:00Z  INFO ringpost_server: listening address=127.0.0.1:4222 id=\"a\"",
            "ringpost is listening on 127.0.0.1:4222.",
        ] {
            assert_eq!(listening_address(line), Some(address), "{line}");
        }
        assert_eq!(listening_address("connected to 127.0.0.1:4222"), None);
        assert_eq!(listening_address("listening soon"), None);
    }

    /// A server's output is read on after its address is known, and the process is gone after the drop.
    #[test]
    fn killed_on_drop() {
        let script = "echo starting; echo listening on 127.0.0.1:9 >&2; while :; do echo more; done";
        let server = Server::spawn(shell(script), None).unwrap();
        assert_eq!(server.address().port(), 9);
        let proc = format!("/proc/{}", server.pid());
        assert!(std::path::Path::new(&proc).exists());
        drop(server);
        assert!(!std::path::Path::new(&proc).exists());
    }

    /// One that ends early is an error that repeats its last words.
    #[test]
    fn early_end_is_told() {
        let error = Server::spawn(shell("echo port taken >&2; exit 78"), None).unwrap_err();
        assert!(format!("{error:#}").contains("port taken"), "{error:#}");
    }
}
