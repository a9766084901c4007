//! A TCP connection for who moves bytes on: readiness from the ring, and the moving itself at once.
//!
//! A [`Stream`]'s pending read owns a buffer; ten thousand idle connections own ten thousand. An endpoint waits for
//! readiness with nothing in its hands, and then reads, writes and splices without waiting. That also is the only way to
//! splice on the thread itself: the ring's own splice always runs in a worker thread of the kernel's.

use std::{
    io,
    net::{Shutdown, SocketAddr},
    ops::Range,
    os::fd::{AsRawFd, OwnedFd},
    pin::pin,
    rc::Rc,
    time::Duration,
};

use io_uring::{opcode, types::Fd};
use rustix::{
    event::PollFlags,
    net::{RecvFlags, SendFlags},
};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::{
    clock,
    operation::submit,
    stream::{StableBytes, Stream},
};

/// A TCP connection without blocking. Clones are the same one; the socket is closed with the last of them, and not before
/// what waits on it has ended.
///
/// Any number of tasks may wait for readiness. Their futures must not be dropped: see the [crate's contract](crate).
/// [`Endpoint::shutdown`] of both halves ends them all.
#[derive(Debug, Clone)]
pub struct Endpoint {
    socket: Rc<OwnedFd>,
}

impl Endpoint {
    /// Takes over an accepted connection. No operation may be pending on it.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub fn new(stream: Stream) -> io::Result<Self> {
        let socket = stream.into_socket();
        // Without it, splice(2) blocks the thread even when it is told not to.
        rustix::io::ioctl_fionbio(&*socket, true)?;
        Ok(Self { socket })
    }

    /// Begins to connect. When it is [`Endpoint::writable`], [`Endpoint::take_error`] says how that went.
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
        Ok(Self { socket: Rc::new(socket.into()) })
    }

    /// What went wrong since it was last asked for: with a connection that was begun, or one that broke.
    ///
    /// # Errors
    /// That.
    pub fn take_error(&self) -> io::Result<()> {
        SockRef::from(&*self.socket).take_error().and_then(|error| error.map_or(Ok(()), Err))
    }

    /// Waits until there is something to read: bytes, the end, or an error.
    ///
    /// # Errors
    /// When the ring cannot wait for it.
    pub async fn readable(&self) -> io::Result<()> {
        self.ready(PollFlags::IN).await
    }

    /// Waits until something can be written, or an error be had for it.
    ///
    /// # Errors
    /// When the ring cannot wait for it.
    pub async fn writable(&self) -> io::Result<()> {
        self.ready(PollFlags::OUT).await
    }

    /// The same, no longer than a time: then the connection is aborted, and the error is [`io::ErrorKind::TimedOut`].
    ///
    /// # Errors
    /// That; when the ring cannot wait for it.
    pub async fn readable_within(&self, time: Duration) -> io::Result<()> {
        self.ready_within(PollFlags::IN, time).await
    }

    /// [`Endpoint::writable`] no longer than a time: then the connection is aborted, and the error is
    /// [`io::ErrorKind::TimedOut`].
    ///
    /// # Errors
    /// That; when the ring cannot wait for it.
    pub async fn writable_within(&self, time: Duration) -> io::Result<()> {
        self.ready_within(PollFlags::OUT, time).await
    }

    async fn ready_within(&self, what: PollFlags, time: Duration) -> io::Result<()> {
        let mut ready = pin!(self.ready(what));
        if let Some(outcome) = clock::within(time, ready.as_mut()).await {
            return outcome;
        }
        // Not dropped: it ends by this.
        self.abort()?;
        ready.await?;
        Err(io::ErrorKind::TimedOut.into())
    }

    #[allow(unsafe_code, reason = "the socket is lent")]
    async fn ready(&self, what: PollFlags) -> io::Result<()> {
        let entry = opcode::PollAdd::new(Fd(self.socket.as_raw_fd()), u32::from(what.bits())).build();
        // SAFETY: the entry has no pointer, and its socket is lent.
        unsafe { submit(self.socket.clone(), entry) }.await.0.map(|_| ())
    }

    /// Reads what is there, without waiting. `Ok(0)`: the peer has ended its half.
    ///
    /// # Errors
    /// What recv(2) says; [`io::ErrorKind::WouldBlock`]: nothing is there now.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = retry(|| rustix::net::recv(&*self.socket, &mut *buffer, RecvFlags::DONTWAIT))?;
        Ok(read.0)
    }

    /// Writes what there is room for, without waiting. There is no SIGPIPE.
    ///
    /// # Errors
    /// What send(2) says; [`io::ErrorKind::WouldBlock`]: there is no room now.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        retry(|| rustix::net::send(&*self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL))
    }

    /// Writes what there is room for of a part of the buffer, and gives the buffer back. Unlike [`Endpoint::try_write`] it is
    /// submitted with all else of this turn. It does not wait for room either.
    ///
    /// # Errors
    /// What send(2) says; [`io::ErrorKind::WouldBlock`]: there is no room now; [`io::ErrorKind::InvalidInput`] for a part that
    /// the buffer does not have.
    #[allow(unsafe_code, reason = "the kernel reads from the buffer")]
    pub async fn write<B: StableBytes>(&self, buffer: B, part: Range<usize>) -> (io::Result<usize>, B) {
        let Some(bytes) = buffer.as_ref().get(part) else {
            return (Err(io::ErrorKind::InvalidInput.into()), buffer);
        };
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let flags = (SendFlags::DONTWAIT | SendFlags::NOSIGNAL).bits() as i32;
        let entry =
            opcode::Send::new(Fd(self.socket.as_raw_fd()), bytes.as_ptr(), length).flags(flags).build();
        // SAFETY: `StableBytes` promises that the bytes stay where they are, and they are lent with the socket.
        let (result, (_, lent)) = unsafe { submit((self.socket.clone(), buffer), entry) }.await;
        (result.map(|written| written as usize), lent)
    }

    /// Ends one half or both. What waits for readiness then goes on. Of a connection that is gone already, nothing is
    /// left to end: that is no error.
    ///
    /// # Errors
    /// What shutdown(2) says.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match SockRef::from(&*self.socket).shutdown(how) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        }
    }

    /// Ends the connection by a reset, at once: what was not sent is dropped. What waits for readiness then goes on. A
    /// connection that was only begun is given up.
    ///
    /// # Errors
    /// What connect(2) says of an address without a family, which is how this is said.
    pub fn abort(&self) -> io::Result<()> {
        Ok(rustix::net::connect_unspec(&*self.socket)?)
    }

    /// Sends at once what is written, however little it is.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_nodelay(&self) -> io::Result<()> {
        SockRef::from(&*self.socket).set_tcp_nodelay(true)
    }

    /// Lets the kernel find out that a silent peer is gone: asked after `idle`, and every third of it thereafter; lost
    /// after three times without an answer. Unlike [`Stream::set_keepalive`] it leaves a peer alone that is there and
    /// does not read.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_keepalive(&self, idle: Duration) -> io::Result<()> {
        let interval = (idle / 3).max(Duration::from_secs(1));
        let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(3);
        SockRef::from(&*self.socket).set_tcp_keepalive(&keepalive)
    }

    /// Who is on the other side.
    ///
    /// # Errors
    /// What getpeername(2) says: the connection may be gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        let address = SockRef::from(&*self.socket).peer_addr()?;
        address.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// Where the other side sees this one.
    ///
    /// # Errors
    /// What getsockname(2) says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = SockRef::from(&*self.socket).local_addr()?;
        address.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }
}

/// Again, if a signal came between.
pub(crate) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            outcome => return Ok(outcome?),
        }
    }
}
