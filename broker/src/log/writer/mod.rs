//! Appending to a log: what is written and synced when, in which order segments follow each other, what is stable.
//!
//! ```text
//! append ─> batch ── Write ──> written ── Sync ──> stable     (a small batch: both in one operation)
//!             │        │ the next batch gathers      upto = what was written when the sync was asked for
//!             │        └ one write and one sync under way at a time; they may overlap
//!             └ does not fit ─> a batch of the next segment, which waits for the switch:
//!
//! Prepare ─> SyncDirectory ─> Zero …  (ahead of time: a file of zeros, which the manifest does not name)
//!    Sync of the old one, to its end ─> Write of the header ─> Sync ─> ReplaceManifest ─> its first records
//! ```
//!
//! **What starts a write.** Only records that somebody waits for ([`Writer::hurry`]), and with them goes all that has gathered
//! before. What nobody waits for by itself (that an attempt began, that a request is done) is written with the next one, or after
//! [`GATHER_FOR`] at the latest, or when [`GATHER_BYTES`] have come together. So a crash, of the process too, can forget the
//! last of these; docs/STORAGE.md says of each what follows from that.
//!
//! `marked ≤ stable ≤ written ≤ appended`. Nothing is written to a segment but its header before the manifest names it, and
//! the manifest does not name it before its predecessor and its header are synced. A segment is removed only when the manifest
//! does not name it any more.

mod operation;
mod space;
mod turn;

use std::{collections::VecDeque, time::Duration};

use bytes::{Bytes, BytesMut};
use ringpost_protocol::time::{Now, Time};

pub use self::operation::{Action, Fault, Operation, OperationId};
use self::space::Space;
use super::{
    Location, Record, Recovered, Seal, SegmentNumber, Sequence,
    body::Unwritable,
    manifest::Manifest,
    record::{self, Kind},
    segment::{SEGMENT_HEADER_BYTES, SegmentHeader},
};

/// How long the log is idle before a mark is written by itself.
pub const MARK_AFTER: Duration = Duration::from_millis(10);
/// How long records gather that nobody waits for, before they are written all the same.
pub const GATHER_FOR: Duration = Duration::from_millis(10);
/// How many bytes of them gather at most.
pub const GATHER_BYTES: usize = 64 << 10;
/// How long after a full disk was found it is tried again.
pub const RETRY_SPACE_AFTER: Duration = Duration::from_secs(1);
/// The shortest segment.
pub const MIN_SEGMENT_BYTES: u32 = 1024;
/// How many segments `max_disk` has room for at least.
pub const MIN_SEGMENTS: u64 = 4;

/// Zeroed in one piece.
const ZERO_BYTES: u32 = 1 << 20;
/// How much of a log's first segment is zeroed before it is used.
const FIRST_ZERO_BYTES: u32 = 16 << 20;
/// A write of no more than this, for which no more than one waits, is synced by the same operation: that saves a visit to the
/// kernel's workers. Where more are waiting, more will come, and it is faster to write what they bring during the sync.
const SYNCED_WRITE_BYTES: usize = 4 << 10;
/// A batch's buffer that has grown beyond this is not kept.
const KEPT_BUFFER_BYTES: usize = 4 << 20;
const SPARE_BUFFERS: usize = 2;

/// When what was written is synced, and which of both opens the gate for what depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPolicy {
    /// With it, for each write; the gate opens for what is stable. Survives the loss of power.
    Always,
    /// So long after it was written; the gate opens for what is written. Survives the death of the process.
    Interval(Duration),
    /// Only where the log's structure needs it: when segments are switched or removed, and at a stop. The gate opens for what
    /// is written.
    Never,
}

/// How a log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Length of new segments, a multiple of 8 and at least [`MIN_SEGMENT_BYTES`].
    pub segment_bytes: u32,
    /// Bytes of disk beyond which [`Writer::has_room`] says no; at least [`MIN_SEGMENTS`] segments.
    pub max_disk: u64,
    /// When to sync.
    pub sync: SyncPolicy,
    /// This boot's id.
    pub boot: u64,
    /// Random, drawn for this boot: segments' seals are made from it.
    pub seed: u64,
}

/// Records of one segment that are written together.
#[derive(Debug)]
struct Batch {
    segment: SegmentNumber,
    offset: u32,
    bytes: BytesMut,
    last: Sequence,
    /// The last record that is not a mark.
    last_record: Option<Sequence>,
}

