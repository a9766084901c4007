//! `ringpost serve`: addresses, settings, signals, and what keeps it from starting.

use std::io::Write;

use rustix::process::Signal;

use crate::harness::{Process, Server, line_of_file, ringpost, run};

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
