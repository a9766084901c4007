//! Disks that are full, fail, or take their time, under a real server: what is refused and what goes on, that nothing is
//! said which is not stable, and that what was said is there after the next start.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use common::{Binary, DEADLINE, builder};
use ringpost_broker::log::files::Files;
use ringpost_io::{
    faults::{Fault, Faults},
    file_error::FileOperation,
};
use ringpost_protocol::{
    Code, Content,
    message::{ClientMessage, OpenState, Request, RequestFlags, Resume, ServerMessage, Target},
};
use ringpost_server::{Config, Ended, Handle, LogFiles, Server};
use rustix::io::Errno;
use serde_json::Value;
use tempfile::tempdir;

const NO_SPACE: i32 = Errno::NOSPC.raw_os_error();
const BROKEN: i32 = Errno::IO.raw_os_error();
/// What a request carries where the disk is to be filled.
const LARGE: [u8; 10_000] = [b'1'; 10_000];

fn config(directory: &Path) -> Config {
    let mut config = Config::default();
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    config.data_dir = Some(directory.to_owned());
    (config.max_payload, config.segment_size) = (16 << 10, 256 << 10);
    config
}

fn start(directory: &Path) -> Handle {
    Server::builder().config(config(directory)).start().unwrap()
}

fn now_open(server: &Handle) -> u64 {
    let mut client = Binary::connect(server);
    client.request(1, "$sys.stats", b"null");
    let ServerMessage::Reply(reply) = client.hear() else { panic!("no reply") };
    let stats: Value = serde_json::from_slice(reply.content.payload()).unwrap();
    stats["now"]["openRequests"].as_u64().unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What became of a request as far as its requester was told.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Accepted,
    Refused(Code, String),
    /// The connection ended before a word about it.
    Nothing,
}

/// A requester with a session.
struct Asker {
    client: Binary,
    number: u64,
    /// The payloads of the replies that it has got, by their requests.
    replies: BTreeMap<u64, Vec<u8>>,
}

impl Asker {
    fn connect(server: &Handle) -> Self {
        Self::connect_as(server, "asker")
    }

    fn connect_as(server: &Handle, session: &'static str) -> Self {
        Self { client: Binary::connect_as(server, session), number: 0, replies: BTreeMap::new() }
    }

    fn say(&mut self, payload: &[u8], flags: RequestFlags) -> u64 {
        self.number += 1;
        let content = Content::from_parts(b"work", b"", b"", payload);
        let number = self.number;
        self.client.say(&ClientMessage::Request(Request { number, flags, content, ..Request::default() }));
        number
    }

    /// Sends a durable request, and waits until it is accepted, refused, or the connection ends.
    fn ask(&mut self, payload: &[u8]) -> Told {
        let number = self.say(payload, RequestFlags::DURABLE);
        self.hear_of(number)
    }

    fn hear_of(&mut self, number: u64) -> Told {
        loop {
            match self.client.hear_all_or_end() {
                None => return Told::Nothing,
                Some(ServerMessage::Accepted { upto, .. }) if upto >= number => return Told::Accepted,
                Some(ServerMessage::Reply(reply)) if reply.number == number && reply.code.is_some() => {
                    let message = String::from_utf8_lossy(reply.content.payload()).into_owned();
                    return Told::Refused(reply.code.unwrap(), message);
                }
                Some(message) => self.take(message),
            }
        }
    }

    /// Keeps a reply, and acknowledges it. It may come again as long as that is not stable, but never another one.
    fn take(&mut self, message: ServerMessage) {
        let ServerMessage::Reply(reply) = message else { return };
        assert_eq!(reply.code, None, "{}", String::from_utf8_lossy(reply.content.payload()));
        let payload = reply.content.payload().to_vec();
        let first = self.replies.entry(reply.number).or_insert_with(|| payload.clone());
        assert_eq!(*first, payload, "another reply to {}", reply.number);
        self.client.say(&ClientMessage::Acknowledge(Target::Number(reply.sequence)));
    }

