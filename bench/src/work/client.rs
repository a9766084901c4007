//! The client's core without wire and sockets: request → reply, and delivery → answer, with a session to come back to.

use ringpost_client::{Client, ClientConfig, Output, RequestSpec};
use ringpost_protocol::{
    Content,
    message::{ClientMessage, Deliver, Reply, ServerMessage, Verdict, Welcome},
    time::Time,
};

use super::Work;

/// A client that was welcomed and handles an action, and the server's side of its counting.
#[derive(Debug)]
pub struct Stage {
    client: Client,
    micros: u64,
    sequence: u64,
    request: Content,
    payload: Content,
    numbers: Vec<u64>,
}

impl Default for Stage {
    fn default() -> Self {
        let mut client =
            Client::new(ClientConfig { session: "bench".into(), instance: 1, ..ClientConfig::default() });
        let now = Time::from_micros(1);
        let registered = client.register("bench", 1024);
        assert!(registered.is_ok());
        client.start(now);
        client.connected(now);
        let welcome = Welcome { boot: 1, epoch: 1, next_number: 1, ..Welcome::default() };
        client.received(ServerMessage::Welcome(welcome), now);
        while client.poll_output().is_some() {}
        Self {
            client,
            micros: 1,
            sequence: 0,
            request: Content::from_parts(b"bench", b"", b"", &[b'1'; 128]),
            payload: Content::from_payload(vec![b'1'; 128]),
            numbers: Vec::new(),
        }
    }
}

impl Stage {
    fn next_turn(&mut self) -> Time {
        self.micros += 2;
        Time::from_micros(self.micros)
    }

    /// Makes some requests, which are replied to.
    pub fn requests(&mut self, in_flight: u64) {
        let now = self.next_turn();
        for token in 0..in_flight {
            let spec = RequestSpec { content: self.request.clone(), ..RequestSpec::default() };
            assert!(self.client.request(spec, token, now).is_ok());
        }
        while let Some(output) = self.client.poll_output() {
            if let Output::Send(ClientMessage::Request(request)) = output {
                self.numbers.push(request.number);
            }
        }
        for number in self.numbers.drain(..) {
            self.sequence += 1;
            let content = self.payload.clone();
            let reply = Reply { number, sequence: self.sequence, content, ..Reply::default() };
            self.client.received(ServerMessage::Reply(reply), now);
        }
        let mut completed = 0;
        while let Some(output) = self.client.poll_output() {
            completed += u64::from(matches!(output, Output::Complete(_)));
        }
        assert_eq!(completed, in_flight);
    }

    /// Gets a delivery, and answers it.
    pub fn delivery(&mut self) {
        let now = self.next_turn();
        self.sequence += 1;
        let message = Deliver {
            delivery: self.sequence,
            registration: 1,
            attempt: 1,
            content: self.payload.clone(),
            ..Deliver::default()
        };
        self.client.received(ServerMessage::Deliver(message), now);
        let mut answered = false;
        while let Some(output) = self.client.poll_output() {
            if let Output::Deliver(delivered) = output {
                answered = self.client.answer(delivered.key, Verdict::Reply, self.payload.clone(), now);
            }
        }
        assert!(answered);
    }
}

pub(super) fn all() -> Vec<Work> {
    let (mut one, mut many, mut handler) = (Stage::default(), Stage::default(), Stage::default());
    vec![
        Work::new("client/request-reply/1", 1, move || one.requests(1)),
        Work::new("client/request-reply/64", 64, move || many.requests(64)),
        Work::new("client/delivery-answer", 1, move || handler.delivery()),
    ]
}
