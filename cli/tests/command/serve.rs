//! `ringpost serve`: addresses, settings, signals, and what keeps it from starting.

use std::{
    fs::File,
    io::{Read, Write, pipe},
    net::TcpStream,
    process::Stdio,
};

use rustix::process::Signal;

use crate::harness::{Process, Server, line_of_file, ringpost, run, with_open_files};

/// Several addresses are served, and each is told.
#[test]
fn listens_on_all_addresses() {
    let process = Process::start(ringpost(&["serve", "--listen", "127.0.0.1:0", "--listen", "[::1]:0"]));
    for host in ["127.0.0.1", "[::1]"] {
        let line = process.stdout_line("listening on ");
        let address = line.trim_end().strip_prefix("listening on ").unwrap();
        assert!(address.starts_with(host), "{address}");
        let stats = run(&["stats", "--json", "--server", address]);
        assert_eq!(stats.code, Some(0), "{}", stats.stderr);
    }
}

/// A setting comes from the file, over it from the environment, over that from a flag.
#[test]
fn flags_over_environment_over_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "id = \"from-file\"\nlisten = [\"127.0.0.1:0\"]").unwrap();
    let path = file.path().to_str().unwrap();
    for (variable, flag, expected) in [
        (None, None, "from-file"),
        (Some("from-env"), None, "from-env"),
        (Some("from-env"), Some("from-flag"), "from-flag"),
    ] {
        let mut command = ringpost(&["serve", "--config", path]);
        if let Some(id) = variable {
            command.env("RINGPOST_ID", id);
        }
        if let Some(id) = flag {
            command.args(["--id", id]);
        }
        let process = Process::start(command);
        let line = process.stdout_line("listening on ");
        let stats = run(&["stats", "--json", "--server", line.trim_end().rsplit(' ').next().unwrap()]);
        let stats: serde_json::Value = serde_json::from_str(&stats.stdout).unwrap();
        assert_eq!(stats["serverId"], expected);
    }
}

/// A key that does not exist is refused by its name.
#[test]
fn unknown_key() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "max-payloads = 1").unwrap();
    let ended = run(&["serve", "--config", file.path().to_str().unwrap()]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(78), ""));
    assert!(ended.stderr.contains("ringpost: ") && ended.stderr.contains("max-payloads"), "{}", ended.stderr);
    let ended = run(&["serve", "--listen", "127.0.0.1:0", "--max-payload", "2GiB"]);
    assert_eq!(ended.code, Some(78));
    assert!(ended.stderr.contains("max-payload"), "{}", ended.stderr);
}

/// A value of the environment that cannot be used is named by its variable; an empty one is none.
#[test]
fn bad_environment() {
    for (value, code, words) in
        [("lots", 2, "`lots` is not a size"), ("0", 78, "max-payload = 0: must be 1 byte to 1GiB")]
    {
        let mut command = ringpost(&["serve", "--listen", "127.0.0.1:0"]);
        command.env("RINGPOST_MAX_PAYLOAD", value);
        let ended = Process::start(command).wait();
        assert_eq!(ended.code, Some(code), "{}", ended.stderr);
        assert!(
            ended.stderr.contains(words) && ended.stderr.contains("RINGPOST_MAX_PAYLOAD"),
            "{}",
            ended.stderr
        );
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "listen = [\"localhost:0\"]").unwrap();
    let mut command = ringpost(&["serve", "--config", file.path().to_str().unwrap()]);
    command.env("RINGPOST_LISTEN", "").env("RINGPOST_MAX_PAYLOAD", "");
    Process::start(command).stdout_line("listening on ");
}

