//! NATS's text protocol for the load generator, as its own clients use it for request and reply.
//!
//! A requester has one inbox subscription for all its replies (`_INBOX.3.*`) and names each request's reply subject in
//! the `PUB`; handlers subscribe to the action as a queue group, so that each request goes to one of them. See
//! <https://docs.nats.io/reference/reference-protocols/nats-protocol>.

use anyhow::{Context, bail, ensure};
use memchr::memchr;
use ringpost_cli::load::{
    Options,
    wire::{self, DIGITS, Event, Role, Wire},
};

/// What a client says about itself. Not verbose: no `+OK` for every line.
const CONNECT: &str = r#"CONNECT {"verbose":false,"pedantic":false,"lang":"raw","version":"1","protocol":1}"#;

/// One connection that speaks NATS.
#[derive(Debug)]
pub struct Nats {
    role: Role,
    greeting: String,
    payload: Vec<u8>,
    /// A whole `PUB` with its payload, but for the number at the end of the reply subject.
    request: Vec<u8>,
    number_at: usize,
}

impl Wire for Nats {
    const NAME: &'static str = "nats";

    fn new(role: Role, index: u32, options: &Options) -> anyhow::Result<Self> {
        let subscription = match role {
            Role::Requester => format!("_INBOX.{index}.*"),
            Role::Handler => format!("{} handlers", options.action),
        };
        Self::subscribed(&subscription, role, index, options)
    }

    fn open(&mut self, out: &mut Vec<u8>) {
        out.extend(self.greeting.drain(..).as_str().as_bytes());
    }

    #[inline]
    fn request(&mut self, number: u64, out: &mut Vec<u8>) {
        let at = out.len() + self.number_at;
        out.extend_from_slice(&self.request);
        wire::write_digits(number, &mut out[at..]);
    }

    #[inline]
    fn next(&mut self, input: &[u8], out: &mut Vec<u8>) -> anyhow::Result<Option<(usize, Event)>> {
        let Some((bytes, incoming)) = read(input, out)? else { return Ok(None) };
        let event = match (incoming, self.role) {
            (Incoming::Control(event), _) => event,
            (Incoming::Message { message, payload }, Role::Requester) => self.reply(&message, payload)?,
            (Incoming::Message { message, payload }, Role::Handler) => {
                let reply_to = message.reply_to.context("a request without a reply subject")?;
                echo(reply_to, message.size, payload, out);
                Event::Other
            }
        };
        Ok(Some((bytes, event)))
    }
}

impl Nats {
    /// A connection with one subscription, whose requests name a reply subject of their own in `_INBOX.<index>.*`.
    pub(crate) fn subscribed(
        subscription: &str,
        role: Role,
        index: u32,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let action = &options.action;
        ensure!(!action.contains(char::is_whitespace), "a NATS subject has no white space in it: {action:?}");
        let payload = wire::payload(options.size);
        let before_number = format!("PUB {action} _INBOX.{index}.");
        let mut request = format!("{before_number}{} {}\r\n", "0".repeat(DIGITS), payload.len()).into_bytes();
        request.extend_from_slice(&payload);
        request.extend_from_slice(b"\r\n");
        Ok(Self {
            role,
            greeting: format!("{CONNECT}\r\nSUB {subscription} 1\r\nPING\r\n"),
            payload,
            request,
            number_at: before_number.len(),
        })
    }

    fn reply(&self, message: &Message<'_>, payload: &[u8]) -> anyhow::Result<Event> {
        let number = message.number()?;
        if payload != self.payload {
            return Ok(Event::Failed(Some(number), "the reply's payload is not the request's".into()));
        }
        Ok(Event::Replied(number))
    }
}

/// What a server says.
pub(crate) enum Incoming<'a> {
    /// A message, with its payload.
    Message { message: Message<'a>, payload: &'a [u8] },
    /// Anything else.
    Control(Event),
}

/// Reads what stands at the front of the input, and answers pings.
#[inline]
pub(crate) fn read<'a>(input: &'a [u8], out: &mut Vec<u8>) -> anyhow::Result<Option<(usize, Incoming<'a>)>> {
    let Some(newline) = memchr(b'\n', input) else { return Ok(None) };
    let line = input[..newline].trim_ascii_end();
    let Some(arguments) = line.strip_prefix(b"MSG ") else {
        return Ok(Some((newline + 1, Incoming::Control(control(line, out)?))));
    };
    let message = Message::parse(arguments)
        .with_context(|| format!("the server's line {}", String::from_utf8_lossy(line)))?;
    let start = newline + 1;
    let end = start + message.bytes;
    if input.len() < end + 2 {
        return Ok(None);
    }
    Ok(Some((end + 2, Incoming::Message { message, payload: &input[start..end] })))
}

