//! The broker's core without wire and sockets: request → delivery → answer → reply, with four handlers.

use bytes::Bytes;
use ringpost_broker::{Broker, Config, ConnId, Identity, Input, Output, Speaks};
use ringpost_protocol::{
    Content,
    message::{
        Answer, ClientMessage, Hello, Register, Request, RequestFlags, ServerMessage, Speaker, Target,
    },
    time::{Now, Time},
};

use super::Work;

const REQUESTER: ConnId = ConnId(0);
const HANDLERS: u32 = 4;
/// Virtual time between two turns: what 500,000 requests per second would leave to one.
const TURN_MICROS: u64 = 2;

/// A broker with a requester and its handlers, and the clients' side of their counting.
#[derive(Debug)]
pub struct Stage {
    broker: Broker,
    micros: u64,
    request: Content,
    payload: Content,
    next_number: u64,
    answers: Vec<u64>,
    delivered: Vec<(ConnId, u64)>,
    named: bool,
}

impl Stage {
    /// A requester under this session's name, or without one, and four handlers of one action.
    pub fn new(session: &'static str) -> Self {
        let mut stage = Self {
            broker: Broker::new(Config { boot: 7, ..Config::default() }),
            micros: 0,
            request: Content::from_parts(b"bench", b"", b"", &[b'1'; 128]),
            payload: Content::from_payload(vec![b'1'; 128]),
            next_number: 1,
            answers: vec![0; 1 + HANDLERS as usize],
            delivered: Vec::new(),
            named: !session.is_empty(),
        };
        for conn in (0..=HANDLERS).map(ConnId) {
            let session = if conn == REQUESTER { Bytes::from(session) } else { Bytes::new() };
            stage.handle(Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() });
            let speaker = Speaker { instance: 1, connection: 1 };
            stage.say(conn, ClientMessage::Hello(Hello { session, speaker, ..Hello::default() }));
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
    pub fn round(&mut self, requests: usize) {
        let deliveries = self.ask(requests, RequestFlags::default());
        assert_eq!(deliveries, requests);
        let (replies, last) = self.answer();
        assert_eq!(replies, requests);
        if self.named {
            self.say(REQUESTER, ClientMessage::Acknowledge(Target::Number(last)));
        }
    }

    /// Sends some sends, which the handlers answer.
    pub fn sends(&mut self, sends: usize) {
        let deliveries = self.ask(sends, RequestFlags::SEND);
        assert_eq!((deliveries, self.answer().0), (sends, 0));
    }

    /// Sends a broadcast, lets the handlers answer, and takes the replies.
    pub fn broadcast(&mut self) {
        let deliveries = self.ask(1, RequestFlags::BROADCAST);
        assert_eq!((deliveries, self.answer().0), (HANDLERS as usize, HANDLERS as usize));
    }

    /// How many deliveries these requests lead to.
    fn ask(&mut self, requests: usize, flags: RequestFlags) -> usize {
        self.micros += TURN_MICROS;
        for _ in 0..requests {
            let number = self.next_number;
            let request = Request { number, flags, content: self.request.clone(), ..Request::default() };
            self.next_number += 1;
            self.say(REQUESTER, ClientMessage::Request(request));
        }
        while let Some(output) = self.broker.poll_output() {
            if let Output::Send { conn, message: ServerMessage::Deliver(deliver) } = output {
                self.delivered.push((conn, deliver.delivery));
            }
        }
        self.delivered.len()
    }

    /// How many replies the answers to all deliveries lead to, and the sequence of the last.
    fn answer(&mut self) -> (usize, u64) {
        self.micros += TURN_MICROS;
        while let Some((conn, delivery)) = self.delivered.pop() {
            let sequence = &mut self.answers[conn.0 as usize];
            *sequence += 1;
            let answer =
                Answer { delivery, sequence: *sequence, content: self.payload.clone(), ..Answer::default() };
            self.say(conn, ClientMessage::Answer(answer));
        }
        let (mut replies, mut last) = (0, 0);
        while let Some(output) = self.broker.poll_output() {
            if let Output::Send { message: ServerMessage::Reply(reply), .. } = output {
                replies += 1;
                last = reply.sequence;
            }
        }
        (replies, last)
    }
}

pub(super) fn all() -> Vec<Work> {
    let (mut one, mut many, mut named) = (Stage::new(""), Stage::new(""), Stage::new("bench"));
    let (mut sends, mut broadcast) = (Stage::new(""), Stage::new(""));
    vec![
        Work::new("core/request-reply/1", 1, move || one.round(1)),
        Work::new("core/request-reply/64", 64, move || many.round(64)),
        Work::new("core/request-reply-named/64", 64, move || named.round(64)),
        Work::new("core/send/64", 64, move || sends.sends(64)),
        Work::new("core/broadcast-4", 1, move || broadcast.broadcast()),
    ]
}
