//! What waits to be sent on one connection: small messages side by side in one buffer, large payloads as they are.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::limits::{MIN_COUNTED_BYTES, MIN_SHARED_BYTES};

/// A run of bytes that is sent by one system call.
#[derive(Debug)]
pub enum Segment {
    /// Messages that were encoded here. The buffer can be used again.
    Owned(Vec<u8>),
    /// A payload that stays where it was received.
    Shared(Bytes),
}

impl Segment {
    /// Bytes that only this segment holds, or pins in a buffer that is not counted elsewhere.
    pub fn own_bytes(&self) -> usize {
        match self {
            Self::Owned(bytes) => bytes.len(),
            Self::Shared(bytes) if bytes.len() < MIN_COUNTED_BYTES => bytes.len(),
            Self::Shared(_) => 0,
        }
    }
}

impl AsRef<[u8]> for Segment {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// An outgoing queue of bytes. Encoders append; the driver takes segments off its front.
#[derive(Debug, Default)]
pub struct Outgoing {
    sealed: VecDeque<Segment>,
    sealed_bytes: usize,
    /// Of these, the segments' own.
    sealed_own_bytes: usize,
    tail: Vec<u8>,
}

impl Outgoing {
    /// An empty queue, which allocates nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The buffer that small messages are encoded into.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }

    /// Appends a payload: by reference if `bytes` is long enough to be worth a segment of its own, else by copy.
    pub fn push(&mut self, payload: &[u8], share: impl FnOnce() -> Bytes) {
        if payload.len() < MIN_SHARED_BYTES {
            self.tail.extend_from_slice(payload);
        } else {
            self.seal();
            self.put_in_line(Segment::Shared(share()));
        }
    }

    /// Ends the current segment: what follows is sent by a system call of its own.
    pub fn seal(&mut self) {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.put_in_line(Segment::Owned(tail));
        }
    }

    fn put_in_line(&mut self, segment: Segment) {
        self.sealed_bytes += segment.as_ref().len();
        self.sealed_own_bytes += segment.own_bytes();
        self.sealed.push_back(segment);
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.sealed_bytes + self.tail.len()
    }

    /// Bytes that wait, without large payloads: those are [counted](crate::Gauge) once for all who hold them.
    pub fn own_bytes(&self) -> usize {
        self.sealed_own_bytes + self.tail.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes what is to be sent next. `spare` gives an empty buffer in exchange for the one that is taken.
    pub fn pop(&mut self, spare: impl FnOnce() -> Vec<u8>) -> Option<Segment> {
        if let Some(segment) = self.sealed.pop_front() {
            self.sealed_bytes -= segment.as_ref().len();
            self.sealed_own_bytes -= segment.own_bytes();
            return Some(segment);
        }
        if self.tail.is_empty() {
            return None;
        }
        Some(Segment::Owned(std::mem::replace(&mut self.tail, spare())))
    }

    /// Drops all that waits.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Everything that waits, as one run of bytes: for tests and for transports that want it so.
    pub fn drain_to_vec(&mut self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len());
        while let Some(segment) = self.pop(Vec::new) {
            all.extend_from_slice(segment.as_ref());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Order is kept across small, large and sealed parts, and large ones are not copied.
    #[test]
    fn keeps_order_and_shares_large_parts() {
        let large = Bytes::from(vec![7u8; MIN_SHARED_BYTES]);
        let mut out = Outgoing::new();
        out.tail().extend_from_slice(b"head");
        out.push(&large, || large.clone());
        out.push(b"small", || unreachable!());
        out.seal();
        out.tail().extend_from_slice(b"next");
        assert_eq!(out.len(), 4 + MIN_SHARED_BYTES + 5 + 4);
        assert_eq!(out.own_bytes(), out.len(), "it is shared, but too small to be counted elsewhere");
        assert!(matches!(out.pop(Vec::new), Some(Segment::Owned(bytes)) if bytes == b"head"));
        assert!(
            matches!(out.pop(Vec::new), Some(Segment::Shared(bytes)) if bytes.as_ptr() == large.as_ptr())
        );
        assert!(matches!(out.pop(Vec::new), Some(Segment::Owned(bytes)) if bytes == b"small"));
        assert!(matches!(out.pop(Vec::new), Some(Segment::Owned(bytes)) if bytes == b"next"));
        assert!(out.pop(Vec::new).is_none() && out.is_empty());
    }
}
