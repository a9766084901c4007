//! A broadcast whose legs are printed as they end, which takes a client that does not gather them first.

use std::{sync::Arc, time::Duration};

use ringpost::{
    Error, ErrorKind, Event,
    raw::{self, Completion, Notice, RequestSpec},
};
use ringpost_client::ClientConfig;
use ringpost_protocol::message::RequestFlags;
use serde_json::json;
use tokio::sync::mpsc;

use super::Message;
use crate::{
    client::{ServerArgs, goodbye},
    exit::{Failure, Outcome},
    json, output,
    signals::Stop,
};

/// What the client's own task passes on.
enum News {
    Ended(Completion),
    Connected,
    Closed(Error),
}

struct Sink {
    news: mpsc::UnboundedSender<News>,
}

impl Sink {
    /// Once the command has what it wants, nobody listens.
    fn tell(&self, news: News) {
        let _ = self.news.send(news);
    }
}

impl raw::CompletionSink for Sink {
    fn complete(&self, _client: &raw::Client, batch: &mut Vec<Completion>) {
        for completion in batch.drain(..) {
            self.tell(News::Ended(completion));
        }
    }

    /// Without a registration there are none.
    fn deliver(&self, _client: &raw::Client, _batch: &mut Vec<raw::Delivery>) {}

    fn notice(&self, _client: &raw::Client, notice: Notice) {
        match notice {
            Notice::Event(Event::Connected { .. }) => self.tell(News::Connected),
            Notice::Event(Event::Closed(reason)) => self.tell(News::Closed(reason)),
            _ => {}
        }
    }
}

/// Sends a broadcast and prints a line for each leg. It ends well only if all of them replied.
pub(super) async fn run(message: &Message<'_>, timeout: Duration, server: &ServerArgs) -> Outcome {
    let (sender, mut news) = mpsc::unbounded_channel();
    let config = ClientConfig { retry_initial: false, reconnect: false, ..ClientConfig::default() };
    let failed = |error| server.failure(&what(message), &error);
    let key = server.secure_key().map_err(failed)?;
    let client = raw::Client::with_key(config, server.address(), key, Arc::new(Sink { news: sender }))
        .map_err(failed)?;
    let mut stop = Stop::listen()?;
    let outcome = tokio::select! {
        outcome = gather(&client, &mut news, message, timeout, server) => outcome,
        // The end of the session cancels what is open.
        code = stop.next() => Err(Failure::quiet(code)),
    };
    client.close();
    goodbye(client.ended()).await;
    outcome
}

/// From the connection to the last leg.
async fn gather(
    client: &raw::Client,
    news: &mut mpsc::UnboundedReceiver<News>,
    message: &Message<'_>,
    timeout: Duration,
    server: &ServerArgs,
) -> Outcome {
    let what = what(message);
    let failed = |error: &Error| server.failure(&what, error);
    client.start();
    connected(news, server).await.map_err(|error| failed(&error))?;

    let spec = RequestSpec {
        flags: RequestFlags::BROADCAST,
        ttl: message.ttl.unwrap_or_default(),
        timeout,
        content: message.content()?,
        ..RequestSpec::default()
    };
    client.request(spec, 0).map_err(|error| failed(&error))?;
    let mut tally = Tally::default();
    while let Some(news) = news.recv().await {
        // The end of the connection ends every leg first: its own news says nothing new.
        let News::Ended(leg) = news else { continue };
        if let (None, Err(error), true) = (leg.leg, &leg.result, tally.legs == 0) {
            // No leg ended at the broker: it is the broadcast itself that failed.
            return Err(failed(error));
        }
        let last = leg.last;
        output::line(&tally.count(leg))?;
        if last {
            break;
        }
    }
    tally.outcome(&what)
}

fn what(message: &Message<'_>) -> String {
    format!("the broadcast to `{}`", message.action)
}

