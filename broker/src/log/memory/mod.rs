//! The in-memory twin of a disk: it knows what is synced and what is not, and can be crashed into any state that a real
//! one may be left in.
//!
//! Content is kept by sectors of 512 bytes, names by changes of the directory. What was not synced is *unsynced*: after a
//! crash each sector holds its synced content or one of those written since, each change of the directory has happened
//! or not, each file has its old or its new length; all independently of each other. A sync makes stable what had
//! been completed before it was begun, and nothing else.
//!
//! A sector is written as a whole or not at all, as disks promise.

mod sectors;

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    io,
};

use self::sectors::Content;
pub use self::sectors::SECTOR_BYTES;
use super::{
    Action, Fault, Operation, OperationId,
    files::{Files, perform},
    names::{self, MANIFEST, NEW_MANIFEST},
};

/// A call that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named like the method of `Files`")]
pub enum Call {
    List,
    Read,
    Create,
    Write,
    Sync,
    SyncDirectory,
    Rename,
    Remove,
}

/// A disk with one directory.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    names: BTreeMap<String, u64>,
    stable_names: BTreeMap<String, u64>,
    unsynced_names: Vec<NameChange>,
    contents: BTreeMap<u64, Content>,
    next_file: u64,
    /// Counts begun and completed calls, to know which came before which.
    tick: u64,
    under_way: VecDeque<UnderWay>,
    capacity: Option<u64>,
    failures: RefCell<Vec<Failure>>,
    calls_left: Option<u64>,
    longest_read: Option<usize>,
    locked_by_another: bool,
}

#[derive(Debug, Clone)]
enum NameChange {
    Set { name: String, file: u64 },
    Rename { from: String, to: String, file: u64 },
    Remove { name: String },
}

#[derive(Debug, Clone)]
struct UnderWay {
    operation: Operation,
    begun: u64,
    step: u32,
}

#[derive(Debug, Clone, Copy)]
struct Failure {
    call: Call,
    after: u32,
    kind: io::ErrorKind,
}

impl Memory {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets no more bytes onto the disk than these, over all files; `None` for no bound.
    pub fn set_capacity(&mut self, bytes: Option<u64>) {
        self.capacity = bytes;
    }

    /// Lets the call fail that comes after so many that succeed, once.
    ///
    /// After a failed sync, what it should have made stable is shown as if it was, and is not on the disk: a further sync
    /// finds nothing to do. That is what Linux does.
    pub fn fail(&mut self, call: Call, after: u32, kind: io::ErrorKind) {
        self.failures.get_mut().push(Failure { call, after, kind });
    }

    /// How many of the planned failures have not come yet.
    pub fn failures_left(&self) -> usize {
        self.failures.borrow().len()
    }

    /// Lets all changing calls fail after so many more, as if the machine had stopped there.
    pub fn stop_after(&mut self, calls: u64) {
        self.calls_left = Some(calls);
    }

    /// Lets no read bring more than these bytes.
    pub fn limit_reads(&mut self, bytes: usize) {
        self.longest_read = Some(bytes.max(1));
    }

    /// Lets another process have the lock, or give it back.
    pub fn lock_by_another(&mut self, locked: bool) {
        self.locked_by_another = locked;
    }