/// Logs that cannot be written change nothing: it serves, drains, and ends with 0.
#[test]
fn standard_error_that_cannot_be_written() {
    let (reader, closed) = pipe().unwrap();
    drop(reader);
    let full = File::options().write(true).open("/dev/full").unwrap();
    for stderr in [Stdio::from(closed), Stdio::from(full)] {
        let process =
            Process::start_with_stderr(ringpost(&["serve", "--listen", "127.0.0.1:0", "-vv"]), stderr);
        let line = process.stdout_line("listening on ");
        let address = line.trim_end().rsplit(' ').next().unwrap();
        let ended = run(&["stats", "--server", address]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        process.signal(Signal::TERM);
        assert_eq!(process.wait().code, Some(0));
    }
}

/// Of a flood of refused connections each is told or counted in a line.
#[test]
fn refusals_do_not_flood_the_log() {
    const REFUSED: u64 = 20;
    let server = Server::with(&["--max-connections", "1"]);
    let mut first = TcpStream::connect(&server.address).unwrap();
    first.write_all(b"{\"action\":\"ping\"}\n").unwrap();
    first.read_exact(&mut [0; 1]).unwrap();
    for _ in 0..REFUSED {
        let mut other = TcpStream::connect(&server.address).unwrap();
        other.write_all(b"{\"action\":\"ping\"}\n").unwrap();
        other.read_to_end(&mut Vec::new()).unwrap();
    }
    let mut told = 0;
    while told < REFUSED {
        let line = server.process.stderr_line("left_out=");
        let left_out = line.split("left_out=").nth(1).unwrap().split_whitespace().next().unwrap();
        told += left_out.parse::<u64>().unwrap() + u64::from(line.contains("address="));
    }
    assert_eq!(told, REFUSED);
}

/// Where few files can be opened it says so, and serves the few connections that are possible; or says what it needs.
#[test]
fn few_open_files() {
    let process = with_open_files(20, &["serve", "--listen", "127.0.0.1:0"]);
    process.stderr_line("very few connections are possible");
    let line = process.stdout_line("listening on ");
    let ended = run(&["stats", "--server", line.trim_end().rsplit(' ').next().unwrap()]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let ended = with_open_files(12, &["serve", "--listen", "127.0.0.1:0"]).wait();
    assert_eq!(ended.code, Some(78), "{}", ended.stderr);
    assert!(ended.stderr.contains("ulimit"), "{}", ended.stderr);
}

/// A port that somebody else has is named.
#[test]
fn port_taken() {
    let server = Server::start();
    let ended = run(&["serve", "--listen", &server.address]);
    assert_eq!(ended.code, Some(69), "{}", ended.stderr);
    assert!(ended.stderr.contains(&server.address), "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
}

/// SIGTERM lets an open request come to its end, then the server ends with 0.
#[test]
fn drains_on_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let (begun, go) = (folder.path().join("begun"), folder.path().join("go"));
    let server = Server::start();
    let script =
        format!("echo x > {}; until [ -e {} ]; do sleep 0.01; done; echo 7", begun.display(), go.display());
    let _handler = server.handle(&["wait", "--", "sh", "-c", &script]);
    let request = server.spawn(&["request", "wait", "null", "--timeout", "60s"]);
    line_of_file(&begun);
    server.process.signal(Signal::TERM);
    server.process.stderr_line("leaving");
    std::fs::write(&go, "").unwrap();
    let request = request.wait();
    assert_eq!((request.code, request.stdout.as_str()), (Some(0), "7\n"), "{}", request.stderr);
    assert_eq!(server.process.wait().code, Some(0));
}

/// A second signal does not wait for anything.
#[test]
fn second_signal_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let begun = folder.path().join("begun");
    let server = Server::with(&["--drain-timeout", "1h"]);
    let script = format!("echo x > {}; sleep 1000", begun.display());
    let _handler = server.handle(&["never", "--", "sh", "-c", &script]);
    let request = server.spawn(&["request", "never", "null", "--timeout", "60s"]);
    line_of_file(&begun);
    server.process.signal(Signal::INT);
    server.process.stderr_line("leaving");
    server.process.signal(Signal::INT);
    assert_eq!(server.process.wait().code, Some(130));
    assert_eq!(request.wait().code, Some(69));
}