async fn connected(news: &mut mpsc::UnboundedReceiver<News>, server: &ServerArgs) -> Result<(), Error> {
    let welcome = async {
        loop {
            match news.recv().await {
                Some(News::Connected) => return Ok(()),
                Some(News::Closed(reason)) => return Err(reason),
                Some(News::Ended(_)) => {}
                None => return Err(Error::new(ErrorKind::Closed, "the client was closed")),
            }
        }
    };
    tokio::time::timeout(server.connect_timeout, welcome).await.unwrap_or_else(|_| Err(server.too_late()))
}

/// How the legs have ended so far.
#[derive(Default)]
struct Tally {
    legs: usize,
    failed: usize,
    /// The exit code of the first that failed.
    code: u8,
}

impl Tally {
    /// Counts a leg, and gives its line.
    fn count(&mut self, leg: Completion) -> Vec<u8> {
        self.legs += 1;
        let index = leg.leg.map(|leg| leg.index);
        let result = leg.result.and_then(|content| {
            let data = content.payload_bytes();
            if data.is_empty() {
                return Ok("null".into());
            }
            json::check(&data).map(|()| data).map_err(|error| {
                Error::new(ErrorKind::Malformed, format!("the reply's data is not JSON: {error}"))
            })
        });
        match result {
            Ok(data) => {
                let mut line = format!("{{\"leg\":{},\"data\":", json!(index)).into_bytes();
                line.extend_from_slice(output::one_line(&data).trim_ascii());
                line.push(b'}');
                line
            }
            Err(error) => {
                if self.failed == 0 {
                    self.code = error.exit_code();
                }
                self.failed += 1;
                let mut line = format!("{{\"leg\":{},\"error\":{}", json!(index), json!(error.message()));
                line.push_str(&format!(",\"code\":{}", json!(error.code())));
                if let Some(own) = error.handler_code() {
                    line.push_str(&format!(",\"handlerCode\":{}", json!(own)));
                }
                line.push('}');
                line.into_bytes()
            }
        }
    }

    fn outcome(&self, what: &str) -> Outcome {
        if self.failed == 0 {
            return Ok(());
        }
        let message = format!("{what}: {} of {} handlers did not reply", self.failed, self.legs);
        Err(Failure::new(self.code, message))
    }
}

#[cfg(test)]
mod tests {
    use ringpost::raw::Completion;
    use ringpost_protocol::{Content, message::Leg};

    use super::*;

    fn leg(index: u32, result: Result<&str, Error>) -> Completion {
        Completion {
            token: 0,
            result: result.map(|text| Content::from_payload(text.to_owned())),
            info: Default::default(),
            leg: Some(Leg { index, expected: 2 }),
            last: false,
        }
    }

    /// A line for each leg, and a failed one decides how the command ends.
    #[test]
    fn lines_and_outcome() {
        let mut tally = Tally::default();
        assert_eq!(tally.count(leg(0, Ok("{\n\"a\":1}\n"))), b"{\"leg\":0,\"data\":{ \"a\":1}}");
        assert_eq!(tally.outcome("x"), Ok(()));
        let error = Error::new(ErrorKind::Remote, "say \"no\"").with_handler_code("7");
        let line = tally.count(leg(1, Err(error)));
        assert_eq!(
            String::from_utf8_lossy(&line),
            r#"{"leg":1,"error":"say \"no\"","code":"remote","handlerCode":"7"}"#
        );
        assert_eq!(tally.outcome("x"), Err(Failure::new(1, "x: 1 of 2 handlers did not reply")));
    }

    /// A reply that is no JSON must not break the line.
    #[test]
    fn other_bytes_are_an_error() {
        let mut tally = Tally::default();
        let line = tally.count(leg(0, Ok("hello")));
        assert!(serde_json::from_slice::<serde_json::Value>(&line).unwrap()["code"] == "malformed");
        assert!(tally.outcome("x").is_err());
    }
}
