//! The twin of the server's disk: what the log's writer asked of it, done after a while and in any order that is allowed,
//! and the states that a crash may leave it in.

use bytes::Bytes;
use ringpost_broker::{
    Read, ReadFault, Restore,
    log::{
        Action, Config, Fault, LogId, Operation, OperationId, SyncPolicy, Writer,
        files::Files,
        memory::{Call, Memory},
        names, recover,
    },
};

use super::{LogSettings, view::View};
use crate::sim::{
    rng::Rng,
    rules::{Rule, Violation, ensure},
};

pub(super) const LOG: LogId = LogId([7; 16]);

/// How a server's process ended, for its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// In good order: everything was synced.
    Stopped,
    /// The process was killed: what it wrote is seen by the next one.
    Killed,
    /// The power failed: of what was not synced, any part is there.
    PowerLost,
    /// A sync failed, and the process ended: what it should have made stable is seen, and lost.
    SyncFailed,
}

/// What a server starts from.
pub(crate) struct Opened {
    pub(crate) writer: Writer,
    pub(crate) restore: Restore,
    pub(crate) highest_count: u64,
}

/// What came of a step of an operation.
#[derive(Debug)]
pub(crate) enum Stepped {
    /// It goes on after so long.
    Again(u64),
    /// It has come to its end.
    Done { id: OperationId, result: Result<(), Fault>, synced: bool },
    /// It is not known any more.
    Forgotten,
}

#[derive(Debug)]
pub(crate) struct Disk {
    settings: LogSettings,
    twin: Memory,
    /// Writes that were asked for and have not begun.
    asked: Vec<Operation>,
    /// What has begun, in the twin's order; whether it is a sync of records.
    under_way: Vec<(OperationId, bool)>,
    /// A sync has failed in this boot.
    failed: bool,
    /// How many reads were not what is there.
    bad_reads: u64,
    last_crash: Crash,
    /// The process that uses it has read the log.
    opened: bool,
    rng: Rng,
    /// What was read since the last change of what is synced, or seen.
    synced: Option<View>,
    seen: Option<View>,
}

impl Disk {
    pub(super) fn new(settings: LogSettings, rng: Rng) -> Self {
        Self {
            settings,
            twin: Memory::new(),
            asked: Vec::new(),
            under_way: Vec::new(),
            failed: false,
            bad_reads: 0,
            last_crash: Crash::Stopped,
            opened: false,
            rng,
            synced: None,
            seen: None,
        }
    }

    pub(super) fn last_crash(&self) -> Crash {
        self.last_crash
    }

    /// Takes what the writer asks for: when to take it a step further.
    pub(crate) fn ask(&mut self, operation: Operation) -> u64 {
        let waits = matches!(operation.action, Action::Write { .. }) && self.rng.chance(500);
        if waits {
            self.asked.push(operation);
        } else {
            self.begin(operation);
        }
        self.pause()
    }

    fn begin(&mut self, operation: Operation) {
        let synced = matches!(operation.action, Action::Sync { .. } | Action::Write { synced: true, .. });
        self.under_way.push((operation.id, synced));
        self.twin.begin(operation);
        self.seen = None;
    }

