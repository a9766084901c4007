//! Writes what the server says, in the shapes of the reference.
//!
//! A JSON client is told less than a binary one. `welcome`, `registered`, `legs`, cumulative acknowledgements, `resumed`,
//! `ping` and `goaway` have no shape here: they answer to numbers that a JSON client does not have, or ask for an answer
//! that the reference's clients do not know. A JSON connection's life is told by TCP.

use super::{
    parser::Parser,
    server_id,
    text::{write_number, write_string},
};
use crate::{
    Code, Content, Headers, Outgoing, Status,
    message::{Deliver, ErrorReport, Progress, Reply, Scope, ServerMessage, Tag},
};

/// What a message is written with, beside itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// The broker's boot id, a part of each `serverId`.
    pub boot: u64,
    /// What the wall clock shows, in milliseconds since the Unix epoch: the time of delivery.
    pub wall_ms: u64,
    /// Whether the client wants its objects on lines, many in one send; otherwise each is sent by itself. See
    /// [`Decoder::lines`](super::Decoder::lines).
    pub lines: bool,
}

/// A content of a binary client that no JSON client can be given. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{part} came from a binary client and cannot go to a JSON client: {expected}")]
pub struct NotJson {
    part: &'static str,
    expected: &'static str,
}

/// Appends a message to what waits to be sent; nothing for messages that this dialect does not have.
///
/// Large payloads are shared, not copied.
///
/// # Errors
/// [`NotJson`] when the message is for a JSON client and its content is not JSON: that request is to be failed.
pub fn encode(
    message: &ServerMessage,
    context: &Context,
    parser: &mut Parser,
    out: &mut Outgoing,
) -> Result<(), NotJson> {
    match message {
        ServerMessage::Deliver(deliver) => {
            check(&deliver.content, parser)?;
            write_deliver(deliver, context, out);
        }
        ServerMessage::Reply(reply) => match reply.code {
            None => {
                check(&reply.content, parser)?;
                write_reply(reply, context.lines, out);
            }
            Some(code) => write_failure(reply, code, out.tail()),
        },
        ServerMessage::Progress(progress) => {
            check(&progress.content, parser)?;
            write_progress(progress, context.lines, out);
        }
        ServerMessage::Asked { tag, content, .. } => write_asked(tag, content, out.tail()),
        ServerMessage::Cancel { delivery, tag } => {
            let tail = out.tail();
            tail.extend_from_slice(br#"{"action":"cancel","message":{"serverId":""#);
            server_id::write(context.boot, *delivery, tail);
            tail.push(b'"');
            if !tag.is_empty() {
                tail.extend_from_slice(br#","clientId":"#);
                tail.extend_from_slice(tag);
            }
            tail.extend_from_slice(b"}}");
        }
        // Without a tag there is nothing by which the client would know which request is meant.
        ServerMessage::Accepted { tag, .. } if tag.is_empty() => return Ok(()),
        ServerMessage::Accepted { tag, .. } => {
            let tail = out.tail();
            tail.extend_from_slice(br#"{"action":"acknowledge","message":{"clientId":"#);
            tail.extend_from_slice(tag);
            tail.extend_from_slice(br#","status":"received"}}"#);
        }
        ServerMessage::Receivers(list) => {
            out.tail().extend_from_slice(br#"{"action":"receivers","message":{"data":"#);
            out.push(list, || list.clone());
            out.tail().extend_from_slice(b"}}");
        }
        ServerMessage::Error(report) => write_report(report, context, out.tail()),
        ServerMessage::Pong(_) => out.tail().extend_from_slice(br#"{"action":"pong"}"#),
        ServerMessage::Welcome(_)
        | ServerMessage::Registered { .. }
        | ServerMessage::Legs { .. }
        | ServerMessage::Acknowledge { .. }
        | ServerMessage::Resumed { .. }
        | ServerMessage::Ping(_)
        | ServerMessage::Goaway { .. }
        | ServerMessage::Peer(_) => return Ok(()),
    }
    if context.lines {
        out.tail().push(b'\n');
    } else {
        out.seal();
    }
    Ok(())
}

/// Checks what came from a binary client. What came in JSON has been checked when it was decoded.
fn check(content: &Content, parser: &mut Parser) -> Result<(), NotJson> {
    if content.is_validated_json() {
        return Ok(());
    }
    let (payload, options) = (content.payload(), content.options());
    if !payload.is_empty() && !parser.is_json(payload) {
        return Err(NotJson { part: "the data", expected: "it must be JSON, at most 63 levels deep" });
    }
    if !options.is_empty() && !parser.is_json_object(options) {
        return Err(NotJson { part: "the options", expected: "they must be a JSON object" });
    }
    if Headers::new(content.headers()).any(|pair| pair.is_err()) {
        return Err(NotJson { part: "the headers", expected: "they must be keys and values in UTF-8" });
    }
    Ok(())
}

fn write_deliver(deliver: &Deliver, context: &Context, out: &mut Outgoing) {
    let content = &deliver.content;
    let tail = out.tail();
    tail.extend_from_slice(br#"{"action":"request","message":{"serverId":""#);
    server_id::write(context.boot, deliver.delivery, tail);
    tail.extend_from_slice(br#"","id":"#);
    write_string(content.name(), tail);
    if !content.tag().is_empty() {
        tail.extend_from_slice(br#","clientId":"#);
        tail.extend_from_slice(content.tag());
    }
    tail.push(b',');
    write_content(content, context.lines, out);
    let tail = out.tail();
    tail.extend_from_slice(br#","status":"delivered","info":{"receivedAt":"#);
    write_number(deliver.received_at_ms, tail);
    write_member(r#","deliveredAt":"#, context.wall_ms, tail);
    write_member(r#","attempt":"#, deliver.attempt.into(), tail);
    if deliver.time_left_ms != u32::MAX {
        write_member(r#","timeLeft":"#, deliver.time_left_ms.into(), tail);
    }
    tail.extend_from_slice(b"}}}");
}

fn write_reply(reply: &Reply, lines: bool, out: &mut Outgoing) {
    write_head("response", &reply.tag, out.tail());
    write_content(&reply.content, lines, out);
    let tail = out.tail();
    tail.extend_from_slice(br#","status":"handled","info":{"#);
    write_times(reply, tail);
    tail.extend_from_slice(b"}}}");
}

fn write_failure(reply: &Reply, code: Code, tail: &mut Vec<u8>) {
    let (status, message) = (code.status(), reply.content.payload());
    write_head("error", &reply.tag, tail);
    tail.extend_from_slice(br#""status":""#);
    tail.extend_from_slice(status.text().as_bytes());
    tail.extend_from_slice(br#"","info":{"error":"#);
    match status {
        // The handler's own words, and its own code.
        Status::NotHandled => {
            write_string(message, tail);
            if !reply.content.name().is_empty() {
                tail.extend_from_slice(br#","remoteCode":"#);
                write_string(reply.content.name(), tail);
            }
        }
        // The reference's clients know these two words; people and newer clients read on.
        _ => {
            write_string(status.text().as_bytes(), tail);
            if !message.is_empty() {
                tail.extend_from_slice(br#","message":"#);
                write_string(message, tail);
            }
        }
    }
    tail.extend_from_slice(br#","code":""#);
    tail.extend_from_slice(code.text().as_bytes());
    tail.extend_from_slice(br#"","#);
    write_times(reply, tail);
    tail.extend_from_slice(b"}}}");
}

fn write_progress(progress: &Progress, lines: bool, out: &mut Outgoing) {
    write_head("progress", &progress.tag, out.tail());
    write_content(&progress.content, lines, out);
    out.tail().extend_from_slice(b"}}");
}

fn write_report(report: &ErrorReport, context: &Context, tail: &mut Vec<u8>) {
    tail.extend_from_slice(br#"{"action":"error","message":{"#);
    if report.scope == Scope::Delivery {
        tail.extend_from_slice(br#""serverId":""#);
        server_id::write(context.boot, report.number, tail);
        tail.extend_from_slice(br#"","#);
    }
    tail.extend_from_slice(br#""info":{"error":"#);
    write_string(report.message.as_bytes(), tail);
    tail.extend_from_slice(br#","code":""#);
    tail.extend_from_slice(report.code.text().as_bytes());
    tail.extend_from_slice(br#""}}}"#);
}

/// The beginning of a message to a requester, up to where the next member comes.
fn write_head(action: &str, tag: &[u8], tail: &mut Vec<u8>) {
    tail.extend_from_slice(br#"{"action":""#);
    tail.extend_from_slice(action.as_bytes());
    tail.extend_from_slice(br#"","message":{"#);
    if !tag.is_empty() {
        tail.extend_from_slice(br#""clientId":"#);
        tail.extend_from_slice(tag);
        tail.push(b',');
    }
}

/// `data`, `options`, and the headers of a binary client (those of a JSON client stand in its options).
fn write_content(content: &Content, lines: bool, out: &mut Outgoing) {
    out.tail().extend_from_slice(br#""data":"#);
    match content.payload() {
        [] => out.tail().extend_from_slice(b"null"),
        payload if lines && payload.contains(&b'\n') => write_on_one_line(payload, out.tail()),
        payload => out.push(payload, || content.payload_bytes()),
    }
    let tail = out.tail();
    tail.extend_from_slice(br#","options":"#);
    match content.options() {
        [] => tail.extend_from_slice(b"{}"),
        options if lines => write_on_one_line(options, tail),
        options => tail.extend_from_slice(options),
    }
    if !content.headers().is_empty() && !content.is_validated_json() {
        write_headers(content.headers(), tail);
    }
}

fn write_headers(headers: &[u8], tail: &mut Vec<u8>) {
    tail.extend_from_slice(br#","headers":{"#);
    for (index, (key, value)) in Headers::new(headers).flatten().enumerate() {
        if index > 0 {
            tail.push(b',');
        }
        write_string(key.as_bytes(), tail);
        tail.push(b':');
        write_string(value.as_bytes(), tail);
    }
    tail.push(b'}');
}

fn write_asked(tag: &Tag, content: &Content, tail: &mut Vec<u8>) {
    write_head("asked", tag, tail);
    tail.extend_from_slice(br#""id":"#);
    write_string(content.name(), tail);
    if !content.headers().is_empty() {
        write_headers(content.headers(), tail);
    }
    tail.extend_from_slice(b"}}");
}

/// Valid JSON on one line. A new line in it stands between tokens, where a blank means the same: in a string it would be
/// escaped.
fn write_on_one_line(json: &[u8], tail: &mut Vec<u8>) {
    tail.extend(json.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }));
}

/// What `info` says of a request's way. Times that it never reached are left out.
fn write_times(reply: &Reply, tail: &mut Vec<u8>) {
    tail.extend_from_slice(br#""receivedAt":"#);
    write_number(reply.received_at_ms, tail);
    for (key, after_ms) in
        [(r#","deliveredAt":"#, reply.delivered_after_ms), (r#","handledAt":"#, reply.handled_after_ms)]
    {
        if after_ms != u32::MAX {
            write_member(key, reply.received_at_ms.saturating_add(after_ms.into()), tail);
        }
    }
    if reply.attempt > 0 {
        write_member(r#","attempt":"#, reply.attempt.into(), tail);
    }
    if let Some(leg) = reply.leg {
        write_member(r#","leg":"#, leg.index.into(), tail);
        write_member(r#","expected":"#, leg.expected.into(), tail);
    }
}

/// A key, with what stands around it, and a number.
fn write_member(key: &str, number: u64, tail: &mut Vec<u8>) {
    tail.extend_from_slice(key.as_bytes());
    write_number(number, tail);
}
