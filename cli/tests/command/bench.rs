//! `ringpost bench`: on a server of its own, and on another one.

use crate::harness::{Server, run};

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
