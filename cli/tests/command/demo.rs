//! `ringpost demo`: it goes well to its end, and leaves nothing behind when it is interrupted.

use std::path::Path;

use rustix::process::Signal;

use crate::harness::{Process, ringpost, runs, until};

/// Every step is performed, and what was started is gone.
#[test]
fn performs() {
    let demo = Process::start(ringpost(&["demo"]));
    let line = demo.stdout_line("listening on ");
    let server = line.trim_end().rsplit(' ').next().unwrap().to_owned();
    assert!(runs(&server));
    let ended = demo.wait();
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stdout, ended.stderr);
    let (_, folder) = ended.stdout.split_once("--data-dir ").unwrap();
    let folder = Path::new(folder.lines().next().unwrap());
    assert!(folder.is_absolute() && !folder.exists(), "{} is left behind", folder.display());
    for part in [
        "{\"value\":2} → {\"value\":3}",
        "| nc 127.0.0.1",
        "\"data\":{\"value\":3}",
        "anna 100, bert 100, cleo 100",
        "leg 2",
        "not today",
        "handlerLost",
        "attempt 2",
        "1000 of 1000 calls have got their own replies",
        "requests answered per second, 0 errors",
    ] {
        assert!(ended.stdout.contains(part), "no {part:?} in:\n{}", ended.stdout);
    }
    assert_eq!(ended.stderr, "");
    assert!(!runs(&server));
}

/// Interrupted, or even killed, it takes everything with it.
#[test]
fn leaves_nothing_behind() {
    for (signal, code) in [(Signal::INT, Some(130)), (Signal::TERM, Some(143)), (Signal::KILL, None)] {
        let demo = Process::start(ringpost(&["demo"]));
        let line = demo.stdout_line("listening on ");
        let server = line.trim_end().rsplit(' ').next().unwrap().to_owned();
        let line = demo.stdout_line("kill -9 ");
        let handler = line.trim_end().rsplit(' ').next().unwrap().to_owned();
        demo.signal(signal);
        assert_eq!(demo.wait().code, code);
        until("server and handler are gone", || !runs(&server) && !runs(&handler));
    }
}
