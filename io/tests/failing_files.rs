//! Files that fail, come short, are full or slow: the kernel's own failures where they can be had, injected ones elsewhere.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod common;

use std::{
    cell::Cell,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
};

use ringpost_io::{
    blocking,
    faults::{Fault, Faults},
    file::{File, Open},
    file_error::{FileError, FileOperation},
    ring,
};
use rustix::io::Errno;
use tempfile::tempdir;

use common::{on_a_ring, pattern, read};

/// A transfer that comes short, or is interrupted, is gone on with until all is there.
#[test]
fn goes_on_after_a_part() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("file");
    let bytes = pattern(10_000);
    let faults = Faults::under(folder.path());
    for operation in [FileOperation::Write, FileOperation::Read] {
        faults.inject(Fault::fails(operation, Errno::INTR.raw_os_error()).nth(2));
        faults.inject(Fault::short(operation, 999).lasting());
    }
    on_a_ring(folder.path(), async {
        let file = File::open(&path, Open::CreateNew).await.unwrap();
        file.write_all_at(bytes.clone(), 5).await.0.unwrap();
        assert_eq!(read(&file, bytes.len(), 5).await, bytes);
        assert_eq!(faults.fired(), 2 * (1 + 11));
    });
    assert_eq!(fs::read(&path).unwrap()[5..], bytes);
    faults.inject(Fault::fails(FileOperation::Write, Errno::INTR.raw_os_error()));
    let file = blocking::File::open(&path, Open::Write).unwrap();
    let mut buffer = vec![0; bytes.len()];
    file.read_exact_at(&mut buffer, 5).unwrap();
    assert_eq!(buffer, bytes);
    file.write_all_at(&bytes, 1_000_000).unwrap();
    assert_eq!(fs::read(&path).unwrap()[1_000_000..], bytes);
}

/// A write that ends in the middle names the first byte that is not written, and what is before is in the file.
#[test]
fn a_torn_write_says_where() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("file");
    let bytes = pattern(1000);
    let faults = Faults::under(folder.path());
    let tear = || {
        faults.inject(Fault::short(FileOperation::Write, 100));
        faults.inject(Fault::fails(FileOperation::Write, Errno::IO.raw_os_error()));
    };
    let check = |result: Result<(), FileError>| {
        let error = result.unwrap_err();
        assert_eq!((error.operation, error.offset), (FileOperation::Write, Some(4196)));
        assert_eq!(Errno::from_io_error(&error.source), Some(Errno::IO));
        assert!(!error.is_full());
        assert_eq!(fs::read(&path).unwrap()[4096..], bytes[..100]);
    };
    on_a_ring(folder.path(), async {
        let file = File::open(&path, Open::CreateNew).await.unwrap();
        tear();
        let (result, back) = file.write_all_at(bytes.clone(), 4096).await;
        assert_eq!(back, bytes, "the buffer comes back");
        check(result);
    });
    let file = blocking::File::open(&path, Open::Replace).unwrap();
    tear();
    check(file.write_all_at(&bytes, 4096));
    faults.inject(Fault::short(FileOperation::Write, 0));
    assert_eq!(file.write_all_at(&bytes, 0).unwrap_err().source.kind(), ErrorKind::WriteZero);
}

/// A device that is full says so, through the ring and without it.
#[test]
fn a_full_device_is_full() {
    on_a_ring(Path::new("/dev/full"), async {
        let file = File::open("/dev/full", Open::Write).await.unwrap();
        let error = file.write_all_at(pattern(4096), 0).await.0.unwrap_err();
        assert!(error.is_full(), "{error}");
        assert_eq!((error.path.as_path(), error.offset), (Path::new("/dev/full"), Some(0)));
    });
    let file = blocking::File::open("/dev/full", Open::Write).unwrap();
    assert!(file.write_all_at(b"x", 0).unwrap_err().is_full());
}

