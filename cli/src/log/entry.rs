//! A finding as keys and values: one line, for people (`PLACE KIND KEY=VALUE …`) or as a JSON object with the same keys.

use std::borrow::Cow;

use ringpost_broker::log::{
    Location, Record,
    inspect::{Finding, Gap},
    names,
    segment::SegmentHeader,
};
use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{fields, text};

/// How much of a request's data people are shown.
const SHOWN_CHARS: usize = 60;

/// A line. As JSON it is an object, whose keys stand in the same order.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    file: String,
    /// Where in the file, in bytes.
    offset: u64,
    kind: &'static str,
    fields: Fields<'a>,
}

/// Keys and values, in the order in which they are shown.
pub(super) type Fields<'a> = Vec<(&'static str, Field<'a>)>;

/// A value.
#[derive(Debug)]
pub(super) enum Field<'a> {
    Number(u64),
    /// A number without a meaning of its own, and too large for what many take JSON's numbers for.
    Id(u64),
    /// Milliseconds since the Unix epoch.
    Time(u64),
    Flag(bool),
    Text(Cow<'a, str>),
    Bytes(&'a [u8]),
    /// Like bytes, but people are shown the beginning only.
    Data(&'a [u8]),
    Headers(Vec<(&'a str, &'a str)>),
}

use Field::{Bytes, Data, Flag, Id, Number, Text, Time};

impl<'a> Entry<'a> {
    /// The finding's line; nothing for files that are none of the log's.
    pub(super) fn of(finding: &Finding<'a>) -> Option<Self> {
        Some(match finding {
            Finding::Segment(header) => Self::of_segment(header),
            Finding::Record(location, record) => Self::of_record(location, record),
            Finding::Damaged(corruption) => Self {
                file: corruption.file.clone(),
                offset: corruption.offset,
                kind: "damage",
                fields: vec![("what", Text(corruption.what.to_string().into()))],
            },
            Finding::Gap(Gap { corruption, bytes, first, through, .. }) => Self {
                file: corruption.file.clone(),
                offset: corruption.offset,
                kind: "damage",
                fields: vec![
                    ("what", Text(corruption.what.to_string().into())),
                    ("bytes", Number(*bytes)),
                    ("first", Number(first.0)),
                    ("through", Number(through.0)),
                ],
            },
            Finding::Torn { segment, offset, bytes, records } => Self {
                file: names::segment(*segment),
                offset: *offset,
                kind: "torn",
                fields: vec![("bytes", Number(*bytes)), ("records", Number(*records))],
            },
            _ => return None,
        })
    }

    fn of_segment(header: &SegmentHeader) -> Self {
        let fields = vec![
            ("first", Number(header.first.0)),
            ("predecessorEnd", Number(header.predecessor_end.into())),
            ("boot", Id(header.boot)),
            ("beganMs", Time(header.wall_ms)),
            ("fileBytes", Number(header.file_bytes.into())),
        ];
        Self { file: names::segment(header.number), offset: 0, kind: "segment", fields }
    }

    fn of_record(location: &Location, record: &Record<'a>) -> Self {
        let mut fields =
            vec![("sequence", Number(location.sequence.0)), ("bytes", Number(location.length.into()))];
        fields::push_record(&mut fields, *record);
        let (file, offset) = (names::segment(location.segment), location.offset.into());
        Self { file, offset, kind: record.kind().name(), fields }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut line = format!("{}:{} {}", self.file, self.offset, self.kind);
        for (key, field) in &self.fields {
            line.push(' ');
            line.push_str(key.strip_suffix("Ms").filter(|_| matches!(field, Time(_))).unwrap_or(key));
            line.push('=');
            line.push_str(&field.text());
        }
        line
    }
}

impl Serialize for Entry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("file", &self.file)?;
        map.serialize_entry("offset", &self.offset)?;
        map.serialize_entry("kind", self.kind)?;
        for (key, field) in &self.fields {
            match field {
                Number(number) | Time(number) => map.serialize_entry(key, number)?,
                Id(id) => map.serialize_entry(key, &format!("{id:016x}"))?,
                Flag(flag) => map.serialize_entry(key, flag)?,
                Text(text) => map.serialize_entry(key, text)?,
                Bytes(bytes) | Data(bytes) => match std::str::from_utf8(bytes) {
                    Ok(text) => map.serialize_entry(key, text)?,
                    Err(_) => map.serialize_entry(&format!("{key}Base64"), &text::base64(bytes))?,
                },
                Field::Headers(pairs) => map.serialize_entry(key, pairs)?,
            }
        }
        map.end()
    }
}

impl Field<'_> {
    fn text(&self) -> String {
        match self {
            Number(number) => number.to_string(),
            Id(id) => format!("{id:016x}"),
            Time(ms) => text::time(*ms),
            Flag(flag) => flag.to_string(),
            Text(text) => quoted(text),
            Bytes(bytes) => of_bytes(bytes, usize::MAX),
            Data(bytes) => of_bytes(bytes, SHOWN_CHARS),
            Field::Headers(pairs) => {
                let pairs: Vec<_> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
                quoted(&pairs.join(" "))
            }
        }
    }
}

