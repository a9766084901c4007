//! The fuzz targets as tests: with their seeds, with what fuzzing has found, and with bytes of every length.

use std::{fs, path::Path};

use proptest::{collection::vec, prelude::*};
use ringpost_fuzz_targets::{
    TARGETS, broker, client, damage, frames, handshake, json, records, recovery, secure_records, seeds,
};

/// Every target survives its seeds, and what begins like them.
#[test]
fn seeds_are_survived() {
    for (name, target) in TARGETS {
        for (seed, input) in seeds(name).unwrap() {
            for end in [input.len(), input.len() / 2, input.len() * 9 / 10] {
                let outcome = std::panic::catch_unwind(|| target(&input[..end]));
                assert!(outcome.is_ok(), "{name}: {end} bytes of the seed {seed}");
            }
        }
    }
}

/// What fuzzing has found once is not there again: the files in regressions/TARGET.
#[test]
fn found_once() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../regressions");
    let mut survived = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let folder = entry.unwrap().path();
        let target = TARGETS.iter().find(|(name, _)| folder.ends_with(name));
        let (_, target) = target.unwrap_or_else(|| panic!("{} is no target's", folder.display()));
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let input = fs::read(&path).unwrap();
            let outcome = std::panic::catch_unwind(|| target(&input));
            assert!(outcome.is_ok(), "{}", path.display());
            survived += 1;
        }
    }
    assert!(survived > 0, "there is something to survive");
}

/// Pieces of the JSON dialect, so that bytes in any order come close to it.
const PIECES: [&[u8]; 24] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\"",
    b"\\",
    b" ",
    b"\n",
    b"-1.5e3",
    b"null",
    b"\xff",
    "ü".as_bytes(),
    b"\"id\":\"a\"",
    b"\"action\":",
    b"\"message\":{",
    b"\"data\":",
    b"\"options\":{\"ttl\":5}",
    b"\"clientId\":1",
    b"\\u00e4",
    b"{\"action\":\"ping\"}",
    b"{\"id\":\"a\",\"data\":[1]}",
    b"{\"action\":\"response\",\"message\":{\"serverId\":\"0123456789abcdef-1\",\"data\":{}}}",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Frames whose header is right and whose body is anything.
    #[test]
    fn any_frames(cut in any::<u8>(), bodies in vec((0u8..0x28, any::<[u8; 11]>(), vec(any::<u8>(), 0..200)), 0..8)) {
        let mut input = vec![cut];
        for (kind, mut rest, body) in bodies {
            input.extend_from_slice(&(body.len() as u32).to_le_bytes());
            input.push(kind);
            // Mostly no flags, and a number that can be one.
            (rest[0], rest[1], rest[2]) = (rest[0] & rest[1] & rest[2] & 3, 0, 0);
            input.extend_from_slice(&rest);
            input.extend_from_slice(&body);
        }
        frames(&input);
    }

    /// Pieces of JSON in any order, some of them longer than may be.
    #[test]
    fn almost_json(cut in any::<u8>(), repeated in any::<u8>(), pieces in vec(0..PIECES.len(), 0..40)) {
        let text: Vec<u8> = pieces.into_iter().flat_map(|piece| PIECES[piece]).copied().collect();
        json(&[&[cut, repeated], &text[..]].concat());
    }

    /// Histories of the broker.
    #[test]
    fn any_history_of_a_broker(input in vec(any::<u8>(), 0..3000)) {
        broker(&input);
    }

    /// Histories of a client.
    #[test]
    fn any_history_of_a_client(input in vec(any::<u8>(), 0..3000)) {
        client(&input);
    }

    /// Records of a connection, some of which somebody in between plays with.
    #[test]
    fn any_game_with_records(input in vec(any::<u8>(), 0..60)) {
        secure_records(&input);
    }

    /// Hellos, and changes of true ones: few, so that some are changed back.
    #[test]
    fn any_hello(input in vec(any::<u8>(), 0..100)) {
        handshake(&input);
        handshake(&input[..input.len().min(4)]);
    }

    /// Bodies of records of the log, of every kind.
    #[test]
    fn any_record(kind in any::<u8>(), place in any::<[u8; 3]>(), body in vec(any::<u8>(), 0..200)) {
        records(&[&[kind], &place[..], &body[..]].concat());
    }

    /// Directories of any files, and good logs with a few bytes changed.
    #[test]
    fn any_data_directory(
        mended in any::<u8>(),
        files in vec((any::<u8>(), vec(any::<u8>(), 0..300)), 0..5),
        seed in any::<prop::sample::Index>(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut input = vec![mended];
        for (name, content) in files {
            input.push(name);
            input.extend_from_slice(&(content.len() as u16).to_le_bytes());
            input.extend_from_slice(&content);
        }
        recovery(&input);
        let logs = seeds("recovery").unwrap();
        let mut input = seed.get(&logs).1.clone();
        for (place, byte) in changes {
            let place = place.index(input.len());
            input[place] = byte;
        }
        recovery(&input);
    }

    /// Damaged logs.
    #[test]
    fn any_damage(input in vec(any::<u8>(), 0..1500)) {
        damage(&input);
    }
}
