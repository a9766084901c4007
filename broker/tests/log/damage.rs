//! Damage of every kind to small logs: full recovery, a reported cut above the last mark, or a refusal that names file and
//! byte. Never a silent loss of what a mark covers, never a panic; and a repair says what it costs, and is a repair.

use std::{collections::BTreeSet, io::ErrorKind};

use ringpost_broker::log::{
    Config, Damage, Kind, Location, LogError, LogErrorKind, LogId, SegmentNumber, Sequence, SyncPolicy,
    files::Files,
    inspect::{Finding, inspect, verify},
    memory::{Call, Memory},
    names,
    record::RECORD_HEADER_BYTES,
    recover,
    repair::{Loss, RepairOptions, Unrepaired, repair},
    segment::{SEGMENT_HEADER_BYTES, SegmentHeader},
};

use crate::history::{Found, History, Rng, find, segment_files};

const REPAIR: RepairOptions = RepairOptions { allow_loss: true, seed: 5, wall_ms: 1 };

/// A log with several segments, marks, and a few records behind the last mark.
fn small_log() -> (History, Found) {
    let config =
        Config { segment_bytes: 1024, max_disk: 1 << 16, sync: SyncPolicy::Always, boot: 1, seed: 11 };
    let mut history = History::with(config, Rng(11));
    // Several segments, and the last of them about half full.
    let mut offset = 0;
    while history.next_count < 12 || !(450..650).contains(&offset) {
        history.request(90);
        offset = history.open[&(history.next_count - 1)].0.offset;
        history.settle();
    }
    for _ in 0..2 {
        history.request(20);
    }
    history.settle();
    history.disk.kill();
    let found = find(&mut history.disk).expect("a good log");
    assert!(found.recovered.segments.len() >= 3 && found.recovered.cut.is_none());
    let newest = found.recovered.segments.last().expect("a segment");
    assert!(newest.header.first.next() < last_mark(&found), "records of the newest segment are marked");
    assert!(last_mark(&found) < found.recovered.last, "and others are not");
    (history, found)
}

/// The last sequence that a mark, or a segment's end, says was synced.
fn last_mark(found: &Found) -> Sequence {
    last_mark_but(found, |_| false)
}

/// The same, without the marks that are destroyed.
fn last_mark_but(found: &Found, destroyed: impl Fn(&Location) -> bool) -> Sequence {
    let body = |bytes: &[u8]| {
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + 8]);
        Sequence(u64::from_le_bytes(number))
    };
    let marks = found.records.iter().filter(|(at, _, kind)| *kind == Kind::Mark && !destroyed(at));
    let sealed = found.recovered.segments.last().map(|newest| Sequence(newest.header.first.0 - 1));
    marks.map(|(_, bytes, _)| body(bytes)).chain(sealed).max().expect("there is a mark")
}

/// What may become of a damaged log. Gives the error, if it was refused.
fn allowed(disk: &Memory, whole: &Found, what: &str) -> Option<LogError> {
    let mut recovered = disk.clone();
    match find(&mut recovered) {
        Ok(found) => {
            let kept = found.records.len();
            assert_eq!(found.records, whole.records[..kept], "{what}: records changed");
            if found.recovered.last < whole.recovered.last {
                assert!(
                    found.recovered.last >= last_mark(whole),
                    "{what}: lost below the mark without a word"
                );
                let cut =
                    found.recovered.cut.as_ref().unwrap_or_else(|| panic!("{what}: lost without a word"));
                let kept = recovered.content(cut.kept.as_ref().expect("there is room")).expect("the copy");
                let from = cut.offset as usize;
                let damaged = disk.content(&names::segment(cut.segment)).expect("the segment");
                assert_eq!(
                    kept,
                    &damaged[from..from + cut.bytes as usize],
                    "{what}: the copy is not what was cut"
                );
            }
            assert!(verify(disk).expect("readable").is_empty(), "{what}: verify sees what recovery does not");
            None
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(".segment") || text.contains("manifest"), "{what}: {text} names no file");
            assert!(text.contains("at byte"), "{what}: {text} names no byte");
            assert_eq!(recovered.list().unwrap(), disk.list().unwrap(), "{what}: a refusal changes nothing");
            assert!(
                !verify(disk).expect("readable").is_empty(),
                "{what}: recovery sees what verify does not"
            );
            repaired(disk, whole, what);
            Some(error)
        }
    }
}

