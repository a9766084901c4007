//! Processes of the fault tests: started on free ports, signalled, gone when a test ends, however it ends.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::stats;

/// Lines of a process's log that are kept for the message of a failure.
const TAIL_LINES: usize = 60;

/// A process that is killed when this is dropped. When its test fails, it tells the end of its log.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    /// What ends with it, or with this process: peers wait for that.
    stdin: Option<ChildStdin>,
    stdout: Arc<Mutex<Lines>>,
    stderr: Arc<Mutex<Lines>>,
}

/// What was written last, how many lines in all, and whether nothing more can come.
#[derive(Debug, Default)]
struct Lines {
    tail: VecDeque<String>,
    count: usize,
    ended: bool,
}

impl Process {
    fn start(name: &'static str, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-test-process"));
        for (variable, _) in std::env::vars_os() {
            if variable.to_str().is_some_and(|name| name.starts_with("RINGPOST_") || name == "RUST_LOG") {
                command.env_remove(variable);
            }
        }
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = keep_lines(child.stdout.take().unwrap());
        let stderr = keep_lines(child.stderr.take().unwrap());
        Self { name, child, stdin, stdout, stderr }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.id().cast_signed()).unwrap(), signal).unwrap();
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets a handler or requester finish what it has open, and waits for its end.
    pub fn finish(mut self) {
        drop(self.stdin.take());
        let status = self.wait();
        assert!(status.success(), "{} ended with {status}", self.name);
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        super::until(&format!("{} ends", self.name), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Waits for a line with this in it on standard output, and gives it. `None` if it ends without one.
    fn says(&self, part: &str) -> Option<String> {
        let mut said = None;
        super::until(&format!("{} says {part:?}", self.name), || {
            let stdout = self.stdout.lock().unwrap();
            said = stdout.tail.iter().find(|line| line.contains(part)).cloned();
            said.is_some() || stdout.ended
        });
        said
    }

    /// Whether a line of its log has this in it, among the last ones.
    pub fn logged(&self, part: &str) -> bool {
        self.stderr.lock().unwrap().tail.iter().any(|line| line.contains(part))
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        self.stderr.lock().unwrap().tail.iter().map(String::as_str).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; one that is stopped dies of this, too.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let stderr = self.stderr.lock().unwrap();
            eprintln!("--- the last of {} lines that {} logged:", stderr.count, self.name);
            for line in &stderr.tail {
                eprint!("{line}");
            }
        }
    }
}

/// `ringpost serve`, the real command.
#[derive(Debug)]
pub struct ServerProcess {
    pub process: Process,
    pub address: SocketAddr,
}

impl ServerProcess {
    /// On a free port.
    pub fn start(args: &[&str]) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), args)
    }

    /// On this port.
    pub fn at(address: SocketAddr, args: &[&str]) -> Self {
        let (address, own_id) = (address.to_string(), std::process::id().to_string());
        let mut all = vec!["command", "serve", "--listen", &address, "--parent", &own_id];
        all.extend(args);
        let process = Process::start("the server", &all);
        let line = process.says("listening on ").expect("it listens");
        let address = line.trim_end().strip_prefix("listening on ").unwrap().parse().unwrap();
        Self { process, address }
    }

    pub fn stats(&self) -> Value {
        stats(self.address)
    }

    /// A counter since the server's start.
    pub fn total(&self, counter: &str) -> u64 {
        let stats = self.stats();
        stats["total"][counter].as_u64().unwrap_or_else(|| panic!("no counter {counter}: {stats}"))
    }
}

