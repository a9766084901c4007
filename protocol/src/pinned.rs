//! Counting large buffers for as long as anybody holds them.
//!
//! A large payload is shared, not copied: by the queue that it waits in, by the connections that it goes out on, by the
//! outcomes that are kept. Adding up what each of them holds would count it many times; what it costs is one buffer, until
//! the last of them lets go of it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;

/// Bytes of the buffers that were [counted](Self::count) and that somebody still holds. Clones are the same gauge.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicUsize>);

impl Gauge {
    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        // Nothing is published through this number, so no order is needed.
        self.0.load(Ordering::Relaxed)
    }

    /// The same bytes, counted here until the last clone or slice of them is dropped. Allocates some 50 bytes.
    #[must_use]
    pub fn count(&self, bytes: Bytes) -> Bytes {
        self.0.fetch_add(bytes.len(), Ordering::Relaxed);
        Bytes::from_owner(Counted { bytes, gauge: self.clone() })
    }
}

struct Counted {
    bytes: Bytes,
    gauge: Gauge,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauge.0.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer counts once, however many hold parts of it, and until the last of them is gone.
    #[test]
    fn counts_a_buffer_once() {
        let gauge = Gauge::default();
        let bytes = gauge.count(Bytes::from(vec![7; 1000]));
        let (half, other) = (bytes.slice(500..), gauge.count(Bytes::from_static(b"ten bytes!")));
        assert_eq!(gauge.bytes(), 1010);
        drop((bytes, other));
        assert_eq!((gauge.bytes(), half.len()), (1000, 500));
        drop(half);
        assert_eq!(gauge.bytes(), 0);
    }
}
