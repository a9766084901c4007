//! The client in virtual time, against a server that is played by the test.

mod any_order;
mod connection;
mod draining;
mod handling;
mod promises;
mod reattaching;
mod requesting;
mod sessions;
mod unclaimed;

use std::time::Duration;

use ringpost_protocol::{
    Code, Content,
    message::{
        ClientMessage, Deliver, ErrorReport, Leg, Reply, Request, RequestFlags, Scope, ServerMessage, Welcome,
    },
    time::Time,
};

use crate::{Client, ClientConfig, Completion, Error, Event, Output, RequestKey, RequestSpec};

/// A client and its clock; invariants are checked after each step.
struct Rig {
    client: Client,
    now: Time,
}

impl Rig {
    fn new(config: ClientConfig) -> Self {
        let mut rig = Self { client: Client::new(config), now: Time::from_micros(1_000_000) };
        rig.client.start(rig.now);
        assert_eq!(rig.outputs(), [Output::Connect]);
        rig
    }

    /// Connected and welcomed, with the first outputs taken away.
    fn ready(config: ClientConfig) -> Self {
        let mut rig = Self::new(config);
        rig.connect();
        rig
    }

    /// From dialing to ready; gives what came out behind the hello and the event.
    fn connect(&mut self) -> Vec<Output> {
        self.client.connected(self.now);
        assert!(matches!(self.outputs()[..], [Output::Send(ClientMessage::Hello(_))]));
        self.client.received(welcome(), self.now);
        let mut outputs = self.outputs();
        assert!(matches!(outputs.remove(0), Output::Event(Event::Connected { .. })));
        outputs
    }

    fn outputs(&mut self) -> Vec<Output> {
        self.client.check_invariants();
        std::iter::from_fn(|| self.client.poll_output()).collect()
    }

    fn receive(&mut self, message: ServerMessage) -> Vec<Output> {
        self.client.received(message, self.now);
        self.outputs()
    }

    fn lose(&mut self, reason: &'static str) -> Vec<Output> {
        self.client.disconnected(reason, self.now);
        self.outputs()
    }

    fn request(&mut self, spec: RequestSpec, token: u64) -> RequestKey {
        self.client.request(spec, token, self.now).unwrap()
    }

    /// A request on the wire: its number.
    fn sent(&mut self, flags: RequestFlags, token: u64) -> u64 {
        self.request(spec(flags), token);
        let outputs = self.outputs();
        let [Output::Send(ClientMessage::Request(request))] = &outputs[..] else { panic!("{outputs:?}") };
        request.number
    }

    /// Lets time pass, as a driver would: waking at each deadline.
    fn pass(&mut self, duration: Duration) -> Vec<Output> {
        let end = self.now + duration;
        let mut outputs = Vec::new();
        while let Some(deadline) = self.client.next_deadline().filter(|deadline| *deadline <= end) {
            // A driver's clock moves while it works: else a deadline that was not quite due would stop the test.
            self.now = deadline.max(self.now + Duration::from_micros(1)).min(end);
            self.client.handle_timeout(self.now);
            outputs.extend(self.outputs());
            if self.now == end {
                break;
            }
        }
        self.now = end;
        self.client.handle_timeout(end);
        outputs.extend(self.outputs());
        outputs
    }
}

/// A client whose session ends with its connection.
fn config() -> ClientConfig {
    ClientConfig::default()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn welcome() -> ServerMessage {
    ServerMessage::Welcome(Welcome {
        server_id: "s1".into(),
        boot: 5,
        epoch: 1,
        tenure: 1,
        next_number: 1,
        max_payload: 1000,
        ping_interval_ms: 5000,
        ..Welcome::default()
    })
}

fn spec(flags: RequestFlags) -> RequestSpec {
    RequestSpec { flags, content: Content::from_parts(b"adder", b"", b"", b"2"), ..RequestSpec::default() }
}

fn plain() -> RequestSpec {
    spec(RequestFlags::default())
}

fn reply(number: u64) -> ServerMessage {
    ServerMessage::Reply(Reply { number, content: Content::from_payload("3"), ..Reply::default() })
}

fn failure(number: u64, code: Code) -> ServerMessage {
    ServerMessage::Reply(Reply { number, code: Some(code), ..Reply::default() })
}

fn leg(number: u64, index: u32, expected: u32) -> ServerMessage {
    ServerMessage::Reply(Reply { number, leg: Some(Leg { index, expected }), ..Reply::default() })
}

fn deliver(delivery: u64, registration: u32) -> ServerMessage {
    let content = Content::from_parts(b"adder", b"", b"", b"2");
    ServerMessage::Deliver(Deliver {
        delivery,
        registration,
        attempt: 1,
        time_left_ms: 1000,
        content,
        ..Deliver::default()
    })
}

fn report(scope: Scope, number: u64, code: Code) -> ServerMessage {
    ServerMessage::Error(ErrorReport { scope, number, code, message: "because".into() })
}

/// The completions among some outputs: token, code of the error, whether it was the last.
fn ends(outputs: &[Output]) -> Vec<(u64, Option<Code>, bool)> {
    outputs
        .iter()
        .filter_map(completion)
        .map(|end| (end.token, end.result.as_ref().err().map(Error::kind), end.last))
        .collect()
}

fn completion(output: &Output) -> Option<&Completion> {
    if let Output::Complete(completion) = output { Some(completion) } else { None }
}

/// The requests among some outputs.
fn requests(outputs: &[Output]) -> Vec<&Request> {
    outputs
        .iter()
        .filter_map(|output| match output {
            Output::Send(ClientMessage::Request(request)) => Some(request),
            _ => None,
        })
        .collect()
}

/// How many of these outputs are this one.
fn count(outputs: &[Output], wanted: &Output) -> usize {
    outputs.iter().filter(|output| *output == wanted).count()
}
