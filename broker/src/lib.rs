//! The broker's decisions, pure and deterministic: which handler gets which request, and what becomes of it.
//!
//! [`Broker`] takes what happened ([`Input`]) together with the time, and says what to do ([`Output`]). It reads no
//! clock, opens no socket and draws no random number, so that a simulation can run it through any history and run it
//! through the same one again.
//!
//! ```
//! use ringpost_broker::{Broker, Config, ConnId, Identity, Input, Output, Speaks};
//! use ringpost_protocol::{message::{ClientMessage, Hello}, time::Now};
//!
//! let mut broker = Broker::new(Config { boot: 7, ..Config::default() });
//! let (conn, now) = (ConnId(0), Now::default());
//! broker.handle(Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() }, now);
//! broker.handle(Input::Message { conn, message: ClientMessage::Hello(Hello::default()) }, now);
//! assert!(matches!(broker.poll_output(), Some(Output::Send { conn: ConnId(0), .. })));
//! ```
//!
//! # The path of a request
//!
//! ```text
//! Request ── accept ──> queued ── dispatch ──> delivered ── Answer ──> Reply
//!               │          │                      │ handler lost: attempts left? ── yes ──> queued (head)
//!               │          │                      │                              └─ no ───> handlerLost
//!               └ refuse   └ timeout, expired     └ timeout, cancel: the handler is told; its slot comes back
//!                                                   with its own answer
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`Broker`] (`broker`) | the entry points, and the order in which things are done |
//! | `connection` | who is connected, and what they register |
//! | `permissions` | what a connection may handle, ask, and know |
//! | `peers` | links to other servers |
//! | `session` | a client across its connections: what is open, which outcomes are kept for it |
//! | `accept` | the checks and defaults that turn a client's request into a living one |
//! | `dispatch` | actions, their handlers and queues: who gets the next request |
//! | `delivery` | what handlers hold, and what their answers do |
//! | `broadcast` | one request to all handlers of an action, leg by leg |
//! | `receivers` | telling those who watch which actions have handlers |
//! | `control` | the server's own actions (`$sys.…`) |
//! | [`log`] | what must survive: its bytes, writing, recovery |
//! | `durable` | requests that must survive: what is logged of them, and what waits for that |
//! | `counters` | what was refused, lost, dropped, bounded |

#![forbid(unsafe_code)]

mod accept;
mod broadcast;
mod broker;
mod config;
mod connection;
mod control;
mod counters;
mod delivery;
mod dispatch;
mod durable;
mod interface;
mod invariants;
pub mod log;
mod peers;
mod permissions;
mod receivers;
mod session;
mod slab;
mod state;
#[cfg(test)]
mod tests;

pub use broker::Broker;
#[cfg(feature = "planted-bugs")]
#[doc(hidden)]
pub use config::PlantedBug;
pub use config::{Config, Policy};
pub use counters::Counters;
pub use durable::Restore;
pub use interface::{
    CloseReason, ConnId, Input, Output, Read, ReadFault, ReadId, RefusalCause, Speaks, Unavailable,
    Unreadable,
};
pub use peers::{LinkReport, LinkState};
pub use permissions::{Allowed, BadPattern, Identity, Names, Permissions};
pub use ringpost_protocol::secure::Role;
