//! Ringpost's JSON dialect, a line per object, read by looking for the few keys that matter.
//!
//! That is no JSON parser, and need not be one: what it meets is what the server made of this load's own requests,
//! whose data holds none of the keys. What it does not find is an error.

use anyhow::{Context, bail, ensure};
use memchr::{memchr, memmem::Finder};

use super::{
    Options,
    wire::{self, DIGITS, Event, Role, Wire},
};

/// The `clientId` of the request by which a connection learns that the server has taken in all that it said before.
///
/// In this dialect a registration has no answer of its own.
const PROBE: &str = "ready";

/// One connection that speaks JSON lines.
#[derive(Debug)]
pub struct Json {
    greeting: String,
    payload: Vec<u8>,
    /// A whole request, but for its number.
    request: Vec<u8>,
    number_at: usize,
    action: Key,
    server_id: Key,
    client_id: Key,
    data: Key,
}

impl Wire for Json {
    const NAME: &'static str = "ringpost json";

    fn new(role: Role, _index: u32, options: &Options) -> anyhow::Result<Self> {
        ensure!(!options.durable, "a durable load speaks the binary dialect, not JSON");
        ensure!(options.size >= 1, "the shortest JSON text has 1 byte, not {}", options.size);
        let payload = wire::payload(options.size);
        let action = serde_json::to_string(&options.action)?;
        let data = std::str::from_utf8(&payload)?;
        let mut greeting = String::new();
        if role == Role::Handler {
            let credit = wire::credit(options);
            greeting = format!("{{\"id\":{action},\"action\":\"init\",\"concurrency\":{credit}}}\n");
        }
        greeting.push_str(&format!("{{\"id\":{action},\"clientId\":\"{PROBE}\",\"data\":{data}}}\n"));
        let before_number = format!("{{\"id\":{action},\"clientId\":\"");
        let request = format!("{before_number}{}\",\"data\":{data}}}\n", "0".repeat(DIGITS)).into_bytes();
        Ok(Self {
            greeting,
            payload,
            request,
            number_at: before_number.len(),
            action: Key::new("\"action\":"),
            server_id: Key::new("\"serverId\":"),
            client_id: Key::new("\"clientId\":"),
            data: Key::new("\"data\":"),
        })
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
        let Some(length) = memchr(b'\n', input) else { return Ok(None) };
        let line = &input[..length];
        let event = match self.action.text(line).with_context(|| shown(line))? {
            b"response" => self.reply(line).with_context(|| shown(line))?,
            b"request" => {
                self.deliver(line, out).with_context(|| shown(line))?;
                Event::Other
            }
            b"error" => self.error(line)?,
            _ => Event::Other,
        };
        Ok(Some((length + 1, event)))
    }
}

impl Json {
    #[inline]
    fn reply(&mut self, line: &[u8]) -> anyhow::Result<Event> {
        let client_id = self.client_id.text(line)?;
        if client_id == PROBE.as_bytes() {
            return Ok(Event::Ready);
        }
        let number = wire::read_digits(client_id).context("a clientId that was never sent")?;
        if self.data.value(line)?.starts_with(&self.payload) {
            Ok(Event::Replied(number))
        } else {
            Ok(Event::Failed(Some(number), "the reply's data is not the request's".into()))
        }
    }

    #[inline]
    fn deliver(&mut self, line: &[u8], out: &mut Vec<u8>) -> anyhow::Result<()> {
        let server_id = self.server_id.text(line)?;
        let client_id = self.client_id.text(line)?;
        let data = self.data.value(line)?.get(..self.payload.len()).context("data that is too short")?;
        out.extend_from_slice(b"{\"action\":\"response\",\"message\":{\"serverId\":\"");
        out.extend_from_slice(server_id);
        out.extend_from_slice(b"\",\"clientId\":\"");
        out.extend_from_slice(client_id);
        out.extend_from_slice(b"\",\"data\":");
        out.extend_from_slice(data);
        out.extend_from_slice(b"}}\n");
        Ok(())
    }

    #[cold]
    fn error(&mut self, line: &[u8]) -> anyhow::Result<Event> {
        let number = self.client_id.text(line).ok().and_then(wire::read_digits);
        if number.is_none() {
            bail!("the server refused: {}", String::from_utf8_lossy(line));
        }
        let reason = Key::new("\"code\":").text(line).or_else(|_| Key::new("\"error\":").text(line))?;
        Ok(Event::Failed(number, String::from_utf8_lossy(reason).into()))
    }
}

fn shown(line: &[u8]) -> String {
    format!("the server's line {}", String::from_utf8_lossy(line))
}

/// A key that is looked for in line after line, first where it was found last.
#[derive(Debug)]
struct Key {
    finder: Finder<'static>,
    last: usize,
}

impl Key {
    /// `text` is the key in quotes, and its colon.
    fn new(text: &'static str) -> Self {
        Self { finder: Finder::new(text), last: 0 }
    }

    /// What stands behind the key, up to the line's end.
    #[inline]
    fn value<'a>(&mut self, line: &'a [u8]) -> anyhow::Result<&'a [u8]> {
        let key = self.finder.needle();
        if let Some(value) = line.get(self.last..).and_then(|rest| rest.strip_prefix(key)) {
            return Ok(value);
        }
        self.last = self.finder.find(line).with_context(|| format!("no {}", String::from_utf8_lossy(key)))?;
        Ok(&line[self.last + key.len()..])
    }

    /// The string behind the key, without its quotes.
    #[inline]
    fn text<'a>(&mut self, line: &'a [u8]) -> anyhow::Result<&'a [u8]> {
        let text = self.value(line)?.strip_prefix(b"\"").context("a string was expected")?;
        let end = memchr(b'"', text).context("a string without an end")?;
        let text = &text[..end];
        ensure!(!text.contains(&b'\\'), "an escaped string was not expected");
        Ok(text)
    }
}
