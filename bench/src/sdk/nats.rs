//! NATS's own SDK for Rust.

use std::net::SocketAddr;

use anyhow::Context;
use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::task::JoinHandle;

use super::Sdk;

/// A client of async-nats, as it is by default.
#[derive(Debug, Clone)]
pub struct AsyncNats(Client);

/// Ends the handler's task with its owner.
#[derive(Debug)]
pub struct Handler(JoinHandle<()>);

impl Drop for Handler {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Sdk for AsyncNats {
    const NAME: &'static str = "async-nats";
    type Handler = Handler;

    /// Answers in one task, one message after the other: a task for each, as Ringpost's SDK makes, would only slow an
    /// echo down.
    async fn handle(server: SocketAddr, action: &str, _concurrency: u32) -> anyhow::Result<Handler> {
        let client = async_nats::connect(server.to_string()).await?;
        let mut requests = client.queue_subscribe(action.to_owned(), "handlers".to_owned()).await?;
        // The server has the subscription when this is answered.
        client.flush().await.context("flushing the subscription")?;
        let echo = async move {
            while let Some(request) = requests.next().await {
                if let Some(reply) = request.reply {
                    // What cannot be answered is missed by the requester.
                    let _ = client.publish(reply, request.payload).await;
                }
            }
        };
        Ok(Handler(tokio::spawn(echo)))
    }

    async fn connect(server: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self(async_nats::connect(server.to_string()).await?))
    }

    async fn request(&self, action: &'static str, payload: &Bytes) -> anyhow::Result<Bytes> {
        Ok(self.0.request(action, payload.clone()).await?.payload)
    }
}