    /// Damages a file: the change is on the disk at once. `None` without the file.
    pub fn damage(&mut self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Option<()> {
        let content = self.contents.get_mut(self.names.get(name)?)?;
        change(&mut content.seen);
        let sectors = content.seen.len().div_ceil(SECTOR_BYTES);
        content.stable = (0..sectors).map(|index| (index, content.sector(index))).collect();
        content.stable_length = content.seen.len() as u64;
        content.unsynced.clear();
        Some(())
    }

    /// A file's content as processes see it.
    pub fn content(&self, name: &str) -> Option<&[u8]> {
        self.contents.get(self.names.get(name)?).map(|content| content.seen.as_slice())
    }

    /// Ends the process that used the disk: what it wrote is still seen, and still unsynced.
    pub fn kill(&mut self) {
        for UnderWay { begun, .. } in std::mem::take(&mut self.under_way) {
            let now = self.advance();
            self.contents.values_mut().for_each(|content| content.complete(begun, now));
        }
        self.calls_left = None;
        self.failures.get_mut().clear();
    }

    /// The choices of a crash at this moment, as the number of possibilities of each.
    pub fn unsynced(&self) -> Vec<usize> {
        let mut choices = vec![2; self.unsynced_names.len()];
        for content in self.contents.values() {
            choices.extend(content.unsynced.values().map(|versions| versions.len() + 1));
            choices.extend((content.stable_length != content.seen.len() as u64).then_some(2));
        }
        choices
    }

    /// The disk after a crash at this moment. `choices` is as long as what [`Memory::unsynced`] gives; 0 is the synced state.
    pub fn crash(&self, choices: &[usize]) -> Self {
        let mut choices = choices.iter().copied();
        let mut choose = || choices.next().unwrap_or(0);
        let mut names = self.stable_names.clone();
        for change in &self.unsynced_names {
            if choose() != 0 {
                apply(&mut names, change);
            }
        }
        let mut contents = BTreeMap::new();
        for (file, content) in &self.contents {
            let mut stable = content.stable.clone();
            for (index, versions) in &content.unsynced {
                if let Some(version) = choose().checked_sub(1).and_then(|version| versions.get(version)) {
                    stable.insert(*index, version.sector);
                }
            }
            let seen = content.seen.len() as u64;
            let longer = content.stable_length != seen && choose() != 0;
            let length = if longer { seen } else { content.stable_length };
            contents.insert(*file, Content::from_disk(stable, length));
        }
        contents.retain(|file, _| names.values().any(|named| named == file));
        Self {
            stable_names: names.clone(),
            names,
            contents,
            next_file: self.next_file,
            capacity: self.capacity,
            ..Self::default()
        }
    }

    /// Begins what a writer asked for. Writes are seen at once; nothing is complete before [`Memory::proceed`] says so.
    pub fn begin(&mut self, operation: Operation) {
        let begun = self.advance();
        if let Action::Write { segment, offset, bytes, .. } = &operation.action
            && let Some(file) = self.names.get(&names::segment(*segment))
            && let Some(content) = self.contents.get_mut(file)
        {
            content.write(*offset as usize, bytes, begun);
        }
        self.under_way.push_back(UnderWay { operation, begun, step: 0 });
    }

    /// How many operations are begun and not complete.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Takes one of those under way a step further, and says how it ended if that was its last step.
    pub fn proceed(&mut self, index: usize) -> Option<(OperationId, Result<(), Fault>)> {
        let mut this = self.under_way.remove(index)?;
        let result = match &this.operation.action {
            Action::Write { segment, synced, .. } => {
                let (name, synced) = (names::segment(*segment), *synced);
                match this.step {
                    0 => match self.complete_write(&name, this.begun) {
                        Ok(()) if synced => {
                            (this.step, this.begun) = (1, self.advance());
                            self.under_way.insert(index, this);
                            return None;
                        }
                        result => result,
                    },
                    _ => self.complete_sync(&name, this.begun),
                }
            }
            Action::Sync { segment } => self.complete_sync(&names::segment(*segment), this.begun),
            Action::ReplaceManifest { bytes } => match self.manifest_step(this.step, bytes) {
                Ok(false) => {
                    this.step += 1;
                    self.under_way.insert(index, this);
                    return None;
                }
                Ok(true) => Ok(()),
                Err(error) if this.step >= 2 => {
                    return Some((this.operation.id, Err(Fault::Disk(error.to_string()))));
                }
                Err(error) => Err(error),
            },
            action @ (Action::Prepare { .. }
            | Action::Zero { .. }
            | Action::SyncDirectory
            | Action::Remove { .. }) => {
                return Some((this.operation.id, perform(self, action)));
            }
        };
        Some((this.operation.id, result.map_err(Fault::from)))
    }

    fn manifest_step(&mut self, step: u32, bytes: &[u8]) -> io::Result<bool> {
        match step {
            0 => self.create(NEW_MANIFEST, 0)?,
            1 => self.write_at(NEW_MANIFEST, 0, bytes)?,
            2 => self.sync(NEW_MANIFEST)?,
            3 => self.rename(NEW_MANIFEST, MANIFEST)?,
            _ => return self.sync_directory().map(|()| true),
        }
        Ok(false)
    }

    fn complete_write(&mut self, name: &str, begun: u64) -> io::Result<()> {
        // One that fails has left what it wrote in the page cache all the same, where a later sync finds it.
        let result = self.changing(Call::Write);
        let now = self.advance();
        self.file(name)?.complete(begun, now);
        result
    }

    fn complete_sync(&mut self, name: &str, begun: u64) -> io::Result<()> {
        let result = self.changing(Call::Sync);
        self.file(name)?.settle_unsynced(begun, result.is_ok());
        result
    }

    fn advance(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    fn file(&mut self, name: &str) -> io::Result<&mut Content> {
        let file = self.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        self.contents.get_mut(file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn seen(&self, name: &str) -> io::Result<&[u8]> {
        self.content(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Fails if this call was planned to.
    fn planned(&self, call: Call) -> io::Result<()> {
        let mut failed = None;
        self.failures.borrow_mut().retain_mut(|failure| {
            if failure.call != call || failed.is_some() {
                return true;
            }
            match failure.after.checked_sub(1) {
                Some(after) => failure.after = after,
                None => failed = Some(failure.kind),
            }
            failed.is_none()
        });
        failed.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn changing(&mut self, call: Call) -> io::Result<()> {
        if let Some(left) = &mut self.calls_left {
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("the machine has stopped"))?;
        }
        self.planned(call)
    }

    /// Whether so many more bytes fit.
    fn check_room(&self, more: u64) -> io::Result<()> {
        let used: u64 =
            self.names.values().filter_map(|file| self.contents.get(file)).map(|c| c.seen.len() as u64).sum();
        match self.capacity {
            Some(capacity) if used + more > capacity => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn change_names(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.unsynced_names.push(change);
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    match change {
        NameChange::Set { name, file } => {
            names.insert(name.clone(), *file);
        }
        NameChange::Rename { from, to, file } => {
            names.remove(from);
            names.insert(to.clone(), *file);
        }
        NameChange::Remove { name } => {
            names.remove(name);
        }
    }
}

impl Files for Memory {
    fn list(&self) -> io::Result<Vec<String>> {
        self.planned(Call::List)?;
        Ok(self.names.keys().cloned().collect())
    }

    fn length(&self, name: &str) -> io::Result<u64> {
        Ok(self.seen(name)?.len() as u64)
    }

    fn read_at(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.planned(Call::Read)?;
        let seen = self.seen(name)?;
        let rest = seen.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default();
        let length = rest.len().min(into.len()).min(self.longest_read.unwrap_or(usize::MAX));
        into[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn create(&mut self, name: &str, bytes: u64) -> io::Result<()> {
        self.changing(Call::Create)?;
        let replaced = self.content(name).map_or(0, |seen| seen.len() as u64);
        self.check_room(bytes.saturating_sub(replaced))?;
        let file = self.next_file;
        self.next_file += 1;
        let content = Content { seen: vec![0; bytes as usize], stable_length: bytes, ..Content::default() };
        self.contents.insert(file, content);
        self.change_names(NameChange::Set { name: name.to_owned(), file });
        Ok(())
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.changing(Call::Write)?;
        let longer = (offset + bytes.len() as u64).saturating_sub(self.seen(name)?.len() as u64);
        self.check_room(longer)?;
        let (begun, completed) = (self.advance(), self.advance());
        let content = self.file(name)?;
        content.write(offset as usize, bytes, begun);
        content.complete(begun, completed);
        Ok(())
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let begun = self.advance();
        self.complete_sync(name, begun)
    }

    fn settle(&mut self, name: &str) -> io::Result<()> {
        self.sync(name)?;
        let content = self.file(name)?;
        if content.unsynced.is_empty() {
            *content = Content::from_disk(std::mem::take(&mut content.stable), content.stable_length);
        }
        Ok(())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.changing(Call::SyncDirectory)?;
        self.unsynced_names.clear();
        self.stable_names = self.names.clone();
        let Self { names, contents, .. } = self;
        contents.retain(|file, _| names.values().any(|named| named == file));
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.changing(Call::Rename)?;
        let file = *self.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        self.change_names(NameChange::Rename { from: from.to_owned(), to: to.to_owned(), file });
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.changing(Call::Remove)?;
        self.seen(name)?;
        self.change_names(NameChange::Remove { name: name.to_owned() });
        Ok(())
    }

    fn lock(&mut self) -> io::Result<()> {
        if self.locked_by_another { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    }
}
