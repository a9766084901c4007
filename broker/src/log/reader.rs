//! Reading a segment through a window of fixed size, which only grows for a record that is larger and known to be whole.

use std::io;

use super::{
    Location, Record, Seal, SegmentNumber, Sequence,
    body::Lost,
    damage::{LogError, known_kind},
    files::Files,
    names,
    record::{Flaw, Header, RECORD_HEADER_BYTES, hasher},
    segment::{HeaderFlaw, SEGMENT_HEADER_BYTES, SegmentHeader},
};

const WINDOW_BYTES: usize = 1 << 20;

/// A part of a file in memory.
#[derive(Debug)]
pub(super) struct Window {
    bytes: Vec<u8>,
    start: u64,
    filled: usize,
}

impl Window {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; WINDOW_BYTES], start: 0, filled: 0 }
    }
}

/// What is at a place: a record and its body, nothing written, or something else.
pub(super) type AtPlace<'a> = Result<Option<(Header, &'a [u8])>, Flaw>;

/// A segment that is being read.
pub(super) struct SegmentReader<'a, F> {
    files: &'a F,
    window: &'a mut Window,
    pub(super) name: String,
    pub(super) number: SegmentNumber,
    /// How long the file is.
    pub(super) length: u64,
}

/// How far records could be read.
#[derive(Debug)]
pub(super) struct Walked {
    /// The offset behind the last of them.
    pub(super) end: u64,
    /// The sequence that the next one has or would have.
    pub(super) next: Sequence,
    /// Why there is no further one; `None` if the end was reached.
    pub(super) stopped: Option<Flaw>,
}

impl<'a, F: Files> SegmentReader<'a, F> {
    pub(super) fn open(
        files: &'a F,
        window: &'a mut Window,
        number: SegmentNumber,
    ) -> Result<Self, LogError> {
        let name = names::segment(number);
        let length = files.length(&name).map_err(LogError::io(&name, "read the length of"))?;
        window.filled = 0;
        Ok(Self { files, window, name, number, length })
    }

    /// The header, if the file has one.
    pub(super) fn header(&mut self) -> Result<Result<SegmentHeader, HeaderFlaw>, LogError> {
        let bytes = self.length.min(SEGMENT_HEADER_BYTES as u64) as usize;
        Ok(SegmentHeader::decode(self.bytes(0, bytes)?))
    }

    /// `count` bytes from `offset` on, which the caller knows to be within the file.
    pub(super) fn bytes(&mut self, offset: u64, count: usize) -> Result<&[u8], LogError> {
        debug_assert!(offset + count as u64 <= self.length);
        let window = &mut *self.window;
        let within = offset >= window.start && offset + count as u64 <= window.start + window.filled as u64;
        if !within {
            if count > window.bytes.len() {
                window.bytes.resize(count, 0);
            }
            (window.start, window.filled) = (offset, 0);
            let ahead = (self.length - offset).min(window.bytes.len() as u64) as usize;
            while window.filled < ahead {
                let into = &mut window.bytes[window.filled..ahead];
                match self.files.read_at(&self.name, offset + window.filled as u64, into) {
                    Ok(0) => {
                        let shorter = io::Error::from(io::ErrorKind::UnexpectedEof);
                        return Err(LogError::io(&self.name, "read")(shorter));
                    }
                    Ok(read) => window.filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(LogError::io(&self.name, "read")(error)),
                }
            }
        }
        let from = (offset - window.start) as usize;
        Ok(&window.bytes[from..from + count])
    }

    /// The record at an offset; `None` where nothing was written. It must end at or before `end`.
    pub(super) fn record(&mut self, offset: u64, end: u64, seal: &Seal) -> Result<AtPlace<'_>, LogError> {
        let room = end.saturating_sub(offset);
        if room < RECORD_HEADER_BYTES as u64 {
            return Ok(Err(Flaw::TooLong { claimed: RECORD_HEADER_BYTES as u64, room }));
        }
        let Some(head) = self.bytes(offset, RECORD_HEADER_BYTES)?.first_chunk() else { return Ok(Ok(None)) };
        let header = match Header::read(head, room, seal) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(Ok(None)),
            Err(flaw) => return Ok(Err(flaw)),
        };
        let length = header.record_bytes() as usize;
        if length > self.window.bytes.len()
            && let Err(flaw) = self.compare(offset, &header, seal)?
        {
            return Ok(Err(flaw));
        }
        let bytes = self.bytes(offset, length)?;
        Ok(header.body(bytes, seal).map(|body| Some((header, body))))
    }

    /// Compares the checksum of a record that is larger than the window, part by part: a damaged length must not have
    /// memory made for it.
    fn compare(&mut self, offset: u64, header: &Header, seal: &Seal) -> Result<Result<(), Flaw>, LogError> {
        let (mut at, end) = (offset + 4, offset + RECORD_HEADER_BYTES as u64 + u64::from(header.body_bytes));
        let mut hasher = hasher(seal);
        while at < end {
            let part = (end - at).min(WINDOW_BYTES as u64) as usize;
            hasher.update(self.bytes(at, part)?);
            at += part as u64;
        }
        Ok(header.compare(hasher.finalize()))
    }

    /// Hands out the records from `start` on, of which the first must have the sequence `next`, up to `end` or to the first
    /// place where the right one is not.
    pub(super) fn walk(
        &mut self,
        seal: &Seal,
        start: u64,
        end: u64,
        mut next: Sequence,
        mut each: impl FnMut(Location, &Record<'_>),
    ) -> Result<Walked, LogError> {
        let (mut offset, segment, name) = (start, self.number, self.name.clone());
        let stopped = loop {
            if offset == end {
                break None;
            }
            let (header, body) = match self.record(offset, end, seal)? {
                Ok(Some(found)) => found,
                Ok(None) => break Some(Flaw::Unwritten),
                Err(flaw) => break Some(flaw),
            };
            if header.sequence != next {
                break Some(Flaw::Sequence { expected: next, found: header.sequence });
            }
            let kind = known_kind(&name, offset, header.kind)?;
            let record = Record::decode(kind, body).map_err(|bad| LogError::bad_body(&name, offset, bad))?;
            let length = header.record_bytes();
            let location = Location { sequence: next, segment, offset: offset as u32, length: length as u32 };
            each(location, &record);
            next = match record {
                Record::Lost(Lost { through, .. }) => through.max(next).next(),
                _ => next.next(),
            };
            offset += length;
        };
        Ok(Walked { end: offset, next, stopped })
    }
}
