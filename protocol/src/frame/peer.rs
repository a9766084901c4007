//! Bytes of what servers say to each other: the same in both directions.

use bytes::Bytes;

use super::{
    HEADER_BYTES,
    decode::{Head, Lengths, content, fixed, u16_at, u32_at, u64_at, verdict},
    encode::{frame, header, put, short, verdict_parts, with_content},
    kind, layout,
};
use crate::{
    Code, Content, Outgoing, WireError,
    message::{Ended, Forward, PeerMessage, RequestFlags, RequestId, Run, Runs},
};

pub(super) fn encode(message: &PeerMessage, out: &mut Outgoing) {
    match message {
        PeerMessage::Forward(forward) => encode_forward(forward, out),
        PeerMessage::Ended(ended) => encode_ended(ended, out),
        PeerMessage::Working { run, content } => {
            let (fixed, payload) = (run_bytes(*run), content.payload());
            let tail = out.tail();
            header(kind::WORKING, 0, run.request.count, fixed.len() + payload.len(), tail);
            tail.extend_from_slice(&fixed);
            out.push(payload, || content.payload_bytes());
        }
        PeerMessage::Withdraw(run) => encode_run(kind::WITHDRAW, *run, out),
        PeerMessage::Taken(run) => encode_run(kind::TAKEN, *run, out),
        PeerMessage::Abroad(runs) => encode_runs(kind::ABROAD, runs, out),
        PeerMessage::Unknown(runs) => encode_runs(kind::UNKNOWN, runs, out),
    }
}

fn encode_forward(forward: &Forward, out: &mut Outgoing) {
    use layout::forward as at;
    let content = &forward.content;
    let mut fixed = [0; at::SIZE];
    put(&mut fixed, at::REQUEST_BOOT, forward.run.request.boot.to_le_bytes());
    put(&mut fixed, at::ATTEMPT, forward.run.attempt.to_le_bytes());
    put(&mut fixed, at::OPTIONS_LENGTH, short(content.options()));
    put(&mut fixed, at::HEADERS_LENGTH, short(content.headers()));
    fixed[at::ACTION_LENGTH] = content.name().len() as u8;
    put(&mut fixed, at::TIE, forward.run.tie.to_le_bytes());
    put(&mut fixed, at::RECEIVED_AT, forward.received_at_ms.to_le_bytes());
    put(&mut fixed, at::TIME_LEFT, forward.time_left_ms.to_le_bytes());
    let (flags, count) = (forward.flags.0, forward.run.request.count);
    with_content::<_, { HEADER_BYTES + at::SIZE }>(
        kind::FORWARD,
        flags,
        count,
        &fixed,
        content.name(),
        content,
        out,
    );
}

fn encode_ended(ended: &Ended, out: &mut Outgoing) {
    use layout::ended as at;
    let content = &ended.content;
    let (flags, code, retry_after_ms) = verdict_parts(ended.verdict);
    // A reply's content may still have the action as its name: only errors carry one here.
    let name = if code == 0 { &[] } else { content.name() };
    let mut fixed = [0; at::SIZE];
    put(&mut fixed, at::REQUEST_BOOT, ended.run.request.boot.to_le_bytes());
    put(&mut fixed, at::ATTEMPT, ended.run.attempt.to_le_bytes());
    put(&mut fixed, at::CODE, code.to_le_bytes());
    put(&mut fixed, at::RETRY_AFTER, retry_after_ms.to_le_bytes());
    put(&mut fixed, at::OPTIONS_LENGTH, short(content.options()));
    put(&mut fixed, at::HEADERS_LENGTH, short(content.headers()));
    fixed[at::NAME_LENGTH] = name.len() as u8;
    put(&mut fixed, at::TIE, ended.run.tie.to_le_bytes());
    let count = ended.run.request.count;
    with_content::<_, { HEADER_BYTES + at::SIZE }>(kind::ENDED, flags, count, &fixed, name, content, out);
}

fn run_bytes(run: Run) -> [u8; layout::run::SIZE] {
    let mut fixed = [0; layout::run::SIZE];
    put(&mut fixed, layout::run::REQUEST_BOOT, run.request.boot.to_le_bytes());
    put(&mut fixed, layout::run::ATTEMPT, run.attempt.to_le_bytes());
    put(&mut fixed, layout::run::TIE, run.tie.to_le_bytes());
    fixed
}

fn encode_run(kind: u8, run: Run, out: &mut Outgoing) {
    frame(kind, 0, run.request.count, &run_bytes(run), &[], out);
}

fn encode_runs(kind: u8, runs: &Runs, out: &mut Outgoing) {
    let flags = if runs.more { layout::RUNS_MORE } else { 0 };
    let tail = out.tail();
    header(kind, flags, runs.tie, runs.runs.len() * layout::run::LISTED_SIZE, tail);
    for run in &runs.runs {
        tail.extend_from_slice(&run_bytes(*run));
        tail.extend_from_slice(&run.request.count.to_le_bytes());
    }
}

