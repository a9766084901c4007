//! Keeping the log short: what lives in a segment that is mostly dead is written anew, so that the segment can go.

use std::collections::BTreeMap;

use bytes::BytesMut;

use super::{Journal, Payload, readback::Reader};
use crate::{
    Broker,
    log::{Location, Record, SegmentNumber, body},
    slab::Key,
    state::{Request, RequestState},
};

/// Records that are written anew in one step, beside the traffic.
const STEP: usize = 256;
/// Bytes of payloads that are read back for that in one step.
const STEP_BYTES: usize = 4 << 20;

/// Which requests have records in which segment. They may be done meanwhile.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    by_segment: BTreeMap<SegmentNumber, Vec<Key<Request>>>,
}

impl Tenants {
    pub(super) fn moved_in(&mut self, segment: SegmentNumber, request: Key<Request>) {
        self.by_segment.entry(segment).or_default().push(request);
    }

    /// Forgets the segments that are gone.
    fn forget_until(&mut self, exists: impl Fn(SegmentNumber) -> bool) {
        while let Some(oldest) = self.by_segment.first_entry().filter(|oldest| !exists(*oldest.key())) {
            oldest.remove();
        }
    }

    fn some_of(&mut self, segment: SegmentNumber) -> Vec<Key<Request>> {
        let Some(tenants) = self.by_segment.get_mut(&segment) else { return Vec::new() };
        tenants.split_off(tenants.len().saturating_sub(STEP))
    }
}

impl Broker {
    /// Writes some of what keeps the oldest segment anew, if the log asks for that.
    pub(super) fn compact(&mut self) {
        let Some(journal) = &mut self.journal else { return };
        let writer = &journal.writer;
        journal.tenants.forget_until(|segment| writer.seal(segment).is_some());
        let Some(segment) = journal.writer.compaction().filter(|_| !journal.reads.compacts()) else { return };
        let (mut absent, mut absent_bytes) = (Vec::new(), 0);
        for request in journal.tenants.some_of(segment) {
            match self.payload_needed(request, segment) {
                // It comes back here when its payload has, or is needed no more.
                Some(Payload::Stored) if self.durable(request).is_some_and(|durable| durable.stays) => {}
                Some(Payload::Stored) if absent_bytes < STEP_BYTES => {
                    absent_bytes += self.requests.get(request).map_or(0, |it| it.content_bytes as usize);
                    absent.push(request);
                }
                // Too many at once, or on its way already: later.
                Some(Payload::Stored | Payload::Reading) => {
                    if let Some(journal) = &mut self.journal {
                        journal.tenants.moved_in(segment, request);
                    }
                }
                Some(Payload::New | Payload::Held | Payload::None) | None => {
                    self.move_records(request, segment)
                }
            }
        }
        // As they were written, so that they are read in few pieces.
        absent.sort_unstable_by_key(|key| {
            self.durable(*key).and_then(|it| it.places.request).map(|it| it.offset)
        });
        self.read_for(&absent, Reader::Compaction);
    }

    /// Where the payload is of which a copy is to be written, if any is.
    fn payload_needed(&self, key: Key<Request>, segment: SegmentNumber) -> Option<Payload> {
        #[cfg(feature = "planted-bugs")]
        if self.config.is_planted(crate::PlantedBug::MovedUnread) {
            return None;
        }
        let durable = self.durable(key)?;
        durable.places.request.filter(|place| place.segment == segment).map(|_| durable.payload)
    }

    /// What was left where it is can be copied forward now.
    pub(super) fn may_move_again(&mut self, key: Key<Request>, place: Option<Location>) {
        if let (Some(journal), Some(place)) = (&mut self.journal, place) {
            journal.moved_in(place, key);
        }
    }

    pub(super) fn move_records(&mut self, key: Key<Request>, segment: SegmentNumber) {
        // A copy is made of what is in memory: of what is not, there must be none.
        if self.payload_needed(key, segment).is_some_and(Payload::is_absent) {
            return;
        }
        let (Some(journal), Some(request)) = (&mut self.journal, self.requests.get(key)) else { return };
        let Some(kept) = request.kept.and_then(|kept| self.kept.get_mut(kept)) else { return };
        let Some(durable) = kept.durable.as_deref_mut() else { return };
        let is_in = |place: Option<Location>| place.filter(|place| place.segment == segment);
        let mut places = std::mem::take(&mut durable.places);
        let decided = matches!(request.state, RequestState::Decided);
        if let Some(place) = is_in(places.request) {
            // Of the request's own content little is needed any more once its outcome is there.
            let content = durable.asked.as_deref().filter(|_| decided).unwrap_or(&kept.content);
            let record = super::journal::request_record(request, durable, &kept.tag, content);
            places.request = journal.append_moved(place, &record, key);
        }
        let mut later = places.later();
        if let Some(place) = is_in(later.delivered) {
            let handler = match &request.state {
                RequestState::Delivered(delivery) => self.deliveries.get(*delivery).map(|it| (*delivery, it)),
                _ => None,
            };
            let session = handler
                .and_then(|(_, delivery)| self.handlers.get(delivery.handler))
                .and_then(|handler| self.connections.get(handler.conn.0 as usize)?.as_ref()?.session)
                .and_then(|session| self.sessions.get(session))
                .filter(|session| session.outlives);
            let (boot, delivery, session, attempt) = match (&durable.former, handler) {
                // The attempt that waits for its handler is not counted before that comes back.
                (Some(former), _) => (former.boot, former.delivery, &former.session[..], request.attempt + 1),
                (None, Some((delivery, _))) => {
                    let session = session.map_or(&[][..], |session| &session.name);
                    (self.config.boot, delivery.raw(), session, request.attempt)
                }
                (None, None) => (self.config.boot, 0, &[][..], request.attempt),
            };
            let record = Record::Delivered(body::Delivered {
                count: request.count,
                boot,
                delivery,
                wall_ms: super::journal::delivered_ms(request, self.now.wall_ms),
                attempt,
                session,
            });
            later.delivered = journal.append_moved(place, &record, key);
        }
        let outcome = super::journal::reply_record(request, durable, &kept.content, self.now.wall_ms);
        if let Some(place) = is_in(later.reply)
            && let Some(record) = outcome.or_else(|| super::journal::failure_record(request, durable))
        {
            later.reply = journal.append_moved(place, &record, key);
        }
        if let Some(place) = is_in(later.claimed) {
            let record = Record::Claimed(body::Claimed { count: request.count });
            later.claimed = journal.append_moved(place, &record, key);
        }
        if later.is_some() {
            *places.later_mut() = later;
        }
        durable.places = places;
    }
}

impl Journal {
    fn append_moved(&mut self, from: Location, record: &Record<'_>, key: Key<Request>) -> Option<Location> {
        let mut body = BytesMut::with_capacity(record.body_bytes());
        record.encode_body(&mut body);
        let moved = Record::Moved(body::Moved { sequence: from.sequence, kind: record.kind(), body: &body });
        // A log that takes nothing more has no copy: the original lives on, and keeps its segment.
        let Some(to) = self.append_for(key, &moved) else { return Some(from) };
        self.writer.died(from);
        Some(to)
    }
}
