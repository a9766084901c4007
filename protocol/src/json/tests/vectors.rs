//! The files in `vectors/json/`, which authors of clients in other languages can use too: see the README there.

use std::{fs, path::Path};

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{BOOT, WALL_MS, decode, decode_pieces};
use crate::{
    Code, Content, Headers, Outgoing, encode_headers,
    json::{Context, Parser, encode},
    message::{
        Answer, ClientMessage, Deliver, ErrorReport, Leg, Progress, Reply, Request, RequestFlags, Scope,
        ServerMessage, Tag, Target, Verdict,
    },
};

/// Every client vector means what it says, whole and in single bytes; every server vector is written as it says.
#[test]
fn files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/json");
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let vector: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        match vector.get("client") {
            Some(bytes) => check_client(&path, &vector, bytes.as_str().unwrap()),
            None => check_server(&path, &vector),
        }
        count += 1;
    }
    assert!(count >= 30, "only {count} vectors in {}", folder.display());
}

fn check_client(path: &Path, vector: &Value, bytes: &str) {
    let decoded = decode(bytes);
    assert_eq!(decode_pieces(bytes.as_bytes().chunks(1)), decoded, "{}", path.display());
    let means: Vec<Value> = decoded.messages.iter().map(meaning).collect();
    assert_eq!(Value::from(means), vector["means"], "{}", path.display());
    let code = decoded.error.map(|error| error.code.text());
    assert_eq!(json!(code), vector["error"], "{}", path.display());
    if let Some(lines) = vector.get("lines") {
        assert_eq!(json!(decoded.lines), *lines, "{}", path.display());
    }
}

fn check_server(path: &Path, vector: &Value) {
    let context = Context { boot: BOOT, wall_ms: WALL_MS, lines: true };
    let mut out = Outgoing::new();
    let result = encode(&server_message(&vector["server"]), &context, &mut Parser::new(), &mut out);
    let bytes = String::from_utf8(out.drain_to_vec()).unwrap();
    match vector["bytes"].as_str() {
        Some(expected) => assert_eq!((bytes.as_str(), result), (expected, Ok(())), "{}", path.display()),
        None => assert!(bytes.is_empty() && result.is_err(), "{}: {bytes}", path.display()),
    }
    if !bytes.is_empty() {
        serde_json::from_str::<Value>(&bytes).unwrap();
    }
}

/// A client's message as the vectors write it: what is empty or 0 is left out.
fn meaning(message: &ClientMessage) -> Value {
    let name = |target: &Target| match target {
        Target::Name(name) => text(name),
        Target::Number(number) => json!(number),
    };
    let mut members = match message {
        ClientMessage::Register(register) => json!({
            "kind": "register",
            "action": text(&register.action),
            "credit": register.credit,
            "session": text(&register.session),
        }),
        ClientMessage::Deregister(target) => json!({"kind": "deregister", "action": name(target)}),
        ClientMessage::Request(request) => request_meaning(request),
        ClientMessage::Cancel(target) => json!({"kind": "cancel", "clientId": name(target)}),
        ClientMessage::Acknowledge(target) => json!({"kind": "acknowledge", "clientId": name(target)}),
        ClientMessage::Answer(answer) => answer_meaning(answer),
        ClientMessage::Progress(progress) => json!({
            "kind": "progress",
            "delivery": progress.number,
            "data": text(progress.content.payload()),
            "options": text(progress.content.options()),
        }),
        ClientMessage::WatchReceivers(true) => json!({"kind": "watchReceivers"}),
        ClientMessage::Ping(0) => json!({"kind": "ping"}),
        other => panic!("JSON cannot say {other:?}"),
    };
    if let Value::Object(members) = &mut members {
        members.retain(|_, value| {
            *value != json!("") && *value != json!(0) && *value != json!([]) && *value != json!({})
        });
    }
    members
}

fn request_meaning(request: &Request) -> Value {
    let flags: Vec<&str> = [
        (RequestFlags::SEND, "send"),
        (RequestFlags::BROADCAST, "broadcast"),
        (RequestFlags::DURABLE, "durable"),
        (RequestFlags::PROGRESS, "progress"),
    ]
    .into_iter()
    .filter_map(|(flag, name)| request.flags.has(flag).then_some(name))
    .collect();
    let headers: Map<String, Value> = Headers::new(request.content.headers())
        .map(|pair| pair.map(|(key, value)| (key.to_owned(), value.into())).unwrap())
        .collect();
    json!({
        "kind": "request",
        "action": text(request.content.name()),
        "clientId": text(request.content.tag()),
        "data": text(request.content.payload()),
        "options": text(request.content.options()),
        "headers": headers,
        "flags": flags,
        "ttlMs": request.ttl_ms,
        "timeoutMs": request.timeout_ms,
        "maxAttempts": request.max_attempts,
    })
}