    /// Sends durable requests until one is not accepted; how many were, and what the last one was told.
    fn fill(&mut self) -> (u64, Told) {
        let before = self.number;
        loop {
            match self.ask(&LARGE) {
                Told::Accepted => assert!(self.number - before < 10_000, "the disk never gets full"),
                other => return (self.number - before - 1, other),
            }
        }
    }

    fn hear_replies(&mut self, count: usize) {
        while self.replies.len() < count {
            let message = self.client.hear_all_or_end().expect("a reply, not the end");
            self.take(message);
        }
    }

    /// Comes back with these numbers open, and hears what the broker has of each.
    fn resume(&mut self, open: Vec<u64>) -> Vec<(u64, OpenState)> {
        self.number = open.last().copied().unwrap_or_default();
        self.client.say(&ClientMessage::Resume(Resume { boot: 1, open, ..Resume::default() }));
        loop {
            match self.client.hear_all_or_end().expect("what is open, not the end") {
                ServerMessage::Resumed { open, .. } => return open,
                message => self.take(message),
            }
        }
    }

    /// Whether nothing has come since.
    fn has_heard_nothing(&mut self) -> bool {
        self.client.socket.set_nonblocking(true).unwrap();
        let heard = self.client.socket.peek(&mut [0; 1]);
        self.client.socket.set_nonblocking(false).unwrap();
        matches!(heard, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}

/// A handler of `work` that answers by hand.
struct Worker {
    client: Binary,
    sequence: u64,
}

impl Worker {
    fn connect(server: &Handle) -> Self {
        let mut client = Binary::connect(server);
        client.register("work");
        Self { client, sequence: 0 }
    }

    fn delivery(&mut self) -> u64 {
        match self.client.hear() {
            ServerMessage::Deliver(deliver) => deliver.delivery,
            other => panic!("no delivery: {other:?}"),
        }
    }

    /// No two answers are alike.
    fn answer(&mut self, delivery: u64) {
        static ANSWERS: AtomicU64 = AtomicU64::new(0);
        self.sequence += 1;
        let payload = ANSWERS.fetch_add(1, Ordering::Relaxed).to_string();
        self.client.answer(delivery, self.sequence, payload.as_bytes());
    }

    fn work(&mut self, requests: u64) {
        for _ in 0..requests {
            let delivery = self.delivery();
            self.answer(delivery);
        }
    }
}

/// A plain request to and fro, while the disk does what it wants.
fn assert_plain_goes_on(server: &Handle) {
    let mut client = Binary::connect(server);
    client.register("plain");
    client.request(1, "plain", b"1");
    let ServerMessage::Deliver(deliver) = client.hear() else { panic!("no delivery") };
    client.answer(deliver.delivery, 1, b"2");
    assert!(matches!(client.hear(), ServerMessage::Reply(reply) if reply.content.payload() == b"2"));
}

fn assert_storage_full(told: &Told) {
    let Told::Refused(code, message) = told else { panic!("not refused: {told:?}") };
    assert_eq!(*code, Code::StorageFull, "{message}");
    assert!(message.contains("--max-disk") && message.contains("disk is full"), "{message}");
}

/// A full disk refuses what is durable and new. Plain requests go on, what was accepted is answered and ended, space that
/// comes back is noticed, and the next start finds what is open and nothing else.
#[test]
fn a_full_disk_refuses_only_what_is_new() {
    let directory = tempdir().unwrap();
    let server = start(directory.path());
    let mut asker = Asker::connect(&server);
    assert_eq!(asker.ask(b"0"), Told::Accepted);
    let faults = Faults::under(directory.path());
    faults.inject(Fault::fails(FileOperation::Preallocate, NO_SPACE).of(".segment").lasting());
    let (accepted, told) = asker.fill();
    assert!(accepted > 0, "what is prepared can be used");
    assert_storage_full(&told);
    assert_plain_goes_on(&server);
    let mut worker = Worker::connect(&server);
    worker.work(1 + accepted);
    asker.hear_replies(1 + accepted as usize);
    until("what was accepted has ended", || now_open(&server) == 0);
    assert_storage_full(&asker.ask(b"3"));
    drop(worker);
    faults.clear();
    until("space that came back is noticed", || asker.ask(b"4") == Told::Accepted);
    until("its handler is gone", || now_open(&server) == 1);
    server.stop();
    let server = start(directory.path());
    assert_eq!(now_open(&server), 1);
    Worker::connect(&server).work(1);
}

/// The same with `--max-disk` as the bound, and without any fault: what ends requests makes room for others.
#[test]
fn max_disk_refuses_only_what_is_new() {
    let directory = tempdir().unwrap();
    let mut config = config(directory.path());
    config.max_disk = 4 * config.segment_size;
    let server = Server::builder().config(config).start().unwrap();
    let mut asker = Asker::connect(&server);
    for round in 1..=3 {
        let (accepted, told) = asker.fill();
        assert!(accepted > 10, "{accepted} in round {round}");
        assert_storage_full(&told);
        assert_plain_goes_on(&server);
        let before = asker.replies.len();
        let mut worker = Worker::connect(&server);
        worker.work(accepted);
        asker.hear_replies(before + accepted as usize);
        drop(worker);
        until("room is won", || match asker.ask(b"1") {
            Told::Accepted => true,
            told => {
                assert_storage_full(&told);
                false
            }
        });
        let before = asker.replies.len();
        Worker::connect(&server).work(1);
        asker.hear_replies(before + 1);
    }
    let files = std::fs::read_dir(directory.path()).unwrap();
    let used: u64 = files.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(
        used <= (4 + 1) * (256 << 10),
        "{used} bytes are more than max-disk and the segment that is prepared"
    );
}

/// A disk that gets full in the middle of what is under way: each request is accepted or refused in the end, and those that
/// were accepted are there.
#[test]
fn a_disk_that_gets_full_under_way() {
    let directory = tempdir().unwrap();
    let server = start(directory.path());
    let mut asker = Asker::connect(&server);
    assert_eq!(asker.ask(b"0"), Told::Accepted);
    let faults = Faults::under(directory.path());
    for (operation, name) in [
        (FileOperation::Preallocate, ".segment"),
        (FileOperation::Write, ".segment"),
        (FileOperation::Write, "manifest.new"),
    ] {
        faults.inject(Fault::fails(operation, NO_SPACE).of(name).lasting());
    }
    // Nothing can be written: the first one waits, and from then on it is known that the disk is full.
    let waiting = asker.say(b"1", RequestFlags::DURABLE);
    until("a write has failed", || faults.fired() > 0);
    assert_plain_goes_on(&server);
    assert_storage_full(&Asker::connect_as(&server, "another").ask(b"2"));
    assert!(asker.has_heard_nothing(), "what is not written is not accepted");
    faults.clear();
    assert_eq!(asker.hear_of(waiting), Told::Accepted);
    server.stop();
    let server = start(directory.path());
    assert_eq!(now_open(&server), 2);
    Worker::connect(&server).work(2);
}

/// While a sync takes its time nothing is accepted, answered or acknowledged that waits for it, and everybody else goes on.
#[test]
fn nothing_is_said_before_it_is_stable() {
    let directory = tempdir().unwrap();
    let server = start(directory.path());
    let mut asker = Asker::connect(&server);
    assert_eq!(asker.ask(b"1"), Told::Accepted);
    let mut worker = Worker::connect(&server);
    let delivery = worker.delivery();
    let faults = Faults::under(directory.path());
    faults.inject(Fault::held(FileOperation::SyncData).of(".segment").lasting());
    worker.answer(delivery);
    let second = asker.say(b"2", RequestFlags::DURABLE);
    until("a sync is asked for", || faults.fired() > 0);
    assert_plain_goes_on(&server);
    assert!(asker.has_heard_nothing());
    faults.clear();
    assert_eq!(asker.hear_of(second), Told::Accepted);
    asker.hear_replies(1);
    worker.work(1);
    asker.hear_replies(2);
    until("all has ended", || now_open(&server) == 0);
}

/// After a failed sync or write nothing is accepted or answered any more, and the server ends and says that its disk failed.
/// At the next start everything is there that was accepted, and each request gets one reply.
#[test]
fn a_failing_disk_ends_the_server() {
    for (operation, name, errno) in [
        (FileOperation::SyncData, ".segment", BROKEN),
        (FileOperation::SyncData, ".segment", NO_SPACE),
        (FileOperation::Write, ".segment", BROKEN),
    ] {
        let what = format!("{operation:?} of {name}: {errno}");
        let directory = tempdir().unwrap();
        let server = start(directory.path());
        let mut asker = Asker::connect(&server);
        for _ in 1..=5 {
            assert_eq!(asker.ask(b"1"), Told::Accepted, "{what}");
        }
        let mut worker = Worker::connect(&server);
        worker.work(1);
        asker.hear_replies(1);
        let delivery = worker.delivery();
        let faults = Faults::under(directory.path());
        faults.inject(Fault::fails(operation, errno).of(name).lasting());
        worker.answer(delivery);
        asker.say(b"6", RequestFlags::DURABLE);
        assert_eq!(asker.hear_of(6), Told::Nothing, "{what}");
        assert_eq!(asker.replies.len(), 1, "{what}: a reply went out that is not stable");
        let ended = server.wait().unwrap();
        assert_eq!((ended, ended.exit_code()), (Ended::LogFailed, 74), "{what}");

        drop((faults, worker));
        let server = start(directory.path());
        let replied = asker.replies;
        let mut asker = Asker { replies: replied, ..Asker::connect(&server) };
        let states: BTreeMap<_, _> = asker.resume((2..=6).collect()).into_iter().collect();
        for number in 2..=5 {
            assert_ne!(states[&number], OpenState::Lost, "{what}: {number} was accepted");
        }
        let kept = states.values().filter(|state| **state != OpenState::Lost).count();
        let decided = states.values().filter(|state| **state == OpenState::Outcome).count();
        let mut worker = Worker::connect(&server);
        worker.work((kept - decided) as u64);
        asker.hear_replies(1 + kept);
        until("all has ended", || now_open(&server) == 0);
    }
}

/// A disk that fails when the manifest is replaced is no full one, though it says so: a sync is never asked for again.
#[test]
fn a_failing_manifest_ends_the_server() {
    for (operation, name) in [(FileOperation::SyncData, "manifest.new"), (FileOperation::SyncAll, "")] {
        let directory = tempdir().unwrap();
        let server = start(directory.path());
        let mut asker = Asker::connect(&server);
        assert_eq!(asker.ask(b"1"), Told::Accepted);
        let faults = Faults::under(directory.path());
        faults.inject(Fault::fails(operation, NO_SPACE).of(name).lasting());
        let (accepted, told) = asker.fill();
        assert_eq!(told, Told::Nothing, "{name}");
        assert_eq!(server.wait().unwrap(), Ended::LogFailed, "{name}");
        drop(faults);
        let server = start(directory.path());
        assert!(now_open(&server) > accepted, "{name}: one and {accepted} were accepted");
    }
}

/// A disk that does not work at the start is named, with the file, and is no corrupt log and no empty one: nothing changes.
#[test]
fn a_disk_that_fails_at_the_start() {
    let directory = tempdir().unwrap();
    let server = start(directory.path());
    assert_eq!(Asker::connect(&server).ask(b"1"), Told::Accepted);
    server.stop();
    let contents = || {
        let paths = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<(PathBuf, Vec<u8>)> = paths
            .filter(|path| !path.ends_with("lock"))
            .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = contents();
    for (operation, name) in [
        (FileOperation::Read, "manifest"),
        (FileOperation::Read, ".segment"),
        (FileOperation::SyncData, ".segment"),
        (FileOperation::List, ""),
    ] {
        let faults = Faults::under(directory.path());
        faults.inject(Fault::fails(operation, BROKEN).of(name).lasting());
        let error = Server::builder().config(config(directory.path())).start().unwrap_err();
        let message = error.to_string();
        assert_eq!(error.exit_code(), 74, "{message}");
        assert!(message.contains(name) && message.contains(directory.path().to_str().unwrap()), "{message}");
        drop(faults);
        assert!(contents() == before, "{operation:?} of {name} changed something");
    }
    assert_eq!(now_open(&start(directory.path())), 1);
}

/// A real file system without room, 3 MiB of memory: the same refusals and the same way on, down to the last byte.
#[test]
fn a_full_file_system() {
    const ROLE: &str = "RINGPOST_TEST_FULL_FILE_SYSTEM";
    const NAME: &str = "a_full_file_system";
    if let Some(folder) = std::env::var_os(ROLE).map(PathBuf::from) {
        return on_a_full_file_system(&folder);
    }
    let folder = tempdir().unwrap();
    // It is mounted where only its own processes see it, so that it is gone with them, however they end.
    let mount = "mount -t tmpfs -o size=3m tmpfs \"$0\"";
    let mounted = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "/bin/sh", "-c", script]).arg(folder.path());
        command.env(ROLE, folder.path());
        command
    };
    match mounted(mount).output() {
        Ok(tried) if tried.status.success() => {}
        Ok(tried) => {
            let why = String::from_utf8_lossy(&tried.stderr);
            return eprintln!("{NAME} is skipped, nothing can be mounted here: {why}");
        }
        Err(error) => return eprintln!("{NAME} is skipped, there is no unshare(1): {error}"),
    }
    let child = mounted(&format!("{mount} && exec \"$@\""))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&child.stderr)
    );
}

