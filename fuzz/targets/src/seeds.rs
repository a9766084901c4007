//! Inputs to begin with: the wire's test vectors, histories without a plan, small logs, and a record of each kind.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use bytes::BytesMut;
use ringpost_broker::log::{
    Kind, Record, Seal, Sequence,
    body::{Boot, Dead, Delivered, Done, Lost, Mark, Moved, Reply, Retry},
    record::{RECORD_HEADER_BYTES, encode},
};

use crate::logs;

/// Inputs for a target, with a name for each: of the codecs' targets the vectors of their dialect, of the others bytes
/// that are as good as random, and always the same.
///
/// # Errors
/// When there is no such target, or the vectors in the source tree cannot be read.
pub fn seeds(target: &str) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    match target {
        "frames" => vectors("binary", "hex", |text| {
            let frame = bytes_of_hex(text).context("two hexadecimal digits a byte")?;
            // Not cut, then cut into small pieces of changing size.
            Ok(vec![[&[0], &frame[..]].concat(), [&[5], &frame[..], &frame[..]].concat()])
        }),
        "json" => vectors("json", "json", |text| {
            let vector: serde_json::Value = serde_json::from_str(text)?;
            let Some(client) = vector["client"].as_str() else { return Ok(Vec::new()) };
            let client = client.as_bytes();
            Ok(vec![
                [&[0, 0], client].concat(),
                [&[3, 0], client, client].concat(),
                [&[9, 250], client].concat(),
            ])
        }),
        "records" => Ok(records()),
        "recovery" => {
            let input = |seed, mended| logs::to_input(&logs::history(&any_bytes(seed)[..400]), mended);
            Ok((0..16).map(|seed| (format!("log-{seed}"), input(seed, seed % 2 == 1))).collect())
        }
        "broker" | "client" | "damage" | "handshake" | "secure-records" => {
            Ok((0..32).map(|seed| (format!("any-{seed}"), any_bytes(seed))).collect())
        }
        other => anyhow::bail!("there is no target {other:?}"),
    }
}

/// A body of each kind, behind the bytes that say which it is and that its first byte is changed.
fn records() -> Vec<(String, Vec<u8>)> {
    let request = Record::Request(logs::sample_request(9, b"{\"data\":1}"));
    let (inner, sequence) = (body_of(&request), Sequence(5));
    let all = [
        Record::Boot(Boot { boot: 1, wall_ms: 2 }),
        Record::Delivered(Delivered {
            count: 9,
            boot: 1,
            delivery: 3,
            wall_ms: 4,
            attempt: 1,
            session: b"handler",
        }),
        Record::Reply(Reply {
            count: 9,
            wall_ms: 5,
            code: 0,
            attempt: 1,
            delivered_after_ms: 1,
            handled_after_ms: 2,
            own_code: b"",
            options: b"{}",
            headers: b"",
            payload: b"[1,2,3]",
        }),
        Record::Done(Done { count: 9 }),
        Record::Retry(Retry { count: 9, not_before_ms: 7, attempt: 2, message: b"not now" }),
        Record::Dead(Dead { count: 9, wall_ms: 8, code: 1, attempt: 5, message: b"never" }),
        Record::Mark(Mark { upto: sequence }),
        Record::Moved(Moved { sequence, kind: Kind::Request, body: &inner }),
        Record::Lost(Lost { through: sequence, filler: 0 }),
        request,
    ];
    let input = |record: &Record<'_>| [&[record.kind() as u8, 0, 0, 0], &body_of(record)[..]].concat();
    all.iter().map(|record| (record.kind().name().to_owned(), input(record))).collect()
}

fn body_of(record: &Record<'_>) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    encode(&mut bytes, &Seal::default(), Sequence(0), record);
    bytes[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + record.body_bytes()].to_vec()
}

type Inputs = Vec<Vec<u8>>;

fn vectors(
    folder: &str,
    extension: &str,
    read: impl Fn(&str) -> anyhow::Result<Inputs>,
) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../protocol/vectors").join(folder);
    let mut seeds = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_none_or(|found| found != extension) {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let inputs = read(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())?;
        seeds.extend(inputs.into_iter().zip(1..).map(|(input, nth)| (format!("{name}-{nth}"), input)));
    }
    ensure!(!seeds.is_empty(), "no vectors in {}", folder.display());
    seeds.sort();
    Ok(seeds)
}

/// The bytes of a `.hex` vector: pairs of digits, `#` begins a comment.
fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let code = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    code.flat_map(str::split_whitespace).map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}

/// splitmix64, a byte of each.
fn any_bytes(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 56) as u8
    };
    std::iter::repeat_with(next).take(3000).collect()
}
