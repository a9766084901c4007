//! Whatever bytes are there: no panic, no endless reading, and what a repair calls repaired is.

use proptest::{collection::vec, prelude::*};
use ringpost_broker::log::{
    Config, Kind, Record, Seal, Sequence, SyncPolicy,
    files::Files,
    inspect::{inspect, verify},
    memory::Memory,
    names,
    record::{encode, read_back},
    repair::{RepairOptions, repair},
};

use crate::history::{History, Rng, find};

fn a_log(seed: u64) -> Memory {
    let config = Config { segment_bytes: 1024, max_disk: 1 << 16, sync: SyncPolicy::Always, boot: 1, seed };
    let mut history = History::with(config, Rng(seed));
    for _ in 0..80 {
        history.step();
    }
    history.disk.kill();
    history.disk
}

/// Everything that reads a log, on this one.
fn read_everything(disk: &Memory) -> Result<(), TestCaseError> {
    let damage = verify(disk);
    let mut found = 0;
    let shown = inspect(disk, |_| found += 1);
    prop_assert_eq!(shown.is_ok(), damage.is_ok());
    let recovered = find(&mut disk.clone());
    if let Ok(damage) = &damage {
        prop_assert_eq!(recovered.is_ok(), damage.is_empty(), "{:?} and {:?}", recovered.err(), damage);
    }
    let mut repaired = disk.clone();
    if repair(&mut repaired, RepairOptions { allow_loss: true, seed: 1, wall_ms: 1 }).is_ok() {
        prop_assert!(find(&mut repaired).is_ok(), "repaired, and refused: {:?}", find(&mut repaired).err());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Arbitrary bytes are no record, and a body of them is decoded or refused.
    #[test]
    fn decoder(bytes in vec(any::<u8>(), 0..300), kind in 0_u8..16, sequence: u64) {
        let seal = Seal { salt: 1, stamp: [1, 2, 3, 4, 5, 6] };
        prop_assert!(read_back(&bytes, &seal, Sequence(sequence)).is_err());
        if let Some(kind) = Kind::from_number(kind)
            && let Ok(record) = Record::decode(kind, &bytes)
        {
            prop_assert_eq!(record.kind(), kind);
            prop_assert_eq!(record.body_bytes(), bytes.len());
            let mut again = bytes::BytesMut::new();
            let length = encode(&mut again, &seal, Sequence(sequence), &record);
            prop_assert_eq!(length, again.len());
            let (_, body) = read_back(&again, &seal, Sequence(sequence)).expect("just written");
            prop_assert_eq!(Record::decode(kind, body), Ok(record));
        }
    }

    /// Directories full of arbitrary files.
    #[test]
    fn arbitrary_files(files in vec((0_usize..8, vec(any::<u8>(), 0..400)), 0..5)) {
        let all = ["manifest", "manifest.new", "lock", "0000000000000001.segment", "0000000000000002.segment",
            "0000000000000002.snapshot", "0000000000000001.torn-96", "else"];
        let mut disk = Memory::new();
        for (index, content) in files {
            disk.create(all[index], 0).expect("room");
            disk.write_at(all[index], 0, &content).expect("room");
        }
        read_everything(&disk)?;
    }

    /// Good logs with arbitrary things done to their files.
    #[test]
    fn arbitrary_damage(
        seed in 0_u64..16,
        damages in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), vec(any::<u8>(), 0..64), 0_u8..4), 1..6),
    ) {
        let mut disk = a_log(seed);
        for (file, place, bytes, what) in damages {
            let names = disk.list().expect("the list");
            if names.is_empty() {
                break;
            }
            let name = file.get(&names).clone();
            let length = disk.content(&name).expect("listed").len();
            let at = if length == 0 { 0 } else { place.index(length) };
            match what {
                0 => disk.remove(&name).expect("listed"),
                1 => disk.damage(&name, |content| content.truncate(at)).expect("listed"),
                2 => {
                    let other = place.get(&names).clone();
                    if name != other {
                        disk.rename(&name, &other).expect("listed");
                    }
                }
                _ => disk.damage(&name, |content| {
                    for (byte, new) in content.iter_mut().skip(at).zip(bytes) {
                        *byte = new;
                    }
                }).expect("listed"),
            }
        }
        read_everything(&disk)?;
    }

    /// Records with right checksums that say arbitrary things: sequences, kinds and bodies that no writer has written.
    #[test]
    fn arbitrary_records(seed in 0_u64..4, kind in 0_u8..12, sequence: u64, body in vec(any::<u8>(), 8..80), step in 0_u64..3) {
        let mut disk = a_log(seed);
        let found = find(&mut disk.clone()).expect("a good log");
        let Some(newest) = found.recovered.segments.last() else { return Ok(()) };
        let sequence = Sequence(if step < 2 { found.recovered.last.0 + step } else { sequence });
        let mut bytes = bytes::BytesMut::new();
        let Some(known) = Kind::from_number(kind) else { return Ok(()) };
        let Ok(record) = Record::decode(known, &body) else { return Ok(()) };
        encode(&mut bytes, &newest.header.seal, sequence, &record);
        let end = newest.end as usize;
        disk.damage(&names::segment(newest.header.number), |content| {
            for (byte, new) in content.iter_mut().skip(end).zip(bytes) {
                *byte = new;
            }
        }).expect("the segment");
        read_everything(&disk)?;
    }
}

/// The same seed and the same history give the same bytes: nothing is drawn at random in here.
#[test]
fn deterministic() {
    let (one, other) = (a_log(3), a_log(3));
    assert_eq!(one.list().unwrap(), other.list().unwrap());
    for name in one.list().unwrap() {
        assert_eq!(one.content(&name), other.content(&name), "{name}");
    }
}
