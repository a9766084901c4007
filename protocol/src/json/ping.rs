//! A ping and its pong as bytes, for who looks at a connection before anything of it is parsed: a server that wants a key and
//! answers a ping without one, and who only wants to know whether a server is there.

use super::scanner::is_blank;

/// A ping, as one says it who has nothing else to say: a line.
pub const PING: &[u8] = b"{\"action\":\"ping\"}\n";
/// What it is answered, byte by byte.
pub const PONG: &[u8] = b"{\"action\":\"pong\"}\n";
/// A ping may be as long as this, white space within it included: more of a first message needs not be kept to know it.
pub const MAX_PING_BYTES: usize = 64;

/// What a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// A ping.
    Ping,
    /// What may become a ping, or nothing yet.
    Perhaps,
    /// Something else.
    Other,
}

/// Whether these first bytes are a ping: the object `{"action":"ping"}` with white space wherever JSON allows it, before it
/// too, without escapes and without further members; all of it at most [`MAX_PING_BYTES`].
///
/// It looks at no more than that many bytes, and whatever is behind the ping does not count.
///
/// ```
/// use ringpost_protocol::json::{Opening, PING, opening};
///
/// assert_eq!(opening(PING), Opening::Ping);
/// assert_eq!(opening(b"{ \"action\": \"pi"), Opening::Perhaps);
/// assert_eq!(opening(b"{\"id\":"), Opening::Other);
/// ```
pub fn opening(bytes: &[u8]) -> Opening {
    let mut rest = &bytes[..bytes.len().min(MAX_PING_BYTES)];
    for token in [&b"{"[..], b"\"action\"", b":", b"\"ping\"", b"}"] {
        rest = &rest[rest.iter().take_while(|byte| is_blank(**byte)).count()..];
        match rest.strip_prefix(token) {
            Some(behind) => rest = behind,
            None if token.starts_with(rest) && bytes.len() < MAX_PING_BYTES => return Opening::Perhaps,
            None => return Opening::Other,
        }
    }
    Opening::Ping
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        Outgoing,
        json::{Context, Decoder, Parser, encode},
        message::{ClientMessage, ServerMessage},
    };

    fn decoded(text: &[u8]) -> Option<ClientMessage> {
        Decoder::new(0, 1 << 16).decode(&mut Parser::new(), &mut BytesMut::from(text)).ok().flatten()
    }

    /// What is taken for a ping is one, however it is cut; what is none is told from its first wrong byte on, and nothing
    /// long is waited for.
    #[test]
    fn pings_and_others() {
        for ping in
            ["{\"action\":\"ping\"}", "{ \"action\"\t:\n\"ping\" \r}\n{\"id\":1", "{\"action\":\"ping\"}\n"]
        {
            let end = ping.find('}').unwrap() + 1;
            for cut in 0..ping.len() {
                let expected = if cut < end { Opening::Perhaps } else { Opening::Ping };
                assert_eq!(opening(&ping.as_bytes()[..cut]), expected, "{:?}", &ping[..cut]);
            }
            assert_eq!(decoded(ping.as_bytes()), Some(ClientMessage::Ping(0)), "{ping}");
        }
        for other in
            ["[", "{\"i", "{\"action\":\"pink", "{\"action\":\"ping\",", "{\"action\"\"", "{}", "\u{b5}"]
        {
            assert_eq!(opening(other.as_bytes()), Opening::Other, "{other}");
        }
        let long = format!("{{{}\"action\":\"ping\"}}", " ".repeat(MAX_PING_BYTES));
        for cut in 0..long.len() {
            let expected = if cut < MAX_PING_BYTES { Opening::Perhaps } else { Opening::Other };
            assert_eq!(opening(&long.as_bytes()[..cut]), expected, "{cut}");
        }
    }

    /// The pong is what the dialect has for it, to who ends objects by lines.
    #[test]
    fn the_pong_is_the_dialects() {
        let (mut out, context) = (Outgoing::new(), Context { boot: 0, wall_ms: 0, lines: true });
        encode(&ServerMessage::Pong(0), &context, &mut Parser::new(), &mut out).unwrap();
        assert_eq!(out.drain_to_vec(), PONG);
    }

    proptest! {
        /// Nothing that the decoder reads otherwise is taken for a ping, and what may yet become one never was anything else.
        #[test]
        fn only_pings(text in "\\{? ?(\"action\"|\"id\"|\"a\") ?[:,] ?(\"ping\"|\"pong\"|1) ?[,}]?.{0,8}") {
            match opening(text.as_bytes()) {
                Opening::Ping => {
                    let end = text.find('}').unwrap() + 1;
                    prop_assert_eq!(decoded(&text.as_bytes()[..end]), Some(ClientMessage::Ping(0)));
                }
                Opening::Perhaps => prop_assert_eq!(decoded(text.as_bytes()), None),
                Opening::Other => prop_assert_ne!(decoded(text.as_bytes()), Some(ClientMessage::Ping(0))),
            }
        }
    }
}
