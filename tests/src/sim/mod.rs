//! A broker and its clients, the real cores and the real wire, in one thread and in virtual time.
//!
//! | module | is |
//! |---|---|
//! | `world` | the clock, the queue of what will happen, and what connects the parts |
//! | `network` | links that delay, cut into pieces, stall and break; they never reorder or change bytes |
//! | `server` | the broker's core behind the server's codec, as the server drives it |
//! | `peer` | a client core with the wire's codec, as the SDK drives it, and an application on top |
//! | `json_peer` | a client that knows only the JSON table of the protocol |
//! | `oracle` | what every request was, what became of it, and whether that was right |
//! | `rng` | all randomness, from one seed |
//!
//! Everything that is random comes from the seed, so a seed is a history, and replaying it gives the same one again:
//! [`Outcome::fingerprint`] says so.

mod json_peer;
mod network;
mod oracle;
mod peer;
mod rng;
mod server;
mod world;

pub use world::{Outcome, Plan, run};
