//! Messages to bytes.

use super::{HEADER_BYTES, kind, layout, peer};
use crate::{
    Code, Content, Outgoing,
    message::{
        Answer, ClientMessage, Deliver, ErrorReport, Hello, OpenState, Progress, Register, Reply, Request,
        Resume, Scope, Target, Verdict, Welcome,
    },
};

/// Appends a client's message.
///
/// Names, options and headers beyond their limits are cut off by no one: callers check them where they come in
/// ([`crate::limits`]). [`Target::Name`] and other things that only JSON can say are not in this dialect and are left
/// out.
pub fn encode_client(message: &ClientMessage, out: &mut Outgoing) {
    match message {
        ClientMessage::Request(request) => encode_request(request, out),
        ClientMessage::Answer(answer) => encode_answer(answer, 0, out),
        ClientMessage::Leg(answer) => encode_answer(answer, layout::ANSWER_LEG, out),
        ClientMessage::Legs { delivery, expected } => encode_legs(*delivery, *expected, out),
        ClientMessage::Hello(hello) => encode_hello(hello, out),
        ClientMessage::Register(register) => encode_register(register, out),
        ClientMessage::Deregister(Target::Number(number)) => bare(kind::DEREGISTER, 0, *number, out),
        ClientMessage::Credit { registration, credit } => {
            let mut fixed = [0; layout::credit::SIZE];
            put(&mut fixed, layout::credit::CREDIT, credit.to_le_bytes());
            frame(kind::CREDIT, 0, u64::from(*registration), &fixed, &[], out);
        }
        ClientMessage::Cancel(Target::Number(number)) => bare(kind::CANCEL, 0, *number, out),
        ClientMessage::Progress(progress) => encode_progress(progress, out),
        ClientMessage::Acknowledge(Target::Number(sequence)) => bare(kind::ACKNOWLEDGE, 0, *sequence, out),
        ClientMessage::Resume(resume) => encode_resume(resume, out),
        ClientMessage::WatchReceivers(on) => bare(kind::WATCH, 0, u64::from(*on), out),
        ClientMessage::Ping(token) => bare(kind::PING, 0, *token, out),
        ClientMessage::Pong(token) => bare(kind::PONG, 0, *token, out),
        ClientMessage::Goaway => bare(kind::GOAWAY, 0, 0, out),
        ClientMessage::Peer(message) => peer::encode(message, out),
        ClientMessage::Deregister(Target::Name(_))
        | ClientMessage::Cancel(Target::Name(_))
        | ClientMessage::Acknowledge(Target::Name(_)) => {
            debug_assert!(false, "targets are numbers in this dialect")
        }
    }
}

/// Appends a server's message.
pub fn encode_server(message: &crate::message::ServerMessage, out: &mut Outgoing) {
    use crate::message::ServerMessage;
    match message {
        ServerMessage::Deliver(deliver) => encode_deliver(deliver, out),
        ServerMessage::Reply(reply) => encode_reply(reply, out),
        ServerMessage::Accepted { upto, .. } => bare(kind::ACCEPTED, 0, *upto, out),
        ServerMessage::Welcome(welcome) => encode_welcome(welcome, out),
        ServerMessage::Registered { registration } => {
            bare(kind::REGISTERED, 0, u64::from(*registration), out)
        }
        ServerMessage::Cancel { delivery, .. } => bare(kind::CANCEL, 0, *delivery, out),
        ServerMessage::Legs { number, expected } => encode_legs(*number, *expected, out),
        ServerMessage::Progress(progress) => encode_progress(progress, out),
        ServerMessage::Asked { number, content, .. } => {
            let mut fixed = [0; layout::asked::SIZE];
            fixed[layout::asked::ACTION_LENGTH] = content.name().len() as u8;
            frame(kind::ASKED, 0, *number, &fixed, &[content.name(), content.headers()], out);
        }
        ServerMessage::Acknowledge { sequence } => bare(kind::ACKNOWLEDGE, 0, *sequence, out),
        ServerMessage::Resumed { open, forgotten, attached } => {
            encode_resumed(open, forgotten, attached, out)
        }
        ServerMessage::Receivers(list) => {
            header(kind::RECEIVERS, 0, 0, list.len(), out.tail());
            out.push(list, || list.clone());
        }
        ServerMessage::Error(report) => encode_error(report, out),
        ServerMessage::Ping(token) => bare(kind::PING, 0, *token, out),
        ServerMessage::Pong(token) => bare(kind::PONG, 0, *token, out),
        ServerMessage::Goaway { grace_ms, reason } => {
            let fixed: [u8; layout::goaway::SIZE] = grace_ms.to_le_bytes();
            frame(kind::GOAWAY, 0, 0, &fixed, &[reason.as_bytes()], out);
        }
        ServerMessage::Peer(message) => peer::encode(message, out),
    }
}