/// A disk that is full refuses writes and reservations, and takes them again when there is room.
#[test]
fn a_full_disk_can_get_room() {
    let folder = tempdir().unwrap();
    let faults = Faults::under(folder.path());
    on_a_ring(folder.path(), async {
        let file = File::open(folder.path().join("1.segment"), Open::CreateNew).await.unwrap();
        for operation in [FileOperation::Write, FileOperation::Preallocate] {
            faults.inject(Fault::fails(operation, Errno::NOSPC.raw_os_error()).of(".segment").lasting());
        }
        for _ in 0..3 {
            assert!(file.write_all_at(b"x".to_vec(), 0).await.0.unwrap_err().is_full());
            assert!(file.preallocate(0, 4096).await.unwrap_err().is_full());
            assert!(file.zero(0, 4096).await.unwrap_err().is_full());
        }
        assert_eq!(file.length().unwrap(), 0);
        faults.clear();
        file.preallocate(0, 4096).await.unwrap();
        file.write_all_at(b"x".to_vec(), 0).await.0.unwrap();
        assert_eq!(read(&file, 2, 0).await, b"x\0");
    });
}

/// The kernel's own short write: at the limit of a file's size the first part is written, and the error names the limit.
#[test]
fn the_limit_of_a_files_size_is_an_error() {
    const ROLE: &str = "RINGPOST_TEST_FILE_SIZE_LIMIT";
    const LIMIT: u64 = 10_000;
    if let Some(folder) = std::env::var_os(ROLE).map(PathBuf::from) {
        let maximum = rustix::process::getrlimit(rustix::process::Resource::Fsize).maximum;
        let limit = rustix::process::Rlimit { current: Some(LIMIT), maximum };
        rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
        on_a_ring(&folder, async {
            let file = File::open(folder.join("file"), Open::CreateNew).await.unwrap();
            let error = file.write_all_at(pattern(15_000), 0).await.0.unwrap_err();
            assert_eq!(Errno::from_io_error(&error.source), Some(Errno::FBIG));
            assert_eq!(error.offset, Some(LIMIT));
            assert!(!error.is_full(), "room on the disk would not help");
        });
        return;
    }
    let folder = tempdir().unwrap();
    // The limit comes with a signal that would end the process. Ignored signals stay so in the program that follows.
    let child = Command::new("/bin/sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "the_limit_of_a_files_size_is_an_error"])
        .env(ROLE, folder.path())
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    assert_eq!(fs::read(folder.path().join("file")).unwrap(), pattern(LIMIT as usize));
}

/// A file system that cannot reserve gets zeros behind the end, and what is before it stays.
#[test]
fn zeros_stand_in_for_a_reservation() {
    let folder = tempdir().unwrap();
    let faults = Faults::under(folder.path());
    let refused = || faults.inject(Fault::fails(FileOperation::Preallocate, Errno::OPNOTSUPP.raw_os_error()));
    let expected: Vec<u8> = pattern(1000).into_iter().chain(vec![0; 600_000]).collect();
    on_a_ring(folder.path(), async {
        let path = folder.path().join("ring");
        let file = File::open(&path, Open::CreateNew).await.unwrap();
        file.write_all_at(pattern(1000), 0).await.0.unwrap();
        refused();
        file.preallocate(0, 601_000).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), expected);
        refused();
        file.preallocate(0, 500).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), expected, "there was nothing to do");
    });
    let path = folder.path().join("blocking");
    let file = blocking::File::open(&path, Open::CreateNew).unwrap();
    file.write_all_at(&pattern(1000), 0).unwrap();
    refused();
    file.preallocate(0, 601_000).unwrap();
    assert_eq!(fs::read(&path).unwrap(), expected);
    assert_eq!(faults.fired(), 3);
}

/// A sync that failed is not tried again by itself: one call, one error.
#[test]
fn a_failed_sync_is_final() {
    let folder = tempdir().unwrap();
    let faults = Faults::under(folder.path());
    on_a_ring(folder.path(), async {
        let file = File::open(folder.path().join("file"), Open::CreateNew).await.unwrap();
        faults.record();
        for (nth, errno) in [Errno::IO, Errno::INTR, Errno::NOSPC].into_iter().enumerate() {
            faults.inject(Fault::fails(FileOperation::SyncData, errno.raw_os_error()));
            let error = file.sync_data().await.unwrap_err();
            assert_eq!(Errno::from_io_error(&error.source), Some(errno));
            assert_eq!((error.operation, error.offset), (FileOperation::SyncData, None));
            assert_eq!(faults.calls(), vec![(FileOperation::SyncData, "file".to_owned()); nth + 1]);
        }
        faults.inject(Fault::fails(FileOperation::SyncAll, Errno::IO.raw_os_error()));
        assert_eq!(file.sync_all().await.unwrap_err().operation, FileOperation::SyncAll);
        file.sync_data().await.unwrap();
    });
}

