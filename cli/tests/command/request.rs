//! `ringpost request` and `ringpost send`: what is printed, and how they end.

use std::net::TcpListener;

use rustix::process::Signal;

use crate::harness::{Process, Server, line_of_file, ringpost, run, run_with_input, runs, until};

/// Standard output has the reply and nothing else; data may come from standard input.
#[test]
fn prints_the_reply() {
    let server = Server::start();
    let _handler = server.handle(&["echo", "--echo"]);
    let ended = server.run(&["request", "echo", "{\"b\": [1, 2.50], \"a\": null}"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "{\"b\": [1, 2.50], \"a\": null}\n"));
    assert_eq!(ended.stderr, "");
    let args = ["--server", &server.address, "request", "echo", "-", "--ttl", "10s", "--timeout", "10s"];
    let ended = run_with_input(&args, "\"from input\"\n");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "\"from input\"\n"), "{}", ended.stderr);
    let args = ["--server", &server.address, "request", "echo", "-", "--raw"];
    let ended = run_with_input(&args, " \t[1, 2]\r\n");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "[1, 2]"), "{}", ended.stderr);
    let ended = server.run(&["request", "echo", "-7", "--raw"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "-7"));
}

/// The environment says where the server is, and a flag is stronger.
#[test]
fn server_by_environment() {
    let server = Server::start();
    let _handler = server.handle(&["echo", "--echo"]);
    for (variable, flags, code) in [
        (server.address.as_str(), &[][..], Some(0)),
        ("127.0.0.1:1", &[][..], Some(69)),
        ("127.0.0.1:1", &["--server", &server.address][..], Some(0)),
    ] {
        let mut command = ringpost(&["request", "echo", "1"]);
        command.args(flags).env("RINGPOST_SERVER", variable);
        assert_eq!(Process::start(command).wait().code, code);
    }
}

/// An address that is none is told in words, and an empty variable is none at all.
#[test]
fn addresses() {
    let ended = run(&["request", "echo", "1", "--server", "127.0.0.1:99999"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("`127.0.0.1:99999` is not an address"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("malformed"), "{}", ended.stderr);
    let mut command = ringpost(&["request", "echo", "1"]);
    command.env("RINGPOST_SERVER", "127.0.0.1:99999");
    let ended = Process::start(command).wait();
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("environment variable RINGPOST_SERVER"), "{}", ended.stderr);
    let mut command = ringpost(&["request", "echo", "{"]);
    command.env("RINGPOST_SERVER", "");
    assert_eq!(Process::start(command).wait().code, Some(65));
}

/// Each way to fail has its exit code, words on standard error, and nothing on standard output.
#[test]
fn exit_codes() {
    let server = Server::start();
    let _failing = server.handle(&["fail", "--", "sh", "-c", "echo no luck >&2; exit 7"]);
    let _slow = server.handle(&["slow", "--echo", "--delay", "1h"]);
    for (args, code, words) in [
        (&["request", "nobody", "{}"][..], 3, "noHandler"),
        (&["request", "nobody", "{}", "--broadcast"], 3, "noHandler"),
        (&["send", "nobody", "{}"], 3, "noHandler"),
        (&["request", "fail", "{}"], 1, "no luck"),
        (&["request", "fail", "{}"], 1, "(7)"),
        (&["request", "slow", "{}", "--timeout", "50ms"], 4, "timeout"),
        (&["request", "slow", "{"], 65, "JSON"),
        (&["request", "slow", "{}", "--options", "nope"], 65, "JSON"),
        (&["request", "slow", "{}", "--options", "[1]"], 65, "must be a JSON object"),
        (&["request", "slow"], 2, "Usage"),
        (&["request", "slow", "{}", "--timeout", "soon"], 2, "soon"),
        (&["request", "", "{}"], 2, "at least one byte"),
        (&["no-such-command"], 2, "no-such-command"),
    ] {
        let ended = server.run(args);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(words), "{args:?}: {}", ended.stderr);
    }
}

/// Without a server: 69 and what to do. Bad data is told even then.
#[test]
fn without_a_server() {
    for args in [&["request", "a", "{}"][..], &["send", "a", "{}"], &["receivers"], &["stats"], &["bench"]] {
        let ended = run(&[&["--server", "127.0.0.1:1"], args].concat());
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(69), ""), "{args:?}");
        assert!(ended.stderr.contains("ringpost serve"), "{}", ended.stderr);
    }
    let ended = run(&["--server", "127.0.0.1:1", "request", "a", "{} {}"]);
    assert_eq!(ended.code, Some(65), "{}", ended.stderr);
}

/// Somebody who listens and says nothing is given up.
#[test]
fn silent_server() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    for broadcast in [&[][..], &["--broadcast"]] {
        let args = ["--server", &address, "--connect-timeout", "50ms", "request", "a", "1"];
        let ended = run(&[&args[..], broadcast].concat());
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(69), ""));
        assert!(ended.stderr.contains(&format!("no welcome from {address}")), "{}", ended.stderr);
    }
}

