//! When a server that was started has its log.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

/// How often it is asked: what is measured is no more exact.
const PAUSE: Duration = Duration::from_millis(2);
/// No log takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until the server says that it serves durable requests too.
///
/// # Errors
/// It does not answer, or not within two minutes.
pub(crate) fn until_serving(address: SocketAddr) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    loop {
        stream.write_all(b"{\"id\":\"$sys.stats\",\"data\":null,\"clientId\":\"1\"}\n")?;
        let mut line = String::new();
        ensure!(lines.read_line(&mut line)? > 0, "the server closed the connection");
        let answer: serde_json::Value = serde_json::from_str(&line)?;
        let state = answer["message"]["data"]["state"].as_str().context("its stats have no state")?;
        if state == "serving" {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "it is still {state}");
        thread::sleep(PAUSE);
    }
}
