//! The files in `vectors/binary/` mean what they say, the code agrees with them byte by byte, and docs/PROTOCOL.md
//! quotes them as they are.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test fails by panicking")]

mod document;
mod files;
mod messages;
mod proxy;

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use ringpost_protocol::{
    Code, Outgoing, WireError,
    frame::{
        FrameReader, HEADER_BYTES, Preface, decode_client, decode_server, encode_client, encode_server, kind,
    },
    message::{ClientMessage, ServerMessage},
};

use crate::files::{Sender, Vector, binary_vectors};

/// The `--max-payload` that the vectors assume.
const MAX_PAYLOAD: u32 = 64 << 10;

/// What the bytes of a vector turn out to be.
#[derive(Debug, PartialEq)]
enum Said {
    Preface(Preface),
    Client(ClientMessage),
    Server(ServerMessage),
    Skipped,
}

/// Every vector reads as the message that it describes or as the error that it names, whole and byte by byte.
#[test]
fn vectors_are_read_as_they_say() {
    for vector in binary_vectors() {
        for piece in [vector.bytes.len(), 1] {
            let said = read(&vector, piece);
            match vector.error() {
                Some(code) => assert_eq!(said.map_err(|error| error.code), Err(code), "{}", vector.name),
                None => assert_eq!(said, Ok(described(&vector)), "{}", vector.name),
            }
        }
    }
}

/// Every message is written as its vector says, but for those that only a later version would write.
#[test]
fn vectors_are_written_as_they_say() {
    for vector in binary_vectors() {
        if vector.error().is_some() || vector.is_decode_only() {
            continue;
        }
        let mut out = Outgoing::new();
        match described(&vector) {
            Said::Preface(preface) => out.tail().extend_from_slice(&preface.encode()),
            Said::Client(message) => encode_client(&message, &mut out),
            Said::Server(message) => encode_server(&message, &mut out),
            Said::Skipped => panic!("{}: nobody writes what is skipped", vector.name),
        }
        assert_eq!(out.drain_to_vec(), vector.bytes, "{}", vector.name);
    }
}

/// No kind that either side understands is without a vector, and no name of a file lies about who sends it.
#[test]
fn every_kind_has_a_vector() {
    let mut seen = BTreeSet::new();
    for vector in binary_vectors() {
        let prefix = if vector.error().is_some() { "bad-" } else { vector.sender.prefix() };
        assert!(vector.name.starts_with(prefix), "{} is sent by the {:?}", vector.name, vector.sender);
        if vector.error().is_none() && !vector.is_preface() {
            seen.insert((vector.sender, vector.bytes[4]));
        }
    }
    for sender in [Sender::Client, Sender::Server] {
        for number in (0..kind::IGNORABLE).filter(|number| is_known(sender, *number)) {
            // Between servers, both sides say the same.
            let both = matches!(number, kind::FORWARD..=kind::UNKNOWN);
            let either = both && seen.iter().any(|(_, seen)| *seen == number);
            assert!(
                either || seen.contains(&(sender, number)),
                "no vector of the {sender:?}'s kind {number:#04x}"
            );
        }
        assert!(seen.iter().any(|(who, number)| *who == sender && number & kind::IGNORABLE != 0));
    }
}

fn is_known(sender: Sender, number: u8) -> bool {
    let mut frame = [0; HEADER_BYTES + 64];
    (frame[0], frame[4], frame[8]) = (64, number, 1);
    let frame = Bytes::copy_from_slice(&frame);
    let error = match sender {
        Sender::Client => decode_client(frame).err(),
        Sender::Server => decode_server(frame).err(),
    };
    error.is_none_or(|error| error.code != Code::Unsupported)
}

fn described(vector: &Vector) -> Said {
    let message = &vector.description["message"];
    match vector.sender {
        _ if message.is_null() => Said::Skipped,
        _ if vector.is_preface() => Said::Preface(messages::preface(message)),
        Sender::Client => Said::Client(messages::client(message)),
        Sender::Server => Said::Server(messages::server(message)),
    }
}

/// Reads a vector whose bytes arrive `piece` at a time, with all bytes used up at the end.
fn read(vector: &Vector, piece: usize) -> Result<Said, WireError> {
    let reader = FrameReader::new(MAX_PAYLOAD);
    let mut buffer = BytesMut::new();
    let mut said = None;
    for piece in vector.bytes.chunks(piece) {
        assert_eq!(said, None, "{}: complete before its end", vector.name);
        buffer.extend_from_slice(piece);
        if vector.is_preface() {
            said = Preface::decode(&buffer)?.map(Said::Preface);
        } else if let Some(frame) = reader.next(&mut buffer)? {
            said = Some(match vector.sender {
                Sender::Client => decode_client(frame)?.map_or(Said::Skipped, Said::Client),
                Sender::Server => decode_server(frame)?.map_or(Said::Skipped, Said::Server),
            });
        }
    }
    Ok(said.unwrap_or_else(|| panic!("{}: not complete at its end", vector.name)))
}
