//! What Ringpost's tests are built from: a deterministic simulation of a broker and its clients on a bad network.
//!
//! The tests themselves are in `tests/tests/`; `cargo run -p ringpost-tests --bin simulate -- --seed N --trace` replays
//! one seed.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a simulation stops at the first thing that is not right"
)]

pub mod search;
pub mod sim;
