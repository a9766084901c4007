//! What each side says first: that it speaks Ringpost's binary dialect, which version, and what it can do.

use crate::{Code, WireError};

/// How the bytes behind the preface are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Frames follow.
    Plain,
    /// A handshake follows, then frames within encrypted records.
    Secure,
}

/// The first 16 bytes in each direction.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 4 | magic: `B5 52 50 31` |
/// | 4 | 1 | version: the highest one the client speaks; the server answers with the one that is spoken |
/// | 5 | 1 | mode: 0 plain, 1 secure |
/// | 6 | 2 | reserved, 0 (bytes of the handshake's first message, in mode 1) |
/// | 8 | 8 | capabilities, a bit each; the server answers with those that both have. Version 1 defines none |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preface {
    /// The version.
    pub version: u8,
    /// The mode.
    pub mode: Mode,
    /// The capabilities.
    pub capabilities: u64,
}

impl Preface {
    /// Its size.
    pub const BYTES: usize = 16;
    /// What it begins with. The first byte is in no UTF-8 text, no HTTP request and no TLS hello.
    pub const MAGIC: [u8; 4] = [0xB5, b'R', b'P', b'1'];
    /// The version that this build speaks.
    pub const VERSION: u8 = 1;

    /// The preface of a client, and of a server's answer, for plain connections.
    pub fn plain() -> Self {
        Self { version: Self::VERSION, mode: Mode::Plain, capabilities: 0 }
    }

    /// Its bytes.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&Self::MAGIC);
        bytes[4] = self.version;
        bytes[5] = match self.mode {
            Mode::Plain => 0,
            Mode::Secure => 1,
        };
        bytes[8..].copy_from_slice(&self.capabilities.to_le_bytes());
        bytes
    }

    /// Reads a preface off the front of `bytes`. `Ok(None)`: there are not yet 16 of them.
    ///
    /// # Errors
    /// [`Code::Malformed`] as soon as the magic is wrong, [`Code::Unsupported`] for version 0 or an unknown mode.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        let known = bytes.len().min(4);
        if bytes[..known] != Self::MAGIC[..known] {
            return Err(WireError::malformed(
                "this port speaks Ringpost: JSON objects, or the binary dialect, which begins with B5 52 50 31",
            ));
        }
        let Some(bytes) = bytes.first_chunk::<{ Self::BYTES }>() else { return Ok(None) };
        let version = bytes[4];
        if version == 0 {
            return Err(WireError::new(
                Code::Unsupported,
                "there is no protocol version 0: this server speaks version 1",
            ));
        }
        let mode = match bytes[5] {
            0 => Mode::Plain,
            1 => Mode::Secure,
            mode => {
                let message = format!("mode {mode} is not known: 0 is plain, 1 is secure");
                return Err(WireError::new(Code::Unsupported, message));
            }
        };
        let [.., a, b, c, d, e, f, g, h] = *bytes;
        Ok(Some(Self { version, mode, capabilities: u64::from_le_bytes([a, b, c, d, e, f, g, h]) }))
    }
}
