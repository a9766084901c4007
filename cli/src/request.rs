//! `ringpost request`: a request, and its reply on standard output.

mod legs;

use std::time::Duration;

use clap::Args;
use ringpost::RequestBuilder;
use ringpost_protocol::{Content, encode_headers};

use crate::{
    args,
    client::{self, ServerArgs},
    exit::{BAD_DATA, Failure, Outcome},
    json, output,
};

const EXAMPLES: &str = "\
Examples:
  ringpost request client_1 '{\"value\":2}'
  echo '{\"value\":2}' | ringpost request client_1 -
  ringpost request client_1 '{}' --broadcast --timeout 1s
  ringpost request '$sys.stats' null

Standard output has the reply's JSON and nothing else. A broadcast prints a line for each handler \
as it answers:
  {\"leg\":0,\"data\":{\"value\":3}}
  {\"leg\":1,\"error\":\"what went wrong\",\"code\":\"remote\"}
and ends with 0 only if all of them replied.

Ctrl-C and SIGTERM cancel the request: its handler is told at once.

Exit codes: 1 the handler answered an error, 3 no handler or too busy, 4 time over, 65 bad input, \
69 no connection, 77 no secure key, a wrong one, or one that may not do that, 130 and 143 interrupted.";

/// Send a request to a handler of an action, and print its reply
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RequestArgs {
    #[command(flatten)]
    pub(crate) message: MessageArgs,

    /// How long to wait for the reply; the handler is told
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = args::some_duration)]
    pub(crate) timeout: Duration,

    /// Ask every handler of the action, and print each one's answer
    #[arg(long)]
    broadcast: bool,

    /// Print the reply's data as it is: without a check that it is JSON, and without a line's end behind it
    #[arg(long, conflicts_with = "broadcast")]
    raw: bool,
}

/// What requests and sends have in common.
#[derive(Debug, Args)]
pub(crate) struct MessageArgs {
    /// The action to request
    #[arg(value_parser = args::action)]
    pub(crate) action: String,

    /// The data, as JSON text; `-` reads it from standard input
    #[arg(value_name = "JSON|-", allow_hyphen_values = true)]
    data: String,

    /// How long the server may keep the request; never less than the timeout
    #[arg(long, value_name = "DURATION", value_parser = args::some_duration)]
    ttl: Option<Duration>,

    /// It must survive: the server logs it before it accepts it, and it waits for a handler if there is none
    #[arg(long)]
    durable: bool,

    /// Of all durable requests to this action under this key only the first runs; the others get its outcome
    #[arg(long, value_name = "KEY", requires = "durable")]
    idempotency_key: Option<String>,

    /// A header for the handler; may be given several times
    #[arg(long = "header", value_name = "KEY=VALUE", value_parser = args::header)]
    headers: Vec<(String, String)>,

    /// Options for the handler: a JSON object
    #[arg(long, value_name = "JSON")]
    options: Option<String>,
}

/// A message whose parts were read and checked.
pub(crate) struct Message<'a> {
    pub(crate) action: &'a str,
    pub(crate) data: Vec<u8>,
    ttl: Option<Duration>,
    pub(crate) durable: bool,
    idempotency_key: Option<&'a str>,
    headers: &'a [(String, String)],
    options: Option<serde_json::Value>,
}

impl MessageArgs {
    /// Reads the data and checks everything, before there is a connection.
    pub(crate) fn read(&self) -> Outcome<Message<'_>> {
        let options = self.options.as_deref().map(json::options).transpose()?;
        let data = json::data(&self.data)?;
        let (ttl, durable, headers) = (self.ttl, self.durable, &self.headers);
        let idempotency_key = self.idempotency_key.as_deref();
        Ok(Message { action: &self.action, data, ttl, durable, idempotency_key, headers, options })
    }
}

impl Message<'_> {
    /// As one buffer, for a client without futures.
    fn content(&self) -> Outcome<Content> {
        let headers = encode_headers(self.headers.iter().map(|(key, value)| (key.as_str(), value.as_str())))
            .map_err(|error| Failure::new(BAD_DATA, error.to_string()))?;
        let options = self.options.as_ref().map(ToString::to_string).unwrap_or_default();
        Ok(Content::from_parts(self.action.as_bytes(), options.as_bytes(), &headers, &self.data))
    }

    /// Adds what users said beside action and data.
    pub(crate) fn complete<K: ringpost::Kind>(&self, mut request: RequestBuilder<K>) -> RequestBuilder<K> {
        if let Some(ttl) = self.ttl {
            request = request.ttl(ttl);
        }
        if self.durable {
            request = request.durable();
        }
        if let Some(key) = self.idempotency_key {
            request = request.idempotency_key(key);
        }
        if let Some(options) = &self.options {
            request = request.options(options);
        }
        for (key, value) in self.headers {
            request = request.header(key, value);
        }
        request
    }
}

/// Runs the command.
pub(crate) fn run(args: &RequestArgs, server: &ServerArgs) -> Outcome {
    let message = args.message.read()?;
    if args.broadcast {
        return client::block_on(legs::run(&message, args.timeout, server));
    }
    client::block_on(one(&message, args, server))
}

async fn one(message: &Message<'_>, args: &RequestArgs, server: &ServerArgs) -> Outcome {
    let what = format!("the request to `{}`", message.action);
    let reply = server
        .with_client(&what, message.durable, async |client| {
            let request = client.request_bytes(message.action, &message.data).timeout(args.timeout);
            message.complete(request).await
        })
        .await?;
    if args.raw {
        return output::raw(reply.as_bytes());
    }
    output::line(reply_text(reply.as_bytes(), &what)?)
}

/// The reply as JSON text. Nothing at all stands for null.
fn reply_text<'a>(data: &'a [u8], what: &str) -> Outcome<&'a [u8]> {
    if data.is_empty() {
        return Ok(b"null");
    }
    json::check(data).map_err(|error| {
        let message =
            format!("{what} was answered with data that is not JSON ({error}): --raw prints it as it is");
        Failure::new(BAD_DATA, message)
    })?;
    Ok(data.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is printed is JSON, always.
    #[test]
    fn replies_are_json() {
        assert_eq!(reply_text(b"", "x").unwrap(), b"null");
        assert_eq!(reply_text(b" {\"a\":1}\n", "x").unwrap(), b"{\"a\":1}");
        assert!(reply_text(b"\xff", "x").is_err());
    }
}
