//! How large a buffer the next read of a connection gets.
//!
//! A pending read owns its buffer, so ten thousand idle connections hold ten thousand of them: they must be small. A
//! busy connection wants few large reads. So the size follows what comes: a read that fills its buffer doubles it, and
//! reads that leave most of it empty halve it again.

use bytes::BytesMut;

/// The size with which a connection begins, and the least it goes back to.
pub const MIN_READ_BYTES: usize = 4 << 10;
/// The most that is offered to a read, unless the rest of a large message is awaited.
pub const MAX_READ_BYTES: usize = 64 << 10;
/// The most that a buffer grows by at once for the rest of a large message.
const MAX_GROWTH_BYTES: usize = 1 << 20;
/// So many reads in a row must leave three quarters empty before the size is halved.
const PATIENCE: u8 = 8;

/// The size of one connection's reads.
#[derive(Debug, Clone)]
pub struct ReadSize {
    bytes: usize,
    sparse: u8,
    /// At least the size of the allocation behind the buffer. The buffer itself does not tell: its capacity is only
    /// what is left of it.
    allocated: usize,
}

impl Default for ReadSize {
    fn default() -> Self {
        Self { bytes: MIN_READ_BYTES, sparse: 0, allocated: 0 }
    }
}

impl ReadSize {
    /// The size of the allocation behind the buffer, or a little more.
    pub fn allocated_bytes(&self) -> usize {
        self.allocated
    }

    /// Learns from a read that brought `read` bytes into `offered` bytes of room.
    pub fn observe(&mut self, read: usize, offered: usize) {
        if read >= offered && offered >= self.bytes {
            self.bytes = (self.bytes * 2).min(MAX_READ_BYTES);
            self.sparse = 0;
        } else if read >= self.bytes / 4 {
            self.sparse = 0;
        } else {
            self.sparse += 1;
            if self.sparse >= PATIENCE {
                self.bytes = (self.bytes / 2).max(MIN_READ_BYTES);
                self.sparse = 0;
            }
        }
    }

    /// Makes room for the next read in what is left of the last one.
    ///
    /// `missing` is how many bytes complete the message at the front of the buffer, as far as known, else 0. A peer's
    /// claim alone allocates nothing: a buffer at most doubles, so it is at most twice what really arrived.
    pub fn prepare(&mut self, buffer: &mut BytesMut, missing: usize) {
        let growth = buffer.len().clamp(self.bytes, MAX_GROWTH_BYTES);
        let wanted = if missing > self.bytes { missing.min(growth) } else { self.bytes };
        if buffer.is_empty() && self.allocated > wanted.saturating_mul(4) {
            // Larger than this connection needs by now: even its last few bytes would keep all of it.
            *buffer = BytesMut::with_capacity(wanted);
            self.allocated = buffer.capacity();
        } else if buffer.capacity() - buffer.len() < wanted {
            // Free once nobody holds what was decoded from it: then it only goes back to its beginning.
            buffer.reserve(wanted);
            self.allocated = self.allocated.max(buffer.capacity());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Full reads double the size up to the maximum; sparse ones bring it back to the minimum.
    #[test]
    fn follows_what_comes() {
        let mut size = ReadSize::default();
        let mut buffer = BytesMut::new();
        size.prepare(&mut buffer, 0);
        assert_eq!(buffer.capacity(), MIN_READ_BYTES);
        for _ in 0..10 {
            let offered = buffer.capacity();
            size.observe(offered, offered);
            buffer.clear();
            size.prepare(&mut buffer, 0);
        }
        assert_eq!(buffer.capacity(), MAX_READ_BYTES);
        for _ in 0..10 * usize::from(PATIENCE) {
            size.observe(100, buffer.capacity());
            size.prepare(&mut buffer, 0);
        }
        assert!(buffer.capacity() <= 4 * MIN_READ_BYTES, "{}", buffer.capacity());
    }

    /// A length that is only claimed allocates little, one that is true is reached with few reads.
    #[test]
    fn grows_with_what_arrived() {
        let mut size = ReadSize::default();
        let total = 16 << 20;
        let mut buffer = BytesMut::new();
        let mut reads = 0;
        while buffer.len() < total {
            let missing = total - buffer.len();
            size.prepare(&mut buffer, missing);
            assert!(buffer.capacity() <= 2 * buffer.len().max(MIN_READ_BYTES) + MAX_GROWTH_BYTES);
            buffer.resize(buffer.capacity().min(total), 0);
            reads += 1;
        }
        assert!(reads < 40, "{reads}");
    }

    /// Of a large message nothing is kept while the next one is awaited, however much its buffer has left over.
    #[test]
    fn lets_go_of_a_large_buffer() {
        for left_over in [0, MIN_READ_BYTES, 3 * MIN_READ_BYTES, 1 << 20] {
            let (mut size, mut buffer) = (ReadSize::default(), BytesMut::new());
            while buffer.capacity() < 1 << 20 {
                let missing = (16 << 20) - buffer.len();
                size.prepare(&mut buffer, missing);
                buffer.resize(buffer.capacity(), 7);
            }
            let allocation = buffer.as_ptr_range();
            buffer.truncate(buffer.capacity() - left_over.min(buffer.capacity() / 2));
            let message = buffer.split().freeze();
            size.prepare(&mut buffer, 0);
            assert!(!allocation.contains(&buffer.as_ptr()), "{left_over} bytes keep {}", message.len());
            assert_eq!(buffer.capacity(), MIN_READ_BYTES);
        }
    }

    /// On the steady path one allocation serves all reads.
    #[test]
    fn reuses_the_buffer() {
        let mut size = ReadSize::default();
        let mut buffer = BytesMut::new();
        size.prepare(&mut buffer, 0);
        let first = buffer.as_ptr();
        for _ in 0..100 {
            buffer.extend_from_slice(&[7; 1000]);
            drop(buffer.split_to(1000).freeze());
            size.prepare(&mut buffer, 0);
        }
        assert_eq!(buffer.as_ptr(), first);
    }
}
