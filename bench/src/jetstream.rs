//! NATS JetStream for the load generator: what is published is stored in a stream, and acknowledged when it is.
//!
//! Publishing only: nobody consumes, and there is no reply, since a durable reply is not to be had there (JetStream takes
//! the reply subject for its acknowledgement). The load's handlers have nothing to do; the first of them makes the stream,
//! in files, which is why they come before the requesters. See
//! <https://docs.nats.io/reference/reference-protocols/nats_api_reference>.

use anyhow::ensure;
use ringpost_cli::load::{
    Options,
    wire::{Event, Role, Wire},
};

use crate::nats::{self, Incoming, Nats};

/// The stream.
const STREAM: &str = "BENCH";
/// Where the answer comes that tells whether it was made.
const STREAM_REPLY: &str = "_INBOX.stream.1";

/// One connection that publishes to a stream, or the one that makes it.
#[derive(Debug)]
pub struct JetStream {
    nats: Nats,
    role: Role,
    /// What makes the stream, if this connection does.
    creation: Option<String>,
}

impl Wire for JetStream {
    const NAME: &'static str = "nats jetstream";

    fn new(role: Role, index: u32, options: &Options) -> anyhow::Result<Self> {
        let inbox = match role {
            Role::Requester => format!("_INBOX.{index}.*"),
            Role::Handler => STREAM_REPLY.to_owned(),
        };
        let nats = Nats::subscribed(&inbox, role, index, options)?;
        let creation = (role == Role::Handler && index == 0).then(|| creation(&options.action));
        Ok(Self { nats, role, creation })
    }

    fn open(&mut self, out: &mut Vec<u8>) {
        self.nats.open(out);
        out.extend_from_slice(self.creation.as_deref().unwrap_or_default().as_bytes());
    }

    #[inline]
    fn request(&mut self, number: u64, out: &mut Vec<u8>) {
        self.nats.request(number, out);
    }

    #[inline]
    fn next(&mut self, input: &[u8], out: &mut Vec<u8>) -> anyhow::Result<Option<(usize, Event)>> {
        let Some((bytes, incoming)) = nats::read(input, out)? else { return Ok(None) };
        let event = match (incoming, self.role) {
            // Not before there is a stream.
            (Incoming::Control(Event::Ready), _) if self.creation.is_some() => Event::Other,
            (Incoming::Control(event), _) => event,
            (Incoming::Message { message, payload }, Role::Requester) => stored(message.number()?, payload),
            (Incoming::Message { payload, .. }, Role::Handler) => {
                let answer = String::from_utf8_lossy(payload);
                ensure!(!is_error(payload), "the stream could not be made: {answer}");
                // All handlers hear it, and the one that asked waits for it.
                if self.creation.is_some() { Event::Ready } else { Event::Other }
            }
        };
        Ok(Some((bytes, event)))
    }
}

/// The request that makes a stream with the action as its one subject.
fn creation(action: &str) -> String {
    let stream = serde_json::json!({"name": STREAM, "subjects": [action], "storage": "file"}).to_string();
    format!("PUB $JS.API.STREAM.CREATE.{STREAM} {STREAM_REPLY} {}\r\n{stream}\r\n", stream.len())
}

/// What an acknowledgement (`{"stream":"BENCH","seq":1}`) says of a request.
#[inline]
fn stored(number: u64, payload: &[u8]) -> Event {
    if payload.starts_with(b"{\"stream\":") && !is_error(payload) {
        return Event::Replied(number);
    }
    Event::Failed(Some(number), String::from_utf8_lossy(payload).into())
}

fn is_error(payload: &[u8]) -> bool {
    memchr::memmem::find(payload, b"\"error\":").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(role: Role, index: u32) -> JetStream {
        let options = Options { size: 5, ..Options::new("127.0.0.1:4222".parse().unwrap()) };
        JetStream::new(role, index, &options).unwrap()
    }

    /// All events of some input, which has no half messages.
    fn events(connection: &mut JetStream, mut input: &[u8]) -> anyhow::Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some((bytes, event)) = connection.next(input, &mut Vec::new())? {
            input = &input[bytes..];
            events.push(event);
        }
        assert!(input.is_empty());
        Ok(events)
    }

    /// The first handler makes the stream and is not ready before there is one; where it cannot be made, the run ends.
    #[test]
    fn makes_the_stream() {
        let mut first = connection(Role::Handler, 0);
        let mut out = Vec::new();
        first.open(&mut out);
        let said = String::from_utf8(out).unwrap();
        assert!(said.contains("SUB _INBOX.stream.1 1\r\n"), "{said}");
        assert!(said.contains("PUB $JS.API.STREAM.CREATE.BENCH _INBOX.stream.1 "), "{said}");
        assert_eq!(events(&mut first, b"INFO {}\r\nPONG\r\n").unwrap(), [Event::Other, Event::Other]);
        assert_eq!(
            events(&mut first, b"MSG _INBOX.stream.1 1 9\r\n{\"did\":1}\r\n").unwrap(),
            [Event::Ready]
        );
        let refused = b"MSG _INBOX.stream.1 1 12\r\n{\"error\":{}}\r\n";
        assert!(events(&mut first, refused).unwrap_err().to_string().contains("{\"error\":{}}"));
        let mut second = connection(Role::Handler, 1);
        second.open(&mut Vec::new());
        assert_eq!(events(&mut second, b"PONG\r\n").unwrap(), [Event::Ready]);
    }

    /// What is published counts when it is stored, and only then.
    #[test]
    fn counts_what_is_stored() {
        let mut requester = connection(Role::Requester, 3);
        let mut out = Vec::new();
        requester.request(7, &mut out);
        assert_eq!(out, b"PUB bench _INBOX.3.000000000007 5\r\n11111\r\n");
        let answer = |payload: &str| {
            format!("MSG _INBOX.3.000000000007 1 {}\r\n{payload}\r\n", payload.len()).into_bytes()
        };
        let stored = answer(r#"{"stream":"BENCH", "seq":1}"#);
        assert_eq!(events(&mut requester, &stored).unwrap(), [Event::Replied(7)]);
        for refused in
            [r#"{"error":{"code":503},"stream":"BENCH","seq":0}"#, r#"{"stream":"BENCH","error":{}}"#, ""]
        {
            let events = events(&mut requester, &answer(refused)).unwrap();
            assert!(matches!(&events[..], [Event::Failed(Some(7), _)]), "{refused}: {events:?}");
        }
    }
}
