//! What is to be done next, and what follows from its having been done.

use bytes::{Bytes, BytesMut};
use ringpost_protocol::time::{Now, Time};

use super::{
    Action, Batch, FIRST_ZERO_BYTES, Fault, Full, GATHER_BYTES, GATHER_FOR, Housework, KEPT_BUFFER_BYTES,
    MARK_AFTER, Next, Operation, OperationId, RETRY_SPACE_AFTER, SPARE_BUFFERS, SYNCED_WRITE_BYTES,
    SyncPolicy, Synced, Taker, Write, Writer, Written, ZERO_BYTES,
};
use crate::log::{
    Record, Sequence,
    body::Mark,
    manifest::Manifest,
    record::{MIN_RECORD_BYTES, RECORD_HEADER_BYTES},
    segment::SEGMENT_HEADER_BYTES,
};

/// A mark's whole record.
const MARK_BYTES: u32 = MIN_RECORD_BYTES as u32;
const _: () = assert!(RECORD_HEADER_BYTES + size_of::<Sequence>() == MARK_BYTES as usize);

impl Writer {
    /// The next thing to do, if there is one now. Called until it gives `None`, after appends, completions, and at
    /// [`Writer::next_deadline`].
    pub fn poll(&mut self, now: Now) -> Option<Operation> {
        self.now = now;
        if self.failed.is_some() {
            return None;
        }
        if !self.batches.is_empty() {
            self.gathers_since.get_or_insert(now.mono);
        }
        let id = OperationId(self.next_operation);
        let action = self
            .next_write(id)
            .or_else(|| self.next_sync(id))
            .or_else(|| self.next_manifest(id))
            .or_else(|| self.next_housework(id));
        let Some(action) = action else {
            // What is to be tried again waits for something else that is under way: look later, do not spin.
            if let Some(full) = self.full.as_mut().filter(|full| full.retry_at <= now.mono) {
                full.retry_at = now.mono + RETRY_SPACE_AFTER;
            }
            return None;
        };
        self.next_operation += 1;
        Some(Operation { id, action })
    }

    /// When [`Writer::poll`] has something to do, though nothing else happens.
    pub fn next_deadline(&self) -> Option<Time> {
        if self.failed.is_some() {
            return None;
        }
        let mark = (self.mark_is_due() && self.is_idle()).then(|| self.active_at + MARK_AFTER);
        let free = self.write.is_none() && self.blocked_write.is_none() && !self.is_switching();
        let gathered = self.gathers_since.filter(|_| free).map(|since| since + GATHER_FOR);
        let sync = match (self.config.sync, self.dirty_since) {
            (SyncPolicy::Interval(interval), Some(since)) if self.sync.is_none() => Some(since + interval),
            _ => None,
        };
        let space = self.full.map(|full| full.retry_at);
        [mark, gathered, sync, space].into_iter().flatten().min()
    }

    /// Whether the front batch belongs to the segment behind the open one: all that goes into the open one was written, or
    /// is being written.
    fn is_switching(&self) -> bool {
        self.batches.front().is_some_and(|batch| batch.segment > self.open)
    }

    fn is_idle(&self) -> bool {
        self.batches.is_empty() && self.write.is_none() && self.blocked_write.is_none() && self.sync.is_none()
    }

    /// Whether what takes space on the disk has to wait, because there was none a moment ago.
    fn is_blocked(&self) -> bool {
        self.full.is_some_and(|full| self.now.mono < full.retry_at)
    }

    /// Whether there are stable records that no mark covers.
    pub(super) fn mark_is_due(&self) -> bool {
        self.stable.min(self.last_record) > self.marked
    }

    fn next_write(&mut self, id: OperationId) -> Option<Action> {
        if self.write.is_some() {
            return None;
        }
        let write = if self.blocked_write.is_some() {
            if self.is_blocked() {
                return None;
            }
            self.blocked_write.take()?
        } else if self.is_switching() {
            self.header_write()?
        } else {
            self.batch_write()?
        };
        let Write { segment, offset, synced, .. } = write;
        let bytes = write.bytes.clone();
        self.active_at = self.now.mono;
        self.write = Some((id, write));
        Some(Action::Write { segment, offset, bytes, synced })
    }

