//! A random history of a log, and what must be found of it after a crash.

use std::{collections::BTreeMap, time::Duration};

use bytes::BytesMut;
use ringpost_broker::log::{
    Config, Kind, Location, LogId, Record, Recovered, Seal, SegmentNumber, Sequence, SyncPolicy, Writer,
    body::{Boot, Done, Moved, Request},
    memory::Memory,
    record::{RECORD_HEADER_BYTES, encode},
    recover,
};
use ringpost_protocol::time::{Now, Time};

pub(crate) const LOG: LogId = LogId([7; 16]);

/// SplitMix64: a seed means the same history for ever.
#[derive(Debug, Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Seeds from the environment, or 1 to `count`.
pub(crate) fn seeds(count: u64) -> std::ops::RangeInclusive<u64> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match (number("LOG_SEED"), number("LOG_SEEDS")) {
        (Some(seed), _) => seed..=seed,
        (None, count_given) => 1..=count_given.unwrap_or(count),
    }
}

pub(crate) fn request<'a>(count: u64, payload: &'a [u8]) -> Record<'a> {
    Record::Request(Request {
        count,
        number: count * 2,
        instance: 0,
        joins: 0,
        received_ms: 1,
        expires_ms: 2,
        max_attempts: 5,
        flags: 0,
        dialect: 1,
        session: b"s",
        action: b"a",
        tag: b"",
        idempotency_key: b"",
        options: b"",
        headers: b"",
        payload,
    })
}

/// A record's bytes as they would be in a segment with the seal 0.
pub(crate) fn canonical(record: &Record<'_>) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    encode(&mut bytes, &Seal::default(), Sequence(0), record);
    bytes.to_vec()
}

/// What a log says lives: requests by their counts, each with its payload.
pub(crate) type Living = BTreeMap<u64, Vec<u8>>;

pub(crate) fn replay(living: &mut Living, record: &Record<'_>) {
    match record {
        Record::Request(request) => {
            living.insert(request.count, request.payload.to_vec());
        }
        Record::Moved(Moved { kind, body, .. }) => {
            replay(living, &Record::decode(*kind, body).expect("a moved body was checked"));
        }
        Record::Done(done) => {
            living.remove(&done.count);
        }
        _ => {}
    }
}

/// What a recovery gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) records: Vec<(Location, Vec<u8>, Kind)>,
    pub(crate) living: Living,
    pub(crate) recovered: Recovered,
}

pub(crate) fn find(disk: &mut Memory) -> Result<Found, ringpost_broker::log::LogError> {
    let (mut records, mut living) = (Vec::new(), Living::new());
    let recovered = recover(disk, LOG, |location, record| {
        replay(&mut living, record);
        records.push((location, canonical(record), record.kind()));
    })?;
    Ok(Found { records, living, recovered })
}

/// A disk, a writer on it, and all that was ever appended.
#[derive(Debug)]
pub(crate) struct History {
    pub(crate) disk: Memory,
    pub(crate) writer: Writer,
    pub(crate) rng: Rng,
    /// All records of all boots by sequence, but marks, which the writer appends by itself.
    pub(crate) ledger: BTreeMap<Sequence, Vec<u8>>,
    /// What lives: where, and what.
    pub(crate) open: BTreeMap<u64, (Location, Vec<u8>)>,
    pub(crate) next_count: u64,
    /// The last record that somebody waits for.
    pub(crate) awaited: Sequence,
    /// How far the gate has been open: what was done behind it cannot be undone.
    pub(crate) promised: Sequence,
    pub(crate) now: Now,
    pub(crate) boot: u64,
    pub(crate) config: Config,
}