fn on_a_full_file_system(folder: &Path) {
    let data = folder.join("data");
    let server = start(&data);
    let mut asker = Asker::connect(&server);
    let (accepted, told) = asker.fill();
    assert!(accepted > 100, "{accepted} of 10 kB into 3 MiB");
    assert_storage_full(&told);
    // Somebody else takes what is left, to the last byte.
    let filler = folder.join("filler");
    let full = std::fs::write(&filler, vec![0; 4 << 20]).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    assert_storage_full(&asker.ask(&LARGE));
    assert_plain_goes_on(&server);
    let mut worker = Worker::connect(&server);
    worker.work(accepted);
    asker.hear_replies(accepted as usize);
    until("what was accepted has ended", || now_open(&server) == 0);
    drop(worker);
    std::fs::remove_file(&filler).unwrap();
    until("space that came back is noticed", || asker.ask(&LARGE) == Told::Accepted);
    let (more, told) = asker.fill();
    assert_storage_full(&told);
    server.stop();
    // Full again, and that is no reason not to start, nor not to answer.
    let server = start(&data);
    assert_eq!(now_open(&server), 1 + more);
    Worker::connect(&server).work(1 + more);
}

/// Without a directory nothing is durable, and the refusal says what to do.
#[test]
fn nothing_is_durable_without_a_directory() {
    let server = builder().start().unwrap();
    let Told::Refused(code, message) = Asker::connect(&server).ask(b"1") else { panic!("not refused") };
    assert_eq!(code, Code::DurableUnavailable);
    assert!(message.contains("--data-dir"), "{message}");
}

/// A directory that somebody still has for a moment, as a server that was just killed does, is waited for.
#[test]
fn a_lock_that_is_let_go_of_is_waited_for() {
    let directory = tempdir().unwrap();
    start(directory.path()).stop();
    let faults = Faults::under(directory.path());
    let mut former = LogFiles::open_existing(directory.path()).unwrap();
    former.lock().unwrap();
    faults.record();
    let next = std::thread::spawn({
        let directory = directory.path().to_owned();
        move || Server::builder().config(config(&directory)).start()
    });
    let tries = || faults.calls().iter().filter(|(operation, _)| *operation == FileOperation::Lock).count();
    until("it has been tried twice", || tries() >= 2 || next.is_finished());
    drop(former);
    let server = next.join().unwrap().expect("the lock was let go of");
    assert_eq!(now_open(&server), 0);
}
