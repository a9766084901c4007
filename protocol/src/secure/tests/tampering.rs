//! What an attacker between both sides may try: to change, cut, reorder, repeat, reflect, and to mix connections.

use super::*;

/// Every single byte of `bytes`, changed in its lowest and in its highest bit.
fn flipped(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    (0..bytes.len()).flat_map(move |at| {
        [1, 0x80].into_iter().map(move |bit| {
            let mut changed = bytes.to_vec();
            changed[at] ^= bit;
            changed
        })
    })
}

/// A client's hello with any byte changed has no answer, even by a server that is told to use the right key for it.
#[test]
fn every_byte_of_a_clients_hello() {
    let key = key(7);
    let initiator = Initiator::new(&key, Role::Client).unwrap();
    for changed in flipped(initiator.hello()) {
        if let Ok(Some(hello)) = ClientHello::decode(&changed) {
            assert_eq!(Responder::answer(&hello, &key).unwrap_err(), HandshakeError::NotProven);
        }
    }
    let hello = ClientHello::decode(initiator.hello()).unwrap().unwrap();
    assert!(Responder::answer(&hello, &key).is_ok());
}

/// A server's hello with any byte changed is believed by nobody.
#[test]
fn every_byte_of_a_servers_hello() {
    let key = key(7);
    let again = || Initiator::repeatable(&key, Role::Client, &[9; 32]).unwrap();
    let hello = ClientHello::decode(again().hello()).unwrap().unwrap();
    let responder = Responder::answer(&hello, &key).unwrap();
    for changed in flipped(&responder.hello) {
        match ServerHello::decode(&changed) {
            Ok(Some(ServerHello::Secure(message))) => {
                assert_eq!(again().finish(&message).unwrap_err(), HandshakeError::NotProven);
            }
            Ok(Some(ServerHello::Refused)) | Err(_) => {}
            Ok(None) => panic!("it is there as a whole"),
        }
    }
}

/// Half a hello is awaited, byte by byte; a hello behind a wrong first byte is refused at once.
#[test]
fn truncated_hellos() {
    let key = key(7);
    let initiator = Initiator::new(&key, Role::Client).unwrap();
    let hello = *initiator.hello();
    for end in 0..hello.len() {
        assert_eq!(ClientHello::decode(&hello[..end]), Ok(None), "{end}");
    }
    let responder = Responder::answer(&ClientHello::decode(&hello).unwrap().unwrap(), &key).unwrap();
    for end in 0..responder.hello.len() {
        assert_eq!(ServerHello::decode(&responder.hello[..end]), Ok(None), "{end}");
    }
    assert!(ClientHello::decode(b"{").is_err() && ServerHello::decode(b"{").is_err());
}

/// Neither side accepts another key, and a role is a part of what is proven.
#[test]
fn other_keys_and_roles() {
    let initiator = Initiator::new(&key(7), Role::Client).unwrap();
    let hello = ClientHello::decode(initiator.hello()).unwrap().unwrap();
    assert_eq!(Responder::answer(&hello, &key(8)).unwrap_err(), HandshakeError::NotProven);
    // A server that pretends: it has heard the hello, and answers it with a key of its own.
    let mut theirs = *Initiator::new(&key(8), Role::Client).unwrap().hello();
    let pretended = Responder::answer(&ClientHello::decode(&theirs).unwrap().unwrap(), &key(8)).unwrap();
    let Ok(Some(ServerHello::Secure(message))) = ServerHello::decode(&pretended.hello) else { panic!() };
    assert_eq!(initiator.finish(&message).unwrap_err(), HandshakeError::NotProven);
    // A client cannot be made a peer on the way.
    theirs[6] = 1;
    let hello = ClientHello::decode(&theirs).unwrap().unwrap();
    assert_eq!(hello.role(), Role::Peer);
    assert_eq!(Responder::answer(&hello, &key(8)).unwrap_err(), HandshakeError::NotProven);
    let peer = Initiator::new(&key(8), Role::Peer).unwrap();
    assert_eq!(ClientHello::decode(peer.hello()).unwrap().unwrap().role(), Role::Peer);
}

/// Who repeats a hello that it has heard gets an answer that is of no use: its first record does not verify.
#[test]
fn a_repeated_hello() {
    let key = key(7);
    let initiator = Initiator::new(&key, Role::Client).unwrap();
    let hello = ClientHello::decode(initiator.hello()).unwrap().unwrap();
    let answer = |hello| Responder::answer(hello, &key).unwrap();
    let (first, mut second) = (answer(&hello), answer(&hello));
    let Ok(Some(ServerHello::Secure(message))) = ServerHello::decode(&first.hello) else { panic!() };
    let (mut sealer, _) = initiator.finish(&message).unwrap();
    let record = seal(&mut sealer, b"hello");
    assert_eq!(open(&mut second.opener, &record), Err(RecordError::Forged));
    assert!(!second.opener.has_verified());
}

