//! The key that both sides were given, and what is derived from it.

use std::{fmt, str::FromStr};

use argon2::{Algorithm, Argon2, Params, Version};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

/// What generated keys begin with.
const PREFIX: &str = "rpk1_";
const KEY_BYTES: usize = 32;

/// What a passphrase is hashed with. It is the same everywhere, or the two sides would need more than the passphrase.
const SALT: &[u8] = b"ringpost/psk/v1";
/// RFC 9106's second recommendation (section 4): it hurts who guesses, and no small machine that starts a client. 64 MiB,
/// three passes, four lanes.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 4;

/// Names a key on the wire, where everybody can read it: 8 bytes, derived from the key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; KeyId::BYTES]);

impl KeyId {
    /// Its size.
    pub const BYTES: usize = 8;
    const INFO: &'static [u8] = b"ringpost/key-id/v1";
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// What a key is good for. A server gives each of its keys one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Role {
    /// Requesters and handlers.
    #[default]
    Client,
    /// Links between servers.
    Peer,
    /// Clients that may control the server too.
    Admin,
}

impl Role {
    /// As what a holder of such a key comes: the wire knows clients and peers.
    #[must_use]
    pub fn comes_as(self) -> Self {
        match self {
            Self::Client | Self::Admin => Self::Client,
            Self::Peer => Self::Peer,
        }
    }

    /// Its word in options and files.
    pub fn text(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Peer => "peer",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Client, Self::Peer, Self::Admin]
            .into_iter()
            .find(|role| role.text() == text)
            .ok_or_else(|| format!("`{text}` is none of the roles `client`, `peer` and `admin`"))
    }
}

/// Why a text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// There is nothing.
    #[error("the secure key is empty: `ringpost keygen` makes one")]
    Empty,
    /// It begins like a generated key.
    #[error(
        "the secure key begins with `rpk1_` as generated ones do, but 64 hexadecimal digits must follow, and nothing else: \
         was it cut?"
    )]
    NotWhole,
    /// There is more than one line.
    #[error(
        "there is more than one line: a secure key is one line, and a file holds one key; give further keys files of their \
         own"
    )]
    SeveralLines,
    /// Argon2id needs 64 MiB for a moment.
    #[error("the passphrase could not be hashed: there is no memory (64 MiB) for it")]
    NoMemory,
}

/// A key that is shared by all who may speak to a server: 256 bits, and the id that names them.
///
/// A copy of the 256 bits is wiped when it is dropped. They are never shown: what prints a key prints its id.
#[derive(Clone)]
pub struct SecureKey {
    psk: Zeroizing<[u8; KEY_BYTES]>,
    id: KeyId,
    passphrase: bool,
}

impl SecureKey {
    /// Reads a key: what `ringpost keygen` made, or any other line of text, which is a passphrase. White space around it does
    /// not count.
    ///
    /// A passphrase is hashed by Argon2id, which takes some 0.2 s and 64 MiB: keep the key, and clone it.
    ///
    /// ```
    /// use ringpost_protocol::secure::SecureKey;
    ///
    /// let generated = "rpk1_000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    /// assert_eq!(format!("{:?}", SecureKey::parse(generated)?), "SecureKey(7dfb516f9aacd948)");
    /// # Ok::<(), ringpost_protocol::secure::KeyError>(())
    /// ```
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        // Two keys in one file, most likely: a passphrase of both would be neither.
        if text.contains(['\n', '\r']) {
            return Err(KeyError::SeveralLines);
        }
        match text.strip_prefix(PREFIX) {
            Some(digits) => Self::from_digits(digits),
            None => Self::from_passphrase(text),
        }
    }

    /// A key of 256 random bits, which the caller has drawn.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self::new(Zeroizing::new(bytes), false)
    }

    /// The text of a key of these bits, as [`SecureKey::parse`] reads it: what `ringpost keygen` writes.
    pub fn text_of(bytes: &[u8; KEY_BYTES]) -> Zeroizing<String> {
        // All of its room at once: growing would leave copies of the beginning behind.
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + 2 * KEY_BYTES));
        text.push_str(PREFIX);
        for byte in bytes {
            for digit in [byte >> 4, byte & 15] {
                text.extend(char::from_digit(u32::from(digit), 16));
            }
        }
        text
    }

    fn from_digits(digits: &str) -> Result<Self, KeyError> {
        let digits = digits.as_bytes();
        if digits.len() != 2 * KEY_BYTES {
            return Err(KeyError::NotWhole);
        }
        let mut psk = Zeroizing::new([0; KEY_BYTES]);
        for (byte, pair) in psk.iter_mut().zip(digits.chunks_exact(2)) {
            for digit in pair {
                let value = char::from(*digit).to_digit(16).ok_or(KeyError::NotWhole)?;
                *byte = *byte << 4 | value as u8;
            }
        }
        Ok(Self::new(psk, false))
    }

    fn from_passphrase(text: &str) -> Result<Self, KeyError> {
        let mut psk = Zeroizing::new([0; KEY_BYTES]);
        // The parameters are constants within their bounds: what is left to go wrong is memory.
        let params =
            Params::new(MEMORY_KIB, PASSES, LANES, Some(KEY_BYTES)).map_err(|_| KeyError::NoMemory)?;
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(text.as_bytes(), SALT, &mut *psk)
            .map_err(|_| KeyError::NoMemory)?;
        Ok(Self::new(psk, true))
    }

    fn new(psk: Zeroizing<[u8; KEY_BYTES]>, passphrase: bool) -> Self {
        let mut id = [0; KeyId::BYTES];
        let expanded = Hkdf::<Sha256>::new(None, &*psk).expand(KeyId::INFO, &mut id);
        debug_assert!(expanded.is_ok(), "8 bytes are within what HKDF gives");
        Self { psk, id: KeyId(id), passphrase }
    }

    /// What names it on the wire and in logs.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Whether it is a passphrase's: who hears a handshake can try passphrases at home.
    pub fn is_passphrase(&self) -> bool {
        self.passphrase
    }

    pub(super) fn psk(&self) -> &[u8; KEY_BYTES] {
        &self.psk
    }
}

/// By id: two keys have the same one by chance once in 2^64.
impl PartialEq for SecureKey {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for SecureKey {}

impl fmt::Debug for SecureKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecureKey({})", self.id)
    }
}
