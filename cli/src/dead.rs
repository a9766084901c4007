//! `ringpost dead`: durable sends that were given up.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{
    client::ServerArgs,
    control::{Column, Format, ask, print},
    exit::{Failure, Outcome},
    output,
};

const EXAMPLES: &str = "\
Examples:
  ringpost dead list
  ringpost dead show 0f3a5c2b9d1e4f60-1a       with all of its data, if that is in memory
  ringpost dead resend 0f3a5c2b9d1e4f60-1a     all its attempts again; without an id, all dead letters
  ringpost dead drop 0f3a5c2b9d1e4f60-1a       forgets it; `drop --all` forgets all

A durable send becomes a dead letter when its attempts are used up, when a handler rejects it, or \
when its ttl ends before it was handled. It is kept for the server's --dead-ttl.";

/// Look into durable sends that were given up, and send them again
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DeadArgs {
    #[command(subcommand)]
    what: Dead,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum Dead {
    /// The oldest of them, with why they died
    List {
        /// How many, at most 1000
        #[arg(long, value_name = "N", default_value_t = 100)]
        count: u32,
    },
    /// One of them, as JSON
    Show {
        /// Its id, as `dead list` shows it
        request_id: String,
    },
    /// Give one another life, or all
    Resend {
        /// Its id; all of them without it
        request_id: Option<String>,
    },
    /// Forget one, or all
    Drop {
        /// Its id
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        request_id: Option<String>,
        /// All of them
        #[arg(long)]
        all: bool,
    },
}

const LETTERS: &[Column] = &[
    ("REQUEST", "requestId"),
    ("ACTION", "action"),
    ("CODE", "code"),
    ("ATTEMPTS", "attempts"),
    ("BYTES", "bytes"),
    ("ERROR", "error"),
    ("DATA", "data"),
];

/// Runs the command.
pub(crate) fn run(args: &DeadArgs, server: &ServerArgs) -> Outcome {
    let dead = |data: Value| ask(server, "the dead letters", "$sys.dead", &data);
    match &args.what {
        Dead::List { count } => print(&dead(json!({"op": "list", "count": count}))?, LETTERS, &args.format),
        Dead::Show { request_id } => {
            let letter = dead(json!({"op": "show", "requestId": request_id}))?;
            output::line(letter.to_string().as_bytes())
        }
        Dead::Resend { request_id } => {
            told(&dead(about("resend", request_id.as_deref()))?, "sent", &args.format)
        }
        Dead::Drop { request_id, .. } => {
            told(&dead(about("drop", request_id.as_deref()))?, "dropped", &args.format)
        }
    }
}

fn about(op: &str, request_id: Option<&str>) -> Value {
    match request_id {
        Some(id) => json!({"op": op, "requestId": id}),
        None => json!({"op": op}),
    }
}

fn told(answer: &Value, key: &str, format: &Format) -> Outcome {
    if format.json {
        return output::line(answer.to_string().as_bytes());
    }
    match answer[key].as_u64() {
        Some(count) => output::line(format!("{count} {key}").as_bytes()),
        None => Err(Failure::new(1, format!("the server's answer is not understood: {answer}"))),
    }
}
