//! The Ringpost server: drives the broker's core on io_uring. Embeddable.
//!
//! ```no_run
//! use ringpost_server::Server;
//!
//! let server = Server::builder().listen(["127.0.0.1:0".parse()?]).start()?;
//! println!("listening on {}", server.address());
//! server.stop();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A turn
//!
//! One thread owns a ring, the connections and the core; nothing on a request's path is locked. Between two visits to
//! the kernel lies a *turn*:
//!
//! ```text
//! completions ─┬─> reader: bytes → messages → core → outputs → each connection's outgoing bytes ─┐
//!              ├─> reader: …                                                                    ├─> flusher ─> writers ─> kernel
//!              └─> reader: …                                                                    ┘
//! ```
//!
//! A read's messages go into the core before its outputs are taken, and those are encoded at once, while the payloads are
//! still in the cache and in the reader's buffer. Of a flood only a part is taken in, before others have their turn. The first input of a turn wakes the flusher; it queues up
//! behind the readers that were woken with it, so it runs when they are done, and wakes the writers: what a turn has for
//! one connection leaves in one send. The clocks are read once per turn.
//!
//! | module | owns |
//! |---|---|
//! | [`Server`], [`Handle`] | starting, draining, stopping |
//! | [`Config`], [`units`], [`Listen`], [`Network`], [`KeyConfig`] | everything that can be set |
//! | `shard` | the core and the turn; in it `arriving`: connections that have not said who they are, `traffic`: messages on their way, `ending`: connections that end, deadlines |
//! | `connections` | what is known of each connection |
//! | `tasks` | reader and writer of a connection, acceptor, flusher, timekeeper |
//! | `strangers` | how many connections there may be that have not said who they are |
//! | [`KeyFile`] (`keys`) | secure keys: their files, and which are good now |
//! | [`Peer`], `peer` | links to other servers: what they translate, and their tasks; in the shard `links` |
//! | `reload` | keys that are read again |
//! | `channel` | the records of a connection with a secure key |
//! | `buffers` | buffers to write with, used again and again |

#![forbid(unsafe_code)]

mod buffers;
mod channel;
mod config;
mod connections;
mod error;
mod key_config;
mod keys;
mod listen;
mod network;
mod peer;
mod reload;
mod server;
mod shard;
mod storage;
mod strangers;
mod tasks;

pub use config::{Config, ConfigError, Dispatch, Durable, Sync};
pub use error::StartError;
pub use key_config::KeyConfig;
pub use keys::{KeyFile, KeysError, read_key_file};
pub use listen::{Listen, ListenError, ListenerKind, parse_listen, parse_listens};
pub use network::{Network, NetworkError};
pub use peer::{Peer, PeerError};
use ringpost_protocol::throttle;
pub use ringpost_protocol::units;
pub use server::{Builder, Crashed, Ended, Handle, LEAST_OPEN_FILES, Server};
pub use storage::{LogFiles, StorageError};