/// A repair makes the log one that is recovered, with records that were there before, and names every one that is not.
fn repaired(disk: &Memory, whole: &Found, what: &str) {
    let mut disk = disk.clone();
    let before = disk.list().unwrap();
    let careful = RepairOptions { allow_loss: false, ..REPAIR };
    assert_eq!(
        repair(&mut disk, careful).map_err(|unrepaired| unrepaired.error.kind()),
        Err(LogErrorKind::Corrupt),
        "{what}"
    );
    assert_eq!(disk.list().unwrap(), before, "{what}: changed without leave");
    let losses = match repair(&mut disk, REPAIR) {
        Ok(losses) => losses,
        Err(error) => panic!("{what}: not repaired: {error}"),
    };
    assert!(!losses.is_empty(), "{what}: a repair that cost nothing");
    let found = find(&mut disk).unwrap_or_else(|error| panic!("{what}: refused after its repair: {error}"));
    for (location, bytes, kind) in &found.records {
        if *kind == Kind::Lost {
            assert!(
                losses.iter().any(|loss| loss.first == Some(location.sequence)),
                "{what}: {location:?} lost without being named in {losses:?}"
            );
            continue;
        }
        let original = whole.records.iter().find(|(at, _, _)| at.sequence == location.sequence);
        assert_eq!(original.map(|(_, bytes, _)| bytes), Some(bytes), "{what}: {location:?} was invented");
    }
    let there: BTreeSet<_> = found
        .records
        .iter()
        .filter(|(_, _, kind)| *kind != Kind::Lost)
        .map(|(at, _, _)| at.sequence)
        .collect();
    let cut = found.recovered.cut.as_ref().map(|_| found.recovered.last.next());
    for (location, _, _) in whole.records.iter().filter(|(at, _, _)| !there.contains(&at.sequence)) {
        let sequence = location.sequence;
        let named = losses.iter().any(|loss| {
            let from = loss.first.is_none_or(|first| first <= sequence);
            from && loss.through.is_none_or(|through| sequence <= through)
        });
        assert!(
            named || cut.is_some_and(|cut| cut <= sequence),
            "{what}: {sequence} lost, {losses:?} do not say so"
        );
    }
    for kept in losses.iter().filter_map(|loss| loss.kept.as_ref()) {
        assert!(disk.content(kept).is_some(), "{what}: {kept} is not there");
    }
}

/// Every byte of every file, flipped one at a time: each record, each header, each mark, the manifest, and the zeros behind.
#[test]
fn every_byte_flipped() {
    let (history, whole) = small_log();
    let (mut refused, mut cut) = (0, 0);
    for name in history.disk.list().unwrap() {
        for at in 0..history.disk.content(&name).expect("the file").len() {
            let mut disk = history.disk.clone();
            disk.damage(&name, |bytes| bytes[at] ^= 1 << (at % 8)).expect("the file");
            match allowed(&disk, &whole, &format!("byte {at} of {name}")) {
                Some(LogError::Corrupt(corruption)) => {
                    refused += 1;
                    assert_eq!(corruption.file, name, "the damaged file is the one that is named");
                    assert!(corruption.offset <= at as u64, "byte {at}: {corruption}");
                }
                Some(error) => panic!("byte {at} of {name}: {error}"),
                None => cut += 1,
            }
        }
    }
    assert!(refused > 1000 && cut > 300, "{refused} refused, {cut} cut or harmless");
}

/// Every file, cut off at every byte.
#[test]
fn cut_at_every_byte() {
    let (history, whole) = small_log();
    let ends: Vec<_> =
        whole.recovered.segments.iter().map(|segment| (segment.header.number, segment.end)).collect();
    for name in history.disk.list().unwrap() {
        for length in 0..history.disk.content(&name).expect("the file").len() {
            let mut disk = history.disk.clone();
            disk.damage(&name, |bytes| bytes.truncate(length)).expect("the file");
            let error = allowed(&disk, &whole, &format!("{name} cut to {length}"));
            let end = ends.iter().find(|(number, _)| names::segment(*number) == name).map(|(_, end)| *end);
            let newest = ends.last().map(|(number, _)| names::segment(*number));
            let harmless = match end {
                // Never used: nothing was in it.
                None => name != names::MANIFEST,
                Some(end) => length >= end as usize && newest.as_ref() != Some(&name),
            };
            assert_eq!(error.is_none(), harmless, "{name} cut to {length}: {error:?}");
        }
    }
}

