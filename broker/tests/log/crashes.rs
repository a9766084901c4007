//! Crashes at every moment, into every state that a disk may be left in.

use std::{
    io::ErrorKind,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};

use ringpost_broker::log::{
    Action, Config, Kind, Record, SyncPolicy,
    body::Boot,
    manifest::Manifest,
    memory::{Call, Memory},
    names::MANIFEST,
};

use crate::history::{Found, History, Rng, find, seeds};

/// All combinations up to this many; above it so many samples.
const EXHAUSTIVE: usize = 256;
const SAMPLES: usize = 24;

/// Hands out the disk in its states after a crash at this moment.
fn after_crash(disk: &Memory, rng: &mut Rng, mut each: impl FnMut(Memory)) -> usize {
    let choices = disk.unsynced();
    let states = choices.iter().try_fold(1_usize, |product, options| product.checked_mul(*options));
    match states.filter(|states| *states <= EXHAUSTIVE) {
        Some(states) => {
            for state in 0..states {
                let mut rest = state;
                let digits = choices.iter().map(|options| {
                    let digit = rest % options;
                    rest /= options;
                    digit
                });
                each(disk.crash(&digits.collect::<Vec<_>>()));
            }
            states
        }
        None => {
            for sample in 0..SAMPLES {
                // The first two: nothing of it, and all of it.
                let choose = |options: &usize| match sample {
                    0 => 0,
                    1 => options - 1,
                    _ => rng.below(*options),
                };
                each(disk.crash(&choices.iter().map(choose).collect::<Vec<_>>()));
            }
            SAMPLES
        }
    }
}

/// Runs a test for each seed, and says which one failed.
fn for_seeds(name: &str, count: u64, run: impl Fn(u64)) {
    for seed in seeds(count) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(seed))) {
            eprintln!(
                "seed {seed} of {name} failed; again with LOG_SEED={seed} cargo test -p ringpost-broker --test log {name}"
            );
            resume_unwind(panic);
        }
    }
}

/// Whatever is lost of what was not synced, at whatever moment: all that was reported stable is there, in order and unchanged;
/// nothing is invented; nothing finished or removed comes back; a start never refuses; a second recovery finds the same.
#[test]
fn crash_states() {
    for_seeds("crash_states", 40, |seed| {
        let mut history = History::new(seed);
        let mut rng = Rng(seed ^ 0xc0ffee);
        for _boot in 0..3 {
            let mut states = 0;
            for _ in 0..160 {
                history.step();
                let kept = history.writer.stable();
                states += after_crash(&history.disk, &mut rng, |mut disk| {
                    let found = find(&mut disk).unwrap_or_else(|error| panic!("refused: {error}"));
                    history.check(&found, kept);
                });
            }
            assert!(states > 160, "crashes were tried");
            let mut crashed = Vec::new();
            after_crash(&history.disk, &mut rng, |disk| crashed.push(disk));
            history.disk = crashed.swap_remove(rng.below(crashed.len()));
            let found = find(&mut history.disk).expect("refused");
            assert_eq!(found, find(&mut history.disk.clone()).expect("refused the second time"));
            history.boot_again(&found);
        }
    });
}

/// A killed server loses nothing that was written, and the power that fails after it takes nothing away that a recovery has
/// handed out.
#[test]
fn killed_then_powerless() {
    for_seeds("killed_then_powerless", 60, |seed| {
        let mut history = History::new(seed);
        let mut rng = Rng(seed ^ 0xdead);
        for _boot in 0..4 {
            for _ in 0..120 {
                history.step();
            }
            history.disk.kill();
            let found = find(&mut history.disk).expect("refused");
            // Under every policy: the gate opens at the latest for what is stable.
            history.check(&found, history.writer.written().max(history.promised));
            after_crash(&history.disk, &mut rng, |mut disk| {
                let again = find(&mut disk).expect("refused after the power failed");
                history.check(&again, found.recovered.last);
                assert_eq!(again.records, found.records, "what was handed out stays");
            });
            history.boot_again(&found);
        }
    });
}

