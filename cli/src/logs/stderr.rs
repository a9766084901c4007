//! Standard error as a place for lines that may be lost.
//!
//! A log must never stop the program that writes it: not by an error (the reader has gone, the disk is full), and not
//! by waiting for a reader that does not read. So nothing here fails, and what has no room within [`PATIENCE`] is left
//! out and counted; the next line that has room is preceded by their number.

use std::{
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing_subscriber::fmt::MakeWriter;

/// How long the first line that has no room waits for it. Those behind it do not wait, until there is room again.
const PATIENCE: Duration = Duration::from_millis(100);

/// So much is written without waiting when poll(2) says that there is room: PIPE_BUF, see pipe(7).
const PIECE_BYTES: usize = 4096;

/// Makes the writers of lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// Lines that had no room since the last one that had.
    left_out: Arc<AtomicU64>,
}

/// Writes one line.
#[derive(Debug)]
pub(super) struct Line<F> {
    to: F,
    left_out: Arc<AtomicU64>,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        Line { to: io::stderr(), left_out: self.left_out.clone() }
    }
}

impl<F: AsFd + Write> Write for Line<F> {
    /// Takes the whole line, whatever becomes of it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let left_out = self.left_out.load(Ordering::Relaxed);
        let patience = if left_out == 0 { PATIENCE } else { Duration::ZERO };
        if !has_room(self.to.as_fd(), patience) {
            self.left_out.store(left_out + 1, Ordering::Relaxed);
            return Ok(line.len());
        }
        if left_out > 0 {
            self.left_out.store(0, Ordering::Relaxed);
            let _ = writeln!(self.to, "({left_out} lines were left out: nobody read them in time)");
        }
        for piece in line.chunks(PIECE_BYTES) {
            if !has_room(self.to.as_fd(), PATIENCE) || self.to.write_all(piece).is_err() {
                break;
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a write goes through now, or at least comes back at once with an error.
fn has_room(to: BorrowedFd<'_>, patience: Duration) -> bool {
    let mut asked = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
    let patience = Timespec { tv_sec: 0, tv_nsec: patience.subsec_nanos().into() };
    // What poll(2) itself refuses is left to the write.
    poll(&mut asked, Some(&patience)).map_or(true, |ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{PipeWriter, Read},
    };

    use super::*;

    fn line_to(to: PipeWriter) -> Line<PipeWriter> {
        Line { to, left_out: Arc::default() }
    }

    /// Neither a reader that has gone nor a full disk is an error.
    #[test]
    fn errors_are_swallowed() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        assert_eq!(line_to(writer).write(b"line\n").unwrap(), 5);
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert_eq!(Line { to: full, left_out: Arc::default() }.write(b"line\n").unwrap(), 5);
    }

    /// A reader that does not read costs lines, and is told how many when it reads again.
    #[test]
    fn a_full_pipe_costs_lines() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut line = line_to(writer);
        let text = [&[b'x'; PIECE_BYTES - 1][..], b"\n"].concat();
        while line.left_out.load(Ordering::Relaxed) < 2 {
            assert_eq!(line.write(&text).unwrap(), text.len());
        }
        reader.read_exact(&mut vec![0; 2 * PIECE_BYTES]).unwrap();
        line.write_all(b"last\n").unwrap();
        drop(line);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(
            rest.ends_with("\n(2 lines were left out: nobody read them in time)\nlast\n"),
            "{}",
            rest.len()
        );
    }
}
