//! Durable requests, as the command's users meet them: what waits, what died, and what a server says when its disk fails.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::Value;

use crate::harness::{Ended, Process, Server, ringpost, run, until};

const SMALL: [&str; 6] = ["--max-payload", "64KiB", "--segment-size", "1MiB", "--max-disk", "16MiB"];

fn args(directory: &Path) -> Vec<&str> {
    [&["--data-dir", directory.to_str().unwrap()], &SMALL[..]].concat()
}

fn server(directory: &Path) -> Server {
    Server::with(&args(directory))
}

fn send(server: &Server, action: &str, data: &str) {
    let ended = server.run(&["send", "--durable", action, data]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{}", ended.stderr);
}

fn json(ended: &Ended) -> Value {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

fn kill(server: Server) {
    server.process.signal(Signal::KILL);
    assert_eq!(server.process.wait().code, None);
}

fn ids(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|entry| entry["requestId"].as_str().unwrap().to_owned()).collect()
}

/// What waits is listed and cancelled by its id; that holds over a `kill -9`, and the rest is there and is handled.
#[test]
fn cancelled_is_cancelled() {
    let directory = tempfile::tempdir().unwrap();
    let first = server(directory.path());
    for data in ["1", "2", "3"] {
        send(&first, "work", data);
    }
    let waiting = json(&first.run(&["queue", "peek", "work", "--json"]));
    assert_eq!(waiting.as_array().unwrap().len(), 3, "{waiting}");
    let id = &ids(&waiting)[1];
    let ended = first.run(&["queue", "cancel", id]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "1 ended\n"), "{}", ended.stderr);
    let ended = first.run(&["queue", "cancel", id]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), "0 ended\n"), "{}", ended.stderr);
    assert!(ended.stderr.contains(id.as_str()), "{}", ended.stderr);
    kill(first);
    let second = server(directory.path());
    let left = directory.path().join("handled");
    let script = format!("cat >> '{0}'; echo >> '{0}'; echo null", left.display());
    let _handler = second.handle(&["work", "--concurrency", "1", "--", "sh", "-c", &script]);
    until("both are handled", || fs::read_to_string(&left).unwrap_or_default() == "1\n3\n");
    let ended = second.run(&["queue", "list", "--json"]);
    until("nothing waits", || json(&second.run(&["stats", "--json"]))["now"]["openRequests"] == 0);
    assert_eq!(json(&ended), Value::Array(Vec::new()));
}

/// A durable request waits for its handler through a `kill -9`, and the command that asked gets the reply.
#[test]
fn a_request_outlives_its_server() {
    let directory = tempfile::tempdir().unwrap();
    let first = server(directory.path());
    let address = first.address.clone();
    let request = first.spawn(&["request", "--durable", "late", "7", "--timeout", "60s"]);
    until("it is logged, and waits", || first.run(&["queue", "peek", "late"]).code == Some(0));
    kill(first);
    let second = Server::at(&address, &args(directory.path()));
    let _handler = second.handle(&["late", "--echo"]);
    let ended = request.wait();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "7\n"), "{}", ended.stderr);
}

