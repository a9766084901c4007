//! Bytes to messages: one pass over a frame, no allocation, spans into the frame for all that varies in length.

use bytes::Bytes;

use super::{HEADER_BYTES, kind, layout, peer};
use crate::{
    Code, Content, Span, WireError,
    limits::MAX_RESUME_NUMBERS,
    message::{
        Answer, ClientMessage, Deliver, ErrorReport, Hello, Leg, OpenState, Progress, Register, Reply,
        Request, RequestFlags, RequestId, Resume, Scope, ServerMessage, Speaker, Tag, Target, Verdict,
        Welcome,
    },
};

/// Reads a client's frame. `Ok(None)`: of an unknown kind that may be skipped.
///
/// # Errors
/// [`Code::Malformed`] when lengths within the frame do not add up or a value is not allowed,
/// [`Code::Unsupported`] for unknown kinds and flags.
pub fn decode_client(frame: Bytes) -> Result<Option<ClientMessage>, WireError> {
    let head = Head::read(&frame)?;
    let message = match head.kind {
        kind::REQUEST => ClientMessage::Request(decode_request(head, frame)?),
        kind::ANSWER if head.flags == layout::ANSWER_LEG => {
            ClientMessage::Leg(decode_answer(Head { flags: 0, ..head }, frame)?)
        }
        kind::ANSWER => ClientMessage::Answer(decode_answer(head, frame)?),
        kind::HELLO => ClientMessage::Hello(decode_hello(head, &frame)?),
        kind::REGISTER => ClientMessage::Register(decode_register(head, &frame)?),
        kind::DEREGISTER => ClientMessage::Deregister(Target::Number(head.number)),
        kind::CREDIT => {
            let fixed: &[u8; layout::credit::SIZE] = fixed(&frame, "credit")?;
            let credit = u32_at(fixed, layout::credit::CREDIT);
            ClientMessage::Credit { registration: registration(head.number)?, credit }
        }
        kind::CANCEL => ClientMessage::Cancel(Target::Number(head.number)),
        kind::LEGS => {
            let (delivery, expected) = decode_legs(head, &frame)?;
            ClientMessage::Legs { delivery, expected }
        }
        kind::PROGRESS => ClientMessage::Progress(decode_progress(head, frame)),
        kind::ACKNOWLEDGE => ClientMessage::Acknowledge(Target::Number(head.number)),
        kind::RESUME => ClientMessage::Resume(decode_resume(head, &frame)?),
        kind::WATCH => ClientMessage::WatchReceivers(head.number != 0),
        kind::PING => ClientMessage::Ping(head.number),
        kind::PONG => ClientMessage::Pong(head.number),
        kind::GOAWAY => ClientMessage::Goaway,
        kind::FORWARD..=kind::UNKNOWN => ClientMessage::Peer(Box::new(peer::decode(head, frame)?)),
        unknown => return skip_or_refuse(unknown),
    };
    Ok(Some(message))
}

/// Reads a server's frame. `Ok(None)`: of an unknown kind that may be skipped.
///
/// # Errors
/// As [`decode_client`].
pub fn decode_server(frame: Bytes) -> Result<Option<ServerMessage>, WireError> {
    let head = Head::read(&frame)?;
    let message = match head.kind {
        kind::DELIVER => ServerMessage::Deliver(decode_deliver(head, frame)?),
        kind::REPLY => ServerMessage::Reply(decode_reply(head, frame)?),
        kind::ACCEPTED => ServerMessage::Accepted { upto: head.number, tag: Tag::new() },
        kind::WELCOME => ServerMessage::Welcome(decode_welcome(head, &frame)?),
        kind::REGISTERED => ServerMessage::Registered { registration: registration(head.number)? },
        kind::CANCEL => ServerMessage::Cancel { delivery: head.number, tag: Tag::new() },
        kind::LEGS => {
            let (number, expected) = decode_legs(head, &frame)?;
            ServerMessage::Legs { number, expected }
        }
        kind::PROGRESS => ServerMessage::Progress(decode_progress(head, frame)),
        kind::ASKED => decode_asked(head, frame)?,
        kind::ACKNOWLEDGE => ServerMessage::Acknowledge { sequence: head.number },
        kind::RESUMED => decode_resumed(&frame)?,
        kind::RECEIVERS => ServerMessage::Receivers(frame.slice(HEADER_BYTES..)),
        kind::ERROR => ServerMessage::Error(decode_error(head, &frame)?),
        kind::PING => ServerMessage::Ping(head.number),
        kind::PONG => ServerMessage::Pong(head.number),
        kind::GOAWAY => {
            let fixed: &[u8; layout::goaway::SIZE] = fixed(&frame, "goaway")?;
            let reason = text(&frame[HEADER_BYTES + layout::goaway::SIZE..]);
            ServerMessage::Goaway { grace_ms: u32_at(fixed, layout::goaway::GRACE), reason }
        }
        kind::FORWARD..=kind::UNKNOWN => ServerMessage::Peer(Box::new(peer::decode(head, frame)?)),
        unknown => return skip_or_refuse(unknown),
    };
    Ok(Some(message))
}