    /// The next segment's header, once nothing more is written to the open one and all of that is stable.
    fn header_write(&mut self) -> Option<Write> {
        let zeroing = matches!(self.housework, Some((_, Housework::Zero | Housework::SyncZeros)));
        // The first segment cannot be zeroed while another one fills.
        let first = !self.own && !self.stopping && !self.is_full();
        let zeroed_enough = !first || self.zeroed >= self.zero_target();
        let ready = self.next == Next::Prepared && !zeroing && zeroed_enough && self.sync.is_none();
        if !ready || self.stable < self.written {
            return None;
        }
        let header = self.space.header_mut(self.open.next())?;
        // Not before: what was appended before the first poll was appended at no known time.
        header.wall_ms = self.now.wall_ms;
        let (segment, bytes) = (header.number, Bytes::copy_from_slice(&header.encode()));
        self.next = Next::Claimed;
        Some(Write { segment, offset: 0, bytes, what: Written::Header, synced: false })
    }

    /// All that has gathered for the open segment, if it is time to write it, and a mark behind it.
    fn batch_write(&mut self) -> Option<Write> {
        let idle_long_enough = self.now.mono >= self.active_at + MARK_AFTER || self.stopping;
        let alone = self.is_idle() && idle_long_enough;
        let due = self.batch_is_due();
        // Sequences are given out in order: nothing may have gathered for another segment.
        if self.mark_is_due() && self.batches.len() <= 1 && (alone || due) {
            self.append_mark();
        } else if !due {
            return None;
        }
        let batch = self.batches.pop_front()?;
        self.gathers_since = None;
        Some(self.write_of(batch))
    }

    /// Whether somebody waits for what has gathered, or it has gathered for long enough.
    fn batch_is_due(&self) -> bool {
        let Some(front) = self.batches.front() else { return false };
        let long_enough = self.gathers_since.is_some_and(|since| self.now.mono >= since + GATHER_FOR);
        let complete = self.batches.len() > 1 || front.bytes.len() >= GATHER_BYTES;
        self.awaited > self.written || complete || long_enough || self.stopping
    }

    fn write_of(&mut self, batch: Batch) -> Write {
        let Batch { segment, mut offset, mut bytes, last, last_record } = batch;
        let what = Written::Records { last, last_record };
        // What such a write makes stable are its own bytes: before them, all must be so.
        let mark = self.lone_mark.take();
        let all_but_mark = self.stable == self.written || mark.is_some();
        let may = self.config.sync == SyncPolicy::Always && self.sync.is_none() && last_record.is_some();
        let worth = std::mem::take(&mut self.waiters) <= 1 && bytes.len() <= SYNCED_WRITE_BYTES;
        let synced = may && all_but_mark && worth;
        if let Some((at, mark)) = mark.filter(|_| synced) {
            assert!(
                at as usize + mark.len() == offset as usize,
                "a mark alone is followed by what comes next"
            );
            let mut with_mark = self.spare.pop().unwrap_or_default();
            with_mark.extend_from_slice(&mark);
            with_mark.extend_from_slice(&bytes);
            bytes.clear();
            self.spare.push(std::mem::replace(&mut bytes, with_mark));
            offset = at;
        }
        Write { segment, offset, bytes: bytes.freeze(), what, synced }
    }

    /// Appends a mark, unless the open segment is full or nothing was written to it: the switch to the next one will say the
    /// same.
    fn append_mark(&mut self) {
        let open_is_newest = self.space.newest().is_some_and(|newest| newest.header.number == self.open);
        if self.begun && open_is_newest && self.space.rest_of_newest() >= MARK_BYTES {
            self.push(&Record::Mark(Mark { upto: self.stable }));
        }
        self.marked = self.stable;
    }

    fn next_sync(&mut self, id: OperationId) -> Option<Action> {
        // What was lost is told once for each file: were two of its syncs under way, nobody could say to which.
        if self.sync.is_some() || self.is_writing_synced() {
            return None;
        }
        let (segment, what) = if self.next == Next::HeaderWritten {
            (self.open.next(), Synced::Header)
        } else if self.stable < self.written && self.wants_sync() {
            (self.open, Synced::Records { upto: self.written })
        } else {
            return None;
        };
        self.sync = Some((id, what));
        self.dirty_since = None;
        Some(Action::Sync { segment })
    }