/// A crash at each step of a recovery, into any state, changes nothing of what the next one gives.
#[test]
fn crash_in_recovery() {
    for_seeds("crash_in_recovery", 40, |seed| {
        let mut history = History::new(seed);
        let mut rng = Rng(seed ^ 0xabc);
        let steps = 40 + rng.below(200);
        (0..steps).for_each(|_| history.step());
        let mut crashed = Vec::new();
        after_crash(&history.disk, &mut rng, |disk| crashed.push(disk));
        let disk = crashed.swap_remove(rng.below(crashed.len()));
        let expected = find(&mut disk.clone()).expect("refused");
        crash_at_each_step(&disk, &mut rng, |again, calls| {
            assert!(again.records == expected.records, "after {calls} calls");
            assert_eq!(again.recovered, expected.recovered, "after {calls} calls");
        });
    });
}

/// The power fails at each step of the recovery that follows a kill, when what the dead server did to files and directory is not
/// synced yet: nothing stable is lost, and no start refuses.
#[test]
fn powerless_in_recovery() {
    for_seeds("powerless_in_recovery", 80, |seed| {
        let mut history = History::new(seed);
        let mut rng = Rng(seed ^ 0xdef);
        // A manifest that lets a segment go, renamed, but the directory is not synced: the kill at the worst moment.
        let oldest = |disk: &Memory| {
            let bytes = disk.content(MANIFEST).expect("the manifest");
            Manifest::decode(bytes).expect("a good one").oldest
        };
        let mut worst = false;
        for _ in 0..2000 {
            history.step();
            let synced = history.disk.crash(&vec![0; history.disk.unsynced().len()]);
            worst = oldest(&history.disk) != oldest(&synced);
            if worst {
                break;
            }
        }
        assert!(worst, "no segment was ever removed");
        let kept = history.writer.stable();
        history.disk.kill();
        crash_at_each_step(&history.disk, &mut rng, |again, _| history.check(again, kept));
    });
}

/// Recovers with a crash after each number of calls, and hands out what a second recovery finds in each state.
fn crash_at_each_step(disk: &Memory, rng: &mut Rng, mut each: impl FnMut(&Found, u64)) {
    for calls in 0.. {
        let mut stopped = disk.clone();
        stopped.stop_after(calls);
        let ended = find(&mut stopped).is_ok();
        after_crash(&stopped, rng, |mut disk| {
            let again = find(&mut disk).unwrap_or_else(|error| panic!("after {calls} calls: {error}"));
            each(&again, calls);
        });
        if ended {
            assert!(calls >= 2, "a recovery has steps to crash at");
            return;
        }
    }
}

/// A clean stop leaves nothing to be cut, whatever the policy, and a mark or a new segment behind everything.
#[test]
fn clean_stop() {
    for_seeds("clean_stop", 60, |seed| {
        let mut history = History::new(seed);
        (0..100).for_each(|_| history.step());
        history.stop();
        let appended = history.writer.appended();
        assert_eq!(history.writer.stable(), appended);
        let choices = vec![0; history.disk.unsynced().len()];
        let mut disk = history.disk.crash(&choices);
        let found = find(&mut disk).expect("refused");
        assert_eq!((found.recovered.last, &found.recovered.cut), (appended, &None));
        history.check(&found, appended);
    });
}

/// What is done makes room: however long a log is written to, its files stay few while little lives, and what lives long is
/// carried along. Under every policy.
#[test]
fn disk_stays_bounded() {
    for policy in [SyncPolicy::Always, SyncPolicy::Interval(Duration::from_millis(20)), SyncPolicy::Never] {
        let mut history = History::new(3);
        let config = Config { sync: policy, segment_bytes: 2048, max_disk: 1 << 14, ..history.config };
        history = History::with(config, Rng(3));
        history.request(100);
        for round in 0..2000 {
            assert!(history.writer.has_room(200), "round {round}");
            history.request(100);
            history.finish(history.next_count - 1);
            history.settle();
            history.compact(usize::MAX);
            history.settle();
            history.pass(Duration::from_millis(25));
            assert!(
                crate::history::segment_files(&history.disk).len() <= 5,
                "round {round} under {policy:?}"
            );
        }
        assert!(history.open.contains_key(&1), "the oldest request lives");
        history.stop();
        let found = find(&mut history.disk).expect("refused");
        history.check(&found, history.writer.appended());
        assert_eq!(found.living.keys().copied().collect::<Vec<_>>(), [1]);
        assert!(found.recovered.highest_count >= 2001);
    }
}

