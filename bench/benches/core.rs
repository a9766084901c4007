//! The broker's core without wire and sockets: request → delivery → answer → reply, with four handlers.

// criterion_group! defines an undocumented public function.
#![allow(missing_docs)]

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringpost_broker::{Broker, Config, ConnId, Input, Output, Speaks};
use ringpost_protocol::{
    Content,
    message::{Answer, ClientMessage, Hello, Register, Request, ServerMessage},
    time::{Now, Time},
};

const REQUESTER: ConnId = ConnId(0);
const HANDLERS: u32 = 4;
/// Virtual time between two turns: what 500,000 requests per second would leave to one.
const TURN_MICROS: u64 = 2;

/// A broker with a requester and its handlers, and the clients' side of their counting.
struct Stage {
    broker: Broker,
    micros: u64,
    request: Content,
    payload: Content,
    next_number: u64,
    answers: Vec<u64>,
    delivered: Vec<(ConnId, u64)>,
}

impl Stage {
    fn new() -> Self {
        let mut stage = Self {
            broker: Broker::new(Config { boot: 7, ..Config::default() }),
            micros: 0,
            request: Content::from_parts(b"bench", b"", b"", &[b'1'; 128]),
            payload: Content::from_payload(vec![b'1'; 128]),
            next_number: 1,
            answers: vec![0; 1 + HANDLERS as usize],
            delivered: Vec::new(),
        };
        for conn in (0..=HANDLERS).map(ConnId) {
            stage.handle(Input::Opened { conn, speaks: Speaks::Binary });
            stage.say(conn, ClientMessage::Hello(Hello::default()));
        }
        for conn in (1..=HANDLERS).map(ConnId) {
            let action = Bytes::from_static(b"bench");
            let register = Register { registration: 1, credit: 1024, action, session: Bytes::new() };
            stage.say(conn, ClientMessage::Register(register));
        }
        while stage.broker.poll_output().is_some() {}
        stage
    }

    fn handle(&mut self, input: Input) {
        let now = Now { mono: Time::from_micros(self.micros), wall_ms: self.micros / 1000 };
        self.broker.handle(input, now);
    }

    fn say(&mut self, conn: ConnId, message: ClientMessage) {
        self.handle(Input::Message { conn, message });
    }

    /// Sends some requests, lets the handlers answer, and takes the replies.
    fn round(&mut self, requests: usize) {
        self.micros += TURN_MICROS;
        for _ in 0..requests {
            let request =
                Request { number: self.next_number, content: self.request.clone(), ..Request::default() };
            self.next_number += 1;
            self.say(REQUESTER, ClientMessage::Request(request));
        }
        while let Some(output) = self.broker.poll_output() {
            if let Output::Send { conn, message: ServerMessage::Deliver(deliver) } = output {
                self.delivered.push((conn, deliver.delivery));
            }
        }
        assert_eq!(self.delivered.len(), requests);
        self.micros += TURN_MICROS;
        while let Some((conn, delivery)) = self.delivered.pop() {
            let sequence = &mut self.answers[conn.0 as usize];
            *sequence += 1;
            let answer =
                Answer { delivery, sequence: *sequence, content: self.payload.clone(), ..Answer::default() };
            self.say(conn, ClientMessage::Answer(answer));
        }
        let mut replies = 0;
        while let Some(output) = self.broker.poll_output() {
            replies += usize::from(matches!(output, Output::Send { message: ServerMessage::Reply(_), .. }));
        }
        assert_eq!(replies, requests);
    }
}

fn request_reply(c: &mut Criterion) {
    let mut group = c.benchmark_group("core/request-reply");
    for in_flight in [1, 64] {
        let mut stage = Stage::new();
        group.throughput(Throughput::Elements(in_flight as u64));
        group.bench_function(BenchmarkId::from_parameter(in_flight), |b| b.iter(|| stage.round(in_flight)));
    }
    group.finish();
}

criterion_group!(benches, request_reply);
criterion_main!(benches);
