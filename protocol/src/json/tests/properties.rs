//! Properties: any bytes, cut anywhere.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{BOOT, WALL_MS, decode, decode_pieces};
use crate::{
    Content, Outgoing,
    json::{Context, Decoder, NotJson, Parser, encode},
    limits::MIN_SHARED_BYTES,
    message::{ClientMessage, Deliver, Reply, ServerMessage, Tag},
};

const CONTEXT: Context = Context { boot: BOOT, wall_ms: WALL_MS, lines: false };

/// Bytes that come close to the dialect: pieces of it in any order, with some noise.
fn almost_json() -> impl Strategy<Value = Vec<u8>> {
    let pieces: &[&[u8]] = &[
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
        b"\r",
        b"0",
        b"-1.5e3",
        b"null",
        b"true",
        b"\xff",
        "ü".as_bytes(),
        b"\"id\":\"a\"",
        b"\"action\":",
        b"\"message\":{",
        b"\"data\":",
        b"\"options\":{\"ttl\":5}",
        b"\"clientId\":1",
        b"\"response\"",
        b"\\u00e4",
        b"\\\"",
        b"{\"action\":\"ping\"}",
        b"{\"id\":\"a\",\"data\":[1]}",
        b"{\"action\":\"response\",\"message\":{\"serverId\":\"0123456789abcdef-1\",\"data\":{}}}",
    ];
    let piece = prop_oneof![
        8 => prop::sample::select(pieces.to_vec()).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        // Exact in binary: serde_json may be off by one place in others.
        any::<i32>().prop_map(|eighths| Value::from(f64::from(eighths) / 8.0)),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// The bytes in the pieces that these cuts make of them.
fn cut<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut ends: Vec<usize> =
        cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([bytes.len()]).collect();
    ends.sort_unstable();
    let mut start = 0;
    ends.into_iter().map(|end| &bytes[std::mem::replace(&mut start, end)..end]).collect()
}

fn cuts() -> impl Strategy<Value = Vec<prop::sample::Index>> {
    prop::collection::vec(any::<prop::sample::Index>(), 0..8)
}

proptest! {
    /// No bytes make the decoder panic, and what it makes of them does not depend on how they are cut.
    #[test]
    fn cuts_do_not_matter(bytes in almost_json(), cuts in cuts()) {
        let whole = decode(&bytes);
        prop_assert_eq!(&decode_pieces(cut(&bytes, &cuts)), &whole);
        prop_assert_eq!(&decode_pieces(bytes.chunks(1)), &whole);
        // Neither do calls without new bytes.
        prop_assert_eq!(&decode_pieces(bytes.chunks(1).flat_map(|piece| [piece, &[]])), &whole);
    }

    /// Neither do bytes of no kind at all.
    #[test]
    fn noise(bytes in prop::collection::vec(any::<u8>(), 0..200), cuts in cuts()) {
        let bytes = [b"{", &bytes[..]].concat();
        prop_assert_eq!(decode_pieces(cut(&bytes, &cuts)), decode(&bytes));
    }

    /// Beside serde_json: any value as data, any strings and options around it, come out as they were written.
    #[test]
    fn requests_agree_with_serde(
        data in any_json(), name in any::<String>(), tag in any_json(), more in any_json(), pretty: bool, cuts in cuts(),
    ) {
        let message = json!({"more": more, "id": name, "data": data, "clientId": tag, "options": {"x": more}});
        let text = if pretty { serde_json::to_string_pretty(&message) } else { serde_json::to_string(&message) };
        let decoded = decode_pieces(cut(text.unwrap().as_bytes(), &cuts));
        if tag.is_array() || tag.is_object() {
            prop_assert!(decoded.error.is_some());
            return Ok(());
        }
        prop_assume!(!decoded.error.as_ref().is_some_and(|error| error.message.contains("`clientId` has")));
        let [ClientMessage::Request(request)] = &decoded.messages[..] else { panic!("{decoded:?}") };
        let content = &request.content;
        let value = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap();
        prop_assert_eq!(content.name(), name.as_bytes());
        prop_assert_eq!(&value(content.payload()), &data);
        prop_assert_eq!(value(content.options()), json!({"x": more}));
        prop_assert_eq!(if tag.is_null() { Value::Null } else { value(content.tag()) }, tag);
        if !pretty {
            prop_assert_eq!(content.payload(), serde_json::to_vec(&data).unwrap());
        }
    }

    /// What is delivered to a handler and sent back by it comes to the requester as the handler wrote it, and every
    /// object on the way is JSON.
    #[test]
    fn there_and_back(data in any_json(), name in any::<String>(), delivery: u64) {
        let sent = json!({"id": name, "data": data, "clientId": "c"}).to_string();
        let [ClientMessage::Request(request)] = &decode(&sent).messages[..] else { panic!("{sent}") };
        let content = request.content.clone();
        let deliver = written(&ServerMessage::Deliver(Deliver { delivery, content, ..Deliver::default() })).unwrap();
        prop_assert_eq!(&deliver["message"]["data"], &data);
        prop_assert_eq!(&deliver["message"]["id"], &json!(name));
        let answer = json!({"action": "response", "message": deliver["message"]}).to_string();
        let [ClientMessage::Answer(answer)] = &decode(&answer).messages[..] else { panic!("{answer}") };
        prop_assert_eq!(answer.delivery, delivery);
        let tag = Tag::from_slice(request.content.tag());
        let reply = Reply { tag, content: answer.content.clone(), ..Reply::default() };
        let reply = written(&ServerMessage::Reply(reply)).unwrap();
        prop_assert_eq!(&reply["message"]["data"], &data);
        prop_assert_eq!(&reply["message"]["clientId"], &json!("c"));
    }

    /// Beside serde_json: the same bytes are JSON, but for numbers beyond the range of a float, and depth.
    #[test]
    fn validation_agrees_with_serde(bytes in almost_json()) {
        let expected = serde_json::from_slice::<Value>(&bytes);
        let bounded = expected.as_ref().is_err_and(|error| error.to_string().contains("out of range"));
        prop_assume!(!bounded);
        prop_assert_eq!(Parser::new().is_json(&bytes), expected.is_ok());
    }

    /// A binary client's payload reaches a JSON client as it is, or fails with nothing written.
    #[test]
    fn payloads_of_binary_clients(bytes in almost_json()) {
        let expected = if bytes.is_empty() { Some(Value::Null) } else { serde_json::from_slice(&bytes).ok() };
        let reply = Reply { content: Content::from_payload(bytes), ..Reply::default() };
        let written = written(&ServerMessage::Reply(reply));
        prop_assert_eq!(written.ok().map(|reply| reply["message"]["data"].clone()), expected);
    }
}

/// What a message is written as, parsed.
fn written(message: &ServerMessage) -> Result<Value, NotJson> {
    let mut out = Outgoing::new();
    let result = encode(message, &CONTEXT, &mut Parser::new(), &mut out);
    assert_eq!(result.is_err(), out.is_empty());
    result.map(|()| serde_json::from_slice(&out.drain_to_vec()).unwrap())
}

/// The first object tells whether the client writes lines, also when the newline comes later or behind blanks.
#[test]
fn lines_are_noticed() {
    let ping = r#"{"action":"ping"}"#;
    for (text, lines) in [
        (format!("{ping}\n{ping}\n"), true),
        (format!("\n{ping} \r\n"), true),
        (format!("{ping}{ping}\n"), false),
        (format!("\n{ping} {ping}\n"), false),
        (ping.to_owned(), false),
    ] {
        assert_eq!(decode(&text).lines, lines, "{text}");
        assert_eq!(decode_pieces(text.as_bytes().chunks(1)).lines, lines, "{text}");
    }
    // Before the answer to the first object is written, if it is there.
    let mut decoder = Decoder::new(BOOT, 1000);
    let mut buffer = bytes::BytesMut::from(&b"{\"action\":\"ping\"}\n"[..]);
    decoder.decode(&mut Parser::new(), &mut buffer).unwrap();
    assert!(decoder.lines() && buffer.is_empty());
}

/// In lines, objects share a segment and end with a newline; otherwise each is sent by itself. Large data is not copied.
#[test]
fn sends() {
    let pong = ServerMessage::Pong(0);
    let mut parser = Parser::new();
    let mut out = Outgoing::new();
    for _ in 0..2 {
        encode(&pong, &CONTEXT, &mut parser, &mut out).unwrap();
    }
    let sends: Vec<_> = std::iter::from_fn(|| out.pop(Vec::new)).map(|part| part.as_ref().to_vec()).collect();
    assert_eq!(sends, [br#"{"action":"pong"}"#; 2]);
    for _ in 0..2 {
        encode(&pong, &Context { lines: true, ..CONTEXT }, &mut parser, &mut out).unwrap();
    }
    assert_eq!(out.pop(Vec::new).unwrap().as_ref(), b"{\"action\":\"pong\"}\n{\"action\":\"pong\"}\n");

    let text = format!(r#"{{"id":"a","data":"{}"}}"#, "x".repeat(MIN_SHARED_BYTES));
    let [ClientMessage::Request(request)] = &decode(&text).messages[..] else { panic!() };
    let deliver = Deliver { content: request.content.clone(), ..Deliver::default() };
    encode(&ServerMessage::Deliver(deliver), &CONTEXT, &mut parser, &mut out).unwrap();
    let sends: Vec<_> = std::iter::from_fn(|| out.pop(Vec::new)).collect();
    assert_eq!(sends[1].as_ref().as_ptr(), request.content.payload().as_ptr());
}

/// A request's parts lie in the buffer that it came in, unless a part of it is written differently there.
#[test]
fn content_shares_the_buffer() {
    let mut buffer = bytes::BytesMut::from(&br#"{"id":"a","data":[1],"clientId":"c","options":{}}"#[..]);
    let (start, end) = (buffer.as_ptr() as usize, buffer.as_ptr() as usize + buffer.len());
    let message = Decoder::new(BOOT, 1000).decode(&mut Parser::new(), &mut buffer).unwrap();
    let Some(ClientMessage::Request(request)) = message else { panic!("{message:?}") };
    let content = &request.content;
    for part in [content.name(), content.payload(), content.tag(), content.options()] {
        assert!((start..end).contains(&(part.as_ptr() as usize)));
    }
}