/// A request's count never comes again, also when every record that had it is gone with its segment.
#[test]
fn counts_stay_known() {
    let mut history = History::new(2);
    for _ in 0..20 {
        history.request(10);
        history.finish(history.next_count - 1);
        history.settle();
    }
    for boot in 0..200 {
        history.append(&Record::Boot(Boot { boot, wall_ms: 0 }));
        history.settle();
        history.pass(Duration::from_millis(25));
    }
    let found = find(&mut history.disk).expect("refused");
    assert!(found.records.iter().all(|(_, _, kind)| *kind != Kind::Request), "the requests are gone");
    assert!(found.recovered.highest_count >= 20);
}

/// A mark follows a sync by itself after 10 ms of idleness, and once: an idle log has nothing to do.
#[test]
fn idle_mark() {
    let mut history = History::with(
        Config { segment_bytes: 4096, max_disk: 1 << 16, sync: SyncPolicy::Always, boot: 1, seed: 1 },
        Rng(1),
    );
    history.request(10);
    history.settle();
    let (stable, due) = (history.writer.stable(), history.writer.next_deadline().expect("a mark is due"));
    assert_eq!(stable, history.writer.appended());
    assert_eq!(due, history.now.mono + Duration::from_millis(10));
    history.pass(Duration::from_millis(10));
    history.settle();
    assert_eq!(history.writer.appended(), stable.next(), "the mark");
    assert_eq!(history.writer.stable(), stable, "a mark alone is not worth a sync");
    assert_eq!(history.writer.next_deadline(), None);
    history.pass(Duration::from_secs(60));
    assert!(history.writer.poll(history.now).is_none());
}

/// All that is appended while a write is under way goes with the next one, and one sync is for all of it.
#[test]
fn group_commit() {
    let mut history = roomy();
    history.request(10);
    let first = history.writer.poll(history.now).expect("a write");
    assert!(matches!(first.action, Action::Write { synced: true, .. }), "a short one is synced with it");
    (0..100).for_each(|_| history.request(10));
    assert!(history.writer.poll(history.now).is_none(), "one write at a time");
    history.disk.begin(first);
    history.proceed_any();
    assert!(history.writer.written() < history.writer.appended() && history.disk.under_way() == 1);
    history.proceed_any();
    assert_eq!(history.writer.stable(), history.writer.written());
    assert!(history.begin_one(), "one write for the hundred");
    assert!(!history.begin_one());
    history.proceed_any();
    assert!(history.writer.written() >= history.awaited);
    assert!(history.begin_one(), "and one sync");
    history.settle();
    assert!(history.writer.stable() >= history.awaited);
    assert_eq!(history.writer.gate(), history.writer.appended());
}

/// The next batch is written during the sync of one that was too long to be synced with its write, or that several wait for.
#[test]
fn other_batches_overlap() {
    for requests in [&[5 << 10][..], &[10, 10]] {
        let mut history = roomy();
        requests.iter().for_each(|bytes| history.request(*bytes));
        let first = history.writer.poll(history.now).expect("a write");
        assert!(matches!(first.action, Action::Write { synced: false, .. }));
        history.request(10);
        history.disk.begin(first);
        history.proceed_any();
        let written = history.writer.written();
        let mut begun = 0;
        while history.begin_one() {
            begun += 1;
        }
        assert_eq!(begun, 2, "the second write, and the sync of the first");
        history.settle();
        assert!(history.writer.stable() > written);
        assert_eq!(history.writer.gate(), history.writer.appended());
    }
}

