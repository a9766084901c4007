//! The client's side of Ringpost, without IO and without a clock.
//!
//! [`Client`] owns everything that a client knows about the protocol: the hello, the numbering of requests, their
//! deadlines, registrations and the deliveries that come for them, credit, liveness, the pauses between two tries to
//! connect. It never opens a socket, reads a clock, spawns a task or draws a random number: time comes in as an
//! argument, what is to be done comes out of [`Client::poll_output`]. Given the same inputs it says the same things.
//!
//! A driver does this, in any order that suits it:
//!
//! 1. call the method that fits what happened: [`Client::connected`], [`Client::received`], [`Client::request`], …;
//! 2. take every [`Output`] and act on it, in order;
//! 3. sleep until something happens or [`Client::next_deadline`] comes, then call [`Client::handle_timeout`].
//!
//! ```
//! use ringpost_client::{Client, ClientConfig, Output, RequestSpec};
//! use ringpost_protocol::{Content, message::{ClientMessage, ServerMessage, Welcome}, time::Time};
//!
//! let now = Time::from_micros(1);
//! // The instance is drawn at random for each client.
//! let config = ClientConfig { session: "worker-7".into(), instance: 0x5eed, ..ClientConfig::default() };
//! let mut client = Client::new(config);
//! client.start(now);
//! assert!(matches!(client.poll_output(), Some(Output::Connect)));
//!
//! client.connected(now);
//! assert!(matches!(client.poll_output(), Some(Output::Send(ClientMessage::Hello(_)))));
//! client.received(ServerMessage::Welcome(Welcome { next_number: 1, ..Welcome::default() }), now);
//! assert!(matches!(client.poll_output(), Some(Output::Event(_))));
//!
//! let content = Content::from_parts(b"greet", b"", b"", b"\"you\"");
//! client.request(RequestSpec { content, ..RequestSpec::default() }, 7, now)?;
//! assert!(matches!(client.poll_output(), Some(Output::Send(ClientMessage::Request(_)))));
//! # Ok::<(), ringpost_client::Error>(())
//! ```

#![forbid(unsafe_code)]

mod client;
mod config;
mod deliveries;
mod error;
mod former;
mod link;
mod output;
mod registrations;
mod requests;
mod session;
#[cfg(test)]
mod tests;
mod unclaimed;

pub use client::{Client, Counters, Cut};
pub use config::{ClientConfig, RequestSpec};
pub use error::Error;
pub use output::{
    Completion, Delivery, DeliveryKey, Event, Info, Output, RegistrationId, RequestKey, Unclaimed,
};
pub use unclaimed::UnclaimedKey;
