//! A handler's reply, on both sides of the wire.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use ringpost_client::{Error, Info};
use ringpost_protocol::{Code, Content, Headers, Status, encode_headers};
use serde::{Serialize, de::DeserializeOwned};

/// What a handler answers, and what a requester gets: data, with options and headers where they are wanted.
///
/// Data is JSON text by convention: [`Reply::json`] writes it and [`Reply::data`] reads it. Any other bytes go through
/// as they are between clients that speak the binary dialect, as this one does.
///
/// A received reply shares the buffer that it was read into (64 KiB, or its own size if that is more). To keep a small
/// one for long, keep what you parsed, or a copy.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    payload: Bytes,
    options: Bytes,
    headers: Bytes,
    info: Info,
}

impl Reply {
    /// A reply with data as JSON text.
    ///
    /// # Errors
    /// [`Code::Malformed`] if the value cannot be written as JSON.
    pub fn json<T: Serialize + ?Sized>(data: &T) -> Result<Self, Error> {
        Ok(Self { payload: to_json("the reply's data", data)?.into(), ..Self::default() })
    }

    /// A reply with data as it is.
    pub fn bytes(data: impl Into<Bytes>) -> Self {
        Self { payload: data.into(), ..Self::default() }
    }

    /// With options, as JSON text.
    ///
    /// # Errors
    /// [`Code::Malformed`] if the value cannot be written as JSON.
    pub fn with_options<T: Serialize + ?Sized>(mut self, options: &T) -> Result<Self, Error> {
        self.options = to_json("the reply's options", options)?.into();
        Ok(self)
    }

    /// With headers.
    ///
    /// # Errors
    /// [`Code::TooLarge`] if a key is longer than 255 bytes, or all together are longer than 65535.
    pub fn with_headers<'a>(
        mut self,
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Error> {
        self.headers =
            encode_headers(pairs).map_err(|error| Error::new(Code::TooLarge, error.to_string()))?;
        Ok(self)
    }

    /// Reads the data as JSON.
    ///
    /// # Errors
    /// [`Code::Malformed`] if it is not JSON, or not of this type.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T, Error> {
        from_json("the reply's data", &self.payload)
    }

    /// The data as it came.
    pub fn as_bytes(&self) -> &[u8] {
        &self.payload
    }

    /// The data as it came, sharing the buffer.
    pub fn into_bytes(self) -> Bytes {
        self.payload
    }

    /// Reads the options as JSON; `None` if there are none.
    ///
    /// # Errors
    /// [`Code::Malformed`] if they are not of this type.
    pub fn options<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        optional_json("the reply's options", &self.options)
    }

    /// The options as they came: JSON text, or nothing.
    pub fn options_bytes(&self) -> &[u8] {
        &self.options
    }

    /// The headers, in the order of their sender.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        pairs(&self.headers)
    }

    /// The first header with this key.
    pub fn header(&self, key: &str) -> Option<&str> {
        self.headers().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// What became of the request: of a reply always [`Status::Handled`].
    pub fn status(&self) -> Status {
        Status::Handled
    }

    /// When the broker received the request and what happened then.
    pub fn info(&self) -> ReplyInfo {
        ReplyInfo::new(&self.info)
    }

    pub(crate) fn received(content: &Content, info: Info) -> Self {
        Self {
            payload: content.payload_bytes(),
            options: content.options_bytes(),
            headers: content.headers_bytes(),
            info,
        }
    }

    /// For the wire. Data alone is not copied.
    pub(crate) fn into_content(self) -> Content {
        if self.options.is_empty() && self.headers.is_empty() {
            Content::from_payload(self.payload)
        } else {
            Content::from_parts(b"", &self.options, &self.headers, &self.payload)
        }
    }
}

/// When things happened to a request, by the broker's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyInfo {
    /// When the broker received the request.
    pub received_at: SystemTime,
    /// When the broker last delivered it to a handler.
    pub delivered_at: Option<SystemTime>,
    /// When the handler's answer reached the broker.
    pub handled_at: Option<SystemTime>,
    /// The number of the last delivery, from 1; 0 if there was none.
    pub attempt: u16,
}

impl ReplyInfo {
    pub(crate) fn new(info: &Info) -> Self {
        let received_at = SystemTime::UNIX_EPOCH + Duration::from_millis(info.received_at_ms);
        let after = |ms: Option<u32>| ms.map(|ms| received_at + Duration::from_millis(u64::from(ms)));
        Self {
            received_at,
            delivered_at: after(info.delivered_after_ms),
            handled_at: after(info.handled_after_ms),
            attempt: info.attempt,
        }
    }
}

pub(crate) fn to_json<T: Serialize + ?Sized>(what: &str, value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value)
        .map_err(|error| Error::new(Code::Malformed, format!("{what} cannot be written as JSON: {error}")))
}

pub(crate) fn from_json<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::new(
            Code::Malformed,
            format!("{what} cannot be read as asked for{}: {error}", place::<T>(bytes)),
        )
    })
}

/// Where in the data the mistake is. It is read once more for that: what can be read costs nothing extra.
fn place<T: DeserializeOwned>(bytes: &[u8]) -> String {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    match serde_path_to_error::deserialize::<_, T>(&mut json) {
        Err(error) if error.path().iter().len() > 0 => format!(" at `{}`", error.path()),
        // It is the whole, or what follows it.
        _ => String::new(),
    }
}

pub(crate) fn optional_json<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<Option<T>, Error> {
    if bytes.is_empty() { Ok(None) } else { from_json(what, bytes).map(Some) }
}

/// Headers that were checked when they were decoded; what cannot be read ends them.
pub(crate) fn pairs(bytes: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    Headers::new(bytes).map_while(Result::ok)
}
