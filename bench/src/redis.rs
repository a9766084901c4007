//! Redis with its append-only file for the load generator: what is pushed to a list is in the file when it is acknowledged, and
//! synced before, if `appendfsync` says so.
//!
//! Publishing only: nobody takes it out of the list, and there is no reply. The load's handlers have nothing to do. Commands are
//! pipelined, and answered in their order. See <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use std::collections::VecDeque;

use anyhow::{bail, ensure};
use memchr::memchr;
use ringpost_cli::load::{
    Options,
    wire::{self, Event, Role, Wire},
};

/// One connection that pushes to a list, or has nothing to do.
#[derive(Debug)]
pub struct Redis {
    role: Role,
    /// A whole `RPUSH` of one element.
    push: Vec<u8>,
    /// Numbers of the requests that are not answered, oldest first.
    open: VecDeque<u64>,
    greeted: bool,
}

impl Wire for Redis {
    const NAME: &'static str = "redis";

    fn new(role: Role, _index: u32, options: &Options) -> anyhow::Result<Self> {
        let mut push = Vec::new();
        command(&[b"RPUSH", options.action.as_bytes(), &wire::payload(options.size)], &mut push);
        Ok(Self { role, push, open: VecDeque::new(), greeted: false })
    }

    fn open(&mut self, out: &mut Vec<u8>) {
        command(&[b"PING"], out);
    }

    #[inline]
    fn request(&mut self, number: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.push);
        self.open.push_back(number);
    }

    #[inline]
    fn next(&mut self, input: &[u8], _out: &mut Vec<u8>) -> anyhow::Result<Option<(usize, Event)>> {
        let Some(newline) = memchr(b'\n', input) else { return Ok(None) };
        let line = input[..newline].trim_ascii_end();
        let shown = || String::from_utf8_lossy(line);
        let event = if !std::mem::replace(&mut self.greeted, true) {
            ensure!(line == b"+PONG", "the server does not say that it is there, but {}", shown());
            Event::Ready
        } else {
            ensure!(self.role == Role::Requester, "nobody has asked for {}", shown());
            match (line.first(), self.open.pop_front()) {
                // The list's new length.
                (Some(b':'), Some(number)) => Event::Replied(number),
                (Some(b'-'), Some(number)) => Event::Failed(Some(number), shown().into()),
                _ => bail!("that is no answer to a push: {}", shown()),
            }
        };
        Ok(Some((newline + 1, event)))
    }
}

/// Appends a command as an array of strings.
fn command(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(role: Role) -> Redis {
        let options = Options { size: 5, ..Options::new("127.0.0.1:6379".parse().unwrap()) };
        Redis::new(role, 0, &options).unwrap()
    }

    /// All events of some input, which has no half lines.
    fn events(connection: &mut Redis, mut input: &[u8]) -> anyhow::Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some((bytes, event)) = connection.next(input, &mut Vec::new())? {
            input = &input[bytes..];
            events.push(event);
        }
        assert!(input.is_empty());
        Ok(events)
    }

    /// Pushes are answered in their order; an error is the failure of the one that it answers.
    #[test]
    fn answers_in_order() {
        let (mut requester, mut out) = (connection(Role::Requester), Vec::new());
        requester.open(&mut out);
        assert_eq!(out, b"*1\r\n$4\r\nPING\r\n");
        assert_eq!(events(&mut requester, b"+PONG\r\n").unwrap(), [Event::Ready]);
        out.clear();
        requester.request(7, &mut out);
        assert_eq!(out, b"*3\r\n$5\r\nRPUSH\r\n$5\r\nbench\r\n$5\r\n11111\r\n");
        requester.request(9, &mut out);
        let answers = events(&mut requester, b":1\r\n-OOM no\r\n").unwrap();
        assert_eq!(answers, [Event::Replied(7), Event::Failed(Some(9), "-OOM no".into())]);
    }

    /// What is no answer to anything is an error, and so is a server that does not greet.
    #[test]
    fn broken_servers() {
        assert!(events(&mut connection(Role::Requester), b"-NOAUTH no\r\n").is_err());
        let mut requester = connection(Role::Requester);
        assert!(events(&mut requester, b"+PONG\r\n:1\r\n").is_err());
        let mut handler = connection(Role::Handler);
        assert!(events(&mut handler, b"+PONG\r\n:1\r\n").is_err());
    }
}