#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) number: u64,
}

impl Head {
    fn read(frame: &[u8]) -> Result<Self, WireError> {
        let header: &[u8; HEADER_BYTES] = frame
            .first_chunk()
            .ok_or_else(|| WireError::malformed("a frame begins with 16 bytes of header"))?;
        Ok(Self { kind: header[4], flags: header[5], number: u64_at(header, 8) })
    }
}

fn skip_or_refuse<T>(unknown: u8) -> Result<Option<T>, WireError> {
    if unknown & kind::IGNORABLE != 0 {
        return Ok(None);
    }
    let message =
        format!("frames of kind {unknown:#04x} are not known in version 1, and this one must not be skipped");
    Err(WireError::new(Code::Unsupported, message))
}

#[inline]
fn decode_request(head: Head, frame: Bytes) -> Result<Request, WireError> {
    use layout::request as at;
    let flags = RequestFlags(head.flags);
    if !RequestFlags::KNOWN.has(flags) {
        let message =
            format!("request {}: flags {:#04x} are not all known in version 1", head.number, head.flags);
        return Err(WireError::new(Code::Unsupported, message));
    }
    if head.number == 0 {
        return Err(WireError::malformed("a request's number must not be 0"));
    }
    let fixed: &[u8; at::SIZE] = fixed(&frame, "request")?;
    let (max_attempts, ttl_ms, timeout_ms) =
        (fixed[at::MAX_ATTEMPTS], u32_at(fixed, at::TTL), u32_at(fixed, at::TIMEOUT));
    let lengths = Lengths {
        name: usize::from(fixed[at::ACTION_LENGTH]),
        options: u16_at(fixed, at::OPTIONS_LENGTH),
        headers: u16_at(fixed, at::HEADERS_LENGTH),
    };
    let content = content(frame, at::SIZE, lengths, "request")?;
    Ok(Request { number: head.number, flags, max_attempts, ttl_ms, timeout_ms, content })
}

#[inline]
fn decode_deliver(head: Head, frame: Bytes) -> Result<Deliver, WireError> {
    use layout::deliver as at;
    let fixed: &[u8; at::SIZE] = fixed(&frame, "deliver")?;
    let lengths = Lengths {
        name: 0,
        options: u16_at(fixed, at::OPTIONS_LENGTH),
        headers: u16_at(fixed, at::HEADERS_LENGTH),
    };
    let mut deliver = Deliver {
        delivery: head.number,
        registration: u32_at(fixed, at::REGISTRATION),
        flags: RequestFlags(head.flags),
        attempt: u16_at(fixed, at::ATTEMPT) as u16,
        time_left_ms: u32_at(fixed, at::TIME_LEFT),
        received_at_ms: u64_at(fixed, at::RECEIVED_AT),
        request_id: RequestId {
            boot: u64_at(fixed, at::REQUEST_BOOT),
            count: u64_at(fixed, at::REQUEST_COUNT),
        },
        content: Content::default(),
    };
    deliver.content = content(frame, at::SIZE, lengths, "deliver")?;
    Ok(deliver)
}