/// A record with any byte changed is not opened, and after it nothing is.
#[test]
fn every_byte_of_a_record() {
    let key = [7; 32];
    for plaintext in [&b""[..], b"{\"id\":1}", &[0; 300]] {
        let mut sealer = Sealer::new(&key);
        let mut record = Vec::new();
        match plaintext {
            b"" => sealer.end(&mut record),
            _ => sealer.seal(plaintext, &mut record),
        }
        for changed in flipped(&record) {
            let mut opener = Opener::new(&key);
            match open(&mut opener, &changed) {
                // It seems longer than it is: what comes next is taken for the rest of it.
                Ok(None) => {
                    let mut more = changed.clone();
                    more.resize(4096, 0);
                    assert!(opener.open(&mut more).is_err());
                }
                Ok(Some(_)) => panic!("{changed:?} was opened"),
                Err(_) => {}
            }
            assert!(opener.open(&mut record.clone()).is_err());
            assert!(!opener.has_verified());
        }
        assert_eq!(open(&mut Opener::new(&key), &record).unwrap().unwrap(), plaintext);
    }
}

/// A part of a record is awaited and changes nothing; a stream that ends there was cut off, and one behind its end record
/// was not.
#[test]
fn truncated_records() {
    let (mut client, mut server) = connect(&key(7));
    let record = seal(&mut client.sealer, b"a few words");
    for end in 0..record.len() {
        assert_eq!(server.opener.open(&mut record[..end].to_vec()), Ok(None));
        let missing = server.opener.missing(&record[..end]);
        assert_eq!(missing, if end < 4 { 0 } else { record.len() - end });
    }
    assert_eq!(open(&mut server.opener, &record).unwrap().unwrap(), b"a few words");
    assert!(!server.opener.has_ended());
    let mut end = Vec::new();
    client.sealer.end(&mut end);
    client.sealer.end(&mut end);
    assert_eq!(open(&mut server.opener, &end).unwrap().unwrap(), b"");
    assert!(server.opener.has_ended());
    assert_eq!(server.opener.open(&mut []), Ok(None));
    assert_eq!(server.opener.open(&mut [0]), Err(RecordError::BehindEnd));
}

/// Records in another order, again, left out, sent back, and of another connection or key: none is opened.
#[test]
fn records_in_the_wrong_place() {
    let key = key(7);
    let records = |sealer: &mut Sealer| [&b"one"[..], b"two", b"six"].map(|text| seal(sealer, text));
    type Choose<'a> = &'a dyn Fn(&[Vec<u8>; 3], &[Vec<u8>; 3], &[Vec<u8>; 3]) -> Vec<Vec<u8>>;
    let try_all = |choose: Choose<'_>| {
        let (mut client, mut server) = connect(&key);
        let (mut other, _) = connect(&key);
        let ours = records(&mut client.sealer);
        let (reflected, others) = (records(&mut server.sealer), records(&mut other.sealer));
        let stream = choose(&ours, &reflected, &others);
        let opened: Vec<_> = stream.iter().map(|record| open(&mut server.opener, record)).collect();
        let good = opened.iter().take_while(|opened| opened.is_ok()).count();
        assert!(opened[good..].iter().all(|opened| *opened == Err(RecordError::Forged)), "{opened:?}");
        good
    };
    assert_eq!(try_all(&|ours, _, _| ours.to_vec()), 3);
    assert_eq!(try_all(&|ours, _, _| vec![ours[1].clone(), ours[0].clone()]), 0, "reordered");
    assert_eq!(try_all(&|ours, _, _| vec![ours[0].clone(), ours[0].clone()]), 1, "repeated");
    assert_eq!(try_all(&|ours, _, _| vec![ours[0].clone(), ours[2].clone()]), 1, "left out");
    assert_eq!(try_all(&|_, reflected, _| reflected.to_vec()), 0, "sent back");
    assert_eq!(
        try_all(&|ours, _, others| vec![ours[0].clone(), others[1].clone()]),
        1,
        "of another connection"
    );
    assert_eq!(try_all(&|_, _, others| others.to_vec()), 0, "of another connection");
}

/// A length beyond a record's is refused before anything is awaited; a kind that is not known, although it verifies.
#[test]
fn impossible_headers() {
    let mut opener = Opener::new(&[7; 32]);
    assert_eq!(opener.open(&mut [0xed, 0xff, 0, 0]), Err(RecordError::TooLong(0xffed)));
    assert_eq!(opener.missing(&[0xed, 0xff, 0, 0]), 0);
    // The first record, before which nobody knows who it is, is short.
    assert_eq!(Opener::new(&[7; 32]).open(&mut [0xed, 0x0f, 0, 0]), Err(RecordError::TooLong(4077)));
    let (mut sealer, mut opener) = (Sealer::new(&[7; 32]), Opener::new(&[7; 32]));
    assert_eq!(opener.open(&mut [0xec, 0x0f, 0, 0]), Ok(None));
    let mut first = seal(&mut sealer, &[1; 5000]);
    assert_eq!(opener.open(&mut first).unwrap().unwrap().bytes, 4096);
    assert_eq!(opener.open(&mut [0xec, 0xff, 0, 0]), Ok(None));
}
