//! `ringpost actions`, `connections` and `queue`: what the server tells of itself, as tables or as its own JSON.

use std::{fmt::Write, future::Future, time::Duration};

use clap::{Args, Subcommand};
use ringpost::{Error, Reply};
use serde_json::{Value, json};

use crate::{
    args,
    client::{self, ServerArgs},
    exit::{Failure, Outcome},
    output,
};

/// The exit code of `queue cancel` when there was nothing to cancel.
const NOTHING_ENDED: u8 = 1;

/// List the actions with their handlers and queues
#[derive(Debug, Args)]
pub(crate) struct ActionsArgs {
    #[command(flatten)]
    format: Format,
}

/// List the connections with what they handle and have open
#[derive(Debug, Args)]
pub(crate) struct ConnectionsArgs {
    #[command(flatten)]
    format: Format,
}

const QUEUE_EXAMPLES: &str = "\
Examples:
  ringpost queue list
  ringpost queue peek mail --count 3
  ringpost queue cancel 0f3a5c2b9d1e4f60-1a    a request by its id, as `queue peek` shows it
  ringpost queue purge mail                    all that wait; what handlers hold goes on";

/// Look into what waits for handlers, and end it
#[derive(Debug, Args)]
#[command(after_help = QUEUE_EXAMPLES)]
pub(crate) struct QueueArgs {
    #[command(subcommand)]
    what: Queue,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Format {
    /// Print the server's own JSON, on one line
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
enum Queue {
    /// The actions for which something waits
    List,
    /// The first requests that wait for an action, with the beginning of their data
    Peek {
        /// The action
        #[arg(value_parser = args::action)]
        action: String,
        /// How many, at most 100
        #[arg(long, value_name = "N", default_value_t = 10)]
        count: u32,
    },
    /// End all requests that wait for an action: their requesters are told `cancelled`
    Purge {
        /// The action
        #[arg(value_parser = args::action)]
        action: String,
    },
    /// End one request, waiting or at work: its requester is told `cancelled`
    Cancel {
        /// Its id, as `queue peek` shows it
        request_id: String,
    },
}

/// A column: its title, and the key of its values.
pub(crate) type Column = (&'static str, &'static str);

const ACTIONS: &[Column] = &[
    ("ACTION", "action"),
    ("HANDLERS", "handlers"),
    ("HELD", "held"),
    ("CREDIT", "credit"),
    ("STUCK", "stuck"),
    ("QUEUED", "queued"),
    ("BYTES", "queuedBytes"),
];
const CONNECTIONS: &[Column] = &[
    ("NUMBER", "connection"),
    ("ADDRESS", "address"),
    ("ROLE", "role"),
    ("DIALECT", "dialect"),
    ("OPEN", "openRequests"),
    ("HOLDS", "holds"),
    ("SILENT MS", "silentMs"),
    ("HANDLES", "handles"),
    ("SESSION", "session"),
];
const QUEUES: &[Column] =
    &[("ACTION", "action"), ("QUEUED", "queued"), ("BYTES", "queuedBytes"), ("OLDEST MS", "oldestMs")];
const REQUESTS: &[Column] = &[
    ("REQUEST", "requestId"),
    ("AGE MS", "ageMs"),
    ("LEFT MS", "timeLeftMs"),
    ("ATTEMPTS", "attempts"),
    ("BYTES", "bytes"),
    ("DATA", "data"),
];

/// Runs `ringpost actions`.
pub(crate) fn actions(args: &ActionsArgs, server: &ServerArgs) -> Outcome {
    let mut list = ask(server, "the actions", "$sys.actions", &Value::Null)?;
    if !args.format.json {
        list.as_array_mut().into_iter().flatten().for_each(sum_up_handlers);
    }
    print(&list, ACTIONS, &args.format)
}

/// Runs `ringpost connections`.
pub(crate) fn connections(args: &ConnectionsArgs, server: &ServerArgs) -> Outcome {
    let list = ask(server, "the connections", "$sys.connections", &Value::Null)?;
    print(&list, CONNECTIONS, &args.format)
}

/// Runs `ringpost queue`.
pub(crate) fn queue(args: &QueueArgs, server: &ServerArgs) -> Outcome {
    let queues = |data: &Value| ask(server, "the queues", "$sys.queues", data);
    match &args.what {
        Queue::List => print(&queues(&json!({"op": "list"}))?, QUEUES, &args.format),
        Queue::Peek { action, count } => {
            print(&queues(&json!({"op": "peek", "action": action, "count": count}))?, REQUESTS, &args.format)
        }
        Queue::Purge { action } => ended(&queues(&json!({"op": "purge", "action": action}))?, &args.format),
        Queue::Cancel { request_id } => {
            let answer = queues(&json!({"op": "cancel", "requestId": request_id}))?;
            ended(&answer, &args.format)?;
            match answer["ended"].as_u64() {
                Some(0) => Err(Failure::new(
                    NOTHING_ENDED,
                    format!("no request {request_id} is open: it has ended, or never was"),
                )),
                _ => Ok(()),
            }
        }
    }
}

pub(crate) fn ask(server: &ServerArgs, what: &str, action: &str, data: &Value) -> Outcome<Value> {
    answered(server, what, server.ask(action, &data.to_string()))
}

/// The same, of what may take its time.
pub(crate) fn ask_for(
    server: &ServerArgs,
    what: &str,
    (action, data): (&str, &Value),
    timeout: Duration,
) -> Outcome<Value> {
    answered(server, what, server.ask_for(action, &data.to_string(), timeout))
}

fn answered(
    server: &ServerArgs,
    what: &str,
    asked: impl Future<Output = Result<Reply, Error>>,
) -> Outcome<Value> {
    client::block_on(async {
        let reply = asked.await.map_err(|error| server.failure(what, &error))?;
        reply.data().map_err(|error| server.failure(what, &error))
    })
}

/// An action's handlers as numbers that fit into a row.
fn sum_up_handlers(action: &mut Value) {
    let handlers = action["handlers"].as_array().cloned().unwrap_or_default();
    let sum = |key: &str| handlers.iter().filter_map(|handler| handler[key].as_u64()).sum::<u64>();
    let stuck = handlers.iter().filter(|handler| handler["stuck"] == true).count();
    let (held, credit) = (sum("held"), sum("credit"));
    action["handlers"] = handlers.len().into();
    action["held"] = held.into();
    action["credit"] = credit.into();
    action["stuck"] = stuck.into();
}

fn ended(answer: &Value, format: &Format) -> Outcome {
    if format.json {
        return output::line(answer.to_string().as_bytes());
    }
    output::line(format!("{} ended", answer["ended"]).as_bytes())
}

pub(crate) fn print(list: &Value, columns: &[Column], format: &Format) -> Outcome {
    if format.json {
        return output::line(list.to_string().as_bytes());
    }
    let rows = list.as_array().map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        output::note(format_args!("there are none"));
        return Ok(());
    }
    output::line(table(rows, columns).trim_end().as_bytes())
}

/// Titles above values; numbers stand to the right.
fn table(rows: &[Value], columns: &[Column]) -> String {
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|(_, key)| cell(&row[*key])).collect()).collect();
    let width = |index: usize| {
        let values = cells.iter().map(|row| row[index].chars().count());
        values.chain([columns[index].0.len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns.len()).map(width).collect();
    let numeric: Vec<_> =
        columns.iter().map(|(_, key)| rows.iter().all(|row| row[*key].is_number())).collect();
    let titles: Vec<_> = columns.iter().map(|(title, _)| (*title).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&titles).chain(&cells) {
        for ((value, width), numeric) in row.iter().zip(&widths).zip(&numeric) {
            let _ =
                if *numeric { write!(text, "{value:>width$}  ") } else { write!(text, "{value:<width$}  ") };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.escape_debug().collect::<String>().replace("\\\"", "\""),
        Value::Array(values) if values.is_empty() => "-".to_owned(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers to the right, words to the left, what is not there as a dash; control characters cannot play tricks.
    #[test]
    fn tables() {
        let rows = [
            json!({"action": "sum", "queued": 5, "queuedBytes": 1000, "oldestMs": 7}),
            json!({"action": "a\u{1b}[2J", "queued": 50, "queuedBytes": 1, "oldestMs": null}),
        ];
        let expected = "\
ACTION      QUEUED  BYTES  OLDEST MS
sum              5   1000  7
a\\u{1b}[2J      50      1  -
";
        assert_eq!(table(&rows, QUEUES), expected);
    }
}
