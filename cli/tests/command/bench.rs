//! `ringpost bench`: on a server of its own, and on another one.

use std::os::unix::process::CommandExt;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::harness::{Ended, Process, Server, ringpost, run, with_open_files};

/// It measures a server that it starts, and prints the figures as JSON.
#[test]
fn spawns_a_server() {
    for dialect in ["binary", "json"] {
        let ended = run(&[
            "bench",
            "--spawn",
            "--requesters",
            "2",
            "--in-flight",
            "4",
            "--handlers",
            "2",
            "--size",
            "64",
            "--duration",
            "200ms",
            "--warm-up",
            "50ms",
            "--json",
            "--dialect",
            dialect,
        ]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let outcome: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        assert!(outcome["requests"].as_u64() > Some(0), "{outcome}");
        assert_eq!((outcome["errors"].as_u64(), outcome["unanswered"].as_u64()), (Some(0), Some(0)));
        assert!(outcome["server_cpu"].is_object());
        assert_eq!(outcome["options"]["dialect"], dialect);
    }
}

/// It measures another server, whose processor time it knows by its process; the table is for people.
#[test]
fn measures_another_server() {
    let server = Server::start();
    let id = server.process.id().to_string();
    let ended = server.run(&["bench", "--server-pid", &id, "--duration", "100ms", "--in-flight", "2"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("requests/s") && ended.stdout.contains("server CPU"), "{}", ended.stdout);
    assert!(!ended.stdout.contains("not known"), "{}", ended.stdout);
}

/// Durable requests are measured too, on a server of its own, with every policy, and on another one; and it leaves no data.
#[test]
fn measures_durable_requests() {
    let short = ["--durable", "--duration", "1s", "--warm-up", "50ms", "--in-flight", "4", "--json"];
    let check = |ended: Ended| {
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let outcome: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        assert!(outcome["requests"].as_u64() > Some(0), "{outcome}");
        assert_eq!((outcome["errors"].as_u64(), outcome["unanswered"].as_u64()), (Some(0), Some(0)));
    };
    for sync in ["always", "interval:50ms", "never"] {
        let ended = run(&[&["bench", "--spawn", "--sync", sync], &short[..]].concat());
        let (_, folder) = ended.stderr.split_once("the server's log is in ").unwrap();
        let folder = folder.split(',').next().unwrap().to_owned();
        check(ended);
        assert!(!std::path::Path::new(&folder).exists(), "{folder} is left behind");
    }
    let directory = tempfile::tempdir().unwrap();
    let server = Server::with(&["--data-dir", directory.path().to_str().unwrap()]);
    check(server.run(&[&["bench"], &short[..]].concat()));
    let ended = Server::start().run(&[&["bench"], &short[..]].concat());
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stdout.contains("durableUnavailable"), "{}", ended.stdout);
}

/// Ctrl-C, which a terminal sends to the whole process group, ends it with the figures so far.
#[test]
fn interrupted() {
    let mut command =
        ringpost(&["bench", "--spawn", "--duration", "1h", "--warm-up", "0", "--in-flight", "1"]);
    command.process_group(0);
    let bench = Process::start(command);
    bench.stderr_line("measuring");
    kill_process_group(Pid::from_raw(bench.id().cast_signed()).unwrap(), Signal::INT).unwrap();
    let ended = bench.wait();
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
    assert!(
        ended.stdout.contains("requests/s") && ended.stdout.contains("errors         0"),
        "{}",
        ended.stdout
    );
}

/// More connections than may be opened are refused before anything is started, with a remedy.
#[test]
fn too_many_connections() {
    let ended = with_open_files(64, &["bench", "--spawn", "--requesters", "100"]).wait();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(71), ""));
    assert!(ended.stderr.contains("--requesters") && ended.stderr.contains("ulimit -n"), "{}", ended.stderr);
}
