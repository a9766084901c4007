//! What the records of each kind carry. docs/STORAGE.md has the same as a table.
//!
//! Texts and blobs are bytes, borrowed from the buffer that the record was read into: whether a name is well formed was
//! decided when the request was accepted, and a log must not refuse later what was accepted once.

use bytes::{BufMut, BytesMut};

use super::{
    Sequence,
    fields::{Fields, WrongLength, put_blob, put_text},
    record::{Kind, RECORD_HEADER_BYTES, record_bytes},
};

/// A server begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// The boot's id.
    pub boot: u64,
    /// Milliseconds since the Unix epoch.
    pub wall_ms: u64,
}

/// A durable request or send was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// Names the request in all later records; never comes again in a log.
    pub count: u64,
    /// Its number in its session.
    pub number: u64,
    /// Which process of that session made it; 0 in JSON.
    pub instance: u64,
    /// The count of the earlier request under the same idempotency key that it waits for; 0 if it is the first.
    pub joins: u64,
    /// When it was received, in milliseconds since the Unix epoch.
    pub received_ms: u64,
    /// When its ttl ends, in milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// How many attempts it has.
    pub max_attempts: u8,
    /// The wire's flags of the request.
    pub flags: u8,
    /// Which dialect it came in.
    pub dialect: u8,
    /// The requester's session.
    pub session: &'a [u8],
    /// What it is addressed to.
    pub action: &'a [u8],
    /// JSON's `clientId`, as written.
    pub tag: &'a [u8],
    /// The user's idempotency key, or nothing.
    pub idempotency_key: &'a [u8],
    /// JSON text of the user's options, or nothing.
    pub options: &'a [u8],
    /// Headers as on the wire.
    pub headers: &'a [u8],
    /// The data.
    pub payload: &'a [u8],
}

impl Request<'_> {
    /// Bytes of the shortest record, header and padding included: so many fewer records there can be in a place, at least.
    pub const LEAST_RECORD_BYTES: u64 = record_bytes((REQUEST_FIXED + 5 * TEXT + 2 * BLOB) as u64);
}

/// An attempt began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered<'a> {
    /// Of which request.
    pub count: u64,
    /// In which boot.
    pub boot: u64,
    /// The delivery's number in that boot.
    pub delivery: u64,
    /// Milliseconds since the Unix epoch.
    pub wall_ms: u64,
    /// Which attempt, from 1.
    pub attempt: u16,
    /// The handler's session.
    pub session: &'a [u8],
}

/// The outcome of a request is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply<'a> {
    /// Of which request.
    pub count: u64,
    /// Milliseconds since the Unix epoch.
    pub wall_ms: u64,
    /// 0 for a reply, else the wire's number of the error.
    pub code: u16,
    /// Which attempt it came from.
    pub attempt: u16,
    /// From receipt to delivery, in milliseconds.
    pub delivered_after_ms: u32,
    /// From receipt to the outcome, in milliseconds.
    pub handled_after_ms: u32,
    /// The handler's own code of its error, or nothing.
    pub own_code: &'a [u8],
    /// JSON text of the handler's options, or nothing.
    pub options: &'a [u8],
    /// Headers as on the wire.
    pub headers: &'a [u8],
    /// The reply's data, or the error's message.
    pub payload: &'a [u8],
}

/// A request needs nothing more: its requester has the outcome, or wanted none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Which request.
    pub count: u64,
}

/// A request's outcome, or that there is none, is kept for its idempotency key only: its requester has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    /// Which request.
    pub count: u64,
}

/// An attempt of a send failed, and another one follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry<'a> {
    /// Which send.
    pub count: u64,
    /// When the next attempt may begin, in milliseconds since the Unix epoch.
    pub not_before_ms: u64,
    /// The attempt that failed.
    pub attempt: u16,
    /// What the handler said.
    pub message: &'a [u8],
}

