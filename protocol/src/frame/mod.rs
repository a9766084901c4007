//! The binary dialect: a 16-byte preface from each side, then frames.
//!
//! Every frame begins with the same 16 bytes, little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | `length`: bytes that follow these 16 |
//! | 4 | 1 | `kind`; with its highest bit set, whoever does not know it skips the frame |
//! | 5 | 1 | `flags`, by kind |
//! | 6 | 2 | reserved, 0 |
//! | 8 | 8 | `number`, by kind: a request, a delivery, a registration, … |
//!
//! Then comes a part of fixed size for the kind, then its variable parts one behind the other, the payload last. The
//! layouts stand in docs/PROTOCOL.md and, as offsets, in [`layout`].

mod decode;
mod encode;
pub mod layout;
mod peer;
mod preface;
mod reader;

pub use decode::{decode_client, decode_server};
pub use encode::{encode_client, encode_server};
pub use preface::{Mode, Preface};
pub use reader::FrameReader;

/// The size of what every frame begins with.
pub const HEADER_BYTES: usize = 16;

/// The kinds of version 1.
pub mod kind {
    /// → first frame of a client.
    pub const HELLO: u8 = 0x01;
    /// → handle an action.
    pub const REGISTER: u8 = 0x02;
    /// → handle it no more.
    pub const DEREGISTER: u8 = 0x03;
    /// → change a registration's credit.
    pub const CREDIT: u8 = 0x04;
    /// → a request or send.
    pub const REQUEST: u8 = 0x05;
    /// → a handler's answer to a delivery.
    pub const ANSWER: u8 = 0x06;
    /// → a returning client's open numbers.
    pub const RESUME: u8 = 0x07;
    /// → whether to be told the receivers.
    pub const WATCH: u8 = 0x08;
    /// ← the answer to the hello.
    pub const WELCOME: u8 = 0x11;
    /// ← a registration holds.
    pub const REGISTERED: u8 = 0x12;
    /// ← a request for a handler.
    pub const DELIVER: u8 = 0x13;
    /// ← requests up to this number were accepted.
    pub const ACCEPTED: u8 = 0x14;
    /// ← how many handlers a broadcast asked.
    pub const LEGS: u8 = 0x15;
    /// ← what became of a request.
    pub const REPLY: u8 = 0x16;
    /// ← what the broker knows of a returning client's numbers.
    pub const RESUMED: u8 = 0x17;
    /// ← the actions that have handlers.
    pub const RECEIVERS: u8 = 0x18;
    /// ← something went wrong that is no request's outcome.
    pub const ERROR: u8 = 0x19;
    /// ← what the request was whose reply follows.
    pub const ASKED: u8 = 0x1a;
    /// ↔ not wanted any more: a request, or towards a handler a delivery.
    pub const CANCEL: u8 = 0x20;
    /// ↔ a handler is still at work.
    pub const PROGRESS: u8 = 0x21;
    /// ↔ up to this sequence all is settled.
    pub const ACKNOWLEDGE: u8 = 0x22;
    /// ↔ are you there?
    pub const PING: u8 = 0x23;
    /// ↔ I am.
    pub const PONG: u8 = 0x24;
    /// ↔ leaving.
    pub const GOAWAY: u8 = 0x25;
    /// ↔ between servers: run this.
    pub const FORWARD: u8 = 0x30;
    /// ↔ between servers: what became of it.
    pub const ENDED: u8 = 0x31;
    /// ↔ between servers: a handler is still at work on it.
    pub const WORKING: u8 = 0x32;
    /// ↔ between servers: it is not wanted any more.
    pub const WITHDRAW: u8 = 0x33;
    /// ↔ between servers: its end is stable.
    pub const TAKEN: u8 = 0x34;
    /// ↔ between servers: these are with you.
    pub const ABROAD: u8 = 0x35;
    /// ↔ between servers: of these, those that are not.
    pub const UNKNOWN: u8 = 0x36;
    /// Set in kinds that may be skipped by who does not know them.
    pub const IGNORABLE: u8 = 0x80;
}

#[cfg(test)]
mod tests;