/// A send that fails too often is a dead letter: listed, shown, still there after a `kill -9`, sent again, and dropped.
#[test]
fn dead_letters() {
    let directory = tempfile::tempdir().unwrap();
    let first = server(directory.path());
    let failing = first.handle(&["mail", "--", "sh", "-c", "echo no paper >&2; exit 1"]);
    send(&first, "mail", "{\"to\":1}");
    send(&first, "mail", "{\"to\":2}");
    let list = |server: &Server| json(&server.run(&["dead", "list", "--json"]));
    until("both are dead", || list(&first).as_array().unwrap().len() == 2);
    drop(failing);
    kill(first);

    let second = server(directory.path());
    let letters = list(&second);
    let ids = ids(&letters);
    assert_eq!(ids.len(), 2, "{letters}");
    let table = second.run(&["dead", "list"]).stdout;
    assert!(table.starts_with("REQUEST ") && ids.iter().all(|id| table.contains(id.as_str())), "{table}");
    let shown = json(&second.run(&["dead", "show", &ids[0]]));
    assert_eq!((&shown["action"], &shown["attempts"]), (&"mail".into(), &5.into()), "{shown}");
    let handled = directory.path().join("handled");
    let script = format!("cat > '{}'; echo null", handled.display());
    let _handler = second.handle(&["mail", "--", "sh", "-c", &script]);
    assert_eq!(second.run(&["dead", "resend", &ids[0]]).stdout, "1 sent\n");
    until("it is handled", || fs::read_to_string(&handled).unwrap_or_default().starts_with("{\"to\":"));
    assert_eq!(second.run(&["dead", "drop", &ids[1]]).stdout, "1 dropped\n");
    let ended = second.run(&["dead", "list"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""));
    assert!(ended.stderr.contains("there are none"), "{}", ended.stderr);
}

/// Where nothing is held in memory, a look at the queue and at a dead letter shows their data all the same, the list says where
/// it is, and all dead letters are sent again, whole.
#[test]
fn what_is_only_in_the_log_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let mut all = args(directory.path());
    all.extend(["--queue-memory", "0"]);
    let server = Server::with(&all);
    for number in 1..=3 {
        send(&server, "mail", &format!("{{\"to\":{number}}}"));
    }
    let peeked = json(&server.run(&["queue", "peek", "mail", "--json"]));
    assert_eq!((&peeked[0]["data"], &peeked[2]["data"]), (&"{\"to\":1}".into(), &"{\"to\":3}".into()));
    let failing = server.handle(&["mail", "--", "sh", "-c", "exit 1"]);
    let list = || json(&server.run(&["dead", "list", "--json"]));
    until("all are dead", || list().as_array().unwrap().len() == 3);
    drop(failing);
    let (letters, table) = (list(), server.run(&["dead", "list"]).stdout);
    assert!(table.contains("(in the log: see `dead show`)"), "{table}");
    let shown = json(&server.run(&["dead", "show", &ids(&letters)[1]]));
    assert_eq!((&shown["data"], &shown["stored"]), (&"{\"to\":2}".into(), &false.into()), "{shown}");
    assert_eq!(server.run(&["dead", "resend"]).stdout, "3 sent\n");
    let handled = directory.path().join("handled");
    let script = format!("cat >> '{0}'; echo >> '{0}'; echo null", handled.display());
    let _handler = server.handle(&["mail", "--concurrency", "1", "--", "sh", "-c", &script]);
    let seen = || {
        let mut lines: Vec<_> =
            fs::read_to_string(&handled).unwrap_or_default().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    until("all are handled", || seen() == ["{\"to\":1}", "{\"to\":2}", "{\"to\":3}"]);
}

/// A server that has no descriptor left for its log's files ends nobody's request by that: it says so, and goes on when it has.
#[test]
fn requests_wait_while_descriptors_are_short() {
    let directory = tempfile::tempdir().unwrap();
    let mut all = args(directory.path());
    all.extend(["--queue-memory", "0"]);
    let server = Server::with(&all);
    let (gate, handled) = (directory.path().join("gate"), directory.path().join("handled"));
    let script = format!(
        "until test -e '{0}'; do sleep 0.01; done; cat >> '{1}'; echo >> '{1}'; echo null",
        gate.display(),
        handled.display()
    );
    let _handler = server.handle(&["work", "--concurrency", "1", "--", "sh", "-c", &script]);
    for data in ["1", "2", "3"] {
        send(&server, "work", data);
    }
    let id = Pid::from_raw(server.process.id().cast_signed());
    let before = prlimit(id, Resource::Nofile, Rlimit { current: Some(3), ..getrlimit(Resource::Nofile) });
    fs::write(&gate, "").unwrap();
    let line = server.process.stderr_line("cannot be read for now");
    assert!(line.contains(".segment") && line.contains("ulimit -n"), "{line}");
    prlimit(id, Resource::Nofile, before.unwrap()).unwrap();
    until("all are handled", || fs::read_to_string(&handled).unwrap_or_default() == "1\n2\n3\n");
    let total = &json(&server.run(&["stats", "--json"]))["total"];
    assert!(total["readsPutOff"].as_u64() > Some(0) && total["unreadable"] == 0, "{total}");
}