/// Zeros instead of any 512 bytes, and of any 64, in any segment: a sector that the disk has lost. Only if all marks that cover what
/// is lost are lost with it, this looks like an end.
#[test]
fn zeroed_anywhere() {
    let (history, whole) = small_log();
    let (mut refused, mut ends) = (0, 0);
    for number in segment_files(&history.disk) {
        for (length, step) in [(512, 512), (64, 8)] {
            for at in (0..1024).step_by(step) {
                let what = format!("{length} zeros at {at} of segment {number}");
                let mut disk = history.disk.clone();
                let zero =
                    |bytes: &mut Vec<u8>| bytes.iter_mut().skip(at).take(length).for_each(|byte| *byte = 0);
                disk.damage(&names::segment(number), zero).expect("the segment");
                let destroyed = |mark: &Location| {
                    let (start, end) = (mark.offset as usize, (mark.offset + mark.length) as usize);
                    mark.segment == number && start < at + length && at < end
                };
                match find(&mut disk.clone()) {
                    Ok(found) => {
                        assert!(found.recovered.last >= last_mark_but(&whole, destroyed), "{what}");
                        assert_eq!(found.records, whole.records[..found.records.len()], "{what}");
                        ends += usize::from(found.recovered.last < whole.recovered.last);
                    }
                    Err(_) => {
                        allowed(&disk, &whole, &what);
                        refused += 1;
                    }
                }
            }
        }
    }
    assert!(refused > 200 && ends > 10, "{refused} refused, {ends} taken for an end");
}

/// Bytes of an earlier segment behind the end of the newest, as from blocks that were used before, are no records of it.
#[test]
fn stale_bytes() {
    let (history, whole) = small_log();
    let newest = whole.recovered.segments.last().expect("a segment");
    for earlier in &whole.recovered.segments {
        let old = history.disk.content(&names::segment(earlier.header.number)).expect("the segment").to_vec();
        for from in (0..old.len()).step_by(8) {
            let mut disk = history.disk.clone();
            let end = newest.end as usize;
            let plant = |bytes: &mut Vec<u8>| {
                let length = (bytes.len() - end).min(old.len() - from);
                bytes[end..end + length].copy_from_slice(&old[from..from + length]);
            };
            disk.damage(&names::segment(newest.header.number), plant).expect("the segment");
            let found = find(&mut disk).unwrap_or_else(|error| panic!("stale from {from}: {error}"));
            assert_eq!(found.records, whole.records, "stale bytes from {from} were taken for records");
        }
    }
}

