//! What is going on, for people and for what collects figures: HTTP/1.0 on an address of its own.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | what can be asked for |
//! | `GET /stats` | everything, as JSON |
//! | `GET /metrics` | the same as Prometheus wants it |
//! | `POST /instances/HOST:PORT/drain` | no new connections for it; those that it has are cut after `drain-timeout` |
//! | `POST /instances/HOST:PORT/resume` | it gets connections again |
//!
//! Minimal by hand rather than a library: none runs on this ring, and what is needed of HTTP is one line. Strict: what is
//! not understood is refused, one request is answered, then the connection ends. It asks nobody for a password: whoever
//! can reach the address may drain. A browser's page may not: its requests say where they come from (`Origin`), and are
//! refused.

use std::{cell::Cell, io, net::Shutdown, rc::Rc, time::Duration};

use ringpost_io::{
    clock,
    endpoint::Endpoint,
    event::Event,
    listener::{AcceptError, Listener},
    ring,
    stream::Stream,
};
use ringpost_protocol::time::Time;

use crate::{
    core::{Core, CrashWithMe},
    stats,
};

/// How long a request may take to come, and its answer to go.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest request, with its headers.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// Requests at once. More wait to be accepted.
const MAX_AT_ONCE: u32 = 16;
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Answers until the listener is closed.
pub(crate) async fn accept(core: Rc<Core>, listener: Listener) {
    let _crash = CrashWithMe(core.clone());
    let (at_once, one_ended) = (Rc::new(Cell::new(0)), Rc::new(Event::default()));
    loop {
        while at_once.get() >= MAX_AT_ONCE {
            one_ended.wait().await;
        }
        match listener.accept().await {
            Ok(stream) => {
                at_once.set(at_once.get() + 1);
                let (core, at_once, one_ended) = (core.clone(), at_once.clone(), one_ended.clone());
                ring::spawn(async move {
                    let _crash = CrashWithMe(core.clone());
                    if let Err(error) = serve(&core, stream).await {
                        tracing::debug!(%error, "a request for figures came to nothing");
                    }
                    at_once.set(at_once.get() - 1);
                    one_ended.set();
                });
            }
            Err(AcceptError::Closed) => return,
            Err(error) => {
                tracing::warn!(%error, "a request for figures has to wait");
                clock::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

async fn serve(core: &Rc<Core>, stream: Stream) -> io::Result<()> {
    let endpoint = Endpoint::new(stream)?;
    let until = core.now() + PATIENCE;
    let head = read_head(core, &endpoint, until).await?;
    let answer = match Request::parse(&head) {
        Ok(request) => answer(core, &request),
        Err(refused) => refused,
    };
    let mut rest = answer.encode();
    while !rest.is_empty() {
        match endpoint.try_write(&rest) {
            Ok(written) => drop(rest.drain(..written)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                endpoint.writable_within(until.since(core.now())).await?;
            }
            Err(error) => return Err(error),
        }
    }
    endpoint.shutdown(Shutdown::Write)?;
    // Until the peer has ended too: a close over what it still says would be a reset, and overtake the answer.
    let mut ignored = [0; 1024];
    loop {
        endpoint.readable_within(until.since(core.now())).await?;
        match endpoint.try_read(&mut ignored) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
    }
}

/// The request up to the empty line; or as much as came, if it is too long.
async fn read_head(core: &Core, endpoint: &Endpoint, until: Time) -> io::Result<Vec<u8>> {
    let (mut head, mut piece) = (Vec::new(), [0; 1024]);
    loop {
        endpoint.readable_within(until.since(core.now())).await?;
        match endpoint.try_read(&mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => head.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if head.windows(4).any(|four| four == b"\r\n\r\n") || head.len() > MAX_HEAD_BYTES {
            return Ok(head);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Request<'a> {
    post: bool,
    path: &'a str,
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: &'static str,
    kind: &'static str,
    body: String,
}

impl Answer {
    fn text(status: &'static str, body: impl Into<String>) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", body: body.into() + "\n" }
    }

    fn encode(&self) -> Vec<u8> {
        let Self { status, kind, body } = self;
        let length = body.len();
        let head = format!("HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n");
        (head + "Cache-Control: no-store\r\nConnection: close\r\n\r\n" + body).into_bytes()
    }
}

impl<'a> Request<'a> {
    fn parse(head: &'a [u8]) -> Result<Self, Answer> {
        let bad = |why: &str| Answer::text("400 Bad Request", why);
        if head.len() > MAX_HEAD_BYTES {
            return Err(Answer::text("431 Request Header Fields Too Large", "8 KiB are allowed"));
        }
        let head = std::str::from_utf8(head).map_err(|_| bad("the request is not UTF-8"))?;
        let (head, _) = head.split_once("\r\n\r\n").ok_or_else(|| bad("the request has no end"))?;
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let version = words.next().unwrap_or_default();
        if !matches!(version, "HTTP/1.0" | "HTTP/1.1") || words.next().is_some() || !path.starts_with('/') {
            return Err(bad("the first line must be METHOD /PATH HTTP/1.0"));
        }
        for line in lines {
            let (name, _) = line.split_once(':').ok_or_else(|| bad("a header must be NAME: VALUE"))?;
            if name.eq_ignore_ascii_case("origin") {
                return Err(Answer::text("403 Forbidden", "not for pages in a browser"));
            }
        }
        match method {
            "GET" => Ok(Self { post: false, path }),
            "POST" => Ok(Self { post: true, path }),
            _ => Err(Answer::text("405 Method Not Allowed", "GET and POST are")),
        }
    }
}

fn answer(core: &Rc<Core>, request: &Request<'_>) -> Answer {
    const INDEX: &str = "GET /stats     everything as JSON\nGET /metrics   the same for Prometheus\n\
                         POST /instances/HOST:PORT/drain    no new connections for it\n\
                         POST /instances/HOST:PORT/resume   it gets connections again";
    match (request.post, request.path) {
        (false, "/") => Answer::text("200 OK", INDEX),
        (false, "/stats") => Answer {
            status: "200 OK",
            kind: "application/json",
            body: format!("{}\n", stats::Stats::take(core).json()),
        },
        (false, "/metrics") => Answer {
            status: "200 OK",
            kind: "text/plain; version=0.0.4; charset=utf-8",
            body: stats::Stats::take(core).prometheus(),
        },
        (true, path) => {
            let order = path.strip_prefix("/instances/").and_then(|rest| rest.rsplit_once('/'));
            let (address, drain) = match order {
                Some((address, "drain")) => (address, true),
                Some((address, "resume")) => (address, false),
                _ => return Answer::text("404 Not Found", "there is no such order; GET / lists them"),
            };
            if !core.drain(address, drain) {
                return Answer::text("404 Not Found", format!("there is no instance {address}"));
            }
            Answer::text("200 OK", if drain { "draining" } else { "resumed" })
        }
        (false, _) => Answer::text("404 Not Found", "there is no such thing; GET / lists what there is"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(head: &[u8]) -> &'static str {
        Request::parse(head).unwrap_err().status
    }

    /// What is a request is read, with what comes behind it left alone.
    #[test]
    fn reads_requests() {
        let parse = |head: &'static str| Request::parse(head.as_bytes()).unwrap();
        assert_eq!(parse("GET /stats HTTP/1.0\r\n\r\n"), Request { post: false, path: "/stats" });
        let head = "POST /instances/[::1]:1/drain HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";
        assert_eq!(parse(head), Request { post: true, path: "/instances/[::1]:1/drain" });
    }

    /// What is none is refused, and says how.
    #[test]
    fn refuses_the_rest() {
        for (head, status) in [
            (&b"GET /\r\n\r\n"[..], "400"),
            (b"GET  / HTTP/1.0\r\n\r\n", "400"),
            (b"GET x HTTP/1.0\r\n\r\n", "400"),
            (b"GET / HTTP/2\r\n\r\n", "400"),
            (b"GET / HTTP/1.0 x\r\n\r\n", "400"),
            (b"GET / HTTP/1.0\r\nno header\r\n\r\n", "400"),
            (b"\xff / HTTP/1.0\r\n\r\n", "400"),
            (b"\r\n\r\n", "400"),
            (b"PUT / HTTP/1.0\r\n\r\n", "405"),
            (b"POST /x HTTP/1.0\r\nOrigin: http://evil\r\n\r\n", "403"),
            (&[b'x'; MAX_HEAD_BYTES + 1], "431"),
        ] {
            assert!(refusal(head).starts_with(status), "{}", String::from_utf8_lossy(head));
        }
    }
}