/// A broadcast prints a line for each leg, and ends with 0 only if all replied.
#[test]
fn broadcast() {
    let server = Server::start();
    let _one = server.handle(&["team", "--reply", "{\"one\":\n1}"]);
    let _two = server.handle(&["team", "--echo"]);
    let ended = server.run(&["request", "team", "2", "--broadcast"]);
    let mut lines: Vec<_> = ended.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["{\"leg\":0,\"data\":{\"one\": 1}}", "{\"leg\":1,\"data\":2}"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));

    let _three = server.handle(&["team", "--", "sh", "-c", "echo broken >&2; exit 9"]);
    let ended = server.run(&["request", "team", "2", "--broadcast"]);
    let lines: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    let failed = lines.iter().find(|line| line["leg"] == 2).unwrap();
    assert_eq!((&failed["error"], &failed["code"]), (&"broken".into(), &"remote".into()));
    assert_eq!(failed["handlerCode"], "9");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("1 of 3"), "{}", ended.stderr);
}

/// The legs that are there are printed before the last one ends.
#[test]
fn broadcast_prints_as_it_comes() {
    let server = Server::start();
    let _quick = server.handle(&["team", "--echo"]);
    let slow = server.handle(&["team", "--echo", "--delay", "1h"]);
    let request = server.spawn(&["request", "team", "1", "--broadcast", "--timeout", "60s"]);
    request.stdout_line("{\"leg\":0,\"data\":1}");
    slow.signal(Signal::KILL);
    request.stdout_line("\"code\":\"handlerLost\"");
    assert_eq!(request.wait().code, Some(3));
}

/// Headers and options reach a command, and so does what it needs to know of the request.
#[test]
fn headers_and_options() {
    let server = Server::start();
    let script = "printf '[\"%s\",\"%s\",\"%s\",%s,%s,\"%s\"]' $RINGPOST_ACTION $RINGPOST_ATTEMPT \
                  $RINGPOST_HEADER_TRACE_ID $RINGPOST_HEADERS $RINGPOST_OPTIONS $RINGPOST_SERVER; \
                  [ $RINGPOST_TIME_LEFT_MS -le 20000 ] && [ $RINGPOST_DEADLINE_MS -gt 0 ] && [ -n $RINGPOST_REQUEST_ID ]";
    let _handler = server.handle(&["env", "--", "sh", "-c", script]);
    let ended = server.run(&[
        "request",
        "env",
        "null",
        "--header",
        "trace-id=x=1",
        "--header",
        "b=2",
        "--options",
        "{\"c\":3}",
        "--timeout",
        "20s",
    ]);
    let expected = format!(
        "[\"env\",\"1\",\"x=1\",{{\"b\":\"2\",\"trace-id\":\"x=1\"}},{{\"c\":3}},\"{}\"]\n",
        server.address
    );
    assert_eq!((ended.code, ended.stdout), (Some(0), expected), "{}", ended.stderr);
}

/// A send prints nothing, and the handler gets it.
#[test]
fn send() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("got");
    let server = Server::start();
    let _handler =
        server.handle(&["mail", "--", "sh", "-c", &format!("cat > {0}; echo >> {0}", path.display())]);
    let args = ["--server", &server.address, "send", "mail", "-"];
    let ended = run_with_input(&args, "{\"to\":\"you\"}\n");
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "", ""));
    assert_eq!(line_of_file(&path), "{\"to\":\"you\"}");
}

/// An interrupted requester cancels its request, and the command with all that it started ends.
#[test]
fn interrupted_request_cancels() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    for (name, signal, more, code) in [
        ("int", Signal::INT, None, 130),
        ("term", Signal::TERM, None, 143),
        ("broadcast", Signal::INT, Some("--broadcast"), 130),
    ] {
        let path = folder.path().join(name);
        let script = format!("sleep 1000 & echo $$ $! > {}; wait", path.display());
        let _handler = server.handle(&[name, "--", "sh", "-c", &script]);
        let mut args = vec!["request", name, "null", "--timeout", "1h"];
        args.extend(more);
        let request = server.spawn(&args);
        let ids = line_of_file(&path);
        request.signal(signal);
        let ended = request.wait();
        assert_eq!(
            (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
            (Some(code), "", ""),
            "{name}"
        );
        until("the command's processes are gone", || !ids.split(' ').any(runs));
    }
}

/// A requester that is killed cancels its request too.
#[test]
fn killed_request_cancels() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pids");
    let server = Server::start();
    let script = format!("sleep 1000 & echo $$ $! > {}; wait", path.display());
    let handler = server.handle(&["long", "--", "sh", "-c", &script]);
    let request = server.spawn(&["request", "long", "null", "--timeout", "60s"]);
    let ids = line_of_file(&path);
    request.signal(Signal::KILL);
    assert_eq!(request.wait().code, None);
    until("the command's processes are gone", || !ids.split(' ').any(runs));
    handler.signal(Signal::TERM);
    assert_eq!(handler.wait().code, Some(0));
}
