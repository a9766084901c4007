//! Looking through a whole log without changing it: every record with its place, and every damaged place, not only the
//! first.

use std::fmt;

use super::{
    Location, Record, SegmentNumber, Sequence,
    damage::{Corruption, Damage, LogError},
    files::Files,
    manifest::Manifest,
    names,
    reader::{SegmentReader, Walked, Window},
    record::Flaw,
    recovery::{check_unused, list, read_header, read_manifest},
    segment::{SEGMENT_HEADER_BYTES, SegmentHeader},
    tail,
};

/// Something that is in a log, in the order of the files.
#[derive(Debug)]
#[non_exhaustive]
pub enum Finding<'a> {
    /// A segment begins.
    Segment(&'a SegmentHeader),
    /// A record that can be read.
    Record(Location, &'a Record<'a>),
    /// Damage that a whole file is lost by, or that the log cannot be read at all for.
    Damaged(Corruption),
    /// Damaged records.
    Gap(Gap),
    /// What the next start cuts off: writes that a crash interrupted.
    Torn {
        /// In which segment.
        segment: SegmentNumber,
        /// From which byte on.
        offset: u64,
        /// How many bytes.
        bytes: u64,
        /// How many whole records lie in it.
        records: u64,
    },
    /// A file that is none of the log's.
    ForeignFile(String),
}

/// Records that had been synced and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Where it begins, and why.
    pub corruption: Corruption,
    /// In which segment.
    pub segment: SegmentNumber,
    /// How many bytes, from the corruption's offset on.
    pub bytes: u64,
    /// The first sequence that is lost.
    pub first: Sequence,
    /// The last one.
    pub through: Sequence,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { corruption: Corruption { file, offset, what }, bytes, first, through, .. } = self;
        write!(f, "{file}, bytes {offset} to {}: records {first} to {through}: {what}", offset + bytes)
    }
}

/// Finds all damage of a log: what a start would refuse, everywhere. Empty for a log that a start takes.
///
/// # Errors
/// [`LogError::Io`], [`LogError::Newer`].
pub fn verify<F: Files>(files: &F) -> Result<Vec<Corruption>, LogError> {
    let mut all = Vec::new();
    inspect(files, |finding| match finding {
        Finding::Damaged(corruption) | Finding::Gap(Gap { corruption, .. }) => all.push(corruption),
        Finding::Segment(_) | Finding::Record(..) | Finding::Torn { .. } | Finding::ForeignFile(_) => {}
    })?;
    Ok(all)
}

