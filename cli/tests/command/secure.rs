//! A secure key on both sides: made, used, changed, and shown to nobody.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use rustix::process::Signal;

use crate::harness::{Process, Server, ringpost, run, until};

fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes a key in a new file, and gives its text.
fn keygen(path: &Path) -> String {
    let ended = run(&["keygen", "--out", path_text(path)]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{}", ended.stderr);
    fs::read_to_string(path).unwrap().trim_end().to_owned()
}

/// A new key is for its owner's eyes, no two are the same, and none is written over another one.
#[test]
fn keys_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let key = keygen(&file);
    assert!(key.starts_with("rpk1_") && key.len() == 69, "{} characters", key.len());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let again = run(&["keygen", "--out", path_text(&file)]);
    assert!(again.code == Some(2) && again.stderr.contains("not overwritten"), "{}", again.stderr);
    assert_eq!(fs::read_to_string(&file).unwrap().trim_end(), key);
    let printed = run(&["keygen"]);
    assert!(printed.stdout.starts_with("rpk1_") && printed.stdout.trim_end() != key);
    assert!(printed.stderr.contains("id is") && !printed.stderr.contains("rpk1_"), "{}", printed.stderr);
}

/// The first request of the README, with one option more on each side: by file and by environment; without it, or with another
/// key, it ends with 77 and says what to do. No key is in any log or in the list of processes.
#[test]
fn one_option_on_each_side() {
    let folder = tempfile::tempdir().unwrap();
    let (file, other) = (folder.path().join("key"), folder.path().join("other"));
    let (key, _) = (keygen(&file), keygen(&other));
    let server = Server::with(&["--log", "debug", "--secure-key-file", path_text(&file)]);
    let handler = server.handle(&["shout", "--secure-key-file", path_text(&file), "--", "tr", "a-z", "A-Z"]);
    let asked = server.run(&["request", "shout", "\"you\"", "--secure-key-file", path_text(&file)]);
    assert_eq!((asked.code, asked.stdout.as_str()), (Some(0), "\"YOU\"\n"), "{}", asked.stderr);
    let mut command = server.command(&["request", "shout", "\"me\""]);
    command.env("RINGPOST_SECURE_KEY", &key);
    let by_environment = Process::start(command).wait();
    assert_eq!(by_environment.stdout, "\"ME\"\n", "{}", by_environment.stderr);
    for (args, says) in [
        (&["request", "shout", "1"][..], "--secure-key-file"),
        (&["request", "shout", "1", "--secure-key-file", path_text(&other)], "same on both sides"),
    ] {
        let refused = server.run(args);
        assert_eq!(refused.code, Some(77), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("unauthorized") && refused.stderr.contains(says),
            "{}",
            refused.stderr
        );
    }
    let doctor = server.run(&["doctor", "--secure-key-file", path_text(&file)]);
    assert!(doctor.stdout.contains("with the same secure key"), "{}", doctor.stdout);
    for process in [&server.process, &handler] {
        let line = fs::read(format!("/proc/{}/cmdline", process.id())).unwrap();
        assert!(!String::from_utf8_lossy(&line).contains(&key));
    }
    server.process.signal(Signal::TERM);
    let log = server.process.wait().stderr;
    assert!(log.contains("who connects needs a secure key") && !log.contains(&key[5..]), "{log}");
}

/// A key is changed without a restart: SIGHUP lets the new one in and the old one out.
#[test]
fn a_key_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    let (file, new) = (folder.path().join("key"), folder.path().join("new"));
    let old_key = keygen(&file);
    let new_key = keygen(&new);
    let server = Server::with(&["--secure-key-file", path_text(&file)]);
    let stats = |key: &str| {
        let mut command = server.command(&["stats"]);
        command.env("RINGPOST_SECURE_KEY", key);
        Process::start(command).wait().code
    };
    assert_eq!((stats(&old_key), stats(&new_key)), (Some(0), Some(77)));
    fs::copy(&new, &file).unwrap();
    server.process.signal(Signal::HUP);
    until("the new key is good", || stats(&new_key) == Some(0));
    assert_eq!(stats(&old_key), Some(77));
    // One that cannot be read leaves everything as it was.
    fs::remove_file(&file).unwrap();
    server.process.signal(Signal::HUP);
    server.process.stderr_line("stay as they were");
    assert_eq!(stats(&new_key), Some(0));
}

