//! Real directories: names, replacing a file as a whole, and locks between processes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use ringpost_io::{
    blocking,
    directory::Directory,
    faults::{Fault, Faults},
    file::Open,
    file_error::{FileError, FileOperation, LockError},
};
use rustix::io::Errno;
use tempfile::tempdir;

use common::on_a_ring;

fn names(directory: &Directory) -> Vec<String> {
    directory.list().unwrap().into_iter().map(|name| name.into_string().unwrap()).collect()
}

/// Files are created, listed in order, renamed and removed by their names, and keep what is in them.
#[test]
fn keeps_names() {
    let folder = tempdir().unwrap();
    on_a_ring(folder.path(), async {
        let directory = Directory::open(folder.path()).unwrap();
        assert_eq!(directory.path(), folder.path());
        assert!(names(&directory).is_empty());
        for name in ["b", "c", "a"] {
            let file = directory.open_file(name, Open::CreateNew).await.unwrap();
            assert_eq!(file.path(), folder.path().join(name));
            file.write_all_at(name.as_bytes().to_vec(), 0).await.0.unwrap();
        }
        fs::create_dir(folder.path().join("folder")).unwrap();
        assert_eq!(names(&directory), ["a", "b", "c", "folder"]);
        directory.rename("a", "d").await.unwrap();
        directory.rename("b", "c").await.unwrap();
        directory.sync().await.unwrap();
        assert_eq!(names(&directory), ["c", "d", "folder"]);
        assert_eq!(fs::read(folder.path().join("c")).unwrap(), b"b");
        assert_eq!(fs::read(folder.path().join("d")).unwrap(), b"a");
        directory.remove("c").await.unwrap();
        assert_eq!(names(&directory), ["d", "folder"]);

        let missing = directory.remove("c").await.unwrap_err();
        assert!(missing.is_missing() && missing.operation == FileOperation::Remove);
        assert_eq!(missing.path, folder.path().join("c"));
        assert!(directory.rename("c", "x").await.unwrap_err().is_missing());
        assert!(directory.open_file("c", Open::Read).await.unwrap_err().is_missing());
        assert!(directory.open_file("d", Open::CreateNew).await.is_err());
    });
    let directory = blocking::Directory::open(folder.path()).unwrap();
    directory.rename("d", "e").unwrap();
    directory.sync().unwrap();
    assert_eq!(directory.list().unwrap(), ["e", "folder"]);
    assert_eq!(directory.list().unwrap(), ["e", "folder"], "a second list begins at the start");
    directory.remove("e").unwrap();
    assert!(directory.remove("e").unwrap_err().is_missing());
}

/// A path where a name belongs leads nowhere, with or without a ring.
#[test]
fn paths_are_no_names() {
    let folder = tempdir().unwrap();
    fs::create_dir(folder.path().join("inner")).unwrap();
    fs::write(folder.path().join("outside"), b"x").unwrap();
    let refused = |result: Result<(), FileError>| {
        assert_eq!(result.unwrap_err().source.kind(), ErrorKind::InvalidInput);
    };
    on_a_ring(folder.path(), async {
        let waits = blocking::Directory::open(folder.path().join("inner")).unwrap();
        let directory = Directory::open(folder.path().join("inner")).unwrap();
        for path in ["../outside", "..", ".", "", "a\0"] {
            refused(directory.remove(path).await);
            refused(directory.rename(path, "b").await);
            refused(directory.rename("b", path).await);
            refused(directory.open_file(path, Open::Write).await.map(|_| ()));
            refused(waits.remove(path));
            refused(waits.rename(path, "b"));
            refused(waits.rename("b", path));
            refused(waits.open_file(path, Open::Write).map(|_| ()));
        }
    });
    assert!(folder.path().join("outside").exists());
}

/// A directory is created with those above it, for its owner only, each made stable in the one above; one that is there is
/// opened as it is, and a file is none.
#[test]
fn creates_what_is_missing() {
    let folder = tempdir().unwrap();
    let faults = Faults::under(folder.path());
    faults.record();
    let path = folder.path().join("a/b");
    Directory::create(&path).unwrap();
    let made: Vec<_> =
        faults.calls().into_iter().filter(|(operation, _)| *operation != FileOperation::Open).collect();
    assert_eq!(
        made,
        [
            (FileOperation::Create, "a".to_owned()),
            (FileOperation::SyncAll, ".".to_owned()),
            (FileOperation::Create, "a/b".to_owned()),
            (FileOperation::SyncAll, "a".to_owned()),
        ]
    );
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    fs::write(path.join("file"), b"x").unwrap();
    assert_eq!(Directory::create(&path).unwrap().list().unwrap(), ["file"]);
    for none in [Directory::open(path.join("file")), Directory::create(path.join("file"))] {
        assert_eq!(none.unwrap_err().source.kind(), ErrorKind::NotADirectory);
    }
    assert!(Directory::open(path.join("missing")).unwrap_err().is_missing());
}

