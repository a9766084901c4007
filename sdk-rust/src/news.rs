//! Streams of what changes: the receivers, and the connection.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{Stream, StreamExt, stream};
use ringpost_client::Event;
use tokio::sync::{broadcast, watch};

use crate::hub::{LinkState, ReceiversList};

/// The actions that have a handler, at each change; the latest list only. Ends when the client is closed.
pub struct Receivers {
    stream: Pin<Box<dyn Stream<Item = ReceiversList> + Send>>,
}

impl Receivers {
    pub(crate) fn new(
        mut lists: watch::Receiver<Option<ReceiversList>>,
        link: watch::Receiver<LinkState>,
    ) -> Self {
        // What is known already is the first item.
        lists.mark_changed();
        let stream = stream::unfold((lists, link), |(mut lists, mut link)| async move {
            loop {
                tokio::select! {
                    biased;
                    changed = lists.changed() => changed.ok()?,
                    _ = link.wait_for(|state| matches!(state, LinkState::Closed(_))) => return None,
                }
                let list = lists.borrow_and_update().clone();
                if let Some(list) = list {
                    return Some((list, (lists, link)));
                }
            }
        });
        Self { stream: Box::pin(stream) }
    }

    /// The next list, or `None` when the client is closed. Nothing is lost when this future is dropped.
    pub async fn next(&mut self) -> Option<ReceiversList> {
        self.stream.next().await
    }
}

impl Stream for Receivers {
    type Item = ReceiversList;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.poll_next_unpin(cx)
    }
}

impl fmt::Debug for Receivers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receivers").finish_non_exhaustive()
    }
}

/// What happens to the connection. A listener that is more than 64 events behind misses the oldest. Ends behind
/// [`Event::Closed`].
pub struct Events {
    stream: Pin<Box<dyn Stream<Item = Event> + Send>>,
}

impl Events {
    pub(crate) fn new(events: broadcast::Receiver<Event>) -> Self {
        let stream = stream::unfold(Some(events), |events| async move {
            let mut events = events?;
            loop {
                match events.recv().await {
                    Ok(event @ Event::Closed(_)) => return Some((event, None)),
                    Ok(event) => return Some((event, Some(events))),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        Self { stream: Box::pin(stream) }
    }

    /// The next event, or `None` when the client is closed. Nothing is lost when this future is dropped.
    pub async fn next(&mut self) -> Option<Event> {
        self.stream.next().await
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.poll_next_unpin(cx)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}
