//! A broker of a hundred lines, a thread per connection: round-robin, both dialects, and faults on demand.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use ringpost_protocol::{
    Code, Content, Outgoing,
    frame::{FrameReader, Preface, decode_client, encode_server},
    message::{ClientMessage, Deliver, Reply, ServerMessage, Welcome},
};
use serde_json::{Value, json};

/// What the broker does wrong, to each seventh reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// An error in its place.
    Overloaded,
    /// Another payload in its place.
    OtherPayload,
    /// It is sent twice.
    Twice,
    /// The requester's connection is closed.
    Close,
}

/// Listens until it is dropped.
pub(super) struct Broker {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    acceptor: Option<JoinHandle<()>>,
}

struct State {
    fault: Fault,
    stopped: bool,
    connections: usize,
    replies: u64,
    deliveries: u64,
    handlers: Vec<Arc<TcpStream>>,
    /// By delivery: the requester, and what it calls its request.
    open: HashMap<u64, (Arc<TcpStream>, Value)>,
}

impl Broker {
    pub(super) fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = State {
            fault,
            stopped: false,
            connections: 0,
            replies: 0,
            deliveries: 0,
            handlers: Vec::new(),
            open: HashMap::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let acceptor = thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.lock().unwrap().stopped {
                    return;
                }
                let stream = Arc::new(stream.unwrap());
                let shared = Arc::clone(&shared);
                shared.lock().unwrap().connections += 1;
                thread::spawn(move || {
                    serve(&stream, &shared);
                    let mut state = shared.lock().unwrap();
                    state.handlers.retain(|handler| !Arc::ptr_eq(handler, &stream));
                    state.open.retain(|_, (requester, _)| !Arc::ptr_eq(requester, &stream));
                    state.connections -= 1;
                });
            }
        });
        Self { address, state, acceptor: Some(acceptor) }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether all connections end within a time.
    pub(super) fn is_idle(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if self.state.lock().unwrap().connections == 0 {
                return true;
            }
            thread::yield_now();
        }
        false
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.state.lock().unwrap().stopped = true;
        // The acceptor looks at `stopped` when somebody comes.
        drop(TcpStream::connect(self.address));
        self.acceptor.take().unwrap().join().unwrap();
    }
}

fn serve(stream: &Arc<TcpStream>, state: &Mutex<State>) {
    let mut input = BytesMut::new();
    let mut chunk = vec![0; 1 << 16];
    let mut binary = None;
    while let Ok(count @ 1..) = (&**stream).read(&mut chunk) {
        input.extend_from_slice(&chunk[..count]);
        if binary.is_none() {
            binary = Some(input[0] != b'{');
        }
        // One lock for all that a read brought, and for what it causes to be written: messages never interleave.
        let mut state = state.lock().unwrap();
        if binary == Some(true) {
            frames(stream, &mut input, &mut state)
        } else {
            lines(stream, &mut input, &mut state)
        }
    }
}

fn frames(stream: &Arc<TcpStream>, input: &mut BytesMut, state: &mut State) {
    if input.starts_with(&Preface::MAGIC) {
        assert!(
            Preface::decode(input).unwrap().is_some(),
            "the load generator sends its preface in one piece"
        );
        drop(input.split_to(Preface::BYTES));
        write(stream, &Preface::plain().encode());
    }
    let reader = FrameReader::new(1 << 20);
    while let Some(frame) = reader.next(input).unwrap() {
        match decode_client(frame).unwrap().unwrap() {
            ClientMessage::Hello(_) => say(stream, &ServerMessage::Welcome(Welcome::default())),
            ClientMessage::Register(register) => {
                assert!(register.credit > 0);
                state.handlers.push(Arc::clone(stream));
                say(stream, &ServerMessage::Registered { registration: register.registration });
            }
            ClientMessage::Request(request) => {
                let Some((delivery, handler)) = state.deliver(stream, json!(request.number)) else {
                    continue;
                };
                let payload = request.content.payload_bytes();
                let content = Content::from_payload(payload);
                say(&handler, &ServerMessage::Deliver(Deliver { delivery, content, ..Deliver::default() }));
            }
            ClientMessage::Answer(answer) => {
                let Some((requester, number)) = state.open.remove(&answer.delivery) else { continue };
                let payload = answer.content.payload_bytes();
                let number = number.as_u64().unwrap();
                let mut reply = Reply { number, content: Content::from_payload(payload), ..Reply::default() };
                match state.fault_now() {
                    Fault::None => {}
                    Fault::Overloaded => reply.code = Some(Code::Overloaded),
                    Fault::OtherPayload => reply.content = Content::from_payload(Bytes::from_static(b"{}")),
                    Fault::Twice => say(&requester, &ServerMessage::Reply(reply.clone())),
                    Fault::Close => drop(requester.shutdown(std::net::Shutdown::Both)),
                }
                say(&requester, &ServerMessage::Reply(reply));
            }
            other => panic!("not expected of the load generator: {other:?}"),
        }
    }
}

