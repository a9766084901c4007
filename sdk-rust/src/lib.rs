#![doc = include_str!("guide.md")]
#![forbid(unsafe_code)]

mod address;
mod builder;
mod cancellation;
mod client;
mod handler;
mod hub;
mod json;
mod key;
mod news;
pub mod raw;
mod reply;
mod request;
#[cfg(feature = "testing")]
pub mod testing;
mod unclaimed;
mod waiters;

pub use address::Address;
pub use builder::ClientBuilder;
pub use cancellation::Cancellation;
pub use client::{Client, Registration};
pub use handler::{HandlerError, HandlerOptions, Request};
pub use json::json;
pub use key::GivenKey;
pub use news::{Events, Receivers};
pub use raw::Drained;
pub use reply::{Reply, ReplyInfo};
pub use request::{Accepted, Every, Kind, One, RequestBuilder, RequestFuture};
pub use ringpost_client::{Error, Event};
pub use ringpost_protocol::{
    Code as ErrorKind, Status,
    message::{Leg, RequestId},
    secure::SecureKey,
};
pub use unclaimed::{Asked, Unclaimed, UnclaimedReplies};