#[inline]
fn decode_answer(head: Head, frame: Bytes) -> Result<Answer, WireError> {
    use layout::answer as at;
    let fixed: &[u8; at::SIZE] = fixed(&frame, "answer")?;
    let code = u16_at(fixed, at::CODE) as u16;
    let verdict = verdict(head, code, u32_at(fixed, at::RETRY_AFTER), "answer to delivery")?;
    let sequence = u64_at(fixed, at::SEQUENCE);
    let lengths = Lengths {
        name: usize::from(fixed[at::NAME_LENGTH]),
        options: u16_at(fixed, at::OPTIONS_LENGTH),
        headers: u16_at(fixed, at::HEADERS_LENGTH),
    };
    let content = content(frame, at::SIZE, lengths, "answer")?;
    Ok(Answer { delivery: head.number, sequence, verdict, content })
}

/// The verdict that flags, code and pause stand for.
pub(super) fn verdict(
    head: Head,
    code: u16,
    retry_after_ms: u32,
    what: &'static str,
) -> Result<Verdict, WireError> {
    Ok(match (head.flags, code) {
        (0, 0) => Verdict::Reply,
        (layout::ANSWER_RETRY, _) => Verdict::Retry(retry_after_ms),
        (layout::ANSWER_REJECT, _) => Verdict::Reject,
        (0, code) if code == Code::Cancelled.number() => Verdict::Cancelled,
        (layout::ANSWER_DECLINED, code) => Verdict::Declined(Code::from_number(code).unwrap_or(Code::Remote)),
        (0, code) => match Code::from_number(code) {
            Some(Code::Remote) | None => Verdict::Error,
            Some(code) => Verdict::Failed(code),
        },
        (flags, _) => {
            let message = format!("{what} {}: flags {flags:#04x} are not known in version 1", head.number);
            return Err(WireError::new(Code::Unsupported, message));
        }
    })
}

#[inline]
fn decode_reply(head: Head, frame: Bytes) -> Result<Reply, WireError> {
    use layout::reply as at;
    let fixed: &[u8; at::SIZE] = fixed(&frame, "reply")?;
    let code = match u16_at(fixed, at::CODE) as u16 {
        0 => None,
        number => Some(Code::from_number(number).unwrap_or(Code::Remote)),
    };
    let leg = (head.flags & layout::REPLY_LEG != 0)
        .then(|| Leg { index: u32_at(fixed, at::LEG), expected: u32_at(fixed, at::EXPECTED) });
    let lengths = Lengths {
        name: usize::from(fixed[at::NAME_LENGTH]),
        options: u16_at(fixed, at::OPTIONS_LENGTH),
        headers: u16_at(fixed, at::HEADERS_LENGTH),
    };
    let mut reply = Reply {
        number: head.number,
        tag: Tag::new(),
        sequence: u64_at(fixed, at::SEQUENCE),
        code,
        leg,
        attempt: u16_at(fixed, at::ATTEMPT) as u16,
        received_at_ms: u64_at(fixed, at::RECEIVED_AT),
        delivered_after_ms: u32_at(fixed, at::DELIVERED_AFTER),
        handled_after_ms: u32_at(fixed, at::HANDLED_AFTER),
        content: Content::default(),
    };
    reply.content = content(frame, at::SIZE, lengths, "reply")?;
    Ok(reply)
}

fn decode_asked(head: Head, frame: Bytes) -> Result<ServerMessage, WireError> {
    use layout::asked as at;
    let fixed: &[u8; at::SIZE] = fixed(&frame, "asked")?;
    let name = usize::from(fixed[at::ACTION_LENGTH]);
    let headers = frame.len().saturating_sub(HEADER_BYTES + at::SIZE + name);
    let content = content(frame, at::SIZE, Lengths { name, options: 0, headers }, "asked")?;
    Ok(ServerMessage::Asked { number: head.number, tag: Tag::new(), content })
}

fn decode_hello(head: Head, frame: &Bytes) -> Result<Hello, WireError> {
    use layout::hello as at;
    let fixed: &[u8; at::SIZE] = fixed(frame, "hello")?;
    let (session, end) =
        part(frame, HEADER_BYTES + at::SIZE, usize::from(fixed[at::SESSION_LENGTH]), "hello")?;
    let (peer, end) = match head.flags & layout::HELLO_PEER {
        0 => (None, end),
        _ => {
            let (peer, end) = part(frame, end, usize::from(fixed[at::PEER_LENGTH]), "hello")?;
            (Some(peer), end)
        }
    };
    Ok(Hello {
        session,
        speaker: Speaker { instance: u64_at(fixed, at::INSTANCE), connection: u32_at(fixed, at::CONNECTION) },
        watch_receivers: head.flags & layout::HELLO_WATCH != 0,
        peer,
        headers: frame.slice(end..),
    })
}