/// Text in quotes, or base64 without; at most so many characters of it.
fn of_bytes(bytes: &[u8], most: usize) -> String {
    let (shown, whole) = match std::str::from_utf8(bytes) {
        Ok(text) => {
            let end = text.char_indices().nth(most).map_or(text.len(), |(at, _)| at);
            (quoted(&text[..end]), end == text.len())
        }
        Err(_) => {
            let shown = &bytes[..bytes.len().min(most)];
            (format!("base64:{}", text::base64(shown)), shown.len() == bytes.len())
        }
    };
    if whole { shown } else { format!("{shown}…") }
}

/// In quotes, on one line, and without anything that a terminal obeys.
fn quoted(text: &str) -> String {
    format!("{text:?}")
}

#[cfg(test)]
mod tests {
    use ringpost_broker::log::{
        Kind, SegmentNumber, Sequence,
        body::{Moved, Reply, Request},
    };
    use ringpost_protocol::encode_headers;
    use serde_json::{Value, json};

    use super::*;

    fn entry<'a>(record: &'a Record<'a>) -> Entry<'a> {
        let location = Location { sequence: Sequence(7), segment: SegmentNumber(1), offset: 96, length: 40 };
        Entry::of(&Finding::Record(location, record)).unwrap()
    }

    fn as_json(record: &Record<'_>) -> Value {
        serde_json::to_value(entry(record)).unwrap()
    }

    fn request<'a>(headers: &'a [u8], payload: &'a [u8]) -> Request<'a> {
        Request {
            count: 5,
            number: 6,
            instance: 0,
            joins: 0,
            received_ms: 1000,
            expires_ms: 2000,
            max_attempts: 5,
            flags: 5,
            dialect: 1,
            session: b"s\x1b[2J",
            action: b"mail",
            tag: b"",
            idempotency_key: b"",
            options: b"",
            headers,
            payload,
        }
    }

    /// A request's line has its place, its count, action, session, size and the beginning of its data, on one line and
    /// without anything that a terminal obeys.
    #[test]
    fn text_of_a_request() {
        let payload = "ä\n".repeat(100);
        let record = Record::Request(request(b"", payload.as_bytes()));
        let line = entry(&record).text();
        assert!(
            line.starts_with(
                "0000000000000001.segment:96 request sequence=7 bytes=40 count=5 action=\"mail\" \
                 session=\"s\\u{1b}[2J\" number=6 send=true dialect=\"json\" received=1970-01-01T00:00:01.000Z"
            ),
            "{line}"
        );
        assert!(line.ends_with(&format!(" size=300 data=\"{}\"…", "ä\\n".repeat(30))), "{line}");
    }

    /// JSON has all of the data: as text, or as base64 under a key that says so.
    #[test]
    fn json_of_a_request() {
        let headers = encode_headers([("k", "v")]).unwrap();
        let long = "x".repeat(1000);
        let entry = as_json(&Record::Request(request(&headers, long.as_bytes())));
        assert_eq!(
            (&entry["offset"], &entry["kind"], &entry["count"]),
            (&json!(96), &json!("request"), &json!(5))
        );
        assert_eq!((&entry["data"], &entry["size"]), (&json!(long), &json!(1000)));
        assert_eq!((&entry["headers"], entry.get("clientId")), (&json!([["k", "v"]]), None));
        let entry = as_json(&Record::Request(request(b"\xff", b"\xff\x00")));
        assert_eq!((&entry["dataBase64"], entry.get("data")), (&json!("/wA="), None));
        assert_eq!(entry["headersBase64"], json!("/w=="));
    }

    /// What was moved shows what it was, whatever kind that is.
    #[test]
    fn moved() {
        let mut body = vec![0; 24];
        body[0] = 9;
        body.extend([2, 0, b'n', b'o']);
        let moved = Moved { sequence: Sequence(3), kind: Kind::Retry, body: &body };
        let entry = as_json(&Record::Moved(moved));
        assert_eq!((&entry["kind"], &entry["movedKind"]), (&json!("moved"), &json!("retry")));
        assert_eq!((&entry["movedSequence"], &entry["count"]), (&json!(3), &json!(9)));
        assert_eq!(entry["message"], json!("no"));
        let entry = as_json(&Record::Moved(Moved { body: &[0], ..moved }));
        assert!(entry["error"].is_string(), "{entry}");
    }

    /// An error has its code by name, also one that this version does not know; a reply has none.
    #[test]
    fn codes() {
        let reply = |code| {
            as_json(&Record::Reply(Reply {
                count: 1,
                wall_ms: 0,
                code,
                attempt: 1,
                delivered_after_ms: 0,
                handled_after_ms: 0,
                own_code: b"",
                options: b"",
                headers: b"",
                payload: b"",
            }))
        };
        assert_eq!(reply(0).get("code"), None);
        assert_eq!((&reply(1)["code"], &reply(u16::MAX)["code"]), (&json!("noHandler"), &json!(u16::MAX)));
    }
}
