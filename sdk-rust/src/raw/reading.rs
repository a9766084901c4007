//! Reading by the thread that wants what comes: see [`Watcher`](super::Watcher).
//!
//! Two threads may then hand out what came, the sink's and the client's own; one lock keeps that in order. It is taken
//! before the lock of what they share, and never while that is held.

use std::{
    io,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ringpost_protocol::message::ServerMessage;

use super::{
    Client, CompletionSink,
    shared::{Batch, Shared},
    socket::Receiver,
};

/// The order in which is handed out, and the connection that is read by others than the client's task, if there is one.
#[derive(Debug, Default)]
pub(super) struct Reading(Mutex<Option<Watched>>);

/// Held while something is handed out.
pub(super) type Order<'a> = MutexGuard<'a, Option<Watched>>;

impl Reading {
    /// Nobody else hands out while this is held.
    pub(super) fn order(&self) -> Order<'_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the sink's thread read from now on.
    pub(super) fn lend(&self, receiver: Receiver, sink: &Arc<dyn CompletionSink>) -> io::Result<()> {
        let Some(watcher) = sink.watcher() else { return Ok(()) };
        // With the lock: the sink may be at it before this returns.
        let mut order = self.order();
        watcher.watch(receiver.as_fd())?;
        let (sink, messages, batch) = (sink.clone(), Vec::new(), Batch::default());
        *order = Some(Watched { receiver, sink, messages, batch, lost: None });
        Ok(())
    }

    /// Nobody but the task reads any more.
    pub(super) fn take_back(&self) -> Option<Receiver> {
        let watched = self.order().take()?;
        if watched.lost.is_none() {
            watched.unwatch();
        }
        Some(watched.receiver)
    }

    /// Why there is nothing more to be read.
    pub(super) fn lost(&self) -> Option<String> {
        self.order().as_ref()?.lost.clone()
    }
}

/// A connection that a sink watches.
pub(super) struct Watched {
    receiver: Receiver,
    sink: Arc<dyn CompletionSink>,
    messages: Vec<ServerMessage>,
    batch: Batch,
    lost: Option<String>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl Watched {
    /// Reads once, and hands out what that led to. Whether something came.
    pub(super) fn read(&mut self, client: &Client, shared: &Shared) -> bool {
        if self.lost.is_some() {
            return false;
        }
        match self.receiver.read_now() {
            Ok(true) => {}
            Ok(false) => {
                let reason = self.receiver.end().to_owned();
                self.lose(shared, reason);
                return false;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return false;
            }
            Err(error) => {
                self.lose(shared, format!("reading from the server: {error}"));
                return false;
            }
        }
        // What came before bytes that are no frames still counts.
        let decoded = self.receiver.decode(&mut self.messages);
        shared.receive_and_write(&mut self.messages, &mut self.batch);
        self.batch.hand_out(client, &*self.sink);
        if let Err(error) = decoded {
            self.lose(shared, format!("the server sent what cannot be understood: {error}"));
        }
        true
    }

    /// There is nothing more to read: the task ends the connection.
    fn lose(&mut self, shared: &Shared, reason: String) {
        self.unwatch();
        self.lost = Some(reason);
        shared.wake();
    }

    fn unwatch(&self) {
        if let Some(watcher) = self.sink.watcher() {
            watcher.unwatch(self.receiver.as_fd());
        }
    }
}
