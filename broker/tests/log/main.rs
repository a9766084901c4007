//! The log under crashes, damage and faults, on the in-memory twin of a disk. Seeds are printed by what fails; a seed replays.
//!
//! `LOG_SEED=n` runs the histories of one seed only, `LOG_SEEDS=n` so many.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod arbitrary;
mod crashes;
mod damage;
mod faults;
mod history;
