//! Links to other servers: a client of a peer on one side, a connection of the own core on the other.
//!
//! ```text
//!   own core <── messages ── Link ── the client's core ── frames ──> the peer, to which it is a client
//! ```
//!
//! [`Link`] translates, and knows neither sockets nor clocks. `shard::links` gives it the core, `driver` the network. The
//! peer needs nothing of the kind: to it this is a connection whose hello names a server.

mod config;
mod dial;
pub(crate) mod driver;
mod link;
#[cfg(test)]
mod tests;

pub use config::{Peer, PeerError};
pub(crate) use link::{Link, LinkOutput, LinkSettings};
