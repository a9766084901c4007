//! A client of the binary dialect made of a socket and the codec: it says what it is told to, and nothing by itself.

use std::net::SocketAddr;

use bytes::BytesMut;
use ringpost_protocol::{
    Content, Outgoing,
    frame::{FrameReader, Preface, decode_server, encode_client},
    message::{Answer, ClientMessage, Deliver, Hello, Register, Reply, Request, ServerMessage},
};

use super::Raw;

/// A client of the binary dialect that says what it is told to.
pub struct Frames {
    pub raw: Raw,
    received: BytesMut,
}

impl Frames {
    pub fn over(raw: Raw) -> Self {
        Self { raw, received: BytesMut::new() }
    }

    /// Connects and is welcomed, with a session that ends with the connection.
    pub fn connect(server: SocketAddr) -> Self {
        Self::greet(Raw::connect(server))
    }

    pub fn greet(raw: Raw) -> Self {
        let mut frames = Self::over(raw);
        frames.raw.say(Preface::plain().encode());
        frames.say(&ClientMessage::Hello(Hello::default()));
        assert!(matches!(frames.next(), Some(ServerMessage::Welcome(_))));
        frames
    }

    pub fn say(&mut self, message: &ClientMessage) {
        let mut out = Outgoing::new();
        encode_client(message, &mut out);
        self.raw.say(out.drain_to_vec());
    }

    /// Says what a server that has had enough may not want to hear. Whether it took it.
    pub fn try_to_say(&mut self, message: &ClientMessage) -> bool {
        let mut out = Outgoing::new();
        encode_client(message, &mut out);
        self.raw.try_to_say(out.drain_to_vec())
    }

    /// A handler that holds one request at a time.
    pub fn register(&mut self, action: &'static str) {
        self.register_with(action, 1);
    }

    pub fn register_with(&mut self, action: &'static str, credit: u32) {
        let (action, session) = (action.into(), Default::default());
        self.say(&ClientMessage::Register(Register { registration: 1, credit, action, session }));
        assert!(matches!(self.next(), Some(ServerMessage::Registered { registration: 1 })));
    }

    pub fn request(&mut self, number: u64, action: &str) {
        self.raw.say(self.encoded_request(number, action, b"1"));
    }

    /// The bytes of a request that is not said yet.
    pub fn encoded_request(&self, number: u64, action: &str, data: &[u8]) -> Vec<u8> {
        let content = Content::from_parts(action.as_bytes(), b"", b"", data);
        let mut out = Outgoing::new();
        encode_client(&ClientMessage::Request(Request { number, content, ..Request::default() }), &mut out);
        out.drain_to_vec()
    }

    pub fn answer(&mut self, delivery: u64) {
        let content = Content::from_payload("2");
        self.say(&ClientMessage::Answer(Answer { delivery, content, ..Answer::default() }));
    }

    pub fn next(&mut self) -> Option<ServerMessage> {
        loop {
            if self.received.starts_with(&Preface::MAGIC) {
                if self.received.len() >= Preface::BYTES {
                    let _ = self.received.split_to(Preface::BYTES);
                    continue;
                }
            } else if let Some(frame) = FrameReader::new(1 << 24).next(&mut self.received).unwrap() {
                return decode_server(frame).unwrap();
            }
            self.received.extend_from_slice(&self.raw.some()?);
        }
    }

    pub fn delivery(&mut self) -> Deliver {
        match self.next() {
            Some(ServerMessage::Deliver(deliver)) => deliver,
            other => panic!("a delivery, not {other:?}"),
        }
    }

    pub fn reply(&mut self) -> Reply {
        match self.next() {
            Some(ServerMessage::Reply(reply)) => reply,
            other => panic!("a reply, not {other:?}"),
        }
    }

    /// The next reply, pings before it passed over.
    pub fn reply_among_pings(&mut self) -> Reply {
        loop {
            match self.next() {
                Some(ServerMessage::Ping(_)) => {}
                Some(ServerMessage::Reply(reply)) => return reply,
                other => panic!("a reply, not {other:?}"),
            }
        }
    }
}
