//! What lies behind the last good record of a segment: nothing, a torn write, or things that prove that more was there.

use super::{
    Kind, Seal, Sequence, damage::LogError, fields::u64_at, files::Files, reader::SegmentReader,
    record::RECORD_ALIGNMENT,
};

/// Looked at in one piece. Most of what is looked at is zeros.
const PIECE_BYTES: u64 = 64 << 10;

/// The first byte that is not zero. Most are, and are looked at many at a time.
pub(super) fn first_written(bytes: &[u8]) -> Option<usize> {
    const MANY: usize = 128;
    let zeros =
        bytes.chunks(MANY).take_while(|many| many.iter().fold(0, |all, byte| all | byte) == 0).count();
    let from = (zeros * MANY).min(bytes.len());
    bytes[from..].iter().position(|byte| *byte != 0).map(|at| from + at)
}

/// What was found behind a place where the right record is not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tail {
    /// The offset behind the last byte that is not zero, or the place itself if all are.
    pub(super) written_end: u64,
    /// How many whole records of this segment lie there.
    pub(super) records: u64,
    /// The first of them, and its sequence.
    pub(super) resume: Option<(u64, Sequence)>,
    /// The first mark that covers the place: what should be there had been synced.
    pub(super) covering_mark: Option<u64>,
}

/// Looks at every 8 bytes from `start` to `end` for records from the sequence `expected` on.
///
/// The stamp in a record's header makes this linear: who sent a payload cannot know it, and so cannot put what looks like the
/// beginnings of many long records into one.
pub(super) fn scan<F: Files>(
    reader: &mut SegmentReader<'_, F>,
    seal: &Seal,
    start: u64,
    end: u64,
    expected: Sequence,
) -> Result<Tail, LogError> {
    let mut tail = Tail { written_end: start, records: 0, resume: None, covering_mark: None };
    let mut at = start;
    while at < end {
        let piece = reader.bytes(at, (end - at).min(PIECE_BYTES) as usize)?;
        let Some(first) = first_written(piece) else {
            at += piece.len() as u64;
            continue;
        };
        // A header's first 8 bytes hold the length of its body, which is never 0.
        at += (first - first % RECORD_ALIGNMENT) as u64;
        match reader.record(at, end, seal)? {
            Ok(Some((header, body))) if header.sequence >= expected => {
                let is_mark = header.kind == Kind::Mark as u8 && body.len() == 8;
                if is_mark && Sequence(u64_at(body, 0)) >= expected {
                    tail.covering_mark.get_or_insert(at);
                }
                tail.records += 1;
                tail.resume.get_or_insert((at, header.sequence));
                at += header.record_bytes();
                tail.written_end = at;
            }
            _ => {
                let word = reader.bytes(at, (end - at).min(RECORD_ALIGNMENT as u64) as usize)?;
                let last = word.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
                tail.written_end = tail.written_end.max(at + last);
                at += RECORD_ALIGNMENT as u64;
            }
        }
    }
    Ok(tail)
}
