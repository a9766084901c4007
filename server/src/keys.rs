//! Secure keys: from which files they come, and which the server knows now.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use ringpost_broker::Permissions;
use ringpost_protocol::secure::{KeyError, KeyId, Role, SecureKey};
use serde::{Deserialize, Deserializer, de::Error};
use zeroize::Zeroizing;

use crate::Config;

/// A file with a secure key in it, and what that is good for: as text, `[client:|peer:|admin:]FILE`.
///
/// ```
/// use ringpost_protocol::secure::Role;
/// use ringpost_server::KeyFile;
///
/// let file: KeyFile = "admin:keys/admin".parse()?;
/// assert_eq!((file.role, file.path.to_str()), (Role::Admin, Some("keys/admin")));
/// assert_eq!("keys/a".parse::<KeyFile>()?.role, Role::Client);
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    /// What its key is good for.
    pub role: Role,
    /// Its path.
    pub path: PathBuf,
}

impl FromStr for KeyFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (role, path) = match text.split_once(':') {
            Some((word, path)) if !word.contains('/') => (word.parse()?, path),
            _ => (Role::Client, text),
        };
        if path.is_empty() {
            return Err("a file must be named: [client:|peer:|admin:]FILE".to_owned());
        }
        Ok(Self { role, path: path.into() })
    }
}

impl<'de> Deserialize<'de> for KeyFile {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Why secure keys cannot be used. The command ends with 78.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// A file cannot be read.
    #[error("the key file {path} cannot be read: {cause}; `ringpost keygen --out {path}` makes one")]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        #[source]
        cause: io::Error,
    },
    /// What is in it is no key.
    #[error("the key file {path}: {cause}")]
    NoKey {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        #[source]
        cause: KeyError,
    },
    /// Two of them are the same.
    #[error("the key {id} is there twice: say once what may be done with it")]
    Twice {
        /// Its id.
        id: KeyId,
    },
}

/// Reads the secure key in a file: what `ringpost keygen` wrote, or a passphrase. The text is wiped afterwards.
///
/// # Errors
/// [`KeysError::Unreadable`], [`KeysError::NoKey`].
pub fn read_key_file(path: &Path) -> Result<SecureKey, KeysError> {
    let unreadable = |cause| KeysError::Unreadable { path: path.to_owned(), cause };
    let text = Zeroizing::new(fs::read_to_string(path).map_err(unreadable)?);
    if fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others than its owner may read or change this key file: chmod 600");
    }
    SecureKey::parse(&text).map_err(|cause| KeysError::NoKey { path: path.to_owned(), cause })
}

/// Where a server's keys come from, and what may be done with each.
#[derive(Debug, Clone)]
pub(crate) struct KeySources {
    files: Vec<(PathBuf, Arc<Permissions>)>,
    given: Vec<(SecureKey, Arc<Permissions>)>,
}

impl KeySources {
    pub(crate) fn of(config: &Config) -> Self {
        let of_role = |role| Arc::new(Permissions { role, ..Permissions::default() });
        let tables = config.keys.iter().map(|key| (key.file.clone(), key.permissions.clone()));
        let files = config.secure_key_file.iter().map(|file| (file.path.clone(), of_role(file.role)));
        let given = config.secure_keys.iter().map(|(key, role)| (key.clone(), of_role(*role)));
        Self { files: tables.chain(files).collect(), given: given.collect() }
    }

    /// Whether there is anything to be read again.
    pub(crate) fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// Reads the files, and takes over what was given as it is. It takes a moment where there are passphrases.
    pub(crate) fn read(&self) -> Result<Keyring, KeysError> {
        let mut keyring = Keyring { keys: self.given.clone() };
        for (path, permissions) in &self.files {
            keyring.keys.push((read_key_file(path)?, permissions.clone()));
        }
        let mut ids: Vec<_> = keyring.keys.iter().map(|(key, _)| key.id()).collect();
        ids.sort_unstable();
        match ids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(KeysError::Twice { id: pair[0] }),
            None => Ok(keyring),
        }
    }
}

/// The keys that a server knows now, and what may be done with each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keyring {
    keys: Vec<(SecureKey, Arc<Permissions>)>,
}

impl Keyring {
    /// Whether there are none: then connections are plain.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key with this id.
    pub(crate) fn find(&self, id: KeyId) -> Option<&(SecureKey, Arc<Permissions>)> {
        // A handful: nothing is faster than to look at each.
        self.keys.iter().find(|(key, _)| key.id() == id)
    }

    /// What to say of them in logs.
    pub(crate) fn describe(&self) -> String {
        let described =
            self.keys.iter().map(|(key, permissions)| format!("{} ({})", key.id(), permissions.role));
        described.collect::<Vec<_>>().join(", ")
    }

    /// Whether one of them can be guessed by who hears a handshake.
    pub(crate) fn has_passphrase(&self) -> bool {
        self.keys.iter().any(|(key, _)| key.is_passphrase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Roles are told from paths, and what is neither is named.
    #[test]
    fn key_files() {
        let read = |text: &str| text.parse::<KeyFile>().map(|file| (file.role, file.path));
        assert_eq!(read("peer:b"), Ok((Role::Peer, "b".into())));
        assert_eq!(read("client:a:b"), Ok((Role::Client, "a:b".into())));
        assert_eq!(read("./admin:b"), Ok((Role::Client, "./admin:b".into())));
        assert!(read("boss:b").unwrap_err().contains("boss"));
        assert!(read("peer:").is_err() && read("").is_err());
    }

    /// A key may not have two roles; files are read whole, and errors name them.
    #[test]
    fn keyrings() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, format!("{}\n", *SecureKey::text_of(&[7; 32]))).unwrap();
        let file = KeyFile { role: Role::Peer, path: path.clone() };
        let mut config = Config { secure_key_file: vec![file], ..Config::default() };
        let ring = KeySources::of(&config).read().unwrap();
        let key = SecureKey::from_bytes([7; 32]);
        assert_eq!(ring.find(key.id()).unwrap().1.role, Role::Peer);
        assert!(ring.describe().contains(&format!("{} (peer)", key.id())) && !ring.has_passphrase());
        config.secure_keys = vec![(key, Role::Client)];
        assert!(KeySources::of(&config).read().unwrap_err().to_string().contains("twice"));
        fs::write(&path, "rpk1_77").unwrap();
        let error = KeySources::of(&config).read().unwrap_err().to_string();
        assert!(error.contains(&*path.to_string_lossy()) && error.contains("64 hexadecimal"), "{error}");
        fs::remove_file(&path).unwrap();
        let error = read_key_file(&path).unwrap_err().to_string();
        assert!(error.contains("keygen"), "{error}");
    }
}
