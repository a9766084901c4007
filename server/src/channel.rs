//! The records of a connection with a secure key: beside the codec, which knows nothing of them.

use std::sync::Arc;

use ringpost_broker::Permissions;
use ringpost_protocol::{
    Outgoing, Segment,
    secure::{Incoming, KeyId, MAX_PLAINTEXT_BYTES, Responder, Sealer},
};

use crate::buffers::Buffers;

/// How much plaintext goes into one write: a large payload is sealed piece by piece, as the peer takes it, each of full records.
const MAX_PIECE_BYTES: usize = 3 * MAX_PLAINTEXT_BYTES;

/// What a connection with records has more than a plain one.
#[derive(Debug)]
pub(crate) struct Channel {
    /// What was received, as plaintext and records.
    pub(crate) incoming: Incoming,
    sealer: Sealer,
    /// Goes out first, as it is: our half of the handshake.
    hello: Vec<u8>,
    /// What is being sealed, and how much of it was.
    begun: Option<(Segment, usize)>,
    /// Nothing follows what was sealed.
    ended: bool,
    /// The key that the client has proven, or will have when its first record verifies.
    pub(crate) key: KeyId,
    /// What may be done with that key.
    pub(crate) permissions: Arc<Permissions>,
}

impl Channel {
    pub(crate) fn new(responder: Responder, key: KeyId, permissions: Arc<Permissions>) -> Self {
        Self {
            incoming: Incoming::new(responder.opener),
            sealer: responder.sealer,
            hello: responder.hello.to_vec(),
            begun: None,
            ended: false,
            key,
            permissions,
        }
    }

    /// What is to be sent next of that which waits in `out`, as records.
    pub(crate) fn next(&mut self, out: &mut Outgoing, buffers: &mut Buffers) -> Option<Segment> {
        if !self.hello.is_empty() {
            return Some(Segment::Owned(std::mem::take(&mut self.hello)));
        }
        let (segment, start) = match self.begun.take() {
            Some(begun) => begun,
            None => (out.pop(Vec::new)?, 0),
        };
        let plaintext = segment.as_ref();
        let end = plaintext.len().min(start + MAX_PIECE_BYTES);
        let mut records = buffers.take();
        self.sealer.seal(&plaintext[start..end], &mut records);
        if end < plaintext.len() {
            self.begun = Some((segment, end));
        } else if let Segment::Owned(buffer) = segment {
            buffers.give_back(buffer);
        }
        Some(Segment::Owned(records))
    }

    /// The record that says that nothing follows; once.
    pub(crate) fn end(&mut self) -> Option<Segment> {
        if std::mem::replace(&mut self.ended, true) {
            return None;
        }
        let mut record = Vec::new();
        self.sealer.end(&mut record);
        Some(Segment::Owned(record))
    }

    /// Bytes of what is being sealed that still wait.
    pub(crate) fn waiting(&self) -> usize {
        self.begun.as_ref().map_or(0, |(segment, sealed)| segment.as_ref().len() - sealed)
    }

    /// Bytes that only this channel holds.
    pub(crate) fn own_bytes(&self) -> usize {
        size_of::<Self>() + self.begun.as_ref().map_or(0, |(segment, _)| segment.own_bytes())
    }
}