/// A write that is synced is both, each with its own errors; after one of them the same is written anew, with success.
#[test]
fn a_synced_write_is_both() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("file");
    let faults = Faults::under(folder.path());
    on_a_ring(folder.path(), async {
        let file = File::open(&path, Open::CreateNew).await.unwrap();
        faults.record();
        let bytes = pattern(5000);
        file.write_all_synced_at(bytes.clone(), 3).await.0.unwrap();
        let calls: Vec<_> = faults.calls().into_iter().map(|(operation, _)| operation).collect();
        assert_eq!(calls, [FileOperation::Write, FileOperation::SyncData]);
        assert_eq!(read(&file, bytes.len(), 3).await, bytes);
        let newer = pattern(5001).split_off(1);
        for operation in [FileOperation::Write, FileOperation::SyncData] {
            faults.inject(Fault::fails(operation, Errno::NOSPC.raw_os_error()));
            let (written, back) = file.write_all_synced_at(newer.clone(), 3).await;
            let error = written.unwrap_err();
            assert!(error.is_full() && error.operation == operation && back == newer);
        }
        faults.inject(Fault::short(FileOperation::Write, 999).lasting());
        file.write_all_synced_at(newer.clone(), 3).await.0.unwrap();
        assert_eq!(read(&file, newer.len(), 3).await, newer);
    });
    assert_eq!(fs::read(&path).unwrap().len(), 5003);
}

/// A sync that takes its time holds up nobody but those who wait for it: with a ring its thread goes on, without one the
/// other threads do.
#[test]
fn a_slow_sync_holds_up_nobody_else() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("file");
    let faults = Faults::under(folder.path());
    faults.inject(Fault::held(FileOperation::SyncData));
    on_a_ring(folder.path(), async {
        let file = File::open(&path, Open::CreateNew).await.unwrap();
        let (syncer, synced) = (file.clone(), Rc::new(Cell::new(false)));
        let done = synced.clone();
        let sync = ring::spawn(async move {
            syncer.sync_data().await.unwrap();
            done.set(true);
        });
        while faults.fired() == 0 {
            ring::give_way().await;
        }
        file.write_all_at(pattern(1000), 0).await.0.unwrap();
        file.sync_data().await.unwrap();
        assert!(!synced.get(), "it is still held, and the second one was not");
        faults.clear();
        sync.join().await.expect("the sync failed");
        assert!(synced.get());
    });
    faults.inject(Fault::held(FileOperation::SyncData));
    let file = blocking::File::open(&path, Open::Write).unwrap();
    std::thread::scope(|threads| {
        let sync = threads.spawn(|| file.sync_data());
        while faults.fired() == 1 {
            std::thread::yield_now();
        }
        file.write_all_at(b"meanwhile", 0).unwrap();
        assert!(!sync.is_finished());
        drop(faults);
        sync.join().unwrap().unwrap();
    });
}

/// Faults are for their folder, their files and their calls, and end when they are dropped.
#[test]
fn faults_keep_to_themselves() {
    let (mine, other) = (tempdir().unwrap(), tempdir().unwrap());
    let faults = Faults::under(mine.path());
    faults.inject(Fault::fails(FileOperation::Write, Errno::IO.raw_os_error()).of(".segment").nth(2));
    let open = |folder: &tempfile::TempDir, name| {
        blocking::File::open(folder.path().join(name), Open::CreateNew).unwrap()
    };
    let (segment, manifest) = (open(&mine, "1.segment"), open(&mine, "manifest"));
    let stranger = open(&other, "1.segment");
    let outcomes = [
        manifest.write_all_at(b"x", 0).is_ok(),
        stranger.write_all_at(b"x", 0).is_ok(),
        segment.write_all_at(b"x", 0).is_ok(),
        stranger.write_all_at(b"x", 0).is_ok(),
        segment.sync_data().is_ok(),
        segment.write_all_at(b"x", 0).is_ok(),
        segment.write_all_at(b"x", 0).is_ok(),
    ];
    assert_eq!(outcomes, [true, true, true, true, true, false, true]);
    assert_eq!(faults.fired(), 1);
    faults.inject(Fault::fails(FileOperation::Write, Errno::IO.raw_os_error()).lasting());
    assert!(segment.write_all_at(b"x", 0).is_err() && segment.write_all_at(b"x", 0).is_err());
    drop(faults);
    segment.write_all_at(b"x", 0).unwrap();
}
