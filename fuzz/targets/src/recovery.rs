//! Reading a log at a start: directories of any files, and good logs that were damaged.

use ringpost_broker::log::{
    Kind, LogErrorKind, LogId, Record, Recovered, Sequence,
    files::Files,
    inspect::{Finding, inspect, verify},
    memory::Memory,
    names::{self, MANIFEST},
    recover,
    repair::{RepairOptions, repair},
};

use crate::{
    choices::Choices,
    logs::{self, LOG},
};

const REPAIR: RepairOptions = RepairOptions { allow_loss: true, seed: 5, wall_ms: 1 };
/// More places at once are no other case than many.
const MOST_DAMAGES: u64 = 6;

/// A record as it was found: its sequence, its kind, and all that it says.
type Found = (Sequence, Kind, String);

/// Reads a directory of files whose names and contents come from the bytes, see `logs::files`.
///
/// Everything that reads a log agrees on whether it is whole; a log that was repaired is; nothing is read without an end.
///
/// # Panics
/// If something of that does not hold.
pub fn recovery(input: &[u8]) {
    read_everything(&logs::files(input));
}

/// A history of a log, made by the first half of the bytes, and changed bytes in its files, chosen by the rest.
///
/// What is found is what was there, up to a cut that is told, lies above the last mark that was left, and keeps what was cut;
/// or the log is refused, a file and a byte are named, nothing is changed, and a repair leads on and invents nothing.
///
/// # Panics
/// If something of that does not hold.
pub fn damage(input: &[u8]) {
    let (history, damages) = input.split_at(input.len() / 2);
    let mut disk = logs::history(history);
    let (whole, recovered) = match find(&mut disk) {
        Ok(found) => found,
        Err(error) => panic!("a log that nobody damaged: {error}"),
    };
    assert!(recovered.cut.is_none(), "all that was written was written as a whole");
    let damaged = change(&disk, &mut Choices::new(damages));
    let mark = last_mark(&damaged, &recovered);
    read_everything(&damaged);
    let mut used = damaged.clone();
    match find(&mut used) {
        Ok((found, now)) => {
            assert_eq!(found, whole[..found.len()], "records changed without a word");
            if found.len() < whole.len() {
                assert!(now.last >= mark, "{} were left of {}, {mark} were marked", now.last, recovered.last);
                let cut = now.cut.as_ref().expect("a cut that is told");
                let segment =
                    damaged.content(&names::segment(cut.segment)).expect("the segment that was cut");
                let kept =
                    cut.kept.as_ref().and_then(|name| used.content(name)).expect("what was cut is kept");
                let from = cut.offset as usize;
                assert_eq!(kept, &segment[from..from + cut.bytes as usize], "the copy is what was cut");
            }
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(".segment") || text.contains(MANIFEST), "{text} names no file");
            // What a newer version has written is not damage, and needs no byte.
            assert!(text.contains("at byte") || error.kind() == LogErrorKind::Newer, "{text} names no byte");
            assert_eq!(used.list().ok(), damaged.list().ok(), "a refusal changes nothing");
            let mut repaired = damaged.clone();
            if let Err(error) = repair(&mut repaired, REPAIR) {
                // Of a log without a manifest and a header that can be read, nothing is known.
                let kinds = [LogErrorKind::Newer, LogErrorKind::Corrupt];
                assert!(kinds.contains(&error.error.kind()), "not repaired: {error}");
                assert_eq!(repaired.list().ok(), damaged.list().ok(), "nothing is changed in vain");
                return;
            }
            let (found, _) = find(&mut repaired).expect("repaired");
            let invented = found.iter().find(|record| record.1 != Kind::Lost && !whole.contains(record));
            assert_eq!(invented, None, "a repair invents nothing");
        }
    }
}

/// Everything that reads a log, on this one.
fn read_everything(disk: &Memory) {
    let damage = verify(disk);
    let shown = inspect(disk, |_| {});
    assert_eq!(shown.is_ok(), damage.is_ok(), "what can be verified can be shown");
    let found = find(&mut disk.clone());
    if let Ok(damage) = &damage {
        assert_eq!(found.is_ok(), damage.is_empty(), "{:?} and {damage:?}", found.err());
    }
    let mut repaired = disk.clone();
    if repair(&mut repaired, REPAIR).is_ok() {
        let again = find(&mut repaired);
        assert!(again.is_ok(), "repaired, and refused: {:?}", again.err());
    }
}

fn find(disk: &mut Memory) -> Result<(Vec<Found>, Recovered), ringpost_broker::log::LogError> {
    let mut records = Vec::new();
    let recovered = recover(disk, LogId(LOG), |location, record| {
        records.push((location.sequence, record.kind(), format!("{record:?}")));
    })?;
    Ok((records, recovered))
}

/// Changes up to [`MOST_DAMAGES`] bytes in segments and manifest.
fn change(disk: &Memory, choices: &mut Choices<'_>) -> Memory {
    let mut damaged = disk.clone();
    let names = disk.list().expect("memory has a list");
    let names: Vec<_> = names.iter().filter(|name| *name == MANIFEST || name.ends_with(".segment")).collect();
    for _ in 0..=choices.below(MOST_DAMAGES) {
        let name = names[choices.below(names.len() as u64) as usize];
        let (place, change) = (choices.below(1 << 16) as usize, 1 + choices.below(255) as u8);
        let changed = damaged.damage(name, |content| {
            let at = place % content.len();
            // The same byte twice would be no damage: nor is this, then.
            content[at] ^= change;
        });
        assert!(changed.is_some(), "{name} is in the list");
    }
    damaged
}

/// Up to where a mark that can still be read, or the newest segment's header, says that everything was synced.
fn last_mark(damaged: &Memory, whole: &Recovered) -> Sequence {
    let newest = whole.segments.last().map(|newest| newest.header);
    let mut last = newest.map_or(Sequence(0), |header| Sequence(header.first.0.saturating_sub(1)));
    // Damage that keeps this from being read is refused, and then nothing is asked of it.
    let readable = inspect(damaged, |finding| {
        if let Finding::Record(at, Record::Mark(mark)) = finding
            && newest.is_some_and(|header| header.number == at.segment)
        {
            last = last.max(mark.upto);
        }
    });
    if readable.is_ok() { last } else { Sequence(0) }
}
