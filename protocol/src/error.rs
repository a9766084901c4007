use std::borrow::Cow;

use crate::Code;

/// Bytes that the protocol does not allow: the connection that they came on is told and closed.
///
/// "Need more bytes" is not an error; decoders say it with `Ok(None)`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct WireError {
    /// Which family of error.
    pub code: Code,
    /// What was wrong with which bytes, and what is allowed.
    pub message: Cow<'static, str>,
}

impl WireError {
    /// An error with a message.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }

    /// [`Code::Malformed`] with a message.
    pub fn malformed(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Malformed, message)
    }
}
