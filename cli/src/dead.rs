//! `ringpost dead`: durable sends that were given up.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{
    client::ServerArgs,
    control::{Column, Format, ask, ask_for, print},
    exit::{Failure, Outcome},
    output,
};

/// What is asked for, in messages.
const WHAT: &str = "the dead letters";
/// The exit code of `dead resend` when not all of them could be sent.
const DAMAGED: u8 = 1;

const EXAMPLES: &str = "\
Examples:
  ringpost dead list
  ringpost dead show 0f3a5c2b9d1e4f60-1a       with all of its data
  ringpost dead resend 0f3a5c2b9d1e4f60-1a     all its attempts again; without an id, all dead letters
  ringpost dead drop 0f3a5c2b9d1e4f60-1a       forgets it; `drop --all` forgets all

A durable send becomes a dead letter when its attempts are used up, when a handler rejects it, or \
when its ttl ends before it was handled. It is kept for the server's --dead-ttl.

Data that the server keeps in its log only (--queue-memory) is not in the list; `show` reads it from \
there. `resend` of all dead letters reads and sends them in steps, and tells at the end how many it was; \
the server goes on with it if the command is interrupted.";

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
/// How long all dead letters may take to be sent again: they may be many gigabytes.
const RESEND_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Runs the command.
pub(crate) fn run(args: &DeadArgs, server: &ServerArgs) -> Outcome {
    let dead = |data: Value| ask(server, WHAT, "$sys.dead", &data);
    match &args.what {
        Dead::List { count } => {
            let mut list = dead(json!({"op": "list", "count": count}))?;
            if !args.format.json {
                list.as_array_mut().into_iter().flatten().for_each(say_where_data_is);
            }
            print(&list, LETTERS, &args.format)
        }
        Dead::Show { request_id } => {
            let letter = dead(json!({"op": "show", "requestId": request_id}))?;
            output::line(letter.to_string().as_bytes())
        }
        Dead::Resend { request_id } => {
            let asked = about("resend", request_id.as_deref());
            let answer = ask_for(server, WHAT, ("$sys.dead", &asked), RESEND_TIMEOUT)?;
            told(&answer, "sent", &args.format)?;
            match answer["damaged"].as_u64() {
                Some(1..) => Err(Failure::new(DAMAGED, damaged(&answer))),
                _ => Ok(()),
            }
        }
        Dead::Drop { request_id, .. } => {
            told(&dead(about("drop", request_id.as_deref()))?, "dropped", &args.format)
        }
    }
}

/// A list has no place for data that is not in the server's memory.
fn say_where_data_is(letter: &mut Value) {
    let place = match (letter["stored"].as_bool(), letter["damaged"].as_bool()) {
        (_, Some(true)) => "(damaged on the disk)",
        (Some(true), _) => "(in the log: see `dead show`)",
        _ => return,
    };
    letter["data"] = place.into();
}

fn damaged(answer: &Value) -> String {
    format!(
        "{} could not be sent again: the server's disk has damaged what was to be sent (`dead list` has them with the code \
         durableUnavailable)",
        answer["damaged"]
    )
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
