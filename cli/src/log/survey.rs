//! What a whole log comes to: how much is in it, from when to when, and what is damaged.

use std::{collections::BTreeMap, fmt::Write, ops::RangeInclusive};

use ringpost_broker::log::{
    Corruption, Damage, Kind, Record, SegmentNumber, Sequence,
    inspect::{Finding, Gap},
    names,
};

use super::text;

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Survey {
    segments: Option<(SegmentNumber, SegmentNumber)>,
    records: u64,
    record_bytes: u64,
    sequences: Option<(Sequence, Sequence)>,
    /// How many of each kind, in the order of their numbers.
    kinds: BTreeMap<u8, (Kind, u64)>,
    times_ms: Option<(u64, u64)>,
    /// How many places are damaged.
    pub(super) damaged: u64,
    /// Bytes of records that cannot be read.
    pub(super) unreadable_bytes: u64,
    /// How many segments are not there or cannot be used at all.
    pub(super) lost_segments: u64,
    /// The records that were in them, where those around them tell.
    pub(super) lost_with_segments: Vec<String>,
    /// The last record that was found, or is known to be damaged.
    last: Option<Sequence>,
    /// The segments could not be looked at.
    pub(super) without_manifest: bool,
    remedies: Vec<&'static str>,
    /// What is no damage, but not as usual.
    pub(super) notes: Vec<String>,
}

impl Survey {
    /// Counts a finding. What is damaged is given back as a line.
    pub(super) fn take(&mut self, finding: &Finding<'_>) -> Option<String> {
        match finding {
            Finding::Segment(header) => {
                widen(&mut self.segments, header.number);
                let expected = self.last.map_or(header.first, Sequence::next);
                if expected < header.first {
                    self.lost_with_segments.push(span(expected..=Sequence(header.first.0 - 1)));
                }
                None
            }
            Finding::Record(location, record) => {
                self.records += 1;
                self.record_bytes += u64::from(location.length);
                widen(&mut self.sequences, location.sequence);
                self.last = match record {
                    Record::Lost(lost) => Some(lost.through),
                    _ => Some(location.sequence),
                };
                self.kinds.entry(record.kind() as u8).or_insert((record.kind(), 0)).1 += 1;
                if let Some(time) = time_ms(record) {
                    widen(&mut self.times_ms, time);
                }
                None
            }
            Finding::Damaged(corruption) => {
                self.damage(corruption);
                if let Damage::SegmentMissing
                | Damage::SegmentHeader(_)
                | Damage::Foreign { .. }
                | Damage::Misnamed { .. } = corruption.what
                {
                    self.lost_segments += 1;
                }
                Some(place(corruption))
            }
            Finding::Gap(gap) => {
                let Gap { corruption, bytes, first, through, .. } = gap;
                self.damage(corruption);
                self.unreadable_bytes += bytes;
                self.last = Some(*through);
                let lost = span(*first..=*through);
                Some(format!("{}; {} cannot be read: {lost}", place(corruption), text::count(*bytes, "byte")))
            }
            Finding::Torn { segment, offset, bytes, records } => {
                self.notes.push(format!(
                    "{} is torn at byte {offset}: {} with {}, which a crash interrupted; nobody was promised what \
                     is in them, and the next start cuts them off",
                    names::segment(*segment),
                    text::count(*bytes, "byte"),
                    text::count(*records, "whole record"),
                ));
                None
            }
            Finding::ForeignFile(name) => {
                self.notes.push(format!("{name:?} is none of the log's files and is left alone"));
                None
            }
            // What a later version finds beside that is no damage.
            _ => None,
        }
    }

    fn damage(&mut self, corruption: &Corruption) {
        self.damaged += 1;
        self.without_manifest |= matches!(corruption.what, Damage::Manifest(_) | Damage::ManifestMissing);
        let remedy = corruption.remedy();
        if !self.remedies.contains(&remedy) {
            self.remedies.push(remedy);
        }
    }

    /// What to do about the damage.
    pub(super) fn remedies(&self) -> String {
        self.remedies.join("; ")
    }