/// What nobody waits for is neither written nor synced by itself before 10 ms are over, and goes with whatever somebody waits for
/// before that.
#[test]
fn only_what_is_awaited_hurries() {
    let mut history = roomy();
    history.append(&Record::Boot(Boot { boot: 1, wall_ms: 1 }));
    assert!(!history.begin_one(), "nobody waits for it");
    let due = history.writer.next_deadline().expect("it is not left for ever");
    assert_eq!(due, history.now.mono + Duration::from_millis(10));
    history.pass(Duration::from_millis(9));
    assert!(!history.begin_one());
    history.request(10);
    assert!(history.begin_one(), "one operation for both");
    assert!(!history.begin_one());
    history.settle();
    assert_eq!(history.writer.stable(), history.writer.appended());

    history.append(&Record::Boot(Boot { boot: 1, wall_ms: 2 }));
    assert!(!history.begin_one());
    history.pass(Duration::from_millis(10));
    history.settle();
    assert_eq!(history.writer.stable(), history.writer.appended(), "the time is over");
}

/// What nobody waits for gathers up to a bound, however fast it comes.
#[test]
fn gathers_so_much() {
    let mut history = roomy();
    let before = history.writer.written();
    let mut most = 0;
    for boot in 0..4000 {
        history.append(&Record::Boot(Boot { boot, wall_ms: 1 }));
        most = most.max(history.writer.waiting_bytes());
        history.settle();
    }
    assert!(history.writer.written() > before);
    assert!((1 << 15..(1 << 16) + 64).contains(&most), "{most}");
}

/// Whatever was asked for before: what somebody waits for becomes stable (or written, as the policy says) without any time passing,
/// and everything else when 10 ms have passed.
#[test]
fn what_is_awaited_comes() {
    for_seeds("what_is_awaited_comes", 60, |seed| {
        let mut history = History::new(seed);
        for _ in 0..20 {
            (0..30).for_each(|_| history.step());
            history.settle();
            let (gate, awaited) = (history.writer.gate(), history.awaited);
            assert!(gate >= awaited, "awaited up to {awaited}, and open up to {gate}");
            history.pass(Duration::from_millis(10));
            history.settle();
            // But for a mark alone, which the next sync takes along.
            let last = history.ledger.keys().last().copied().unwrap_or_default();
            assert!(history.writer.gate() >= last, "nothing is left for longer");
        }
    });
}

/// A disk that turns out to be full when a write is synced loses nothing: the same is written and synced again.
#[test]
fn full_when_synced() {
    for_seeds("full_when_synced", 40, |seed| {
        let config =
            Config { segment_bytes: 1 << 14, max_disk: 1 << 18, sync: SyncPolicy::Always, boot: 1, seed };
        let mut history = History::with(config, Rng(seed));
        history.request(10);
        history.settle();
        history.pass(Duration::from_millis(10));
        history.settle();
        history.request(400);
        let operation = history.writer.poll(history.now).expect("a write");
        assert!(matches!(operation.action, Action::Write { synced: true, .. }));
        history.disk.begin(operation);
        history.disk.fail(Call::Sync, 0, ErrorKind::StorageFull);
        let stable = history.writer.stable();
        history.proceed_any();
        history.proceed_any();
        assert!(history.writer.is_full() && history.writer.failed().is_none());
        assert_eq!(history.writer.stable(), stable);
        let mut rng = Rng(seed);
        after_crash(&history.disk, &mut rng, |mut disk| {
            history.check(&find(&mut disk).expect("refused"), stable);
        });
        history.pass(Duration::from_secs(1));
        history.settle();
        assert_eq!(history.writer.stable(), history.writer.appended());
        let mut disk = history.disk.crash(&vec![0; history.disk.unsynced().len()]);
        history.check(&find(&mut disk).expect("refused"), history.writer.appended());
    });
}

/// The header of a log's first segment says when it was made, though its first record was appended before the writer was asked
/// what to do.
#[test]
fn headers_know_the_time() {
    let mut history = roomy();
    history.request(10);
    history.settle();
    let found = find(&mut history.disk).expect("refused");
    let made: Vec<_> = found.recovered.segments.iter().map(|segment| segment.header.wall_ms).collect();
    assert_eq!(made, [history.now.wall_ms]);
}

/// A log with one long segment, which is open.
fn roomy() -> History {
    let config =
        Config { segment_bytes: 1 << 18, max_disk: 1 << 20, sync: SyncPolicy::Always, boot: 1, seed: 1 };
    let mut history = History::with(config, Rng(1));
    history.hurry();
    history.settle();
    history
}
