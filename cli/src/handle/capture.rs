//! What a command writes, within bounds.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// How much is read at once.
const CHUNK_BYTES: usize = 16 << 10;

/// The whole of an output, up to a limit.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) bytes: Vec<u8>,
    limit: usize,
}

impl Whole {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit }
    }

    /// Reads to the end. `Ok(false)` as soon as there is more than the limit.
    pub(super) async fn fill(&mut self, from: impl AsyncRead + Unpin) -> io::Result<bool> {
        // One byte more than is allowed tells that there are too many.
        let most = (self.limit as u64).saturating_add(1);
        from.take(most).read_to_end(&mut self.bytes).await?;
        Ok(self.bytes.len() <= self.limit)
    }
}

/// The last bytes of an output: of an error's text the end is what says most.
#[derive(Debug)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    limit: usize,
    cut: bool,
}

impl Tail {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, cut: false }
    }

    /// Reads to the end, however long it is: a full pipe would stop the command.
    pub(super) async fn fill(&mut self, mut from: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = from.read(&mut chunk).await?;
            if read == 0 {
                return Ok(());
            }
            self.append(&chunk[..read]);
        }
    }

    fn append(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
        if let Some(surplus) = self.bytes.len().checked_sub(self.limit).filter(|&surplus| surplus > 0) {
            self.bytes.drain(..surplus);
            self.cut = true;
        }
    }

    /// For people: without space around it, and with a mark where its beginning is missing.
    pub(super) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        // A character that was cut in two.
        let text = if self.cut { text.trim_start_matches(char::REPLACEMENT_CHARACTER) } else { &text };
        format!("{}{}", if self.cut { "…" } else { "" }, text.trim())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Up to the limit everything is kept; one byte more is noticed.
    #[tokio::test]
    async fn whole_is_bounded() {
        for (text, fits) in [(&b""[..], true), (b"abcd", true), (b"abcde", false), (b"abcdefgh", false)] {
            let mut whole = Whole::new(4);
            assert_eq!(whole.fill(text).await.unwrap(), fits, "{text:?}");
            assert!(whole.bytes.len() <= 5);
        }
    }

    /// Only the end is kept, in whole characters.
    #[tokio::test]
    async fn tail_keeps_the_end() {
        let mut tail = Tail::new(8);
        tail.fill(&b" short \n"[..]).await.unwrap();
        assert_eq!(tail.text(), "short");
        tail.fill("grüße an alle".as_bytes()).await.unwrap();
        assert_eq!(tail.text(), "…an alle");
        let mut tail = Tail::new(3);
        tail.fill("üü".as_bytes()).await.unwrap();
        assert_eq!(tail.text(), "…ü");
    }
}
