//! The JSON dialect, the server's side: a client's bytes become [`ClientMessage`]s, and [`ServerMessage`]s bytes.
//!
//! UTF-8 JSON objects follow one another, with or without white space between them. This is what `nc` and any language
//! can speak without an SDK; docs/PROTOCOL.md has its table of messages, and `vectors/json/` an example of each.
//!
//! A message passes three stations on its way in, each in a file of its own:
//!
//! * `scanner` finds where an object ends, looking at each byte once however the bytes arrive, and notes where the
//!   values lie that are forwarded as they were written: `data`, `options`, `clientId`, and the name.
//! * `parser` lets simd-json validate a scratch copy of the whole object, UTF-8 and all.
//! * `envelope` and `options` read the parsed members; `decode` makes the message of them, its content being spans over
//!   the one buffer that the object came in.
//!
//! On the way out `encode` writes the shapes of the reference, and checks with the same parser what came from a binary
//! client and is to be JSON.
//!
//! What is particular to this dialect:
//!
//! * `"reply":false` among a request's options makes it a send, `"progress":true` asks for the handler's progress.
//! * `null` stands for an absent member everywhere in an envelope.
//! * `clientId` is kept and returned as it was written, and compared so: `"a\/b"` and `"a/b"` are two.
//! * Keys whose values are forwarded must be written without escapes.
//! * A number that no 64-bit float comes near (`1e400`) is refused, any other is forwarded digit by digit.
//!
//! [`ClientMessage`]: crate::message::ClientMessage
//! [`ServerMessage`]: crate::message::ServerMessage

mod decode;
mod encode;
mod envelope;
mod options;
mod parser;
mod ping;
mod scanner;
mod server_id;
#[cfg(test)]
mod tests;
mod text;

pub use decode::Decoder;
pub use encode::{Context, NotJson, encode};
pub use parser::Parser;
pub use ping::{MAX_PING_BYTES, Opening, PING, PONG, opening};
pub use text::write_string;
