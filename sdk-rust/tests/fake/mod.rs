//! A server that is played by the test: it speaks frames over a socket of its own, and says what it is told to.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::time::Duration;

use bytes::BytesMut;
use ringpost_protocol::{
    Code, Content, Outgoing,
    frame::{FrameReader, Preface, decode_client, encode_server},
    message::{ClientMessage, Deliver, Register, Reply, Request, ServerMessage, Speaker, Welcome},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Nothing in these tests takes this long; what does is broken.
pub const DEADLINE: Duration = Duration::from_secs(10);

pub struct Server {
    listener: TcpListener,
}

impl Server {
    pub async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// The next connection, before anything was said on it.
    pub async fn accept_raw(&self) -> TcpStream {
        timeout(DEADLINE, self.listener.accept()).await.expect("a client connects").unwrap().0
    }

    /// The next connection, welcomed as one of a session that the server has never heard of.
    pub async fn accept(&self) -> Peer {
        let mut peer = self.accept_unwelcomed().await;
        peer.say(ServerMessage::Welcome(Welcome {
            server_id: "fake".into(),
            boot: 1,
            epoch: 1,
            tenure: u64::from(peer.speaker.connection),
            next_number: 1,
            max_payload: 1 << 20,
            ping_interval_ms: 5000,
            ..Welcome::default()
        }))
        .await;
        peer
    }

    /// The next connection, whose hello was read.
    pub async fn accept_unwelcomed(&self) -> Peer {
        let mut stream = self.accept_raw().await;
        let mut preface = [0; Preface::BYTES];
        stream.read_exact(&mut preface).await.unwrap();
        assert_eq!(Preface::decode(&preface), Ok(Some(Preface::plain())));
        stream.write_all(&Preface::plain().encode()).await.unwrap();
        let mut peer = Peer { stream, buffer: BytesMut::new(), speaker: Speaker::default() };
        let ClientMessage::Hello(hello) = peer.hear().await else { panic!("no hello") };
        assert!(!hello.session.is_empty());
        assert!(hello.speaker.instance != 0 && hello.speaker.connection != 0, "who speaks is said");
        peer.speaker = hello.speaker;
        peer
    }
}

/// One connection, from the server's side.
pub struct Peer {
    pub stream: TcpStream,
    pub speaker: Speaker,
    buffer: BytesMut,
}

impl Peer {
    /// What the client says next, pings and pongs aside.
    pub async fn hear(&mut self) -> ClientMessage {
        timeout(DEADLINE, self.next()).await.expect("the client says something").expect("the client is there")
    }

    /// Whether the client closes the connection without another word.
    pub async fn ends(&mut self) -> bool {
        timeout(DEADLINE, self.next()).await.expect("the client closes").is_none()
    }

    /// The client's answer to a ping, which is the next that it says.
    pub async fn hear_pong(&mut self) -> u64 {
        let pong = async {
            loop {
                if let Some(frame) = FrameReader::new(1 << 24).next(&mut self.buffer).unwrap() {
                    match decode_client(frame).unwrap() {
                        Some(ClientMessage::Pong(number)) => return number,
                        message => panic!("no pong: {message:?}"),
                    }
                }
                assert!(self.stream.read_buf(&mut self.buffer).await.unwrap() > 0, "the client is there");
            }
        };
        timeout(DEADLINE, pong).await.expect("the client answers a ping")
    }

    async fn next(&mut self) -> Option<ClientMessage> {
        loop {
            match FrameReader::new(1 << 24).next(&mut self.buffer).unwrap() {
                Some(frame) => match decode_client(frame).unwrap() {
                    Some(ClientMessage::Ping(number)) => self.say(ServerMessage::Pong(number)).await,
                    Some(ClientMessage::Pong(_)) | None => {}
                    Some(message) => return Some(message),
                },
                None => {
                    if self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                        return None;
                    }
                }
            }
        }
    }

    pub async fn say(&mut self, message: ServerMessage) {
        let mut out = Outgoing::new();
        encode_server(&message, &mut out);
        self.stream.write_all(&out.drain_to_vec()).await.unwrap();
    }

    /// The client registers; it is granted.
    pub async fn hear_register(&mut self) -> Register {
        let ClientMessage::Register(register) = self.hear().await else { panic!("no registration") };
        self.say(ServerMessage::Registered { registration: register.registration }).await;
        register
    }

    pub async fn hear_request(&mut self) -> Request {
        let message = self.hear().await;
        let ClientMessage::Request(request) = message else { panic!("no request: {message:?}") };
        request
    }

    pub async fn reply(&mut self, number: u64, data: &str) {
        let content = Content::from_payload(data.to_owned());
        self.say(ServerMessage::Reply(Reply { number, content, ..Reply::default() })).await;
    }

    pub async fn fail(&mut self, number: u64, code: Code, name: &str, message: &str) {
        let content = Content::from_parts(name.as_bytes(), b"", b"", message.as_bytes());
        self.say(ServerMessage::Reply(Reply { number, code: Some(code), content, ..Reply::default() })).await;
    }

    pub async fn deliver(&mut self, delivery: u64, registration: u32, data: &str) {
        let content = Content::from_parts(b"", b"{\"o\":1}", b"\x01k\x01\x00v", data.as_bytes());
        let deliver =
            Deliver { delivery, registration, attempt: 2, time_left_ms: 5000, content, ..Deliver::default() };
        self.say(ServerMessage::Deliver(deliver)).await;
    }
}
