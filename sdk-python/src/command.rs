//! The `ringpost` command, as the wheel brings it.

use std::process::ExitCode;

use pyo3::prelude::*;

/// Runs the command line, whose first element is the program's own name, and gives the exit code.
#[pyfunction]
pub(crate) fn command(py: Python<'_>, line: Vec<String>) -> u8 {
    let ended = py.detach(|| ringpost_cli::main(line));
    // An `ExitCode` does not tell its number: it is one of these 256.
    (0..=u8::MAX).find(|code| ExitCode::from(*code) == ended).unwrap_or(1)
}
