//! Reading a log at start: every record in order, a torn tail cut off, or a refusal that names file and byte.
//!
//! ```text
//! lock ─> settle and read the manifest ─> read all headers ─> look behind the newest: nothing may be written there
//!   ─> sealed segments: valid to the end that their successors name, or corruption
//!   ─> settle the newest: valid up to the first flaw; is there a mark behind it that covers it?
//!         yes: corruption       no: a torn tail, copied aside; the log goes on in a new segment
//!   ─> remove what the manifest does not name
//! ```
//!
//! Nothing is changed before everything has been read and found good. What is read is settled first, so that all that is
//! handed out is stable. Recovering again, also after a crash in the middle of it, gives the same.

use super::{
    Location, LogId, Record, SegmentNumber, Sequence,
    body::{Boot, Request},
    damage::{Damage, LogError},
    files::{Files, replace_manifest},
    manifest::Manifest,
    names::{self, FileName, MANIFEST, NEW_MANIFEST},
    reader::{SegmentReader, Window},
    record::Flaw,
    segment::{HeaderFlaw, SEGMENT_HEADER_BYTES, SegmentHeader},
    tail,
};

/// The directory as a name, for errors.
pub(super) const DIRECTORY: &str = ".";

/// A log that was read, and where it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The manifest as it is on the disk.
    pub manifest: Manifest,
    /// All segments, oldest first.
    pub segments: Vec<RecoveredSegment>,
    /// What was cut off, if anything was.
    pub cut: Option<Cut>,
    /// The last record's sequence.
    pub last: Sequence,
    /// No request that was ever in this log has a higher count. That goes for what a crash has taken, too: of what was in the
    /// newest segment behind its last record, or in a place that a repair gave up, there were no more than fit there.
    pub highest_count: u64,
    /// The last boot that the log tells of.
    pub last_boot: Option<Boot>,
    /// How many records there are.
    pub records: u64,
    /// Files that are none of the log's. They were left alone.
    pub foreign: Vec<String>,
}

/// A segment that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveredSegment {
    /// Its header.
    pub header: SegmentHeader,
    /// The offset behind its last record.
    pub end: u32,
    /// How many bytes of records lie in it that live until they are said to have died.
    pub living: u64,
    /// How long its file is.
    pub file_bytes: u64,
}

/// A torn tail: writes that a crash interrupted, before anybody was told that they were stable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// In which segment.
    pub segment: SegmentNumber,
    /// From which byte on.
    pub offset: u64,
    /// How many bytes, up to the last that is not zero.
    pub bytes: u64,
    /// How many whole records lie in it.
    pub records: u64,
    /// The file that the bytes were copied to; `None` if the disk is full. They also stay where they are until their
    /// segment is removed.
    pub kept: Option<String>,
}

/// Which files there are.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) manifest: bool,
    pub(super) new_manifest: bool,
    pub(super) segments: Vec<SegmentNumber>,
    pub(super) others_of_a_log: Option<String>,
    pub(super) foreign: Vec<String>,
}

/// Lists a directory.
pub(super) fn list(files: &impl Files) -> Result<Listing, LogError> {
    let mut listing = Listing::default();
    let mut all = files.list().map_err(LogError::io(DIRECTORY, "list"))?;
    all.sort_unstable();
    for name in all {
        match names::parse(&name) {
            FileName::Manifest => listing.manifest = true,
            FileName::NewManifest => listing.new_manifest = true,
            FileName::Lock => {}
            FileName::Segment(number) => listing.segments.push(number),
            FileName::Snapshot(_) | FileName::Aside => listing.others_of_a_log = Some(name),
            FileName::Foreign => listing.foreign.push(name),
        }
    }
    Ok(listing)
}

