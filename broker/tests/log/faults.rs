//! A disk that fails: nothing more is called stable, nothing is tried again that may not be; and one that is full: nothing is
//! lost, and space that comes back is noticed.

use std::{io::ErrorKind, time::Duration};

use ringpost_broker::log::{
    Action, Config, LogErrorKind, Record, SyncPolicy, Writer,
    body::{Done, Unwritable},
    memory::{Call, Memory},
};

use crate::history::{History, LOG, Rng, find, seeds};

fn config() -> Config {
    Config { segment_bytes: 2048, max_disk: 1 << 16, sync: SyncPolicy::Always, boot: 1, seed: 1 }
}

/// Writes, syncs and whatever else that fail at any moment: from then on nothing more is called stable, nothing is asked for, and
/// a restart finds all that was called stable, though the page cache shows more.
#[test]
fn failed_for_good() {
    let calls = [Call::Write, Call::Sync, Call::SyncDirectory, Call::Rename, Call::Create, Call::Remove];
    let mut failed = 0;
    for seed in seeds(40) {
        for call in calls {
            let mut history = History::new(seed);
            let after = history.rng.below(12) as u32;
            history.disk.fail(call, after, ErrorKind::Other);
            let mut stable_then = None;
            for _ in 0..300 {
                if history.writer.failed().is_some() {
                    stable_then.get_or_insert(history.writer.stable());
                    assert!(
                        history.writer.poll(history.now).is_none(),
                        "seed {seed}: a failed log does nothing"
                    );
                    assert_eq!(history.writer.next_deadline(), None);
                    assert!(!history.writer.has_room(1));
                    assert_eq!(
                        history.writer.append(&Record::Done(Done { count: 1 })),
                        Err(Unwritable::Closed),
                        "seed {seed}"
                    );
                    history.proceed_any();
                } else {
                    history.step();
                }
            }
            let happened = history.disk.failures_left() == 0;
            assert_eq!(history.writer.failed().is_some(), happened, "seed {seed}, {call:?}");
            if !happened {
                continue;
            }
            let stable = stable_then.unwrap_or(history.writer.stable());
            failed += 1;
            assert_eq!(history.writer.stable(), stable, "seed {seed}, {call:?}: stable after the failure");
            history.disk.kill();
            let found =
                find(&mut history.disk).unwrap_or_else(|error| panic!("seed {seed}, {call:?}: {error}"));
            history.check(&found, stable);
            // What a restart has handed out is on the disk, not only in the page cache.
            let mut disk = history.disk.crash(&vec![0; history.disk.unsynced().len()]);
            assert!(find(&mut disk).expect("refused").records == found.records, "seed {seed}, {call:?}");
        }
    }
    assert!(failed > 100, "only {failed} failures");
}

/// A full disk when the next segment is to be made: new requests are refused, those that are there can be ended in the room
/// that is left, and when space comes back everything goes on, by itself.
#[test]
fn full_and_back() {
    let mut history = History::with(config(), Rng(1));
    history.request(100);
    history.settle();
    assert!(history.writer.has_room(100));
    history.disk.set_capacity(Some(2048 * 2 + 200));
    while history.writer.has_room(100) {
        history.request(100);
        history.settle();
        assert!(history.next_count < 100, "it never becomes full");
    }
    assert!(history.writer.is_full() && history.writer.failed().is_none());
    history.finish_any();
    history.hurry();
    history.settle();
    assert_eq!(history.writer.stable(), history.writer.appended(), "there is room to end requests");
    (0..30).for_each(|_| history.request(100));
    history.settle();
    let stuck = history.writer.stable();
    assert!(stuck < history.writer.appended());
    assert!(history.writer.failed().is_none());

    let deadline = history.writer.next_deadline().expect("it is tried again");
    assert!(deadline > history.now.mono, "not at once");
    history.pass(Duration::from_secs(1));
    history.settle();
    assert_eq!(history.writer.stable(), stuck, "still full");
    history.disk.set_capacity(None);
    history.pass(Duration::from_secs(1));
    history.settle();
    assert_eq!(history.writer.stable(), history.writer.appended());
    assert!(!history.writer.is_full() && history.writer.has_room(100));
    let found = find(&mut history.disk).unwrap();
    history.check(&found, history.writer.appended());
}

