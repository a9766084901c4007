//! Ringpost's wire, without IO and without a clock: bytes in, messages out, and back.
//!
//! * [`message`]: what is said, as types. The cores know only these.
//! * [`frame`]: the binary dialect, which the SDKs speak. [`json`]: the one that anything can speak.
//! * [`dialect`]: the server's side of a connection: which of the two it is, and the codec for it.
//! * [`proxy`]: what a balancer says in front of it.
//! * [`secure`]: the handshake and the records of connections with a key.
//! * [`Content`]: the variable parts of a message, as spans of the buffer they came in. [`Outgoing`]: what waits to be
//!   sent.
//! * [`Code`]: the table of errors. [`limits`]: every bound. [`time`]: points in time and the timer wheel, for cores
//!   that never read a clock.
//! * [`units`]: durations and sizes as people write them. [`throttle`]: keeping floods out of the log.
//!
//! docs/PROTOCOL.md describes every byte.

#![forbid(unsafe_code)]

pub mod code;
pub mod content;
pub mod dialect;
mod error;
pub mod frame;
pub mod json;
pub mod limits;
pub mod message;
mod outgoing;
mod pinned;
pub mod proxy;
pub mod secure;
pub mod throttle;
pub mod time;
pub mod units;

pub use code::{Code, Status};
pub use content::{BadHeaders, Content, Headers, Span, encode_headers};
pub use error::WireError;
pub use outgoing::{Outgoing, Segment};
pub use pinned::Gauge;