/// Reads a frame of one of these kinds.
pub(super) fn decode(head: Head, frame: Bytes) -> Result<PeerMessage, WireError> {
    Ok(match head.kind {
        kind::FORWARD => PeerMessage::Forward(decode_forward(head, frame)?),
        kind::ENDED => PeerMessage::Ended(decode_ended(head, frame)?),
        kind::WORKING => {
            let run = decode_run(head, &frame, "working")?;
            let content = Content::from_payload(frame.slice(HEADER_BYTES + layout::run::SIZE..));
            PeerMessage::Working { run, content }
        }
        kind::WITHDRAW => PeerMessage::Withdraw(decode_run(head, &frame, "withdraw")?),
        kind::TAKEN => PeerMessage::Taken(decode_run(head, &frame, "taken")?),
        kind::ABROAD => PeerMessage::Abroad(decode_runs(head, &frame, "abroad")?),
        _ => PeerMessage::Unknown(decode_runs(head, &frame, "unknown")?),
    })
}

fn decode_forward(head: Head, frame: Bytes) -> Result<Forward, WireError> {
    use layout::forward as at;
    let flags = RequestFlags(head.flags);
    if !RequestFlags::KNOWN.with(RequestFlags::MADE_DURABLE).has(flags) {
        let message =
            format!("forward {}: flags {:#04x} are not all known in version 1", head.number, head.flags);
        return Err(WireError::new(Code::Unsupported, message));
    }
    let fixed: &[u8; at::SIZE] = fixed(&frame, "forward")?;
    let request = RequestId { boot: u64_at(fixed, at::REQUEST_BOOT), count: head.number };
    let attempt = attempt(u16_at(fixed, at::ATTEMPT), "forward")?;
    let lengths = Lengths {
        name: usize::from(fixed[at::ACTION_LENGTH]),
        options: u16_at(fixed, at::OPTIONS_LENGTH),
        headers: u16_at(fixed, at::HEADERS_LENGTH),
    };
    let (tie, received_at_ms, time_left_ms) =
        (u64_at(fixed, at::TIE), u64_at(fixed, at::RECEIVED_AT), u32_at(fixed, at::TIME_LEFT));
    let content = content(frame, at::SIZE, lengths, "forward")?;
    Ok(Forward { run: Run { request, attempt, tie }, flags, time_left_ms, received_at_ms, content })
}

fn decode_ended(head: Head, frame: Bytes) -> Result<Ended, WireError> {
    use layout::ended as at;
    let fixed: &[u8; at::SIZE] = fixed(&frame, "ended")?;
    let code = u16_at(fixed, at::CODE) as u16;
    let verdict = verdict(head, code, u32_at(fixed, at::RETRY_AFTER), "ended")?;
    let request = RequestId { boot: u64_at(fixed, at::REQUEST_BOOT), count: head.number };
    let attempt = attempt(u16_at(fixed, at::ATTEMPT), "ended")?;
    let lengths = Lengths {
        name: usize::from(fixed[at::NAME_LENGTH]),
        options: u16_at(fixed, at::OPTIONS_LENGTH),
        headers: u16_at(fixed, at::HEADERS_LENGTH),
    };
    let tie = u64_at(fixed, at::TIE);
    let content = content(frame, at::SIZE, lengths, "ended")?;
    Ok(Ended { run: Run { request, attempt, tie }, verdict, content })
}

fn decode_run(head: Head, frame: &Bytes, what: &'static str) -> Result<Run, WireError> {
    let fixed: &[u8; layout::run::SIZE] = fixed(frame, what)?;
    let request = RequestId { boot: u64_at(fixed, layout::run::REQUEST_BOOT), count: head.number };
    let attempt = attempt(u16_at(fixed, layout::run::ATTEMPT), what)?;
    Ok(Run { request, attempt, tie: u64_at(fixed, layout::run::TIE) })
}

fn decode_runs(head: Head, frame: &Bytes, what: &'static str) -> Result<Runs, WireError> {
    use layout::run as at;
    let listed = &frame[HEADER_BYTES..];
    if !listed.len().is_multiple_of(at::LISTED_SIZE) || listed.len() / at::LISTED_SIZE > Runs::MOST {
        return Err(WireError::malformed(format!(
            "{what}: {} bytes are not a list of up to {} attempts of {} bytes each",
            listed.len(),
            Runs::MOST,
            at::LISTED_SIZE
        )));
    }
    let run = |entry: &[u8]| {
        let request =
            RequestId { boot: u64_at(entry, at::REQUEST_BOOT), count: u64_at(entry, at::LISTED_COUNT) };
        let attempt = attempt(u16_at(entry, at::ATTEMPT), what)?;
        Ok(Run { request, attempt, tie: u64_at(entry, at::TIE) })
    };
    let runs = listed.chunks_exact(at::LISTED_SIZE).map(run).collect::<Result<_, WireError>>()?;
    Ok(Runs { tie: head.number, more: head.flags & layout::RUNS_MORE != 0, runs })
}

fn attempt(number: usize, what: &'static str) -> Result<u16, WireError> {
    match number {
        0 => Err(WireError::malformed(format!("{what}: attempts are counted from 1"))),
        number => Ok(number as u16),
    }
}
