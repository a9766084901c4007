//! Cuts a stream of bytes into frames.

use bytes::{Bytes, BytesMut};

use super::HEADER_BYTES;
use crate::{Code, WireError, limits::FRAME_OVERHEAD_BYTES};

/// Takes whole frames off the front of a buffer.
#[derive(Debug, Clone)]
pub struct FrameReader {
    max_length: u32,
    /// `None`: only what has no payload is expected.
    max_payload: Option<u32>,
}

impl FrameReader {
    /// A reader that refuses frames which cannot hold at most `max_payload` bytes of payload.
    pub fn new(max_payload: u32) -> Self {
        Self { max_length: max_payload.saturating_add(FRAME_OVERHEAD_BYTES), max_payload: Some(max_payload) }
    }

    /// A reader for a connection's first frame, which is a hello.
    pub fn greeting() -> Self {
        Self { max_length: FRAME_OVERHEAD_BYTES, max_payload: None }
    }

    /// The next whole frame, header included, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`Code::TooLarge`] as soon as a header claims more than the limit: nothing is allocated for a claim.
    pub fn next(&self, buffer: &mut BytesMut) -> Result<Option<Bytes>, WireError> {
        match self.frame_bytes(buffer)? {
            Some(bytes) if bytes <= buffer.len() => Ok(Some(buffer.split_to(bytes).freeze())),
            _ => Ok(None),
        }
    }

    /// How many more bytes complete the frame at the front of the buffer: a hint for the next read. 0 if nothing is
    /// known yet, or if it is complete.
    pub fn missing(&self, buffer: &[u8]) -> usize {
        match self.frame_bytes(buffer) {
            Ok(Some(bytes)) => bytes.saturating_sub(buffer.len()),
            _ => 0,
        }
    }

    fn frame_bytes(&self, buffer: &[u8]) -> Result<Option<usize>, WireError> {
        let Some(header) = buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        if length > self.max_length {
            return Err(self.too_large(length));
        }
        Ok(Some(HEADER_BYTES + length as usize))
    }

    #[cold]
    fn too_large(&self, length: u32) -> WireError {
        let message = match self.max_payload {
            Some(most) => format!(
                "a frame of {length} bytes was announced: payloads are limited to {most} bytes (the server's --max-payload)"
            ),
            None => format!(
                "a first frame of {length} bytes was announced: it must be a hello, which is not longer than {} bytes",
                self.max_length
            ),
        };
        WireError::new(Code::TooLarge, message)
    }
}