/// A segment that is missing, a manifest that is missing or older than the segments, segments that were renamed, copied or come
/// from another log: each is refused, with the file's name, and nothing is removed.
#[test]
fn wrong_files() {
    let (history, whole) = small_log();
    let numbers: Vec<_> = whole.recovered.segments.iter().map(|segment| segment.header.number).collect();
    let refused = |disk: &Memory, what: &str| match allowed(disk, &whole, what) {
        Some(LogError::Corrupt(corruption)) => corruption,
        other => panic!("{what}: {other:?}"),
    };
    for number in &numbers {
        let mut disk = history.disk.clone();
        disk.remove(&names::segment(*number)).unwrap();
        let corruption = refused(&disk, "missing");
        assert_eq!((corruption.file, corruption.what), (names::segment(*number), Damage::SegmentMissing));

        for other in &numbers {
            if number != other {
                let mut disk = history.disk.clone();
                disk.rename(&names::segment(*number), &names::segment(*other)).unwrap();
                let first = number.min(other);
                assert_eq!(refused(&disk, "renamed").file, names::segment(*first));
            }
        }

        let mut disk = history.disk.clone();
        let copy = disk.content(&names::segment(*number)).expect("the segment").to_vec();
        let behind = names::segment(SegmentNumber(numbers.len() as u64 + 5));
        disk.create(&behind, 0).unwrap();
        disk.write_at(&behind, 0, &copy).unwrap();
        disk.sync(&behind).unwrap();
        assert_eq!(refused(&disk, "an extra one").what, Damage::BehindNewest);
    }

    let mut disk = history.disk.clone();
    disk.remove(names::MANIFEST).unwrap();
    assert_eq!(refused(&disk, "no manifest").what, Damage::ManifestMissing);

    let mut other = Memory::new();
    recover(&mut other, LogId([8; 16]), |_, _| {}).unwrap();
    let foreign = other.content(names::MANIFEST).expect("the manifest").to_vec();
    let mut disk = history.disk.clone();
    disk.damage(names::MANIFEST, |bytes| *bytes = foreign).unwrap();
    // It names no segment at all: those that are there hold something.
    assert_eq!(find(&mut disk).map_err(|error| error.kind()).err(), Some(LogErrorKind::Corrupt));

    let mut disk = history.disk.clone();
    let mut header = whole.recovered.segments[1].header;
    header.log = LogId([8; 16]);
    let replace = |bytes: &mut Vec<u8>| bytes[..SEGMENT_HEADER_BYTES].copy_from_slice(&header.encode());
    disk.damage(&names::segment(header.number), replace).unwrap();
    assert_eq!(refused(&disk, "foreign").what, Damage::Foreign { log: LogId([8; 16]) });
}

/// A header that says its predecessor ended where no record can end is not taken at its word, whatever is left of that one.
#[test]
fn a_header_that_cannot_be() {
    let (history, whole) = small_log();
    let [first, second] = [0, 1].map(|index: usize| whole.recovered.segments[index].header);
    for more in 1..8 {
        let mut disk = history.disk.clone();
        let mut header = second;
        header.predecessor_end += more;
        let replace = |bytes: &mut Vec<u8>| bytes[..SEGMENT_HEADER_BYTES].copy_from_slice(&header.encode());
        disk.damage(&names::segment(second.number), replace).unwrap();
        let mut missing = disk.clone();
        missing.remove(&names::segment(first.number)).unwrap();
        repaired(&missing, &whole, "missing");
        for from in [0, SEGMENT_HEADER_BYTES] {
            let mut zeroed = disk.clone();
            zeroed.damage(&names::segment(first.number), |bytes| bytes[from..].fill(0)).unwrap();
            repaired(&zeroed, &whole, "zeroed");
        }
    }
}

/// A header that has its predecessor end in that one's header, or behind its file, is found by a verification as by a start.
#[test]
fn a_header_that_is_seen_through() {
    let (history, whole) = small_log();
    let [first, second] = [0, 1].map(|index: usize| whole.recovered.segments[index].header);
    for end in [0, SEGMENT_HEADER_BYTES as u32 - 1, first.file_bytes + 1, u32::MAX] {
        let mut disk = history.disk.clone();
        let header = SegmentHeader { predecessor_end: end, ..second };
        let replace = |bytes: &mut Vec<u8>| bytes[..SEGMENT_HEADER_BYTES].copy_from_slice(&header.encode());
        disk.damage(&names::segment(second.number), replace).unwrap();
        let found = verify(&disk).unwrap();
        let damage = found.iter().find(|found| found.to_string().contains("at byte 48"));
        assert!(
            damage.is_some_and(|it| it.to_string().contains(&names::segment(second.number))),
            "{found:?}"
        );
        let refused = find(&mut disk).err().map(|error| error.to_string());
        assert!(refused.is_some_and(|text| text.contains("at byte 48")), "refused for the same reason");
    }
}

/// Files that have nothing to do with a log are reported and left alone; files of a log without its manifest are no new log.
#[test]
fn other_files() {
    let mut disk = Memory::new();
    disk.create("notes.txt", 5).unwrap();
    let found = find(&mut disk).expect("a new log");
    assert_eq!(found.recovered.foreign, ["notes.txt"]);
    assert_eq!(disk.content("notes.txt").map(<[u8]>::len), Some(5));
    let mut disk = Memory::new();
    disk.create("0000000000000002.torn-96", 5).unwrap();
    assert_eq!(find(&mut disk).map_err(|error| error.kind()).err(), Some(LogErrorKind::Corrupt));
    let mut disk = Memory::new();
    disk.lock_by_another(true);
    assert_eq!(find(&mut disk).map_err(|error| error.kind()).err(), Some(LogErrorKind::InUse));
}