fn decode_welcome(head: Head, frame: &Bytes) -> Result<Welcome, WireError> {
    use layout::welcome as at;
    let fixed: &[u8; at::SIZE] = fixed(frame, "welcome")?;
    let (server_id, end) =
        part(frame, HEADER_BYTES + at::SIZE, usize::from(fixed[at::SERVER_ID_LENGTH]), "welcome")?;
    Ok(Welcome {
        server_id,
        boot: u64_at(fixed, at::BOOT),
        epoch: u64_at(fixed, at::EPOCH),
        tenure: u64_at(fixed, at::TENURE),
        next_number: u64_at(fixed, at::NEXT_NUMBER),
        max_payload: u32_at(fixed, at::MAX_PAYLOAD),
        ping_interval_ms: u32_at(fixed, at::PING_INTERVAL),
        durable_all: head.flags & layout::WELCOME_DURABLE != 0,
        headers: frame.slice(end..),
    })
}

fn decode_register(head: Head, frame: &Bytes) -> Result<Register, WireError> {
    use layout::register as at;
    let fixed: &[u8; at::SIZE] = fixed(frame, "register")?;
    let (action, _) =
        part(frame, HEADER_BYTES + at::SIZE, usize::from(fixed[at::ACTION_LENGTH]), "register")?;
    let registration = registration(head.number)?;
    Ok(Register { registration, credit: u32_at(fixed, at::CREDIT), action, session: Bytes::new() })
}

fn decode_legs(head: Head, frame: &Bytes) -> Result<(u64, u32), WireError> {
    let fixed: &[u8; layout::legs::SIZE] = fixed(frame, "legs")?;
    Ok((head.number, u32_at(fixed, layout::legs::EXPECTED)))
}

fn decode_progress(head: Head, frame: Bytes) -> Progress {
    Progress {
        number: head.number,
        tag: Tag::new(),
        content: Content::from_payload(frame.slice(HEADER_BYTES..)),
    }
}

fn decode_resume(head: Head, frame: &Bytes) -> Result<Resume, WireError> {
    use layout::resume as at;
    let fixed: &[u8; at::SIZE] = fixed(frame, "resume")?;
    let open_count = u32_at(fixed, at::OPEN_COUNT) as usize;
    let held_count = u32_at(fixed, at::HELD_COUNT) as usize;
    let numbers = &frame[HEADER_BYTES + at::SIZE..];
    if open_count.saturating_add(held_count) > MAX_RESUME_NUMBERS
        || numbers.len() < 8 * (open_count + held_count)
    {
        return Err(WireError::malformed(format!(
            "resume: {open_count} open numbers and {held_count} deliveries do not fit into the frame (8 bytes each), or are more than {MAX_RESUME_NUMBERS}"
        )));
    }
    let mut numbers = numbers.chunks_exact(8).map(|chunk| u64_at(chunk, 0));
    let open = numbers.by_ref().take(open_count).collect();
    let held = numbers.take(held_count).collect();
    let unclaimed = head.flags & layout::RESUME_UNCLAIMED != 0;
    let (boot, sequence) = (u64_at(fixed, at::BOOT), u64_at(fixed, at::SEQUENCE));
    Ok(Resume { boot, sequence, open, held_boot: u64_at(fixed, at::HELD_BOOT), held, unclaimed })
}

