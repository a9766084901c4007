//! A sink that watches the client's socket and reads by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use std::{
    io,
    os::fd::BorrowedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use fake::{DEADLINE, Server};
use ringpost::{
    Client,
    raw::{self, Completion, CompletionSink, Content, Delivery, Notice, RequestSpec, Watcher},
};
use ringpost_protocol::message::{ServerMessage, Welcome};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::timeout,
};

/// An event loop as it sees its client.
struct Watching {
    sockets: mpsc::UnboundedSender<TcpStream>,
    unwatched: AtomicUsize,
    /// Whether this very moment is within [`raw::Client::read`].
    reading: AtomicBool,
    outcomes: Mutex<Vec<Result<String, String>>>,
    /// How many of them were told outside of it.
    told_by_the_task: AtomicUsize,
    told: Notify,
}

impl Watching {
    fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<TcpStream>) {
        let (sockets, watched) = mpsc::unbounded_channel();
        let sink = Self {
            sockets,
            unwatched: AtomicUsize::new(0),
            reading: AtomicBool::new(false),
            outcomes: Mutex::default(),
            told_by_the_task: AtomicUsize::new(0),
            told: Notify::new(),
        };
        (Arc::new(sink), watched)
    }

    async fn wait_for(&self, outcomes: usize) {
        while self.outcomes.lock().unwrap().len() < outcomes {
            timeout(DEADLINE, self.told.notified()).await.expect("all outcomes come");
        }
    }
}

impl CompletionSink for Watching {
    fn complete(&self, _client: &raw::Client, batch: &mut Vec<Completion>) {
        if !self.reading.load(Ordering::SeqCst) {
            self.told_by_the_task.fetch_add(batch.len(), Ordering::SeqCst);
        }
        let text = |content: Content| String::from_utf8_lossy(content.payload()).into_owned();
        let outcomes =
            batch.drain(..).map(|end| end.result.map(text).map_err(|error| error.code().to_owned()));
        self.outcomes.lock().unwrap().extend(outcomes);
        self.told.notify_one();
    }

    fn deliver(&self, _client: &raw::Client, _batch: &mut Vec<Delivery>) {}

    fn notice(&self, _client: &raw::Client, _notice: Notice) {}

    fn watcher(&self) -> Option<&dyn Watcher> {
        Some(self)
    }
}

impl Watcher for Watching {
    fn watch(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let socket = std::net::TcpStream::from(socket.try_clone_to_owned()?);
        // Nobody looks any more at the end of a test.
        let _ = self.sockets.send(TcpStream::from_std(socket)?);
        Ok(())
    }

    fn unwatch(&self, _socket: BorrowedFd<'_>) {
        self.unwatched.fetch_add(1, Ordering::SeqCst);
    }
}

/// Reads whenever there is something, until the stream's end; as long as it is not aborted.
fn read(sink: &Arc<Watching>, client: &raw::Client, socket: TcpStream) -> JoinHandle<()> {
    let (sink, client) = (sink.clone(), client.clone());
    tokio::spawn(async move {
        loop {
            let there = socket.peek(&mut [0]).await.unwrap_or(0);
            sink.reading.store(true, Ordering::SeqCst);
            client.read();
            sink.reading.store(false, Ordering::SeqCst);
            if there == 0 {
                return;
            }
        }
    })
}

fn spec(data: &[u8]) -> RequestSpec {
    RequestSpec { content: Content::from_parts(b"work", b"", b"", data), ..RequestSpec::default() }
}

/// All that comes is handed out by the thread that reads, frames that are larger than a read too. Each connection is
/// watched once, and watched no more when it is lost and when the client closes it.
#[tokio::test]
async fn a_watching_sink_reads_by_itself() {
    const REQUESTS: usize = 200;
    let (server, (sink, mut watched)) = (Server::start().await, Watching::new());
    let client = Client::builder(server.address())
        .reconnect_interval(Duration::from_millis(1))
        .build_raw(sink.clone())
        .await
        .unwrap();
    client.start();
    for connection in 0..2 {
        let (mut peer, socket) = tokio::join!(server.accept(), watched.recv());
        let reading = read(&sink, &client, socket.unwrap());
        let large = "long".repeat(200_000);
        client.batch(|calls| {
            for number in 0..REQUESTS {
                calls.request(spec(b"1"), number as u64).unwrap();
            }
        });
        for number in 0..REQUESTS {
            let request = peer.hear_request().await;
            let data = if number % 50 == 0 { &large } else { "short" };
            peer.reply(request.number, data).await;
        }
        sink.wait_for(REQUESTS * (connection + 1)).await;
        let told = sink.outcomes.lock().unwrap()[REQUESTS * connection..].to_vec();
        let long = told.iter().filter(|outcome| outcome.as_ref() == Ok(&large)).count();
        let short = told.iter().filter(|outcome| **outcome == Ok("short".to_owned())).count();
        assert_eq!((long, short), (4, REQUESTS - 4));
        assert_eq!(sink.told_by_the_task.load(Ordering::SeqCst), 0);
        assert_eq!(sink.unwatched.load(Ordering::SeqCst), connection);
        if connection == 0 {
            drop(peer);
            timeout(DEADLINE, reading).await.unwrap().unwrap();
        } else {
            client.close();
            drop(peer);
            timeout(DEADLINE, client.ended()).await.unwrap();
            reading.abort();
        }
        assert_eq!(sink.unwatched.load(Ordering::SeqCst), connection + 1);
    }
}

