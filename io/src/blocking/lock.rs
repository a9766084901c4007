//! A lock between processes.

use std::{io, str};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::File;
use crate::{
    faults::admit,
    file_error::{FileOperation, LockError},
};

/// A file that is locked (flock(2)) against all others who lock it, until this is dropped or the process ends, however it
/// ends. In the file is the holder's process id, for people.
///
/// The file stays when the lock is released: were it removed, two processes could hold locks on two files of one name.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    pub(super) fn acquire(file: File) -> Result<Self, LockError> {
        let locked = admit(file.path(), FileOperation::Lock, 0)
            .and_then(|_| Ok(flock(file.descriptor(), FlockOperation::NonBlockingLockExclusive)?));
        match locked {
            Ok(()) => {}
            Err(error) if Errno::from_io_error(&error) == Some(Errno::WOULDBLOCK) => {
                return Err(LockError::Held { path: file.path().into(), holder: holder(&file) });
            }
            Err(source) => return Err(file.failed(FileOperation::Lock, source).into()),
        }
        // A full disk must not keep a server from starting, and the number is for people only.
        if let Err(error) = write_holder(&file) {
            tracing::warn!(%error, path = %file.path().display(), "the lock does not say who has it");
        }
        Ok(Self { file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone would not do it while a child that is just being started still shares the descriptor.
        if let Err(error) = flock(self.file.descriptor(), FlockOperation::Unlock) {
            tracing::debug!(%error, path = %self.file.path().display(), "the lock ends with its last descriptor");
        }
    }
}

fn write_holder(file: &File) -> io::Result<()> {
    file.set_length(0)?;
    file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0).map_err(|error| error.source)
}

/// Who says to have locked it; nothing if that cannot be read.
fn holder(file: &File) -> Option<u32> {
    let mut bytes = [0; 16];
    let length = usize::try_from(file.length().ok()?).ok()?;
    let bytes = bytes.get_mut(..length)?;
    file.read_exact_at(bytes, 0).ok()?;
    str::from_utf8(bytes).ok()?.trim_end().parse().ok()
}