/// Hands out all that is in a log. The caller sees to it that nobody writes to it meanwhile ([`Files::lock`]).
///
/// # Errors
/// [`LogError::Io`], [`LogError::Newer`]; damage is a [`Finding`].
pub fn inspect<F: Files>(files: &F, mut each: impl FnMut(Finding<'_>)) -> Result<(), LogError> {
    let listing = list(files)?;
    for name in &listing.foreign {
        each(Finding::ForeignFile(name.clone()));
    }
    let manifest = match read_manifest(files, &listing) {
        Ok(Some(manifest)) => manifest,
        Ok(None) => return Ok(()),
        Err(LogError::Corrupt(corruption)) => {
            each(Finding::Damaged(corruption));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let mut window = Window::new();
    for number in listing.segments.iter().filter(|number| **number > manifest.newest) {
        if let Some(corruption) = damage(check_unused(files, &mut window, *number))?.err() {
            each(Finding::Damaged(corruption));
        }
    }
    let mut headers = Headers { files, listing: &listing, manifest: &manifest, window };
    let mut number = manifest.oldest;
    let mut expected = None;
    while number <= manifest.newest {
        let successor = number.next();
        match headers.read(number)? {
            Ok(header) => {
                if let Some(expected) = expected.filter(|expected| *expected != header.first) {
                    let what = Damage::Disconnected { expected, found: header.first };
                    each(Finding::Damaged(Corruption { file: names::segment(number), offset: 40, what }));
                }
                let named = if successor <= manifest.newest { headers.read(successor)?.ok() } else { None };
                each(Finding::Segment(&header));
                let next =
                    one(&mut headers, &header, named.as_ref(), successor > manifest.newest, &mut each)?;
                expected = Some(named.map_or(next, |named| named.first));
            }
            Err(corruption) => {
                each(Finding::Damaged(corruption));
                expected = None;
            }
        }
        number = successor;
    }
    Ok(())
}

/// Tells corruption, which is a finding, from what ends the inspection.
fn damage<T>(result: Result<T, LogError>) -> Result<Result<T, Corruption>, LogError> {
    match result {
        Ok(found) => Ok(Ok(found)),
        Err(LogError::Corrupt(corruption)) => Ok(Err(corruption)),
        Err(error) => Err(error),
    }
}

struct Headers<'a, F> {
    files: &'a F,
    listing: &'a super::recovery::Listing,
    manifest: &'a Manifest,
    window: Window,
}

impl<F: Files> Headers<'_, F> {
    fn read(&mut self, number: SegmentNumber) -> Result<Result<SegmentHeader, Corruption>, LogError> {
        damage(read_header(self.files, &mut self.window, self.listing, self.manifest, number))
    }
}

/// One segment, gap by gap. Gives the sequence behind its last record.
fn one<F: Files>(
    headers: &mut Headers<'_, F>,
    header: &SegmentHeader,
    successor: Option<&SegmentHeader>,
    newest: bool,
    each: &mut impl FnMut(Finding<'_>),
) -> Result<Sequence, LogError> {
    let mut reader = SegmentReader::open(headers.files, &mut headers.window, header.number)?;
    let (file, made) = (reader.name.clone(), u64::from(header.file_bytes));
    if let Some(successor) = successor.filter(|successor| !successor.can_follow(header)) {
        let what = Damage::Disconnected { expected: header.first, found: successor.first };
        each(Finding::Damaged(Corruption { file: names::segment(successor.number), offset: 48, what }));
    }
    let successor = successor.filter(|successor| successor.can_follow(header));
    let end = successor.map_or(made, |successor| u64::from(successor.predecessor_end).min(made));
    if reader.length < end {
        let what = Damage::Shortened { expected: made };
        each(Finding::Damaged(Corruption { file: file.clone(), offset: reader.length, what }));
    }
    let end = end.min(reader.length);
    let (mut at, mut next) = (SEGMENT_HEADER_BYTES as u64, header.first);
    loop {
        let Walked { end: offset, next: first, stopped } =
            reader.walk(&header.seal, at, end, next, |location, record| {
                each(Finding::Record(location, record))
            })?;
        if stopped.is_none() && successor.is_none_or(|successor| successor.first == first) {
            return Ok(first);
        }
        let tail = tail::scan(&mut reader, &header.seal, offset, end, first)?;
        let flaw = stopped.unwrap_or(Flaw::Unwritten);
        let what = match tail.covering_mark {
            Some(mark) if successor.is_none() => Damage::BelowMark { flaw, expected: first, mark },
            None if newest => {
                if tail.written_end > offset {
                    let (segment, bytes, records) = (header.number, tail.written_end - offset, tail.records);
                    each(Finding::Torn { segment, offset, bytes, records });
                }
                return Ok(first);
            }
            _ => Damage::Sealed { flaw, expected: first },
        };
        // Where the successor cannot be read, nobody knows where this segment ends.
        let known_end = successor.map(|successor| (end, successor.first));
        let Some((resume, sequence)) = tail.resume.or(known_end) else { return Ok(first) };
        let corruption = Corruption { file: file.clone(), offset, what };
        let through = Sequence(sequence.0.saturating_sub(1));
        each(Finding::Gap(Gap {
            corruption,
            segment: header.number,
            bytes: resume - offset,
            first,
            through,
        }));
        if resume >= end {
            return Ok(sequence);
        }
        (at, next) = (resume, sequence);
    }
}