    /// Whether a write is under way, or to be tried again, that makes its bytes stable by itself.
    pub(super) fn is_writing_synced(&self) -> bool {
        let under_way = self.write.iter().map(|(_, write)| write);
        under_way.chain(&self.blocked_write).any(|write| write.synced)
    }

    /// Whether what was written should be made stable now. Something was, since the last sync.
    fn wants_sync(&self) -> bool {
        let by_policy = match self.config.sync {
            SyncPolicy::Always => self.dirty > self.stable,
            SyncPolicy::Interval(interval) => {
                self.dirty_since.is_some_and(|since| self.now.mono >= since + interval)
            }
            SyncPolicy::Never => false,
        };
        let switching = self.is_switching() && self.write.is_none() && self.blocked_write.is_none();
        let removal = self.space.removal_waits_for(self.open).is_some_and(|upto| upto > self.stable);
        by_policy || switching || removal || self.stopping
    }

    fn next_manifest(&mut self, id: OperationId) -> Option<Action> {
        if self.replacing.is_some() || self.is_blocked() {
            return None;
        }
        let manifest = if self.next == Next::HeaderSynced {
            Manifest { newest: self.open.next(), ..self.manifest }
        } else {
            let oldest = self.space.oldest_needed(self.open, self.stable)?;
            Manifest { oldest, ..self.manifest }
        };
        self.replacing = Some((id, manifest));
        Some(Action::ReplaceManifest { bytes: Bytes::copy_from_slice(&manifest.encode()) })
    }

    fn next_housework(&mut self, id: OperationId) -> Option<Action> {
        if self.housework.is_some() {
            return None;
        }
        let (segment, file_bytes) = (self.open.next(), self.config.segment_bytes);
        let (what, action) = if let Some(segment) = self.removed.pop_front() {
            (Housework::Remove, Action::Remove { segment })
        } else if self.next == Next::Made {
            (Housework::SyncDirectory, Action::SyncDirectory)
        } else if self.zeros_unsynced && self.next == Next::Prepared {
            (Housework::SyncZeros, Action::Sync { segment })
        } else if self.is_blocked() || (self.stopping && !self.is_switching()) {
            return None;
        } else if self.next == Next::Absent {
            (Housework::Prepare, Action::Prepare { segment, bytes: file_bytes })
        } else if self.next == Next::Prepared && !self.stopping && self.zeroed < self.zero_target() {
            let (offset, bytes) = (self.zeroed, (file_bytes - self.zeroed).min(ZERO_BYTES));
            (Housework::Zero, Action::Zero { segment, offset, bytes })
        } else {
            return None;
        };
        self.housework = Some((id, what));
        Some(action)
    }

    /// How much of the next segment should be zeros by now: as large a part as is used of the open one, and some more.
    fn zero_target(&self) -> u32 {
        let file_bytes = self.config.segment_bytes;
        match self.space.find(self.open) {
            Some(open) if self.own => open.end.saturating_add(2 * ZERO_BYTES).min(file_bytes),
            _ => file_bytes.min(FIRST_ZERO_BYTES),
        }
    }

    /// Takes the end of an operation.
    ///
    /// After any failure but a full disk the writer has failed for good: what was not stable by then is never called so.
    pub fn done(&mut self, id: OperationId, result: Result<(), Fault>) {
        if self.failed.is_some() {
            return;
        }
        if let Some((_, write)) = self.write.take_if(|(of, _)| *of == id) {
            self.write_done(write, result);
        } else if let Some((_, what)) = self.sync.take_if(|(of, _)| *of == id) {
            self.sync_done(what, result);
        } else if let Some((_, manifest)) = self.replacing.take_if(|(of, _)| *of == id) {
            self.manifest_done(manifest, result);
        } else if let Some((_, what)) = self.housework.take_if(|(of, _)| *of == id) {
            self.housework_done(what, result);
        } else {
            debug_assert!(false, "{id:?} is not under way");
        }
    }

    /// Notes that the disk is full, or that the log has failed.
    fn take_fault(&mut self, what: Taker, doing: &str, fault: &Fault) {
        match fault {
            Fault::NoSpace => {
                self.full = Some(Full { what, retry_at: self.now.mono + RETRY_SPACE_AFTER });
            }
            Fault::Disk(why) => self.failed = Some(format!("{doing}: {why}")),
        }
    }