/// Reads the manifest; `None` in a directory without a log.
pub(super) fn read_manifest(files: &impl Files, listing: &Listing) -> Result<Option<Manifest>, LogError> {
    if !listing.manifest {
        let of_a_log = listing.segments.first().map(|number| names::segment(*number));
        return match of_a_log.or_else(|| listing.others_of_a_log.clone()) {
            Some(_) => Err(LogError::corrupt(MANIFEST, 0, Damage::ManifestMissing)),
            None => Ok(None),
        };
    }
    // One byte more than it may have, so that a longer one is seen.
    let mut bytes = [0; super::manifest::MANIFEST_BYTES + 1];
    let mut filled = 0;
    while filled < bytes.len() {
        match files.read_at(MANIFEST, filled as u64, &mut bytes[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(LogError::io(MANIFEST, "read")(error)),
        }
    }
    let manifest = Manifest::decode(&bytes[..filled]);
    manifest.map(Some).map_err(|flaw| LogError::corrupt(MANIFEST, 0, Damage::Manifest(flaw)))
}

/// Reads the header of a segment that the manifest names, and checks all that can be checked of it by itself.
pub(super) fn read_header(
    files: &impl Files,
    window: &mut Window,
    listing: &Listing,
    manifest: &Manifest,
    number: SegmentNumber,
) -> Result<SegmentHeader, LogError> {
    let name = names::segment(number);
    if listing.segments.binary_search(&number).is_err() {
        return Err(LogError::corrupt(&name, 0, Damage::SegmentMissing));
    }
    let header = SegmentReader::open(files, window, number)?
        .header()?
        .map_err(|flaw| LogError::corrupt(&name, 0, Damage::SegmentHeader(flaw)))?;
    if header.log != manifest.log {
        return Err(LogError::corrupt(&name, 16, Damage::Foreign { log: header.log }));
    }
    if header.number != number {
        return Err(LogError::corrupt(&name, 32, Damage::Misnamed { found: header.number }));
    }
    if u64::from(header.file_bytes) < SEGMENT_HEADER_BYTES as u64 {
        return Err(LogError::corrupt(&name, 88, Damage::SegmentHeader(HeaderFlaw::Damaged)));
    }
    Ok(header)
}

/// Checks a segment behind the newest. It was prepared, and at most its header was written.
pub(super) fn check_unused(
    files: &impl Files,
    window: &mut Window,
    number: SegmentNumber,
) -> Result<(), LogError> {
    let mut reader = SegmentReader::open(files, window, number)?;
    let (start, end) = (SEGMENT_HEADER_BYTES as u64, reader.length);
    let mut at = start.min(end);
    while at < end {
        let piece = reader.bytes(at, (end - at).min(64 << 10) as usize)?;
        if let Some(written) = tail::first_written(piece) {
            let offset = at + written as u64;
            return Err(LogError::corrupt(&names::segment(number), offset, Damage::BehindNewest));
        }
        at += piece.len() as u64;
    }
    Ok(())
}

/// Checks that a file is as long as it must be to hold what it should.
pub(super) fn check_length(name: &str, length: u64, needed: u64, made: u32) -> Result<(), LogError> {
    let what = Damage::Shortened { expected: made.into() };
    if length < needed { Err(LogError::corrupt(name, length, what)) } else { Ok(()) }
}

/// Reads a log: locks the directory, hands out all records in order, and leaves behind only what the manifest names.
///
/// In a directory without a log one is made, with the id `new_log`. Records are handed out while they are read: if an error
/// follows, they were for nothing. Memory is a window of 1 MiB, or the largest record.
///
/// # Errors
/// [`LogError`]. Then nothing was changed.
pub fn recover<F: Files>(
    files: &mut F,
    new_log: LogId,
    mut each: impl FnMut(Location, &Record<'_>),
) -> Result<Recovered, LogError> {
    files.lock().map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => LogError::InUse,
        _ => LogError::io(names::LOCK, "lock")(error),
    })?;
    // A killed server may have renamed the manifest without having synced the directory. What is built upon it from now
    // on, removing segments above all, must not outlive it.
    files.sync_directory().map_err(LogError::io(DIRECTORY, "sync"))?;
    let listing = list(files)?;
    let Some(manifest) = read_manifest(files, &listing)? else {
        let manifest = Manifest::of_new_log(new_log);
        replace_manifest(files, &manifest.encode()).map_err(LogError::io(MANIFEST, "write"))?;
        return Ok(Recovered {
            manifest,
            segments: Vec::new(),
            cut: None,
            last: Sequence(0),
            highest_count: 0,
            last_boot: None,
            records: 0,
            foreign: listing.foreign,
        });
    };
    files.settle(MANIFEST).map_err(LogError::io(MANIFEST, "sync"))?;
    let mut window = Window::new();
    for number in listing.segments.iter().filter(|number| **number > manifest.newest) {
        check_unused(files, &mut window, *number)?;
    }
    let mut headers = Vec::new();
    let mut number = manifest.oldest;
    while number <= manifest.newest {
        headers.push(read_header(files, &mut window, &listing, &manifest, number)?);
        number = number.next();
    }
    let mut reading = Reading {
        recovered: Recovered {
            manifest,
            segments: Vec::with_capacity(headers.len()),
            cut: None,
            last: headers.first().map_or(Sequence(0), |header| Sequence(header.first.0.saturating_sub(1))),
            highest_count: 0,
            last_boot: None,
            records: 0,
            foreign: listing.foreign.clone(),
        },
        living: 0,
    };
    for (index, header) in headers.iter().enumerate() {
        let expected = reading.recovered.last.next();
        if header.first != expected {
            let what = Damage::Disconnected { expected, found: header.first };
            return Err(LogError::corrupt(&names::segment(header.number), 40, what));
        }
        match headers.get(index + 1) {
            Some(successor) => reading.sealed(files, &mut window, header, successor, &mut each)?,
            None => reading.newest(files, &mut window, header, &mut each)?,
        }
    }
    let mut recovered = reading.recovered;
    if let Some(cut) = &mut recovered.cut {
        cut.kept = keep_cut(files, &mut window, cut)?;
    }
    remove_unnamed(files, &listing, &manifest)?;
    Ok(recovered)
}

