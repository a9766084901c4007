//! Starting with a log: how fast it is read, how the time follows what lives and not what was, and that a steady load does not
//! let the disk fill up.
//!
//! Times are those of the real program, from its start until it serves durable requests too, less what it takes with an empty log.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use ringpost_broker::log::{
    self, Config, LogId, Record, SyncPolicy, Writer,
    body::{Delivered, Done, Reply, Request},
    files::{Files, perform},
    recover,
};
use ringpost_cli::load::{self, Disk, Server};
use ringpost_protocol::time::Now;
use ringpost_server::LogFiles;
use rustix::fs::{Advice, fadvise};

use crate::{
    contest::{Plan, Side},
    durable::Load,
    serving::until_serving,
};

/// How much of a log is read when its speed is measured.
const READ_BYTES: u64 = 512 << 20;
/// The size of a request's data there.
const DATA_BYTES: usize = 1024;
/// Requests that wait all the time while others come and go.
const WAITING: u64 = 10_000;
/// Segments of the logs that grow: short, so that the one segment that is always there is little of what is seen.
const SEGMENT: &str = "20MiB";
/// How long others come and go.
const HISTORIES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];
/// How often the disk is looked at meanwhile.
const LOOK: Duration = Duration::from_secs(1);
/// A day from now, in a world where it is always the same time; the requests in a log must not expire when it is read.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// What a log is full of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Requests that wait: all of it lives.
    Waiting,
    /// Requests that were handled, answered and acknowledged: nothing of it lives.
    Done,
}

impl Content {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Waiting, Self::Done];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "requests that wait",
            Self::Done => "requests that are done, with their replies",
        }
    }
}

/// Where the log's pages are when the server starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// In memory, but those of the newest segment: the server was killed.
    Cached,
    /// On the disk: the machine was started again.
    OnDisk,
}

impl Pages {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Cached, Self::OnDisk];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cached => "the server was killed (pages in memory)",
            Self::OnDisk => "the machine was started anew (pages on the disk)",
        }
    }
}

/// How fast a log was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// What was in it.
    pub content: Content,
    /// Where it was.
    pub pages: Pages,
    /// Its records' bytes.
    pub bytes: u64,
    /// The seconds of each run, without those of an empty log.
    pub seconds: Vec<f64>,
}

impl Read {
    /// Gigabytes per second, run by run.
    pub fn rates(&self) -> impl Iterator<Item = f64> + '_ {
        self.seconds.iter().map(|seconds| self.bytes as f64 / 1e9 / seconds.max(1e-6))
    }
}

/// A start after a history, in which all but a few requests were done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Start {
    /// Requests that had come and gone.
    pub requests: u64,
    /// Bytes that the log had on the disk then.
    pub disk_bytes: u64,
    /// How long it took to start, in seconds, without what an empty log takes.
    pub seconds: f64,
}

/// All that was measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recovery {
    /// The speed.
    pub reads: Vec<Read>,
    /// The curve over history.
    pub starts: Vec<Start>,
    /// The disk under a steady load: bytes, at one second after the other.
    pub disk: Vec<u64>,
}

/// Measures the speed in each run, and the curves once.
///
/// # Errors
/// No disk; a server that does not start, or does not survive its load.
pub fn measure(ringpost: &Path, plan: Plan, tell: &mut dyn FnMut(&str)) -> anyhow::Result<Recovery> {
    let mut recovery = Recovery::default();
    for run in 1..=plan.runs {
        for content in Content::ALL {
            for pages in Pages::ALL {
                let (bytes, seconds) = read_once(ringpost, content, pages, plan)
                    .with_context(|| format!("run {run}, a log of {}", content.name()))?;
                tell(&format!(
                    "run {run}, {} MiB of {}, {}: {seconds:.2} s",
                    bytes >> 20,
                    content.name(),
                    pages.name()
                ));
                match recovery.reads.iter_mut().find(|read| (read.content, read.pages) == (content, pages)) {
                    Some(read) => read.seconds.push(seconds),
                    None => recovery.reads.push(Read { content, pages, bytes, seconds: vec![seconds] }),
                }
            }
        }
    }
    for history in HISTORIES {
        let (start, disk) = start_once(ringpost, history, plan)
            .with_context(|| format!("a start after {} s of load", history.as_secs()))?;
        tell(&format!(
            "{} requests done, {WAITING} waiting: {} MiB on the disk, {:.3} s to start",
            start.requests,
            start.disk_bytes >> 20,
            start.seconds
        ));
        recovery.starts.push(start);
        recovery.disk = disk;
    }
    Ok(recovery)
}

