//! Tests of the whole dialect: bytes to messages and messages to bytes.

mod properties;
mod refusals;
mod vectors;

use bytes::BytesMut;

use super::{Decoder, Parser};
use crate::{WireError, message::ClientMessage};

/// The boot that all tests and vectors write in a `serverId`.
const BOOT: u64 = 0x0123_4567_89ab_cdef;
/// What the wall clock shows in all tests and vectors.
const WALL_MS: u64 = 1_700_000_000_123;
/// The `--max-payload` of all tests and vectors.
const MAX_PAYLOAD: u32 = 64 << 10;

/// What became of a client's bytes: the messages up to an error, the error, and whether the client speaks in lines.
#[derive(Debug, PartialEq)]
struct Decoded {
    messages: Vec<ClientMessage>,
    error: Option<WireError>,
    lines: bool,
}

/// Decodes bytes that arrive in these pieces.
fn decode_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Decoded {
    let (mut decoder, mut parser) = (Decoder::new(BOOT, MAX_PAYLOAD), Parser::new());
    let (mut buffer, mut messages) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut parser, &mut buffer) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                // What would tell about lines may not be here yet.
                Err(error) => return Decoded { messages, error: Some(error), lines: false },
            }
        }
    }
    Decoded { messages, error: None, lines: decoder.lines() }
}

fn decode(bytes: impl AsRef<[u8]>) -> Decoded {
    decode_pieces([bytes.as_ref()])
}