/// The arguments of a `MSG`.
pub(crate) struct Message<'a> {
    subject: &'a [u8],
    reply_to: Option<&'a [u8]>,
    /// As it was written.
    size: &'a [u8],
    bytes: usize,
}

impl<'a> Message<'a> {
    /// The number of the request that this answers: it ends the subject.
    #[inline]
    pub(crate) fn number(&self) -> anyhow::Result<u64> {
        let digits = self.subject.len().checked_sub(DIGITS).map(|start| &self.subject[start..]);
        digits.and_then(wire::read_digits).context("a reply subject that was never named")
    }

    /// Reads `subject sid [reply-to] size`.
    #[inline]
    fn parse(arguments: &'a [u8]) -> Option<Self> {
        let mut words = arguments.split(|&byte| byte == b' ');
        let (subject, _sid, third) = (words.next()?, words.next()?, words.next()?);
        let (reply_to, size) = match words.next() {
            Some(size) => (Some(third), size),
            None => (None, third),
        };
        let bytes = size.iter().try_fold(0usize, |bytes, &byte| {
            let digit = byte.wrapping_sub(b'0');
            (digit < 10).then(|| bytes.checked_mul(10)?.checked_add(usize::from(digit))).flatten()
        })?;
        Some(Self { subject, reply_to, size, bytes })
    }
}

fn echo(reply_to: &[u8], size: &[u8], payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"PUB ");
    out.extend_from_slice(reply_to);
    out.push(b' ');
    out.extend_from_slice(size);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// Everything but messages.
fn control(line: &[u8], out: &mut Vec<u8>) -> anyhow::Result<Event> {
    match line {
        b"PONG" => Ok(Event::Ready),
        b"PING" => {
            out.extend_from_slice(b"PONG\r\n");
            Ok(Event::Other)
        }
        line if line.starts_with(b"INFO ") || line == b"+OK" => Ok(Event::Other),
        line => bail!("the server says {}", String::from_utf8_lossy(line)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options { size: 5, ..Options::new("127.0.0.1:4222".parse().unwrap()) }
    }

    /// Feeds bytes one by one, as the worst network would; what was answered, and what it meant.
    fn feed(nats: &mut Nats, input: &[u8]) -> anyhow::Result<(Vec<u8>, Vec<Event>)> {
        let (mut pending, mut out, mut events) = (Vec::new(), Vec::new(), Vec::new());
        for &byte in input {
            pending.push(byte);
            while let Some((bytes, event)) = nats.next(&pending, &mut out)? {
                pending.drain(..bytes);
                events.push(event);
            }
        }
        assert!(pending.is_empty());
        Ok((out, events))
    }

    /// A handler joins the queue group, answers requests to the subject that they name, and pings.
    #[test]
    fn handler_echoes() {
        let mut nats = Nats::new(Role::Handler, 0, &options()).unwrap();
        let mut hello = Vec::new();
        nats.open(&mut hello);
        assert!(hello.ends_with(b"\r\nSUB bench handlers 1\r\nPING\r\n"));
        let input = b"INFO {}\r\nPONG\r\nMSG bench 1 _INBOX.3.000000000007 5\r\n11\r\n1\r\nPING\r\n";
        let (out, events) = feed(&mut nats, input).unwrap();
        assert_eq!(out, b"PUB _INBOX.3.000000000007 5\r\n11\r\n1\r\nPONG\r\n");
        assert_eq!(events, [Event::Other, Event::Ready, Event::Other, Event::Other]);
    }

    /// A requester's replies are known by the end of their subject and must have the payload that was sent.
    #[test]
    fn requester_checks() {
        let mut nats = Nats::new(Role::Requester, 3, &options()).unwrap();
        let mut out = Vec::new();
        nats.request(7, &mut out);
        assert_eq!(out, b"PUB bench _INBOX.3.000000000007 5\r\n11111\r\n");
        let (_, events) = feed(&mut nats, b"MSG _INBOX.3.000000000007 1 5\r\n11111\r\n").unwrap();
        assert_eq!(events, [Event::Replied(7)]);
        let (_, events) = feed(&mut nats, b"MSG _INBOX.3.000000000007 1 5\r\n11112\r\n").unwrap();
        assert!(matches!(events[..], [Event::Failed(Some(7), _)]));
    }

    /// What the server refuses, and lines that are none of the protocol's, end the run.
    #[test]
    fn bad_lines_are_errors() {
        for line in [
            "-ERR 'Authorization Violation'\r\n",
            "MSG a\r\n",
            "MSG a 1 x\r\n",
            "MSG other 1 1\r\n1\r\n",
            "\r\n",
        ] {
            let mut nats = Nats::new(Role::Requester, 0, &options()).unwrap();
            assert!(feed(&mut nats, line.as_bytes()).is_err(), "{line:?}");
        }
    }
}
