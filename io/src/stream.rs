//! A TCP connection.

use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use io_uring::{opcode, types::Fd};
use rustix::{
    event::PollFlags,
    net::{RecvFlags, SendFlags},
};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::operation::submit;

/// The most that one read is asked to bring: the kernel's own limit (`MAX_RW_COUNT`) is just below 2 GiB.
const MAX_READ_BYTES: usize = 1 << 30;
/// The most that one write is asked to send: a slow peer's progress is to be seen, and a system call for each MiB is not
/// felt.
const MAX_WRITE_BYTES: usize = 1 << 20;

/// A TCP connection. Clones are the same one; the socket is closed with the last of them.
///
/// One read and one write may be in flight at a time. Their futures must not be dropped: see the
/// [crate's contract](crate).
#[derive(Debug, Clone)]
pub struct Stream {
    socket: Rc<OwnedFd>,
    written: Rc<Cell<u64>>,
}

impl Stream {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket: Rc::new(socket), written: Rc::default() }
    }

    /// Takes over a connected socket.
    pub fn from_std(socket: std::net::TcpStream) -> Self {
        Self::new(socket.into())
    }

    pub(crate) fn into_socket(self) -> Rc<OwnedFd> {
        self.socket
    }

    /// Begins to connect. [`Stream::connected`] says how that goes; until then nothing else may be done with it.
    ///
    /// # Errors
    /// What socket(2) or connect(2) says at once: no descriptor, no route.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            outcome => outcome?,
        }
        Ok(Self::new(socket.into()))
    }

    /// Waits until a connection that was begun is there. Where that takes too long, [`Stream::abort`] ends it.
    ///
    /// # Errors
    /// What connect(2) says.
    #[allow(unsafe_code, reason = "the socket is lent")]
    pub async fn connected(&self) -> io::Result<()> {
        let entry =
            opcode::PollAdd::new(Fd(self.socket.as_raw_fd()), u32::from(PollFlags::OUT.bits())).build();
        // SAFETY: the entry has no pointer, and its socket is lent.
        unsafe { submit(self.socket.clone(), entry) }.await.0?;
        SockRef::from(&*self.socket).take_error()?.map_or(Ok(()), Err)?;
        // The address without a family, of an abort, leaves no error behind.
        self.peer_addr()?;
        // From here on the ring waits by itself, which it does for sockets only that would block.
        Ok(rustix::io::ioctl_fionbio(&*self.socket, false)?)
    }

    /// Gives up a connection that was only begun; one that is there ends by a reset. What is pending on it completes.
    ///
    /// # Errors
    /// What connect(2) says of an address without a family, which is how this is said.
    pub fn abort(&self) -> io::Result<()> {
        Ok(rustix::net::connect_unspec(&*self.socket)?)
    }

    /// Reads into the buffer's spare capacity, behind what is in it. `Ok(0)`: the peer has ended its half.
    ///
    /// # Errors
    /// What recv(2) says; [`io::ErrorKind::InvalidInput`] when the buffer has no spare capacity.
    #[allow(unsafe_code, reason = "the kernel writes into the buffer")]
    pub async fn read(&self, mut buffer: BytesMut) -> (io::Result<usize>, BytesMut) {
        loop {
            let spare = buffer.spare_capacity_mut();
            if spare.is_empty() {
                return (Err(io::ErrorKind::InvalidInput.into()), buffer);
            }
            let length = spare.len().min(MAX_READ_BYTES) as u32;
            let entry =
                opcode::Recv::new(Fd(self.socket.as_raw_fd()), spare.as_mut_ptr().cast(), length).build();
            // SAFETY: the buffer's heap memory does not move with it, and it is lent together with the socket.
            let (result, (_, lent)) = unsafe { submit((self.socket.clone(), buffer), entry) }.await;
            buffer = lent;
            match result {
                Ok(read) => {
                    // SAFETY: the kernel wrote that many bytes behind those that were there.
                    unsafe { buffer.advance_mut(read as usize) };
                    return (Ok(read as usize), buffer);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), buffer),
            }
        }
    }

    /// Writes all of the buffer, and gives it back.
    ///
    /// # Errors
    /// What send(2) says; a part may have been sent then. There is no SIGPIPE.
    #[allow(unsafe_code, reason = "the kernel reads from the buffer")]
    pub async fn write_all<B: StableBytes>(&self, mut buffer: B) -> (io::Result<()>, B) {
        // WAITALL lets the kernel go on by itself after a short send (Linux 5.19; older ones come back here).
        let flags = (SendFlags::NOSIGNAL.bits() | RecvFlags::WAITALL.bits()) as i32;
        let mut sent = 0;
        while let Some(rest) = buffer.as_ref().get(sent..)
            && !rest.is_empty()
        {
            let length = rest.len().min(MAX_WRITE_BYTES) as u32;
            let entry =
                opcode::Send::new(Fd(self.socket.as_raw_fd()), rest.as_ptr(), length).flags(flags).build();
            // SAFETY: `StableBytes` promises that the bytes stay where they are, and they are lent with the socket.
            let (result, (_, lent)) = unsafe { submit((self.socket.clone(), buffer), entry) }.await;
            buffer = lent;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buffer),
                Ok(written) => {
                    sent += written as usize;
                    self.written.set(self.written.get() + u64::from(written));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Bytes that the system has taken so far, those of a write in flight too: whether the peer reads.
    pub fn written_bytes(&self) -> u64 {
        self.written.get()
    }

    /// Ends one half or both. What is pending on it completes. Of a connection that is gone already, nothing is left
    /// to end: that is no error.
    ///
    /// # Errors
    /// What shutdown(2) says.
    pub fn shutdown(&self, how: std::net::Shutdown) -> io::Result<()> {
        match SockRef::from(&*self.socket).shutdown(how) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        }
    }

    /// Makes the close of this socket a reset: what was not sent is dropped, and the peer learns of it at once.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn abort_on_close(&self) -> io::Result<()> {
        SockRef::from(&*self.socket).set_linger(Some(Duration::ZERO))
    }

    /// Sends at once what is written, however little it is.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_nodelay(&self) -> io::Result<()> {
        SockRef::from(&*self.socket).set_tcp_nodelay(true)
    }

    /// Lets the kernel find out that a peer is gone: asked after `idle` of silence and every third of it thereafter,
    /// lost after three times without an answer, or when sent data was not acknowledged for twice `idle`
    /// (TCP_USER_TIMEOUT).
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_keepalive(&self, idle: Duration) -> io::Result<()> {
        let socket = SockRef::from(&*self.socket);
        let interval = (idle / 3).max(Duration::from_secs(1));
        socket.set_tcp_keepalive(
            &TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(3),
        )?;
        socket.set_tcp_user_timeout(Some(idle * 2))
    }

    /// Who is on the other side.
    ///
    /// # Errors
    /// What getpeername(2) says: the connection may be gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        let address = SockRef::from(&*self.socket).peer_addr()?;
        address.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }
}

/// Bytes that the kernel may read while the value that holds them is moved.
///
/// # Safety
/// `as_ref` must return the same memory with the same contents for as long as the value is not changed, also after it
/// was moved: bytes on the heap do, bytes inside of the value do not.
#[allow(unsafe_code, reason = "the promise is the implementor's")]
pub unsafe trait StableBytes: AsRef<[u8]> + Unpin + 'static {}

#[allow(unsafe_code, reason = "a vector's bytes are on the heap")]
// SAFETY: moving a vector moves the pointer, not the bytes.
unsafe impl StableBytes for Vec<u8> {}

#[allow(unsafe_code, reason = "shared bytes are on the heap or static")]
// SAFETY: `Bytes` points to memory outside of itself, and never changes it.
unsafe impl StableBytes for bytes::Bytes {}

#[allow(unsafe_code, reason = "one of the two above")]
// SAFETY: both variants keep their bytes outside of the value.
unsafe impl StableBytes for ringpost_protocol::Segment {}
