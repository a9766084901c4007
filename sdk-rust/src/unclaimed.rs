//! Replies to requests of an earlier process of the same session.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use ringpost_client::Error;
use ringpost_protocol::message::Leg;
use tokio::sync::Notify;

use crate::{
    Reply, ReplyInfo,
    hub::{Hub, LinkState},
    raw,
    reply::pairs,
};

/// What became of a request that an earlier process made under this session's name, and did not live to learn.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Unclaimed {
    /// The request's number in its session: they rise in the order in which the requests were made.
    pub number: u64,
    /// The reply, or why there is none.
    pub result: Result<Reply, Error>,
    /// When it happened.
    pub info: ReplyInfo,
    /// Which leg of a broadcast it is.
    pub leg: Option<Leg>,
    /// What was asked, if it was durable.
    pub asked: Option<Asked>,
}

/// What a durable request was, of which only the reply is left.
#[derive(Debug, Clone)]
pub struct Asked {
    action: String,
    headers: Bytes,
}

impl Asked {
    /// The action that it was addressed to.
    pub fn action(&self) -> &str {
        &self.action
    }

    /// The caller's own key.
    pub fn idempotency_key(&self) -> Option<&str> {
        self.header("idempotency-key")
    }

    /// The request's headers, in the order of their sender.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        pairs(&self.headers)
    }

    /// The first header with this key.
    pub fn header(&self, key: &str) -> Option<&str> {
        self.headers().find(|(name, _)| *name == key).map(|(_, value)| value)
    }
}

impl Unclaimed {
    fn new(kept: raw::Unclaimed) -> Self {
        let raw::Unclaimed { number, result, info, leg, asked, .. } = kept;
        let result = result.map(|content| Reply::received(&content, info));
        let asked = asked.map(|content| Asked {
            action: String::from_utf8_lossy(content.name()).into_owned(),
            headers: content.headers_bytes(),
        });
        Self { number, result, info: ReplyInfo::new(&info), leg, asked }
    }
}

/// Those that nobody has taken yet. The core bounds their number.
#[derive(Debug, Default)]
pub(crate) struct UnclaimedQueue {
    waiting: Mutex<VecDeque<raw::Unclaimed>>,
    more: Notify,
}

impl UnclaimedQueue {
    pub(crate) fn push(&self, unclaimed: raw::Unclaimed) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(unclaimed);
        self.more.notify_waiters();
    }

    fn pop(&self) -> Option<raw::Unclaimed> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// The replies that the broker kept for an earlier process of this session, oldest first; ends when the client is closed.
///
/// The broker lets go of a reply once the next one is asked for, so that a process which dies over one leaves it to its
/// successor: what is done with a reply may be done twice. Several of these streams share the replies among them.
pub struct UnclaimedReplies {
    stream: Pin<Box<dyn Stream<Item = Unclaimed> + Send>>,
}

/// What the stream works with.
struct Taking {
    hub: Arc<Hub>,
    client: raw::Client,
    /// The one that was given last, and is in safe hands when the next one is asked for.
    given: Option<raw::UnclaimedKey>,
}

impl Taking {
    async fn next(&mut self) -> Option<Unclaimed> {
        if let Some(key) = self.given.take() {
            self.client.claim(key);
        }
        let mut link = self.hub.link.subscribe();
        loop {
            // `notify_waiters` reaches a future from its creation on, so that asking after it misses nothing.
            let more = self.hub.unclaimed.more.notified();
            let closed = matches!(*link.borrow(), LinkState::Closed(_));
            if let Some(unclaimed) = self.hub.unclaimed.pop() {
                self.given = Some(unclaimed.key);
                return Some(Unclaimed::new(unclaimed));
            }
            if closed {
                return None;
            }
            tokio::select! {
                () = more => {}
                // Both results say that it is closed: the next round gives what is left.
                _ = link.wait_for(|state| matches!(state, LinkState::Closed(_))) => {}
            }
        }
    }
}

impl UnclaimedReplies {
    pub(crate) fn new(hub: Arc<Hub>, client: raw::Client) -> Self {
        let taking = Taking { hub, client, given: None };
        let stream = stream::unfold(taking, |mut taking| async move {
            let unclaimed = taking.next().await?;
            Some((unclaimed, taking))
        });
        Self { stream: Box::pin(stream) }
    }

    /// The next reply, or `None` when the client is closed. Nothing is lost when this future is dropped.
    pub async fn next(&mut self) -> Option<Unclaimed> {
        self.stream.next().await
    }
}

impl Stream for UnclaimedReplies {
    type Item = Unclaimed;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.poll_next_unpin(cx)
    }
}

impl fmt::Debug for UnclaimedReplies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnclaimedReplies").finish_non_exhaustive()
    }
}
