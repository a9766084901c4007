//! Where words go: results to standard output, all else to standard error.

use std::{
    fmt, future,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
};

use tokio::{io::Interest, net::unix::pipe};

use crate::exit::{Failure, Outcome};

/// Writes a result and ends its line. It is out when this returns: whoever reads line by line waits for it.
pub(crate) fn line(bytes: &[u8]) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush())
        .map_err(|error| Failure::output(&error))
}

/// Writes a result as it is.
pub(crate) fn raw(bytes: &[u8]) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| Failure::output(&error))
}

/// Lets something else write a result.
pub(crate) fn with(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Outcome {
    let mut out = io::stdout().lock();
    write(&mut out).and_then(|()| out.flush()).map_err(|error| Failure::output(&error))
}

/// Tells the user something that is no result. Where standard error cannot be written, there is nobody to tell.
pub(crate) fn note(what: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{what}");
}

/// Waits until nobody can read the results any more: for commands that may have nothing to write for long, and would
/// not notice. May be dropped and called again. Within a runtime only.
pub(crate) async fn reader_gone() {
    // Nothing is written by it, so that whether it is a pipe does not matter: epoll tells of the end of sockets too. A
    // file is refused, and has no reader that could go.
    let watch = || pipe::Sender::from_owned_fd_unchecked(io::stdout().as_fd().try_clone_to_owned()?);
    if let Ok(out) = watch()
        && out.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    future::pending().await
}

/// Whether somebody looks at the results as they come.
pub(crate) fn is_watched() -> bool {
    io::stdout().is_terminal()
}

/// JSON text on one line. Within its strings no line can end: there it would be written `\n`.
pub(crate) fn one_line(json: &[u8]) -> Vec<u8> {
    json.iter().map(|&byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }).collect()
}

/// Two columns for people: names to the left, numbers to the right.
pub(crate) fn columns<'a>(rows: impl Iterator<Item = (&'a str, String)> + Clone) -> String {
    let name_width = rows.clone().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let value_width = rows.clone().map(|(_, value)| value.chars().count()).max().unwrap_or(0);
    rows.map(|(name, value)| format!("  {name:<name_width$}  {value:>value_width$}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only the space between values changes.
    #[test]
    fn one_line_keeps_the_value() {
        let text = b"{\n  \"a\": \"x\\ny\"\r\n}";
        let line = one_line(text);
        assert!(!line.contains(&b'\n'));
        let value = |text| serde_json::from_slice::<serde_json::Value>(text).unwrap();
        assert_eq!(value(&line), value(text));
    }

    /// Columns are as wide as their widest cell.
    #[test]
    fn aligned_columns() {
        let rows = [("a", "1".to_owned()), ("long", "1000".to_owned())];
        assert_eq!(columns(rows.into_iter()), "  a        1\n  long  1000\n");
    }
}