/// What was read so far.
struct Reading {
    recovered: Recovered,
    living: u64,
}

impl Reading {
    fn take(&mut self, location: Location, record: &Record<'_>) {
        self.recovered.records += 1;
        if record.kind().lives() {
            self.living += u64::from(location.length);
        }
        if let Some(count) = record.count() {
            self.recovered.highest_count = self.recovered.highest_count.max(count);
        }
        if let Record::Lost(_) = record {
            self.pass_over_counts(location.length.into());
        }
        if let Record::Boot(boot) = record {
            self.recovered.last_boot = Some(*boot);
        }
    }

    fn begin(&mut self, header: &SegmentHeader) {
        self.recovered.highest_count = self.recovered.highest_count.max(header.highest_count);
    }

    /// So many bytes may have held requests that nothing is known of. They have had the next counts, one after the other.
    fn pass_over_counts(&mut self, bytes: u64) {
        self.recovered.highest_count += bytes / Request::LEAST_RECORD_BYTES;
    }

    fn end(&mut self, header: &SegmentHeader, end: u64, next: Sequence, file_bytes: u64) {
        self.recovered.last = Sequence(next.0 - 1);
        let living = std::mem::take(&mut self.living);
        self.recovered.segments.push(RecoveredSegment {
            header: *header,
            end: end as u32,
            living,
            file_bytes,
        });
    }

