//! The variable parts of a message, as spans of the one buffer that they arrived in.

use bytes::{BufMut, Bytes, BytesMut};

use crate::Gauge;

/// A part of a [`Content`]'s buffer: from `start` up to, not including, `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset behind the last byte.
    pub end: u32,
}

impl Span {
    /// A span over `start..end`. Offsets beyond 4 GiB cannot occur: frames are bounded far below.
    pub fn new(start: usize, end: usize) -> Self {
        debug_assert!(start <= end && end <= u32::MAX as usize);
        Self { start: start as u32, end: end as u32 }
    }

    /// How many bytes it covers.
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether it covers nothing.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    pub(crate) fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.end as usize]
    }
}

/// What a message carries: a name, the requester's tag, options, headers and a payload.
///
/// All of it lies in one reference-counted buffer, so that moving a message costs one pointer and forwarding it one
/// copy. Which of the parts a message has depends on its kind:
///
/// | part | in a request | in an error |
/// |---|---|---|
/// | name | the action | the handler's own code |
/// | tag | JSON's `clientId`, as written | – |
/// | options | JSON text of the user's options, or nothing | – |
/// | headers | see [`Headers`] | as sent |
/// | payload | the data: JSON text by convention | the message for people, UTF-8 |
#[derive(Debug, Clone, Default)]
pub struct Content {
    bytes: Bytes,
    name: Span,
    tag: Span,
    options: Span,
    headers: Span,
    payload: Span,
    json: bool,
    counted: bool,
}

impl Content {
    /// Puts spans over a buffer.
    ///
    /// # Panics
    /// If a span reaches beyond the buffer: the decoders check before they call.
    pub fn from_spans(
        bytes: Bytes,
        name: Span,
        tag: Span,
        options: Span,
        headers: Span,
        payload: Span,
    ) -> Self {
        for span in [name, tag, options, headers, payload] {
            assert!(span.start <= span.end && span.end as usize <= bytes.len());
        }
        Self { bytes, name, tag, options, headers, payload, json: false, counted: false }
    }

    /// Content with only a payload. The buffer is shared, not copied.
    pub fn from_payload(payload: impl Into<Bytes>) -> Self {
        let bytes = payload.into();
        let payload = Span::new(0, bytes.len());
        Self { bytes, payload, ..Self::default() }
    }

    /// Content with only a name. The buffer is shared, not copied.
    pub fn from_name(name: impl Into<Bytes>) -> Self {
        let bytes = name.into();
        let name = Span::new(0, bytes.len());
        Self { bytes, name, ..Self::default() }
    }

    /// Content from its parts, copied into one buffer in the wire's order: name, options, headers, payload.
    pub fn from_parts(name: &[u8], options: &[u8], headers: &[u8], payload: &[u8]) -> Self {
        Self::with_tag(name, b"", options, headers, payload)
    }

    /// The same with JSON's `clientId`, as it was written.
    pub fn with_tag(name: &[u8], tag: &[u8], options: &[u8], headers: &[u8], payload: &[u8]) -> Self {
        let length = name.len() + tag.len() + options.len() + headers.len() + payload.len();
        let mut buffer = Vec::with_capacity(length);
        let mut append = |part: &[u8]| {
            let start = buffer.len();
            buffer.extend_from_slice(part);
            Span::new(start, buffer.len())
        };
        let (name, tag) = (append(name), append(tag));
        let (options, headers, payload) = (append(options), append(headers), append(payload));
        let bytes = buffer.into();
        Self { bytes, name, tag, options, headers, payload, ..Self::default() }
    }

    /// The same content, known to hold JSON: the JSON decoder has parsed its payload and its options.
    #[must_use]
    pub(crate) fn validated(mut self) -> Self {
        self.json = true;
        self
    }

    /// Whether payload and options are known to be JSON, because they came in the JSON dialect. `false` says nothing:
    /// the JSON encoder looks for itself then.
    pub fn is_validated_json(&self) -> bool {
        self.json
    }

    /// The name: an action, or a handler's own error code.
    pub fn name(&self) -> &[u8] {
        self.name.of(&self.bytes)
    }

    /// JSON's `clientId` as it was written (with its quotes); empty where there was none.
    pub fn tag(&self) -> &[u8] {
        self.tag.of(&self.bytes)
    }

    /// JSON text of the options; empty where there were none.
    pub fn options(&self) -> &[u8] {
        self.options.of(&self.bytes)
    }

    /// The encoded headers; empty where there were none.
    pub fn headers(&self) -> &[u8] {
        self.headers.of(&self.bytes)
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        self.payload.of(&self.bytes)
    }

    /// The payload, sharing the message's buffer.
    pub fn payload_bytes(&self) -> Bytes {
        self.share(self.payload)
    }

    /// The options, sharing the message's buffer.
    pub fn options_bytes(&self) -> Bytes {
        self.share(self.options)
    }

    /// The headers, sharing the message's buffer.
    pub fn headers_bytes(&self) -> Bytes {
        self.share(self.headers)
    }

    fn share(&self, span: Span) -> Bytes {
        self.bytes.slice(span.start as usize..span.end as usize)
    }

