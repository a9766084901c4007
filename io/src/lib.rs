//! The only crate that talks to the kernel: ring, sockets, files, signals, clocks, limits.
//!
//! It stands on tokio-uring, and nothing of that shows: whoever replaces it replaces this crate. It is also the only
//! crate with `unsafe` in it, all of it in `operation`, `listener`, `stream`, `endpoint`, `file`, `directory` and `signals`, where buffers, names and
//! descriptors are lent to the kernel.
//!
//! | module | owns |
//! |---|---|
//! | [`ring`] | the runtime of a thread: [`ring::run`], [`ring::spawn`] |
//! | `operation` | the one way to submit to the ring, and the count of what is in flight |
//! | [`listener`], [`stream`] | TCP |
//! | [`endpoint`], [`pipe`] | TCP for who only passes bytes on: readiness, and moving without waiting; splice(2) |
//! | [`mod@file`], [`directory`] | files, their names, and what of them is stable when |
//! | [`blocking`] | the same without a ring, for start-up and tools |
//! | [`file_error`] | why something with a file did not work |
//! | `faults` | files that fail when a test wants it; only with the feature of that name |
//! | [`read_size`] | how large a buffer the next read of a connection gets |
//! | [`event`] | waking a task of the same thread |
//! | [`clock`] | reading both clocks at once; sleeping |
//! | [`signals`] | SIGTERM, SIGINT, SIGHUP |
//! | [`probe`], [`descriptors`] | what this machine allows |
//!
//! # The contract: a pending operation's future is never dropped
//!
//! Dropping it does not take the operation back: a read's bytes would be lost, an accepted socket would be leaked. So
//! none of the futures of [`listener::Listener`], [`stream::Stream`], [`endpoint::Endpoint`], [`file::File`] and [`directory::Directory`] goes under
//! a timeout or a `select!`.
//! Connections end by [`stream::Stream::shutdown`] or [`endpoint::Endpoint::shutdown`], listeners by [`listener::Listener::close`]: then the operation that
//! is pending completes; files need nothing of the kind, as the disk answers by itself. Memory stays sound either way.
//!
//! ```no_run
//! use bytes::BytesMut;
//! use ringpost_io::{listener::Listener, ring::{self, RingConfig}};
//!
//! ring::run(&RingConfig::default(), async {
//!     let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), 1024).unwrap();
//!     let stream = listener.accept().await.unwrap();
//!     let (read, buffer) = stream.read(BytesMut::with_capacity(4096)).await;
//!     assert_eq!(read.unwrap(), buffer.len());
//! }).unwrap();
//! ```

pub mod blocking;
pub mod clock;
pub mod descriptors;
pub mod directory;
pub mod endpoint;
pub mod event;
#[cfg(feature = "faults")]
pub mod faults;
#[cfg(not(feature = "faults"))]
#[path = "no_faults.rs"]
mod faults;
pub mod file;
pub mod file_error;
pub mod listener;
mod operation;
pub mod pipe;
pub mod probe;
pub mod read_size;
pub mod ring;
pub mod signals;
pub mod stream;
