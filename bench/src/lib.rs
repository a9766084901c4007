//! Benchmarks of Ringpost beside its peers: the rows of the table of figures, measured on both sides in one run.
//!
//! * [`rows`]: what is measured, and what must be reached. [`contest`]: measuring it, side by side in turns.
//!   [`report`]: the results as Markdown.
//! * [`nats`]: NATS's protocol for the load generator, which puts the same load on both.
//!
//! The load generator itself belongs to the command (`ringpost bench`, [`ringpost_cli::load`]). The criterion benches
//! of codec and cores are in `benches/`.

#![forbid(unsafe_code)]

pub mod contest;
pub mod nats;
pub mod report;
pub mod rows;
