//! What no bytes may do to the codecs, the cores and the log.
//!
//! A target is a function from bytes. It panics when something that must hold does not: libFuzzer looks for such bytes
//! (`cargo fuzz run NAME`, see fuzz/README.md), and this crate's tests try some at each run of the test suite.
//!
//! | target | the bytes are |
//! |---|---|
//! | [`frames`] | a stream of binary frames, read as a client's and as a server's |
//! | [`json`] | a JSON client's stream, in one piece and in many |
//! | [`broker`] | choices: who connects, says what, and when time passes |
//! | [`client`] | choices: what the application wants, the server says, and when connections break |
//! | [`records`] | the body of a record of the log, a whole record, or the header of a file |
//! | [`recovery`] | the files in a data directory |
//! | [`handshake`] | hellos of connections with a secure key, or changes of true ones |
//! | [`secure_records`] | choices: what is said in records, and what is done with them on their way |
//! | [`damage`] | choices: how a log was written, and which bytes of it were changed |
//!
//! [`seeds`] has bytes to begin with.

#![forbid(unsafe_code)]
// A target's only way to say that something does not hold.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod broker;
mod choices;
mod client;
mod frames;
mod json;
mod logs;
mod records;
mod recovery;
mod secure;
mod seeds;

pub use broker::broker;
pub use client::client;
pub use frames::frames;
pub use json::json;
pub use records::records;
pub use recovery::{damage, recovery};
pub use secure::{handshake, secure_records};
pub use seeds::seeds;

/// A target, by the name that `cargo fuzz run` knows it by.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 9] = [
    ("frames", frames),
    ("json", json),
    ("broker", broker),
    ("client", client),
    ("records", records),
    ("recovery", recovery),
    ("damage", damage),
    ("handshake", handshake),
    ("secure-records", secure_records),
];
