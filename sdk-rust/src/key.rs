//! The secure key that a client was given, and what is made of it when it connects.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use ringpost_client::Error;
use ringpost_protocol::{
    Code,
    secure::{Role, SecureKey},
};
use zeroize::Zeroizing;

/// Where a client looks for a secure key that it was not given.
const VARIABLE: &str = "RINGPOST_SECURE_KEY";
/// Where it looks first: the path of a file with the key in it.
const FILE_VARIABLE: &str = "RINGPOST_SECURE_KEY_FILE";

/// A secure key for [`ClientBuilder::secure_key`](crate::ClientBuilder::secure_key): its text, or a [`SecureKey`].
#[derive(Debug, Clone)]
pub struct GivenKey(Given);

#[derive(Clone)]
enum Given {
    Nothing,
    Text(Zeroizing<String>),
    /// A path, as servers and the command know it too: `[client:|peer:|admin:]FILE`.
    File(OsString),
    Key(SecureKey),
}

/// Without the text.
impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("Nothing"),
            Self::Text(_) => f.write_str("Text"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
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

    /// What the environment has, if anything: a file counts before a key itself, as for the command.
    pub(crate) fn from_environment() -> Option<Self> {
        let file = env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty());
        let text = || env::var(VARIABLE).ok().filter(|text| !text.is_empty());
        file.map(|path| Self(Given::File(path))).or_else(|| text().map(Self::from))
    }

    /// The key itself, if there is one. A file is read and a passphrase hashed beside the runtime's other tasks.
    ///
    /// # Errors
    /// [`Code::Malformed`]: the text is no key, or the file has none. [`Code::Unsupported`]: not within a runtime.
    pub(crate) async fn key(self) -> Result<Option<SecureKey>, Error> {
        let make: Box<dyn FnOnce() -> Result<SecureKey, Error> + Send> = match self.0 {
            Given::Nothing => return Ok(None),
            Given::Key(key) => return Ok(Some(key)),
            Given::Text(text) => Box::new(move || parse(&text, "")),
            Given::File(path) => Box::new(move || read(&path)),
        };
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| Error::new(Code::Unsupported, error.to_string()))?;
        let made = runtime.spawn_blocking(make).await;
        made.map_err(|error| Error::new(Code::Closed, format!("the secure key was not read: {error}")))?
            .map(Some)
    }
}

fn malformed(message: String) -> Error {
    Error::new(Code::Malformed, message)
}

/// `whence`: where the text comes from, in front of what is wrong with it.
fn parse(text: &str, whence: &str) -> Result<SecureKey, Error> {
    SecureKey::parse(text).map_err(|error| malformed(format!("{whence}{error}")))
}

/// Reads `[client:|peer:|admin:]FILE`: one variable may serve a server and its clients. Which role the key has, the server
/// knows.
fn read(named: &OsStr) -> Result<SecureKey, Error> {
    let path = match named.to_str().and_then(|text| text.split_once(':')) {
        Some((role, path)) if role.parse::<Role>().is_ok() => Path::new(path),
        _ => Path::new(named),
    };
    let unreadable = |error: io::Error| {
        malformed(format!("{FILE_VARIABLE}: the key file {} cannot be read: {error}", path.display()))
    };
    let text = Zeroizing::new(fs::read_to_string(path).map_err(unreadable)?);
    if fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others than its owner may read or change this key file: chmod 600");
    }
    parse(&text, &format!("the key file {}: ", path.display()))
}
