//! Opening a connection to a peer, on the ring: to the socket, and with a secure key through the handshake.

use std::{
    io,
    net::{Shutdown, SocketAddr, ToSocketAddrs},
    pin::pin,
    time::Duration,
};

use bytes::{Buf, BytesMut};
use ringpost_client::Error;
use ringpost_io::{clock, stream::Stream};
use ringpost_protocol::{
    Code,
    frame::{FrameReader, Preface, decode_server},
    message::{ErrorReport, ServerMessage},
    secure::{HandshakeError, Initiator, Opener, Role, Sealer, SecureKey, ServerHello},
};
use tokio::sync::oneshot;

/// For all of it, for each address that a name has.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest refusal that is read.
const MAX_REFUSAL_BYTES: u32 = 4 << 10;
/// Room for one read: a handshake is smaller.
const READ_BYTES: usize = 4 << 10;

/// A connection that is open, and may be spoken on.
pub(crate) struct Dialed {
    pub(crate) stream: Stream,
    /// With a secure key: all goes through these.
    pub(crate) records: Option<(Sealer, Opener)>,
    /// What came behind the handshake.
    pub(crate) rest: BytesMut,
}

/// Opens a connection to the first of the name's addresses that answers. `begun` is told of each socket, so that the caller
/// can end it by [`Stream::shutdown`] and [`Stream::abort`]; `false` from it ends the whole.
///
/// # Errors
/// [`Code::Connect`]; with a key also [`Code::Unauthorized`], and what the peer says against it.
pub(crate) async fn dial(
    address: &str,
    key: Option<&SecureKey>,
    begun: impl Fn(&Stream) -> bool,
) -> Result<Dialed, Error> {
    let mut last = None;
    for socket in resolve(address).await? {
        let stream = match Stream::connect(socket) {
            Ok(stream) => stream,
            Err(error) => {
                last = Some(no_connection(format!("cannot connect to {address}: {error}")));
                continue;
            }
        };
        if !begun(&stream) {
            break;
        }
        match open(address, stream, key).await {
            Err(error) if error.kind() == Code::Connect => last = Some(error),
            outcome => return outcome,
        }
    }
    Err(last.unwrap_or_else(|| no_connection(format!("`{address}` has no address"))))
}

async fn open(address: &str, stream: Stream, key: Option<&SecureKey>) -> Result<Dialed, Error> {
    let connecting = stream.clone();
    let mut opening = pin!(async move {
        let stream = connecting;
        stream.connected().await.map_err(|error| {
            no_connection(format!("cannot connect to {address}: {error}; is a server running there?"))
        })?;
        stream
            .set_nodelay()
            .map_err(|error| no_connection(format!("TCP_NODELAY on the connection to {address}: {error}")))?;
        match key {
            None => Ok((None, BytesMut::new())),
            Some(key) => {
                shake_hands(&stream, address, key).await.map(|(records, rest)| (Some(records), rest))
            }
        }
    });
    let opened = match clock::within(CONNECT_TIMEOUT, opening.as_mut()).await {
        Some(opened) => opened,
        None => {
            // What is pending must not be dropped: it ends by these.
            for ended in [stream.shutdown(Shutdown::Both), stream.abort()] {
                if let Err(error) = ended {
                    tracing::debug!(%error, "giving up a connection");
                }
            }
            // Whatever it comes to now.
            drop(opening.await);
            Err(no_connection(format!("no answer from {address} within {CONNECT_TIMEOUT:?}")))
        }
    };
    opened.map(|(records, rest)| Dialed { stream, records, rest })
}

fn no_connection(message: String) -> Error {
    Error::new(Code::Connect, message)
}

/// The addresses of a name. Looking it up blocks, so a thread of its own does it.
async fn resolve(address: &str) -> Result<Vec<SocketAddr>, Error> {
    if let Ok(socket) = address.parse() {
        return Ok(vec![socket]);
    }
    let unknown = |error: io::Error| no_connection(format!("`{address}` is not known: {error}"));
    let (done, resolved) = oneshot::channel();
    let name = address.to_owned();
    std::thread::Builder::new()
        .name("ringpost-resolve".into())
        .spawn(move || {
            // Nobody waits for it any more when the server has ended meanwhile.
            done.send(name.to_socket_addrs().map(Iterator::collect)).ok();
        })
        .map_err(unknown)?;
    resolved.await.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())).map_err(unknown)
}

/// Proves the key to the peer, and has the peer prove it.
async fn shake_hands(
    stream: &Stream,
    address: &str,
    key: &SecureKey,
) -> Result<((Sealer, Opener), BytesMut), Error> {
    let broken = |error: io::Error| no_connection(format!("the handshake with {address} broke off: {error}"));
    let unproven = |error: HandshakeError| {
        let message = format!("the handshake with {address}: {error} (ours is {})", key.id());
        Error::new(Code::Unauthorized, message)
    };
    let initiator = Initiator::new(key, Role::Peer).map_err(unproven)?;
    stream.write_all(initiator.hello().to_vec()).await.0.map_err(broken)?;
    let mut answer = BytesMut::new();
    loop {
        let hello = ServerHello::decode(&answer[..answer.len().min(ServerHello::BYTES)]).map_err(|_| {
            no_connection(format!("what answers at {address} does not speak Ringpost's binary dialect"))
        })?;
        match hello {
            None => answer = read(stream, answer).await.map_err(broken)?,
            Some(ServerHello::Secure(message)) => {
                let records = initiator.finish(&message).map_err(unproven)?;
                answer.advance(ServerHello::BYTES);
                return Ok((records, answer));
            }
            Some(ServerHello::Refused) => {
                answer.advance(Preface::BYTES);
                return Err(refusal(stream, answer, address, key).await);
            }
        }
    }
}

async fn read(stream: &Stream, mut buffer: BytesMut) -> io::Result<BytesMut> {
    buffer.reserve(READ_BYTES);
    let (read, buffer) = stream.read(buffer).await;
    match read? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(buffer),
    }
}

/// What the peer, or whoever is in between, says against us in clear. It is believed as far as to be shown.
async fn refusal(stream: &Stream, mut buffer: BytesMut, address: &str, key: &SecureKey) -> Error {
    let frames = FrameReader::new(MAX_REFUSAL_BYTES);
    let report = loop {
        match frames.next(&mut buffer) {
            Ok(None) => match read(stream, buffer).await {
                Ok(filled) => buffer = filled,
                Err(_) => break None,
            },
            Ok(Some(frame)) => match decode_server(frame) {
                Ok(Some(ServerMessage::Error(report))) => break Some(report),
                _ => break None,
            },
            Err(_) => break None,
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