/// A send was given up: it is a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dead<'a> {
    /// Which send.
    pub count: u64,
    /// Milliseconds since the Unix epoch.
    pub wall_ms: u64,
    /// The wire's number of the error.
    pub code: u16,
    /// The last attempt.
    pub attempt: u16,
    /// What the handler said, or why.
    pub message: &'a [u8],
}

/// Everything up to a sequence was synced before this record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Up to which.
    pub upto: Sequence,
}

/// A living record, copied forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved<'a> {
    /// The sequence that it had when it was first written.
    pub sequence: Sequence,
    /// Its kind: never [`Kind::Moved`], what is moved again keeps its first sequence.
    pub kind: Kind,
    /// Its body.
    pub body: &'a [u8],
}

/// Records could not be read and were given up by a repair, which put this in their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The last of those that are lost. The first has this record's own sequence.
    pub through: Sequence,
    /// How many zeros follow, so that it fills the damaged place.
    pub filler: u32,
}

/// A record's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named like what it carries")]
pub enum Record<'a> {
    Boot(Boot),
    Request(Request<'a>),
    Delivered(Delivered<'a>),
    Reply(Reply<'a>),
    Done(Done),
    Retry(Retry<'a>),
    Dead(Dead<'a>),
    Mark(Mark),
    Moved(Moved<'a>),
    Lost(Lost),
    Claimed(Claimed),
}

const TEXT: usize = 2;
const BLOB: usize = 4;
const REQUEST_FIXED: usize = 56;
const DELIVERED_FIXED: usize = 40;
const REPLY_FIXED: usize = 32;
const RETRY_FIXED: usize = 24;
const DEAD_FIXED: usize = 24;
const MOVED_FIXED: usize = 16;

/// A record that cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unwritable {
    /// A text is longer than 65,535 bytes.
    #[error("a text of {bytes} bytes does not fit into a record: at most 65535")]
    TextTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The record is larger than a segment can hold.
    #[error("a record of {bytes} bytes does not fit into a segment: at most {most}; see --segment-size")]
    TooLarge {
        /// Its length, header and padding included.
        bytes: u64,
        /// The longest record of these segments.
        most: u64,
    },
    /// The writer was stopped or has failed: nothing that is appended can become stable any more.
    #[error("the log is closed")]
    Closed,
}

impl<'a> Record<'a> {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Boot(_) => Kind::Boot,
            Self::Request(_) => Kind::Request,
            Self::Delivered(_) => Kind::Delivered,
            Self::Reply(_) => Kind::Reply,
            Self::Done(_) => Kind::Done,
            Self::Retry(_) => Kind::Retry,
            Self::Dead(_) => Kind::Dead,
            Self::Mark(_) => Kind::Mark,
            Self::Moved(_) => Kind::Moved,
            Self::Lost(_) => Kind::Lost,
            Self::Claimed(_) => Kind::Claimed,
        }
    }

    fn texts(&self) -> [&'a [u8]; 5] {
        const NONE: &[u8] = &[];
        match self {
            Self::Request(r) => [r.session, r.action, r.tag, r.idempotency_key, r.options],
            Self::Delivered(r) => [r.session, NONE, NONE, NONE, NONE],
            Self::Reply(r) => [r.own_code, r.options, NONE, NONE, NONE],
            Self::Retry(r) => [r.message, NONE, NONE, NONE, NONE],
            Self::Dead(r) => [r.message, NONE, NONE, NONE, NONE],
            Self::Boot(_)
            | Self::Done(_)
            | Self::Mark(_)
            | Self::Moved(_)
            | Self::Lost(_)
            | Self::Claimed(_) => [NONE; 5],
        }
    }

    /// The count of a request that the record brings into the log.
    pub(super) fn count(&self) -> Option<u64> {
        match self {
            Self::Request(request) => Some(request.count),
            Self::Moved(Moved { kind: Kind::Request, body, .. }) => Fields(body).u64().ok(),
            _ => None,
        }
    }

    /// Checks that the record can be written into segments whose longest record has `most` bytes.
    ///
    /// # Errors
    /// [`Unwritable`].
    pub fn check(&self, most: u64) -> Result<(), Unwritable> {
        if let Some(text) = self.texts().iter().find(|text| text.len() > u16::MAX.into()) {
            return Err(Unwritable::TextTooLong { bytes: text.len() });
        }
        let bytes = super::record::record_bytes(self.body_bytes() as u64);
        if bytes > most { Err(Unwritable::TooLarge { bytes, most }) } else { Ok(()) }
    }

    /// How long the body is in bytes.
    pub fn body_bytes(&self) -> usize {
        match self {
            Self::Boot(_) => 16,
            Self::Request(r) => {
                let texts: usize = self.texts().iter().map(|text| TEXT + text.len()).sum();
                REQUEST_FIXED + texts + BLOB + r.headers.len() + BLOB + r.payload.len()
            }
            Self::Delivered(r) => DELIVERED_FIXED + TEXT + r.session.len(),
            Self::Reply(r) => {
                let texts = TEXT + r.own_code.len() + TEXT + r.options.len();
                REPLY_FIXED + texts + BLOB + r.headers.len() + BLOB + r.payload.len()
            }
            Self::Done(_) | Self::Mark(_) | Self::Claimed(_) => 8,
            Self::Retry(r) => RETRY_FIXED + TEXT + r.message.len(),
            Self::Dead(r) => DEAD_FIXED + TEXT + r.message.len(),
            Self::Moved(r) => MOVED_FIXED + r.body.len(),
            Self::Lost(r) => 8 + r.filler as usize,
        }
    }

    pub(crate) fn encode_body(&self, out: &mut BytesMut) {
        match self {
            Self::Boot(r) => {
                out.put_u64_le(r.boot);
                out.put_u64_le(r.wall_ms);
            }
            Self::Request(r) => {
                for number in [r.count, r.number, r.instance, r.joins, r.received_ms, r.expires_ms] {
                    out.put_u64_le(number);
                }
                out.put_slice(&[r.max_attempts, r.flags, r.dialect]);
                out.put_bytes(0, 5);
                for text in self.texts() {
                    put_text(out, text);
                }
                put_blob(out, r.headers);
                put_blob(out, r.payload);
            }
            Self::Delivered(r) => {
                for number in [r.count, r.boot, r.delivery, r.wall_ms] {
                    out.put_u64_le(number);
                }
                out.put_u16_le(r.attempt);
                out.put_bytes(0, 6);
                put_text(out, r.session);
            }
            Self::Reply(r) => {
                out.put_u64_le(r.count);
                out.put_u64_le(r.wall_ms);
                out.put_u16_le(r.code);
                out.put_u16_le(r.attempt);
                out.put_u32_le(r.delivered_after_ms);
                out.put_u32_le(r.handled_after_ms);
                out.put_bytes(0, 4);
                put_text(out, r.own_code);
                put_text(out, r.options);
                put_blob(out, r.headers);
                put_blob(out, r.payload);
            }
            Self::Done(r) => out.put_u64_le(r.count),
            Self::Claimed(r) => out.put_u64_le(r.count),
            Self::Retry(r) => {
                out.put_u64_le(r.count);
                out.put_u64_le(r.not_before_ms);
                out.put_u16_le(r.attempt);
                out.put_bytes(0, 6);
                put_text(out, r.message);
            }
            Self::Dead(r) => {
                out.put_u64_le(r.count);
                out.put_u64_le(r.wall_ms);
                out.put_u16_le(r.code);
                out.put_u16_le(r.attempt);
                out.put_bytes(0, 4);
                put_text(out, r.message);
            }
            Self::Mark(r) => out.put_u64_le(r.upto.0),
            Self::Moved(r) => {
                out.put_u64_le(r.sequence.0);
                out.put_u8(r.kind as u8);
                out.put_bytes(0, 7);
                out.put_slice(r.body);
            }
            Self::Lost(r) => {
                out.put_u64_le(r.through.0);
                out.put_bytes(0, r.filler as usize);
            }
        }
    }

    /// Decodes a body, by reference. Reserved bytes are not looked at.
    ///
    /// # Errors
    /// [`BadBody`] if its length is not that of its fields.
    pub fn decode(kind: Kind, body: &'a [u8]) -> Result<Self, BadBody> {
        Self::fields(kind, body).map_err(|WrongLength| BadBody { kind, bytes: body.len() })
    }

    fn fields(kind: Kind, body: &'a [u8]) -> Result<Self, WrongLength> {
        let mut from = Fields(body);
        let record = match kind {
            Kind::Boot => Self::Boot(Boot { boot: from.u64()?, wall_ms: from.u64()? }),
            Kind::Request => {
                let [count, number, instance, joins] = [from.u64()?, from.u64()?, from.u64()?, from.u64()?];
                let [received_ms, expires_ms] = [from.u64()?, from.u64()?];
                let [max_attempts, flags, dialect] = [from.u8()?, from.u8()?, from.u8()?];
                from.skip(5)?;
                Self::Request(Request {
                    count,
                    number,
                    instance,
                    joins,
                    received_ms,
                    expires_ms,
                    max_attempts,
                    flags,
                    dialect,
                    session: from.text()?,
                    action: from.text()?,
                    tag: from.text()?,
                    idempotency_key: from.text()?,
                    options: from.text()?,
                    headers: from.blob()?,
                    payload: from.blob()?,
                })
            }
            Kind::Delivered => {
                let [count, boot, delivery, wall_ms] = [from.u64()?, from.u64()?, from.u64()?, from.u64()?];
                let attempt = from.u16()?;
                from.skip(6)?;
                Self::Delivered(Delivered { count, boot, delivery, wall_ms, attempt, session: from.text()? })
            }
            Kind::Reply => {
                let [count, wall_ms] = [from.u64()?, from.u64()?];
                let [code, attempt] = [from.u16()?, from.u16()?];
                let [delivered_after_ms, handled_after_ms] = [from.u32()?, from.u32()?];
                from.skip(4)?;
                Self::Reply(Reply {
                    count,
                    wall_ms,
                    code,
                    attempt,
                    delivered_after_ms,
                    handled_after_ms,
                    own_code: from.text()?,
                    options: from.text()?,
                    headers: from.blob()?,
                    payload: from.blob()?,
                })
            }
            Kind::Done => Self::Done(Done { count: from.u64()? }),
            Kind::Claimed => Self::Claimed(Claimed { count: from.u64()? }),
            Kind::Retry => {
                let [count, not_before_ms] = [from.u64()?, from.u64()?];
                let attempt = from.u16()?;
                from.skip(6)?;
                Self::Retry(Retry { count, not_before_ms, attempt, message: from.text()? })
            }
            Kind::Dead => {
                let [count, wall_ms] = [from.u64()?, from.u64()?];
                let [code, attempt] = [from.u16()?, from.u16()?];
                from.skip(4)?;
                Self::Dead(Dead { count, wall_ms, code, attempt, message: from.text()? })
            }
            Kind::Mark => Self::Mark(Mark { upto: Sequence(from.u64()?) }),
            Kind::Moved => {
                let sequence = Sequence(from.u64()?);
                let kind = match Kind::from_number(from.u8()?) {
                    Some(kind) if kind.lives() && kind != Kind::Moved => kind,
                    _ => return Err(WrongLength),
                };
                from.skip(7)?;
                let body = from.rest();
                Self::fields(kind, body)?;
                Self::Moved(Moved { sequence, kind, body })
            }
            Kind::Lost => {
                let through = Sequence(from.u64()?);
                Self::Lost(Lost { through, filler: from.rest().len() as u32 })
            }
        };
        from.end()?;
        Ok(record)
    }
}

/// A record whose checksum is right, but whose body is not one of its kind: not damage, but somebody else's writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a body of {bytes} bytes is none of the kind `{}`", kind.name())]
pub struct BadBody {
    /// The kind it should be.
    pub kind: Kind,
    /// Its length.
    pub bytes: usize,
}

const _: () = assert!(RECORD_HEADER_BYTES + 8 <= super::record::MIN_RECORD_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Record<'static>> {
        vec![
            Record::Boot(Boot { boot: 1, wall_ms: 2 }),
            Record::Request(Request {
                count: 1,
                number: 2,
                instance: 9,
                joins: 8,
                received_ms: 3,
                expires_ms: 4,
                max_attempts: 5,
                flags: 6,
                dialect: 1,
                session: b"s",
                action: b"action",
                tag: b"\"t\"",
                idempotency_key: b"key",
                options: b"{}",
                headers: b"hh",
                payload: b"payload",
            }),
            Record::Delivered(Delivered {
                count: 1,
                boot: 2,
                delivery: 3,
                wall_ms: 4,
                attempt: 5,
                session: b"handler",
            }),
            Record::Reply(Reply {
                count: 1,
                wall_ms: 2,
                code: 3,
                attempt: 4,
                delivered_after_ms: 5,
                handled_after_ms: 6,
                own_code: b"E_OWN",
                options: b"",
                headers: b"",
                payload: b"reply",
            }),
            Record::Done(Done { count: 1 }),
            Record::Claimed(Claimed { count: 1 }),
            Record::Retry(Retry { count: 1, not_before_ms: 2, attempt: 3, message: b"later" }),
            Record::Dead(Dead { count: 1, wall_ms: 2, code: 3, attempt: 4, message: b"no" }),
            Record::Mark(Mark { upto: Sequence(8) }),
            Record::Moved(Moved { sequence: Sequence(3), kind: Kind::Done, body: &[1, 0, 0, 0, 0, 0, 0, 0] }),
            Record::Lost(Lost { through: Sequence(9), filler: 16 }),
        ]
    }

    /// Every kind comes back as it was written; shortened or prolonged by any number of bytes, it is refused, if its kind
    /// has a fixed end.
    #[test]
    fn every_kind_comes_back() {
        for mut record in all() {
            let inner = [1_u64.to_le_bytes(), 2_u64.to_le_bytes(), [0; 8], [0; 8]].concat();
            if let Record::Moved(moved) = &mut record {
                (moved.kind, moved.body) = (Kind::Retry, &inner[..26]);
            }
            let mut body = BytesMut::new();
            record.encode_body(&mut body);
            assert_eq!(body.len(), record.body_bytes(), "{record:?}");
            assert!(body.len() >= 8);
            assert_eq!(Record::decode(record.kind(), &body), Ok(record));
            if record.kind() != Kind::Lost {
                for length in 0..body.len() {
                    assert!(
                        Record::decode(record.kind(), &body[..length]).is_err(),
                        "{record:?} at {length}"
                    );
                }
                body.put_u8(0);
                assert!(Record::decode(record.kind(), &body).is_err(), "{record:?} and a byte");
            }
        }
    }

    /// What cannot be written is refused before a byte of it is: long texts, and records longer than a segment.
    #[test]
    fn unwritable() {
        let long = vec![b'x'; 65_536];
        let retry = |message| Record::Retry(Retry { count: 1, not_before_ms: 2, attempt: 3, message });
        assert_eq!(retry(&long).check(1 << 20), Err(Unwritable::TextTooLong { bytes: 65_536 }));
        assert_eq!(retry(&long[1..]).check(1 << 20), Ok(()));
        assert_eq!(
            retry(&long[1..]).check(1 << 16),
            Err(Unwritable::TooLarge { bytes: 65_592, most: 65_536 })
        );
    }

    /// A moved record is one that can live, and is whole: nobody moves marks, or moves what was moved.
    #[test]
    fn moved_is_checked() {
        for kind in [Kind::Mark, Kind::Moved, Kind::Boot, Kind::Lost, Kind::Done] {
            let mut body = BytesMut::new();
            Record::Moved(Moved { sequence: Sequence(1), kind, body: &[0; 16] }).encode_body(&mut body);
            assert!(Record::decode(Kind::Moved, &body).is_err(), "{kind:?}");
        }
    }
}