fn read_once(ringpost: &Path, content: Content, pages: Pages, plan: Plan) -> anyhow::Result<(u64, f64)> {
    let disk = Disk::temporary()?;
    let least = start(&serve(ringpost, disk.path()), plan)?.1;
    clear(disk.path())?;
    let bytes = write_log(disk.path(), content, u64::MAX, READ_BYTES)?;
    if pages == Pages::OnDisk {
        drop_pages(disk.path())?;
    }
    let took = start(&serve(ringpost, disk.path()), plan)?.1;
    Ok((bytes, took.saturating_sub(least).as_secs_f64()))
}

fn start_once(ringpost: &Path, history: Duration, plan: Plan) -> anyhow::Result<(Start, Vec<u64>)> {
    let disk = Disk::temporary()?;
    let serve = |folder: &Path| {
        let mut command = serve(ringpost, folder);
        command.args(["--segment-size", SEGMENT, "--sync", "never"]);
        command
    };
    let least = start(&serve(disk.path()), plan)?.1;
    clear(disk.path())?;
    write_log(disk.path(), Content::Waiting, WAITING, u64::MAX)?;
    let (server, _) = start(&serve(disk.path()), plan)?;
    let options =
        load::Options { durable: true, ..Load::DEEP.on(&server, Plan { duration: history, ..plan }) };
    let (outcome, seen) = thread::scope(|scope| {
        let (end, ended) = mpsc::channel::<()>();
        let folder = disk.path();
        let watch = scope.spawn(move || {
            let mut seen = Vec::new();
            while ended.recv_timeout(LOOK) == Err(mpsc::RecvTimeoutError::Timeout) {
                seen.push(disk_bytes(folder));
            }
            seen
        });
        let outcome = load::run(&options, &mut |_| {});
        drop(end);
        (outcome, watch.join())
    });
    let outcome = outcome?;
    let seen = seen.ok().context("looking at the disk")?.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    // Killed, with whatever it was doing.
    drop(server);
    let disk_bytes = disk_bytes(disk.path())?;
    let (server, took) = start(&serve(disk.path()), plan)?;
    drop(server);
    let seconds = took.saturating_sub(least).as_secs_f64();
    Ok((Start { requests: outcome.requests, disk_bytes, seconds }, seen))
}

/// How a server with this log is started.
fn serve(ringpost: &Path, folder: &Path) -> CommandLine {
    let mut line = CommandLine { program: ringpost.to_owned(), arguments: Vec::new() };
    line.args(["--data-dir", &folder.display().to_string()]);
    line
}

/// What can be started more than once.
#[derive(Debug, Clone)]
struct CommandLine {
    program: std::path::PathBuf,
    arguments: Vec<String>,
}

impl CommandLine {
    fn args<const N: usize>(&mut self, arguments: [&str; N]) {
        self.arguments.extend(arguments.map(str::to_owned));
    }

    fn command(&self) -> Command {
        let mut command = Side::Ringpost(self.program.clone()).command();
        command.args(&self.arguments);
        command
    }
}

/// A server that listens, and how long that took.
fn start(line: &CommandLine, plan: Plan) -> anyhow::Result<(Server, Duration)> {
    let begun = Instant::now();
    let server = Server::spawn(line.command(), plan.cores.map(|cores| cores.server))?;
    until_serving(server.address())?;
    Ok((server, begun.elapsed()))
}

