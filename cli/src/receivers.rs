//! `ringpost receivers`: the actions that have a handler.

use std::{collections::BTreeSet, sync::Arc};

use clap::Args;
use ringpost::{Event, Receivers};

use crate::{
    client::{self, ServerArgs},
    exit::{Failure, Outcome},
    output,
};

const EXAMPLES: &str = "\
Examples:
  ringpost receivers                  a line for each action
  ringpost receivers --json           [\"client_1\",\"client_2\"]
  ringpost receivers --watch          `+ client_1` when the first handler of an action comes,
                                      `- client_1` when the last one goes
  ringpost receivers --watch --json   the whole list again at each change";

/// List the actions that have at least one handler now
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReceiversArgs {
    /// Stay, and print what changes
    #[arg(long)]
    watch: bool,

    /// Print JSON arrays, one a line
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &ReceiversArgs, server: &ServerArgs) -> Outcome {
    client::block_on(async { if args.watch { watch(args, server).await } else { list(args, server).await } })
}

async fn list(args: &ReceiversArgs, server: &ServerArgs) -> Outcome {
    let failed = |error| server.failure("the receivers", &error);
    let client = server.connect().await.map_err(failed)?;
    let receivers = client.receivers().await.map_err(failed)?;
    client.close().await;
    if args.json {
        return json_line(&receivers);
    }
    if receivers.is_empty() {
        output::note(format_args!("no action has a handler at {}", server.address()));
    }
    receivers.iter().try_for_each(|action| output::line(action.as_bytes()))
}

/// Goes on until it is interrupted or nobody reads any more, also over a restart of the server.
async fn watch(args: &ReceiversArgs, server: &ServerArgs) -> Outcome {
    let failed = |error| server.failure("the receivers", &error);
    let connecting = server.builder().map_err(failed)?.receivers(true).connect();
    let client = tokio::time::timeout(server.connect_timeout, connecting)
        .await
        .unwrap_or_else(|_| Err(server.too_late()))
        .map_err(failed)?;
    let mut changes: Receivers = client.receivers_changes();
    let mut events = client.events();
    let mut known = BTreeSet::new();
    let mut reader_gone = std::pin::pin!(output::reader_gone());
    loop {
        tokio::select! {
            list = changes.next() => match list {
                Some(list) if args.json => json_line(&list)?,
                Some(list) => known = print_changes(&known, &list)?,
                None => return Err(failed(client.closed().await)),
            },
            () = &mut reader_gone => return Ok(()),
            Some(event) = events.next() => match event {
                Event::Disconnected(reason) => output::note(format_args!("{reason}; connecting again")),
                Event::Connected { .. } => output::note(format_args!("connected again")),
                _ => {}
            },
        }
    }
}

fn json_line(list: &Arc<[String]>) -> Outcome {
    let text = serde_json::to_vec(&**list).map_err(|error| Failure::system("JSON", &error.into()))?;
    output::line(&text)
}

/// Prints how a list differs from what was known, and gives what is known now.
fn print_changes(known: &BTreeSet<String>, list: &Arc<[String]>) -> Outcome<BTreeSet<String>> {
    let now: BTreeSet<String> = list.iter().cloned().collect();
    for gone in known.difference(&now) {
        output::line(format!("- {gone}").as_bytes())?;
    }
    for new in now.difference(known) {
        output::line(format!("+ {new}").as_bytes())?;
    }
    Ok(now)
}
