//! A TCP load balancer on io_uring: copies what is small, splices what is large, checks health, drains. Embeddable.
//!
//! ```no_run
//! use ringpost_balancer::Balancer;
//!
//! let balancer = Balancer::builder()
//!     .listen(["127.0.0.1:8888".parse()?])
//!     .instance("localhost:8886".parse()?)
//!     .instance("localhost:8887".parse()?)
//!     .start()?;
//! println!("listening on {}", balancer.address());
//! balancer.stop();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! One thread, one ring. A session is two ways; each waits on the ring until its source has something, with neither buffer
//! nor pipe in its hands, and then moves at once what is there: small things through a buffer, bulk through a pipe.
//! docs/BALANCER.md has the whole picture and the figures behind it.
//!
//! | module | owns |
//! |---|---|
//! | [`Balancer`], [`Handle`] | starting, reading again, draining, stopping |
//! | [`Config`], [`Instance`] | everything that can be set |
//! | `relay`, `pace` | pure: what a session does with its bytes, and when they are spliced |
//! | `choice`, `health`, `roster` | pure: who gets a connection |
//! | `session`, `carry`, `connect` | a client's connection, from its accept to its end |
//! | `pools` | buffers and pipes, which sessions have only while bytes are on their way |
//! | `turn` | whether small writes are worth sending together |
//! | `watch`, `resolver` | probes and names |
//! | `core` | what all of them share |
//! | `admin`, `stats` | what is going on |

#![forbid(unsafe_code)]

mod admin;
mod balancer;
mod carry;
mod choice;
mod config;
mod connect;
mod core;
mod error;
mod health;
mod pace;
mod pools;
mod relay;
mod resolver;
mod roster;
mod session;
mod spec;
mod stats;
mod turn;
mod watch;

pub use balancer::{Balancer, Builder, Crashed, Ended, Handle, Listening};
pub use choice::Choice;
pub use config::{Config, ConfigError, DEFAULT_PORT, Health, Splicing, WhenDown};
pub use error::StartError;
pub use spec::{Instance, InstanceError};
