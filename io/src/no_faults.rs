//! No faults: what `faults` is in a build without that feature. It comes to nothing.

use std::{io, path::Path};

use crate::file_error::FileOperation;

/// How many of `length` bytes an operation may transfer: all of them.
#[inline]
pub(crate) fn admit(_path: &Path, _operation: FileOperation, length: usize) -> io::Result<usize> {
    Ok(length)
}

/// The same on a ring.
#[inline]
pub(crate) async fn admit_on_ring(
    _path: &Path,
    _operation: FileOperation,
    length: usize,
) -> io::Result<usize> {
    Ok(length)
}