    /// Reads a part of a segment for a server that runs: what is seen there, or now and then something else.
    pub(crate) fn read(&mut self, read: Read) -> Result<Bytes, ReadFault> {
        if self.rng.chance(self.settings.bad_reads) {
            return Err(ReadFault::Unavailable("too many open files".to_owned()));
        }
        let mut bytes = vec![0; read.bytes as usize];
        let name = names::segment(read.segment);
        let count = self.twin.read_at(&name, read.offset.into(), &mut bytes);
        if count.map_err(|error| ReadFault::Unavailable(format!("{name}: {error}")))? < bytes.len() {
            return Err(ReadFault::Damaged(format!("{name} ends within {read:?}")));
        }
        if self.rng.chance(self.settings.bad_reads) {
            self.bad_reads += 1;
            if self.rng.chance(200) {
                return Err(ReadFault::Damaged("an error of the disk".to_owned()));
            }
            let bit = self.rng.below(bytes.len() as u64 * 8) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        Ok(bytes.into())
    }

    /// How many reads have not brought what is there.
    pub(super) fn bad_reads(&self) -> u64 {
        self.bad_reads
    }

    pub(crate) fn pause(&mut self) -> u64 {
        let most = if self.rng.chance(10) { self.settings.latency * 50 } else { self.settings.latency };
        self.rng.between(10, most)
    }

    pub(super) fn step(&mut self, id: OperationId) -> Stepped {
        if let Some(place) = self.asked.iter().position(|operation| operation.id == id) {
            let operation = self.asked.remove(place);
            self.begin(operation);
            return Stepped::Again(self.pause());
        }
        let Some(index) = self.under_way.iter().position(|(known, _)| *known == id) else {
            return Stepped::Forgotten;
        };
        match self.twin.proceed(index) {
            None => Stepped::Again(self.pause()),
            Some((id, result)) => {
                let (_, synced) = self.under_way.remove(index);
                (self.synced, self.seen) = (None, None);
                self.failed |= synced && result.is_err();
                Stepped::Done { id, result, synced }
            }
        }
    }

    /// What is there whatever happens.
    pub(super) fn synced(&mut self) -> Result<&View, Violation> {
        if self.synced.is_none() {
            let nothing = vec![0; self.twin.unsynced().len()];
            self.synced = Some(View::read(self.twin.crash(&nothing))?);
        }
        Ok(self.synced.get_or_insert_default())
    }

    /// What is there unless the power fails.
    pub(super) fn seen(&mut self) -> Result<&View, Violation> {
        if self.seen.is_none() {
            let mut twin = self.twin.clone();
            twin.kill();
            self.seen = Some(View::read(twin)?);
        }
        Ok(self.seen.get_or_insert_default())
    }

    /// Whether everything is synced that somebody waits for.
    pub(super) fn syncs_always(&self) -> bool {
        self.settings.policy == SyncPolicy::Always
    }

    /// What the gate opens for, by the policy.
    pub(super) fn reliable(&mut self) -> Result<&View, Violation> {
        match self.settings.policy {
            SyncPolicy::Always => self.synced(),
            SyncPolicy::Interval(_) | SyncPolicy::Never => self.seen(),
        }
    }

    /// Whether what processes see may not be there: the weaker policies promise nothing after a failed sync.
    pub(super) fn lies(&self) -> bool {
        self.failed && self.settings.policy != SyncPolicy::Always
    }

    /// The process that used it ends.
    pub(crate) fn crash(&mut self, crash: Crash) {
        self.asked.clear();
        self.under_way.clear();
        self.twin.kill();
        // However the process ended behind a failed sync, what that should have made stable is lost.
        let crash = if self.failed && crash == Crash::Killed { Crash::SyncFailed } else { crash };
        // One that had not read the log yet has left it as it was.
        let crash = match (std::mem::take(&mut self.opened), crash) {
            (false, Crash::Stopped | Crash::Killed) => self.last_crash,
            (_, crash) => crash,
        };
        if crash == Crash::PowerLost {
            self.lose_power();
        }
        (self.last_crash, self.failed, self.synced, self.seen) = (crash, false, None, None);
    }

    fn lose_power(&mut self) {
        let choices = self.twin.unsynced();
        // Everything lost, nothing lost, and all in between.
        let survives = self.rng.pick(&[0, 100, 500, 900, 1000]);
        let choose = |possibilities: &usize| match self.rng.chance(survives) {
            true => self.rng.between(1, *possibilities as u64 - 1) as usize,
            false => 0,
        };
        self.twin = self.twin.crash(&choices.iter().map(choose).collect::<Vec<_>>());
    }

    /// Reads the log for a server that starts. Now and then the power fails while it does.
    pub(super) fn open(&mut self, boot: u64) -> Result<Opened, Violation> {
        while self.last_crash != Crash::Stopped && self.rng.chance(100) {
            self.twin.stop_after(self.rng.below(8));
            let read = recover(&mut self.twin, LOG, |_, _| {});
            self.twin.kill();
            if read.is_err() {
                self.last_crash = Crash::PowerLost;
                self.lose_power();
            }
        }
        let (mut restore, mut died) = (Restore::new(self.settings.queue_memory_bytes), Vec::new());
        let recovered = recover(&mut self.twin, LOG, |at, record| {
            restore.take(at, record, &mut |location| died.push(location));
        })
        .map_err(|error| Violation {
            rule: Rule::Recovery,
            what: format!("after {:?}, the log cannot be read: {error}", self.last_crash),
        })?;
        let whole = self.last_crash != Crash::Stopped || recovered.cut.is_none();
        ensure!(whole, Recovery, "after a stop in good order, the log ends in {:?}", recovered.cut);
        let LogSettings { policy: sync, segment_bytes, max_disk, .. } = self.settings;
        let config = Config { segment_bytes, max_disk, sync, boot, seed: self.rng.next() };
        let mut writer = Writer::new(config, &recovered);
        died.into_iter().for_each(|location| writer.died(location));
        (self.synced, self.seen, self.opened) = (None, None, true);
        Ok(Opened { writer, restore, highest_count: recovered.highest_count })
    }

    /// What the server that starts has found.
    pub(super) fn view_of_restart(&mut self) -> Result<View, Violation> {
        self.seen().cloned()
    }

    /// Lets the disk be full, or have space again.
    pub(crate) fn fill(&mut self, full: bool) {
        let full = full && self.opened;
        let names = self.twin.list().unwrap_or_default();
        let used = names.iter().filter_map(|name| self.twin.length(name).ok()).sum();
        self.twin.set_capacity(full.then_some(used));
    }

    /// The next sync fails, unless the log is still being read: that would keep the server from starting.
    pub(crate) fn fail_sync(&mut self) {
        if self.opened {
            self.twin.fail(Call::Sync, 0, std::io::ErrorKind::Other);
        }
    }
}