/// A write that was asked for. It keeps its bytes, to try again if the disk is full.
#[derive(Debug)]
struct Write {
    segment: SegmentNumber,
    offset: u32,
    bytes: Bytes,
    what: Written,
    /// Whether the same operation makes it stable.
    synced: bool,
}

#[derive(Debug, Clone, Copy)]
enum Written {
    Header,
    Records { last: Sequence, last_record: Option<Sequence> },
}

#[derive(Debug, Clone, Copy)]
enum Synced {
    Header,
    Records { upto: Sequence },
}

#[derive(Debug, Clone, Copy)]
enum Housework {
    Prepare,
    SyncDirectory,
    Zero,
    SyncZeros,
    Remove,
}

/// The disk is full.
#[derive(Debug, Clone, Copy)]
struct Full {
    /// What there was no space for. When that succeeds, there is some again.
    what: Taker,
    retry_at: Time,
}

/// What takes space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taker {
    Write,
    Manifest,
    Prepare,
    /// Only ever for speed: nothing waits for it at a stop.
    Zeros,
}

/// How far the segment behind the open one has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Absent,
    Made,
    /// Its file will be there after a crash.
    Prepared,
    /// Its header is being written: nothing else is any more.
    Claimed,
    HeaderWritten,
    HeaderSynced,
}

/// Writes a log, without touching a file: it says what to do ([`Writer::poll`]) and is told how that went
/// ([`Writer::done`]).
///
/// ```
/// use ringpost_broker::log::{Config, LogId, Record, SyncPolicy, Writer, body::Done, files::perform, memory::Memory, recover};
/// use ringpost_protocol::time::Now;
///
/// let mut disk = Memory::new();
/// let recovered = recover(&mut disk, LogId([7; 16]), |_, _| {}).unwrap();
/// let config = Config { segment_bytes: 4096, max_disk: 65536, sync: SyncPolicy::Always, boot: 1, seed: 2 };
/// let mut writer = Writer::new(config, &recovered);
/// let at = writer.append(&Record::Done(Done { count: 1 })).unwrap();
/// writer.hurry();
/// while let Some(operation) = writer.poll(Now::default()) {
///     let result = perform(&mut disk, &operation.action);
///     writer.done(operation.id, result);
/// }
/// assert!(writer.stable() >= at.sequence);
/// ```
#[derive(Debug)]
pub struct Writer {
    config: Config,
    now: Now,
    manifest: Manifest,
    space: Space,
    /// The segment that is written to; of a log that was just recovered its newest, which is never written to.
    open: SegmentNumber,
    /// Whether this writer has begun a segment of its own yet.
    begun: bool,
    /// Whether the open segment is one of those.
    own: bool,
    next: Next,
    zeroed: u32,
    zeros_unsynced: bool,
    batches: VecDeque<Batch>,
    /// Since when the front batch gathers, as far as this writer was asked what to do.
    gathers_since: Option<Time>,
    /// The last record that somebody waits for.
    awaited: Sequence,
    /// How many wait for what gathers.
    waiters: u32,
    /// The last thing that was written, if that is a mark alone, which is not worth a sync.
    lone_mark: Option<(u32, Bytes)>,
    spare: Vec<BytesMut>,
    appended: Sequence,
    written: Sequence,
    /// The last written record that is not a mark: what an `Always` sync is for.
    dirty: Sequence,
    dirty_since: Option<Time>,
    stable: Sequence,
    marked: Sequence,
    last_record: Sequence,
    highest_count: u64,
    write: Option<(OperationId, Write)>,
    blocked_write: Option<Write>,
    sync: Option<(OperationId, Synced)>,
    replacing: Option<(OperationId, Manifest)>,
    housework: Option<(OperationId, Housework)>,
    removed: VecDeque<SegmentNumber>,
    next_operation: u64,
    active_at: Time,
    full: Option<Full>,
    stopping: bool,
    failed: Option<String>,
}