/// Removes what is in a folder.
fn clear(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

/// What the files of a folder take on the disk.
fn disk_bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        match entry?.metadata() {
            Ok(metadata) => bytes += metadata.blocks() * 512,
            // Removed since it was listed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

/// Lets the pages of all files go, so that they are read from the disk.
fn drop_pages(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let file = fs::File::open(entry?.path())?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// Writes a log as a server would have: up to so many requests, or so many bytes. It ends as if the server had been killed.
fn write_log(folder: &Path, content: Content, requests: u64, bytes: u64) -> anyhow::Result<u64> {
    let mut files = LogFiles::open(folder)?;
    let recovered = recover(&mut files, LogId([1; 16]), |_, _| {})?;
    let config = Config {
        segment_bytes: 64 << 20,
        max_disk: bytes.saturating_mul(2).max(1 << 30),
        sync: SyncPolicy::Never,
        boot: 1,
        seed: 1,
    };
    let (mut writer, mut written) = (Writer::new(config, &recovered), 0);
    let wall_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis() as u64;
    let now = Now { wall_ms, ..Now::default() };
    let payload = load::wire::payload(DATA_BYTES);
    let mut count = 0;
    while count < requests && written < bytes {
        count += 1;
        for record in records(content, count, wall_ms, &payload) {
            written += u64::from(writer.append(&record)?.length);
        }
        writer.hurry();
        if writer.waiting_bytes() >= 1 << 20 {
            settle(&mut writer, &mut files, now)?;
        }
    }
    settle(&mut writer, &mut files, now)?;
    for name in files.list()? {
        files.sync(&name)?;
    }
    Ok(written)
}

fn settle(writer: &mut Writer, files: &mut LogFiles, now: Now) -> anyhow::Result<()> {
    while let Some(log::Operation { id, action }) = writer.poll(now) {
        let result = perform(files, &action);
        drop(action);
        writer.done(id, result);
    }
    ensure!(writer.failed().is_none(), "writing a log: {}", writer.failed().unwrap_or_default());
    Ok(())
}

/// What there is of one request.
fn records(content: Content, count: u64, wall_ms: u64, payload: &[u8]) -> Vec<Record<'_>> {
    let request = Record::Request(Request {
        count,
        number: count,
        received_ms: wall_ms,
        expires_ms: wall_ms + DAY_MS,
        max_attempts: 5,
        flags: ringpost_protocol::message::RequestFlags::DURABLE.0,
        dialect: 0,
        instance: 0,
        joins: 0,
        session: b"bench",
        action: b"nobody",
        tag: b"",
        idempotency_key: b"",
        options: b"",
        headers: b"",
        payload,
    });
    if content == Content::Waiting {
        return vec![request];
    }
    let delivered = Record::Delivered(Delivered {
        count,
        boot: 1,
        delivery: count,
        wall_ms,
        attempt: 1,
        session: b"handler",
    });
    let reply = Record::Reply(Reply {
        count,
        wall_ms,
        code: 0,
        attempt: 1,
        delivered_after_ms: 0,
        handled_after_ms: 0,
        own_code: b"",
        options: b"",
        headers: b"",
        payload,
    });
    vec![request, delivered, reply, Record::Done(Done { count })]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log that is written here is read by the broker: as many requests, of which all live, or none.
    #[test]
    fn logs_are_real() {
        for (content, records) in [(Content::Waiting, 1), (Content::Done, 4)] {
            let disk = Disk::temporary().unwrap();
            let bytes = write_log(disk.path(), content, 100, u64::MAX).unwrap();
            assert!(bytes > 100 * DATA_BYTES as u64);
            let mut files = LogFiles::open(disk.path()).unwrap();
            let mut found = 0;
            let recovered = recover(&mut files, LogId([1; 16]), |_, _| found += 1).unwrap();
            assert_eq!(found, 100 * records);
            // Counts that may have been given behind what is left are skipped.
            assert!(recovered.highest_count >= 100);
            assert!(disk_bytes(disk.path()).unwrap() >= bytes);
        }
    }

    /// A rate is bytes by seconds.
    #[test]
    fn rates() {
        let read = Read {
            content: Content::Done,
            pages: Pages::Cached,
            bytes: 1_000_000_000,
            seconds: vec![0.5, 2.0],
        };
        assert_eq!(read.rates().collect::<Vec<_>>(), [2.0, 0.5]);
    }
}
