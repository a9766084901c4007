//! Reading payloads back from the log: what is asked of the disk, how it is checked, and what becomes of what is damaged.
//!
//! Records that lie close to each other are read in one piece. Each is checked by itself, like every record that is read; one
//! that is not what was written there is read once more, alone, and if it is still not, its request ends: its requester is told
//! [`Code::DurableUnavailable`], a send becomes a dead letter that cannot be sent again, and the driver is told the place
//! ([`Output::Unreadable`]). If it is compaction that finds so, and a handler has the request, that may yet be answered: the record
//! stays where it is, and keeps its segment. What could not be read at all says nothing about what is there: see `put_off`.
//! A segment stays as long as it is read, whatever dies in it meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringpost_protocol::{Code, Content, limits::MIN_COUNTED_BYTES};

use super::{Payload, failures::Failure, put_off::PutOff};
use crate::{
    Broker, Output, Read, ReadFault, ReadId, Unreadable,
    log::{Kind, Location, Record, Seal, SegmentNumber, Sequence, record},
    slab::Key,
    state::{Request, RequestState},
};

/// What lies between two records is read too, if it is no more than this.
const MOST_BETWEEN: u32 = 16 << 10;
/// Records are read together up to this length.
const MOST_TOGETHER: u32 = 1 << 20;

/// Who wants a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// Whoever handles it next.
    Request,
    /// An operator, who looks at it or sends it again.
    Operator,
    /// The compaction of the segment that it lies in.
    Compaction,
}

/// A read that is under way.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) segment: SegmentNumber,
    seal: Seal,
    pub(super) offset: u32,
    bytes: u32,
    pub(super) records: Vec<(Key<Request>, Location)>,
    reader: Reader,
    /// What was read before was not right.
    again: bool,
    pub(super) put_off: PutOff,
}

impl Piece {
    fn end(&self) -> u32 {
        self.offset + self.bytes
    }

    /// Takes a record in too, if it lies close behind.
    fn extend(&mut self, key: Key<Request>, place: Location) -> bool {
        let near = place.segment == self.segment
            && place.offset >= self.end()
            && place.offset - self.end() <= MOST_BETWEEN
            && place.offset + place.length - self.offset <= MOST_TOGETHER;
        if near {
            self.bytes = place.offset + place.length - self.offset;
            self.records.push((key, place));
        }
        near
    }

    /// A request's content, out of what was read.
    fn content(&self, bytes: &[u8], place: Location, count: u64) -> Result<Content, String> {
        let start = (place.offset - self.offset) as usize;
        let bytes = bytes.get(start..start + place.length as usize).ok_or("the file is too short")?;
        let (header, body) =
            record::read_back(bytes, &self.seal, place.sequence).map_err(|flaw| flaw.to_string())?;
        let kind = Kind::from_number(header.kind).ok_or("a record of an unknown kind")?;
        let decode = |kind, body| Record::decode(kind, body).map_err(|bad| bad.to_string());
        let record = match decode(kind, body)? {
            Record::Moved(moved) => decode(moved.kind, moved.body)?,
            record => record,
        };
        match record {
            Record::Request(asked) if asked.count == count => {
                Ok(Content::with_tag(asked.action, asked.tag, asked.options, asked.headers, asked.payload))
            }
            _ => Err("another request's record".to_owned()),
        }
    }
}

/// What is read, and what is to be.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    under_way: BTreeMap<ReadId, Piece>,
    /// Those that could not be tried, and will be again.
    pub(super) resting: BTreeMap<ReadId, Piece>,
    count: u64,
    /// Copies that were appended, and are not written yet.
    unwritten: Vec<(Sequence, Key<Request>)>,
}

impl Reads {
    /// Whether records are read to be copied forward.
    pub(super) fn compacts(&self) -> bool {
        self.pieces().any(|piece| piece.reader == Reader::Compaction)
    }

    fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.under_way.values().chain(self.resting.values())
    }

    /// All requests that something is read for.
    pub(crate) fn requests(&self) -> impl Iterator<Item = Key<Request>> {
        let read = self.pieces().flat_map(|piece| piece.records.iter().map(|(key, _)| *key));
        read.chain(self.unwritten.iter().map(|(_, key)| *key))
    }
}

