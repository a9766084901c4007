//! `ringpost receivers`, `stats` and `doctor`: looking at a server and a machine.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use crate::harness::{Server, run, until, with_open_files};

/// The actions that have a handler, a line each or as JSON.
#[test]
fn receivers() {
    let server = Server::start();
    let ended = server.run(&["receivers"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""));
    assert!(ended.stderr.contains("no action"), "{}", ended.stderr);
    let _a = server.handle(&["a", "--echo"]);
    let _b = server.handle(&["b c", "--echo"]);
    let ended = server.run(&["receivers"]);
    let mut lines: Vec<_> = ended.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!((ended.code, lines), (Some(0), vec!["a", "b c"]));
    let ended = server.run(&["receivers", "--json"]);
    let mut list: Vec<String> = serde_json::from_str(&ended.stdout).unwrap();
    list.sort_unstable();
    assert_eq!(list, ["a", "b c"]);
}

/// Whoever watches sees handlers come and go.
#[test]
fn receivers_watch() {
    let server = Server::start();
    let watch = server.spawn(&["receivers", "--watch"]);
    let json = server.spawn(&["receivers", "--watch", "--json"]);
    json.stdout_line("[]");
    let handler = server.handle(&["a", "--echo"]);
    watch.stdout_line("+ a");
    json.stdout_line("[\"a\"]");
    drop(handler);
    watch.stdout_line("- a");
    json.stdout_line("[]");
}

/// When nobody reads any more, it ends without a complaint, and at once: not when there is something to write.
#[test]
fn broken_pipe_is_quiet() {
    let server = Server::start();
    let mut command = server.command(&["receivers", "--watch", "--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "[]\n");
    until("it ends", || child.try_wait().unwrap().is_some());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]));
}

/// The server's figures, for people and as JSON.
#[test]
fn stats() {
    let server = Server::with(&["--id", "server1"]);
    let _handler = server.handle(&["a", "--echo"]);
    assert_eq!(server.run(&["request", "a", "1"]).code, Some(0));
    let ended = server.run(&["stats"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("server1") && ended.stdout.contains("handlers"), "{}", ended.stdout);
    let ended = server.run(&["stats", "--json"]);
    let stats: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(stats["now"]["handlers"], 1);
    assert!(stats["total"]["replies"].as_u64() >= Some(1), "{stats}");
    let watch = server.spawn(&["stats", "--json", "--watch", "--interval", "10ms"]);
    watch.stdout_line("serverId");
    watch.stdout_line("serverId");
}

/// A machine that can run these tests is good, with a server or without one.
#[test]
fn doctor() {
    let server = Server::start();
    let ended = server.run(&["doctor"]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains(&format!("one answers at {}", server.address)), "{}", ended.stdout);
    let ended = run(&["doctor", "--json", "--server", "127.0.0.1:1"]);
    assert_eq!(ended.code, Some(0));
    let checks: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let level = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap()["level"].clone();
    assert_eq!((level("io_uring"), level("server")), ("ok".into(), "warn".into()));
    assert!(checks.iter().all(|check| check["level"] == "ok" || check["remedy"].is_string()));
}

/// Where hardly a file can be opened, doctor says so; it does not die of it, and neither do other commands.
#[test]
fn doctor_with_few_open_files() {
    let ended = with_open_files(8, &["doctor", "--json"]).wait();
    assert_eq!(ended.code, Some(71), "{}{}", ended.stdout, ended.stderr);
    let checks: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let files = checks.iter().find(|check| check["name"] == "open files").unwrap();
    assert_eq!(files["level"], "fail");
    assert!(files["remedy"].as_str().unwrap().contains("ulimit"), "{files}");
    let ended = with_open_files(8, &["request", "a", "1"]).wait();
    assert_eq!(ended.code, Some(71));
    assert!(ended.stderr.contains("ulimit -n"), "{}", ended.stderr);
}

/// Actions, connections and queues are shown, looked into and emptied.
#[test]
fn control() {
    let server = Server::start();
    let _handler = server.handle(&["slow", "--echo", "--delay", "60s", "--concurrency", "1"]);
    let requests: Vec<_> = (0..3)
        .map(|number| server.spawn(&["request", "slow", &number.to_string(), "--timeout", "60s"]))
        .collect();
    let queued = |count: u64| {
        let list = server.run(&["queue", "list", "--json"]).stdout;
        serde_json::from_str::<serde_json::Value>(&list).unwrap()[0]["queued"].as_u64().unwrap_or(0) == count
    };
    until("two wait", || queued(2));
    let actions = server.run(&["actions"]).stdout;
    assert!(actions.lines().next().unwrap().starts_with("ACTION") && actions.contains("slow"), "{actions}");
    let connections = server.run(&["connections", "--json"]).stdout;
    let connections: serde_json::Value = serde_json::from_str(&connections).unwrap();
    assert_eq!(connections.as_array().map(Vec::len), Some(5), "{connections}");
    let peeked = server.run(&["queue", "peek", "slow", "--json"]).stdout;
    let peeked: serde_json::Value = serde_json::from_str(&peeked).unwrap();
    let id = peeked[0]["requestId"].as_str().unwrap();
    assert_eq!(server.run(&["queue", "cancel", id]).stdout, "1 ended\n");
    let again = server.run(&["queue", "cancel", id]);
    assert_eq!((again.code, again.stdout.as_str()), (Some(1), "0 ended\n"), "{}", again.stderr);
    until("one waits", || queued(1));
    assert_eq!(server.run(&["queue", "purge", "slow"]).stdout, "1 ended\n");
    until("none waits", || queued(0));
    assert_eq!(server.run(&["queue", "purge", "nobody"]).code, Some(3));
    drop(requests);
}
