//! Opening a connection: to the socket, and with a secure key through the handshake.

use std::{io, time::Duration};

use bytes::BytesMut;
use ringpost_client::Error;
use ringpost_protocol::{
    Code,
    frame::{FrameReader, Preface, decode_server},
    message::{ErrorReport, ServerMessage},
    secure::{HandshakeError, Initiator, Opener, Role, Sealer, SecureKey, ServerHello},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::Address;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest refusal that is read.
const MAX_REFUSAL_BYTES: u32 = 4 << 10;

/// A connection that is open, and may be spoken on.
#[derive(Debug)]
pub(super) struct Dialed {
    pub(super) stream: TcpStream,
    /// With a secure key: all goes through these.
    pub(super) records: Option<(Sealer, Opener)>,
}

/// Opens a connection.
///
/// # Errors
/// [`Code::Connect`]; with a key also [`Code::Unauthorized`], and what the server says against it.
pub(super) async fn dial(address: &Address, key: Option<&SecureKey>) -> Result<Dialed, Error> {
    let opening = async {
        let mut stream = connect(address).await?;
        let records = match key {
            Some(key) => Some(shake_hands(&mut stream, address, key).await?),
            None => None,
        };
        Ok(Dialed { stream, records })
    };
    timeout(CONNECT_TIMEOUT, opening).await.unwrap_or_else(|_| {
        Err(no_connection(format!("no answer from {address} within {CONNECT_TIMEOUT:?}")))
    })
}

fn no_connection(message: String) -> Error {
    Error::new(Code::Connect, message)
}

async fn connect(address: &Address) -> Result<TcpStream, Error> {
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(|error| {
        no_connection(format!("cannot connect to {address}: {error}; is a server running there?"))
    })?;
    stream
        .set_nodelay(true)
        .map_err(|error| no_connection(format!("TCP_NODELAY on the connection to {address}: {error}")))?;
    Ok(stream)
}

/// Proves the key to the server, and has the server prove it.
async fn shake_hands(
    stream: &mut TcpStream,
    address: &Address,
    key: &SecureKey,
) -> Result<(Sealer, Opener), Error> {
    let broken = |error: io::Error| no_connection(format!("the handshake with {address} broke off: {error}"));
    let unproven = |error: HandshakeError| {
        let message = format!("the handshake with {address}: {error} (ours is {})", key.id());
        Error::new(Code::Unauthorized, message)
    };
    let initiator = Initiator::new(key, Role::Client).map_err(unproven)?;
    stream.write_all(initiator.hello()).await.map_err(broken)?;
    let mut answer = [0; ServerHello::BYTES];
    let (mut filled, mut wanted) = (0, Preface::BYTES);
    // Never further than the hello: what follows is not ours to read.
    loop {
        stream.read_exact(&mut answer[filled..wanted]).await.map_err(broken)?;
        filled = wanted;
        let hello = ServerHello::decode(&answer[..filled]).map_err(|_| {
            let message = format!("what answers at {address} does not speak Ringpost's binary dialect");
            no_connection(message)
        })?;
        match hello {
            None => wanted = ServerHello::BYTES,
            Some(ServerHello::Secure(message)) => return initiator.finish(&message).map_err(unproven),
            Some(ServerHello::Refused) => return Err(refusal(stream, address, key).await),
        }
    }
}

/// What the server, or whoever is in between, says against us in clear. It is believed as far as to be shown.
async fn refusal(stream: &mut TcpStream, address: &Address, key: &SecureKey) -> Error {
    let (frames, mut buffer) = (FrameReader::new(MAX_REFUSAL_BYTES), BytesMut::new());
    let report = loop {
        match frames.next(&mut buffer) {
            Ok(None) if stream.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) => {}
            Ok(Some(frame)) => match decode_server(frame) {
                Ok(Some(ServerMessage::Error(report))) => break Some(report),
                _ => break None,
            },
            _ => break None,
        }
    };
    let (code, message) = match report {
        // Final errors are for servers that have proven who they are.
        Some(ErrorReport { code: Code::Unsupported | Code::SessionTaken, message, .. }) => {
            (Code::Unauthorized, message)
        }
        Some(ErrorReport { code, message, .. }) => (code, message),
        None => (Code::Unauthorized, "it wants no handshake, and does not say why".to_owned()),
    };
    Error::new(code, format!("{address} refuses the secure key {}: {message}", key.id()))
}
