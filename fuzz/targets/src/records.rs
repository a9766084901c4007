//! The log's entries: any bytes as bodies of records, as records, and as the headers of segments and the manifest.

use bytes::BytesMut;
use ringpost_broker::log::{
    Kind, Record, Seal, Sequence,
    manifest::Manifest,
    record::{encode, read_back},
    segment::SegmentHeader,
};

use crate::choices::Choices;

/// Highest number of a kind that there could be, and some that there is none of.
const KINDS: u64 = 16;
const SEAL: Seal = Seal { salt: 0x5a17, stamp: [1, 2, 3, 4, 5, 6] };

/// Reads bytes as everything that a log is made of. The first two say what kind of record, and which byte of it is changed.
///
/// What is read is written so that it is read as the same; and of a record that was written, each changed byte is seen.
///
/// # Panics
/// If something of that does not hold.
pub fn records(input: &[u8]) {
    let mut choices = Choices::new(input);
    let kind = choices.below(KINDS) as u8;
    let (place, change) = (choices.below(1 << 16) as usize, 1 + choices.below(255) as u8);
    let bytes = choices.rest();
    assert!(read_back(bytes, &SEAL, Sequence(1)).is_err(), "nobody guesses a checksum that nobody computed");
    if let Ok(header) = SegmentHeader::decode(bytes) {
        assert_eq!(
            header.encode(),
            bytes[..header.encode().len()],
            "a segment's header is written as it was"
        );
    }
    if let Ok(manifest) = Manifest::decode(bytes) {
        assert_eq!(manifest.encode(), bytes, "a manifest is written as it was");
    }
    let Some(kind) = Kind::from_number(kind) else { return };
    let Ok(record) = Record::decode(kind, bytes) else { return };
    assert_eq!((record.kind(), record.body_bytes()), (kind, bytes.len()));
    let mut written = BytesMut::new();
    let length = encode(&mut written, &SEAL, Sequence(7), &record);
    assert_eq!(length, written.len());
    match read_back(&written, &SEAL, Sequence(7)) {
        Ok((header, body)) => {
            assert_eq!(header.record_bytes(), length as u64);
            assert_eq!(body.len(), bytes.len());
            assert_eq!(Record::decode(kind, body).as_ref(), Ok(&record));
        }
        Err(flaw) => panic!("just written, and {flaw}"),
    }
    written[place % length] ^= change;
    assert!(read_back(&written, &SEAL, Sequence(7)).is_err(), "byte {} was changed", place % length);
}