/// The steps that replace a file as a whole, in the one order that survives a crash at any of them.
fn steps() -> [(FileOperation, &'static str); 5] {
    [
        (FileOperation::Open, "manifest.new"),
        (FileOperation::Write, "manifest.new"),
        (FileOperation::SyncData, "manifest.new"),
        (FileOperation::Rename, "manifest.new"),
        (FileOperation::SyncAll, "."),
    ]
}

/// New contents are stable before they get the name, and the name is stable at the end.
#[test]
fn replaces_in_order() {
    let folder = tempdir().unwrap();
    let faults = Faults::under(folder.path());
    let expected = steps().map(|(operation, name)| (operation, name.to_owned()));
    on_a_ring(folder.path(), async {
        let directory = Directory::open(folder.path()).unwrap();
        // What a crash has left behind is in nobody's way.
        fs::write(folder.path().join("manifest.new"), b"longer than what follows").unwrap();
        faults.record();
        directory.replace("manifest", b"first".to_vec()).await.unwrap();
        assert_eq!(faults.calls(), expected);
        assert_eq!(names(&directory), ["manifest"]);
    });
    assert_eq!(fs::read(folder.path().join("manifest")).unwrap(), b"first");
    let directory = blocking::Directory::open(folder.path()).unwrap();
    faults.record();
    directory.replace("manifest", b"second").unwrap();
    assert_eq!(faults.calls(), expected);
    assert_eq!(fs::read(folder.path().join("manifest")).unwrap(), b"second");
    assert_eq!(directory.list().unwrap(), ["manifest"]);
}

/// Whichever step fails, the error is its, the file is whole, and nothing is left behind; and the next try succeeds.
#[test]
fn a_failed_step_keeps_the_file_whole() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("manifest");
    let faults = Faults::under(folder.path());
    on_a_ring(folder.path(), async {
        let directory = Directory::open(folder.path()).unwrap();
        let waits = blocking::Directory::open(folder.path()).unwrap();
        for (operation, _) in steps() {
            for on_the_ring in [true, false] {
                fs::write(&path, b"old").unwrap();
                faults.inject(Fault::fails(operation, Errno::IO.raw_os_error()));
                let error = if on_the_ring {
                    directory.replace("manifest", b"new".to_vec()).await.unwrap_err()
                } else {
                    waits.replace("manifest", b"new").unwrap_err()
                };
                assert_eq!(error.operation, operation);
                let expected: &[u8] = if operation == FileOperation::SyncAll { b"new" } else { b"old" };
                assert_eq!(fs::read(&path).unwrap(), expected, "{operation:?}");
                assert_eq!(names(&directory), ["manifest"], "{operation:?}");
            }
        }
        directory.replace("manifest", b"new".to_vec()).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    });
}

/// The room on the file system is what statvfs(2) says of it.
#[test]
fn knows_its_space() {
    let folder = tempdir().unwrap();
    let space = Directory::open(folder.path()).unwrap().space().unwrap();
    let said = rustix::fs::statvfs(folder.path()).unwrap();
    assert_eq!(space.total_bytes, said.f_blocks * said.f_frsize);
    assert!(space.available_bytes <= space.total_bytes);
}

const LOCK_FOLDER: &str = "RINGPOST_TEST_LOCK_FOLDER";

/// This test again, in a process of its own, which holds the lock until it is killed or its standard input ends.
fn holder(folder: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "one_process_has_the_lock", "--nocapture"])
        .env(LOCK_FOLDER, folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let told = output.by_ref().lines().map(Result::unwrap).any(|line| line.ends_with("locked"));
    assert!(told, "the other process did not get the lock");
    (child, output)
}

/// One process has a lock; the next one learns who, and gets it when the first has ended, killed or not.
#[test]
fn one_process_has_the_lock() {
    if let Ok(folder) = std::env::var(LOCK_FOLDER) {
        let _lock = blocking::Directory::open(folder).unwrap().lock("lock").unwrap();
        println!("locked");
        std::io::stdin().lines().for_each(|line| drop(line.unwrap()));
        return;
    }
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("lock"), "12345678901234567890: longer than any number of a process")
        .unwrap();
    let directory = Directory::open(folder.path()).unwrap();
    for killed in [true, false] {
        // What it still has to say must find a reader.
        let (mut other, _output) = holder(folder.path());
        match directory.lock("lock").unwrap_err() {
            LockError::Held { path, holder } => {
                assert_eq!((path, holder), (folder.path().join("lock"), Some(other.id())));
            }
            error => panic!("{error}"),
        }
        if killed {
            other.kill().unwrap();
        } else {
            drop(other.stdin.take());
        }
        assert_eq!(other.wait().unwrap().success(), !killed);
        let lock = directory.lock("lock").unwrap();
        assert_eq!(
            fs::read_to_string(folder.path().join("lock")).unwrap(),
            format!("{}\n", std::process::id())
        );
        assert!(matches!(directory.lock("lock"), Err(LockError::Held { .. })), "also in one process");
        assert!(directory.lock("another").is_ok());
        drop(lock);
        drop(directory.lock("lock").unwrap());
    }
}

/// What is in a lock file may be anything, and the disk may be full: the lock holds, and only the holder is not known.
#[test]
fn a_lock_needs_no_readable_holder() {
    let folder = tempdir().unwrap();
    let directory = Directory::open(folder.path()).unwrap();
    let faults = Faults::under(folder.path());
    faults.inject(Fault::fails(FileOperation::Write, Errno::NOSPC.raw_os_error()).of("lock"));
    let _lock = directory.lock("lock").unwrap();
    for contents in ["", "who?", "12x", "a very long text that is no number at all"] {
        fs::write(folder.path().join("lock"), contents).unwrap();
        assert!(matches!(directory.lock("lock"), Err(LockError::Held { holder: None, .. })), "{contents}");
    }
    faults.inject(Fault::fails(FileOperation::Lock, Errno::NOLCK.raw_os_error()));
    match directory.lock("lock").unwrap_err() {
        LockError::File(error) => assert_eq!(error.operation, FileOperation::Lock),
        error => panic!("{error}"),
    }
}
