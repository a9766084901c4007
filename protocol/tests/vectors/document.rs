//! docs/PROTOCOL.md against the vectors and the code: it shows nothing that no test has seen.
//!
//! Its fenced blocks are written so that this can be told:
//!
//! | fence | must be |
//! |---|---|
//! | `hex NAME` | `vectors/binary/NAME.hex`, or `vectors/proxy/NAME.hex` |
//! | `json NAME` | what `vectors/json/NAME.json` says on the wire |
//! | `session` | lines that begin with `→ ` or `← `: each what some JSON vector of that direction says |
//! | `python FILE` | `examples/FILE` |
//! | `text`, `sh` | no example of the wire |

use std::{collections::BTreeSet, fs};

use ringpost_protocol::{Code, limits};

use crate::files::{Sender, binary_vectors, json_vectors, proxy_vectors, root};

/// A fenced block: what stands behind its opening fence, and its lines.
struct Block {
    fence: String,
    text: String,
}

fn document() -> String {
    fs::read_to_string(root().join("docs/PROTOCOL.md")).unwrap()
}

fn blocks(document: &str) -> Vec<Block> {
    let (mut blocks, mut open) = (Vec::new(), None);
    for line in document.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(fence), None) => {
                open = Some(Block { fence: fence.trim().to_owned(), text: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fence is not closed");
    blocks
}

/// Every example in the document is a vector, or a file that can be run.
#[test]
fn examples_are_vectors() {
    let (binary, proxy, json) = (binary_vectors(), proxy_vectors(), json_vectors());
    for Block { fence, text } in blocks(&document()) {
        let (language, name) = fence.split_once(' ').unwrap_or((&fence, ""));
        match language {
            "hex" => {
                let known = binary.iter().map(|vector| (&vector.name, &vector.text));
                let known = known.chain(proxy.iter().map(|vector| (&vector.name, &vector.text)));
                let vector = known.into_iter().find(|(known, _)| *known == name);
                let (_, expected) = vector.unwrap_or_else(|| panic!("there is no vector {name}"));
                assert_eq!(text, *expected, "{name}");
            }
            "json" => {
                let vector = json.iter().find(|(known, _, _)| known == name);
                let (_, _, bytes) = vector.unwrap_or_else(|| panic!("there is no JSON vector {name}"));
                assert_eq!(text.trim_end(), bytes.trim_end(), "{name}");
            }
            "session" => text.lines().for_each(|line| check_line(line, &json)),
            "python" => {
                let file = root().join("protocol/examples").join(name);
                assert_eq!(text, fs::read_to_string(&file).unwrap(), "{}", file.display());
            }
            "text" | "sh" => {}
            _ => panic!("what is a block of `{fence}`?"),
        }
    }
}

fn check_line(line: &str, vectors: &[(String, Sender, String)]) {
    let (sender, text) = match (line.strip_prefix("→ "), line.strip_prefix("← ")) {
        (Some(text), _) => (Sender::Client, text),
        (_, Some(text)) => (Sender::Server, text),
        _ => panic!("who says `{line}`?"),
    };
    let known = vectors.iter().any(|(_, who, bytes)| *who == sender && bytes.trim_end() == text);
    assert!(known, "no JSON vector of the {sender:?} says {text}");
}

/// Every vector that is a kind's plain example is shown: nobody has to look for the files to see one.
#[test]
fn every_kind_is_shown() {
    let document = document();
    let shown: BTreeSet<_> = blocks(&document)
        .iter()
        .filter_map(|block| block.fence.strip_prefix("hex ").map(str::to_owned))
        .collect();
    let of_kind = |name: &str| {
        let vectors = binary_vectors();
        let vector = vectors.iter().find(|vector| vector.name == name)?;
        (!vector.is_preface()).then_some((vector.sender, vector.bytes[4]))
    };
    let kinds: BTreeSet<_> = shown.iter().filter_map(|name| of_kind(name)).collect();
    for vector in binary_vectors() {
        if vector.error().is_none() && !vector.is_preface() && !vector.description["message"].is_null() {
            let kind = vector.bytes[4];
            assert!(kinds.contains(&(vector.sender, kind)), "nothing shows what {} is like", vector.name);
            assert!(document.contains(&format!("`0x{kind:02x}`")), "kind {kind:#04x} is in no table");
        }
    }
}

/// The table of errors is complete, and its numbers, texts and exit codes are those of the code.
#[test]
fn error_table_is_complete() {
    let document = document();
    for code in Code::ALL {
        let row = format!("| {} | `{}` | {} |", code.number(), code.text(), code.exit_code());
        assert!(document.contains(&row), "missing: {row}");
    }
    let rows = document.lines().filter(|line| {
        let mut cells = line.split(" | ");
        cells.next().is_some_and(|cell| cell.trim_start_matches("| ").parse::<u16>().is_ok())
            && cells.next().is_some_and(|cell| cell.starts_with('`'))
            && cells.next().is_some_and(|cell| cell.parse::<u8>().is_ok())
    });
    assert_eq!(rows.count(), Code::ALL.len(), "a row of the table is no code");
}

/// The limits are those of the code.
#[test]
fn limits_are_the_codes() {
    let document = document();
    for (what, limit) in [
        ("an action's name", limits::MAX_ACTION_BYTES as u64),
        ("a session's name", limits::MAX_SESSION_BYTES as u64),
        ("options", limits::MAX_OPTIONS_BYTES as u64),
        ("headers, encoded", limits::MAX_HEADERS_BYTES as u64),
        ("JSON: `clientId` as written", limits::MAX_TAG_BYTES as u64),
        ("payload, unless the server says otherwise", limits::DEFAULT_MAX_PAYLOAD_BYTES.into()),
        ("payload, whatever the server says", limits::MAX_MAX_PAYLOAD_BYTES.into()),
        ("binary: a frame beside its payload", limits::FRAME_OVERHEAD_BYTES.into()),
        ("JSON: an object beside its `data`", limits::JSON_OVERHEAD_BYTES.into()),
        ("numbers in one `resume`", limits::MAX_RESUME_NUMBERS as u64),
    ] {
        let row = format!("| {what} | {limit} ");
        assert!(document.contains(&row), "missing: {row}");
    }
    assert!(
        document
            .contains(&format!("| JSON: objects and arrays within each other | {} ", limits::MAX_JSON_DEPTH))
    );
    for name in limits::RESERVED_NAMES {
        assert!(document.contains(&format!("`{name}`")), "the name {name} is reserved");
    }
}
