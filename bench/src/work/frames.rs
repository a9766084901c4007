//! The binary codec: every kind of the path request → reply.

use std::hint::black_box;

use bytes::Bytes;
use ringpost_protocol::{
    Content, Outgoing,
    frame::{decode_client, decode_server, encode_client, encode_server},
    message::{Answer, ClientMessage, Deliver, Reply, Request, ServerMessage},
};

use super::Work;

fn content(size: usize, name: &[u8]) -> Content {
    Content::from_parts(name, b"", b"", &vec![b'x'; size])
}

/// What a requester and a handler say, with payloads of `size` bytes.
pub fn client_messages(size: usize) -> [(&'static str, ClientMessage); 2] {
    let request = Request { number: 1, content: content(size, b"bench"), ..Request::default() };
    let answer = Answer { delivery: 1, sequence: 1, content: content(size, b""), ..Answer::default() };
    [("request", ClientMessage::Request(request)), ("answer", ClientMessage::Answer(answer))]
}

/// What a handler and a requester are told, with payloads of `size` bytes.
pub fn server_messages(size: usize) -> [(&'static str, ServerMessage); 2] {
    let deliver = Deliver { delivery: 1, registration: 1, content: content(size, b""), ..Deliver::default() };
    let reply = Reply { number: 1, sequence: 1, content: content(size, b""), ..Reply::default() };
    [("deliver", ServerMessage::Deliver(deliver)), ("reply", ServerMessage::Reply(reply))]
}

/// The bytes of what is encoded.
pub fn encoded(encode: impl FnOnce(&mut Outgoing)) -> Bytes {
    let mut out = Outgoing::new();
    encode(&mut out);
    out.drain_to_vec().into()
}

pub(super) fn all() -> Vec<Work> {
    let mut all = Vec::new();
    for (kind, message) in client_messages(128) {
        let frame = encoded(|out| encode_client(&message, out));
        let mut out = Outgoing::new();
        all.push(Work::new(format!("frame/encode/{kind}"), 1, move || {
            out.tail().clear();
            encode_client(black_box(&message), &mut out);
        }));
        all.push(Work::new(format!("frame/decode/{kind}"), 1, move || {
            assert!(matches!(black_box(decode_client(black_box(&frame).clone())), Ok(Some(_))));
        }));
    }
    for (kind, message) in server_messages(128) {
        let frame = encoded(|out| encode_server(&message, out));
        let mut out = Outgoing::new();
        all.push(Work::new(format!("frame/encode/{kind}"), 1, move || {
            out.tail().clear();
            encode_server(black_box(&message), &mut out);
        }));
        all.push(Work::new(format!("frame/decode/{kind}"), 1, move || {
            assert!(matches!(black_box(decode_server(black_box(&frame).clone())), Ok(Some(_))));
        }));
    }
    all
}
