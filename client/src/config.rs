//! What a client is told once, and what it is told with each request.

use std::time::Duration;

use bytes::Bytes;
use ringpost_protocol::{Content, message::RequestFlags};

/// How a [`crate::Client`] behaves.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The session's name, at most 255 bytes. A driver whose user gave none passes a random one; empty is a session
    /// that ends with its connection.
    pub session: Bytes,
    /// Tells this client from all others that may come under the same session's name: a driver draws 64 random bits for
    /// each client that it makes. 0 only where the session has no name; a broker refuses it elsewhere.
    pub instance: u64,
    /// Facts about the client for the hello, encoded headers.
    pub headers: Bytes,
    /// The own name of the server that this client is a part of: it comes as a peer. `None` for everybody else.
    pub peer: Option<Bytes>,
    /// Whether to be told the receivers from the start.
    pub watch_receivers: bool,
    /// Whether to connect again when a connection is lost.
    pub reconnect: bool,
    /// Whether to go on trying when the very first connection cannot be made.
    pub retry_initial: bool,
    /// The pause before a try to connect, ± 20 %; while tries fail it doubles, up to ten times this. At least 10 ms.
    pub reconnect_interval: Duration,
    /// How many tries may fail in a row; one more, and the client gives up. `None`: it never does.
    pub max_reconnects: Option<u32>,
    /// Seeds the jitter of the pauses.
    pub seed: u64,
    /// The least time between two deliveries handed to handlers; zero for none.
    pub task_interval: Duration,
    /// How long a requester waits unless the request says so; zero for 10 s.
    pub default_request_timeout: Duration,
    /// How much longer than the timeout the client waits for the broker to say `timeout`, before it does so itself.
    pub timeout_grace: Duration,
    /// How many requests may wait for a connection.
    pub max_pending: usize,
    /// Whether what a leaving server did not take waits for the next one. `false`: it ends with that server's `draining`,
    /// for somebody who has others to ask.
    pub hold_back: bool,
    /// How many outcomes that the broker kept for an earlier process under this session's name may wait to be
    /// [claimed](crate::Client::claim). 0: they are not wanted, and the broker lets go of them.
    pub max_unclaimed: usize,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            session: Bytes::new(),
            instance: 0,
            headers: Bytes::new(),
            peer: None,
            watch_receivers: false,
            reconnect: true,
            retry_initial: true,
            reconnect_interval: Duration::from_secs(1),
            max_reconnects: None,
            seed: 0,
            task_interval: Duration::ZERO,
            default_request_timeout: DEFAULT_TIMEOUT,
            timeout_grace: Duration::from_millis(500),
            max_pending: 65_536,
            hold_back: true,
            max_unclaimed: 0,
        }
    }
}

/// How long a requester waits when nobody said anything.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// A request, as the application wants it.
#[derive(Debug, Clone, Default)]
pub struct RequestSpec {
    /// Send, broadcast, durable, progress wanted.
    pub flags: RequestFlags,
    /// Deliveries at most; 0 for the broker's default.
    pub max_attempts: u8,
    /// How long the broker may keep it; zero for the broker's default.
    pub ttl: Duration,
    /// How long to wait for the reply; zero for the client's default.
    pub timeout: Duration,
    /// The action as the name, with options, headers and payload.
    pub content: Content,
}
