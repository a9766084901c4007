//! The two halves of a connection's socket. Usually the client's task waits for both; where a sink watches the socket
//! itself, the task's runtime must not be woken by what comes in: then it does not know of the socket.

use std::{
    future::pending,
    io::{self, IoSlice, Read, Write},
    net::{self, Shutdown},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, tcp},
};

/// The receiving half.
#[derive(Debug)]
pub(super) enum ReadHalf {
    /// The task waits for it.
    Task(tcp::OwnedReadHalf),
    /// A sink watches it.
    Sink(Arc<net::TcpStream>),
    /// A sink did, and does no more.
    Returned(TcpStream),
}

impl ReadHalf {
    /// Waits for bytes, as many as there is room for; 0 at the end of the stream. For ever, while a sink watches.
    pub(super) async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Task(half) => half.read_buf(buffer).await,
            Self::Sink(_) => pending().await,
            Self::Returned(stream) => stream.read_buf(buffer).await,
        }
    }

    /// Takes the bytes that are there, without waiting.
    pub(super) fn read_now(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Task(half) => half.try_read(bytes),
            Self::Sink(stream) => (&**stream).read(bytes),
            Self::Returned(stream) => stream.try_read(bytes),
        }
    }

    /// From now on the task waits for it.
    pub(super) fn returned(self) -> io::Result<Self> {
        match self {
            Self::Sink(stream) => Ok(Self::Returned(TcpStream::from_std(stream.try_clone()?)?)),
            half => Ok(half),
        }
    }
}

impl AsFd for ReadHalf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Task(half) => half.as_ref().as_fd(),
            Self::Sink(stream) => stream.as_fd(),
            Self::Returned(stream) => stream.as_fd(),
        }
    }
}

/// The sending half.
#[derive(Debug)]
pub(super) enum WriteHalf {
    /// Of a socket that the task waits for.
    Task(tcp::OwnedWriteHalf),
    /// Of one that a sink watches.
    Sink(Arc<net::TcpStream>),
}

impl WriteHalf {
    /// Waits until it takes bytes.
    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Task(half) => half.writable().await,
            // Only now, when the socket is full, the runtime is told of it.
            Self::Sink(stream) => TcpStream::from_std(stream.try_clone()?)?.writable().await,
        }
    }

    /// Writes what it takes now.
    pub(super) fn write_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Task(half) => half.try_write_vectored(slices),
            Self::Sink(stream) => (&**stream).write_vectored(slices),
        }
    }

    /// Says that nothing follows.
    pub(super) async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Task(half) => half.shutdown().await,
            Self::Sink(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

/// As tokio's half does: a child of this process may hold the descriptor too, and the server must see the end all the same.
impl Drop for WriteHalf {
    fn drop(&mut self) {
        if let Self::Sink(stream) = self {
            // It fails where it has ended already.
            let _ = stream.shutdown(Shutdown::Write);
        }
    }
}

/// Splits a socket that the task waits for.
pub(super) fn for_task(stream: TcpStream) -> (ReadHalf, WriteHalf) {
    let (read, write) = stream.into_split();
    (ReadHalf::Task(read), WriteHalf::Task(write))
}

/// Splits a socket that a sink watches.
pub(super) fn for_sink(stream: TcpStream) -> io::Result<(ReadHalf, WriteHalf)> {
    let stream = Arc::new(stream.into_std()?);
    Ok((ReadHalf::Sink(stream.clone()), WriteHalf::Sink(stream)))
}
