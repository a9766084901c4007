//! A file of the twin: what processes see of it, what is on the disk, and what was written in between, by sectors.

use std::collections::BTreeMap;

/// What is written as a whole or not at all.
pub const SECTOR_BYTES: usize = 512;

type Sector = [u8; SECTOR_BYTES];

#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    /// As processes see it.
    pub(super) seen: Vec<u8>,
    /// As it is on the disk.
    pub(super) stable: BTreeMap<usize, Sector>,
    pub(super) stable_length: u64,
    /// What was written to a sector since it was synced, oldest first.
    pub(super) unsynced: BTreeMap<usize, Vec<Version>>,
}

#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) sector: Sector,
    pub(super) begun: u64,
    pub(super) completed: Option<u64>,
}

impl Content {
    pub(super) fn sector(&self, index: usize) -> Sector {
        let mut sector = [0; SECTOR_BYTES];
        let start = (index * SECTOR_BYTES).min(self.seen.len());
        let end = (start + SECTOR_BYTES).min(self.seen.len());
        sector[..end - start].copy_from_slice(&self.seen[start..end]);
        sector
    }

    pub(super) fn write(&mut self, offset: usize, bytes: &[u8], begun: u64) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        let sectors = offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES);
        let before: Vec<_> = sectors.clone().map(|index| self.sector(index)).collect();
        if self.seen.len() < end {
            self.seen.resize(end, 0);
        }
        self.seen[offset..end].copy_from_slice(bytes);
        for (index, before) in sectors.zip(before) {
            let sector = self.sector(index);
            // What is written again is on its way to the disk again, also if processes see no difference.
            let lost = !self.unsynced.contains_key(&index)
                && self.stable.get(&index).unwrap_or(&[0; SECTOR_BYTES]) != &sector;
            if sector != before || lost {
                self.unsynced.entry(index).or_default().push(Version { sector, begun, completed: None });
            }
        }
    }

    pub(super) fn complete(&mut self, begun: u64, now: u64) {
        let versions = self.unsynced.values_mut().flatten();
        versions.filter(|version| version.begun == begun).for_each(|version| version.completed = Some(now));
    }

    /// Makes stable, or (after a failed sync) forgets, what had been completed before a moment.
    pub(super) fn settle_unsynced(&mut self, before: u64, keep: bool) {
        for (index, versions) in &mut self.unsynced {
            let done = |version: &Version| version.completed.is_some_and(|completed| completed < before);
            let Some(last) = versions.iter().rposition(done) else { continue };
            let settled: Vec<_> = versions.drain(..=last).collect();
            if let (Some(version), true) = (settled.last(), keep) {
                self.stable.insert(*index, version.sector);
            }
        }
        self.unsynced.retain(|_, versions| !versions.is_empty());
        if keep {
            self.stable_length = self.seen.len() as u64;
        }
    }

    pub(super) fn from_disk(stable: BTreeMap<usize, Sector>, length: u64) -> Self {
        let mut content = Self { seen: vec![0; length as usize], stable_length: length, ..Self::default() };
        for (index, sector) in &stable {
            let start = (index * SECTOR_BYTES).min(content.seen.len());
            let end = (start + SECTOR_BYTES).min(content.seen.len());
            content.seen[start..end].copy_from_slice(&sector[..end - start]);
        }
        content.stable = stable;
        content
    }
}
