//! Takes objects off the front of a client's bytes, and makes messages of them.

use std::borrow::Cow;

use bytes::{Buf, Bytes, BytesMut};

use super::{
    envelope::{self, Envelope, Info, Message, Slot, milliseconds, string, whole},
    options::{self, RequestOptions},
    parser::{Parser, Value},
    scanner::{Layout, Member, Members, Scanner, is_blank},
    server_id,
};
use crate::{
    Code, Content, Span, WireError,
    limits::{
        JSON_OVERHEAD_BYTES, MAX_OPTIONS_BYTES, MAX_OWN_CODE_BYTES, MAX_SESSION_BYTES, MAX_TAG_BYTES,
        MIN_SHARED_BYTES,
    },
    message::{Answer, ClientMessage, Progress, Register, Request, Target, Verdict},
};

/// Decodes what one JSON client sends.
#[derive(Debug)]
pub struct Decoder {
    scanner: Scanner,
    rules: Rules,
    ending: Ending,
}

/// What a message is read by, the same for all of a connection.
#[derive(Debug, Clone, Copy)]
struct Rules {
    boot: u64,
    max_payload: u32,
}

/// How this client ends its objects. The first one tells, by what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    NoObjectYet,
    /// Nothing follows the first object yet.
    Open,
    Newline,
    None,
}

impl Decoder {
    /// A decoder for a new connection. `boot` is the broker's: a `serverId` of another one names no delivery of today.
    /// `max_payload` bounds the `data` of a message, in bytes.
    pub fn new(boot: u64, max_payload: u32) -> Self {
        let max_object = max_payload as usize + JSON_OVERHEAD_BYTES as usize;
        Self {
            scanner: Scanner::new(max_object),
            rules: Rules { boot, max_payload },
            ending: Ending::NoObjectYet,
        }
    }

    /// Takes the next message off the front of `buffer`; `None` if it is not whole yet.
    ///
    /// Between two calls the buffer may only grow, at its end. Content shares the buffer's memory. Names are not
    /// checked here: a bad one is refused by the broker, and only the message that it is in.
    ///
    /// # Errors
    /// [`Code::Malformed`], [`Code::TooLarge`] and [`Code::TooDeep`]. The stream cannot be trusted after any of them:
    /// tell the client and close. Which error it is does not depend on how the bytes were cut.
    pub fn decode(
        &mut self,
        parser: &mut Parser,
        buffer: &mut BytesMut,
    ) -> Result<Option<ClientMessage>, WireError> {
        self.skip_blanks(buffer);
        match buffer.first() {
            None => return Ok(None),
            Some(b'{') => {}
            Some(byte) => {
                let found = byte.escape_ascii();
                return Err(WireError::malformed(format!(
                    "a message must begin with `{{`, not with `{found}`"
                )));
            }
        }
        let Some(length) = self.scanner.scan(buffer)? else { return Ok(None) };
        let object = buffer.split_to(length).freeze();
        if self.ending == Ending::NoObjectYet {
            self.ending = Ending::Open;
        }
        // Now rather than before the next object: the newline tells how to write the answer to this one.
        self.skip_blanks(buffer);
        let (rules, layout) = (self.rules, self.scanner.layout());
        parser
            .read(&object, |value| Reader { rules, object: &object, layout }.message(value))
            .map_err(|_| WireError::malformed(format!("this is not JSON: {}", why_not_json(&object))))?
            .map(Some)
    }

    /// Whether this client ends its objects with `\n`, and wants them to end so: then many may be sent at once. As long
    /// as that is not known it counts as no.
    pub fn lines(&self) -> bool {
        self.ending == Ending::Newline
    }

    fn skip_blanks(&mut self, buffer: &mut BytesMut) {
        let blanks = buffer.iter().take_while(|&&byte| is_blank(byte)).count();
        if self.ending == Ending::Open {
            if buffer[..blanks].contains(&b'\n') {
                self.ending = Ending::Newline;
            } else if blanks < buffer.len() {
                self.ending = Ending::None;
            }
        }
        buffer.advance(blanks);
    }
}

