//! Buffers to write with, used again and again.

/// Buffers that are kept at most. More than that were never in use at once in a turn of any benchmark.
const MAX_KEPT: usize = 256;
/// A buffer that grew larger than this is given back to the allocator.
const MAX_KEPT_BYTES: usize = 256 << 10;
/// What a new buffer begins with.
const FIRST_BYTES: usize = 4 << 10;

/// Empty buffers of a shard, the last one used on top, since it is still in the cache.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    spare: Vec<Vec<u8>>,
}

impl Buffers {
    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| Vec::with_capacity(FIRST_BYTES))
    }

    pub(crate) fn give_back(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < MAX_KEPT && (1..=MAX_KEPT_BYTES).contains(&buffer.capacity()) {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}