/// What came in time is not late because the thread that should read it is busy: the client's task reads before it lets
/// the time of a request end.
#[tokio::test]
async fn what_is_in_time_is_not_late_while_nobody_reads() {
    let (server, (sink, mut watched)) = (Server::start().await, Watching::new());
    let client = Client::builder(server.address()).build_raw(sink.clone()).await.unwrap();
    client.start();
    let (mut peer, socket) = tokio::join!(server.accept(), watched.recv());
    let reading = read(&sink, &client, socket.unwrap());
    client.request(spec(b"first"), 1).unwrap();
    let request = peer.hear_request().await;
    peer.reply(request.number, "read").await;
    sink.wait_for(1).await;
    reading.abort();
    let timeout = Duration::from_secs(1);
    client.request(RequestSpec { timeout, ..spec(b"second") }, 2).unwrap();
    let request = peer.hear_request().await;
    peer.reply(request.number, "in time").await;
    sink.wait_for(2).await;
    assert_eq!(*sink.outcomes.lock().unwrap(), [Ok("read".to_owned()), Ok("in time".to_owned())]);
    assert_eq!(sink.told_by_the_task.load(Ordering::SeqCst), 1);
    client.close();
    tokio::time::timeout(DEADLINE, client.ended()).await.unwrap();
}

/// Pings are answered while the thread that should read is busy: the server does not take its client for lost.
#[tokio::test]
async fn pings_are_answered_while_nobody_reads() {
    let (server, (sink, mut watched)) = (Server::start().await, Watching::new());
    let client = Client::builder(server.address()).build_raw(sink.clone()).await.unwrap();
    client.start();
    let (mut peer, socket) = tokio::join!(server.accept_unwelcomed(), watched.recv());
    let reading = read(&sink, &client, socket.unwrap());
    peer.say(ServerMessage::Welcome(Welcome {
        server_id: "fake".into(),
        boot: 1,
        epoch: 1,
        next_number: 1,
        max_payload: 1 << 20,
        ping_interval_ms: 1000,
        ..Welcome::default()
    }))
    .await;
    client.request(spec(b"first"), 1).unwrap();
    let request = peer.hear_request().await;
    peer.reply(request.number, "read").await;
    sink.wait_for(1).await;
    reading.abort();
    peer.say(ServerMessage::Ping(7)).await;
    assert_eq!(peer.hear_pong().await, 7);
    client.close();
    timeout(DEADLINE, client.ended()).await.unwrap();
}

/// A server that is silent for too long sees the connection's end, also where somebody else, such as a forked child, still
/// has its descriptor.
#[tokio::test]
async fn a_connection_that_is_given_up_ends() {
    let (server, (sink, mut watched)) = (Server::start().await, Watching::new());
    let client = Client::builder(server.address()).build_raw(sink.clone()).await.unwrap();
    client.start();
    let (mut peer, held) = tokio::join!(server.accept_unwelcomed(), watched.recv());
    let held = held.unwrap();
    peer.say(ServerMessage::Welcome(Welcome {
        server_id: "fake".into(),
        boot: 1,
        epoch: 1,
        next_number: 1,
        max_payload: 1 << 20,
        ping_interval_ms: 50,
        ..Welcome::default()
    }))
    .await;
    held.peek(&mut [0]).await.unwrap();
    client.read();
    let all = async { while peer.stream.read(&mut [0; 64]).await.unwrap_or(0) > 0 {} };
    timeout(DEADLINE, all).await.expect("the client ends the connection");
    client.close();
    timeout(DEADLINE, client.ended()).await.unwrap();
    drop(held);
}
