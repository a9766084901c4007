//! Addresses to listen on, as people write them: the same in the configuration file, in the environment and in flags.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
};

use serde::{Deserialize, Deserializer, de::Error};

/// Text that is no address to listen on.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is no address{}: write HOST:PORT, for example 127.0.0.1:8888 or [::1]:8888", because(cause.as_ref()))]
pub struct ListenError {
    text: String,
    #[source]
    cause: Option<io::Error>,
}

fn because(cause: Option<&io::Error>) -> String {
    cause.map_or_else(String::new, |cause| format!(" ({cause})"))
}

/// Reads an address to listen on: `127.0.0.1:8888`, `[::1]:8888`, or `localhost:8888`, which is the first address that
/// the name has.
///
/// ```
/// use ringpost_server::parse_listen;
/// assert!(parse_listen("localhost:0")?.ip().is_loopback());
/// assert!(parse_listen("localhost").is_err());
/// # Ok::<(), ringpost_server::ListenError>(())
/// ```
///
/// # Errors
/// [`ListenError`], which says how to write one.
pub fn parse_listen(text: &str) -> Result<SocketAddr, ListenError> {
    let error = |cause| ListenError { text: text.to_owned(), cause };
    text.to_socket_addrs().map_err(|cause| error(Some(cause)))?.next().ok_or_else(|| error(None))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SocketAddr>, D::Error> {
    Vec::<String>::deserialize(from)?
        .iter()
        .map(|text| parse_listen(text).map_err(D::Error::custom))
        .collect()
}
