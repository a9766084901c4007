//! The JSON codec, the server's side: a request on its way in and out.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use ringpost_cli::load::wire;
use ringpost_protocol::{
    Content, Outgoing, Span,
    json::{Context, Decoder, Parser, encode},
    message::{Deliver, Reply, ServerMessage},
};

use super::Work;

/// The broker's boot id, which a `serverId` has in it.
pub const BOOT: u64 = 7;
/// The decoders' bound.
pub const MAX_PAYLOAD: u32 = 1 << 20;
/// How the encoder is to write.
pub const CONTEXT: Context = Context { boot: BOOT, wall_ms: 1_700_000_000_000, lines: true };

const CLIENT_ID: &str = r#""000000000001""#;

fn data(size: usize) -> String {
    String::from_utf8_lossy(&wire::payload(size)).into_owned()
}

fn content(size: usize) -> Content {
    let data = data(size);
    let tag = Span::new(0, CLIENT_ID.len());
    let payload = Span::new(tag.end as usize, CLIENT_ID.len() + data.len());
    let none = Span::default();
    Content::from_spans(Bytes::from(format!("{CLIENT_ID}{data}")), none, tag, none, none, payload)
}

/// A request for a handler, with `size` bytes of data.
pub fn deliver(size: usize) -> ServerMessage {
    ServerMessage::Deliver(Deliver { delivery: 1, attempt: 1, content: content(size), ..Deliver::default() })
}

/// A reply for a requester, with `size` bytes of data.
pub fn reply(size: usize) -> ServerMessage {
    let tag = CLIENT_ID.as_bytes().into();
    ServerMessage::Reply(Reply { number: 1, tag, attempt: 1, content: content(size), ..Reply::default() })
}

/// A request as its client writes it.
pub fn request_line(size: usize) -> String {
    format!("{{\"id\":\"bench\",\"clientId\":{CLIENT_ID},\"data\":{}}}\n", data(size))
}

/// A handler's answer to the delivery of [`deliver`], with the `serverId` that the encoder gives it.
///
/// # Panics
/// If the encoder wrote no JSON object.
pub fn answer_line(size: usize) -> String {
    let mut out = Outgoing::new();
    let written = encode(&deliver(size), &CONTEXT, &mut Parser::new(), &mut out);
    let line: serde_json::Value = serde_json::from_slice(&out.drain_to_vec()).unwrap_or_default();
    let server_id = &line["message"]["serverId"];
    assert!(written.is_ok() && server_id.is_string(), "a delivery has a serverId: {line}");
    let data = data(size);
    format!(
        "{{\"action\":\"response\",\"message\":{{\"serverId\":{server_id},\"clientId\":{CLIENT_ID},\"data\":{data}}}}}\n"
    )
}

pub(super) fn all() -> Vec<Work> {
    let mut all = Vec::new();
    for (kind, line) in [("request", request_line(128)), ("answer", answer_line(128))] {
        let (mut decoder, mut parser, mut buffer) =
            (Decoder::new(BOOT, MAX_PAYLOAD), Parser::new(), BytesMut::new());
        all.push(Work::new(format!("json/decode/{kind}"), 1, move || {
            // The message is gone when the next one comes, so that the buffer's memory is used again.
            buffer.extend_from_slice(line.as_bytes());
            assert!(matches!(black_box(decoder.decode(&mut parser, &mut buffer)), Ok(Some(_))));
        }));
    }
    for (kind, message) in [("deliver", deliver(128)), ("reply", reply(128))] {
        let (mut out, mut parser) = (Outgoing::new(), Parser::new());
        all.push(Work::new(format!("json/encode/{kind}"), 1, move || {
            out.tail().clear();
            assert!(encode(black_box(&message), &CONTEXT, &mut parser, &mut out).is_ok());
        }));
    }
    all
}