    /// What is in the log, a line for each figure.
    pub(super) fn summary(&self) -> String {
        let mut rows = Vec::new();
        let segments = self.segments.map_or("none".to_owned(), |(oldest, newest)| {
            let number = (newest.0 - oldest.0).saturating_add(1);
            let (oldest, newest) = (names::segment(oldest), names::segment(newest));
            if number == 1 { format!("1: {oldest}") } else { format!("{number}: {oldest} to {newest}") }
        });
        rows.push(("segments", segments));
        let mut records = self.records.to_string();
        for (index, (kind, number)) in self.kinds.values().enumerate() {
            // Into a string nothing fails.
            let _ = write!(records, "{} {number} {}", if index == 0 { ":" } else { "," }, kind.name());
        }
        rows.push(("records", records));
        if let Some((first, last)) = self.sequences {
            rows.push(("sequences", format!("{first} to {last}")));
        }
        rows.push(("bytes", self.record_bytes.to_string()));
        if let Some((oldest, newest)) = self.times_ms {
            rows.push(("oldest", text::time(oldest)));
            rows.push(("newest", text::time(newest)));
        }
        rows.iter()
            .map(|(name, value)| format!("{name:<9}  {value}\n"))
            .collect::<String>()
            .trim_end()
            .to_owned()
    }
}

fn widen<T: Ord + Copy>(range: &mut Option<(T, T)>, to: T) {
    let (least, most) = range.unwrap_or((to, to));
    *range = Some((least.min(to), most.max(to)));
}

/// When what a record tells of happened; nothing for a record without a time.
fn time_ms(record: &Record<'_>) -> Option<u64> {
    match record {
        Record::Boot(boot) => Some(boot.wall_ms),
        Record::Request(request) => Some(request.received_ms),
        Record::Delivered(delivered) => Some(delivered.wall_ms),
        Record::Reply(reply) => Some(reply.wall_ms),
        Record::Dead(dead) => Some(dead.wall_ms),
        Record::Moved(moved) => Record::decode(moved.kind, moved.body).ok().as_ref().and_then(time_ms),
        _ => None,
    }
}

/// A damaged place.
pub(super) fn place(corruption: &Corruption) -> String {
    format!("{} at byte {}: {}", corruption.file, corruption.offset, corruption.what)
}

/// Records by their sequences.
pub(super) fn span(sequences: RangeInclusive<Sequence>) -> String {
    let (first, last) = sequences.into_inner();
    match first.cmp(&last) {
        std::cmp::Ordering::Less => format!("records {first} to {last}"),
        std::cmp::Ordering::Equal => format!("record {first}"),
        std::cmp::Ordering::Greater => "no record".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use ringpost_broker::log::{
        Location,
        body::{Boot, Done, Moved},
    };

    use super::*;

    fn take(survey: &mut Survey, sequence: u64, record: &Record<'_>) {
        let location =
            Location { sequence: Sequence(sequence), segment: SegmentNumber(1), offset: 96, length: 40 };
        assert_eq!(survey.take(&Finding::Record(location, record)), None);
    }

    /// Records are counted by kind and bytes; what was moved has the time at which it happened, not that of the move.
    #[test]
    fn summary() {
        let mut survey = Survey::default();
        assert_eq!(survey.summary(), "segments   none\nrecords    0\nbytes      0");
        take(&mut survey, 7, &Record::Boot(Boot { boot: 1, wall_ms: 2000 }));
        take(&mut survey, 8, &Record::Done(Done { count: 1 }));
        let dead = [0; 26];
        take(&mut survey, 9, &Record::Moved(Moved { sequence: Sequence(1), kind: Kind::Dead, body: &dead }));
        assert_eq!(
            survey.summary(),
            "segments   none\nrecords    3: 1 boot, 1 done, 1 moved\nsequences  7 to 9\nbytes      120\n\
             oldest     1970-01-01T00:00:00.000Z\nnewest     1970-01-01T00:00:02.000Z"
        );
    }

    /// A gap names its place, its bytes and its records; each remedy is told once.
    #[test]
    fn damage() {
        let mut survey = Survey::default();
        let corruption = Corruption { file: "f".into(), offset: 128, what: Damage::BehindNewest };
        let gap = |first, through| {
            let (first, through) = (Sequence(first), Sequence(through));
            Finding::Gap(Gap {
                corruption: corruption.clone(),
                segment: SegmentNumber(1),
                bytes: 96,
                first,
                through,
            })
        };
        let line = survey.take(&gap(5, 7)).unwrap();
        assert!(
            line.starts_with("f at byte 128: ")
                && line.ends_with("; 96 bytes cannot be read: records 5 to 7")
        );
        assert!(survey.take(&gap(5, 5)).unwrap().ends_with("record 5"));
        assert!(survey.take(&gap(5, 4)).unwrap().ends_with("no record"));
        assert_eq!((survey.damaged, survey.unreadable_bytes), (3, 288));
        assert_eq!(survey.remedies(), corruption.remedy());
    }
}