impl History {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let sync = match rng.below(4) {
            0 => SyncPolicy::Interval(Duration::from_millis(20)),
            1 => SyncPolicy::Never,
            _ => SyncPolicy::Always,
        };
        let segment_bytes = 1024 + 8 * rng.below(128) as u32;
        Self::with(Config { segment_bytes, max_disk: 1 << 20, sync, boot: 1, seed }, rng)
    }

    pub(crate) fn with(config: Config, rng: Rng) -> Self {
        let mut disk = Memory::new();
        let found = find(&mut disk).expect("an empty directory");
        let mut history = Self {
            writer: Writer::new(config, &found.recovered),
            disk,
            rng,
            ledger: BTreeMap::new(),
            open: BTreeMap::new(),
            next_count: 1,
            awaited: Sequence(0),
            promised: Sequence(0),
            now: Now { mono: Time::from_micros(1_000_000), wall_ms: 1_700_000_000_000 },
            boot: 1,
            config,
        };
        history.append(&Record::Boot(Boot { boot: 1, wall_ms: 0 }));
        history
    }

    pub(crate) fn append(&mut self, record: &Record<'_>) -> Location {
        let location = self.writer.append(record).expect("small records, and a log that works");
        self.ledger.insert(location.sequence, canonical(record));
        location
    }

    pub(crate) fn request(&mut self, payload_bytes: usize) {
        let (count, fill) = (self.next_count, self.rng.next());
        self.next_count += 1;
        let payload: Vec<u8> = fill.to_le_bytes().into_iter().cycle().take(payload_bytes).collect();
        let location = self.append(&request(count, &payload));
        self.open.insert(count, (location, payload));
        self.hurry();
    }

    /// Somebody waits for all that was appended so far.
    pub(crate) fn hurry(&mut self) {
        self.writer.hurry();
        self.awaited = self.writer.appended();
    }

    pub(crate) fn finish(&mut self, count: u64) {
        self.append(&Record::Done(Done { count }));
        let (location, _) = self.open.remove(&count).expect("it is open");
        self.writer.died(location);
    }

    pub(crate) fn finish_any(&mut self) {
        let index = self.rng.below(self.open.len());
        if let Some(count) = self.open.keys().nth(index).copied() {
            self.finish(count);
        }
    }

    /// Copies forward up to so many of what lives in the segment that is worth it.
    pub(crate) fn compact(&mut self, most: usize) {
        let Some(segment) = self.writer.compaction() else { return };
        let living = self.open.iter().filter(|(_, (location, _))| location.segment == segment);
        for count in living.map(|(count, _)| *count).take(most).collect::<Vec<_>>() {
            let (old, payload) = self.open[&count].clone();
            let record = request(count, &payload);
            let bytes = canonical(&record);
            let body = &bytes[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + record.body_bytes()];
            let new =
                self.append(&Record::Moved(Moved { sequence: old.sequence, kind: Kind::Request, body }));
            self.writer.died(old);
            self.open.insert(count, (new, payload));
        }
    }

    pub(crate) fn begin_one(&mut self) -> bool {
        let Some(operation) = self.writer.poll(self.now) else {
            let deadline = self.writer.next_deadline();
            assert!(
                deadline.is_none_or(|at| at > self.now.mono),
                "nothing to do, and a deadline that is over"
            );
            return false;
        };
        self.disk.begin(operation);
        true
    }

    pub(crate) fn proceed_any(&mut self) {
        if self.disk.under_way() > 0 {
            let index = self.rng.below(self.disk.under_way());
            if let Some((id, result)) = self.disk.proceed(index) {
                self.writer.done(id, result);
            }
        }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now.mono = self.now.mono + time;
        self.now.wall_ms += time.as_millis() as u64;
    }

    /// Lets the disk do all there is to do now.
    pub(crate) fn settle(&mut self) {
        loop {
            while self.begin_one() {}
            if self.disk.under_way() == 0 {
                return;
            }
            self.proceed_any();
        }
    }

    pub(crate) fn stop(&mut self) {
        self.writer.stop();
        self.settle();
        assert!(self.writer.stopped());
    }

    /// One random thing.
    pub(crate) fn step(&mut self) {
        match self.rng.below(100) {
            0..20 => {
                let bytes = self.rng.below(if self.rng.0.is_multiple_of(7) { 600 } else { 60 });
                self.request(bytes);
            }
            20..36 => {
                self.finish_any();
                // Of a send, whose handler is told; of a request that was acknowledged nobody waits for it.
                if self.rng.below(2) == 0 {
                    self.hurry();
                }
            }
            36..42 => {
                let millis = 1 + self.rng.below(15) as u64;
                self.pass(Duration::from_millis(millis));
            }
            42..48 => self.compact(3),
            48..72 => {
                self.begin_one();
            }
            _ => self.proceed_any(),
        }
        self.writer.check_invariants();
        let gate = self.writer.gate();
        assert!(gate >= self.promised, "the gate was open up to {} and is only up to {gate}", self.promised);
        self.promised = gate;
    }

    /// Checks what was found after a crash against what had been appended: everything up to `kept` is there, in order and
    /// unchanged, nothing is invented, and what lives is what must live.
    pub(crate) fn check(&self, found: &Found, kept: Sequence) {
        let last = found.recovered.last;
        assert!(last >= kept, "up to {kept} was stable, but only {last} are there");
        if self.config.sync == SyncPolicy::Always {
            assert!(last >= self.promised, "promised up to {}, but only {last} are there", self.promised);
        }
        assert!(last <= self.writer.appended(), "more is there than was appended");
        let mut before: Option<Sequence> = None;
        for (location, bytes, kind) in &found.records {
            assert!(before.is_none_or(|before| before.next() == location.sequence), "a gap at {location:?}");
            before = Some(location.sequence);
            match self.ledger.get(&location.sequence) {
                Some(appended) => assert_eq!(appended, bytes, "{location:?} changed"),
                None => assert_eq!(*kind, Kind::Mark, "{location:?} was never appended"),
            }
        }
        let mut living = Living::new();
        for bytes in self.ledger.range(..=last).map(|(_, bytes)| bytes) {
            let kind = Kind::from_number(bytes[16]).expect("we wrote it");
            let length = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
            let body = &bytes[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + length];
            replay(&mut living, &Record::decode(kind, body).expect("we wrote it"));
        }
        assert!(found.living == living, "lives: {:?}, must live: {:?}", found.living.keys(), living.keys());
        let most =
            self.ledger.range(..=last).filter_map(|(_, bytes)| request_count(bytes)).max().unwrap_or(0);
        assert!(found.recovered.highest_count >= most, "a count could come again");
    }

    /// A new boot on the disk as it is. `found` is what the recovery gave.
    pub(crate) fn boot_again(&mut self, found: &Found) {
        self.boot += 1;
        let config = Config { boot: self.boot, seed: self.rng.next(), ..self.config };
        self.writer = Writer::new(config, &found.recovered);
        self.ledger.split_off(&found.recovered.last.next());
        self.open.clear();
        (self.awaited, self.promised) = (found.recovered.last, found.recovered.last);
        let mut places: BTreeMap<u64, Vec<(Location, Vec<u8>)>> = BTreeMap::new();
        for (location, bytes, kind) in &found.records {
            let length = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
            let body = &bytes[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + length];
            let body = if *kind == Kind::Moved { &body[16..] } else { body };
            if let (Kind::Request | Kind::Moved, Ok(Record::Request(request))) =
                (*kind, Record::decode(Kind::Request, body))
            {
                places.entry(request.count).or_default().push((*location, request.payload.to_vec()));
            }
        }
        for (count, mut at) in places {
            if found.living.contains_key(&count) {
                self.open.insert(count, at.pop().expect("never empty"));
            }
            at.into_iter().for_each(|(location, _)| self.writer.died(location));
        }
        self.append(&Record::Boot(Boot { boot: self.boot, wall_ms: 0 }));
    }
}

/// The count of a request, from its record's canonical bytes; nothing for other records.
fn request_count(bytes: &[u8]) -> Option<u64> {
    let count = bytes.get(RECORD_HEADER_BYTES..)?.first_chunk()?;
    (bytes[16] == Kind::Request as u8).then(|| u64::from_le_bytes(*count))
}

/// The segments whose files are there.
pub(crate) fn segment_files(disk: &Memory) -> Vec<SegmentNumber> {
    use ringpost_broker::log::{files::Files, names};
    let names = disk.list().expect("the list");
    let numbers = names.iter().filter_map(|name| match names::parse(name) {
        names::FileName::Segment(number) => Some(number),
        _ => None,
    });
    numbers.collect()
}