fn lines(stream: &Arc<TcpStream>, input: &mut BytesMut, state: &mut State) {
    while let Some(end) = input.iter().position(|&byte| byte == b'\n') {
        let line: Value = serde_json::from_slice(&input.split_to(end + 1)).unwrap();
        match line["action"].as_str() {
            Some("init") => {
                state.handlers.push(Arc::clone(stream));
                say_json(stream, &json!({"action": "receivers", "message": {"data": [line["id"]]}}));
            }
            Some("response") => {
                let message = &line["message"];
                let delivery = message["serverId"].as_str().unwrap().parse().unwrap();
                let Some((requester, client_id)) = state.open.remove(&delivery) else { continue };
                assert_eq!(client_id, message["clientId"]);
                let mut reply = json!({"clientId": client_id, "data": message["data"], "status": "handled"});
                let mut action = "response";
                // The one with which a connection begins is left in peace.
                match if client_id == "ready" { Fault::None } else { state.fault_now() } {
                    Fault::None => {}
                    Fault::Overloaded => {
                        action = "error";
                        reply["info"] = json!({"error": "notDelivered", "code": "overloaded"});
                    }
                    Fault::OtherPayload => reply["data"] = json!({}),
                    Fault::Twice => say_json(&requester, &json!({"action": action, "message": reply})),
                    Fault::Close => drop(requester.shutdown(std::net::Shutdown::Both)),
                }
                say_json(&requester, &json!({"action": action, "message": reply}));
            }
            None => {
                let Some((delivery, handler)) = state.deliver(stream, line["clientId"].clone()) else {
                    continue;
                };
                let server_id = delivery.to_string();
                let message =
                    json!({"serverId": server_id, "clientId": line["clientId"], "data": line["data"]});
                say_json(&handler, &json!({"action": "request", "message": message}));
            }
            other => panic!("not expected of the load generator: {other:?}"),
        }
    }
}

impl State {
    /// Numbers a delivery and chooses its handler. `None`: the load generator has left, and this was still on its way.
    fn deliver(&mut self, requester: &Arc<TcpStream>, name: Value) -> Option<(u64, Arc<TcpStream>)> {
        self.deliveries += 1;
        let next = self.deliveries as usize % self.handlers.len().max(1);
        let handler = Arc::clone(self.handlers.get(next)?);
        self.open.insert(self.deliveries, (Arc::clone(requester), name));
        Some((self.deliveries, handler))
    }

    fn fault_now(&mut self) -> Fault {
        self.replies += 1;
        if self.replies.is_multiple_of(7) { self.fault } else { Fault::None }
    }
}

fn say(stream: &TcpStream, message: &ServerMessage) {
    let mut out = Outgoing::new();
    encode_server(message, &mut out);
    write(stream, &out.drain_to_vec());
}

fn say_json(stream: &TcpStream, message: &Value) {
    write(stream, format!("{message}\n").as_bytes());
}

/// A connection that is gone is noticed where it is read from.
fn write(mut stream: &TcpStream, bytes: &[u8]) {
    drop(stream.write_all(bytes));
}