/// SIGHUP takes over which key files the configuration's file names by then: a second one is let in beside the first, and the
/// first out; a file that is not understood, and one that names no key any more, change nothing.
#[test]
fn key_files_are_added_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let (one_key, two_key) = (keygen(&one), keygen(&two));
    let config = folder.path().join("ringpost.toml");
    let name = |files: &[&Path]| {
        let tables: String = files.iter().map(|file| format!("[[key]]\nfile = {file:?}\n")).collect();
        fs::write(&config, tables).unwrap();
    };
    name(&[&one]);
    let server = Server::with(&["--config", path_text(&config)]);
    let stats = |key: &str| {
        let mut command = server.command(&["stats"]);
        command.env("RINGPOST_SECURE_KEY", key);
        Process::start(command).wait().code
    };
    assert_eq!((stats(&one_key), stats(&two_key)), (Some(0), Some(77)));
    name(&[&one, &two]);
    server.process.signal(Signal::HUP);
    until("the second key is good", || stats(&two_key) == Some(0));
    assert_eq!(stats(&one_key), Some(0));
    name(&[&two]);
    server.process.signal(Signal::HUP);
    until("the first key is not", || stats(&one_key) == Some(77));
    for (text, says) in [("key = 7", "is not understood"), ("", "restart")] {
        fs::write(&config, text).unwrap();
        server.process.signal(Signal::HUP);
        let line = server.process.stderr_line("stay as they were");
        assert!(line.contains(says), "{line}");
    }
    assert_eq!((stats(&one_key), stats(&two_key)), (Some(77), Some(0)));
}

/// A server that is told to leave does, also while a key file is read that does not come to its end.
#[test]
fn leaves_while_keys_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    keygen(&file);
    let server = Server::with(&["--secure-key-file", path_text(&file)]);
    fs::remove_file(&file).unwrap();
    // A pipe that nobody writes.
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    server.process.signal(Signal::HUP);
    server.process.stderr_line("SIGHUP");
    server.process.signal(Signal::TERM);
    assert_eq!(server.process.wait().code, Some(0));
}

/// What is wrong with a key is said before anything else is done: 78 of a server, 65 of a client.
#[test]
fn bad_keys() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let serve = run(&["serve", "--listen", "127.0.0.1:0", "--secure-key-file", path_text(&file)]);
    assert!(serve.code == Some(78) && serve.stderr.contains("keygen"), "{}", serve.stderr);
    let ask = run(&["--server", "127.0.0.1:1", "request", "a", "1", "--secure-key-file", path_text(&file)]);
    let remedy = ask.stderr.contains("the key that the server has") && !ask.stderr.contains("keygen");
    assert!(ask.code == Some(65) && remedy, "{}", ask.stderr);
    fs::write(&file, "rpk1_12").unwrap();
    let serve = run(&["serve", "--listen", "127.0.0.1:0", "--secure-key-file", path_text(&file)]);
    assert!(serve.code == Some(78) && serve.stderr.contains("64 hexadecimal"), "{}", serve.stderr);
    let ask = run(&["--server", "127.0.0.1:1", "request", "a", "1", "--secure-key-file", path_text(&file)]);
    assert!(ask.code == Some(65) && ask.stderr.contains(path_text(&file)), "{}", ask.stderr);
    let mut command = ringpost(&["serve", "--listen", "127.0.0.1:0"]);
    command.env("RINGPOST_SECURE_KEY", "rpk1_12");
    let serve = Process::start(command).wait();
    assert!(serve.code == Some(78) && serve.stderr.contains("RINGPOST_SECURE_KEY"), "{}", serve.stderr);
    let log = run(&["log", "verify", ".", "--secure-key-file", path_text(&file)]);
    assert!(log.code == Some(2) && log.stderr.contains("reads files"), "{}", log.stderr);
    let key = keygen(&folder.path().join("good"));
    fs::write(&file, format!("{key}\n")).unwrap();
    let mut command = ringpost(&["serve", "--listen", "127.0.0.1:0", "--secure-key-file", path_text(&file)]);
    command.env("RINGPOST_SECURE_KEY", &key);
    let serve = Process::start(command).wait();
    let both = serve.stderr.contains("RINGPOST_SECURE_KEY") && serve.stderr.contains(path_text(&file));
    assert!(serve.code == Some(78) && both, "{}", serve.stderr);
    fs::write(&file, format!("{key}\n{key}\n")).unwrap();
    let serve = run(&["serve", "--listen", "127.0.0.1:0", "--secure-key-file", path_text(&file)]);
    assert!(serve.code == Some(78) && serve.stderr.contains("one line"), "{}", serve.stderr);
}
