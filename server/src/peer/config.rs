//! Which servers to link to, as people write it.

use std::{path::PathBuf, str::FromStr};

use ringpost_protocol::{limits::check_own_name, secure::SecureKey};
use serde::Deserialize;

/// A server to link to: its clients' requests come here when it has nobody for them, and ours go there.
///
/// As text, `HOST:PORT[,key-file=FILE][,action=NAME]`; in the configuration file a table:
///
/// ```
/// let config = ringpost_server::Config::from_toml_text(r#"
///     id = "server_1"
///
///     [[peer]]
///     address = "127.0.0.1:8886"
///     key-file = "/etc/ringpost/peer.key"
///     action = "server_1"
/// "#)?;
/// assert_eq!(config.peers[0], "127.0.0.1:8886,key-file=/etc/ringpost/peer.key,action=server_1".parse()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Written")]
#[non_exhaustive]
pub struct Peer {
    /// Where it listens: `HOST:PORT`. A name is looked up for each try to connect.
    pub address: String,
    /// A file with the secure key that it wants; its role there is `peer`.
    pub key_file: Option<PathBuf>,
    /// The key itself, where it is in no file.
    pub key: Option<SecureKey>,
    /// An action under which the link itself answers at the peer, with this server's name and version: to see whether it
    /// is there.
    pub action: Option<String>,
}

/// Text that says no peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no peer ({why}): write HOST:PORT[,key-file=FILE][,action=NAME]")]
pub struct PeerError {
    text: String,
    why: String,
}

impl Peer {
    /// The server at `HOST:PORT`, without a key. What is wrong with the address is said when the server starts.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), key_file: None, key: None, action: None }
    }

    /// The file of the secure key to connect with.
    #[must_use]
    pub fn key_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.key_file = Some(file.into());
        self
    }

    /// The secure key to connect with.
    #[must_use]
    pub fn secure_key(mut self, key: SecureKey) -> Self {
        self.key = Some(key);
        self
    }

    /// The action under which the link itself answers at the peer.
    #[must_use]
    pub fn action(mut self, action: impl Into<String>) -> Self {
        self.action = Some(action.into());
        self
    }

    /// Checks the address and the action's name.
    ///
    /// # Errors
    /// [`PeerError`].
    pub fn validate(&self) -> Result<(), PeerError> {
        let error = |why: String| PeerError { text: self.address.clone(), why };
        let port = self.address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        if port.is_none_or(|(_, port)| {
            port.parse::<u16>().is_ok_and(|port| port == 0) || port.parse::<u16>().is_err()
        }) {
            return Err(error("there is no port in the address".to_owned()));
        }
        match self.action.as_ref().map(|action| check_own_name(action.as_bytes())) {
            Some(Err(cause)) => Err(error(format!("its action: {cause}"))),
            _ => Ok(()),
        }
    }
}

impl FromStr for Peer {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        let error = |why: String| PeerError { text: text.to_owned(), why };
        let mut parts = text.split(',').map(str::trim);
        let mut peer = Self::new(parts.next().unwrap_or_default());
        for part in parts {
            match part.split_once('=') {
                Some(("key-file", file)) if !file.is_empty() => peer.key_file = Some(file.into()),
                Some(("action", action)) => peer.action = Some(action.to_owned()),
                _ => return Err(error(format!("`{part}` is neither `key-file=FILE` nor `action=NAME`"))),
            }
        }
        peer.validate().map_err(|cause| error(cause.why))?;
        Ok(peer)
    }
}

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    address: String,
    key_file: Option<PathBuf>,
    action: Option<String>,
}

impl TryFrom<Written> for Peer {
    type Error = PeerError;

    fn try_from(Written { address, key_file, action }: Written) -> Result<Self, PeerError> {
        let peer = Self { address, key_file, key: None, action };
        peer.validate()?;
        Ok(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a peer is said to be is read, and what is wrong is named.
    #[test]
    fn reads_peers() {
        let peer: Peer = "[::1]:8886,key-file=a/b, action=server_1".parse().unwrap();
        assert_eq!(peer, Peer::new("[::1]:8886").key_file("a/b").action("server_1"));
        for (text, expected) in [
            ("localhost", "no port"),
            (":80", "no port"),
            ("a:0", "no port"),
            ("a:1,key=b", "`key=b` is neither"),
            ("a:1,action=$x", "its action"),
            ("a:1,action=", "its action"),
        ] {
            let error = text.parse::<Peer>().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains(expected), "{error}");
        }
    }
}
