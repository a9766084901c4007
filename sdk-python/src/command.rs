//! The `ringpost` command, as the wheel brings it.

use std::{ffi::OsString, process::ExitCode};

use pyo3::prelude::*;

/// Runs the command line, whose first element is the program's own name, and gives the exit code. `again` is how to start
/// the command again, which some commands do.
#[pyfunction]
pub(crate) fn command(py: Python<'_>, line: Vec<OsString>, again: Vec<OsString>) -> u8 {
    let ended = py.detach(|| ringpost_cli::main_within(again, line));
    // An `ExitCode` does not tell its number: it is one of these 256.
    (0..=u8::MAX).find(|code| ExitCode::from(*code) == ended).unwrap_or(1)
}
