//! A server to talk to, and sockets that speak either dialect by hand.
#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use ringpost_protocol::{
    Content, Outgoing,
    frame::{self, FrameReader, Preface},
    message::{Answer, ClientMessage, Hello, Register, Request, ServerMessage, Speaker},
};
use ringpost_server::{Builder, Handle, Server};
use serde_json::Value;

/// No test waits longer than this for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn builder() -> Builder {
    Server::builder().listen(["127.0.0.1:0".parse().unwrap()])
}

pub(crate) fn server() -> Handle {
    builder().start().unwrap()
}

pub(crate) fn connect(server: &Handle) -> TcpStream {
    connect_to(server.address())
}

pub(crate) fn connect_to(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.set_write_timeout(Some(DEADLINE)).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

/// All that the server says until it closes.
pub(crate) fn until_closed(socket: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    socket.read_to_end(&mut all).unwrap();
    all
}

/// A JSON client.
pub(crate) struct Json {
    pub(crate) socket: TcpStream,
    heard: Vec<u8>,
}

impl Json {
    pub(crate) fn connect(server: &Handle) -> Self {
        Self::over(connect(server))
    }

    pub(crate) fn over(socket: TcpStream) -> Self {
        Self { socket, heard: Vec::new() }
    }

    pub(crate) fn say(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).unwrap();
    }

    /// Registers an action, and waits until the server has told that it is there.
    pub(crate) fn register(&mut self, action: &str) {
        self.say(&format!("{{\"id\":\"{action}\",\"action\":\"init\"}}\n"));
        loop {
            let message = self.hear();
            if message["action"] == "receivers"
                && message["message"]["data"].as_array().unwrap().iter().any(|name| name == action)
            {
                return;
            }
        }
    }

    /// The next message.
    pub(crate) fn hear(&mut self) -> Value {
        self.hear_or_end().expect("the server closed the connection")
    }

    /// The next message of this kind; others are passed over.
    pub(crate) fn hear_a(&mut self, action: &str) -> Value {
        let until = Instant::now() + DEADLINE;
        loop {
            assert!(Instant::now() < until, "no {action} for {DEADLINE:?}");
            let message = self.hear();
            if message["action"] == action {
                return message;
            }
        }
    }

    /// The next message, or `None` at the end.
    pub(crate) fn hear_or_end(&mut self) -> Option<Value> {
        loop {
            let mut stream = serde_json::Deserializer::from_slice(&self.heard).into_iter::<Value>();
            if let Some(Ok(value)) = stream.next() {
                let used = stream.byte_offset();
                self.heard.drain(..used);
                return Some(value);
            }
            let mut piece = [0; 4096];
            let read = self.socket.read(&mut piece).unwrap();
            if read == 0 {
                return None;
            }
            self.heard.extend_from_slice(&piece[..read]);
        }
    }

    pub(crate) fn end_half(&self) {
        self.socket.shutdown(Shutdown::Write).unwrap();
    }
}

/// A binary client.
pub(crate) struct Binary {
    pub(crate) socket: TcpStream,
    buffer: BytesMut,
}

impl Binary {
    /// Connects and says hello.
    pub(crate) fn connect(server: &Handle) -> Self {
        Self::over(connect(server))
    }

    /// Says hello.
    pub(crate) fn over(socket: TcpStream) -> Self {
        Self::greet(socket, Hello::default())
    }

    /// Connects as the one process that speaks for a session.
    pub(crate) fn connect_as(server: &Handle, session: &'static str) -> Self {
        let speaker = Speaker { instance: 1, connection: 1 };
        Self::greet(connect(server), Hello { session: session.into(), speaker, ..Hello::default() })
    }

    fn greet(socket: TcpStream, hello: Hello) -> Self {
        let mut client = Self { socket, buffer: BytesMut::new() };
        client.socket.write_all(&Preface::plain().encode()).unwrap();
        client.say(&ClientMessage::Hello(hello));
        client.hear_preface();
        assert!(matches!(client.hear(), ServerMessage::Welcome(_)));
        client
    }

    /// Connects and says the preface only.
    pub(crate) fn connect_without_hello(server: &Handle) -> Self {
        let mut client = Self { socket: connect(server), buffer: BytesMut::new() };
        client.socket.write_all(&Preface::plain().encode()).unwrap();
        client.hear_preface();
        client
    }

    fn hear_preface(&mut self) {
        let mut preface = [0; Preface::BYTES];
        self.socket.read_exact(&mut preface).unwrap();
        assert_eq!(Preface::decode(&preface), Ok(Some(Preface::plain())));
    }

    pub(crate) fn say(&mut self, message: &ClientMessage) {
        let mut out = Outgoing::new();
        frame::encode_client(message, &mut out);
        self.socket.write_all(&out.drain_to_vec()).unwrap();
    }

    pub(crate) fn register(&mut self, action: &str) {
        let action = action.to_owned().into();
        self.say(&ClientMessage::Register(Register {
            registration: 1,
            credit: 64,
            action,
            session: Default::default(),
        }));
        assert!(matches!(self.hear(), ServerMessage::Registered { registration: 1 }));
    }

    pub(crate) fn request(&mut self, number: u64, action: &str, payload: &[u8]) {
        let content = Content::from_parts(action.as_bytes(), b"", b"", payload);
        self.say(&ClientMessage::Request(Request { number, content, ..Request::default() }));
    }

    pub(crate) fn answer(&mut self, delivery: u64, sequence: u64, payload: &[u8]) {
        let content = Content::from_payload(payload.to_vec());
        self.say(&ClientMessage::Answer(Answer { delivery, sequence, content, ..Answer::default() }));
    }

    pub(crate) fn hear(&mut self) -> ServerMessage {
        self.hear_or_end().expect("the server closed the connection")
    }

    /// The next message that is neither an acceptance nor a ping; `None` at the end.
    pub(crate) fn hear_or_end(&mut self) -> Option<ServerMessage> {
        loop {
            match self.hear_all_or_end() {
                Some(ServerMessage::Accepted { .. } | ServerMessage::Acknowledge { .. }) => {}
                other => return other,
            }
        }
    }

    /// The next message that is not a ping, which is answered; `None` at the end.
    pub(crate) fn hear_all_or_end(&mut self) -> Option<ServerMessage> {
        let reader = FrameReader::new(1 << 30);
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(frame) = reader.next(&mut self.buffer).unwrap() {
                match frame::decode_server(frame).unwrap().unwrap() {
                    ServerMessage::Ping(token) => self.say(&ClientMessage::Pong(token)),
                    message => return Some(message),
                }
            }
            assert!(Instant::now() < until, "nothing but pings for {DEADLINE:?}");
            let mut piece = [0; 65536];
            let read = match self.socket.read(&mut piece) {
                // A reset is an end too.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
                read => read.unwrap(),
            };
            if read == 0 {
                return None;
            }
            self.buffer.extend_from_slice(&piece[..read]);
        }
    }
}
