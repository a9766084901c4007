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
    #[error("the key file {path} cannot be read: {cause}")]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        #[source]
        cause: io::Error,
    },
    /// A server's file is not there.
    #[error("there is no key file {path}: `ringpost keygen --out {path}` makes one")]
    Missing {
        /// Its path.
        path: PathBuf,
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
    #[error("the key {id} is there twice, from {} and from {}: say once what may be done with it", sources[0], sources[1])]
    Twice {
        /// Its id.
        id: KeyId,
        /// Where it is from, both times.
        sources: [String; 2],
    },
}

/// Reads the secure key in a file: what `ringpost keygen` wrote, or a passphrase. The text is wiped afterwards.
///
/// # Errors
/// [`KeysError::Unreadable`], [`KeysError::NoKey`]; [`KeysError::Missing`] is a server's own.
pub fn read_key_file(path: &Path) -> Result<SecureKey, KeysError> {
    let unreadable = |cause| KeysError::Unreadable { path: path.to_owned(), cause };
    let text = Zeroizing::new(fs::read_to_string(path).map_err(unreadable)?);
    if fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others than its owner may read or change this key file: chmod 600");
    }
    SecureKey::parse(&text).map_err(|cause| KeysError::NoKey { path: path.to_owned(), cause })
}

/// Where a server's keys come from, and what may be done with each.
#[derive(Debug, Clone, PartialEq)]
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
        let mut keys = self.given.clone();
        for (path, permissions) in &self.files {
            let key = read_key_file(path).map_err(|error| match error {
                KeysError::Unreadable { path, cause } if cause.kind() == io::ErrorKind::NotFound => {
                    KeysError::Missing { path }
                }
                error => error,
            })?;
            keys.push((key, permissions.clone()));
        }
        for (place, (key, _)) in keys.iter().enumerate() {
            if let Some(other) = keys[..place].iter().position(|(other, _)| other.id() == key.id()) {
                return Err(KeysError::Twice {
                    id: key.id(),
                    sources: [other, place].map(|it| self.source(it)),
                });
            }
        }
        Ok(Keyring { keys })
    }

    /// Where the key is from that is read at this place.
    fn source(&self, place: usize) -> String {
        match place.checked_sub(self.given.len()).and_then(|place| self.files.get(place)) {
            Some((path, _)) => path.display().to_string(),
            None => "RINGPOST_SECURE_KEY (in a program: its `secure_key`)".to_owned(),
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
        let error = KeySources::of(&config).read().unwrap_err().to_string();
        for part in ["twice", "RINGPOST_SECURE_KEY", &*path.to_string_lossy()] {
            assert!(error.contains(part), "{part} in {error}");
        }
        let other = folder.path().join("other");
        fs::copy(&path, &other).unwrap();
        config.secure_keys.clear();
        config.secure_key_file.push(KeyFile { role: Role::Client, path: other.clone() });
        let error = KeySources::of(&config).read().unwrap_err().to_string();
        assert!([&path, &other].iter().all(|path| error.contains(&*path.to_string_lossy())), "{error}");
        fs::write(&path, "rpk1_77").unwrap();
        let error = KeySources::of(&config).read().unwrap_err().to_string();
        assert!(error.contains(&*path.to_string_lossy()) && error.contains("64 hexadecimal"), "{error}");
        fs::write(&path, format!("{0}\n{0}\n", *SecureKey::text_of(&[7; 32]))).unwrap();
        let error = read_key_file(&path).unwrap_err().to_string();
        assert!(error.contains(&*path.to_string_lossy()) && error.contains("one line"), "{error}");
        // A server makes its key; a client's would be of no use.
        fs::remove_file(&path).unwrap();
        assert!(KeySources::of(&config).read().unwrap_err().to_string().contains("keygen"));
        assert!(!read_key_file(&path).unwrap_err().to_string().contains("keygen"));
    }
}
