//! The segments that there are: what lives in them, which may go, and how much room is left.

use std::collections::VecDeque;

use crate::log::{
    Location, Seal, SegmentNumber, Sequence,
    record::record_bytes,
    segment::{SEGMENT_HEADER_BYTES, SegmentHeader},
};

/// Segments' worth of disk that new requests may not use: one for the records that end requests, one for compaction.
const RESERVED_SEGMENTS: u64 = 2;

/// A segment with records, or with records on their way to it.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) header: SegmentHeader,
    /// The offset behind its last record.
    pub(super) end: u32,
    /// The sequence of its last record.
    pub(super) last: Sequence,
    file_bytes: u64,
    living: u64,
    /// The last record of the log when something last died in here. Once that is stable, so is whatever took the place of
    /// what died: a copy further on, or the record that ends it.
    died_at: Sequence,
    /// How many reads of it are under way: it stays until they are done.
    readers: u32,
}

/// All segments, oldest first.
#[derive(Debug, Default)]
pub(super) struct Space {
    segments: VecDeque<Segment>,
    max_disk: u64,
    segment_bytes: u32,
}

impl Space {
    pub(super) fn new(max_disk: u64, segment_bytes: u32) -> Self {
        Self { segments: VecDeque::new(), max_disk, segment_bytes }
    }

    pub(super) fn push(
        &mut self,
        header: SegmentHeader,
        end: u32,
        last: Sequence,
        file_bytes: u64,
        living: u64,
    ) {
        let died_at = Sequence(0);
        self.segments.push_back(Segment { header, end, last, file_bytes, living, died_at, readers: 0 });
    }

    pub(super) fn newest(&mut self) -> Option<&mut Segment> {
        self.segments.back_mut()
    }

    pub(super) fn find(&self, number: SegmentNumber) -> Option<&Segment> {
        self.index(number).and_then(|index| self.segments.get(index))
    }

    pub(super) fn header_mut(&mut self, number: SegmentNumber) -> Option<&mut SegmentHeader> {
        let index = self.index(number)?;
        self.segments.get_mut(index).map(|segment| &mut segment.header)
    }

    fn index(&self, number: SegmentNumber) -> Option<usize> {
        let oldest = self.segments.front()?.header.number.0;
        usize::try_from(number.0.checked_sub(oldest)?).ok()
    }

    /// Bytes that are left in the newest segment.
    pub(super) fn rest_of_newest(&self) -> u32 {
        self.segments.back().map_or(0, |newest| newest.header.file_bytes - newest.end)
    }

    /// Gives a record its place in the newest segment, which the caller knows to have room for it.
    ///
    /// # Panics
    /// Without a segment.
    pub(super) fn place(&mut self, sequence: Sequence, length: u32, lives: bool) -> (Seal, Location) {
        let index = self.segments.len() - 1;
        let newest = &mut self.segments[index];
        let location = Location { sequence, segment: newest.header.number, offset: newest.end, length };
        newest.end += length;
        newest.last = sequence;
        assert!(newest.end <= newest.header.file_bytes, "a record never crosses its segment's end");
        if lives {
            newest.living += u64::from(length);
        }
        (newest.header.seal, location)
    }

    pub(super) fn died(&mut self, location: Location, last_appended: Sequence) {
        let index = self.index(location.segment);
        let Some(segment) = index.and_then(|index| self.segments.get_mut(index)) else {
            debug_assert!(false, "{location:?} died in a segment that had nothing living in it");
            return;
        };
        debug_assert!(segment.living >= location.length.into(), "{location:?} died twice");
        segment.living = segment.living.saturating_sub(location.length.into());
        segment.died_at = last_appended;
    }

    /// Lets a segment stay for a read, or not any more. `false` if it has gone.
    pub(super) fn count_reader(&mut self, number: SegmentNumber, begins: bool) -> bool {
        let index = self.index(number);
        let Some(segment) = index.and_then(|index| self.segments.get_mut(index)) else { return false };
        match begins {
            true => segment.readers += 1,
            false => segment.readers -= 1,
        }
        true
    }

    /// The first segments, all before `open`, in which nothing lives and nobody reads.
    fn dead(&self, open: SegmentNumber) -> impl Iterator<Item = &Segment> {
        let unused = |segment: &Segment| segment.living == 0 && segment.readers == 0;
        self.segments.iter().take_while(move |segment| segment.header.number < open && unused(segment))
    }

    /// The oldest segment that must stay, if others before it may go: they are before `open`, nothing lives in them, and
    /// why that is so is stable.
    pub(super) fn oldest_needed(&self, open: SegmentNumber, stable: Sequence) -> Option<SegmentNumber> {
        let dead = self.dead(open).take_while(|segment| segment.died_at <= stable);
        dead.last().map(|segment| segment.header.number.next())
    }

    /// What must become stable so that the oldest segment may go.
    pub(super) fn removal_waits_for(&self, open: SegmentNumber) -> Option<Sequence> {
        self.dead(open).next().map(|segment| segment.died_at)
    }

    /// Forgets the oldest segment, if it is before `needed`.
    pub(super) fn forget_before(&mut self, needed: SegmentNumber) -> Option<SegmentNumber> {
        let oldest = self.segments.front()?.header.number;
        if oldest >= needed {
            return None;
        }
        self.segments.pop_front();
        Some(oldest)
    }

    /// Bytes of all files.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.file_bytes).sum()
    }

    /// Bytes of records that live.
    pub(super) fn living_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.living).sum()
    }

    pub(super) fn has_room(&self, body_bytes: u64) -> bool {
        let rest = self.segments.back().map_or(0, |newest| newest.file_bytes - u64::from(newest.end));
        let free = self.max_disk.saturating_sub(self.disk_bytes()) + rest;
        free >= record_bytes(body_bytes) + RESERVED_SEGMENTS * u64::from(self.segment_bytes)
    }

    /// The oldest segment, if copying what lives in it is worth it: little of it lives, or more of the log is dead than
    /// lives, or room is needed and there is a segment's worth of dead bytes somewhere.
    ///
    /// Copying once around the log costs what lives in it, and wins what is dead. So with more dead than living bytes, each
    /// byte won costs at most one, also if the dead ones are far behind a segment that is full of life.
    pub(super) fn compaction(&self, open: SegmentNumber, room_needed: bool) -> Option<SegmentNumber> {
        let oldest = self.segments.front()?;
        if oldest.header.number >= open || oldest.living == 0 {
            return None;
        }
        let used = |segment: &Segment| u64::from(segment.end) - SEGMENT_HEADER_BYTES as u64;
        let living = self.living_bytes();
        let dead = self.segments.iter().map(used).sum::<u64>().saturating_sub(living);
        let mostly_dead = oldest.living * 4 <= used(oldest);
        let spread = dead > living && dead >= 2 * u64::from(self.segment_bytes);
        let short = room_needed && dead >= u64::from(self.segment_bytes);
        (mostly_dead || spread || short).then_some(oldest.header.number)
    }
}