fn encode_request(request: &Request, out: &mut Outgoing) {
    use layout::request as at;
    let content = &request.content;
    let mut fixed = [0; at::SIZE];
    put(&mut fixed, at::TTL, request.ttl_ms.to_le_bytes());
    put(&mut fixed, at::TIMEOUT, request.timeout_ms.to_le_bytes());
    put(&mut fixed, at::OPTIONS_LENGTH, short(content.options()));
    put(&mut fixed, at::HEADERS_LENGTH, short(content.headers()));
    fixed[at::ACTION_LENGTH] = content.name().len() as u8;
    fixed[at::MAX_ATTEMPTS] = request.max_attempts;
    with_content::<_, { HEADER_BYTES + at::SIZE }>(
        kind::REQUEST,
        request.flags.0,
        request.number,
        &fixed,
        content.name(),
        content,
        out,
    );
}

#[inline]
fn encode_deliver(deliver: &Deliver, out: &mut Outgoing) {
    use layout::deliver as at;
    let content = &deliver.content;
    let mut fixed = [0; at::SIZE];
    put(&mut fixed, at::REQUEST_BOOT, deliver.request_id.boot.to_le_bytes());
    put(&mut fixed, at::REQUEST_COUNT, deliver.request_id.count.to_le_bytes());
    put(&mut fixed, at::RECEIVED_AT, deliver.received_at_ms.to_le_bytes());
    put(&mut fixed, at::TIME_LEFT, deliver.time_left_ms.to_le_bytes());
    put(&mut fixed, at::REGISTRATION, deliver.registration.to_le_bytes());
    put(&mut fixed, at::ATTEMPT, deliver.attempt.to_le_bytes());
    put(&mut fixed, at::OPTIONS_LENGTH, short(content.options()));
    put(&mut fixed, at::HEADERS_LENGTH, short(content.headers()));
    with_content::<_, { HEADER_BYTES + at::SIZE }>(
        kind::DELIVER,
        deliver.flags.0,
        deliver.delivery,
        &fixed,
        &[],
        content,
        out,
    );
}

fn encode_answer(answer: &Answer, leg: u8, out: &mut Outgoing) {
    use layout::answer as at;
    let content = &answer.content;
    let (flags, code, retry_after_ms) = verdict_parts(answer.verdict);
    let mut fixed = [0; at::SIZE];
    put(&mut fixed, at::SEQUENCE, answer.sequence.to_le_bytes());
    put(&mut fixed, at::RETRY_AFTER, retry_after_ms.to_le_bytes());
    put(&mut fixed, at::CODE, code.to_le_bytes());
    put(&mut fixed, at::OPTIONS_LENGTH, short(content.options()));
    put(&mut fixed, at::HEADERS_LENGTH, short(content.headers()));
    fixed[at::NAME_LENGTH] = content.name().len() as u8;
    with_content::<_, { HEADER_BYTES + at::SIZE }>(
        kind::ANSWER,
        flags | leg,
        answer.delivery,
        &fixed,
        content.name(),
        content,
        out,
    );
}

/// Flags, code and pause of a verdict.
pub(super) fn verdict_parts(verdict: Verdict) -> (u8, u16, u32) {
    match verdict {
        Verdict::Reply => (0, 0, 0),
        Verdict::Error => (0, Code::Remote.number(), 0),
        Verdict::Cancelled => (0, Code::Cancelled.number(), 0),
        Verdict::Retry(after_ms) => (layout::ANSWER_RETRY, Code::Remote.number(), after_ms),
        Verdict::Reject => (layout::ANSWER_REJECT, Code::Remote.number(), 0),
        Verdict::Failed(code) => (0, code.number(), 0),
        Verdict::Declined(code) => (layout::ANSWER_DECLINED, code.number(), 0),
    }
}

