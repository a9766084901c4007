//! The layer below the futures: what reaches a sink, and in which order.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;

use std::sync::{Arc, Mutex};

use fake::{DEADLINE, Peer, Server};
use ringpost::{
    Client, ErrorKind,
    raw::{self, Completion, CompletionSink, Content, Delivery, Notice, RequestFlags, RequestSpec},
};
use ringpost_protocol::{
    Outgoing,
    frame::encode_server,
    message::{Progress, Reply, ServerMessage},
};
use tokio::{io::AsyncWriteExt, sync::Notify, time::timeout};

/// Writes down what it is told.
#[derive(Default)]
struct Diary {
    entries: Mutex<Vec<String>>,
    ended: Notify,
}

impl CompletionSink for Diary {
    fn complete(&self, _client: &raw::Client, batch: &mut Vec<Completion>) {
        for end in batch.drain(..) {
            let result = match end.result {
                Ok(content) => String::from_utf8_lossy(content.payload()).into_owned(),
                Err(error) => error.code().to_owned(),
            };
            self.entries.lock().unwrap().push(format!("{} ended: {result}", end.token));
            self.ended.notify_one();
        }
    }

    fn deliver(&self, _client: &raw::Client, _batch: &mut Vec<Delivery>) {}

    fn notice(&self, _client: &raw::Client, notice: Notice) {
        if let Notice::Progress { token, content } = notice {
            let said = String::from_utf8_lossy(content.payload()).into_owned();
            self.entries.lock().unwrap().push(format!("{token} says: {said}"));
        }
    }
}

async fn connected(server: &Server, diary: &Arc<Diary>) -> (Peer, raw::Client) {
    let client = Client::builder(server.address()).build_raw(diary.clone()).await.unwrap();
    client.start();
    (server.accept().await, client)
}

fn spec(action: &str) -> RequestSpec {
    let content = Content::from_parts(action.as_bytes(), b"", b"", b"1");
    RequestSpec { content, flags: RequestFlags::PROGRESS, ..RequestSpec::default() }
}

/// What a handler said before its reply reaches the sink before the reply, also when one read brings both.
#[tokio::test]
async fn progress_comes_before_the_outcome() {
    let (server, diary) = (Server::start().await, Arc::new(Diary::default()));
    let (mut peer, client) = connected(&server, &diary).await;
    client.request(spec("work"), 7).unwrap();
    let number = peer.hear_request().await.number;
    let mut both = Outgoing::new();
    let content = Content::from_payload("half");
    encode_server(&ServerMessage::Progress(Progress { number, content, ..Progress::default() }), &mut both);
    let content = Content::from_payload("all");
    encode_server(&ServerMessage::Reply(Reply { number, content, ..Reply::default() }), &mut both);
    peer.stream.write_all(&both.drain_to_vec()).await.unwrap();
    timeout(DEADLINE, diary.ended.notified()).await.unwrap();
    assert_eq!(*diary.entries.lock().unwrap(), ["7 says: half", "7 ended: all"]);
    client.close();
    timeout(DEADLINE, client.ended()).await.unwrap();
}

/// The calls of a batch are made in their order; one that is refused says so there, and the others are made all the same.
#[tokio::test]
async fn a_batch_is_several_calls() {
    let (server, diary) = (Server::start().await, Arc::new(Diary::default()));
    let (mut peer, client) = connected(&server, &diary).await;
    let refused = client.batch(|calls| {
        assert!(calls.has_room());
        calls.request(spec("first"), 1).unwrap();
        let refused = calls.request(spec("init\n"), 2).unwrap_err();
        calls.request(spec("third"), 3).unwrap();
        refused
    });
    assert_eq!(refused.kind(), ErrorKind::Malformed);
    for expected in ["first", "third"] {
        let request = peer.hear_request().await;
        assert_eq!(request.content.name(), expected.as_bytes());
        peer.reply(request.number, expected).await;
        timeout(DEADLINE, diary.ended.notified()).await.unwrap();
    }
    assert_eq!(*diary.entries.lock().unwrap(), ["1 ended: first", "3 ended: third"]);
    client.close();
    timeout(DEADLINE, client.ended()).await.unwrap();
}

/// Batches of a thread of its own arrive whole and in order, small and larger than what the socket takes at once, whoever
/// writes them: that thread, or the client's task with what was left.
#[tokio::test]
async fn batches_from_another_thread_arrive_whole() {
    const REQUESTS: u64 = 200;
    let (server, diary) = (Server::start().await, Arc::new(Diary::default()));
    let (mut peer, client) = connected(&server, &diary).await;
    let data = |number: u64| match number % 7 {
        // More than the buffers of a socket hold together: some of it is left.
        0 => vec![number as u8; 900_000],
        1 => vec![number as u8; 20_000],
        _ => vec![number as u8; 100],
    };
    let asking = client.clone();
    let thread = std::thread::spawn(move || {
        for first in (0..REQUESTS).step_by(4) {
            asking.batch(|calls| {
                for number in first..first + 4 {
                    let content = Content::from_parts(b"work", b"", b"", &data(number));
                    calls.request(RequestSpec { content, ..RequestSpec::default() }, number).unwrap();
                }
            });
        }
    });
    for number in 0..REQUESTS {
        let request = peer.hear_request().await;
        assert!(request.content.payload() == data(number), "request {number}");
        peer.reply(request.number, "1").await;
    }
    thread.join().unwrap();
    while diary.entries.lock().unwrap().len() < REQUESTS as usize {
        timeout(DEADLINE, diary.ended.notified()).await.unwrap();
    }
    client.close();
    timeout(DEADLINE, client.ended()).await.unwrap();
}
