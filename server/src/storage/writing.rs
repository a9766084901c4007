//! Doing on the ring what the log's writer asks for, and reading back what it wrote.

use std::{cell::RefCell, collections::BTreeMap};

use bytes::{Bytes, BytesMut};
use ringpost_broker::{
    ReadFault,
    log::{
        Action, Fault, SegmentNumber,
        names::{self, MANIFEST},
    },
};
use ringpost_io::{
    directory::Directory,
    file::{File, Open},
    file_error::{FileError, FileOperation},
};

/// The data directory, and the segments that are written to.
#[derive(Debug)]
pub(crate) struct Performer {
    directory: Directory,
    open: RefCell<BTreeMap<SegmentNumber, File>>,
    /// Those that were read from last.
    read: RefCell<BTreeMap<SegmentNumber, File>>,
}

/// Segments that are kept open for reading.
const MOST_READ: usize = 16;

impl Performer {
    pub(crate) fn new(directory: Directory) -> Self {
        Self { directory, open: RefCell::default(), read: RefCell::default() }
    }

    /// Does one thing. What is under way together may end in any order.
    pub(crate) async fn perform(&self, action: Action) -> Result<(), Fault> {
        self.try_to(action).await.map_err(|error| {
            // What a failed sync has lost is not known, whatever it calls the reason: room does not bring it back. A write that
            // syncs itself has one word for both: if that is a full disk, the writer writes and syncs the same bytes anew.
            let synced = matches!(error.operation, FileOperation::SyncData | FileOperation::SyncAll);
            if error.is_full() && !synced { Fault::NoSpace } else { Fault::Disk(error.to_string()) }
        })
    }

    /// Reads a part of a segment, all of it.
    pub(crate) async fn read(
        &self,
        segment: SegmentNumber,
        offset: u32,
        bytes: u32,
    ) -> Result<Bytes, ReadFault> {
        let known = self.read.borrow().get(&segment).cloned();
        let file = match known {
            Some(file) => file,
            None => {
                let opened = self.directory.open_file(names::segment(segment), Open::Read).await;
                let file = opened.map_err(read_fault)?;
                let mut read = self.read.borrow_mut();
                if read.len() >= MOST_READ {
                    read.pop_first();
                }
                read.insert(segment, file.clone());
                file
            }
        };
        let buffer = BytesMut::with_capacity(bytes as usize);
        let (result, buffer) = file.read_exact_at(buffer, bytes as usize, offset.into()).await;
        result.map(|()| buffer.freeze()).map_err(read_fault)
    }

    async fn try_to(&self, action: Action) -> Result<(), FileError> {
        match action {
            Action::Prepare { segment, bytes } => {
                let file = self.directory.open_file(names::segment(segment), Open::Replace).await?;
                file.preallocate(0, bytes.into()).await?;
                file.sync_data().await?;
                self.open.borrow_mut().insert(segment, file);
                Ok(())
            }
            Action::Zero { segment, offset, bytes } => {
                self.file(segment).await?.zero(offset.into(), bytes.into()).await
            }
            Action::Write { segment, offset, bytes, synced } => {
                let file = self.file(segment).await?;
                match synced {
                    true => file.write_all_synced_at(bytes, offset.into()).await.0,
                    false => file.write_all_at(bytes, offset.into()).await.0,
                }
            }
            Action::Sync { segment } => {
                self.file(segment).await?.sync_data().await?;
                // What is sealed is not written to again.
                self.open.borrow_mut().retain(|number, _| number.0 + 1 >= segment.0);
                Ok(())
            }
            Action::SyncDirectory => self.directory.sync().await,
            Action::ReplaceManifest { bytes } => self.directory.replace(MANIFEST, bytes.to_vec()).await,
            Action::Remove { segment } => {
                self.open.borrow_mut().remove(&segment);
                self.read.borrow_mut().remove(&segment);
                self.directory.remove(names::segment(segment)).await
            }
        }
    }

    async fn file(&self, segment: SegmentNumber) -> Result<File, FileError> {
        let known = self.open.borrow().get(&segment).cloned();
        if let Some(file) = known {
            return Ok(file);
        }
        let file = self.directory.open_file(names::segment(segment), Open::Write).await?;
        self.open.borrow_mut().insert(segment, file.clone());
        Ok(file)
    }
}

/// Only what the disk says of the bytes themselves may end a request.
fn read_fault(error: FileError) -> ReadFault {
    let why = error.to_string();
    if error.is_damage() { ReadFault::Damaged(why) } else { ReadFault::Unavailable(why) }
}