#[inline]
fn encode_reply(reply: &Reply, out: &mut Outgoing) {
    use layout::reply as at;
    let content = &reply.content;
    let mut fixed = [0; at::SIZE];
    put(&mut fixed, at::SEQUENCE, reply.sequence.to_le_bytes());
    put(&mut fixed, at::RECEIVED_AT, reply.received_at_ms.to_le_bytes());
    put(&mut fixed, at::DELIVERED_AFTER, reply.delivered_after_ms.to_le_bytes());
    put(&mut fixed, at::HANDLED_AFTER, reply.handled_after_ms.to_le_bytes());
    let leg = reply.leg.unwrap_or_default();
    put(&mut fixed, at::LEG, leg.index.to_le_bytes());
    put(&mut fixed, at::EXPECTED, leg.expected.to_le_bytes());
    put(&mut fixed, at::ATTEMPT, reply.attempt.to_le_bytes());
    put(&mut fixed, at::CODE, reply.code.map_or(0, Code::number).to_le_bytes());
    put(&mut fixed, at::OPTIONS_LENGTH, short(content.options()));
    put(&mut fixed, at::HEADERS_LENGTH, short(content.headers()));
    // A reply's content may be the request's own, whose name is the action: only errors carry a name here.
    let name = if reply.code.is_some() { content.name() } else { &[] };
    fixed[at::NAME_LENGTH] = name.len() as u8;
    let flags = if reply.leg.is_some() { layout::REPLY_LEG } else { 0 };
    with_content::<_, { HEADER_BYTES + at::SIZE }>(
        kind::REPLY,
        flags,
        reply.number,
        &fixed,
        name,
        content,
        out,
    );
}

fn encode_hello(hello: &Hello, out: &mut Outgoing) {
    use layout::hello as at;
    let mut fixed = [0; at::SIZE];
    fixed[at::SESSION_LENGTH] = hello.session.len() as u8;
    put(&mut fixed, at::CONNECTION, hello.speaker.connection.to_le_bytes());
    put(&mut fixed, at::INSTANCE, hello.speaker.instance.to_le_bytes());
    let peer = hello.peer.as_deref().unwrap_or_default();
    fixed[at::PEER_LENGTH] = peer.len() as u8;
    let watch = if hello.watch_receivers { layout::HELLO_WATCH } else { 0 };
    let flags = watch | if hello.peer.is_some() { layout::HELLO_PEER } else { 0 };
    frame(kind::HELLO, flags, 0, &fixed, &[&hello.session, peer, &hello.headers], out);
}

fn encode_welcome(welcome: &Welcome, out: &mut Outgoing) {
    use layout::welcome as at;
    let mut fixed = [0; at::SIZE];
    put(&mut fixed, at::BOOT, welcome.boot.to_le_bytes());
    put(&mut fixed, at::EPOCH, welcome.epoch.to_le_bytes());
    put(&mut fixed, at::TENURE, welcome.tenure.to_le_bytes());
    put(&mut fixed, at::NEXT_NUMBER, welcome.next_number.to_le_bytes());
    put(&mut fixed, at::MAX_PAYLOAD, welcome.max_payload.to_le_bytes());
    put(&mut fixed, at::PING_INTERVAL, welcome.ping_interval_ms.to_le_bytes());
    fixed[at::SERVER_ID_LENGTH] = welcome.server_id.len() as u8;
    let flags = if welcome.durable_all { layout::WELCOME_DURABLE } else { 0 };
    frame(kind::WELCOME, flags, 0, &fixed, &[&welcome.server_id, &welcome.headers], out);
}

fn encode_register(register: &Register, out: &mut Outgoing) {
    use layout::register as at;
    let mut fixed = [0; at::SIZE];
    put(&mut fixed, at::CREDIT, register.credit.to_le_bytes());
    fixed[at::ACTION_LENGTH] = register.action.len() as u8;
    frame(kind::REGISTER, 0, u64::from(register.registration), &fixed, &[&register.action], out);
}

fn encode_legs(number: u64, expected: u32, out: &mut Outgoing) {
    let mut fixed = [0; layout::legs::SIZE];
    put(&mut fixed, layout::legs::EXPECTED, expected.to_le_bytes());
    frame(kind::LEGS, 0, number, &fixed, &[], out);
}

fn encode_progress(progress: &Progress, out: &mut Outgoing) {
    let payload = progress.content.payload();
    header(kind::PROGRESS, 0, progress.number, payload.len(), out.tail());
    out.push(payload, || progress.content.payload_bytes());
}

fn encode_resume(resume: &Resume, out: &mut Outgoing) {
    use layout::resume as at;
    let mut fixed = [0; at::SIZE];
    put(&mut fixed, at::BOOT, resume.boot.to_le_bytes());
    put(&mut fixed, at::SEQUENCE, resume.sequence.to_le_bytes());
    put(&mut fixed, at::HELD_BOOT, resume.held_boot.to_le_bytes());
    put(&mut fixed, at::OPEN_COUNT, (resume.open.len() as u32).to_le_bytes());
    put(&mut fixed, at::HELD_COUNT, (resume.held.len() as u32).to_le_bytes());
    let length = at::SIZE + 8 * (resume.open.len() + resume.held.len());
    let tail = out.tail();
    let flags = if resume.unclaimed { layout::RESUME_UNCLAIMED } else { 0 };
    header(kind::RESUME, flags, 0, length, tail);
    tail.extend_from_slice(&fixed);
    for number in resume.open.iter().chain(&resume.held) {
        tail.extend_from_slice(&number.to_le_bytes());
    }
}

