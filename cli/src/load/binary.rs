//! Ringpost's binary dialect, as sparing as a client can be: requests are patched templates, answers echo.
//!
//! A requester of durable requests has a session of its own, and acknowledges outcomes as the SDKs do: the server keeps
//! each until then.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use ringpost_protocol::{
    Code, Content, Outgoing,
    frame::{HEADER_BYTES, Preface, encode_client, kind, layout},
    message::{Answer, ClientMessage, Hello, Register, Request, RequestFlags, Speaker, Target},
};

use super::{
    Options,
    wire::{self, Event, Role, Wire},
};

const LENGTH: usize = 0;
const KIND: usize = 4;
const NUMBER: usize = 8;

/// So many outcomes are acknowledged at once, as by the SDKs.
const ACKNOWLEDGE_OUTCOMES: u64 = 64;
/// How long what an interrupted run leaves behind stays with a server that is not the run's own.
const DURABLE_TTL: Duration = Duration::from_secs(60);

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
    /// Whether the server keeps outcomes for it.
    durable: bool,
    /// Sequences of the last outcome that came, and of the last that was acknowledged.
    received: u64,
    acknowledged: u64,
}

impl Wire for Binary {
    const NAME: &'static str = "ringpost binary";

    fn new(role: Role, _index: u32, options: &Options) -> anyhow::Result<Self> {
        let payload = wire::payload(options.size);
        let mut greeting = Preface::plain().encode().to_vec();
        let durable = options.durable && role == Role::Requester;
        let hello = if durable { own_session() } else { Hello::default() };
        greeting.extend(encoded(&ClientMessage::Hello(hello)));
        if role == Role::Handler {
            let action = Bytes::copy_from_slice(options.action.as_bytes());
            let credit = wire::credit(options);
            let register = Register { registration: 1, credit, action, session: Bytes::new() };
            greeting.extend(encoded(&ClientMessage::Register(register)));
        }
        let content = Content::from_parts(options.action.as_bytes(), b"", b"", &payload);
        let mut request = Request { number: 1, content, ..Request::default() };
        if durable {
            request.flags = RequestFlags::DURABLE;
            request.ttl_ms = DURABLE_TTL.as_millis() as u32;
        }
        let request = encoded(&ClientMessage::Request(request));
        let answer = encoded(&ClientMessage::Answer(Answer::default()));
        Ok(Self {
            role,
            greeting,
            greeted: false,
            payload,
            request,
            answer,
            answers: 0,
            durable,
            received: 0,
            acknowledged: 0,
        })
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
            kind::REPLY => self.reply(number, body, out)?,
            kind::DELIVER => {
                self.deliver(number, body, out)?;
                Event::Other
            }
            other => self.other(other, number, body, out)?,
        };
        Ok(Some((end, event)))
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.durable {
            self.acknowledge(out);
        }
    }
}

impl Binary {
    fn read_preface(&mut self, input: &[u8]) -> anyhow::Result<Option<(usize, Event)>> {
        let preface = Preface::decode(input).context("the server's preface")?;
        self.greeted = preface.is_some();
        Ok(preface.map(|_| (Preface::BYTES, Event::Other)))
    }

