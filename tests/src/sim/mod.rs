//! A broker and its clients, the real cores and the real wire, in one thread and in virtual time.
//!
//! | module | is |
//! |---|---|
//! | `profile` | what kind of history a seed stands for |
//! | `script` | what applications do and what goes wrong, written before the history begins |
//! | `world` | the clock, the queue of what will happen, and what connects the parts |
//! | `faults` | the script's steps, performed |
//! | `network` | links that delay, cut into pieces, stall and break; they never reorder or change bytes |
//! | `server` | the broker's core behind the server's codec, as the server drives it |
//! | `durable` | the broker's log on the twin of a disk, crashes, and what must survive them |
//! | `secure` | the records of clients with a secure key |
//! | `limits` | what some clients may not do, and whether that holds |
//! | `heard` | what the model hears of what the core is told |
//! | `peer` | a client core with the wire's codec, as the SDK drives it, and an application on top |
//! | `json_peer` | a client that knows only the JSON table of the protocol |
//! | `rules` | what must hold, by name |
//! | `ledger` | what every requester asked and was told: the view from outside |
//! | `model` | what the broker may do, reckoned beside it from what it hears and says |
//! | `shrink` | the smallest part of a failing script that still fails |
//! | `rng` | all randomness, from one seed |
//!
//! Everything that is random comes from the seed, so a seed is a history, and replaying it gives the same one again:
//! [`Outcome::fingerprint`] says so. What one thing of a history draws does not depend on the others, so that a script
//! can be cut down and what is left stays as it was.

mod durable;
mod faults;
mod heard;
mod json_peer;
mod ledger;
mod limits;
mod model;
mod network;
mod peer;
mod profile;
mod rng;
mod rules;
mod run;
mod script;
mod secure;
mod server;
mod shrink;
mod world;

pub use self::{
    durable::LogSettings,
    profile::{Profile, Settings},
    rules::{Rule, Violation},
    run::{Failure, Outcome, Plan, report, run},
    script::{Ask, Deed, Kind, Step},
    shrink::shrink,
};