impl Broker {
    /// Asks for the payloads of those requests that are stored, in this order.
    pub(crate) fn read_back(&mut self, requests: &[Key<Request>]) {
        self.read_for(requests, Reader::Request);
    }

    /// Asks for the payloads of those requests for an operator. They go again once that has had a turn with them.
    pub(crate) fn read_to_look(&mut self, requests: &[Key<Request>]) {
        self.read_for(requests, Reader::Operator);
    }

    pub(super) fn read_for(&mut self, requests: &[Key<Request>], reader: Reader) {
        let mut piece: Option<Piece> = None;
        for key in requests {
            // A key may stand twice in a line.
            let stored = self.durable(*key).filter(|durable| durable.payload == Payload::Stored);
            let Some(place) = stored.and_then(|durable| durable.places.request) else { continue };
            self.set_payload(*key, Payload::Reading);
            let Some(journal) = &mut self.journal else { return };
            if place.sequence > journal.writer.written() {
                journal.writer.hurry();
                journal.reads.unwritten.push((place.sequence, *key));
                continue;
            }
            if piece.as_mut().is_some_and(|piece| piece.extend(*key, place)) {
                continue;
            }
            let next = self.piece(*key, place, reader, false);
            if let Some(complete) = std::mem::replace(&mut piece, next) {
                self.ask(complete);
            }
        }
        if let Some(last) = piece {
            self.ask(last);
        }
    }

    fn piece(&mut self, key: Key<Request>, place: Location, reader: Reader, again: bool) -> Option<Piece> {
        let seal = self.journal.as_mut()?.writer.read_begins(place.segment);
        debug_assert!(seal.is_some(), "{place:?} lives, and its segment has gone");
        let (segment, offset, bytes) = (place.segment, place.offset, place.length);
        let (records, put_off) = (vec![(key, place)], PutOff::default());
        Some(Piece { segment, seal: seal?, offset, bytes, records, reader, again, put_off })
    }

    pub(super) fn ask(&mut self, piece: Piece) {
        let Some(journal) = &mut self.journal else { return };
        journal.reads.count += 1;
        let id = ReadId(journal.reads.count);
        let Piece { segment, offset, bytes, .. } = piece;
        journal.reads.under_way.insert(id, piece);
        self.outputs.push_back(Output::Read(Read { id, segment, offset, bytes }));
    }

    /// The log has got further: copies that could not be read yet now can.
    pub(super) fn read_what_is_written(&mut self) {
        let Some(journal) = self.journal.as_mut().filter(|it| !it.reads.unwritten.is_empty()) else { return };
        let written = journal.writer.written();
        let (ready, rest): (Vec<_>, Vec<_>) =
            journal.reads.unwritten.drain(..).partition(|(sequence, _)| *sequence <= written);
        journal.reads.unwritten = rest;
        let keys = ready.into_iter().map(|(_, key)| key);
        let keys: Vec<_> = keys.filter(|key| self.payload_of(*key) == Payload::Reading).collect();
        keys.iter().for_each(|key| self.set_payload(*key, Payload::Stored));
        self.read_back(&keys);
    }

    /// The disk has given what was asked for, or has not.
    pub(crate) fn read_done(&mut self, id: ReadId, result: &Result<Bytes, ReadFault>) {
        let Some(journal) = &mut self.journal else { return };
        let Some(piece) = journal.reads.under_way.remove(&id) else {
            debug_assert!(false, "{id:?} is not under way");
            return;
        };
        let result = match result {
            Err(ReadFault::Unavailable(why)) if self.is_wanted(&piece) => {
                return self.put_off(id, piece, why);
            }
            Err(ReadFault::Damaged(why) | ReadFault::Unavailable(why)) => Err(why),
            Ok(bytes) => Ok(bytes),
        };
        let mut actions = BTreeSet::new();
        for &(key, place) in &piece.records {
            let Some(request) = self.requests.get(key) else { continue };
            if self.payload_of(key) != Payload::Reading {
                // It has ended meanwhile.
                self.copy_forward(key, &piece);
                continue;
            }
            let content =
                result.map_err(Clone::clone).and_then(|bytes| piece.content(bytes, place, request.count));
            match content {
                Ok(content) => {
                    self.take_back(key, content);
                    self.copy_forward(key, &piece);
                    actions.extend(self.requests.get(key).filter(|it| it.is_queued()).map(|it| it.action));
                }
                Err(_) if !piece.again => {
                    if let Some(alone) = self.piece(key, place, piece.reader, true) {
                        self.ask(alone);
                    }
                }
                Err(why) if piece.reader == Reader::Compaction && self.may_be_answered(key) => {
                    self.leave_where_it_is(key, place, why);
                }
                Err(why) => {
                    let action = self.requests.get(key).filter(|it| it.is_queued()).map(|it| it.action);
                    self.is_unreadable(key, place, why);
                    self.copy_forward(key, &piece);
                    actions.extend(action);
                }
            }
        }
        if let Some(log) = self.log() {
            log.read_ends(piece.segment);
        }
        // Before what it was read for is used up.
        if !self.inquiries.is_empty() {
            self.go_on_with_inquiries();
        }
        for action in actions {
            self.dispatch(action);
        }
        for (key, _) in piece.records {
            self.use_payload(key, piece.reader);
        }
        self.compact();
    }

