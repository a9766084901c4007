//! `ringpost topology`: the servers that work together, as one of them sees it.

use std::fmt::Write;

use clap::Args;
use serde_json::{Value, json};

use crate::{client::ServerArgs, control::ask, exit::Outcome, output};

const EXAMPLES: &str = "\
Examples:
  ringpost topology
  ringpost topology --json | jq '.links[] | select(.state != \"up\")'

A server knows its own clients and the links that it has: to see all of a larger mesh, ask each of its servers.";

/// Show the servers that this one works with, their links, actions, handlers and load
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TopologyArgs {
    /// Print JSON, on one line
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &TopologyArgs, server: &ServerArgs) -> Outcome {
    let what = "the topology";
    let stats = ask(server, what, "$sys.stats", &Value::Null)?;
    let links = ask(server, what, "$sys.peers", &Value::Null)?;
    let actions = ask(server, what, "$sys.actions", &Value::Null)?;
    let topology = json!({ "serverId": stats["serverId"], "links": links, "actions": actions });
    if args.json {
        return output::line(topology.to_string().as_bytes());
    }
    output::line(text(&topology).trim_end().as_bytes())
}

/// For people.
fn text(topology: &Value) -> String {
    let mut text = format!("server {}\n", word(&topology["serverId"]));
    let list = |key: &str| topology[key].as_array().cloned().unwrap_or_default();
    if list("links").is_empty() {
        text.push_str("\nno links to other servers\n");
    } else {
        text.push_str("\nlinks\n");
    }
    for link in list("links") {
        let way = if link["dialled"] == true { "to" } else { "from" };
        let name = if link["serverId"].is_null() { "?".to_owned() } else { word(&link["serverId"]) };
        let _ = write!(text, "  {way} {name} ({}): {}", word(&link["address"]), word(&link["state"]));
        if let Some(error) = link["error"].as_str() {
            let _ = write!(text, ", {}", error.escape_debug());
        }
        if link["state"] == "up" {
            let _ = write!(text, ", {} on the way there, {} from there", link["held"], link["openRequests"]);
        }
        text.push('\n');
    }
    text.push_str(if list("actions").is_empty() { "\nno actions\n" } else { "\nactions\n" });
    for action in list("actions") {
        let _ = writeln!(text, "  {}, {} queued", word(&action["action"]), action["queued"]);
        for handler in action["handlers"].as_array().into_iter().flatten() {
            let at = match handler["server"].as_str() {
                Some(server) => format!("at {}", server.escape_debug()),
                None => format!("here, connection {}", handler["connection"]),
            };
            let _ = writeln!(text, "    {at}: holds {} of {}", handler["held"], handler["credit"]);
        }
    }
    text
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| "-".to_owned(), |text| text.escape_debug().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Links with their states, actions with their handlers here and there.
    #[test]
    fn shows_links_and_handlers() {
        let topology = json!({
            "serverId": "server_1",
            "links": [
                {"serverId": "server_2", "address": "127.0.0.1:2", "dialled": true, "state": "up", "error": null,
                 "held": 3, "openRequests": 1},
                {"serverId": null, "address": "127.0.0.1:3", "dialled": true, "state": "failed", "error": "no one"}
            ],
            "actions": [{"action": "sum", "queued": 0, "handlers": [
                {"connection": 4, "server": null, "held": 1, "credit": 64},
                {"connection": 0, "server": "server_2", "held": 3, "credit": 256}
            ]}]
        });
        let expected = "\
server server_1

links
  to server_2 (127.0.0.1:2): up, 3 on the way there, 1 from there
  to ? (127.0.0.1:3): failed, no one

actions
  sum, 0 queued
    here, connection 4: holds 1 of 64
    at server_2: holds 3 of 256
";
        assert_eq!(text(&topology), expected);
    }
}
