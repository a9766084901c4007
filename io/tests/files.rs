//! Real files in a temporary folder, on a real ring and without one.

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
    future::Future,
    io::ErrorKind,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    pin::pin,
    rc::Rc,
    task::{Context, Waker},
};

use bytes::{Bytes, BytesMut};
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

/// What was written is read back, by the same file, by another one, and by one without a ring, and the length is right.
#[test]
fn reads_back_what_it_wrote() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("file");
    let bytes = pattern(3_000_000);
    on_a_ring(folder.path(), async {
        let file = File::open(&path, Open::CreateNew).await.unwrap();
        assert_eq!(file.length().unwrap(), 0);
        let (result, back) = file.write_all_at(bytes.clone(), 10).await;
        result.unwrap();
        assert_eq!(back, bytes, "the buffer comes back");
        file.write_all_at(Bytes::from_static(b"at the top"), 0).await.0.unwrap();
        file.sync_data().await.unwrap();
        file.sync_all().await.unwrap();
        assert_eq!(file.length().unwrap(), 3_000_010);
        assert_eq!(file.path(), path);

        let other = File::open(&path, Open::Read).await.unwrap();
        assert_eq!(read(&other, 10, 0).await, b"at the top");
        let (result, buffer) = other.read_exact_at(BytesMut::from(&b"before"[..]), 3_000_000, 10).await;
        result.unwrap();
        assert_eq!(buffer[..6], b"before"[..], "what is in the buffer stays");
        assert_eq!(buffer[6..], bytes[..]);
        file.close().await.unwrap();
    });
    let file = blocking::File::open(&path, Open::Write).unwrap();
    let mut buffer = vec![0; 3_000_000];
    file.read_exact_at(&mut buffer, 10).unwrap();
    assert_eq!(buffer, bytes);
    file.write_all_at(b"x", 3_000_010).unwrap();
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.length().unwrap(), 3_000_011);
}

/// Each way of opening does what it says: what is there, what is taken, what is emptied, who may read it.
#[test]
fn opens_as_it_was_asked() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("file");
    let kind = |result: Result<File, FileError>| {
        let error = result.unwrap_err();
        assert_eq!((&error.path, error.operation), (&path, FileOperation::Open));
        error.source.kind()
    };
    on_a_ring(folder.path(), async {
        for how in [Open::Read, Open::Write] {
            assert!(File::open(&path, how).await.unwrap_err().is_missing());
            assert!(blocking::File::open(&path, how).unwrap_err().is_missing());
        }
        let file = File::open(&path, Open::CreateNew).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0, "nobody else may read it");
        assert!(closes_on_exec(&path));
        file.write_all_at(b"something".to_vec(), 0).await.0.unwrap();
        assert_eq!(kind(File::open(&path, Open::CreateNew).await), ErrorKind::AlreadyExists);
        let reader = File::open(&path, Open::Read).await.unwrap();
        let refused = reader.write_all_at(b"x".to_vec(), 0).await.0.unwrap_err();
        assert_eq!(Errno::from_io_error(&refused.source), Some(Errno::BADF));
        File::open(&path, Open::Lock).await.unwrap();
        assert_eq!(file.length().unwrap(), 9, "it was opened as it is");
        File::open(&path, Open::Replace).await.unwrap();
        assert_eq!(file.length().unwrap(), 0, "it was emptied");
        let nul = File::open("a\0b", Open::Read).await.unwrap_err();
        assert_eq!(nul.source.kind(), ErrorKind::InvalidInput);
    });
}

/// Whether all descriptors of a file are closed in children.
fn closes_on_exec(path: &Path) -> bool {
    let mut seen = false;
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        if fs::read_link(entry.path()).is_ok_and(|target| target == path) {
            let info = fs::read_to_string(Path::new("/proc/self/fdinfo").join(entry.file_name())).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
            if flags & rustix::fs::OFlags::CLOEXEC.bits() == 0 {
                return false;
            }
            seen = true;
        }
    }
    seen
}