fn decode_resumed(frame: &Bytes) -> Result<ServerMessage, WireError> {
    use layout::resumed as at;
    let fixed: &[u8; at::SIZE] = fixed(frame, "resumed")?;
    let [open_count, forgotten_count, attached_count] =
        [at::OPEN_COUNT, at::FORGOTTEN_COUNT, at::ATTACHED_COUNT].map(|at| u32_at(fixed, at) as usize);
    let entries = &frame[HEADER_BYTES + at::SIZE..];
    let count = open_count.saturating_add(forgotten_count).saturating_add(attached_count);
    if count > MAX_RESUME_NUMBERS
        || entries.len() < 9 * open_count + 8 * forgotten_count + 16 * attached_count
    {
        return Err(WireError::malformed("resumed: its counts do not fit into the frame"));
    }
    let (states, numbers) = entries.split_at(9 * open_count);
    let open = states.chunks_exact(9).map(|entry| Ok((u64_at(entry, 0), open_state(entry[8])?)));
    let open = open.collect::<Result<_, WireError>>()?;
    let (forgotten, pairs) = numbers.split_at(8 * forgotten_count);
    let forgotten = forgotten.chunks_exact(8).map(|chunk| u64_at(chunk, 0)).collect();
    let attached = pairs.chunks_exact(16).take(attached_count);
    let attached = attached.map(|pair| (u64_at(pair, 0), u64_at(pair, 8))).collect();
    Ok(ServerMessage::Resumed { open, forgotten, attached })
}

fn open_state(state: u8) -> Result<OpenState, WireError> {
    use layout::resumed as at;
    match state {
        at::RUNNING => Ok(OpenState::Running),
        at::OUTCOME => Ok(OpenState::Outcome),
        at::NEVER_SEEN => Ok(OpenState::NeverSeen),
        at::LOST => Ok(OpenState::Lost),
        other => Err(WireError::malformed(format!("resumed: there is no state {other}"))),
    }
}

fn decode_error(head: Head, frame: &Bytes) -> Result<ErrorReport, WireError> {
    use layout::error as at;
    let fixed: &[u8; at::SIZE] = fixed(frame, "error")?;
    let scope = match fixed[at::SCOPE] {
        0 => Scope::Connection,
        1 => Scope::Registration,
        2 => Scope::Delivery,
        scope => return Err(WireError::malformed(format!("error: there is no scope {scope}"))),
    };
    let code = Code::from_number(u16_at(fixed, at::CODE) as u16).unwrap_or(Code::Remote);
    Ok(ErrorReport { scope, number: head.number, code, message: text(&frame[HEADER_BYTES + at::SIZE..]) })
}

pub(super) struct Lengths {
    pub(super) name: usize,
    pub(super) options: usize,
    pub(super) headers: usize,
}

/// The spans of name, options, headers and payload behind a fixed part of `fixed_bytes`.
#[inline]
pub(super) fn content(
    frame: Bytes,
    fixed_bytes: usize,
    lengths: Lengths,
    what: &'static str,
) -> Result<Content, WireError> {
    let name_start = HEADER_BYTES + fixed_bytes;
    let options_start = name_start + lengths.name;
    let headers_start = options_start + lengths.options;
    let payload_start = headers_start + lengths.headers;
    if payload_start > frame.len() {
        return Err(too_short(what));
    }
    let end = frame.len();
    Ok(Content::from_spans(
        frame,
        Span::new(name_start, options_start),
        Span::default(),
        Span::new(options_start, headers_start),
        Span::new(headers_start, payload_start),
        Span::new(payload_start, end),
    ))
}

fn part(frame: &Bytes, start: usize, length: usize, what: &'static str) -> Result<(Bytes, usize), WireError> {
    let end = start + length;
    if end > frame.len() {
        return Err(too_short(what));
    }
    Ok((frame.slice(start..end), end))
}

#[inline]
pub(super) fn fixed<'a, const N: usize>(
    frame: &'a [u8],
    what: &'static str,
) -> Result<&'a [u8; N], WireError> {
    frame[HEADER_BYTES..].first_chunk().ok_or_else(|| too_short(what))
}

pub(super) fn too_short(what: &'static str) -> WireError {
    WireError::malformed(format!("{what}: the frame ends before the parts that its lengths announce"))
}

fn registration(number: u64) -> Result<u32, WireError> {
    u32::try_from(number).ok().filter(|number| *number != 0).ok_or_else(|| {
        WireError::malformed(format!("registration {number}: numbers from 1 to 4294967295 are allowed"))
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes([
        bytes[at],
        bytes[at + 1],
        bytes[at + 2],
        bytes[at + 3],
        bytes[at + 4],
        bytes[at + 5],
        bytes[at + 6],
        bytes[at + 7],
    ])
}
