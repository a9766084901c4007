//! `ringpost log`: a log that a server has written, whole, damaged and repaired.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Stdio,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Ended, Server, ringpost, run, until};

const SEGMENT_HEADER_BYTES: usize = 96;

/// Small segments: what is preallocated is read by these commands too.
const SMALL: [&str; 6] = ["--max-payload", "64KiB", "--segment-size", "1MiB", "--max-disk", "16MiB"];

fn server(directory: &Path) -> Server {
    let mut args = vec!["--data-dir", directory.to_str().unwrap()];
    args.extend(SMALL);
    Server::with(&args)
}

fn stop(server: Server) {
    server.process.signal(Signal::TERM);
    let ended = server.process.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

/// A server's log with three messages that wait, and the messages.
fn log() -> (tempfile::TempDir, [&'static str; 3]) {
    let directory = tempfile::tempdir().unwrap();
    let messages = ["{\"first\":1}", "\"the second one\"", "[3]"];
    let server = server(directory.path());
    for message in messages {
        let ended = server.run(&["send", "--durable", "mail", message]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    stop(server);
    (directory, messages)
}

fn command(what: &str, directory: &Path, more: &[&str]) -> Ended {
    let mut args = vec!["log", what, directory.to_str().unwrap()];
    args.extend(more);
    run(&args)
}

fn dumped(directory: &Path) -> Vec<Value> {
    command("dump", directory, &["--json"])
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn requests(directory: &Path) -> Vec<Value> {
    dumped(directory).into_iter().filter(|entry| entry["kind"] == "request").collect()
}

/// Every file of a directory but the lock, with its content.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .filter(|path| !path.ends_with("lock"))
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

/// Flips a bit in the data of a dumped request.
fn damage(directory: &Path, request: &Value) {
    let path = directory.join(request["file"].as_str().unwrap());
    let mut bytes = fs::read(&path).unwrap();
    let offset = request["offset"].as_u64().unwrap() as usize;
    assert!(offset >= SEGMENT_HEADER_BYTES);
    let data = request["data"].as_str().unwrap().as_bytes();
    let at = bytes[offset..].windows(data.len()).position(|window| window == data).unwrap();
    bytes[offset + at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// A log that is whole is called so, with what is in it.
#[test]
fn verify() {
    let (directory, _) = log();
    let ended = command("verify", directory.path(), &[]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{}", ended.stdout);
    assert!(ended.stdout.starts_with("no damage\nsegments "), "{}", ended.stdout);
    for part in ["1 boot, 3 request", "\nsequences  1 to ", "\nbytes ", "\noldest     20", "\nnewest     20"]
    {
        assert!(ended.stdout.contains(part), "{part:?} in {}", ended.stdout);
    }
}

/// Every record is shown with its place, for people and as JSON, requests with their data.
#[test]
fn dump() {
    let (directory, messages) = log();
    let entries = dumped(directory.path());
    assert_eq!((&entries[0]["kind"], &entries[1]["kind"]), (&"segment".into(), &"boot".into()));
    let sequences: Vec<_> = entries.iter().filter_map(|entry| entry["sequence"].as_u64()).collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
    let requests = requests(directory.path());
    for (request, message) in requests.iter().zip(messages) {
        assert_eq!((&request["data"], &request["action"]), (&message.into(), &"mail".into()));
        assert_eq!((&request["size"], &request["send"]), (&message.len().into(), &true.into()));
    }
    assert_eq!(requests.len(), 3);
    let ended = command("dump", directory.path(), &[]);
    assert_eq!((ended.code, ended.stdout.lines().count()), (Some(0), entries.len()), "{}", ended.stderr);
    let place = format!("{}:{} request ", requests[1]["file"].as_str().unwrap(), requests[1]["offset"]);
    let line = ended.stdout.lines().find(|line| line.starts_with(&place)).unwrap();
    assert!(line.contains("action=\"mail\"") && line.ends_with(r#"data="\"the second one\"""#), "{line}");
}

/// A flipped bit is found, named, and only given up when that is allowed; what was there is kept in a file of its own, all
/// other requests are there, and a server goes on with them.
#[test]
fn damage_is_repaired() {
    let (directory, messages) = log();
    let path = directory.path();
    let original = requests(path);
    damage(path, &original[1]);
    let (file, offset) = (original[1]["file"].as_str().unwrap(), &original[1]["offset"]);
    let (sequence, bytes) = (&original[1]["sequence"], &original[1]["bytes"]);
    let damaged = files(path);
    let place = format!("{file} at byte {offset}: the checksum is ");
    let lost = format!("record {sequence}\n");

    let ended = command("verify", path, &[]);
    assert_eq!(ended.code, Some(65), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.starts_with(&place) && ended.stdout.ends_with(&lost), "{}", ended.stdout);
    assert_eq!(ended.stdout.lines().count(), 1);
    assert!(
        ended.stderr.contains("damaged in 1 place: ") && ended.stderr.contains("repair"),
        "{}",
        ended.stderr
    );

    let ended = command("dump", path, &["--json"]);
    assert_eq!(ended.code, Some(65), "{}", ended.stderr);
    let entries = dumped(path);
    let gap = entries.iter().find(|entry| entry["kind"] == "damage").unwrap();
    assert_eq!((&gap["offset"], &gap["bytes"], &gap["first"]), (offset, bytes, sequence));

    let ended = command("repair", path, &[]);
    assert_eq!(ended.code, Some(65), "{}", ended.stdout);
    assert!(ended.stdout.starts_with(&place), "{}", ended.stdout);
    let refused =
        [format!("{bytes} bytes of records would be lost"), "--allow-loss".into(), "Nothing was".into()];
    assert!(refused.iter().all(|part| ended.stderr.contains(part)), "{refused:?} in {}", ended.stderr);
    assert_eq!(files(path), damaged, "nothing is changed unless that is allowed");

    let ended = command("repair", path, &["--allow-loss"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let (said, kept) = ended.stdout.trim_end().split_once("; kept in ").unwrap();
    assert!(said.ends_with(&format!("; {bytes} bytes lost: record {sequence}")), "{said}");
    let kept = fs::read(kept).unwrap();
    assert_eq!(kept.len() as u64, bytes.as_u64().unwrap());
    assert!(kept.windows(10).any(|window| window == b"second one"), "the copy has what was there");

    let ended = command("verify", path, &[]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("2 request") && ended.stdout.contains("1 lost"), "{}", ended.stdout);
    let ended = command("repair", path, &["--allow-loss"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "no damage: nothing was changed\n"));

    let server = server(path);
    let handled = tempfile::NamedTempFile::new().unwrap();
    let command = format!("cat >> '{0}'; echo >> '{0}'; echo null", handled.path().display());
    let _handler = server.handle(&["mail", "--concurrency", "1", "--", "sh", "-c", &command]);
    let both = format!("{}\n{}\n", messages[0], messages[2]);
    until("both are handled", || fs::read_to_string(handled.path()).unwrap() == both);
    stop(server);
}

/// A torn end is no damage: it is told, shown in the dump, and not touched by a repair.
#[test]
fn a_torn_end_is_no_damage() {
    let (directory, _) = log();
    let entries = dumped(directory.path());
    let last = entries.last().unwrap();
    let end = (last["offset"].as_u64().unwrap() + last["bytes"].as_u64().unwrap()) as usize;
    let path = directory.path().join(last["file"].as_str().unwrap());
    let mut bytes = fs::read(&path).unwrap();
    assert_eq!(bytes[end..end + 8], [0; 8]);
    bytes[end + 3] = 1;
    fs::write(&path, &bytes).unwrap();

    let ended = command("verify", directory.path(), &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.stdout);
    let note =
        format!("{} is torn at byte {end}: 4 bytes with 0 whole records", last["file"].as_str().unwrap());
    assert!(ended.stderr.starts_with(&note), "{}", ended.stderr);
    let torn = dumped(directory.path()).pop().unwrap();
    assert_eq!((&torn["kind"], &torn["offset"], &torn["bytes"]), (&"torn".into(), &end.into(), &4.into()));
    let ended = command("repair", directory.path(), &["--allow-loss"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "no damage: nothing was changed\n"));
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

/// Every place is listed, not only the first.
#[test]
fn all_damage_is_listed() {
    let (directory, _) = log();
    let original = requests(directory.path());
    damage(directory.path(), &original[0]);
    damage(directory.path(), &original[2]);
    let ended = command("verify", directory.path(), &[]);
    let listed: Vec<_> = ended.stdout.lines().collect();
    assert_eq!((ended.code, listed.len()), (Some(65), 2), "{}", ended.stdout);
    for (line, request) in listed.iter().zip([&original[0], &original[2]]) {
        assert!(line.contains(&format!(" at byte {}: ", request["offset"])), "{line}");
    }
    assert!(ended.stderr.contains("damaged in 2 places"), "{}", ended.stderr);
    let ended = command("repair", directory.path(), &["--allow-loss"]);
    assert_eq!((ended.code, ended.stdout.lines().count()), (Some(0), 2), "{}", ended.stderr);
    assert_eq!(requests(directory.path()), original[1..2]);
}

/// A lost segment is named with the records that were in it, and those around it are kept.
#[test]
fn a_segment_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path());
    let data = format!("\"{}\"", "x".repeat(60_000));
    for _ in 0..40 {
        assert_eq!(server.run(&["send", "--durable", "mail", &data]).code, Some(0));
    }
    stop(server);
    let entries = dumped(directory.path());
    let first: Vec<_> = entries.iter().filter(|entry| entry["kind"] == "segment").collect();
    assert!(first.len() >= 3, "{} segments", first.len());
    let lost = format!("records {} to {}", first[1]["first"], first[2]["first"].as_u64().unwrap() - 1);
    let file = first[1]["file"].as_str().unwrap();
    fs::remove_file(directory.path().join(file)).unwrap();
    let ended = command("repair", directory.path(), &[]);
    assert_eq!((ended.code, ended.stdout), (Some(65), format!("{file} at byte 0: the segment is missing\n")));
    let part = format!(": all that was in 1 segment ({lost}) would be lost. ");
    assert!(ended.stderr.contains(&part), "{part:?} in {}", ended.stderr);
    let ended = command("repair", directory.path(), &["--allow-loss"]);
    let said = format!("{file} at byte 0: the segment is missing; lost: {lost}\n");
    assert_eq!((ended.code, ended.stdout), (Some(0), said), "{}", ended.stderr);
    let kept = entries.iter().filter(|entry| entry["kind"] == "request" && entry["file"] != file);
    assert_eq!(requests(directory.path()).iter().collect::<Vec<_>>(), kept.collect::<Vec<_>>());
}

/// A lost manifest is made anew, and no record is lost by that.
#[test]
fn manifest_is_made_anew() {
    let (directory, _) = log();
    let before = requests(directory.path());
    fs::remove_file(directory.path().join("manifest")).unwrap();
    let ended = command("verify", directory.path(), &[]);
    assert_eq!(ended.code, Some(65));
    assert!(ended.stdout.starts_with("manifest at byte 0: "), "{}", ended.stdout);
    let ended = command("repair", directory.path(), &[]);
    assert!(ended.stderr.contains("which needs a manifest"), "{}", ended.stderr);
    let ended = command("repair", directory.path(), &["--allow-loss"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("made anew from the segments"), "{}", ended.stdout);
    assert_eq!(requests(directory.path()), before);
}

/// A log that a server has is left alone, and the server is named.
#[test]
fn a_running_server_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path());
    for (what, more) in [("verify", &[][..]), ("dump", &[]), ("repair", &["--allow-loss"])] {
        let ended = command(what, directory.path(), more);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(78), ""), "{what}: {}", ended.stderr);
        let process = format!("locked by process {}", server.process.id());
        assert!(
            ended.stderr.contains("a running server") && ended.stderr.contains(&process),
            "{}",
            ended.stderr
        );
    }
    stop(server);
}

/// Where there is no log, that is said, and nothing is made there.
#[test]
fn no_log() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    for what in ["verify", "dump", "repair"] {
        for path in [&missing, directory.path()] {
            let ended = command(what, path, &[]);
            assert_eq!((ended.code, ended.stdout.as_str()), (Some(74), ""), "{what}: {}", ended.stderr);
            assert!(ended.stderr.contains(path.to_str().unwrap()), "{}", ended.stderr);
            assert!(ended.stderr.contains("ringpost serve --data-dir"), "{}", ended.stderr);
        }
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// Files that are none of the log's are told, and are no damage.
#[test]
fn foreign_files() {
    let (directory, _) = log();
    fs::write(directory.path().join("notes.txt"), "mine").unwrap();
    let ended = command("verify", directory.path(), &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.stdout);
    assert!(ended.stderr.contains("\"notes.txt\" is none of the log's files"), "{}", ended.stderr);
}

/// When nobody reads the dump any more, it ends without a complaint.
#[test]
fn broken_pipe_is_quiet() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path());
    let data = format!("\"{}\"", "x".repeat(60_000));
    for _ in 0..5 {
        assert_eq!(server.run(&["send", "--durable", "mail", &data]).code, Some(0));
    }
    stop(server);
    let mut command = ringpost(&["log", "dump", "--json", directory.path().to_str().unwrap()]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut beginning = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut beginning).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((beginning, output.status.code(), output.stderr), (*b"{", Some(0), vec![]));
}