/// One whole object that is being read.
struct Reader<'a> {
    rules: Rules,
    object: &'a Bytes,
    layout: &'a Layout,
}

impl Reader<'_> {
    fn message(&self, value: Value<'_>) -> Result<ClientMessage, WireError> {
        let envelope = Envelope::read(value)?;
        let verb = string(envelope.action, "action")?;
        Ok(match verb {
            None | Some("request") => ClientMessage::Request(self.request(&envelope, None)?),
            Some("init") => ClientMessage::Register(self.register(&envelope)?),
            Some("deinit") => ClientMessage::Deregister(Target::Name(self.own_name(&envelope, "deinit")?)),
            Some("response") => ClientMessage::Answer(self.reply(Message::read(envelope.message)?)?),
            Some("error") => ClientMessage::Answer(self.failure(Message::read(envelope.message)?)?),
            Some("acknowledge") => {
                let message = Message::read(envelope.message)?;
                let tag = self.tag(message.client_id, &self.layout.message)?;
                ClientMessage::Acknowledge(self.named_by(tag, "acknowledge", "message.clientId")?)
            }
            Some("cancel") => {
                let tag = self.tag(envelope.client_id, &self.layout.outer)?;
                ClientMessage::Cancel(self.named_by(tag, "cancel", "clientId")?)
            }
            Some("receivers") => ClientMessage::WatchReceivers(true),
            Some("ping") => ClientMessage::Ping(0),
            // Not a reserved name: only what looks like progress in every other way is not a request to it.
            Some("progress") if envelope.id.is_none() && envelope.message.is_some() => {
                let message = Message::read(envelope.message)?;
                if message.server_id.is_some() {
                    ClientMessage::Progress(self.progress(message)?)
                } else {
                    ClientMessage::Request(self.request(&envelope, verb)?)
                }
            }
            Some(_) => ClientMessage::Request(self.request(&envelope, verb)?),
        })
    }

    /// `receiver` is what stands in `action` if that is no verb: where older clients name the receiver.
    fn request(&self, envelope: &Envelope<'_>, receiver: Option<&str>) -> Result<Request, WireError> {
        let outer = &self.layout.outer;
        let name = match (string(envelope.id, "id")?, receiver) {
            (Some(id), _) => Name { text: id, written: outer.span(Member::Id) },
            (None, Some(receiver)) => Name { text: receiver, written: outer.span(Member::Action) },
            (None, None) => return Err(WireError::malformed("a request must name its receiver in `id`")),
        };
        let options = options::of_slot(envelope.options)?;
        let known = match options {
            Some(options) => RequestOptions::read(options)?,
            None => RequestOptions::default(),
        };
        Ok(Request {
            number: 0,
            flags: known.flags,
            max_attempts: known.max_attempts,
            ttl_ms: known.ttl_ms,
            timeout_ms: known.timeout_ms,
            content: self.content(Parts {
                name: Some(name),
                tag: self.tag(envelope.client_id, outer)?,
                options: self.options(options, outer)?,
                headers: &known.headers,
                payload: self.payload(envelope.data, outer)?,
            }),
        })
    }

    fn register(&self, envelope: &Envelope<'_>) -> Result<Register, WireError> {
        let session = string(envelope.session, "session")?.unwrap_or("");
        if session.len() > MAX_SESSION_BYTES {
            return Err(too_large("session", session.len(), MAX_SESSION_BYTES));
        }
        Ok(Register {
            registration: 0,
            credit: whole(envelope.concurrency, "concurrency", 0, u32::MAX)?.unwrap_or(0),
            action: self.own_name(envelope, "init")?,
            session: Bytes::copy_from_slice(session.as_bytes()),
        })
    }

    /// The name that a handler gives in `id`.
    fn own_name(&self, envelope: &Envelope<'_>, verb: &str) -> Result<Bytes, WireError> {
        match string(envelope.id, "id")? {
            Some(text) => {
                let name = Name { text, written: self.layout.outer.span(Member::Id) };
                Ok(match name.span() {
                    Some(span) => self.share(span),
                    None => Bytes::copy_from_slice(text.as_bytes()),
                })
            }
            None => Err(WireError::malformed(format!("`{verb}` must name the action in `id`"))),
        }
    }

    fn reply(&self, message: Message<'_>) -> Result<Answer, WireError> {
        Ok(Answer {
            delivery: self.delivery(message.server_id)?,
            sequence: 0,
            verdict: Verdict::Reply,
            content: self.handler_content(&message)?,
        })
    }

    fn progress(&self, message: Message<'_>) -> Result<Progress, WireError> {
        let content = self.handler_content(&message)?;
        Ok(Progress { number: self.delivery(message.server_id)?, content, ..Progress::default() })
    }

    fn handler_content(&self, message: &Message<'_>) -> Result<Content, WireError> {
        let inner = &self.layout.message;
        let options = options::of_slot(message.options)?;
        Ok(self.content(Parts {
            name: None,
            tag: Span::default(),
            options: self.options(options, inner)?,
            headers: &[],
            payload: self.payload(message.data, inner)?,
        }))
    }

    fn failure(&self, message: Message<'_>) -> Result<Answer, WireError> {
        let info = Info::read(message.info)?;
        let code = envelope::present(info.code).and_then(Value::string).unwrap_or("");
        let verdict = if envelope::boolean(message.reject, "message.reject")? == Some(true) {
            Verdict::Reject
        } else if let Some(after_ms) = milliseconds(message.retry_after, "message.retryAfter")? {
            Verdict::Retry(after_ms)
        } else if code == Code::Cancelled.text() {
            Verdict::Cancelled
        } else {
            Verdict::Error
        };
        let text: Cow<'_, [u8]> = match envelope::present(info.error) {
            None => b"error without a message".into(),
            Some(value) => match value.string() {
                Some(text) => text.as_bytes().into(),
                None => value.to_json().into(),
            },
        };
        // Both may go to a binary client, whose frames have these bounds.
        for (key, length, most) in [
            ("message.info.code", code.len(), MAX_OWN_CODE_BYTES),
            ("message.info.error", text.len(), self.rules.max_payload as usize),
        ] {
            if length > most {
                return Err(too_large(key, length, most));
            }
        }
        Ok(Answer {
            delivery: self.delivery(message.server_id)?,
            sequence: 0,
            verdict,
            content: Content::from_parts(code.as_bytes(), b"", b"", &text),
        })
    }

    /// The number of the delivery that `serverId` names. One of an earlier boot becomes 0, which nobody holds.
    fn delivery(&self, slot: Slot<'_>) -> Result<u64, WireError> {
        let text = string(slot, "message.serverId")?.unwrap_or("");
        match server_id::read(text) {
            Some((boot, delivery)) if boot == self.rules.boot => Ok(delivery),
            Some(_) => Ok(0),
            // The broker says that nobody holds it: a mistake of one answer, not of the connection.
            None if !text.is_empty() => Ok(0),
            None => {
                Err(WireError::malformed("`message.serverId` must be the one that the request came with"))
            }
        }
    }

    fn tag(&self, slot: Slot<'_>, members: &Members) -> Result<Span, WireError> {
        let Some(value) = envelope::present(slot) else { return Ok(Span::default()) };
        if value.is_container() {
            return Err(WireError::malformed("`clientId` must be a string, a number, true or false"));
        }
        written(members, Member::ClientId, "clientId", MAX_TAG_BYTES)
    }

    fn named_by(&self, tag: Span, verb: &str, key: &str) -> Result<Target, WireError> {
        if tag.is_empty() {
            return Err(WireError::malformed(format!("`{verb}` must name the request in `{key}`")));
        }
        Ok(Target::Name(self.share(tag)))
    }

    fn options(&self, options: Slot<'_>, members: &Members) -> Result<Span, WireError> {
        match options {
            Some(_) => written(members, Member::Options, "options", MAX_OPTIONS_BYTES),
            None => Ok(Span::default()),
        }
    }

    fn payload(&self, data: Slot<'_>, members: &Members) -> Result<Option<Span>, WireError> {
        match data {
            Some(_) => written(members, Member::Data, "data", self.rules.max_payload as usize).map(Some),
            None => Ok(None),
        }
    }

    fn share(&self, span: Span) -> Bytes {
        self.object.slice(span.start as usize..span.end as usize)
    }

    /// Puts the parts over the object's own buffer; or into a new one, where one of them is not in it, or where they would
    /// pin much that nobody reads and no bound counts: members that are not known.
    fn content(&self, parts: Parts<'_>) -> Content {
        let name = parts.name.as_ref().map_or(Some(Span::default()), Name::span);
        let worth_sharing = |name: Span, payload: Span| {
            let used = name.len() + parts.tag.len() + parts.options.len() + payload.len();
            parts.headers.is_empty()
                && (self.object.len() < MIN_SHARED_BYTES || used >= self.object.len() / 2)
        };
        if let (Some(name), Some(payload)) = (name, parts.payload)
            && worth_sharing(name, payload)
        {
            let object = self.object.clone();
            return Content::from_spans(object, name, parts.tag, parts.options, Span::default(), payload)
                .validated();
        }
        let name = parts.name.map_or("", |name| name.text);
        let payload = parts.payload.map_or(&b"null"[..], |span| span.of(self.object));
        let (tag, options) = (parts.tag.of(self.object), parts.options.of(self.object));
        let length = name.len() + tag.len() + options.len() + parts.headers.len() + payload.len();
        let mut buffer = Vec::with_capacity(length);
        let [name, tag, options, headers, payload] = [name.as_bytes(), tag, options, parts.headers, payload]
            .map(|part| {
                let start = buffer.len();
                buffer.extend_from_slice(part);
                Span::new(start, buffer.len())
            });
        Content::from_spans(buffer.into(), name, tag, options, headers, payload).validated()
    }
}