fn answer_meaning(answer: &Answer) -> Value {
    let payload = text(answer.content.payload());
    let code = text(answer.content.name());
    let failure =
        |kind: &str| json!({"kind": kind, "delivery": answer.delivery, "error": payload, "code": code});
    match answer.verdict {
        Verdict::Reply => json!({
            "kind": "reply",
            "delivery": answer.delivery,
            "data": payload,
            "options": text(answer.content.options()),
        }),
        Verdict::Error => failure("error"),
        Verdict::Cancelled => failure("cancelled"),
        Verdict::Reject => failure("reject"),
        Verdict::Failed(_) | Verdict::Declined(_) => panic!("JSON has no word for a peer's answers"),
        Verdict::Retry(after_ms) => {
            let mut members = failure("retry");
            members["afterMs"] = after_ms.into();
            members
        }
    }
}

fn text(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes).unwrap().into()
}

/// The message that a server vector describes.
fn server_message(vector: &Value) -> ServerMessage {
    let string = |key: &str| vector[key].as_str().unwrap_or("").to_owned();
    let number = |key: &str| vector[key].as_u64().unwrap_or(0);
    let narrow =
        |key: &str, absent: u32| vector[key].as_u64().map_or(absent, |number| number.try_into().unwrap());
    let code = || Code::ALL.iter().copied().find(|code| code.text() == vector["code"]);
    let tag = Tag::from_slice(string("clientId").as_bytes());
    let content = content(vector);
    match vector["kind"].as_str().unwrap() {
        "deliver" => ServerMessage::Deliver(Deliver {
            delivery: number("delivery"),
            attempt: number("attempt") as u16,
            time_left_ms: narrow("timeLeftMs", u32::MAX),
            received_at_ms: number("receivedAtMs"),
            content,
            ..Deliver::default()
        }),
        "reply" => ServerMessage::Reply(Reply {
            tag,
            code: code(),
            leg: vector.get("leg").map(|leg| Leg {
                index: leg["index"].as_u64().unwrap() as u32,
                expected: leg["expected"].as_u64().unwrap() as u32,
            }),
            attempt: number("attempt") as u16,
            received_at_ms: number("receivedAtMs"),
            delivered_after_ms: narrow("deliveredAfterMs", u32::MAX),
            handled_after_ms: narrow("handledAfterMs", u32::MAX),
            content,
            ..Reply::default()
        }),
        "asked" => ServerMessage::Asked { number: 1, tag, content },
        "cancel" => ServerMessage::Cancel { delivery: number("delivery"), tag },
        "accepted" => ServerMessage::Accepted { upto: 1, tag },
        "progress" => ServerMessage::Progress(Progress { number: 1, tag, content }),
        "receivers" => ServerMessage::Receivers(Bytes::from(string("data"))),
        "report" => ServerMessage::Error(ErrorReport {
            scope: match vector["scope"].as_str().unwrap() {
                "connection" => Scope::Connection,
                "registration" => Scope::Registration,
                _ => Scope::Delivery,
            },
            number: number("delivery"),
            code: code().unwrap(),
            message: string("message"),
        }),
        "pong" => ServerMessage::Pong(0),
        "ping" => ServerMessage::Ping(0),
        kind => panic!("no such kind of server vector: {kind}"),
    }
}

/// The content of a server vector: it came from a JSON client unless the vector says `"from":"binary"`.
fn content(vector: &Value) -> Content {
    let string = |key: &str| vector[key].as_str().unwrap_or("").to_owned();
    let headers = vector["headers"].as_object().into_iter().flatten();
    let headers =
        encode_headers(headers.map(|(key, value)| (key.as_str(), value.as_str().unwrap()))).unwrap();
    let (name, options, payload) = (string("action"), string("options"), string("data"));
    if vector["from"] == "binary" || vector.get("code").is_some() {
        let name = if name.is_empty() { string("remoteCode") } else { name };
        return Content::from_parts(name.as_bytes(), options.as_bytes(), &headers, payload.as_bytes());
    }
    // Through the decoder, as it comes in life.
    let parts = [
        ("id", json!(name).to_string()),
        ("clientId", string("clientId")),
        ("data", payload),
        ("options", options),
    ];
    let members: Vec<_> = parts
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("\"{key}\":{value}"))
        .collect();
    let decoded = decode(format!("{{{}}}", members.join(",")));
    match decoded.messages.into_iter().next() {
        Some(ClientMessage::Request(request)) => request.content,
        other => panic!("{other:?}, {:?}", decoded.error),
    }
}
