//! Who plays in the demo: clients in this process, a handler in a process of its own, and one who speaks plain JSON.

use std::{
    net::SocketAddr,
    process::{Child, Stdio},
    time::Duration,
};

use ringpost::{Client, HandlerError, Reply, Request};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::{
    bench::own_command,
    exit::{Failure, Outcome},
};

/// The demo did not go as it should: EX_SOFTWARE of sysexits(3).
const WENT_WRONG: u8 = 70;

/// How long anything may take that takes a moment.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What the demo stumbled over.
pub(super) fn went_wrong(what: impl std::fmt::Display) -> Failure {
    Failure::new(WENT_WRONG, format!("the demo did not go as it should: {what}"))
}

/// The data of the first example.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Sum {
    pub(super) value: i64,
}

/// A client of its own.
pub(super) async fn client(server: SocketAddr) -> Outcome<Client> {
    Client::connect(server.to_string()).await.map_err(went_wrong)
}

/// The handler of the first example: it adds one.
pub(super) async fn adding_handler(server: SocketAddr) -> Outcome<Client> {
    Client::builder(server.to_string())
        .plain()
        .handler("client_1", |request: Request| async move {
            let sum: Sum = request.json()?;
            Ok(Reply::json(&Sum { value: sum.value + 1 })?)
        })
        .connect()
        .await
        .map_err(went_wrong)
}

/// A handler that says its name, or that it will not.
pub(super) async fn named_handler(server: SocketAddr, action: &str, name: &'static str) -> Outcome<Client> {
    Client::builder(server.to_string())
        .plain()
        .handler(action, move |request: Request| async move {
            if request.is_broadcast() && name == "cleo" {
                return Err(HandlerError::new("not today").with_code("tired"));
            }
            Ok(Reply::json(name)?)
        })
        .connect()
        .await
        .map_err(went_wrong)
}

/// `ringpost handle ACTION --echo --delay 30s` as a process. It is killed when this is dropped, at the latest.
#[derive(Debug)]
pub(super) struct SlowHandler {
    child: Child,
}

impl SlowHandler {
    pub(super) fn start(server: SocketAddr, action: &str) -> Outcome<Self> {
        let child = own_command()?
            .args(["handle", action, "--echo", "--delay", "30s", "--server", &server.to_string(), "--parent"])
            .arg(std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| Failure::system("a handler cannot be started", &error))?;
        Ok(Self { child })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process as hard as can be: it has no chance to say goodbye.
    pub(super) fn kill(&self) -> Outcome {
        let pid = Pid::from_raw(self.child.id().cast_signed())
            .ok_or_else(|| went_wrong("a process without number"))?;
        kill_process(pid, Signal::KILL)
            .map_err(|error| Failure::system("a handler cannot be killed", &error.into()))
    }
}

impl Drop for SlowHandler {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and was waited for: then there is nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says one line to the server as `nc` would, and gives the line that it answers.
pub(super) async fn say_as_nc(server: SocketAddr, line: &str) -> Outcome<String> {
    let talk = async {
        let mut stream = BufReader::new(TcpStream::connect(server).await?);
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_line(&mut answer).await?;
        Ok::<_, std::io::Error>(answer.trim_end().to_owned())
    };
    match tokio::time::timeout(PATIENCE, talk).await {
        Ok(answer) => answer.map_err(went_wrong),
        Err(_) => Err(went_wrong("the server did not answer a line of JSON")),
    }
}

/// Waits until an action has a handler.
pub(super) async fn handled(client: &Client, action: &str) -> Outcome {
    let mut changes = client.receivers_changes();
    let found = async {
        while let Some(list) = changes.next().await {
            if list.iter().any(|name| name == action) {
                return Ok(());
            }
        }
        Err(went_wrong("the connection was closed"))
    };
    tokio::time::timeout(PATIENCE, found)
        .await
        .unwrap_or_else(|_| Err(went_wrong(format_args!("no handler of `{action}` came"))))
}

/// Waits until one of the server's figures is so high: `openRequests`, or the `openDeliveries` that handlers hold.
pub(super) async fn stat(client: &Client, name: &str, at_least: u64) -> Outcome {
    let holding = async {
        loop {
            let reply = client.request_bytes("$sys.stats", "null").await.map_err(went_wrong)?;
            let stats: serde_json::Value = reply.data().map_err(went_wrong)?;
            if stats["now"][name].as_u64() >= Some(at_least) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, holding)
        .await
        .unwrap_or_else(|_| Err(went_wrong(format_args!("{name} did not become {at_least}"))))
}
