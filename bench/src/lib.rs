//! Benchmarks of Ringpost beside its peers, and what must not become slower without being noticed.
//!
//! * [`rows`]: the table of figures: what is measured, and what must be reached. [`contest`]: measuring it, side by side in
//!   turns. [`nats`]: NATS's protocol for the load generator, which puts the same load on both. [`sdk`]: the load of the
//!   rows that measure SDKs.
//! * [`durable`]: durable requests, with [`jetstream`] and [`redis`] beside them.
//!   [`recovery`]: starting with what they left.
//! * [`python`]: the SDK for Python beside nats-py.
//! * [`idle`]: the memory of idle connections. [`neighbours`]: what one misbehaving client does to the others.
//! * [`balancer`]: the load balancer beside HAProxy. [`secure`]: what a secure key costs.
//! * [`report`]: the results as Markdown.
//! * [`work`]: the path of a request through the pure crates, for the criterion benches and for [`instructions`], which
//!   counts its instructions.
//!
//! The load generator itself belongs to the command (`ringpost bench`, [`ringpost_cli::load`]).

#![forbid(unsafe_code)]

pub mod balancer;
pub mod contest;
pub mod durable;
pub mod idle;
pub mod instructions;
pub mod jetstream;
pub mod misbehaviour;
pub mod nats;
pub mod neighbours;
pub mod python;
pub mod recovery;
pub mod redis;
pub mod report;
pub mod rows;
pub mod sdk;
pub mod secure;
mod serving;
pub mod spread;
pub mod waiting;
pub mod work;
