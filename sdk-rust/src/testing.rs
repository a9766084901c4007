//! A real server within a test: feature `testing`.
//!
//! ```toml
//! [dev-dependencies]
//! ringpost = { version = "0.1", features = ["testing"] }
//! ```
//!
//! ```
//! use ringpost::{Client, json, testing::Server};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = Server::start().await?;
//! let client = Client::builder(server.address())
//!     .handler("double", json(|value: i64, _request| async move { Ok(2 * value) }))
//!     .connect()
//!     .await?;
//! assert_eq!(client.request("double", &21).json::<i64>().await?, 42);
//! # Ok(()) }
//! ```
//!
//! Each server has a thread, a ring and a port of its own, so that tests run side by side. It needs Linux with io_uring,
//! as every Ringpost server does.

use std::{net::SocketAddr, time::Duration};

use ringpost_server::Handle;
pub use ringpost_server::{Config, StartError};
use tokio::task::spawn_blocking;

/// A server on a free port of 127.0.0.1. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    config: Config,
    address: String,
    /// `None` while it is stopped.
    handle: Option<Handle>,
}

impl Server {
    /// Starts a server as it is by default; clients can connect when it is given.
    ///
    /// # Errors
    /// [`StartError`], which says what to do.
    pub async fn start() -> Result<Self, StartError> {
        Self::start_with(Config::default()).await
    }

    /// Starts a server with this configuration, but for where it listens.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start_with(mut config: Config) -> Result<Self, StartError> {
        config.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0)).into()];
        let handle = listen(config.clone()).await?;
        let address = handle.address();
        config.listen = vec![address.into()];
        Ok(Self { config, address: address.to_string(), handle: Some(handle) })
    }

    /// Where it listens, as `host:port`; the same after a [`restart`](Self::restart).
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Ends it at once, as a crash would, but that the connections are closed.
    pub async fn stop(&mut self) {
        if let Some(handle) = self.handle.take() {
            blocking(|| handle.stop()).await;
        }
    }

    /// Ends it in good order: clients are told, and what is open has as long as `grace` to end.
    pub async fn drain(&mut self, grace: Duration) {
        if let Some(handle) = self.handle.take() {
            handle.drain(grace);
            if let Err(crashed) = blocking(|| handle.wait()).await {
                tracing::error!("{crashed}");
            }
        }
    }

    /// Has it read the files of its secure keys again.
    pub fn reload_keys(&self) {
        if let Some(handle) = &self.handle {
            handle.reload_keys();
        }
    }

    /// Starts it again at the same address, after it has been [stopped](Self::stop) if it runs. It knows nothing of what
    /// was before.
    ///
    /// # Errors
    /// As [`Server::start`]; somebody may have taken the port.
    pub async fn restart(&mut self) -> Result<(), StartError> {
        self.stop().await;
        self.handle = Some(listen(self.config.clone()).await?);
        Ok(())
    }
}

async fn listen(config: Config) -> Result<Handle, StartError> {
    blocking(|| ringpost_server::Server::builder().config(config).start()).await
}

/// Lets the test's own tasks go on meanwhile: a server may wait for them.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
