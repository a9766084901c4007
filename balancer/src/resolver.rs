//! Looking names up, on a thread of its own: getaddrinfo(3) may take as long as it likes, and the ring's thread must not.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::mpsc,
};

use tokio::sync::oneshot;

/// A question, and where its answer goes.
struct Question {
    host: String,
    port: u16,
    answer: oneshot::Sender<io::Result<Vec<SocketAddr>>>,
}

/// Asks the thread that looks names up. The thread ends with this.
#[derive(Debug)]
pub(crate) struct Resolver {
    questions: mpsc::Sender<Question>,
}

impl Resolver {
    pub(crate) fn start() -> io::Result<Self> {
        let (questions, asked) = mpsc::channel::<Question>();
        std::thread::Builder::new().name("ringpost-names".into()).spawn(move || {
            for Question { host, port, answer } in asked {
                // Nobody who waits for it any more: then it is left alone.
                answer.send(look_up(&host, port)).ok();
            }
        })?;
        Ok(Self { questions })
    }

    /// All addresses of a host, in the system's order. May be dropped.
    ///
    /// # Errors
    /// What getaddrinfo(3) says. An address needs no looking up.
    pub(crate) async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![(address, port).into()]);
        }
        let (answer, answered) = oneshot::channel();
        let question = Question { host: host.to_owned(), port, answer };
        let gone = || io::Error::other("the thread that looks names up has ended; this is a bug");
        self.questions.send(question).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<_> = (host, port).to_socket_addrs()?.collect();
    if found.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use ringpost_io::ring::{self, RingConfig};

    use super::*;

    /// Addresses are themselves, names are looked up, and names that do not exist are errors.
    #[test]
    fn resolves() {
        ring::run(&RingConfig { entries: 8, ..RingConfig::default() }, async {
            let resolver = Resolver::start().unwrap();
            let found = resolver.resolve("::1", 7).await.unwrap();
            assert_eq!(found, ["[::1]:7".parse().unwrap()]);
            let found = resolver.resolve("localhost", 7).await.unwrap();
            assert!(found.iter().all(|address| address.ip().is_loopback() && address.port() == 7));
            assert!(resolver.resolve("no-such-name.invalid", 7).await.is_err());
        })
        .unwrap();
    }
}
