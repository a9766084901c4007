//! Telling somebody who waits how far the reading of a log is, on standard error: a line that is written over and over
//! on a terminal, a line every few seconds elsewhere. Nothing for what is done within a second.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use super::text;
use crate::output;

const ON_TERMINALS: Duration = Duration::from_millis(200);
const ELSEWHERE: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_secs(1);
/// To the line's beginning, and nothing in it any more (ECMA-48).
const CLEAR_LINE: &str = "\r\x1b[K";

/// How far it is.
#[derive(Debug)]
pub(super) struct Progress {
    on_terminal: bool,
    next: Instant,
    /// Something stands in the terminal's last line.
    shown: bool,
}

impl Progress {
    /// `alone`: nobody else writes to the terminal.
    pub(super) fn begin(alone: bool) -> Self {
        Self { on_terminal: alone && io::stderr().is_terminal(), next: Instant::now() + QUIET, shown: false }
    }

    /// So many bytes have been read, of so many if that is known.
    pub(super) fn at(&mut self, read: u64, of: Option<u64>) {
        if !self.is_due(Instant::now()) {
            return;
        }
        let line = line(read, of);
        if self.on_terminal {
            self.shown = true;
            overwrite(&line);
        } else {
            output::note(format_args!("{line}"));
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + if self.on_terminal { ON_TERMINALS } else { ELSEWHERE };
        }
        due
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            overwrite("");
        }
    }
}

fn line(read: u64, of: Option<u64>) -> String {
    match of {
        Some(of) => format!("read {} of {}", text::size(read.min(of)), text::size(of)),
        None => format!("read {}", text::size(read)),
    }
}

fn overwrite(line: &str) {
    let mut to = io::stderr().lock();
    // Where standard error cannot be written, there is nobody to tell.
    let _ = write!(to, "{CLEAR_LINE}{line}").and_then(|()| to.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Quiet for what is done soon; then now and then, and more often where the line is written over.
    #[test]
    fn pauses() {
        for (on_terminal, pause) in [(true, ON_TERMINALS), (false, ELSEWHERE)] {
            let begun = Instant::now();
            let mut progress = Progress { on_terminal, next: begun + QUIET, shown: false };
            let tick = Duration::from_millis(1);
            assert!(!progress.is_due(begun + QUIET - tick));
            assert!(progress.is_due(begun + QUIET));
            assert!(!progress.is_due(begun + QUIET + pause - tick));
            assert!(progress.is_due(begun + QUIET + pause));
        }
    }

    /// Never more than there is.
    #[test]
    fn lines() {
        assert_eq!(line(1 << 20, Some(2 << 20)), "read 1.0 MiB of 2.0 MiB");
        assert_eq!(line(3 << 20, Some(2 << 20)), "read 2.0 MiB of 2.0 MiB");
        assert_eq!(line(3 << 20, None), "read 3.0 MiB");
    }
}