/// No space for a write into a segment, for its header, or for a manifest, once, at any moment: the same is written again, and
/// nothing is lost.
#[test]
fn no_space_once() {
    let mut full = 0;
    for seed in seeds(60) {
        for call in [Call::Write, Call::Create] {
            let mut history = History::new(seed);
            let after = history.rng.below(20) as u32;
            history.disk.fail(call, after, ErrorKind::StorageFull);
            for _ in 0..250 {
                history.step();
                full += usize::from(history.writer.is_full());
            }
            assert_eq!(history.writer.failed(), None, "seed {seed}, {call:?}");
            history.pass(Duration::from_secs(2));
            history.settle();
            history.stop();
            history.pass(Duration::from_secs(2));
            history.settle();
            assert!(history.writer.stopped(), "seed {seed}, {call:?}");
            assert_eq!(history.writer.stable(), history.writer.appended(), "seed {seed}, {call:?}");
            let mut disk = history.disk.crash(&vec![0; history.disk.unsynced().len()]);
            let found = find(&mut disk).unwrap_or_else(|error| panic!("seed {seed}, {call:?}: {error}"));
            history.check(&found, history.writer.appended());
        }
    }
    assert!(full > 50, "the disk was full {full} times");
}

/// No room beyond `max_disk` for new requests, but for what ends them; ending them makes room again.
#[test]
fn bounded() {
    let config = Config { max_disk: 6 * 2048, ..config() };
    let mut history = History::with(config, Rng(1));
    while history.writer.has_room(300) {
        history.request(100);
        history.settle();
    }
    let (disk, _) = history.writer.disk_and_living_bytes();
    assert!(disk <= config.max_disk - 2048, "{disk}");
    while !history.open.is_empty() {
        history.finish_any();
        history.settle();
    }
    history.compact(usize::MAX);
    history.hurry();
    history.settle();
    let (disk, living) = history.writer.disk_and_living_bytes();
    assert!(disk <= config.max_disk && living == 0);
    assert!(history.writer.has_room(300), "room again");
}

/// A disk that cannot be read is not an empty one: the error names the file, and nothing is changed.
#[test]
fn unreadable() {
    let mut history = History::with(config(), Rng(1));
    (0..40).for_each(|_| history.request(50));
    history.stop();
    let names = ringpost_broker::log::files::Files::list(&history.disk).unwrap();
    let mut reads = 0;
    for after in 0.. {
        let mut disk = history.disk.clone();
        disk.fail(Call::Read, after, ErrorKind::Other);
        match find(&mut disk) {
            Err(error) => assert_eq!(error.kind(), LogErrorKind::Io, "{error}"),
            Ok(_) => break,
        }
        reads += 1;
        assert_eq!(ringpost_broker::log::files::Files::list(&disk).unwrap(), names);
    }
    assert!(reads >= 4, "{reads}");
    let mut disk = history.disk.clone();
    disk.fail(Call::List, 0, ErrorKind::Other);
    assert_eq!(find(&mut disk).map_err(|error| error.kind()).err(), Some(LogErrorKind::Io));
}

/// Reads that bring fewer bytes than asked for change nothing.
#[test]
fn short_reads() {
    let mut history = History::new(5);
    (0..200).for_each(|_| history.step());
    history.disk.kill();
    let mut disk = history.disk.clone();
    disk.limit_reads(7);
    assert_eq!(find(&mut disk).unwrap(), find(&mut history.disk).unwrap());
}

/// What is too large for a segment is refused before anything of it is written, and the largest that fits is not.
#[test]
fn largest_record() {
    let mut history = History::with(config(), Rng(1));
    let fixed = crate::history::request(1, &[]).body_bytes() + 24;
    let most = 2048 - 96 - fixed;
    let payload = vec![b'x'; most + 1];
    let before = history.writer.appended();
    assert!(matches!(
        history.writer.append(&crate::history::request(1, &payload)),
        Err(Unwritable::TooLarge { .. })
    ));
    assert_eq!(history.writer.appended(), before);
    history.request(most);
    history.request(most);
    history.stop();
    let found = find(&mut history.disk).unwrap();
    history.check(&found, history.writer.appended());
}

/// The buffer of a batch is used again when the driver has let go of it.
#[test]
fn buffers_are_reused() {
    let mut history = History::with(Config { segment_bytes: 1 << 20, max_disk: 1 << 23, ..config() }, Rng(1));
    history.settle();
    let mut places = std::collections::BTreeSet::new();
    for _ in 0..100 {
        history.request(100);
        while let Some(operation) = history.writer.poll(history.now) {
            if let Action::Write { bytes, .. } = &operation.action {
                places.insert(bytes.as_ptr() as usize);
            }
            let (id, result) =
                (operation.id, ringpost_broker::log::files::perform(&mut history.disk, &operation.action));
            drop(operation);
            history.writer.done(id, result);
        }
    }
    assert!(places.len() <= 6, "{} buffers for 100 writes", places.len());
}

/// A configuration outside its bounds is refused at once, not when the disk is full.
#[test]
#[should_panic(expected = "max_disk")]
fn too_small_a_disk() {
    let recovered = ringpost_broker::log::recover(&mut Memory::new(), LOG, |_, _| {}).unwrap();
    Writer::new(Config { max_disk: 2048, ..config() }, &recovered);
}