    /// Bytes of all parts together.
    pub fn len(&self) -> usize {
        self.name.len() + self.tag.len() + self.options.len() + self.headers.len() + self.payload.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves the parts into a buffer of their own when the shared one may pin much more than they need.
    ///
    /// `kept_bytes` is the size that is worth sharing: a buffer as large as that belongs to this message alone, since
    /// decoders read large messages into a buffer of their own, and leave out what is not a part of it. Call it before a
    /// message outlives its turn.
    pub fn detach(&mut self, kept_bytes: usize) {
        if self.bytes.len() >= kept_bytes {
            return;
        }
        let mut own = Vec::with_capacity(self.len());
        self.copy_parts(&mut own);
        self.bytes = own.into();
        self.counted = false;
    }

    /// Lets a gauge count the shared buffer, if that is as large as `least_bytes`: once for all who hold parts of it.
    #[inline]
    pub fn count_large(&mut self, least_bytes: usize, gauge: &Gauge) {
        if self.bytes.len() >= least_bytes {
            self.count(gauge);
        }
    }

    #[cold]
    fn count(&mut self, gauge: &Gauge) {
        if !self.counted {
            self.bytes = gauge.count(std::mem::take(&mut self.bytes));
            self.counted = true;
        }
    }

    /// Bytes of all parts, or 0 where a gauge counts the buffer that they are in.
    pub fn uncounted_len(&self) -> usize {
        if self.counted { 0 } else { self.len() }
    }

    /// Moves the parts to the end of a buffer that is filled by many messages.
    pub fn detach_into(&mut self, chunk: &mut BytesMut) {
        self.copy_parts(chunk);
        self.bytes = chunk.split().freeze();
        self.counted = false;
    }

    /// Copies part by part into an empty buffer: a JSON object may have much between them that nobody reads.
    fn copy_parts(&mut self, own: &mut impl BufMut) {
        let mut start = 0;
        for span in [&mut self.name, &mut self.tag, &mut self.options, &mut self.headers, &mut self.payload] {
            own.put_slice(span.of(&self.bytes));
            *span = Span::new(start, start + span.len());
            start = span.end as usize;
        }
    }
}

/// Two contents are equal when their parts are, wherever those lie.
impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
            && self.tag() == other.tag()
            && self.options() == other.options()
            && self.headers() == other.headers()
            && self.payload() == other.payload()
    }
}

/// Reads encoded headers: pairs of a key (length in 1 byte) and a value (length in 2 bytes, little-endian).
///
/// ```
/// use ringpost_protocol::{Headers, encode_headers};
/// let bytes = encode_headers([("traceparent", "00-ab-cd-01")]).unwrap();
/// let pairs: Vec<_> = Headers::new(&bytes).map(Result::unwrap).collect();
/// assert_eq!(pairs, [("traceparent", "00-ab-cd-01")]);
/// ```
#[derive(Debug, Clone)]
pub struct Headers<'a> {
    rest: &'a [u8],
}

/// Headers that are not what their lengths say, or not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "headers are pairs of key (1 byte of length) and value (2 bytes of length), both UTF-8, at most 65535 bytes together"
)]
pub struct BadHeaders;

impl<'a> Headers<'a> {
    /// Reads from the encoded bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn pair(rest: &'a [u8]) -> Option<(&'a str, &'a str, &'a [u8])> {
        let (key_length, rest) = rest.split_first()?;
        let (key, rest) = rest.split_at_checked(usize::from(*key_length))?;
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        Some((std::str::from_utf8(key).ok()?, std::str::from_utf8(value).ok()?, rest))
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = Result<(&'a str, &'a str), BadHeaders>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match Self::pair(self.rest) {
            Some((key, value, rest)) => {
                self.rest = rest;
                Some(Ok((key, value)))
            }
            None => {
                self.rest = &[];
                Some(Err(BadHeaders))
            }
        }
    }
}

/// Encodes headers in the order given; keys may repeat.
///
/// # Errors
/// [`BadHeaders`] when a key is longer than 255 bytes or all of them longer than 65535.
pub fn encode_headers<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Bytes, BadHeaders> {
    let mut out = Vec::new();
    for (key, value) in pairs {
        out.push(u8::try_from(key.len()).map_err(|_| BadHeaders)?);
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(&u16::try_from(value.len()).map_err(|_| BadHeaders)?.to_le_bytes());
        out.extend_from_slice(value.as_bytes());
    }
    if out.len() > crate::limits::MAX_HEADERS_BYTES { Err(BadHeaders) } else { Ok(out.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A detached content has the same parts and no longer holds the large buffer.
    #[test]
    fn detach_keeps_parts() {
        let mut buffer = vec![b'.'; 4096];
        buffer[100..108].copy_from_slice(b"client_1");
        buffer[200..203].copy_from_slice(b"{1}");
        let spans =
            (Span::new(100, 108), Span::default(), Span::default(), Span::default(), Span::new(200, 203));
        let mut content = Content::from_spans(buffer.into(), spans.0, spans.1, spans.2, spans.3, spans.4);
        let before = content.clone();
        content.detach(8192);
        assert_eq!(content, before);
        assert_eq!(content.bytes.len(), 11);
    }

    /// Lengths that lie are an error, once, and not a panic.
    #[test]
    fn bad_headers_end_the_iteration() {
        let mut headers = Headers::new(&[3, b'a', b'b']);
        assert_eq!(headers.next(), Some(Err(BadHeaders)));
        assert_eq!(headers.next(), None);
    }
}
