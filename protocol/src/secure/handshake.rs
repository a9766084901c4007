//! The handshake: `Noise_NNpsk0_25519_AESGCM_SHA256`, one message each way, by snow.
//!
//! A client's hello:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic: `B5 52 50 31` |
//! | 4 | 1 | version |
//! | 5 | 1 | mode: 1 |
//! | 6 | 1 | role: 0 client, 1 peer |
//! | 7 | 1 | reserved, 0 |
//! | 8 | 8 | capabilities of the handshake: none are defined |
//! | 16 | 8 | the key's id |
//! | 24 | 48 | Noise's first message: an ephemeral public key, and the tag of an empty payload |
//!
//! Its first 24 bytes are the prologue: who changes one of them has no handshake. The server's hello:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | a preface: version 1, mode 1 |
//! | 16 | 48 | Noise's second message |
//!
//! A server that does not want to answers with a preface of mode 0 and an error frame, in clear, which proves nothing: it
//! may be anybody's.

use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use super::{KeyId, Opener, Role, Sealer, SecureKey};
use crate::{
    Code, WireError,
    frame::{Mode, Preface},
};

const NOISE: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
const PROLOGUE_BYTES: usize = Preface::BYTES + KeyId::BYTES;
/// A public key and a tag.
const MESSAGE_BYTES: usize = 32 + 16;

/// Why a handshake came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// What the other side sent does not verify.
    #[error("the other side has not proven that it has the same secure key")]
    NotProven,
    /// No ephemeral key could be drawn.
    #[error("the system gives no random bytes")]
    NoRandomBytes,
}

impl From<snow::Error> for HandshakeError {
    fn from(error: snow::Error) -> Self {
        match error {
            snow::Error::Rng => Self::NoRandomBytes,
            _ => Self::NotProven,
        }
    }
}

/// What a client with a key says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientHello {
    bytes: [u8; ClientHello::BYTES],
    role: Role,
}

impl ClientHello {
    /// Its size.
    pub const BYTES: usize = PROLOGUE_BYTES + MESSAGE_BYTES;

    /// Reads a hello off the front of `bytes`, whose preface has [`Mode::Secure`]. `Ok(None)`: it is not there as a whole.
    ///
    /// # Errors
    /// What [`Preface::decode`] says, and [`Code::Unsupported`] for a role that is not known.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        if Preface::decode(bytes)?.is_none() {
            return Ok(None);
        }
        let role = match bytes[6] {
            0 => Role::Client,
            1 => Role::Peer,
            role => {
                let message = format!("role {role} is not known: 0 is a client, 1 is a peer");
                return Err(WireError::new(Code::Unsupported, message));
            }
        };
        Ok(bytes.first_chunk::<{ Self::BYTES }>().map(|bytes| Self { bytes: *bytes, role }))
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; Self::BYTES] {
        &self.bytes
    }

    /// The key that it claims to have.
    pub fn key_id(&self) -> KeyId {
        let mut id = [0; KeyId::BYTES];
        id.copy_from_slice(&self.bytes[Preface::BYTES..PROLOGUE_BYTES]);
        KeyId(id)
    }

    /// As what it comes: a client or a peer.
    pub fn role(&self) -> Role {
        self.role
    }

    fn prologue(&self) -> &[u8] {
        &self.bytes[..PROLOGUE_BYTES]
    }

    fn message(&self) -> &[u8] {
        &self.bytes[PROLOGUE_BYTES..]
    }
}

/// What a server says to that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerHello {
    /// The handshake's second message.
    Secure([u8; MESSAGE_BYTES]),
    /// It wants no handshake: behind the 16 bytes of its preface stands an error frame, in clear.
    Refused,
}

impl ServerHello {
    /// The size of one that does not refuse.
    pub const BYTES: usize = Preface::BYTES + MESSAGE_BYTES;

    /// Reads a server's hello off the front of `bytes`. `Ok(None)`: it is not there as a whole.
    ///
    /// # Errors
    /// [`WireError`]: this is no server of this version.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        let Some(preface) = Preface::decode(bytes)? else { return Ok(None) };
        if preface.mode == Mode::Plain {
            return Ok(Some(Self::Refused));
        }
        let Some(hello) = bytes.first_chunk::<{ Self::BYTES }>() else { return Ok(None) };
        // Nothing was offered, so nothing can have been chosen. In the client's prologue this part is not.
        if hello[..Preface::BYTES] != secure_preface(Role::Client) {
            return Err(WireError::new(
                Code::Unsupported,
                "the server answers with a handshake of another version",
            ));
        }
        let mut message = [0; MESSAGE_BYTES];
        message.copy_from_slice(&hello[Preface::BYTES..]);
        Ok(Some(Self::Secure(message)))
    }
}

fn secure_preface(role: Role) -> [u8; Preface::BYTES] {
    let mut bytes = Preface { mode: Mode::Secure, ..Preface::plain() }.encode();
    bytes[6] = match role.comes_as() {
        Role::Peer => 1,
        Role::Client | Role::Admin => 0,
    };
    bytes
}

