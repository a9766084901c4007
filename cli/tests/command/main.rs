//! The command, as its users run it: the real binary, over real sockets and processes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the harness is as much a test as the tests themselves"
)]

mod bench;
mod demo;
mod durable;
mod handle;
mod harness;
mod help;
mod log;
mod look;
mod request;
mod secure;
mod serve;
