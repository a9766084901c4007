//! Addresses to listen on, as people write them: the same in the configuration file, in the environment and in flags.

use std::{
    fmt, io,
    net::{SocketAddr, ToSocketAddrs},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, de::Error};

/// Text that is no address to listen on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// There is no such address.
    #[error("`{text}` is no address{}: write HOST:PORT, for example 127.0.0.1:8888 or [::1]:8888", because(cause.as_ref()))]
    Address {
        /// The text.
        text: String,
        /// What the system says of it.
        #[source]
        cause: Option<io::Error>,
    },
    /// The word behind the address is not known.
    #[error("`{text}`: behind an address stands `secure` or `plain`, for example 127.0.0.1:8888,plain")]
    Kind {
        /// The text.
        text: String,
    },
}

fn because(cause: Option<&io::Error>) -> String {
    cause.map_or_else(String::new, |cause| format!(" ({cause})"))
}

/// What connections of a listener have to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ListenerKind {
    /// Secure where the server has keys, else plain.
    #[default]
    Auto,
    /// With one of the server's keys.
    Secure,
    /// Without a key, open to whoever can connect.
    Plain,
}

impl ListenerKind {
    /// Whether connections need a key, on a server that has keys or not.
    pub fn is_secure(self, has_keys: bool) -> bool {
        match self {
            Self::Auto => has_keys,
            Self::Secure => true,
            Self::Plain => false,
        }
    }
}

/// Where to listen, and what for.
///
/// ```
/// use ringpost_server::{Listen, ListenerKind};
/// let listen: Listen = "127.0.0.1:8888,plain".parse()?;
/// assert_eq!((listen.address.port(), listen.kind), (8888, ListenerKind::Plain));
/// # Ok::<(), ringpost_server::ListenError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Listen {
    /// The address; port 0 takes a free one.
    pub address: SocketAddr,
    /// What connections have to be.
    pub kind: ListenerKind,
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Self {
        Self { address, kind: ListenerKind::Auto }
    }
}

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        let (address, kind) = match text.split_once(',') {
            Some((address, kind)) => (address, kind_called(kind).ok_or_else(|| bad_kind(text))?),
            None => (text, ListenerKind::Auto),
        };
        Ok(Self { address: parse_listen(address.trim())?, kind })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ListenerKind::Auto => "",
            ListenerKind::Secure => ",secure",
            ListenerKind::Plain => ",plain",
        };
        write!(f, "{}{kind}", self.address)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Reads several in one text, as flags and variables have them: `127.0.0.1:8888,plain,[::1]:8888`. The words are no
/// addresses, so the same comma does for both.
///
/// # Errors
/// [`ListenError`], for the first that is wrong.
pub fn parse_listens(text: &str) -> Result<Vec<Listen>, ListenError> {
    let mut listens: Vec<Listen> = Vec::new();
    let mut open = false;
    for part in text.split(',') {
        match (kind_called(part), listens.last_mut()) {
            (Some(kind), Some(listen)) if open => {
                listen.kind = kind;
                open = false;
            }
            (Some(_), _) => return Err(bad_kind(text)),
            (None, _) => {
                // A host without a port, behind another address, is much rather a word that does not exist.
                let is_word = open && !part.contains(':');
                let address = parse_listen(part.trim());
                listens.push(address.map_err(|error| if is_word { bad_kind(text) } else { error })?.into());
                open = true;
            }
        }
    }
    Ok(listens)
}

fn kind_called(word: &str) -> Option<ListenerKind> {
    match word.trim() {
        "secure" => Some(ListenerKind::Secure),
        "plain" => Some(ListenerKind::Plain),
        _ => None,
    }
}

fn bad_kind(text: &str) -> ListenError {
    ListenError::Kind { text: text.to_owned() }
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
    let error = |cause| ListenError::Address { text: text.to_owned(), cause };
    text.to_socket_addrs().map_err(|cause| error(Some(cause)))?.next().ok_or_else(|| error(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses and words stand in one line, and each word belongs to the address before it.
    #[test]
    fn several_in_one_text() {
        let listens = parse_listens("127.0.0.1:1,plain,[::1]:2, 127.0.0.1:3 ,secure").unwrap();
        let texts: Vec<_> = listens.iter().map(Listen::to_string).collect();
        assert_eq!(texts, ["127.0.0.1:1,plain", "[::1]:2", "127.0.0.1:3,secure"]);
        for listen in listens {
            assert_eq!(listen.to_string().parse::<Listen>().unwrap(), listen);
        }
    }

    /// A word that is not known, or stands where none can, is named with those that are.
    #[test]
    fn bad_words() {
        for text in ["127.0.0.1:1,open", "plain,127.0.0.1:1", "127.0.0.1:1,plain,secure"] {
            let error = parse_listens(text).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("`secure` or `plain`"), "{error}");
        }
        assert!(parse_listens("").is_err() && parse_listens("127.0.0.1:1,").is_err());
    }

    /// A listener without a word is secure where there are keys.
    #[test]
    fn kinds() {
        for (kind, expected) in [
            (ListenerKind::Auto, [false, true]),
            (ListenerKind::Secure, [true, true]),
            (ListenerKind::Plain, [false, false]),
        ] {
            assert_eq!([false, true].map(|has_keys| kind.is_secure(has_keys)), expected);
        }
    }
}
