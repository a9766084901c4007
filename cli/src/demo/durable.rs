//! The step in which the server itself is killed, over durable requests that wait.

use std::time::{Duration, Instant};

use ringpost::{Client, Error, Reply, Request};
use tokio::task::JoinSet;

use super::{
    narrator::Narrator,
    troupe::{PATIENCE, stat, went_wrong},
};
use crate::{
    bench::{self, Cores},
    exit::{Failure, Outcome},
};

const ACTION: &str = "orders";
/// How many requests are open when the server dies.
const REQUESTS: u64 = 1000;

/// Durable requests that nobody handles yet, `kill -9`, a new server on the same folder, and their replies.
pub(super) async fn killed_server(tell: &mut Narrator, cores: Cores) -> Outcome {
    tell.step(&format!("The server's process is killed over {REQUESTS} durable requests"))?;
    let folder = tempfile::Builder::new()
        .prefix("ringpost-demo-")
        .tempdir()
        .map_err(|error| Failure::system("a folder for the server's log cannot be made", &error))?;
    let storage = ["--data-dir".into(), folder.path().into()];
    let server = bench::spawn_server_with(cores.server, "127.0.0.1:0", &storage)?;
    let address = server.address();
    tell.command(&format!("ringpost serve --listen {address} --data-dir {}", folder.path().display()))?;

    let builder = Client::builder(address.to_string()).plain().reconnect_interval(Duration::from_millis(50));
    let client = builder.connect().await.map_err(went_wrong)?;
    let mut asked = JoinSet::new();
    for number in 0..REQUESTS {
        let client = client.clone();
        asked.spawn(async move {
            let reply = client.request(ACTION, &number).durable().timeout(PATIENCE * 2).await;
            (number, reply)
        });
    }
    stat(&client, "openRequests", REQUESTS).await?;
    // A session's messages are accepted in their order: when this one is, so are all before it.
    client.send(ACTION, &REQUESTS).durable().await.map_err(went_wrong)?;
    tell.say("client.request(\"orders\", &number).durable().await   // Rust, so many at once")?;
    tell.say(
        "Nobody handles `orders` yet: all of them wait. Each is on the disk, else it were not accepted.",
    )?;

    tell.command(&format!("kill -9 {}", server.pid()))?;
    // Dropping it is just that.
    drop(server);
    let started = Instant::now();
    let server = bench::spawn_server_with(cores.server, &address.to_string(), &storage)?;
    tell.say(&format!(
        "A new server on the same folder, process {}, has read its log and listens after {} ms.",
        server.pid(),
        started.elapsed().as_millis()
    ))?;
    let handler = Client::builder(address.to_string())
        .plain()
        .handler(ACTION, |request: Request| async move {
            let number: u64 = request.json()?;
            Ok(Reply::json(&(number * 2))?)
        })
        .connect()
        .await
        .map_err(went_wrong)?;
    tell.say("Now there is a handler. The client has come back by itself; its calls still wait:")?;
    let mut attempts = 0;
    while let Some(outcome) = asked.join_next().await {
        let (number, reply) = outcome.map_err(went_wrong)?;
        attempts += check(number, reply)?;
    }
    tell.say(&format!(
        "{REQUESTS} of {REQUESTS} calls have got their own replies, after {attempts} attempts."
    ))?;
    handler.close().await;
    client.close().await;
    Ok(())
}

/// The reply must be this request's; says how many attempts it took.
fn check(number: u64, reply: Result<Reply, Error>) -> Outcome<u64> {
    let reply = reply.map_err(went_wrong)?;
    let doubled: u64 = reply.data().map_err(went_wrong)?;
    if doubled != number * 2 {
        return Err(went_wrong(format_args!("{doubled} is not twice {number}")));
    }
    Ok(reply.info().attempt.into())
}
