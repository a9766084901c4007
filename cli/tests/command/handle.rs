//! `ringpost handle`: fixed replies, commands, their ends, and its own.

use rustix::process::Signal;

use crate::harness::{Server, line_of_file, run, runs, until};

/// What a command writes is the reply: JSON as it is, other text as a string, nothing as null.
#[test]
fn commands_reply() {
    let server = Server::start();
    let _json = server.handle(&["json", "--", "sed", "s/2/3/"]);
    let _text = server.handle(&["text", "--", "sh", "-c", "read x; echo \"got $x\""]);
    let _silent = server.handle(&["silent", "--", "true"]);
    let _fixed = server.handle(&["fixed", "--reply", "{\"a\": 1}"]);
    for (action, data, reply) in [
        ("json", "{\"value\":2}", "{\"value\":3}\n"),
        ("text", "[1]", "\"got [1]\"\n"),
        ("silent", "1", "null\n"),
        ("fixed", "1", "{\"a\": 1}\n"),
    ] {
        let ended = server.run(&["request", action, data]);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), reply), "{action}: {}", ended.stderr);
    }
}

/// A command that fails, dies, writes too much or leaves processes behind is an error or a reply, never a hang.
#[test]
fn commands_that_misbehave() {
    let server = Server::start();
    let _mute = server.handle(&["mute", "--", "sh", "-c", "exit 3"]);
    let _killed = server.handle(&["killed", "--", "sh", "-c", "kill -9 $$"]);
    let _endless = server.handle(&["endless", "--max-output", "1KiB", "--", "yes"]);
    let _leaves = server.handle(&["leaves", "--", "sh", "-c", "sleep 1000 & echo $!"]);
    let _deaf = server.handle(&["deaf", "--", "sh", "-c", "exec 0<&-; echo 1"]);
    for (action, words) in
        [("mute", "exit code 3"), ("killed", "signal 9"), ("endless", "more than 1024 bytes")]
    {
        let ended = server.run(&["request", action, "{}"]);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{action}");
        assert!(ended.stderr.contains(words), "{action}: {}", ended.stderr);
    }
    let ended = server.run(&["request", "leaves", "{}"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    until("what it left behind is gone", || !runs(ended.stdout.trim()));
    let long = format!("\"{}\"", "x".repeat(100_000));
    let ended = server.run(&["request", "deaf", &long]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "1\n"), "{}", ended.stderr);
}

/// When the request's time is over, the whole process group ends, even one that ignores SIGTERM; then the slot is free.
#[test]
fn timeout_ends_the_group() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pids");
    let server = Server::start();
    let script = format!(
        "read x; [ $x = 1 ] && exit; trap '' TERM; sleep 1000 & echo $$ $! > {}; while :; do wait; done",
        path.display()
    );
    let _handler = server.handle(&["long", "--concurrency", "1", "--", "sh", "-c", &script]);
    let ended = server.run(&["request", "long", "0", "--timeout", "300ms"]);
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    let ids = line_of_file(&path);
    until("the command's processes are gone", || !ids.split(' ').any(runs));
    let ended = server.run(&["request", "long", "1", "--timeout", "60s"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "null\n"), "{}", ended.stderr);
}

/// Asked to end, it finishes what is at work, whose reply arrives, and ends with 0.
#[test]
fn drains() {
    let folder = tempfile::tempdir().unwrap();
    let (begun, go) = (folder.path().join("begun"), folder.path().join("go"));
    let server = Server::start();
    let script =
        format!("echo x > {}; until [ -e {} ]; do sleep 0.01; done; echo 7", begun.display(), go.display());
    let handler = server.handle(&["wait", "--drain-timeout", "1h", "--", "sh", "-c", &script]);
    let request = server.spawn(&["request", "wait", "null", "--timeout", "60s"]);
    line_of_file(&begun);
    handler.signal(Signal::INT);
    handler.stderr_line("finishing 1 at work");
    std::fs::write(&go, "").unwrap();
    assert_eq!(request.wait().stdout, "7\n");
    assert_eq!(handler.wait().code, Some(0));
}

/// What takes longer than the drain's timeout is stopped, and so is what is at work at a second signal.
#[test]
fn ends_with_its_commands() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    for (name, drain_timeout, again, code) in [("late", "50ms", false, 0), ("second", "1h", true, 143)] {
        let path = folder.path().join(name);
        let script = format!("sleep 1000 & echo $$ $! > {}; wait", path.display());
        let handler = server.handle(&[name, "--drain-timeout", drain_timeout, "--", "sh", "-c", &script]);
        let request = server.spawn(&["request", name, "null", "--timeout", "60s"]);
        let ids = line_of_file(&path);
        handler.signal(Signal::TERM);
        handler.stderr_line("finishing 1 at work");
        if again {
            handler.signal(Signal::TERM);
        }
        assert_eq!(handler.wait().code, Some(code), "{name}");
        until("the command's processes are gone", || !ids.split(' ').any(runs));
        let (ended, expected) = (request.wait(), if again { 3 } else { 1 });
        assert_eq!(ended.code, Some(expected), "{name}: {}", ended.stderr);
    }
}

/// A leaving server is told of once, in one clause.
#[test]
fn told_of_a_leaving_server() {
    let server = Server::start();
    let handler = server.handle(&["echo", "--echo"]);
    server.process.signal(Signal::TERM);
    let line = handler.stderr_line("leaving");
    assert_eq!(line.matches("the server is leaving").count(), 1, "{line}");
}

/// It is there before the server, and again after the server's restart.
#[test]
fn comes_back() {
    let server = Server::start();
    let address = server.address.clone();
    let handler = server.handle(&["echo", "--echo"]);
    drop(server);
    handler.stderr_line("trying again");
    let server = Server::at(&address, &[]);
    handler.stderr_line("connected again");
    let mut ended = server.run(&["request", "echo", "1"]);
    until("the handler is registered again", || {
        ended = server.run(&["request", "echo", "1"]);
        ended.code == Some(0)
    });
    assert_eq!(ended.stdout, "1\n");
}

/// Mistakes on the command line are told before anything is registered.
#[test]
fn bad_usage() {
    for (args, code, words) in [
        (&["handle", "a"][..], 2, "required"),
        (&["handle", "ping", "--echo"], 2, "reserved"),
        (&["handle", "$sys.x", "--echo"], 2, "reserved"),
        (&["handle", "a", "--reply", "{"], 65, "JSON"),
        (&["handle", "a", "--", "no-such-program-here"], 2, "no-such-program-here"),
        (&["handle", "a", "--concurrency", "0", "--echo"], 2, "concurrency"),
    ] {
        let ended = run(args);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{args:?}");
        assert!(ended.stderr.contains(words), "{args:?}: {}", ended.stderr);
    }
}
