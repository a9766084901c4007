//! A connection with a secure key: its handshake, and its records.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use anyhow::{Context, bail};
use ringpost_protocol::secure::{Initiator, Opener, RecordError, Role, Sealer, SecureKey, ServerHello};

use super::PATIENCE;

/// What goes out is sealed, what comes in is opened.
pub(super) struct Records {
    sealer: Sealer,
    opener: Opener,
}

impl Records {
    /// Shakes hands on a connected socket that still blocks.
    pub(super) fn agree(stream: &mut TcpStream, key: &SecureKey) -> anyhow::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let initiator = Initiator::new(key, Role::Client)?;
        stream.write_all(initiator.hello())?;
        let (mut answer, mut filled) = ([0; ServerHello::BYTES], 0);
        // A refusal is shorter than a hello: never more is read than is there.
        loop {
            match ServerHello::decode(&answer[..filled])? {
                Some(ServerHello::Secure(message)) => {
                    let (sealer, opener) = initiator.finish(&message)?;
                    return Ok(Self { sealer, opener });
                }
                Some(ServerHello::Refused) => bail!("the server refuses the secure key {}", key.id()),
                None => match stream.read(&mut answer[filled..]).context("the handshake")? {
                    0 => bail!("the server closed the connection in the handshake"),
                    read => filled += read,
                },
            }
        }
    }

    /// Appends records of `plaintext` to `out`, and empties it.
    pub(super) fn seal(&mut self, plaintext: &mut Vec<u8>, out: &mut Vec<u8>) {
        self.sealer.seal(plaintext, out);
        plaintext.clear();
    }

    /// Opens the whole records behind `plain` bytes of plaintext. How many bytes are plaintext then, and how many there are
    /// in all.
    pub(super) fn open(&mut self, bytes: &mut [u8], mut plain: usize) -> Result<(usize, usize), RecordError> {
        let (mut at, end) = (plain, bytes.len());
        while let Some(opened) = self.opener.open(&mut bytes[at..])? {
            bytes.copy_within(at + opened.plaintext.start..at + opened.plaintext.end, plain);
            plain += opened.plaintext.len();
            at += opened.bytes;
        }
        bytes.copy_within(at..end, plain);
        Ok((plain, plain + end - at))
    }
}
