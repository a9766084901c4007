//! Ringpost's binary dialect, as sparing as a client can be: requests are patched templates, answers echo.

use anyhow::{Context, bail};
use bytes::Bytes;
use ringpost_protocol::{
    Code, Content, Outgoing,
    frame::{HEADER_BYTES, Preface, encode_client, kind, layout},
    message::{Answer, ClientMessage, Hello, Register, Request},
};

use super::{
    Options,
    wire::{self, Event, Role, Wire},
};

const LENGTH: usize = 0;
const KIND: usize = 4;
const NUMBER: usize = 8;

/// One connection that speaks frames.
#[derive(Debug)]
pub struct Binary {
    role: Role,
    greeting: Vec<u8>,
    greeted: bool,
    payload: Vec<u8>,
    /// A whole request, but for its number.
    request: Vec<u8>,
    /// An answer without its payload, but for the frame's length, the delivery and the sequence.
    answer: Vec<u8>,
    answers: u64,
}

impl Wire for Binary {
    const NAME: &'static str = "ringpost binary";

    fn new(role: Role, _index: u32, options: &Options) -> anyhow::Result<Self> {
        let payload = wire::payload(options.size);
        let mut greeting = Preface::plain().encode().to_vec();
        greeting.extend(encoded(&ClientMessage::Hello(Hello::default())));
        if role == Role::Handler {
            let action = Bytes::copy_from_slice(options.action.as_bytes());
            let credit = wire::credit(options);
            let register = Register { registration: 1, credit, action, session: Bytes::new() };
            greeting.extend(encoded(&ClientMessage::Register(register)));
        }
        let content = Content::from_parts(options.action.as_bytes(), b"", b"", &payload);
        let request = encoded(&ClientMessage::Request(Request { number: 1, content, ..Request::default() }));
        let answer = encoded(&ClientMessage::Answer(Answer::default()));
        Ok(Self { role, greeting, greeted: false, payload, request, answer, answers: 0 })
    }

    fn open(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.greeting);
    }

    #[inline]
    fn request(&mut self, number: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.request);
        put(out, start + NUMBER, number.to_le_bytes());
    }

    #[inline]
    fn next(&mut self, input: &[u8], out: &mut Vec<u8>) -> anyhow::Result<Option<(usize, Event)>> {
        if !self.greeted {
            return self.read_preface(input);
        }
        let Some(header) = input.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let end = HEADER_BYTES + u32_at(header, LENGTH) as usize;
        let Some(body) = input.get(HEADER_BYTES..end) else { return Ok(None) };
        let number = u64_at(header, NUMBER);
        let event = match header[KIND] {
            kind::REPLY => self.reply(number, body)?,
            kind::DELIVER => {
                self.deliver(number, body, out)?;
                Event::Other
            }
            other => self.other(other, number, body, out)?,
        };
        Ok(Some((end, event)))
    }
}

impl Binary {
    fn read_preface(&mut self, input: &[u8]) -> anyhow::Result<Option<(usize, Event)>> {
        let preface = Preface::decode(input).context("the server's preface")?;
        self.greeted = preface.is_some();
        Ok(preface.map(|_| (Preface::BYTES, Event::Other)))
    }

    #[inline]
    fn reply(&self, number: u64, body: &[u8]) -> anyhow::Result<Event> {
        use layout::reply as at;
        let fixed: &[u8; at::SIZE] = body.first_chunk().context("a reply that is too short")?;
        let code = u16_at(fixed, at::CODE);
        if code != 0 {
            let reason =
                Code::from_number(code).map_or_else(|| format!("code {code}"), |code| code.text().to_owned());
            return Ok(Event::Failed(Some(number), reason.into()));
        }
        let start = at::SIZE
            + usize::from(fixed[at::NAME_LENGTH])
            + usize::from(u16_at(fixed, at::OPTIONS_LENGTH))
            + usize::from(u16_at(fixed, at::HEADERS_LENGTH));
        if body.get(start..) != Some(&self.payload) {
            return Ok(Event::Failed(Some(number), "the reply's payload is not the request's".into()));
        }
        Ok(Event::Replied(number))
    }

    #[inline]
    fn deliver(&mut self, delivery: u64, body: &[u8], out: &mut Vec<u8>) -> anyhow::Result<()> {
        use layout::deliver as at;
        let fixed: &[u8; at::SIZE] = body.first_chunk().context("a delivery that is too short")?;
        let start = at::SIZE
            + usize::from(u16_at(fixed, at::OPTIONS_LENGTH))
            + usize::from(u16_at(fixed, at::HEADERS_LENGTH));
        let payload = body.get(start..).context("a delivery whose lengths lie")?;
        self.answers += 1;
        let answer = out.len();
        out.extend_from_slice(&self.answer);
        put(out, answer + LENGTH, ((self.answer.len() - HEADER_BYTES + payload.len()) as u32).to_le_bytes());
        put(out, answer + NUMBER, delivery.to_le_bytes());
        put(out, answer + HEADER_BYTES + layout::answer::SEQUENCE, self.answers.to_le_bytes());
        out.extend_from_slice(payload);
        Ok(())
    }

    #[cold]
    fn other(&self, kind: u8, number: u64, body: &[u8], out: &mut Vec<u8>) -> anyhow::Result<Event> {
        match kind {
            kind::WELCOME if self.role == Role::Requester => Ok(Event::Ready),
            kind::REGISTERED => Ok(Event::Ready),
            kind::PING => {
                out.extend(encoded(&ClientMessage::Pong(number)));
                Ok(Event::Other)
            }
            kind::ERROR => {
                let message = String::from_utf8_lossy(body.get(layout::error::SIZE..).unwrap_or_default());
                // About a delivery: the others go on. About the connection or the registration: nothing does.
                match body.get(layout::error::SCOPE) {
                    Some(2) => Ok(Event::Failed(None, message.into())),
                    _ => bail!("the server refused: {message}"),
                }
            }
            kind::GOAWAY => bail!("the server is leaving"),
            _ => Ok(Event::Other),
        }
    }
}

fn encoded(message: &ClientMessage) -> Vec<u8> {
    let mut out = Outgoing::new();
    encode_client(message, &mut out);
    out.drain_to_vec()
}

#[inline]
fn put<const N: usize>(out: &mut [u8], at: usize, value: [u8; N]) {
    out[at..at + N].copy_from_slice(&value);
}

#[inline]
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline]
fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}