    fn copy_forward(&mut self, key: Key<Request>, piece: &Piece) {
        if piece.reader == Reader::Compaction && self.payload_of(key) != Payload::Reading {
            self.move_records(key, piece.segment);
        }
    }

    /// A payload is in memory again.
    fn take_back(&mut self, key: Key<Request>, mut content: Content) {
        self.counters.read_back += 1;
        content.count_large(MIN_COUNTED_BYTES, &self.large);
        let Some(kept) = self.requests.get(key).and_then(|request| self.kept.get_mut(request.kept?)) else {
            return;
        };
        self.kept_bytes += content.uncounted_len();
        self.kept_bytes -= kept.content.uncounted_len();
        kept.content = content;
        self.set_payload(key, Payload::Held);
    }

    /// A payload has been used for what it was read for: it need not stay.
    fn use_payload(&mut self, key: Key<Request>, reader: Reader) {
        if self.payload_of(key) != Payload::Held {
            return;
        }
        let waits = self.requests.get(key).is_some_and(Request::is_queued);
        if reader != Reader::Request || !waits {
            self.drop_payload_if_over(key);
        }
    }

    /// Whether a handler has a request, as far as is known.
    fn may_be_answered(&self, key: Key<Request>) -> bool {
        let held = self.requests.get(key).is_some_and(|it| matches!(it.state, RequestState::Delivered(_)));
        held || self.durable(key).is_some_and(|durable| durable.former.is_some())
    }

    /// A damaged record that was to be copied forward belongs to a request that a handler may yet answer, and then nobody misses
    /// what is damaged. If it is needed after all, it is read again, and found damaged again.
    #[cold]
    fn leave_where_it_is(&mut self, key: Key<Request>, place: Location, why: String) {
        self.counters.left_damaged += 1;
        let Some(count) = self.requests.get(key).map(|request| request.count) else { return };
        let (segment, offset) = (place.segment, place.offset);
        self.outputs.push_back(Output::Unreadable(Unreadable { count, segment, offset, why, ended: false }));
        if let Some(durable) = self.durable_mut(key) {
            durable.stays = true;
        }
        self.set_payload(key, Payload::Stored);
    }

    /// What was accepted is not there any more as it was: that is said to all whom it concerns, and never passed over.
    #[cold]
    fn is_unreadable(&mut self, key: Key<Request>, place: Location, why: String) {
        let Some(request) = self.requests.get(key) else { return };
        let (count, dead) = (request.count, matches!(request.state, RequestState::Dead));
        let (attempt, at_ms) = (request.attempt, self.now.wall_ms);
        self.counters.unreadable += 1;
        let message = format!(
            "what was sent cannot be read back from the server's disk: {why} (segment {}, offset {})",
            place.segment, place.offset
        );
        let (segment, offset) = (place.segment, place.offset);
        self.outputs.push_back(Output::Unreadable(Unreadable { count, segment, offset, why, ended: true }));
        self.set_payload(key, Payload::None);
        if !dead {
            self.call_back(key);
            return self.end_with_error(key, Code::DurableUnavailable, message);
        }
        if let Some(durable) = self.durable_mut(key) {
            let dead = Some(Code::DurableUnavailable);
            durable.failure = Some(Box::new(Failure { message: message.into(), at_ms, attempt, dead }));
        }
        self.log_failure(key);
        self.hurry_log();
    }
}