/// Without a ring a part can be read, too: as much as there is, and nothing at the end.
#[test]
fn reads_what_is_there() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, b"0123456789").unwrap();
    let faults = Faults::under(folder.path());
    let file = blocking::File::open(&path, Open::Read).unwrap();
    let mut buffer = [0; 8];
    assert_eq!(file.read_at(&mut buffer, 4).unwrap(), 6);
    assert_eq!(buffer[..6], b"456789"[..]);
    assert_eq!(file.read_at(&mut buffer, 10).unwrap(), 0);
    faults.inject(Fault::fails(FileOperation::Read, Errno::INTR.raw_os_error()));
    faults.inject(Fault::short(FileOperation::Read, 3));
    faults.inject(Fault::fails(FileOperation::Read, Errno::IO.raw_os_error()));
    assert_eq!(file.read_at(&mut buffer, 0).unwrap(), 3);
    assert_eq!(buffer[..3], b"012"[..]);
    assert_eq!(file.read_at(&mut buffer, 3).unwrap_err().offset, Some(3));
    assert_eq!(file.read_at(&mut buffer, u64::MAX).unwrap_err().source.kind(), ErrorKind::InvalidInput);
}

/// What was settled is on the disk and no longer in memory; what cannot be made stable is not forgotten.
#[test]
fn settles() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("file");
    let faults = Faults::under(folder.path());
    let file = blocking::File::open(&path, Open::CreateNew).unwrap();
    file.write_all_at(&pattern(100_000), 0).unwrap();
    faults.inject(Fault::fails(FileOperation::SyncData, Errno::IO.raw_os_error()));
    faults.record();
    assert_eq!(file.settle().unwrap_err().operation, FileOperation::SyncData);
    file.settle().unwrap();
    let calls: Vec<_> = faults.calls().into_iter().map(|(operation, _)| operation).collect();
    assert_eq!(calls, [FileOperation::SyncData, FileOperation::SyncData, FileOperation::Forget]);
    // A read that may not wait finds nothing. File systems in memory, and those that know no such reads, have no say.
    let mut byte = [0];
    let part = &mut [std::io::IoSliceMut::new(&mut byte)];
    let waits_not = rustix::io::ReadWriteFlags::NOWAIT;
    let read = rustix::io::preadv2(fs::File::open(&path).unwrap(), part, 0, waits_not);
    if on_a_disk(folder.path()) {
        assert_eq!(read, Err(Errno::AGAIN));
    }
    let mut buffer = vec![0; 100_000];
    file.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(buffer, pattern(100_000));
}

/// Whether a path is on a file system of which this is known: ext4 or xfs (statfs(2) has the numbers).
fn on_a_disk(path: &Path) -> bool {
    matches!(rustix::fs::statfs(path).unwrap().f_type, 0xef53 | 0x5846_5342)
}

/// A read over the end fails there, with what was before in the buffer.
#[test]
fn reading_over_the_end_fails() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, b"0123456789").unwrap();
    on_a_ring(folder.path(), async {
        let file = File::open(&path, Open::Read).await.unwrap();
        let (result, buffer) = file.read_exact_at(BytesMut::new(), 8, 4).await;
        let error = result.unwrap_err();
        assert_eq!((error.source.kind(), error.offset), (ErrorKind::UnexpectedEof, Some(10)));
        assert_eq!(buffer[..], b"456789"[..]);
        assert!(read(&file, 0, 100).await.is_empty(), "nothing is there everywhere");
    });
    let file = blocking::File::open(&path, Open::Read).unwrap();
    let error = file.read_exact_at(&mut [0; 8], 4).unwrap_err();
    assert_eq!((error.source.kind(), error.offset), (ErrorKind::UnexpectedEof, Some(10)));
}

/// The offset that the kernel takes for "where the file is now" is refused like all that no file reaches.
#[test]
fn impossible_offsets_are_refused() {
    let folder = tempdir().unwrap();
    on_a_ring(folder.path(), async {
        let file = File::open(folder.path().join("file"), Open::CreateNew).await.unwrap();
        for offset in [u64::MAX, i64::MAX as u64] {
            let error = file.write_all_at(b"x".to_vec(), offset).await.0.unwrap_err();
            assert_eq!((error.source.kind(), error.offset), (ErrorKind::InvalidInput, Some(offset)));
            let error = file.read_exact_at(BytesMut::new(), 1, offset).await.0.unwrap_err();
            assert_eq!(error.source.kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(file.length().unwrap(), 0);
    });
}

/// Reserving makes room on the disk and length, and keeps what is there; zeroing does not.
#[test]
fn reserves_and_zeroes() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("1.segment");
    on_a_ring(folder.path(), async {
        let file = File::open(&path, Open::CreateNew).await.unwrap();
        file.write_all_at(pattern(1000), 0).await.0.unwrap();
        file.preallocate(0, 1 << 20).await.unwrap();
        assert_eq!(file.length().unwrap(), 1 << 20);
        assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 1 << 20);
        assert_eq!(read(&file, 1000, 0).await, pattern(1000));
        assert_eq!(read(&file, (1 << 20) - 1000, 1000).await, vec![0; (1 << 20) - 1000]);
        file.write_all_at(pattern(1 << 20), 0).await.0.unwrap();
        file.zero(500, 700_000).await.unwrap();
        file.sync_data().await.unwrap();
        let mut expected = pattern(1 << 20);
        expected[500..700_500].fill(0);
        assert_eq!(read(&file, 1 << 20, 0).await, expected);
        assert_eq!(file.length().unwrap(), 1 << 20);
    });
    let file = blocking::File::open(&path, Open::Write).unwrap();
    file.preallocate(1 << 20, 1 << 20).unwrap();
    file.zero(1 << 19, 1 << 19).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 2 << 20);
    assert!(bytes[1 << 19..].iter().all(|&byte| byte == 0));
}

