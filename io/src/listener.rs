//! A listening TCP socket.

use std::{
    cell::Cell,
    io,
    net::{Shutdown, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use io_uring::{opcode, types::Fd};
use rustix::{io::Errno, net::SocketFlags};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{operation::submit, stream::Stream};

/// Why nobody can connect.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}", self.remedy())]
pub struct BindError {
    /// The address that was asked for.
    pub address: SocketAddr,
    /// What the kernel said.
    #[source]
    pub cause: io::Error,
}

impl BindError {
    /// What the kernel said, and what to do about it.
    fn remedy(&self) -> String {
        let (address, port) = (self.address, self.address.port());
        match Errno::from_io_error(&self.cause) {
            Some(Errno::ADDRINUSE) => format!(
                "the port is taken. `ss -ltnp 'sport = :{port}'` shows by whom; stop that, or choose another port with \
                 --listen"
            ),
            Some(Errno::ACCESS | Errno::PERM) if port < 1024 => format!(
                "ports below 1024 are privileged. Choose one above, or allow {port} with `sysctl -w \
                 net.ipv4.ip_unprivileged_port_start={port}` or the capability CAP_NET_BIND_SERVICE"
            ),
            Some(Errno::ACCESS | Errno::PERM) => {
                "the system does not permit it (a security module's policy?)".into()
            }
            Some(Errno::ADDRNOTAVAIL) => {
                format!("this machine has no address {}. `ip address` lists those that it has", address.ip())
            }
            Some(Errno::AFNOSUPPORT) => "this machine has no IPv6. Listen on an IPv4 address".into(),
            Some(Errno::MFILE | Errno::NFILE) => {
                "no descriptor is left. Raise the limit of open files (`ulimit -n`)".into()
            }
            _ => self.cause.to_string(),
        }
    }
}

/// Why there is no next connection.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// [`Listener::close`] was called.
    #[error("the listener is closed")]
    Closed,
    /// The process or the machine has no room for one more: it waits in the backlog. Try again a little later.
    #[error(
        "no room for one more connection: {0}; raise the limit of open files (`ulimit -n`) if it is that"
    )]
    Exhausted(#[source] io::Error),
    /// Something else, which will most likely last.
    #[error("connections cannot be accepted: {0}")]
    Other(#[source] io::Error),
}

/// How long a port that is taken is tried again. The kernel closes a ring's sockets some time after the process that had it
/// was killed (20 ms with a thousand connections): who restarts a server at once must not be told that the port is taken.
const TAKEN_TIME: Duration = Duration::from_secs(2);
const TAKEN_PAUSE: Duration = Duration::from_millis(10);

/// A listening TCP socket. Clones are the same one; the socket is closed with the last of them.
#[derive(Debug, Clone)]
pub struct Listener {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    closed: Cell<bool>,
}

impl Listener {
    /// Listens on an address; port 0 takes a free one. `backlog`: connections that may wait to be accepted (the kernel
    /// cuts it to `net.core.somaxconn`). An IPv6 address means IPv6 only, so that `0.0.0.0` and `[::]` go together.
    ///
    /// It blocks while the port is taken, for up to two seconds: a server that was killed a moment ago still has it.
    ///
    /// # Errors
    /// [`BindError`], which says what to do.
    pub fn bind(address: SocketAddr, backlog: u32) -> Result<Self, BindError> {
        let listen = || -> io::Result<Socket> {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            // A restarted server must not wait for the last one's connections in TIME_WAIT.
            socket.set_reuse_address(true)?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&address.into())?;
            socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
            Ok(socket)
        };
        let until = Instant::now() + TAKEN_TIME;
        let socket = loop {
            match listen() {
                Err(cause) if cause.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                    thread::sleep(TAKEN_PAUSE);
                }
                result => break result.map_err(|cause| BindError { address, cause })?,
            }
        };
        Ok(Self { shared: Rc::new(Shared { socket: socket.into(), closed: Cell::new(false) }) })
    }

    /// The address that it really listens on.
    ///
    /// # Errors
    /// What getsockname(2) says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = SockRef::from(&self.shared.socket).local_addr()?;
        address.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// The next connection. Those that ended while they waited in the backlog are passed over.
    ///
    /// Its future must not be dropped: see the [crate's contract](crate).
    ///
    /// # Errors
    /// [`AcceptError`]: after [`AcceptError::Exhausted`] it may be called again.
    #[allow(unsafe_code, reason = "the kernel returns a descriptor")]
    pub async fn accept(&self) -> Result<Stream, AcceptError> {
        loop {
            if self.shared.closed.get() {
                return Err(AcceptError::Closed);
            }
            let socket = Fd(self.shared.socket.as_raw_fd());
            let entry = opcode::Accept::new(socket, std::ptr::null_mut(), std::ptr::null_mut())
                .flags(SocketFlags::CLOEXEC.bits() as i32)
                .build();
            // SAFETY: the listener is lent; no address is asked for.
            let error = match unsafe { submit(self.shared.clone(), entry) }.await.0 {
                // SAFETY: the kernel has just opened it for us, and nobody else knows of it.
                Ok(accepted) => return Ok(Stream::new(unsafe { OwnedFd::from_raw_fd(accepted as RawFd) })),
                Err(error) => error,
            };
            match Errno::from_io_error(&error) {
                Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    return Err(AcceptError::Exhausted(error));
                }
                _ if self.shared.closed.get() => return Err(AcceptError::Closed),
                // Errors of the connection itself, not of the listener: accept(2), "Error handling".
                Some(
                    Errno::CONNABORTED
                    | Errno::INTR
                    | Errno::AGAIN
                    | Errno::PROTO
                    | Errno::PERM
                    | Errno::NETDOWN
                    | Errno::NETUNREACH
                    | Errno::HOSTDOWN
                    | Errno::HOSTUNREACH
                    | Errno::NOPROTOOPT
                    | Errno::NONET
                    | Errno::TIMEDOUT,
                ) => {}
                _ => return Err(AcceptError::Other(error)),
            }
        }
    }

    /// Refuses further connections from now on. A pending [`Listener::accept`] ends with [`AcceptError::Closed`].
    pub fn close(&self) {
        self.shared.closed.set(true);
        // Linux: shutdown(2) of a listening socket ends its accept(2) with EINVAL.
        if let Err(error) = SockRef::from(&self.shared.socket).shutdown(Shutdown::Both) {
            tracing::debug!(%error, "a listener that was shut down twice");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port that another process is about to let go is waited for.
    #[test]
    fn a_port_is_let_go() {
        let last = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = last.local_addr().unwrap();
        let end = thread::spawn(move || {
            thread::sleep(5 * TAKEN_PAUSE);
            drop(last);
        });
        assert_eq!(Listener::bind(address, 8).unwrap().local_addr().unwrap(), address);
        end.join().unwrap();
    }

    /// Each way in which a bind fails names the address and says what to do.
    #[test]
    fn bind_errors_name_the_remedy() {
        for (errno, address, expected) in [
            (Errno::ADDRINUSE, "127.0.0.1:8888", "ss -ltnp 'sport = :8888'"),
            (Errno::ACCESS, "127.0.0.1:80", "CAP_NET_BIND_SERVICE"),
            (Errno::ACCESS, "127.0.0.1:8888", "does not permit"),
            (Errno::ADDRNOTAVAIL, "127.0.0.9:8888", "has no address 127.0.0.9"),
            (Errno::AFNOSUPPORT, "[::1]:8888", "no IPv6"),
            (Errno::MFILE, "127.0.0.1:8888", "ulimit -n"),
        ] {
            let error = BindError { address: address.parse().unwrap(), cause: errno.into() }.to_string();
            assert!(error.contains(address) && error.contains(expected), "{error}");
        }
    }
}