/// All damaged places are found, not only the first, and all records between them are shown and kept by a repair.
#[test]
fn all_damage_is_found() {
    let (history, whole) = small_log();
    let mut disk = history.disk.clone();
    let last = last_mark(&whole);
    let damaged: Vec<_> =
        whole.records.iter().filter(|(at, _, _)| at.sequence.0 % 3 == 0 && at.sequence <= last).collect();
    for (location, _, _) in &damaged {
        let flip = |bytes: &mut Vec<u8>| bytes[location.offset as usize + 25] ^= 4;
        disk.damage(&names::segment(location.segment), flip).expect("the segment");
    }
    let all = verify(&disk).unwrap();
    let places: Vec<_> = all.iter().map(|corruption| (corruption.file.clone(), corruption.offset)).collect();
    let expected: Vec<_> =
        damaged.iter().map(|(at, _, _)| (names::segment(at.segment), u64::from(at.offset))).collect();
    assert!(expected.len() >= 4);
    assert_eq!(places, expected);
    let mut shown = 0;
    inspect(&disk, |finding| shown += usize::from(matches!(finding, Finding::Record(..)))).unwrap();
    assert_eq!(shown, whole.records.len() - damaged.len());
    let losses = repair(&mut disk, REPAIR).unwrap();
    let lost: Vec<_> = losses.iter().map(|loss| (loss.first, loss.through)).collect();
    assert_eq!(
        lost,
        damaged.iter().map(|(at, _, _)| (Some(at.sequence), Some(at.sequence))).collect::<Vec<_>>()
    );
    let found = find(&mut disk).unwrap();
    assert_eq!(found.recovered.last, whole.recovered.last);
    let kept = found.records.iter().filter(|(_, _, kind)| *kind != Kind::Lost).count();
    assert_eq!(kept, whole.records.len() - damaged.len());
    assert!(repair(&mut disk, REPAIR).unwrap().is_empty(), "a second repair has nothing to do");
}

/// A repair that fails on its way says what it has given up so far: with what the next one says, that is all that is lost.
#[test]
fn failed_repairs_say_what_they_did() {
    let (history, whole) = small_log();
    let mut damaged = history.disk.clone();
    let last = last_mark(&whole);
    let mut expected = BTreeSet::new();
    for (location, _, _) in
        whole.records.iter().filter(|(at, _, _)| at.sequence.0 % 3 == 0 && at.sequence <= last)
    {
        let flip = |bytes: &mut Vec<u8>| bytes[location.offset as usize + 25] ^= 4;
        damaged.damage(&names::segment(location.segment), flip).expect("the segment");
        expected.insert(location.sequence);
    }
    let mut failed = 0;
    for call in [Call::Write, Call::Sync, Call::Read, Call::Create] {
        for after in 0.. {
            let mut disk = damaged.clone();
            disk.fail(call, after, ErrorKind::Other);
            let Err(Unrepaired { error, losses }) = repair(&mut disk, REPAIR) else { break };
            assert_eq!(error.kind(), LogErrorKind::Io, "{call:?} {after}");
            disk.kill();
            let named =
                |losses: &[Loss]| losses.iter().filter_map(|loss| loss.first).collect::<BTreeSet<_>>();
            let done = named(&losses);
            assert!(done.is_subset(&expected), "{call:?} {after}: {done:?}");
            let rest = named(&repair(&mut disk, REPAIR).unwrap());
            assert_eq!(done.union(&rest).copied().collect::<BTreeSet<_>>(), expected, "{call:?} {after}");
            // All but the one that it was at when it failed.
            assert!(done.intersection(&rest).count() <= 1, "{call:?} {after}: {done:?}, {rest:?}");
            failed += usize::from(!done.is_empty());
        }
    }
    assert!(failed > 8, "{failed}");
}
