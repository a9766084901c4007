//! What the records of each kind carry, as keys and values.

use ringpost_broker::log::{
    Record,
    body::{Delivered, Moved, Reply, Request},
};
use ringpost_protocol::{BadHeaders, Code, Headers, message::RequestFlags};

use super::entry::{
    Field::{self, Bytes, Data, Flag, Id, Number, Text, Time},
    Fields,
};

/// What a record carries. What is often empty is left out then.
pub(super) fn push_record<'a>(fields: &mut Fields<'a>, record: Record<'a>) {
    match record {
        Record::Boot(boot) => {
            fields.extend([("boot", Id(boot.boot)), ("atMs", Time(boot.wall_ms))]);
        }
        Record::Request(request) => push_request(fields, request),
        Record::Delivered(delivered) => push_delivered(fields, delivered),
        Record::Reply(reply) => push_reply(fields, reply),
        Record::Done(done) => fields.push(("count", Number(done.count))),
        Record::Claimed(claimed) => fields.push(("count", Number(claimed.count))),
        Record::Retry(retry) => {
            fields.extend([
                ("count", Number(retry.count)),
                ("attempt", Number(retry.attempt.into())),
                ("notBeforeMs", Time(retry.not_before_ms)),
                ("message", Bytes(retry.message)),
            ]);
        }
        Record::Dead(dead) => {
            fields.extend([
                ("count", Number(dead.count)),
                ("atMs", Time(dead.wall_ms)),
                ("code", code(dead.code)),
            ]);
            fields.extend([("attempt", Number(dead.attempt.into())), ("message", Bytes(dead.message))]);
        }
        Record::Mark(mark) => fields.push(("upto", Number(mark.upto.0))),
        Record::Moved(moved) => push_moved(fields, moved),
        Record::Lost(lost) => fields.push(("through", Number(lost.through.0))),
    }
}

fn push_request<'a>(fields: &mut Fields<'a>, request: Request<'a>) {
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
    if request.joins != 0 {
        fields.push(("joins", Number(request.joins)));
    }
    if request.instance != 0 {
        fields.push(("instance", Id(request.instance)));
    }
    push_some(fields, "clientId", request.tag);
    push_some(fields, "idempotencyKey", request.idempotency_key);
    push_some(fields, "options", request.options);
    push_headers(fields, request.headers);
    push_data(fields, request.payload);
}

fn push_delivered<'a>(fields: &mut Fields<'a>, delivered: Delivered<'a>) {
    fields.extend([
        ("count", Number(delivered.count)),
        ("attempt", Number(delivered.attempt.into())),
        ("session", Bytes(delivered.session)),
        ("delivery", Id(delivered.delivery)),
        ("boot", Id(delivered.boot)),
        ("atMs", Time(delivered.wall_ms)),
    ]);
}

fn push_reply<'a>(fields: &mut Fields<'a>, reply: Reply<'a>) {
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

fn push_moved<'a>(fields: &mut Fields<'a>, moved: Moved<'a>) {
    fields
        .extend([("movedKind", Text(moved.kind.name().into())), ("movedSequence", Number(moved.sequence.0))]);
    match Record::decode(moved.kind, moved.body) {
        Ok(record) => push_record(fields, record),
        Err(error) => fields.push(("error", Text(error.to_string().into()))),
    }
}

fn push_some<'a>(fields: &mut Fields<'a>, key: &'static str, bytes: &'a [u8]) {
    if !bytes.is_empty() {
        fields.push((key, Bytes(bytes)));
    }
}

fn push_headers<'a>(fields: &mut Fields<'a>, bytes: &'a [u8]) {
    match Headers::new(bytes).collect::<Result<Vec<_>, BadHeaders>>() {
        Ok(pairs) if pairs.is_empty() => {}
        Ok(pairs) => fields.push(("headers", Field::Headers(pairs))),
        Err(_) => fields.push(("headers", Bytes(bytes))),
    }
}

fn push_data<'a>(fields: &mut Fields<'a>, data: &'a [u8]) {
    fields.extend([("size", Number(data.len() as u64)), ("data", Data(data))]);
}

fn code(number: u16) -> Field<'static> {
    match Code::from_number(number) {
        Some(code) => Text(code.text().into()),
        None => Number(number.into()),
    }
}
