//! Going on without what cannot be read, after somebody has decided to.
//!
//! Damaged records are copied to a file of their own (`….lost-OFFSET`), and one record takes their place that says which are
//! lost: all others stay where they are, byte for byte. A segment that is lost as a whole is renamed (`….lost-0`), and one
//! with only such a record takes its place. A manifest that is lost is made anew from the segments that there are.

use bytes::BytesMut;

use super::{
    Record, Seal, SegmentNumber, Sequence,
    body::Lost,
    damage::{Corruption, Damage, LogError},
    files::{Files, replace_manifest},
    manifest::Manifest,
    names::{self, MANIFEST},
    reader::{SegmentReader, Window},
    record::{Flaw, MIN_RECORD_BYTES, RECORD_ALIGNMENT, encode},
    recovery::{DIRECTORY, check_unused, copy_aside, list, read_header, read_manifest},
    segment::{SEGMENT_HEADER_BYTES, SegmentHeader},
    tail,
};

const START: u64 = SEGMENT_HEADER_BYTES as u64;
/// Where a damaged manifest goes.
const DAMAGED_MANIFEST: &str = "manifest.damaged";

/// What somebody has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepairOptions {
    /// Whether anything may be given up. Without it nothing is changed in a log that is damaged.
    pub allow_loss: bool,
    /// Random: the seals of segments that are made anew come from it.
    pub seed: u64,
    /// Now, in milliseconds since the Unix epoch.
    pub wall_ms: u64,
}

/// Something that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Where it was, and what was wrong.
    pub corruption: Corruption,
    /// How many bytes, from there on.
    pub bytes: u64,
    /// The first sequence that is lost, if that can be known.
    pub first: Option<Sequence>,
    /// The last one, if that can be known: what was last in a log that lost its newest segment, nobody knows.
    pub through: Option<Sequence>,
    /// The file that has the bytes now.
    pub kept: Option<String>,
}

/// A repair that did not come to its end.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Unrepaired {
    /// Why. [`LogError::Corrupt`] without `allow_loss`, with the first damage, and for what no repair is known for;
    /// [`LogError::InUse`], [`LogError::Io`], [`LogError::Newer`].
    #[source]
    pub error: LogError,
    /// What had been given up by then, and stays so. The last one may be half done: another repair goes on with it.
    pub losses: Vec<Loss>,
}

impl From<LogError> for Unrepaired {
    /// Nothing was changed.
    fn from(error: LogError) -> Self {
        Self { error, losses: Vec::new() }
    }
}

/// Makes a damaged log one that a start takes, and says what that cost. Empty: there was nothing to repair.
///
/// A manifest that was made anew may name segments whose removal had begun: what was done long ago may be done again then.
///
/// # Errors
/// [`Unrepaired`]: without `allow_loss` nothing was changed then; with it, what it names.
pub fn repair<F: Files>(files: &mut F, options: RepairOptions) -> Result<Vec<Loss>, Unrepaired> {
    files.lock().map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => LogError::InUse,
        _ => LogError::io(names::LOCK, "lock")(error),
    })?;
    let Some(first) = super::inspect::verify(files)?.into_iter().next() else { return Ok(Vec::new()) };
    if !options.allow_loss {
        return Err(LogError::Corrupt(first).into());
    }
    let mut repair = Repair { files, options, window: Window::new(), losses: Vec::new() };
    let ended = repair.run();
    let losses = repair.losses;
    match ended {
        Ok(()) => Ok(losses),
        Err(error) => Err(Unrepaired { error, losses }),
    }
}

struct Repair<'a, F> {
    files: &'a mut F,
    options: RepairOptions,
    window: Window,
    losses: Vec<Loss>,
}

/// A segment that is in order, up to where it ends.
struct Ended {
    header: SegmentHeader,
    end: u64,
    next: Sequence,
    highest_count: u64,
}

/// The first damage of a segment from some offset on.
struct Hole {
    offset: u64,
    end: u64,
    first: Sequence,
    through: Option<Sequence>,
    flaw: Flaw,
}

