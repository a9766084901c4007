//! Connections with a secure key: their records go through the network's cuts and delays like everything else.
//!
//! The handshake is made between both ends before the first byte is under way: its two messages are a stranger's, and the core
//! hears of neither. Its ephemeral keys come from the seed.

use bytes::BytesMut;
use ringpost_protocol::secure::{
    ClientHello, Incoming, Initiator, Responder, Role, Sealer, SecureKey, ServerHello,
};

use super::rng::Rng;

/// One end's records.
pub(crate) struct Records {
    sealer: Sealer,
    incoming: Incoming,
}

impl Records {
    /// Both ends of a new connection, the client's first.
    pub(crate) fn pair(rng: &mut Rng) -> (Self, Self) {
        let mut draw = || {
            let mut bytes = [0; 32];
            bytes.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&rng.next().to_le_bytes()));
            bytes
        };
        let key = SecureKey::from_bytes([9; 32]);
        let initiator = Initiator::repeatable(&key, Role::Client, &draw()).expect("its key is given");
        let hello = ClientHello::decode(initiator.hello()).expect("it is ours").expect("it is whole");
        let responder = Responder::repeatable(&hello, &key, &draw()).expect("both have the key");
        let Ok(Some(ServerHello::Secure(answer))) = ServerHello::decode(&responder.hello) else {
            panic!("the server's hello is one")
        };
        let (sealer, opener) = initiator.finish(&answer).expect("both have the key");
        (
            Self { sealer, incoming: Incoming::new(opener) },
            Self { sealer: responder.sealer, incoming: Incoming::new(responder.opener) },
        )
    }

    /// What goes out in place of this.
    pub(crate) fn seal(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let mut records = Vec::new();
        self.sealer.seal(plaintext, &mut records);
        records
    }

    /// Opens what came. Only plaintext is left in the buffer; what is behind it is for [`Records::rejoin`].
    pub(crate) fn open(&mut self, received: &mut BytesMut) -> BytesMut {
        self.incoming.open(received).expect("nobody in a simulation changes a byte");
        self.incoming.part(received)
    }

    /// When of the plaintext was read what is there.
    pub(crate) fn rejoin(&mut self, received: &mut BytesMut, rest: BytesMut) {
        self.incoming.rejoin(received, rest);
    }
}
