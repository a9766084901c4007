//! Ringpost's own SDK.

use std::net::SocketAddr;

use bytes::Bytes;
use ringpost::{Client, HandlerOptions, Reply, Request};

use super::Sdk;

/// A client of Ringpost's SDK, as it is by default: with a session, so that the server keeps outcomes for it.
#[derive(Debug, Clone)]
pub struct RingpostSdk(Client);

impl Sdk for RingpostSdk {
    const NAME: &'static str = "ringpost (Rust)";
    type Handler = Client;

    async fn handle(server: SocketAddr, action: &str, concurrency: u32) -> anyhow::Result<Client> {
        let options = HandlerOptions { concurrency, ..HandlerOptions::default() };
        let echo = |request: Request| async move { Ok(Reply::bytes(request.bytes())) };
        Ok(Client::builder(server.to_string()).handler_with(action, options, echo).connect().await?)
    }

    async fn connect(server: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self(Client::connect(server.to_string()).await?))
    }

    async fn request(&self, action: &'static str, payload: &Bytes) -> anyhow::Result<Bytes> {
        Ok(self.0.request_bytes(action, payload).await?.into_bytes())
    }
}
