//! The secure key that a client was given, and what is made of it when it connects.

use std::env;

use ringpost_client::Error;
use ringpost_protocol::{Code, secure::SecureKey};
use zeroize::Zeroizing;

/// Where a client looks for a secure key that it was not given.
const VARIABLE: &str = "RINGPOST_SECURE_KEY";

/// A secure key for [`ClientBuilder::secure_key`](crate::ClientBuilder::secure_key): its text, or a [`SecureKey`].
#[derive(Debug, Clone)]
pub struct GivenKey(Given);

#[derive(Clone)]
enum Given {
    Nothing,
    Text(Zeroizing<String>),
    Key(SecureKey),
}

/// Without the text.
impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("Nothing"),
            Self::Text(_) => f.write_str("Text"),
            Self::Key(key) => key.fmt(f),
        }
    }
}

impl From<&str> for GivenKey {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<String> for GivenKey {
    fn from(text: String) -> Self {
        Self(Given::Text(Zeroizing::new(text)))
    }
}

impl From<SecureKey> for GivenKey {
    fn from(key: SecureKey) -> Self {
        Self(Given::Key(key))
    }
}

impl From<&SecureKey> for GivenKey {
    fn from(key: &SecureKey) -> Self {
        key.clone().into()
    }
}

impl GivenKey {
    /// No key, whatever the environment has.
    pub(crate) fn nothing() -> Self {
        Self(Given::Nothing)
    }

    /// What the environment has, if anything.
    pub(crate) fn from_environment() -> Option<Self> {
        env::var(VARIABLE).ok().filter(|text| !text.is_empty()).map(Self::from)
    }

    /// The key itself, if there is one. A passphrase is hashed beside the runtime's other tasks.
    ///
    /// # Errors
    /// [`Code::Malformed`]: the text is no key. [`Code::Unsupported`]: not within a runtime.
    pub(crate) async fn key(self) -> Result<Option<SecureKey>, Error> {
        let text = match self.0 {
            Given::Nothing => return Ok(None),
            Given::Key(key) => return Ok(Some(key)),
            Given::Text(text) => text,
        };
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| Error::new(Code::Unsupported, error.to_string()))?;
        let parsed = runtime.spawn_blocking(move || SecureKey::parse(&text)).await;
        parsed
            .map_err(|error| Error::new(Code::Closed, format!("the secure key was not read: {error}")))?
            .map(Some)
            .map_err(|error| Error::new(Code::Malformed, error.to_string()))
    }
}
