//! Connections with a secure key: any bytes as hellos, and streams of records that somebody in between plays with.

use bytes::{Buf, BytesMut};
use ringpost_protocol::secure::{
    ClientHello, Incoming, Initiator, Opener, Responder, Role, Sealer, SecureKey, ServerHello,
};

use crate::choices::Choices;

fn key() -> SecureKey {
    SecureKey::from_bytes([7; 32])
}

fn initiator() -> Initiator {
    Initiator::repeatable(&key(), Role::Client, &[1; 32]).expect("its ephemeral key is given")
}

/// Bytes as hellos of both sides: as they are, and as changes of true ones.
///
/// Only the true ones lead to a connection, whatever the changes.
///
/// # Panics
/// If something of that does not hold.
pub fn handshake(input: &[u8]) {
    let initiator = initiator();
    let genuine = ClientHello::decode(initiator.hello()).expect("it is ours").expect("it is whole");
    let responder = Responder::repeatable(&genuine, &key(), &[2; 32]).expect("it has the key");
    for hello in [input.to_vec(), changed(initiator.hello(), input)] {
        if let Ok(Some(decoded)) = ClientHello::decode(&hello) {
            let is_ours = decoded.bytes() == genuine.bytes();
            assert_eq!(Responder::answer(&decoded, &key()).is_ok(), is_ours, "a changed hello has no answer");
            assert!(!is_ours || decoded.key_id() == key().id());
        }
    }
    for hello in [input.to_vec(), changed(&responder.hello, input)] {
        if let Ok(Some(ServerHello::Secure(message))) = ServerHello::decode(&hello) {
            let is_theirs = hello.get(..ServerHello::BYTES) == Some(&responder.hello);
            assert_eq!(
                self::initiator().finish(&message).is_ok(),
                is_theirs,
                "a changed answer is not believed"
            );
        }
    }
}

/// `bytes` with some of them changed: each two bytes of `input` say which, and how.
fn changed(bytes: &[u8], input: &[u8]) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    for pair in input.chunks_exact(2) {
        let at = usize::from(pair[0]) % changed.len();
        changed[at] ^= pair[1];
    }
    changed
}

/// As much is said in one history.
const MAX_STREAM_BYTES: usize = 512 << 10;

/// What is done with a record on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Arrives,
    Changed,
    LeftOut,
    Twice,
    /// The other direction's of the same number arrives in its place.
    Reflected,
}

/// Choices: what is said in records, what is done with each of them on its way, how they are cut, and how they are read.
///
/// What is read was said, in that order and from the beginning: all of it up to the first record that was played with, and
/// nothing behind that.
///
/// # Panics
/// If something of that does not hold.
pub fn secure_records(input: &[u8]) {
    let (mut sealer, mut back, opener) = connect();
    let mut choices = Choices::new(input);
    let (mut said, mut stream, mut intact) = (Vec::new(), Vec::new(), true);
    while !choices.are_over() && stream.len() < MAX_STREAM_BYTES {
        let bytes = choices.of(&[0usize, 1, 17, 300, 5000, 70_000]) + choices.below(256) as usize;
        let text: Vec<u8> = (0..bytes).map(|at| (at + said.len()) as u8).collect();
        let fate = match choices.below(12) {
            0 => Fate::Changed,
            1 => Fate::LeftOut,
            2 => Fate::Twice,
            3 => Fate::Reflected,
            _ => Fate::Arrives,
        };
        let (mut record, mut reflected) = (Vec::new(), Vec::new());
        sealer.seal(&text, &mut record);
        back.seal(&text, &mut reflected);
        if text.is_empty() {
            continue;
        }
        match fate {
            Fate::Arrives => stream.extend_from_slice(&record),
            Fate::Changed => {
                // Its first bytes say how long it is: then what is behind it may be taken for a part of it.
                let at = choices.below(record.len().min(1 << 16) as u64) as usize;
                record[at] ^= 1 + choices.below(255) as u8;
                stream.extend_from_slice(&record);
            }
            Fate::LeftOut => {}
            Fate::Twice => {
                stream.extend_from_slice(&record);
                stream.extend_from_slice(&record);
            }
            Fate::Reflected => stream.extend_from_slice(&reflected),
        }
        if intact && matches!(fate, Fate::Arrives | Fate::Twice) {
            said.extend_from_slice(&text);
        } else if intact {
            // Of what takes several records, those before the changed one arrived.
            said.extend_from_slice(&text);
            intact = false;
        }
        intact &= fate != Fate::Twice;
    }
    let cut = 1 + stream.len() % 977;
    let heard = hear(Incoming::new(opener), &stream, cut);
    assert!(said.starts_with(&heard), "what is read was said");
    assert!(!intact || heard == said, "what nobody played with is read");
}

fn hear(mut incoming: Incoming, stream: &[u8], cut: usize) -> Vec<u8> {
    let (mut buffer, mut heard) = (BytesMut::new(), Vec::new());
    for piece in stream.chunks(cut) {
        buffer.extend_from_slice(piece);
        let opened = incoming.open(&mut buffer);
        let rest = incoming.part(&mut buffer);
        // A few bytes stay, as a frame's beginning would.
        let read = buffer.len() - buffer.len() % 7;
        heard.extend_from_slice(&buffer[..read]);
        buffer.advance(read);
        incoming.rejoin(&mut buffer, rest);
        if opened.is_err() {
            assert_eq!(incoming.open(&mut buffer), opened, "an error stays");
            break;
        }
    }
    heard.extend_from_slice(incoming.plaintext(&buffer));
    heard
}

/// Both directions' sealers, and the opener of the first.
fn connect() -> (Sealer, Sealer, Opener) {
    let initiator = initiator();
    let hello = ClientHello::decode(initiator.hello()).expect("it is ours").expect("it is whole");
    let responder = Responder::repeatable(&hello, &key(), &[2; 32]).expect("it has the key");
    let Ok(Some(ServerHello::Secure(answer))) = ServerHello::decode(&responder.hello) else {
        panic!("the answer is no hello")
    };
    let (sealer, _) = initiator.finish(&answer).expect("it has the key");
    (sealer, responder.sealer, responder.opener)
}