/// A log that a disk has damaged is refused with 65: file, byte and remedy are named, and nothing is changed.
#[test]
fn a_damaged_log_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let first = server(directory.path());
    send(&first, "work", "\"to be damaged\"");
    first.process.signal(Signal::TERM);
    assert_eq!(first.process.wait().code, Some(0));
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "segment");
    let files = || fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let (path, mut bytes, at) = files()
        .filter(is_segment)
        .find_map(|path| {
            let bytes = fs::read(&path).unwrap();
            let at = bytes.windows(13).position(|window| window == b"to be damaged")?;
            Some((path, bytes, at))
        })
        .unwrap();
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let ended = run(&[&["serve", "--listen", "127.0.0.1:0"], &args(directory.path())[..]].concat());
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(65), ""), "{}", ended.stderr);
    let name = path.file_name().unwrap().to_str().unwrap();
    for part in [name, " at byte ", "ringpost log verify", "ringpost log repair"] {
        assert!(ended.stderr.contains(part), "{part:?} in {}", ended.stderr);
    }
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

/// A directory that a server has is refused with 78, and that server is named.
#[test]
fn a_directory_belongs_to_one_server() {
    let directory = tempfile::tempdir().unwrap();
    let first = server(directory.path());
    send(&first, "work", "1");
    let ended = run(&[&["serve", "--listen", "127.0.0.1:0"], &args(directory.path())[..]].concat());
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(78), ""), "{}", ended.stderr);
    assert!(ended.stderr.contains(directory.path().to_str().unwrap()), "{}", ended.stderr);
    send(&first, "work", "2");
}

/// When the disk fails under a running server, here because files may not get longer than a limit, it says what failed on which
/// file, and ends with 74. All that it had accepted is there at the next start.
#[test]
fn a_disk_that_fails_ends_it() {
    const ACCEPTED: usize = 5;
    let directory = tempfile::tempdir().unwrap();
    let plain = ringpost(&["serve", "--listen", "127.0.0.1:0"]);
    // The limit comes with a signal, too, which would end it. Ignored signals stay so in the program that follows.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(plain.get_program()).args(plain.get_args());
    command.args(args(directory.path()));
    for (name, _) in plain.get_envs() {
        command.env_remove(name);
    }
    let process = Process::start(command);
    let line = process.stdout_line("listening on ");
    let address = line.trim_end().strip_prefix("listening on ").unwrap().to_owned();
    let first = Server { process, address };
    for number in 0..ACCEPTED {
        send(&first, "work", &number.to_string());
    }
    let id = Pid::from_raw(first.process.id().cast_signed());
    let limit = Rlimit { current: Some(100), maximum: None };
    prlimit(id, Resource::Fsize, limit).unwrap();
    let refused = first.run(&["send", "--durable", "work", "99", "--timeout", "1s"]);
    assert_ne!(refused.code, Some(0), "{}", refused.stderr);
    let ended = first.process.wait();
    assert_eq!(ended.code, Some(74), "{}", ended.stderr);
    for part in ["the log failed", ".segment", "File too large"] {
        assert!(ended.stderr.contains(part), "{part:?} in {}", ended.stderr);
    }
    let second = server(directory.path());
    let waiting = json(&second.run(&["queue", "peek", "work", "--json"]));
    let data: Vec<_> = waiting.as_array().unwrap().iter().map(|entry| entry["data"].to_string()).collect();
    assert_eq!(data.len(), ACCEPTED, "{data:?}");
}