/// The side that dials.
#[derive(Debug)]
pub struct Initiator {
    noise: HandshakeState,
    hello: ClientHello,
}

impl Initiator {
    /// Begins a handshake: its [`hello`](Self::hello) is to be sent.
    ///
    /// # Errors
    /// [`HandshakeError::NoRandomBytes`].
    pub fn new(key: &SecureKey, role: Role) -> Result<Self, HandshakeError> {
        Self::begin(key, role, None)
    }

    /// The same, with an ephemeral private key that the caller has chosen: for test vectors and simulations alone. Two
    /// handshakes with one ephemeral key are as good as none.
    ///
    /// # Errors
    /// As [`Initiator::new`].
    pub fn repeatable(key: &SecureKey, role: Role, ephemeral: &[u8; 32]) -> Result<Self, HandshakeError> {
        Self::begin(key, role, Some(ephemeral))
    }

    fn begin(key: &SecureKey, role: Role, ephemeral: Option<&[u8; 32]>) -> Result<Self, HandshakeError> {
        let mut bytes = [0; ClientHello::BYTES];
        bytes[..Preface::BYTES].copy_from_slice(&secure_preface(role));
        bytes[Preface::BYTES..PROLOGUE_BYTES].copy_from_slice(&key.id().0);
        let mut noise = builder(key, &bytes[..PROLOGUE_BYTES], ephemeral)?.build_initiator()?;
        let written = noise.write_message(&[], &mut bytes[PROLOGUE_BYTES..])?;
        debug_assert_eq!(written, MESSAGE_BYTES);
        Ok(Self { noise, hello: ClientHello { bytes, role: role.comes_as() } })
    }

    /// What is to be sent.
    pub fn hello(&self) -> &[u8; ClientHello::BYTES] {
        self.hello.bytes()
    }

    /// Takes the server's answer: [`ServerHello::Secure`].
    ///
    /// # Errors
    /// [`HandshakeError::NotProven`].
    pub fn finish(mut self, answer: &[u8; MESSAGE_BYTES]) -> Result<(Sealer, Opener), HandshakeError> {
        self.noise.read_message(answer, &mut [])?;
        let (to_server, to_client) = split(&mut self.noise);
        Ok((Sealer::new(&to_server), Opener::new(&to_client)))
    }
}

/// The side that was dialled.
#[derive(Debug)]
pub struct Responder {
    /// What is to be sent.
    pub hello: [u8; ServerHello::BYTES],
    /// For what the server sends.
    pub sealer: Sealer,
    /// For what the client sends. Only when its first record verifies, the client is who it says: the hello alone may be
    /// one that somebody heard and repeats.
    pub opener: Opener,
}

impl Responder {
    /// Answers a hello with the key that it names.
    ///
    /// A hello that does not prove the key costs a few hashes; one that does, two multiplications on the curve.
    ///
    /// # Errors
    /// [`HandshakeError`].
    pub fn answer(hello: &ClientHello, key: &SecureKey) -> Result<Self, HandshakeError> {
        Self::respond(hello, key, None)
    }

    /// The same, with an ephemeral private key that the caller has chosen: see [`Initiator::repeatable`].
    ///
    /// # Errors
    /// As [`Responder::answer`].
    pub fn repeatable(
        hello: &ClientHello,
        key: &SecureKey,
        ephemeral: &[u8; 32],
    ) -> Result<Self, HandshakeError> {
        Self::respond(hello, key, Some(ephemeral))
    }

    fn respond(
        theirs: &ClientHello,
        key: &SecureKey,
        ephemeral: Option<&[u8; 32]>,
    ) -> Result<Self, HandshakeError> {
        let mut noise = builder(key, theirs.prologue(), ephemeral)?.build_responder()?;
        noise.read_message(theirs.message(), &mut [])?;
        let mut hello = [0; ServerHello::BYTES];
        hello[..Preface::BYTES].copy_from_slice(&secure_preface(Role::Client));
        let written = noise.write_message(&[], &mut hello[Preface::BYTES..])?;
        debug_assert_eq!(written, MESSAGE_BYTES);
        let (to_server, to_client) = split(&mut noise);
        Ok(Self { hello, sealer: Sealer::new(&to_client), opener: Opener::new(&to_server) })
    }
}

fn builder<'a>(
    key: &'a SecureKey,
    prologue: &'a [u8],
    ephemeral: Option<&'a [u8; 32]>,
) -> Result<Builder<'a>, HandshakeError> {
    let builder = Builder::new(NOISE.parse()?).psk(0, key.psk())?.prologue(prologue)?;
    Ok(match ephemeral {
        Some(ephemeral) => builder.fixed_ephemeral_key_for_testing_only(ephemeral),
        None => builder,
    })
}

/// The keys of both directions, the initiator's first.
fn split(noise: &mut HandshakeState) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
    let (to_server, to_client) = noise.dangerously_get_raw_split();
    (Zeroizing::new(to_server), Zeroizing::new(to_client))
}
