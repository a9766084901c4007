//! The binary dialect: any bytes, read by a server and by a client.

use bytes::{Bytes, BytesMut};
use ringpost_protocol::{
    Content, Outgoing, WireError,
    dialect::{Decoded, ServerCodec},
    frame::{FrameReader, HEADER_BYTES, Preface, decode_client, decode_server, encode_client, encode_server},
    json::Parser,
    limits::FRAME_OVERHEAD_BYTES,
    message::{ClientMessage, ServerMessage},
};

use crate::choices::{Choices, pieces};

const MAX_PAYLOAD: u32 = 4096;

/// Reads bytes as frames. The first one says how the others are cut.
///
/// However they are cut, the frames are the same; each is read or refused, as a client's and as a server's; what was
/// read is written and read again as the same; no claimed length makes a reader want more than its limit; and a
/// server's codec gets the same out of the stream, behind a preface, as these functions do.
///
/// # Panics
/// If something of that does not hold.
pub fn frames(input: &[u8]) {
    let mut choices = Choices::new(input);
    let size = choices.below(256) as u8;
    let stream = choices.rest();
    let whole = cut_frames(stream, 0);
    assert_eq!(cut_frames(stream, size), whole, "the frames do not depend on how the stream was cut");
    for frame in &whole.0 {
        survives_client(frame);
        survives_server(frame);
    }
    // Both may refuse; all that is asked is that they do not break.
    let _ = Preface::decode(stream);
    let (heard, error) = hear(stream, size);
    assert_eq!(hear(stream, 0), (heard.clone(), error.clone()), "nor does what a server hears");
    assert_eq!(heard, expected(&whole.0), "a server hears what the frames say");
    assert!(error.is_some() || whole.1.is_none(), "what no reader takes a server refuses");
}

/// The frames up to the first that is refused or not whole, and the refusal.
fn cut_frames(stream: &[u8], size: u8) -> (Vec<Bytes>, Option<WireError>) {
    let reader = FrameReader::new(MAX_PAYLOAD);
    let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
    for piece in pieces(stream, size) {
        buffer.extend_from_slice(piece);
        loop {
            match reader.next(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
        let wanted = buffer.len() + reader.missing(&buffer);
        let most = HEADER_BYTES + (MAX_PAYLOAD + FRAME_OVERHEAD_BYTES) as usize;
        assert!(wanted <= most, "a frame of {wanted} bytes is awaited, {most} are allowed");
    }
    (frames, None)
}

fn survives_client(frame: &Bytes) {
    let Ok(Some(message)) = decode_client(frame.clone()) else { return };
    let mut out = Outgoing::new();
    encode_client(&message, &mut out);
    let written = Bytes::from(out.drain_to_vec());
    assert_eq!(decode_client(written), Ok(Some(message)), "what a client said is written as it was said");
}

fn survives_server(frame: &Bytes) {
    let Ok(Some(mut message)) = decode_server(frame.clone()) else { return };
    // Of a reply only an error has a name. Another's is passed over, and not written.
    if let ServerMessage::Reply(reply) = &mut message
        && reply.code.is_none()
    {
        let content = &reply.content;
        reply.content = Content::from_parts(b"", content.options(), content.headers(), content.payload());
    }
    let mut out = Outgoing::new();
    encode_server(&message, &mut out);
    let written = Bytes::from(out.drain_to_vec());
    assert_eq!(decode_server(written), Ok(Some(message)), "what a server said is written as it was said");
}

/// What the codec of a server makes of the stream behind a client's preface.
fn hear(stream: &[u8], size: u8) -> (Vec<String>, Option<WireError>) {
    let (mut codec, mut parser, mut out) = (ServerCodec::new(7, MAX_PAYLOAD), Parser::new(), Outgoing::new());
    let (mut buffer, mut heard) = (BytesMut::new(), Vec::new());
    let preface = Preface::plain().encode();
    for piece in [&preface[..]].into_iter().chain(pieces(stream, size)) {
        buffer.extend_from_slice(piece);
        loop {
            match codec.decode(&mut parser, &mut buffer, &mut out) {
                Ok(Decoded::Message(message)) => heard.push(format!("{message:?}")),
                Ok(Decoded::Opened(_)) => {}
                Ok(Decoded::Secure(hello)) => panic!("{hello:?} behind a plain preface"),
                Ok(Decoded::NeedMore) => break,
                Err(error) => {
                    codec.refuse(&error, &mut parser, &mut out);
                    assert!(out.len() > Preface::BYTES, "whoever is refused is told");
                    return (heard, Some(error));
                }
            }
        }
    }
    (heard, None)
}

/// What the frames say, up to the first that a server does not take.
fn expected(frames: &[Bytes]) -> Vec<String> {
    let mut heard = Vec::new();
    for frame in frames {
        match decode_client(frame.clone()) {
            Ok(Some(message)) => heard.push(message),
            Ok(None) => {}
            Err(_) => break,
        }
    }
    let too_large = heard.iter().position(|message| payload(message) > MAX_PAYLOAD as usize);
    heard.truncate(too_large.unwrap_or(heard.len()));
    heard.iter().map(|message| format!("{message:?}")).collect()
}

fn payload(message: &ClientMessage) -> usize {
    match message {
        ClientMessage::Request(request) => request.content.payload().len(),
        ClientMessage::Answer(answer) => answer.content.payload().len(),
        ClientMessage::Progress(progress) => progress.content.payload().len(),
        _ => 0,
    }
}