fn encode_resumed(open: &[(u64, OpenState)], forgotten: &[u64], attached: &[(u64, u64)], out: &mut Outgoing) {
    use layout::resumed as at;
    let tail = out.tail();
    let mut fixed = [0; at::SIZE];
    put(&mut fixed, at::OPEN_COUNT, (open.len() as u32).to_le_bytes());
    put(&mut fixed, at::FORGOTTEN_COUNT, (forgotten.len() as u32).to_le_bytes());
    put(&mut fixed, at::ATTACHED_COUNT, (attached.len() as u32).to_le_bytes());
    let length = at::SIZE + 9 * open.len() + 8 * forgotten.len() + 16 * attached.len();
    header(kind::RESUMED, 0, 0, length, tail);
    tail.extend_from_slice(&fixed);
    for (number, state) in open {
        tail.extend_from_slice(&number.to_le_bytes());
        tail.push(match state {
            OpenState::Running => at::RUNNING,
            OpenState::Outcome => at::OUTCOME,
            OpenState::NeverSeen => at::NEVER_SEEN,
            OpenState::Lost => at::LOST,
        });
    }
    for delivery in forgotten.iter().chain(attached.iter().flat_map(|(before, now)| [before, now])) {
        tail.extend_from_slice(&delivery.to_le_bytes());
    }
}

fn encode_error(report: &ErrorReport, out: &mut Outgoing) {
    use layout::error as at;
    let mut fixed = [0; at::SIZE];
    fixed[at::SCOPE] = match report.scope {
        Scope::Connection => 0,
        Scope::Registration => 1,
        Scope::Delivery => 2,
    };
    put(&mut fixed, at::CODE, report.code.number().to_le_bytes());
    frame(kind::ERROR, 0, report.number, &fixed, &[report.message.as_bytes()], out);
}

/// A frame with nothing but its header.
fn bare(kind: u8, flags: u8, number: u64, out: &mut Outgoing) {
    header(kind, flags, number, 0, out.tail());
}

/// A frame whose variable parts are short.
pub(super) fn frame(kind: u8, flags: u8, number: u64, fixed: &[u8], parts: &[&[u8]], out: &mut Outgoing) {
    let tail = out.tail();
    header(kind, flags, number, fixed.len() + parts.iter().map(|part| part.len()).sum::<usize>(), tail);
    tail.extend_from_slice(fixed);
    for part in parts {
        tail.extend_from_slice(part);
    }
}

/// A frame with a content behind its fixed part: name, options, headers, payload. `WHOLE` is the size of the frame's
/// header and fixed part together, so that both are written as one run.
#[inline]
pub(super) fn with_content<const FIXED: usize, const WHOLE: usize>(
    kind: u8,
    flags: u8,
    number: u64,
    fixed: &[u8; FIXED],
    name: &[u8],
    content: &Content,
    out: &mut Outgoing,
) {
    const { assert!(WHOLE == HEADER_BYTES + FIXED) };
    let (options, headers, payload) = (content.options(), content.headers(), content.payload());
    let length = FIXED + name.len() + options.len() + headers.len() + payload.len();
    let mut front = [0; WHOLE];
    front[..HEADER_BYTES].copy_from_slice(&header_bytes(kind, flags, number, length));
    front[HEADER_BYTES..].copy_from_slice(fixed);
    let tail = out.tail();
    tail.extend_from_slice(&front);
    // Most messages have none of these, and a copy of nothing is still a call.
    for part in [name, options, headers] {
        if !part.is_empty() {
            tail.extend_from_slice(part);
        }
    }
    out.push(payload, || content.payload_bytes());
}

pub(super) fn header(kind: u8, flags: u8, number: u64, length: usize, tail: &mut Vec<u8>) {
    tail.extend_from_slice(&header_bytes(kind, flags, number, length));
}

#[inline]
fn header_bytes(kind: u8, flags: u8, number: u64, length: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    put(&mut header, 0, (length as u32).to_le_bytes());
    header[4] = kind;
    header[5] = flags;
    put(&mut header, 8, number.to_le_bytes());
    header
}

#[inline]
pub(super) fn put<const N: usize>(fixed: &mut [u8], at: usize, value: [u8; N]) {
    fixed[at..at + N].copy_from_slice(&value);
}

pub(super) fn short(part: &[u8]) -> [u8; 2] {
    debug_assert!(part.len() <= usize::from(u16::MAX));
    (part.len() as u16).to_le_bytes()
}