    fn has_taken_space(&mut self, what: Taker) {
        self.full = self.full.filter(|full| full.what != what);
    }

    fn write_done(&mut self, write: Write, result: Result<(), Fault>) {
        if let Err(fault) = result {
            self.take_fault(Taker::Write, "writing to a segment", &fault);
            self.blocked_write = Some(write);
            return;
        }
        self.active_at = self.now.mono;
        self.has_taken_space(Taker::Write);
        let Write { offset, bytes, what, synced, .. } = write;
        match what {
            Written::Header => self.next = Next::HeaderWritten,
            Written::Records { last, last_record } => {
                if last_record.is_none() && self.stable == self.written {
                    self.lone_mark = Some((offset, bytes.clone()));
                }
                self.written = last;
                if synced {
                    self.stable = last;
                }
                if let Some(record) = last_record {
                    self.dirty = record;
                    self.dirty_since.get_or_insert(self.now.mono);
                }
            }
        }
        self.keep_buffer(bytes);
    }

    /// Keeps a buffer for a later batch, if the driver has dropped its part of it.
    fn keep_buffer(&mut self, bytes: Bytes) {
        if self.spare.len() < SPARE_BUFFERS
            && let Ok(mut buffer) = bytes.try_into_mut()
        {
            buffer.clear();
            let kept = if buffer.capacity() <= KEPT_BUFFER_BYTES { buffer } else { BytesMut::new() };
            self.spare.push(kept);
        }
    }

    fn sync_done(&mut self, what: Synced, result: Result<(), Fault>) {
        if let Err(fault) = result {
            // A full disk too: what a failed sync has lost is not known, and is never asked for again.
            self.failed = Some(format!("syncing a segment: {fault}"));
            return;
        }
        self.active_at = self.now.mono;
        match what {
            Synced::Header => self.next = Next::HeaderSynced,
            Synced::Records { upto } => {
                self.stable = self.stable.max(upto);
                self.lone_mark = self.lone_mark.take().filter(|_| upto < self.written);
            }
        }
    }

    fn manifest_done(&mut self, manifest: Manifest, result: Result<(), Fault>) {
        if let Err(fault) = result {
            self.take_fault(Taker::Manifest, "replacing the manifest", &fault);
            return;
        }
        self.has_taken_space(Taker::Manifest);
        if manifest.newest > self.open {
            self.own = true;
            self.open = manifest.newest;
            self.next = Next::Absent;
            (self.zeroed, self.zeros_unsynced) = (0, false);
        }
        while let Some(segment) = self.space.forget_before(manifest.oldest) {
            self.removed.push_back(segment);
        }
        self.manifest = manifest;
    }

    fn housework_done(&mut self, what: Housework, result: Result<(), Fault>) {
        if let Err(fault) = result {
            match (what, fault) {
                (Housework::Prepare, fault) => self.take_fault(Taker::Prepare, "making a segment", &fault),
                (Housework::Zero, Fault::NoSpace) if self.stopping => {}
                (Housework::Zero, fault) => self.take_fault(Taker::Zeros, "zeroing a segment", &fault),
                (Housework::SyncZeros, fault) => self.failed = Some(format!("syncing a segment: {fault}")),
                (Housework::SyncDirectory, fault) => {
                    self.failed = Some(format!("syncing the directory: {fault}"));
                }
                (Housework::Remove, fault) => self.failed = Some(format!("removing a segment: {fault}")),
            }
            return;
        }
        match what {
            Housework::Prepare => {
                self.next = Next::Made;
                self.has_taken_space(Taker::Prepare);
            }
            Housework::SyncDirectory => self.next = Next::Prepared,
            Housework::Zero => {
                self.zeroed = self.zeroed.saturating_add(ZERO_BYTES).min(self.config.segment_bytes);
                self.zeros_unsynced = true;
                self.has_taken_space(Taker::Zeros);
            }
            Housework::SyncZeros => self.zeros_unsynced = false,
            // What was removed has made room: try at once.
            Housework::Remove => self.retry_space(),
        }
    }
}

const _: () = assert!(SEGMENT_HEADER_BYTES < super::MIN_SEGMENT_BYTES as usize);