/// More operations than the ring has entries may be under way at once, writes and syncs together; each does its part.
#[test]
fn many_are_in_flight_at_once() {
    const PIECE: usize = 8192;
    const PIECES: usize = 200;
    let folder = tempdir().unwrap();
    let path = folder.path().join("file");
    let bytes = pattern(PIECE * PIECES);
    on_a_ring(folder.path(), async {
        let file = File::open(&path, Open::CreateNew).await.unwrap();
        let synced = Rc::new(Cell::new(0));
        let mut tasks = Vec::new();
        // Backwards, so that the file grows beyond all later writes at once.
        for (index, piece) in bytes.chunks(PIECE).enumerate().rev() {
            let (writer, piece) = (file.clone(), piece.to_vec());
            tasks.push(ring::spawn(async move {
                writer.write_all_at(piece, (index * PIECE) as u64).await.0.unwrap();
            }));
            if index % 10 == 0 {
                let (syncer, synced) = (file.clone(), synced.clone());
                tasks.push(ring::spawn(async move {
                    syncer.sync_data().await.unwrap();
                    synced.set(synced.get() + 1);
                }));
            }
        }
        for task in tasks {
            task.join().await.expect("a task panicked");
        }
        assert_eq!(synced.get(), PIECES / 10);
        file.sync_data().await.unwrap();
    });
    assert!(fs::read(&path).unwrap() == bytes);
}

/// A future that is dropped loses only the answer: the bytes are written, the buffer is kept until then, and the
/// descriptor is closed at the end.
#[test]
fn a_dropped_write_is_done() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("file");
    let bytes = pattern(4_000_000);
    on_a_ring(folder.path(), async {
        let file = File::open(&path, Open::CreateNew).await.unwrap();
        let mut write = pin!(async move { file.write_all_at(bytes, 0).await.0 });
        assert!(write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    });
    assert!(fs::read(&path).unwrap() == pattern(4_000_000));
}

/// A file is closed with its last clone, and closing says what went wrong.
#[test]
fn closes_with_the_last_clone() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("file");
    let faults = Faults::under(folder.path());
    on_a_ring(folder.path(), async {
        let file = File::open(&path, Open::CreateNew).await.unwrap();
        let clone = file.clone();
        faults.record();
        file.close().await.unwrap();
        assert!(faults.calls().is_empty(), "a clone is still there");
        clone.write_all_at(b"still open".to_vec(), 0).await.0.unwrap();
        clone.close().await.unwrap();
        assert_eq!(faults.calls().last().unwrap().0, FileOperation::Close);

        let file = File::open(&path, Open::Read).await.unwrap();
        faults.inject(Fault::fails(FileOperation::Close, Errno::IO.raw_os_error()));
        let error = file.close().await.unwrap_err();
        assert_eq!((error.operation, &error.path), (FileOperation::Close, &path));
    });
}

/// A file that was opened and read without a ring goes on with one.
#[test]
fn changes_over_to_the_ring() {
    let folder = tempdir().unwrap();
    on_a_ring(folder.path(), async {
        let file = blocking::File::open(folder.path().join("file"), Open::CreateNew).unwrap();
        file.write_all_at(b"before", 0).unwrap();
        let file = File::from(file);
        file.write_all_at(b" and after".to_vec(), 6).await.0.unwrap();
        assert_eq!(read(&file, 16, 0).await, b"before and after");
    });
}