/// `ringpost balance`, the real command.
#[derive(Debug)]
pub struct BalancerProcess {
    pub process: Process,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

impl BalancerProcess {
    /// On free ports.
    pub fn start(args: &[&str]) -> Self {
        let own_id = std::process::id().to_string();
        let mut all = vec!["command", "balance", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        all.extend(["--parent", &own_id]);
        all.extend(args);
        let process = Process::start("the balancer", &all);
        let address = |said: &str| {
            let line = process.says(said).expect("it listens");
            line.trim_end().strip_prefix(said).unwrap().parse().unwrap()
        };
        let (address, admin) = (address("listening on "), address("admin on "));
        Self { process, address, admin }
    }

    /// What it says of itself.
    pub fn stats(&self) -> Value {
        let mut socket = TcpStream::connect(self.admin).unwrap();
        socket.set_read_timeout(Some(super::PATIENCE)).unwrap();
        socket.write_all(b"GET /stats HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// Descriptors that it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }
}

/// A TCP service that sends back what it gets.
pub fn echo() -> (Process, SocketAddr) {
    let process = Process::start("a service", &["echo"]);
    let line = process.says("listening on ").expect("it listens");
    let address = line.trim_end().strip_prefix("listening on ").unwrap().parse().unwrap();
    (process, address)
}

/// A process with so many clients, which compare what comes back; all of them have been answered, or broken.
pub fn crowd(address: SocketAddr, count: usize, pause_ms: u32) -> Process {
    let (address, count, pause_ms) = (address.to_string(), count.to_string(), pause_ms.to_string());
    let process = Process::start("a crowd", &["crowd", &address, &count, &pause_ms]);
    let there = process.says("there ").expect("it connects");
    assert_eq!(there.trim_end(), format!("there {count}"));
    process
}

/// Ends a crowd, and gives the number of clients whose connection broke before.
pub fn disperse(mut crowd: Process) -> u64 {
    drop(crowd.stdin.take());
    let said = crowd.says("broken ").expect("it says how it went");
    assert!(crowd.wait().success(), "somebody got other bytes than it had sent");
    said.trim_end().strip_prefix("broken ").unwrap().parse().unwrap()
}

/// `ringpost handle ACTION`, the real command.
pub fn handle_command(server: SocketAddr, args: &[&str]) -> Process {
    let (server, own_id) = (server.to_string(), std::process::id().to_string());
    let mut all = vec!["command", "handle", "--server", &server, "--parent", &own_id];
    all.extend(args);
    let process = Process::start("`ringpost handle`", &all);
    super::until("`ringpost handle` is registered", || process.logged("handling `"));
    process
}

/// A handler whose runs are written to a ledger; it answers with what it was asked, after a while.
pub fn handler(server: SocketAddr, action: &str, ledger: &Path, concurrency: u32, hold_ms: u32) -> Process {
    let (server, ledger) = (server.to_string(), ledger.to_str().unwrap());
    let (concurrency, hold_ms) = (concurrency.to_string(), hold_ms.to_string());
    let process = Process::start("a handler", &["handler", &server, action, ledger, &concurrency, &hold_ms]);
    process.says("ready").expect("it connects");
    process
}

/// A requester that keeps `window` requests open, numbered from `from`, and writes what becomes of them to a ledger.
pub fn requester(
    server: SocketAddr,
    action: &str,
    ledger: &Path,
    from: u64,
    window: u32,
    attempts: u8,
) -> Process {
    let (server, ledger) = (server.to_string(), ledger.to_str().unwrap());
    let (from, window, attempts) = (from.to_string(), window.to_string(), attempts.to_string());
    let args = ["requester", &server, action, ledger, &from, &window, &attempts];
    let process = Process::start("a requester", &args);
    process.says("ready").expect("it connects");
    process
}

/// A requester under a session's name, whose requests are durable; it collects the replies to those of its predecessors.
pub fn heir(
    server: SocketAddr,
    action: &str,
    ledger: &Path,
    from: u64,
    window: u32,
    session: &str,
) -> Process {
    let (server, ledger) = (server.to_string(), ledger.to_str().unwrap());
    let (from, window) = (from.to_string(), window.to_string());
    let process = Process::start("an heir", &["heir", &server, action, ledger, &from, &window, session]);
    process.says("ready").expect("it connects");
    process
}

/// `ringpost ARGS…`, to its end.
pub fn command(args: &[&str]) -> ExitStatus {
    let all: Vec<_> = ["command"].iter().chain(args).copied().collect();
    Process::start("`ringpost`", &all).wait()
}

/// SIGKILL for a process that was started by one of ours.
pub fn kill(id: u32) {
    kill_process(Pid::from_raw(id.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

/// Reads on a thread of its own: a full pipe would stop the process.
fn keep_lines(from: impl Read + Send + 'static) -> Arc<Mutex<Lines>> {
    let lines: Arc<Mutex<Lines>> = Arc::default();
    let kept = lines.clone();
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while matches!(from.read_until(b'\n', &mut line), Ok(1..)) {
            let mut lines = kept.lock().unwrap();
            lines.count += 1;
            lines.tail.push_back(String::from_utf8_lossy(&line).into_owned());
            if lines.tail.len() > TAIL_LINES {
                lines.tail.pop_front();
            }
            line.clear();
        }
        kept.lock().unwrap().ended = true;
    });
    lines
}