impl Writer {
    /// A writer that goes on behind what was recovered, in a new segment.
    ///
    /// What lives in the recovered segments is taken to be every record of a kind that lives, until it is said to have
    /// [died](Writer::died).
    ///
    /// # Panics
    /// If the configuration is outside its bounds.
    pub fn new(config: Config, recovered: &Recovered) -> Self {
        assert!(
            config.segment_bytes >= MIN_SEGMENT_BYTES && config.segment_bytes.is_multiple_of(8),
            "segment_bytes"
        );
        assert!(config.max_disk >= MIN_SEGMENTS * u64::from(config.segment_bytes), "max_disk");
        let mut space = Space::new(config.max_disk, config.segment_bytes);
        for segment in &recovered.segments {
            let last = Sequence(segment.header.first.0.saturating_sub(1));
            space.push(segment.header, segment.end, last, segment.file_bytes, segment.living);
        }
        if let Some(newest) = space.newest() {
            newest.last = recovered.last;
        }
        let last = recovered.last;
        Self {
            config,
            now: Now::default(),
            manifest: recovered.manifest,
            space,
            open: recovered.manifest.newest,
            begun: false,
            own: false,
            next: Next::Absent,
            zeroed: 0,
            zeros_unsynced: false,
            batches: VecDeque::new(),
            gathers_since: None,
            awaited: last,
            waiters: 0,
            lone_mark: None,
            spare: Vec::new(),
            appended: last,
            written: last,
            dirty: last,
            dirty_since: None,
            stable: last,
            // The switch to the new segment seals what was recovered: no mark is needed for it.
            marked: last,
            last_record: last,
            highest_count: recovered.highest_count,
            write: None,
            blocked_write: None,
            sync: None,
            replacing: None,
            housework: None,
            removed: VecDeque::new(),
            next_operation: 0,
            active_at: Time::ZERO,
            full: None,
            stopping: false,
            failed: None,
        }
    }

    /// Appends a record to the batch that gathers, and says where it is going to lie.
    ///
    /// It is neither written nor stable yet. Whatever depends on it waits for [`Writer::gate`], and says so by
    /// [`Writer::hurry`].
    ///
    /// # Errors
    /// [`Unwritable`]; nothing was appended then.
    pub fn append(&mut self, record: &Record<'_>) -> Result<Location, Unwritable> {
        if self.stopping || self.failed.is_some() {
            return Err(Unwritable::Closed);
        }
        record.check(u64::from(self.config.segment_bytes) - SEGMENT_HEADER_BYTES as u64)?;
        Ok(self.push(record))
    }

    /// Says that somebody waits for all that was appended so far: it is written, and under [`SyncPolicy::Always`] synced, as
    /// soon as can be.
    pub fn hurry(&mut self) {
        self.awaited = self.appended;
        self.waiters = self.waiters.saturating_add(1);
    }

    fn push(&mut self, record: &Record<'_>) -> Location {
        let length = record::record_bytes(record.body_bytes() as u64) as u32;
        let sequence = self.appended.next();
        if !self.begun || self.space.rest_of_newest() < length {
            self.begin_segment(sequence);
        }
        let (seal, location) = self.space.place(sequence, length, record.kind().lives());
        if self.batches.back().is_none_or(|batch| batch.segment != location.segment) {
            let bytes = self.spare.pop().unwrap_or_default();
            let (segment, offset) = (location.segment, location.offset);
            self.batches.push_back(Batch { segment, offset, bytes, last: sequence, last_record: None });
        }
        if let Some(batch) = self.batches.back_mut() {
            record::encode(&mut batch.bytes, &seal, sequence, record);
            batch.last = sequence;
            if record.kind() != Kind::Mark {
                batch.last_record = Some(sequence);
                self.last_record = sequence;
            }
        }
        self.highest_count = self.highest_count.max(record.count().unwrap_or(0));
        self.appended = sequence;
        location
    }

    fn begin_segment(&mut self, first: Sequence) {
        let (number, predecessor_end) = match self.space.newest() {
            Some(newest) => (newest.header.number.next(), newest.end),
            None => (self.manifest.newest.next(), 0),
        };
        let header = SegmentHeader {
            seal: draw_seal(self.config.seed, number),
            log: self.manifest.log,
            number,
            first,
            predecessor_end,
            highest_count: self.highest_count,
            boot: self.config.boot,
            // Known when it is written.
            wall_ms: 0,
            file_bytes: self.config.segment_bytes,
        };
        let last = Sequence(first.0 - 1);
        self.space.push(header, SEGMENT_HEADER_BYTES as u32, last, header.file_bytes.into(), 0);
        self.begun = true;
    }

    /// Says that a living record is not needed any more. If it lives on elsewhere, that is appended first.
    ///
    /// The oldest segments are removed when nothing lives in them and all that had been appended up to then is stable.
    pub fn died(&mut self, location: Location) {
        self.space.died(location, self.appended);
    }

    /// The oldest segment, if what lives in it should be appended anew ([`Record::Moved`]) and then be said to have died.
    pub fn compaction(&self) -> Option<SegmentNumber> {
        let room_needed = self.is_full() || !self.space.has_room(0);
        self.space.compaction(self.open, room_needed)
    }

