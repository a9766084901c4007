//! The JSON dialect: any bytes, read by a server.

use bytes::BytesMut;
use ringpost_protocol::{
    Content, Outgoing, WireError,
    json::{Context, Decoder, Parser, encode},
    limits::JSON_OVERHEAD_BYTES,
    message::{ClientMessage, Deliver, Reply, ServerMessage},
};

use crate::choices::{Choices, pieces};

/// The boot id that the vectors of the dialect assume.
const BOOT: u64 = 0x0123_4567_89ab_cdef;
const MAX_PAYLOAD: u32 = 1024;
/// What may wait for the rest of an object.
const MAX_OBJECT: usize = (MAX_PAYLOAD + JSON_OVERHEAD_BYTES) as usize;

/// Reads bytes as objects. The first one says how the others are cut, the second whether the end of them is repeated
/// until it is longer than an object may be.
///
/// However they are cut, the messages and the error are the same; nothing that is longer than allowed is waited for; and
/// what was read can be written for a handler and for a requester, as JSON, on a line.
///
/// # Panics
/// If something of that does not hold.
pub fn json(input: &[u8]) {
    let mut choices = Choices::new(input);
    let size = choices.below(256) as u8;
    let repeated = choices.below(256) as usize;
    let mut stream = choices.rest().to_vec();
    // Most inputs are as they are: a fuzzer has no patience for 60 KiB each time.
    if repeated >= 240 && stream.len() > repeated - 240 {
        let end = stream[repeated - 240..].to_vec();
        while stream.len() <= MAX_OBJECT + 256 {
            stream.extend_from_slice(&end);
        }
    }
    let whole = read(&stream, 0);
    assert_eq!(read(&stream, size), whole, "what is read does not depend on how the stream was cut");
    for message in &whole.0 {
        write(message);
    }
}

fn read(stream: &[u8], size: u8) -> (Vec<ClientMessage>, Option<WireError>) {
    let (mut decoder, mut parser) = (Decoder::new(BOOT, MAX_PAYLOAD), Parser::new());
    let (mut buffer, mut messages) = (BytesMut::new(), Vec::new());
    for piece in pieces(stream, size) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut parser, &mut buffer) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
        assert!(buffer.len() <= MAX_OBJECT, "{} bytes wait, {MAX_OBJECT} are allowed", buffer.len());
    }
    (messages, None)
}

/// Writes what a message carries, as it would be passed on.
fn write(message: &ClientMessage) {
    match message {
        ClientMessage::Request(request) => {
            let deliver = Deliver {
                delivery: 1,
                flags: request.flags,
                content: request.content.clone(),
                ..Deliver::default()
            };
            check_line(&ServerMessage::Deliver(deliver), &request.content);
        }
        ClientMessage::Answer(answer) => {
            let reply = Reply { number: 1, content: answer.content.clone(), ..Reply::default() };
            check_line(&ServerMessage::Reply(reply), &answer.content);
        }
        _ => {}
    }
}

fn check_line(message: &ServerMessage, content: &Content) {
    let context = Context { boot: BOOT, wall_ms: 1, lines: true };
    let (mut parser, mut out) = (Parser::new(), Outgoing::new());
    let written = encode(message, &context, &mut parser, &mut out);
    // The payload of an answer may be an error's text, which is no JSON; what is validated must pass.
    if !content.is_validated_json() && written.is_err() {
        return;
    }
    assert_eq!(written, Ok(()), "what came as JSON can go as JSON");
    let line = out.drain_to_vec();
    assert!(line.ends_with(b"\n"), "a line ends");
    let text = &line[..line.len() - 1];
    let parsed = serde_json::from_slice::<serde::de::IgnoredAny>(text);
    assert!(parsed.is_ok(), "{parsed:?} in {}", String::from_utf8_lossy(text));
}
