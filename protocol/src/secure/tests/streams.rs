//! Streams in records: however they are cut, and however long they last.

use std::collections::HashSet;

use bytes::{Buf, BytesMut};
use proptest::prelude::*;

use super::{
    super::record::{MAX_FIRST_BYTES, MAX_PLAINTEXT_BYTES, OVERHEAD_BYTES, sealed_bytes},
    *,
};

/// What is read off plaintext, piece by piece.
fn read(incoming: &mut Incoming, buffer: &mut BytesMut, piece: usize, into: &mut Vec<u8>) {
    let rest = incoming.part(buffer);
    while buffer.len() >= piece {
        into.extend_from_slice(&buffer[..piece]);
        buffer.advance(piece);
    }
    incoming.rejoin(buffer, rest);
}

proptest! {
    /// However a stream is cut, into records by the one side and into reads by the network, the other side reads the same
    /// bytes; what is not read yet stays.
    #[test]
    fn any_cuts(
        texts in prop::collection::vec((0usize..3, 0usize..3000), 1..20),
        cuts in prop::collection::vec(1usize..5000, 1..20),
        piece in 1usize..200,
        rekey in 1u32..9,
    ) {
        let key = [3; 32];
        let (mut sealer, opener) = (Sealer::rekeying(&key, rekey), Opener::rekeying(&key, rekey));
        let (mut plaintext, mut records) = (Vec::new(), Vec::new());
        for (scale, length) in texts {
            let text: Vec<u8> = (0..length << (3 * scale)).map(|at| (at * 7 + length) as u8).collect();
            let before = records.len();
            sealer.seal(&text, &mut records);
            let more = records.len() - before - sealed_bytes(text.len());
            prop_assert!(more == 0 || (before == 0 && more == OVERHEAD_BYTES), "{} more", more);
            plaintext.extend_from_slice(&text);
        }
        sealer.end(&mut records);
        let (mut incoming, mut buffer) = (Incoming::new(opener), BytesMut::new());
        let (mut heard, mut sent, mut cuts) = (Vec::new(), 0, cuts.iter().cycle());
        while sent < records.len() {
            let end = records.len().min(sent + cuts.next().unwrap());
            buffer.extend_from_slice(&records[sent..end]);
            sent = end;
            incoming.open(&mut buffer).unwrap();
            read(&mut incoming, &mut buffer, piece, &mut heard);
            prop_assert!(buffer.len() < piece + MAX_RECORD_BYTES);
            let missing = incoming.missing(&buffer, 0);
            prop_assert!(missing <= records.len() - sent, "{} of {}", missing, records.len() - sent);
        }
        read(&mut incoming, &mut buffer, 1, &mut heard);
        prop_assert!(heard == plaintext && buffer.is_empty() && incoming.has_ended());
    }

    /// No key is used with the same nonce twice, in either direction, over connections and changes of keys: of zeros, a record
    /// shows the key's stream, and none of them is there twice.
    #[test]
    fn nonces_never_repeat(connections in prop::collection::vec((1u32..5, 1usize..40), 1..6)) {
        let key = SecureKey::from_bytes([5; 32]);
        let mut streams = HashSet::new();
        for (rekey, records) in connections {
            // As the handshake does it, but with keys that change sooner.
            let (client, server) = connect(&key);
            for side in [client, server] {
                let mut sealer = side.sealer;
                for _ in 0..records {
                    prop_assert!(streams.insert(seal(&mut sealer, &[0; 32])[4..36].to_vec()));
                }
                let mut of_key = [0; 32];
                of_key.copy_from_slice(&seal(&mut sealer, &[0; 32])[4..36]);
                let mut sealer = Sealer::rekeying(&of_key, rekey);
                for _ in 0..records {
                    prop_assert!(streams.insert(seal(&mut sealer, &[0; 32])[4..36].to_vec()));
                }
            }
        }
    }
}

/// What is larger than a record is read in one piece, and its length is known as soon as a frame's would be.
#[test]
fn larger_than_a_record() {
    let (mut sealer, opener) = (Sealer::new(&[1; 32]), Opener::new(&[1; 32]));
    let text: Vec<u8> = (0..3 * MAX_PLAINTEXT_BYTES + 5).map(|at| at as u8).collect();
    let mut records = Vec::new();
    sealer.seal(&text, &mut records);
    let (mut incoming, mut buffer) = (Incoming::new(opener), BytesMut::from(&records[..70_000]));
    incoming.open(&mut buffer).unwrap();
    let here = MAX_FIRST_BYTES + MAX_PLAINTEXT_BYTES;
    assert_eq!(incoming.plaintext(&buffer), &text[..here]);
    assert_eq!(incoming.missing(&buffer, text.len() - here), records.len() - 70_000);
    buffer.extend_from_slice(&records[70_000..]);
    incoming.open(&mut buffer).unwrap();
    assert_eq!(incoming.plaintext(&buffer), text);
}

/// What came before a broken record can be read; behind it there is only the error.
#[test]
fn good_before_bad() {
    let (mut sealer, opener) = (Sealer::new(&[1; 32]), Opener::new(&[1; 32]));
    let mut records = Vec::new();
    sealer.seal(b"good", &mut records);
    records.extend([4, 0, 0, 0].into_iter().chain([0; 20]));
    let (mut incoming, mut buffer) = (Incoming::new(opener), BytesMut::from(&records[..]));
    assert_eq!(incoming.open(&mut buffer), Err(RecordError::Forged));
    assert_eq!(incoming.plaintext(&buffer), b"good");
    assert!(incoming.has_verified());
    assert_eq!(incoming.open(&mut buffer), Err(RecordError::Forged));
    assert_eq!(incoming.plaintext(&buffer), b"good");
}

/// On the steady path one allocation serves all records.
#[test]
fn reuses_the_buffer() {
    let (mut sealer, opener) = (Sealer::new(&[1; 32]), Opener::new(&[1; 32]));
    let (mut incoming, mut buffer) = (Incoming::new(opener), BytesMut::with_capacity(4096));
    let (allocation, mut records) = (buffer.as_ptr() as usize, Vec::with_capacity(4096));
    for _ in 0..1000 {
        records.clear();
        sealer.seal(&[7; 1000], &mut records);
        buffer.reserve(records.len());
        assert!((allocation..allocation + 4096).contains(&(buffer.as_ptr() as usize)));
        buffer.extend_from_slice(&records);
        incoming.open(&mut buffer).unwrap();
        let mut heard = Vec::new();
        read(&mut incoming, &mut buffer, 1000, &mut heard);
        assert!(heard == [7; 1000] && records.capacity() == 4096);
    }
}