impl<F: Files> Repair<'_, F> {
    fn run(&mut self) -> Result<(), LogError> {
        let manifest = self.manifest()?;
        self.segments(manifest)?;
        match super::inspect::verify(&*self.files)?.into_iter().next() {
            Some(left) => Err(LogError::Corrupt(left)),
            None => Ok(()),
        }
    }

    /// The manifest, made anew if it must be, that names every segment in which something is written.
    fn manifest(&mut self) -> Result<Manifest, LogError> {
        let listing = list(self.files)?;
        let (mut manifest, mut changed) = match read_manifest(self.files, &listing) {
            Ok(Some(manifest)) => (manifest, false),
            Ok(None) => return Err(LogError::corrupt(MANIFEST, 0, Damage::ManifestMissing)),
            Err(LogError::Corrupt(corruption)) => (self.manifest_anew(&listing.segments, corruption)?, true),
            Err(error) => return Err(error),
        };
        let named = manifest.newest;
        for number in listing.segments.iter().copied().filter(|number| *number > named) {
            let Err(unused) = check_unused(self.files, &mut self.window, number) else { continue };
            let LogError::Corrupt(corruption) = unused else { return Err(unused) };
            match self.header(number)? {
                Some(header) if header.log == manifest.log && header.number == number => {
                    (manifest.newest, changed) = (number, true);
                }
                _ => self.put_aside(number, corruption, None, None)?,
            }
        }
        if changed {
            let bytes = manifest.encode();
            replace_manifest(self.files, &bytes).map_err(LogError::io(MANIFEST, "write"))?;
        }
        Ok(manifest)
    }

    fn header(&mut self, number: SegmentNumber) -> Result<Option<SegmentHeader>, LogError> {
        Ok(SegmentReader::open(&*self.files, &mut self.window, number)?.header()?.ok())
    }

    fn manifest_anew(
        &mut self,
        segments: &[SegmentNumber],
        corruption: Corruption,
    ) -> Result<Manifest, LogError> {
        let mut headers = Vec::new();
        for number in segments {
            headers.extend(self.header(*number)?.filter(|header| header.number == *number));
        }
        let Some(log) = headers.last().map(|header| header.log) else {
            return Err(LogError::Corrupt(corruption));
        };
        headers.retain(|header| header.log == log);
        let mut manifest = Manifest::of_new_log(log);
        if let (Some(oldest), Some(newest)) = (headers.first(), headers.last()) {
            (manifest.oldest, manifest.newest) = (oldest.number, newest.number);
        }
        let kept = match self.files.rename(MANIFEST, DAMAGED_MANIFEST) {
            Ok(()) => Some(DAMAGED_MANIFEST.to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(LogError::io(MANIFEST, "rename")(error)),
        };
        self.losses.push(Loss { corruption, bytes: 0, first: None, through: None, kept });
        Ok(manifest)
    }

    fn segments(&mut self, mut manifest: Manifest) -> Result<(), LogError> {
        let mut number = manifest.oldest;
        let mut before: Option<Ended> = None;
        while number <= manifest.newest {
            match self.good_header(&manifest, number, before.as_ref())? {
                Ok(header) => before = Some(self.one(&manifest, header)?),
                Err(corruption) => match &before {
                    Some(ended) => before = Some(self.replace(&manifest, number, ended, corruption)?),
                    None => {
                        let listed = number < manifest.newest;
                        let successor = if listed {
                            self.good_header(&manifest, number.next(), None)?.ok()
                        } else {
                            None
                        };
                        let through =
                            successor.map(|successor| Sequence(successor.first.0.saturating_sub(1)));
                        self.put_aside(number, corruption, None, through)?;
                        manifest.oldest = number.next();
                        replace_manifest(self.files, &manifest.encode())
                            .map_err(LogError::io(MANIFEST, "write"))?;
                    }
                },
            }
            number = number.next();
        }
        Ok(())
    }

    /// A segment's header, if it follows from the segment before it.
    fn good_header(
        &mut self,
        manifest: &Manifest,
        number: SegmentNumber,
        before: Option<&Ended>,
    ) -> Result<Result<SegmentHeader, Corruption>, LogError> {
        let listing = list(self.files)?;
        let header = match read_header(self.files, &mut self.window, &listing, manifest, number) {
            Ok(header) => header,
            Err(LogError::Corrupt(corruption)) => return Ok(Err(corruption)),
            Err(error) => return Err(error),
        };
        let follows = before
            .is_none_or(|ended| ended.next == header.first && ended.end == u64::from(header.predecessor_end));
        let expected = before.map_or(header.first, |ended| ended.next);
        let what = Damage::Disconnected { expected, found: header.first };
        let corruption = Corruption { file: names::segment(number), offset: 40, what };
        Ok(if follows { Ok(header) } else { Err(corruption) })
    }

    /// The header of the segment behind one, if it can be what follows.
    fn successor(
        &mut self,
        manifest: &Manifest,
        of: &SegmentHeader,
    ) -> Result<Option<SegmentHeader>, LogError> {
        let number = of.number.next();
        if number > manifest.newest {
            return Ok(None);
        }
        let header = self.good_header(manifest, number, None)?.ok();
        Ok(header.filter(|successor| {
            let end = u64::from(successor.predecessor_end);
            let empty = end == START && successor.first == of.first;
            let filled = end >= START + MIN_RECORD_BYTES as u64 && successor.first > of.first;
            // Where no record can end, none did: whoever wrote that header wrote no log.
            let possible = end.is_multiple_of(RECORD_ALIGNMENT as u64) && end <= of.file_bytes.into();
            (empty || filled) && possible
        }))
    }

    /// Fills the holes of a segment.
    fn one(&mut self, manifest: &Manifest, header: SegmentHeader) -> Result<Ended, LogError> {
        let name = names::segment(header.number);
        let length = self.files.length(&name).map_err(LogError::io(&name, "read the length of"))?;
        let made = u64::from(header.file_bytes);
        if length < made {
            let corruption =
                Corruption { file: name.clone(), offset: length, what: Damage::Shortened { expected: made } };
            self.losses.push(Loss {
                corruption,
                bytes: made - length,
                first: None,
                through: None,
                kept: None,
            });
            self.files.write_at(&name, made - 1, &[0]).map_err(LogError::io(&name, "write"))?;
            self.files.sync(&name).map_err(LogError::io(&name, "sync"))?;
        }
        let successor = self.successor(manifest, &header)?;
        let newest = header.number == manifest.newest;
        let mut highest_count = header.highest_count;
        loop {
            let (ended, hole) = self.next_hole(&header, successor.as_ref(), newest, &mut highest_count)?;
            let Some(hole) = hole else { return Ok(ended) };
            self.fill(&header, &hole)?;
            if hole.through.is_none() {
                return Ok(ended);
            }
        }
    }

    fn next_hole(
        &mut self,
        header: &SegmentHeader,
        successor: Option<&SegmentHeader>,
        newest: bool,
        highest_count: &mut u64,
    ) -> Result<(Ended, Option<Hole>), LogError> {
        let mut reader = SegmentReader::open(&*self.files, &mut self.window, header.number)?;
        let end = successor.map_or(header.file_bytes, |successor| successor.predecessor_end).into();
        let walked = reader.walk(&header.seal, START, end, header.first, |_, record| {
            *highest_count = (*highest_count).max(record.count().unwrap_or(0));
        })?;
        let ended =
            Ended { header: *header, end: walked.end, next: walked.next, highest_count: *highest_count };
        if walked.stopped.is_none() && successor.is_none_or(|successor| successor.first == walked.next) {
            return Ok((ended, None));
        }
        let tail = tail::scan(&mut reader, &header.seal, walked.end, end, walked.next)?;
        if newest && tail.covering_mark.is_none() {
            return Ok((ended, None));
        }
        let known_end = successor.map(|successor| (end, successor.first));
        let (hole_end, through) = match tail.resume.or(known_end) {
            Some((resume, sequence)) => (resume, Some(Sequence(sequence.0 - 1))),
            // Nobody knows what was behind it.
            None if tail.written_end > walked.end => (tail.written_end, None),
            None => return Ok((ended, None)),
        };
        let flaw = walked.stopped.unwrap_or(Flaw::Unwritten);
        Ok((ended, Some(Hole { offset: walked.end, end: hole_end, first: walked.next, through, flaw })))
    }

    /// Copies what is in a hole, and puts a record there that says what is lost.
    fn fill(&mut self, header: &SegmentHeader, hole: &Hole) -> Result<(), LogError> {
        let (name, bytes) = (names::segment(header.number), hole.end - hole.offset);
        let what = Damage::Sealed { flaw: hole.flaw, expected: hole.first };
        let corruption = Corruption { file: name.clone(), offset: hole.offset, what };
        let fits = bytes >= MIN_RECORD_BYTES as u64;
        if hole.through.is_some_and(|through| through < hole.first || !fits) {
            return Err(LogError::Corrupt(corruption));
        }
        let kept = names::lost(header.number, hole.offset);
        copy_aside(self.files, &mut self.window, header.number, hole.offset, hole.end, &kept)?;
        let (first, through) = (Some(hole.first), hole.through);
        self.losses.push(Loss { corruption, bytes, first, through, kept: Some(kept) });
        if let Some(through) = hole.through {
            let lost = lost_record(&header.seal, hole.first, through, bytes);
            self.files.write_at(&name, hole.offset, &lost).map_err(LogError::io(&name, "write"))?;
            self.files.sync(&name).map_err(LogError::io(&name, "sync"))?;
        }
        Ok(())
    }

    /// Renames a segment that is lost as a whole, if there is a file.
    fn put_aside(
        &mut self,
        number: SegmentNumber,
        corruption: Corruption,
        first: Option<Sequence>,
        through: Option<Sequence>,
    ) -> Result<(), LogError> {
        let (name, aside) = (names::segment(number), names::lost(number, 0));
        let (bytes, kept) = match self.files.length(&name) {
            Ok(length) => {
                self.files.rename(&name, &aside).map_err(LogError::io(&name, "rename"))?;
                (length, Some(aside))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (0, None),
            Err(error) => return Err(LogError::io(&name, "read the length of")(error)),
        };
        let renamed = kept.is_some();
        self.losses.push(Loss { corruption, bytes, first, through, kept });
        if renamed {
            self.files.sync_directory().map_err(LogError::io(DIRECTORY, "sync"))?;
        }
        Ok(())
    }

    /// Puts a segment in place of one that is lost as a whole: its only record says so.
    fn replace(
        &mut self,
        manifest: &Manifest,
        number: SegmentNumber,
        before: &Ended,
        corruption: Corruption,
    ) -> Result<Ended, LogError> {
        let name = names::segment(number);
        let mut header = SegmentHeader {
            seal: Seal {
                salt: (self.options.seed >> 32) as u32 ^ number.0 as u32,
                stamp: stamp(self.options.seed),
            },
            log: manifest.log,
            number,
            first: before.next,
            predecessor_end: before.end as u32,
            highest_count: before.highest_count,
            boot: before.header.boot,
            wall_ms: self.options.wall_ms,
            file_bytes: before.header.file_bytes,
        };
        let roomy = SegmentHeader { file_bytes: u32::MAX, ..header };
        let successor = self.successor(manifest, &roomy)?;
        let (mut end, mut next, mut content) = (START, before.next, BytesMut::new());
        if let Some(successor) = successor {
            (end, next) = (successor.predecessor_end.into(), successor.first);
            header.highest_count = header.highest_count.max(successor.highest_count);
            header.file_bytes = header.file_bytes.max(successor.predecessor_end);
        }
        if end > START {
            content = lost_record(&header.seal, header.first, Sequence(next.0 - 1), end - START);
        }
        let through = successor.map(|successor| Sequence(successor.first.0 - 1));
        self.put_aside(number, corruption, Some(header.first), through)?;
        self.files.create(&name, header.file_bytes.into()).map_err(LogError::io(&name, "create"))?;
        let bytes = [&header.encode(), content.as_ref()].concat();
        self.files.write_at(&name, 0, &bytes).map_err(LogError::io(&name, "write"))?;
        self.files.sync(&name).map_err(LogError::io(&name, "sync"))?;
        self.files.sync_directory().map_err(LogError::io(DIRECTORY, "sync"))?;
        Ok(Ended { header, end, next, highest_count: header.highest_count })
    }
}

/// A record of exactly so many bytes.
fn lost_record(seal: &Seal, first: Sequence, through: Sequence, bytes: u64) -> BytesMut {
    let filler = bytes as u32 - MIN_RECORD_BYTES as u32;
    let mut record = BytesMut::new();
    let length = encode(&mut record, seal, first, &Record::Lost(Lost { through, filler }));
    assert_eq!(length as u64, bytes, "it must fill the hole and nothing else");
    record
}

fn stamp(seed: u64) -> [u8; 6] {
    let [a, b, c, d, e, f, ..] = seed.to_le_bytes();
    [a | 1, b, c, d, e, f]
}
