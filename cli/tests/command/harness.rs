//! Processes of the command: started on free ports, waited for with a deadline, gone when a test ends.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Far longer than anything here takes: a test that reaches it has failed.
const DEADLINE: Duration = Duration::from_secs(60);

/// The command with these arguments, and nothing from this process's environment that would change it.
pub(crate) fn ringpost(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("RINGPOST_") || name == "RUST_LOG") {
            command.env_remove(name);
        }
    }
    command.args(args);
    command
}

/// A process that is killed when this is dropped, and what it writes.
pub(crate) struct Process {
    child: Child,
    stdout: Option<Receiver<String>>,
    stderr: Option<Receiver<String>>,
}

/// How a process ended and what it had written.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Process {
    pub(crate) fn start(command: Command) -> Self {
        Self::start_with_stderr(command, Stdio::piped())
    }

    pub(crate) fn start_with_stderr(mut command: Command, stderr: impl Into<Stdio>) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().map(lines_of);
        let stderr = child.stderr.take().map(lines_of);
        Self { child, stdout, stderr }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.id().cast_signed()).unwrap(), signal).unwrap();
    }

    /// The next line of standard output that has this in it.
    pub(crate) fn stdout_line(&self, part: &str) -> String {
        line(self.stdout.as_ref().unwrap(), part)
    }

    /// The next line of standard error that has this in it.
    pub(crate) fn stderr_line(&self, part: &str) -> String {
        line(self.stderr.as_ref().unwrap(), part)
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Ended {
        let status = self.wait_for_status();
        let rest = |lines: Option<Receiver<String>>| lines.into_iter().flatten().collect::<String>();
        Ended { code: status.code(), stdout: rest(self.stdout.take()), stderr: rest(self.stderr.take()) }
    }

    fn wait_for_status(&mut self) -> ExitStatus {
        let mut status = None;
        until("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `ulimit -n FILES; ringpost ARGS…`.
pub(crate) fn with_open_files(files: u32, args: &[&str]) -> Process {
    let plain = ringpost(args);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\"")]).arg(plain.get_program());
    command.args(args);
    for (name, value) in plain.get_envs() {
        assert!(value.is_none());
        command.env_remove(name);
    }
    Process::start(command)
}

/// Runs a command to its end.
pub(crate) fn run(args: &[&str]) -> Ended {
    Process::start(ringpost(args)).wait()
}

/// The same, with something on its standard input.
pub(crate) fn run_with_input(args: &[&str], input: &str) -> Ended {
    let mut child =
        ringpost(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let (stdout, stderr) = (child.stdout.take().map(lines_of), child.stderr.take().map(lines_of));
    Process { child, stdout, stderr }.wait()
}

/// `ringpost serve` on a free port.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) address: String,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(args: &[&str]) -> Self {
        Self::at("127.0.0.1:0", args)
    }

    pub(crate) fn at(address: &str, args: &[&str]) -> Self {
        let mut command = ringpost(&["serve", "--listen", address]);
        command.args(args);
        let process = Process::start(command);
        let line = process.stdout_line("listening on ");
        let address = line.trim_end().strip_prefix("listening on ").unwrap().to_owned();
        Self { process, address }
    }

    /// `ringpost ARGS… --server ADDRESS`.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = ringpost(&["--server", &self.address]);
        command.args(args);
        command
    }

    /// Starts a command for this server.
    pub(crate) fn spawn(&self, args: &[&str]) -> Process {
        Process::start(self.command(args))
    }

    /// Runs a command for this server to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        self.spawn(args).wait()
    }

    /// Starts `ringpost handle`, and waits until it is registered.
    pub(crate) fn handle(&self, args: &[&str]) -> Process {
        let mut all = vec!["handle"];
        all.extend(args);
        let handler = self.spawn(&all);
        handler.stderr_line("handling `");
        handler
    }
}

/// Waits until something holds, looking again and again.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a file has a whole line, and gives it.
pub(crate) fn line_of_file(path: &Path) -> String {
    let mut text = String::new();
    until("a file has a line", || {
        text = std::fs::read_to_string(path).unwrap_or_default();
        text.ends_with('\n')
    });
    text.trim_end().to_owned()
}

/// Whether a process still runs. One that has ended and was not waited for does not.
pub(crate) fn runs(id: &str) -> bool {
    match std::fs::read_to_string(format!("/proc/{id}/stat")) {
        Ok(stat) => !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'),
        Err(_) => false,
    }
}

/// Reads lines, each with its end, on a thread of their own: a full pipe would stop the process.
fn lines_of(from: impl Read + Send + 'static) -> Receiver<String> {
    let (lines, received) = channel();
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while matches!(from.read_until(b'\n', &mut line), Ok(1..)) {
            if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    received
}

fn line(lines: &Receiver<String>, part: &str) -> String {
    let deadline = Instant::now() + DEADLINE;
    let mut seen = String::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) if line.contains(part) => return line,
            Ok(line) => seen.push_str(&line),
            Err(RecvTimeoutError::Timeout) => panic!("waited in vain for {part:?}; there was:\n{seen}"),
            Err(RecvTimeoutError::Disconnected) => panic!("no {part:?} up to the end; there was:\n{seen}"),
        }
    }
}