/// What a content is made of, before it is known whether it can share the object's buffer.
struct Parts<'a> {
    name: Option<Name<'a>>,
    tag: Span,
    options: Span,
    headers: &'a [u8],
    payload: Option<Span>,
}

/// A string, as parsed and as written.
struct Name<'a> {
    text: &'a str,
    written: Span,
}

impl Name<'_> {
    /// Where the text itself lies: every escape is longer than what it stands for, so equal lengths mean none.
    fn span(&self) -> Option<Span> {
        let written = self.written;
        (written.len() == self.text.len() + 2)
            .then(|| Span { start: written.start + 1, end: written.end - 1 })
    }
}

/// The span of a value that the parser saw, and that is to be forwarded as it was written.
fn written(members: &Members, member: Member, key: &str, most: usize) -> Result<Span, WireError> {
    let span = members.span(member);
    if span.is_empty() {
        return Err(WireError::malformed(format!("the key `{key}` must be written without escapes")));
    }
    if span.len() > most {
        return Err(too_large(key, span.len(), most));
    }
    Ok(span)
}

fn too_large(key: &str, bytes: usize, most: usize) -> WireError {
    let hint =
        if matches!(key, "data" | "message.info.error") { " by the server's --max-payload" } else { "" };
    WireError::new(Code::TooLarge, format!("`{key}` has {bytes} bytes, {most} are allowed{hint}"))
}

/// What is wrong with an object, and where. The fast parser tells only that something is; a second one is asked for the
/// place, once for a connection, which is closed then.
fn why_not_json(object: &[u8]) -> String {
    if let Err(error) = std::str::from_utf8(object) {
        return format!("byte {} of the object is not UTF-8", error.valid_up_to() + 1);
    }
    match serde_json::from_slice::<serde_json::Value>(object) {
        Err(error) => format!("{error} of the object"),
        Ok(_) => "a number in it is larger than any float, or it has more than can be kept".to_owned(),
    }
}