    #[inline]
    fn reply(&mut self, number: u64, body: &[u8], out: &mut Vec<u8>) -> anyhow::Result<Event> {
        use layout::reply as at;
        let fixed: &[u8; at::SIZE] = body.first_chunk().context("a reply that is too short")?;
        self.received = u64_at(fixed, at::SEQUENCE);
        if self.durable && self.received >= self.acknowledged + ACKNOWLEDGE_OUTCOMES {
            self.acknowledge(out);
        }
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

    /// The server need not keep what came.
    fn acknowledge(&mut self, out: &mut Vec<u8>) {
        if self.received > self.acknowledged {
            out.extend(encoded(&ClientMessage::Acknowledge(Target::Number(self.received))));
            self.acknowledged = self.received;
        }
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

/// A hello that begins a session that nobody else has.
fn own_session() -> Hello {
    // Keyed by the system's randomness, a new key each time: no session of an earlier run has it.
    let random = || RandomState::new().build_hasher().finish();
    let name = format!("{:016x}{:016x}", random(), random());
    // 0 is nobody's.
    let speaker = Speaker { instance: random().max(1), connection: 1 };
    Hello { session: name.into(), speaker, ..Hello::default() }
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
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use ringpost_protocol::{
        frame::{FrameReader, decode_client, encode_server},
        message::{Reply, ServerMessage, Welcome},
    };

    use super::*;

    fn requester(durable: bool) -> Binary {
        let options = Options { durable, ..Options::new("127.0.0.1:9".parse().unwrap()) };
        let mut binary = Binary::new(Role::Requester, 0, &options).unwrap();
        let mut out = Vec::new();
        binary.next(&Preface::plain().encode(), &mut out).unwrap().unwrap();
        binary.next(&from_server(&ServerMessage::Welcome(Welcome::default())), &mut out).unwrap().unwrap();
        assert!(out.is_empty());
        binary
    }

    fn from_server(message: &ServerMessage) -> Vec<u8> {
        let mut out = Outgoing::new();
        encode_server(message, &mut out);
        out.drain_to_vec()
    }

    fn messages(bytes: &[u8]) -> Vec<ClientMessage> {
        let (reader, mut input) = (FrameReader::new(1 << 20), bytes::BytesMut::from(bytes));
        let next = || reader.next(&mut input).unwrap().map(|frame| decode_client(frame).unwrap().unwrap());
        std::iter::from_fn(next).collect()
    }

    /// What a requester says after each of so many outcomes, and at the end.
    fn acknowledged(durable: bool, outcomes: u64) -> Vec<(u64, ClientMessage)> {
        let mut binary = requester(durable);
        let content = Content::from_payload(Bytes::from(binary.payload.clone()));
        let mut said = Vec::new();
        for sequence in 1..=outcomes {
            let reply = Reply { number: 7, sequence, content: content.clone(), ..Reply::default() };
            let mut out = Vec::new();
            let event = binary.next(&from_server(&ServerMessage::Reply(reply)), &mut out).unwrap();
            assert_eq!(event.unwrap().1, Event::Replied(7));
            said.extend(messages(&out).into_iter().map(|message| (sequence, message)));
        }
        let mut out = Vec::new();
        binary.close(&mut out);
        said.extend(messages(&out).into_iter().map(|message| (outcomes, message)));
        said
    }

    /// Durable outcomes are acknowledged by the 64, and the rest at the end; plain ones never.
    #[test]
    fn acknowledges_what_is_kept() {
        let upto = |sequence| (sequence, ClientMessage::Acknowledge(Target::Number(sequence)));
        assert_eq!(acknowledged(true, 130), [upto(64), upto(128), upto(130)]);
        assert_eq!(acknowledged(true, 64), [upto(64)]);
        assert_eq!(acknowledged(false, 130), []);
    }

    /// A durable requester has a session that no other has, and its requests say that they are durable.
    #[test]
    fn durable_words() {
        let said = |durable| {
            let options = Options { durable, ..Options::new("127.0.0.1:9".parse().unwrap()) };
            let mut binary = Binary::new(Role::Requester, 0, &options).unwrap();
            let mut out = Vec::new();
            binary.open(&mut out);
            binary.request(3, &mut out);
            match <[ClientMessage; 2]>::try_from(messages(&out[Preface::BYTES..])).unwrap() {
                [ClientMessage::Hello(hello), ClientMessage::Request(request)] => (hello, request),
                other => panic!("{other:?}"),
            }
        };
        let ((one, request), (other, _)) = (said(true), said(true));
        assert!(one.session.len() == 32 && one.session != other.session);
        assert!(one.speaker.connection == 1 && one.speaker.instance != other.speaker.instance);
        assert_eq!((request.number, request.flags), (3, RequestFlags::DURABLE));
        let (plain, request) = said(false);
        assert_eq!((plain, request.flags), (Hello::default(), RequestFlags::default()));
    }
}
