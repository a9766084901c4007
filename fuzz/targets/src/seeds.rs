//! Inputs to begin with: the wire's test vectors, and histories without a plan.

use std::{fs, path::Path};

use anyhow::{Context, ensure};

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
        "broker" | "client" => Ok((0..32).map(|seed| (format!("any-{seed}"), any_bytes(seed))).collect()),
        other => anyhow::bail!("there is no target {other:?}"),
    }
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