    /// A segment that was synced to the end that its successor names, before the successor had a record.
    fn sealed<F: Files>(
        &mut self,
        files: &F,
        window: &mut Window,
        header: &SegmentHeader,
        successor: &SegmentHeader,
        each: &mut impl FnMut(Location, &Record<'_>),
    ) -> Result<(), LogError> {
        let mut reader = SegmentReader::open(files, window, header.number)?;
        let (name, length, end) = (reader.name.clone(), reader.length, successor.predecessor_end.into());
        if !successor.can_follow(header) {
            let what = Damage::Disconnected { expected: header.first, found: successor.first };
            return Err(LogError::corrupt(&names::segment(successor.number), 48, what));
        }
        check_length(&name, length, end, header.file_bytes)?;
        self.begin(header);
        let start = SEGMENT_HEADER_BYTES as u64;
        let walked = reader.walk(&header.seal, start, end, header.first, |location, record| {
            self.take(location, record);
            each(location, record);
        })?;
        if let Some(flaw) = walked.stopped {
            return Err(LogError::corrupt(&name, walked.end, Damage::Sealed { flaw, expected: walked.next }));
        }
        self.end(header, end, walked.next, length);
        Ok(())
    }

    /// The only segment whose end may be torn.
    fn newest<F: Files>(
        &mut self,
        files: &mut F,
        window: &mut Window,
        header: &SegmentHeader,
        each: &mut impl FnMut(Location, &Record<'_>),
    ) -> Result<(), LogError> {
        let name = names::segment(header.number);
        files.settle(&name).map_err(LogError::io(&name, "sync"))?;
        let mut reader = SegmentReader::open(files, window, header.number)?;
        let (length, end) = (reader.length, u64::from(header.file_bytes));
        check_length(&name, length, end, header.file_bytes)?;
        self.begin(header);
        let start = SEGMENT_HEADER_BYTES as u64;
        let walked = reader.walk(&header.seal, start, end, header.first, |location, record| {
            self.take(location, record);
            each(location, record);
        })?;
        // What was there and was never synced, the loss of power has taken without a trace. Handlers may have seen it.
        self.pass_over_counts(end - walked.end);
        let tail = tail::scan(&mut reader, &header.seal, walked.end, end, walked.next)?;
        if let Some(mark) = tail.covering_mark {
            let (flaw, expected) = (walked.stopped.unwrap_or(Flaw::Unwritten), walked.next);
            return Err(LogError::corrupt(&name, walked.end, Damage::BelowMark { flaw, expected, mark }));
        }
        if tail.written_end > walked.end {
            self.recovered.cut = Some(Cut {
                segment: header.number,
                offset: walked.end,
                bytes: tail.written_end - walked.end,
                records: tail.records,
                kept: None,
            });
        }
        self.end(header, walked.end, walked.next, length);
        Ok(())
    }
}

/// Copies a torn tail to a file of its own. A full disk is no reason not to start: the bytes are not going to be overwritten.
fn keep_cut<F: Files>(files: &mut F, window: &mut Window, cut: &Cut) -> Result<Option<String>, LogError> {
    let name = names::torn(cut.segment, cut.offset);
    match copy_aside(files, window, cut.segment, cut.offset, cut.offset + cut.bytes, &name) {
        Ok(()) => Ok(Some(name)),
        Err(LogError::Io { source, .. }) if source.kind() == std::io::ErrorKind::StorageFull => Ok(None),
        Err(error) => Err(error),
    }
}

/// Copies a part of a segment to a file of its own, and syncs it.
pub(super) fn copy_aside<F: Files>(
    files: &mut F,
    window: &mut Window,
    segment: SegmentNumber,
    start: u64,
    end: u64,
    name: &str,
) -> Result<(), LogError> {
    files.create(name, 0).map_err(LogError::io(name, "create"))?;
    let mut at = start;
    let mut piece = vec![0; (end - start).min(64 << 10) as usize];
    while at < end {
        let length = (end - at).min(piece.len() as u64) as usize;
        let part = &mut piece[..length];
        part.copy_from_slice(SegmentReader::open(&*files, window, segment)?.bytes(at, length)?);
        files.write_at(name, at - start, part).map_err(LogError::io(name, "write"))?;
        at += length as u64;
    }
    files.sync(name).map_err(LogError::io(name, "sync"))?;
    files.sync_directory().map_err(LogError::io(DIRECTORY, "sync"))
}

/// Removes segments before the oldest (their removal had begun) and behind the newest (they were never used).
fn remove_unnamed<F: Files>(files: &mut F, listing: &Listing, manifest: &Manifest) -> Result<(), LogError> {
    let named = manifest.oldest..=manifest.newest;
    let unnamed = listing.segments.iter().filter(|number| !named.contains(number));
    let segments = unnamed.map(|number| names::segment(*number));
    let all: Vec<_> = segments.chain(listing.new_manifest.then(|| NEW_MANIFEST.to_owned())).collect();
    for name in &all {
        files.remove(name).map_err(LogError::io(name, "remove"))?;
    }
    if !all.is_empty() {
        files.sync_directory().map_err(LogError::io(DIRECTORY, "sync"))?;
    }
    Ok(())
}
