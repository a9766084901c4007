//! Where the server is: what users write, and what a socket wants.

use std::fmt;

use ringpost_client::Error;
use ringpost_protocol::{Code, limits::DEFAULT_PORT};

/// A host, by name or number, and a port. Names are resolved at each try to connect.
///
/// ```
/// use ringpost::Address;
/// assert_eq!(Address::parse("localhost")?.to_string(), "localhost:8888");
/// assert_eq!(Address::parse("[::1]:9000")?.to_string(), "[::1]:9000");
/// # Ok::<(), ringpost::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Address {
    /// Reads `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address; without a port it is 8888.
    ///
    /// # Errors
    /// [`Code::Malformed`] if the text is none of these.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bad = || {
            let message =
                format!("`{text}` is not an address: write host:port, for example 127.0.0.1:{DEFAULT_PORT}");
            Error::new(Code::Malformed, message)
        };
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(bad)?;
            match rest {
                "" => (host, None),
                _ => (host, Some(rest.strip_prefix(':').ok_or_else(bad)?)),
            }
        } else {
            match text.split_once(':') {
                // More than one colon: an IPv6 address without brackets has no port behind it.
                Some((_, rest)) if rest.contains(':') => (text, None),
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let host_is_bad = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == '@';
        if host.is_empty() || host.contains(host_is_bad) {
            return Err(bad());
        }
        if host.contains(':') && host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(bad());
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => port.parse().map_err(|_| bad())?,
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every form that is written in practice, with and without port.
    #[test]
    fn forms() {
        let shown = |text| Address::parse(text).map(|address| address.to_string());
        for (text, expected) in [
            ("127.0.0.1:8888", "127.0.0.1:8888"),
            ("127.0.0.1", "127.0.0.1:8888"),
            ("localhost:1", "localhost:1"),
            ("[::1]:9000", "[::1]:9000"),
            ("[::1]", "[::1]:8888"),
            ("::1", "[::1]:8888"),
        ] {
            assert_eq!(shown(text).unwrap(), expected, "{text}");
        }
        for text in [
            "",
            ":8888",
            "host:",
            "host:99999",
            "host:x",
            "[::1",
            "[::1]9000",
            "a b",
            "http://host:80",
            "1:2:x",
        ] {
            assert_eq!(shown(text).unwrap_err().kind(), Code::Malformed, "{text}");
        }
    }
}
