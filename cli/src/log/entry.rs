//! A finding as keys and values: one line, for people (`PLACE KIND KEY=VALUE …`) or as a JSON object with the same keys.

use std::borrow::Cow;

use ringpost_broker::log::{
    Location, Record,
    body::{Delivered, Moved, Reply, Request},
    inspect::{Finding, Gap},
    names,
    segment::SegmentHeader,
};
use ringpost_protocol::{BadHeaders, Code, Headers, message::RequestFlags};
use serde::{Serialize, Serializer, ser::SerializeMap};

use super::text;

/// How much of a request's data people are shown.
const SHOWN_CHARS: usize = 60;

/// A line.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    file: String,
    /// Where in the file, in bytes.
    offset: u64,
    kind: &'static str,
    fields: Vec<(&'static str, Field<'a>)>,
}

#[derive(Debug)]
enum Field<'a> {
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
    pub(super) fn of(finding: &'a Finding<'a>) -> Option<Self> {
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

    fn of_record(location: &Location, record: &'a Record<'a>) -> Self {
        let mut fields = vec![("sequence", Number(location.sequence.0)), ("bytes", Number(location.length.into()))];
        push_record(&mut fields, record);
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

    /// As JSON.
    pub(super) fn json(&self) -> String {
        // Keys are strings and values have no way to fail.
        serde_json::to_string(self).unwrap_or_default()
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

fn push_record<'a>(fields: &mut Vec<(&'static str, Field<'a>)>, record: &'a Record<'a>) {
    match record {
        Record::Boot(boot) => {
            fields.extend([("boot", Id(boot.boot)), ("atMs", Time(boot.wall_ms))]);
        }
        Record::Request(request) => push_request(fields, request),
        Record::Delivered(delivered) => push_delivered(fields, delivered),
        Record::Reply(reply) => push_reply(fields, reply),
        Record::Done(done) => fields.push(("count", Number(done.count))),
        Record::Retry(retry) => {
            fields.extend([
                ("count", Number(retry.count)),
                ("attempt", Number(retry.attempt.into())),
                ("notBeforeMs", Time(retry.not_before_ms)),
                ("message", Bytes(retry.message)),
            ]);
        }
        Record::Dead(dead) => {
            fields.extend([("count", Number(dead.count)), ("atMs", Time(dead.wall_ms)), ("code", code(dead.code))]);
            fields.extend([("attempt", Number(dead.attempt.into())), ("message", Bytes(dead.message))]);
        }
        Record::Mark(mark) => fields.push(("upto", Number(mark.upto.0))),
        Record::Moved(moved) => push_moved(fields, moved),
        Record::Lost(lost) => fields.push(("through", Number(lost.through.0))),
    }
}

fn push_request<'a>(fields: &mut Vec<(&'static str, Field<'a>)>, request: &Request<'a>) {
    fields.extend([
        ("count", Number(request.count)),
        ("action", Bytes(request.action)),
        ("session", Bytes(request.session)),
        ("number", Number(request.number)),
        ("send", Flag(RequestFlags(request.flags).has(RequestFlags::SEND))),
        ("dialect", Text(if request.dialect == 0 { "binary" } else { "json" }.into())),
        ("receivedMs", Time(request.received_ms)),
        ("expiresMs", Time(request.expires_ms)),
        ("maxAttempts", Number(request.max_attempts.into())),
    ]);
    push_some(fields, "clientId", request.tag);
    push_some(fields, "idempotencyKey", request.idempotency_key);
    push_some(fields, "options", request.options);
    push_headers(fields, request.headers);
    push_data(fields, request.payload);
}

fn push_delivered<'a>(fields: &mut Vec<(&'static str, Field<'a>)>, delivered: &Delivered<'a>) {
    fields.extend([
        ("count", Number(delivered.count)),
        ("attempt", Number(delivered.attempt.into())),
        ("session", Bytes(delivered.session)),
        ("delivery", Id(delivered.delivery)),
        ("boot", Id(delivered.boot)),
        ("atMs", Time(delivered.wall_ms)),
    ]);
}

fn push_reply<'a>(fields: &mut Vec<(&'static str, Field<'a>)>, reply: &Reply<'a>) {
    fields.extend([
        ("count", Number(reply.count)),
        ("attempt", Number(reply.attempt.into())),
        ("atMs", Time(reply.wall_ms)),
        ("deliveredAfterMs", Number(reply.delivered_after_ms.into())),
        ("handledAfterMs", Number(reply.handled_after_ms.into())),
    ]);
    if reply.code != 0 {
        fields.push(("code", code(reply.code)));
    }
    push_some(fields, "ownCode", reply.own_code);
    push_some(fields, "options", reply.options);
    push_headers(fields, reply.headers);
    push_data(fields, reply.payload);
}

fn push_moved<'a>(fields: &mut Vec<(&'static str, Field<'a>)>, moved: &Moved<'a>) {
    fields.extend([
        ("movedKind", Text(moved.kind.name().into())),
        ("movedSequence", Number(moved.sequence.0)),
    ]);
    match Record::decode(moved.kind, moved.body) {
        Ok(Record::Request(request)) => push_request(fields, &request),
        Ok(Record::Delivered(delivered)) => push_delivered(fields, &delivered),
        Ok(Record::Reply(reply)) => push_reply(fields, &reply),
        Ok(_) => fields.push(("body", Data(moved.body))),
        Err(error) => fields.push(("error", Text(error.to_string().into()))),
    }
}

/// What is often empty is left out then.
fn push_some<'a>(fields: &mut Vec<(&'static str, Field<'a>)>, key: &'static str, bytes: &'a [u8]) {
    if !bytes.is_empty() {
        fields.push((key, Bytes(bytes)));
    }
}

fn push_headers<'a>(fields: &mut Vec<(&'static str, Field<'a>)>, bytes: &'a [u8]) {
    match Headers::new(bytes).collect::<Result<Vec<_>, BadHeaders>>() {
        Ok(pairs) if pairs.is_empty() => {}
        Ok(pairs) => fields.push(("headers", Field::Headers(pairs))),
        Err(_) => fields.push(("headers", Bytes(bytes))),
    }
}

fn push_data<'a>(fields: &mut Vec<(&'static str, Field<'a>)>, data: &'a [u8]) {
    fields.extend([("size", Number(data.len() as u64)), ("data", Data(data))]);
}

fn code(number: u16) -> Field<'static> {
    match Code::from_number(number) {
        Some(code) => Text(code.text().into()),
        None => Number(number.into()),
    }
}