    /// Whether a request whose record has a body of so many bytes may be accepted: there is room for it, and for what is
    /// kept free for the records that end requests, and for compaction. Those are always appended.
    pub fn has_room(&self, body_bytes: u64) -> bool {
        self.failed.is_none() && !self.is_full() && self.space.has_room(body_bytes)
    }

    /// Whether the disk was found to be full. It is tried again every second, or when [`Writer::retry_space`] is called.
    pub fn is_full(&self) -> bool {
        self.full.is_some()
    }

    /// Says that there may be space again.
    pub fn retry_space(&mut self) {
        if let Some(full) = &mut self.full {
            full.retry_at = Time::ZERO;
        }
    }

    /// Why nothing can become stable any more, if that is so.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// The last record that is stable: it survives the loss of power.
    pub fn stable(&self) -> Sequence {
        self.stable
    }

    /// The last record that is written: it survives the death of the process.
    pub fn written(&self) -> Sequence {
        self.written
    }

    /// The last record that was appended.
    pub fn appended(&self) -> Sequence {
        self.appended
    }

    /// Up to which record the gate is open, by the policy: stable, or written.
    pub fn gate(&self) -> Sequence {
        match self.config.sync {
            SyncPolicy::Always => self.stable,
            SyncPolicy::Interval(_) | SyncPolicy::Never => self.written,
        }
    }

    /// Bytes that were appended and wait to be written.
    pub fn waiting_bytes(&self) -> usize {
        self.batches.iter().map(|batch| batch.bytes.len()).sum()
    }

    /// Bytes of all segments' files, and of the records in them that live.
    pub fn disk_and_living_bytes(&self) -> (u64, u64) {
        (self.space.disk_bytes(), self.space.living_bytes())
    }

    /// The seal of a segment, to check what is read back from it.
    pub fn seal(&self, segment: SegmentNumber) -> Option<Seal> {
        self.space.find(segment).map(|segment| segment.header.seal)
    }

    /// Says that something is going to be read from a segment, and gives the seal to check it by: the segment stays until as
    /// many [`Writer::read_ends`] have been said. `None` if it has gone.
    ///
    /// What is read must be [written](Self::written).
    pub fn read_begins(&mut self, segment: SegmentNumber) -> Option<Seal> {
        self.space.count_reader(segment, true).then(|| self.seal(segment))?
    }

    /// Says that a read has ended, however it did.
    pub fn read_ends(&mut self, segment: SegmentNumber) {
        let there = self.space.count_reader(segment, false);
        debug_assert!(there, "segment {segment} has gone while it was read");
    }

    /// Lets everything be written, synced and marked. Nothing can be appended any more.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.full = self.full.filter(|full| full.what != Taker::Zeros);
    }

    /// Whether a stop has come to its end: nothing is under way, and everything is stable, or cannot become so (see
    /// [`Writer::failed`], [`Writer::is_full`]).
    pub fn stopped(&self) -> bool {
        let idle = self.write.is_none()
            && self.sync.is_none()
            && self.replacing.is_none()
            && self.housework.is_none();
        let done = self.stable == self.appended && !self.mark_is_due();
        self.stopping && idle && (done || self.failed.is_some() || self.is_full())
    }

    /// Checks what always holds.
    ///
    /// # Panics
    /// If it does not.
    pub fn check_invariants(&self) {
        assert!(self.marked <= self.stable && self.stable <= self.written && self.written <= self.appended);
        assert!(self.awaited <= self.appended);
        assert!(!(self.sync.is_some() && self.is_writing_synced()), "one sync of a file at a time");
        assert!(self.open == self.manifest.newest, "only what the manifest names is written to");
        let batched = self.batches.iter().zip(self.batches.iter().skip(1));
        assert!(
            batched.into_iter().all(|(one, other)| one.segment <= other.segment && one.last < other.last)
        );
        assert!(self.space.find(self.open).is_some() || self.open.0 == 0);
    }
}

/// A segment's seal: from the boot's random seed, different for each number (SplitMix64's finalizer, which is a bijection).
fn draw_seal(seed: u64, number: SegmentNumber) -> Seal {
    let draw = |n: u64| {
        let mut z = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let [one, other] = [draw(number.0 * 2), draw(number.0 * 2 + 1)];
    let [a, b, c, d, e, f, ..] = one.to_le_bytes();
    // Never zeros only, or zeros would look like the beginning of a record.
    Seal { salt: other as u32, stamp: [a | 1, b, c, d, e, f] }
}
