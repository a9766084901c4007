//! What is promised of keys, handshake and records, tried out.

mod streams;
mod tampering;
mod vectors;

use super::*;

fn key(byte: u8) -> SecureKey {
    SecureKey::from_bytes([byte; 32])
}

/// One side of a connection: what it seals with and what it opens with.
struct Side {
    sealer: Sealer,
    opener: Opener,
}

/// Both sides of a connection, client first.
fn connect(key: &SecureKey) -> (Side, Side) {
    let initiator = Initiator::new(key, Role::Client).unwrap();
    let hello = ClientHello::decode(initiator.hello()).unwrap().unwrap();
    assert_eq!((hello.key_id(), hello.role()), (key.id(), Role::Client));
    let responder = Responder::answer(&hello, key).unwrap();
    let Some(ServerHello::Secure(answer)) = ServerHello::decode(&responder.hello).unwrap() else {
        panic!("the server's hello is no hello")
    };
    let (sealer, opener) = initiator.finish(&answer).unwrap();
    (Side { sealer, opener }, Side { sealer: responder.sealer, opener: responder.opener })
}

fn seal(sealer: &mut Sealer, plaintext: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    sealer.seal(plaintext, &mut out);
    out
}

/// Opens one record, which must be all there is.
fn open(opener: &mut Opener, record: &[u8]) -> Result<Option<Vec<u8>>, RecordError> {
    let mut buffer = record.to_vec();
    let opened = opener.open(&mut buffer)?;
    Ok(opened.map(|opened| {
        assert_eq!(opened.bytes, record.len());
        buffer[opened.plaintext].to_vec()
    }))
}

/// Both directions work, each with a key of its own; what is sealed shows nothing of the plaintext.
#[test]
fn both_directions() {
    let (mut client, mut server) = connect(&key(7));
    let up = seal(&mut client.sealer, b"to the server, to the server");
    let down = seal(&mut server.sealer, b"to the server, to the server");
    assert_ne!(up, down);
    assert!(!up.windows(6).any(|window| window == b"server"));
    assert!(!server.opener.has_verified());
    assert_eq!(open(&mut server.opener, &up).unwrap().unwrap(), b"to the server, to the server");
    assert!(server.opener.has_verified());
    assert_eq!(open(&mut client.opener, &down).unwrap().unwrap(), b"to the server, to the server");
}

/// A generated key is read as it was written; one that was cut is not taken for a passphrase; white space does not count.
#[test]
fn texts_of_keys() {
    let bytes = std::array::from_fn(|index| index as u8);
    let text = SecureKey::text_of(&bytes);
    let read = SecureKey::parse(&format!("  {}\n", *text)).unwrap();
    assert_eq!(read, SecureKey::from_bytes(bytes));
    assert!(!read.is_passphrase());
    assert_eq!(SecureKey::parse(&text[..text.len() - 1]), Err(KeyError::NotWhole));
    assert_eq!(SecureKey::parse(&format!("{}0", *text)), Err(KeyError::NotWhole));
    assert_eq!(SecureKey::parse(&text.replace("0f", "0g")), Err(KeyError::NotWhole));
    assert_eq!(SecureKey::parse(" \n"), Err(KeyError::Empty));
}

/// What shows a key shows its id, and nothing of its bits.
#[test]
fn keys_are_not_shown() {
    let key = SecureKey::from_bytes([0xab; 32]);
    let shown = format!("{key:?} {:?}", Initiator::new(&key, Role::Client).unwrap());
    assert!(shown.contains(&key.id().to_string()) && !shown.contains("abab"), "{shown}");
    assert!(!shown.contains("171, 171"), "{shown}");
}
