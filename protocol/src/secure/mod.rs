//! Connections with a secure key: who may speak, and what nobody else can read or change.
//!
//! Pure, like the rest of this crate: bytes in, bytes out, all buffers are the caller's. Only the handshake draws random
//! numbers, for its ephemeral keys.
//!
//! * [`SecureKey`]: what both sides were given. [`KeyId`]: what names it on the wire. [`Role`]: what it is good for.
//! * [`Initiator`], [`Responder`]: the handshake, one message each way. Both sides prove that they have the key.
//! * [`Sealer`], [`Opener`]: records on the keys that the handshake leaves; [`Incoming`]: a receive buffer whose front is
//!   plaintext and whose rest is records.
//!
//! Within the records goes what goes over a plain connection, byte by byte, preface or `{` first.
//!
//! docs/SECURITY.md says what this promises and what not, and docs/PROTOCOL.md describes every byte.

mod cipher;
mod handshake;
mod incoming;
mod key;
mod record;

pub use handshake::{ClientHello, HandshakeError, Initiator, Responder, ServerHello};
pub use incoming::Incoming;
pub use key::{KeyError, KeyId, Role, SecureKey};
pub use record::{MAX_PLAINTEXT_BYTES, MAX_RECORD_BYTES, Opened, Opener, REKEY_RECORDS, RecordError, Sealer};

#[cfg(test)]
mod tests;
