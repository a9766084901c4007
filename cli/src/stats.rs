//! `ringpost stats`: what the server holds now and what it has done since its start.

use std::{fmt::Write, time::Duration};

use clap::Args;
use ringpost_protocol::Code;
use serde_json::{Map, Value};

use crate::{
    args,
    client::{self, ServerArgs},
    exit::{Failure, Outcome},
    output,
};

const ACTION: &str = "$sys.stats";

const EXAMPLES: &str = "\
Examples:
  ringpost stats
  ringpost stats --json | jq .total.requests
  ringpost stats --watch --interval 500ms";

/// Show what the server holds now, and what it has done since its start
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct StatsArgs {
    /// Print the server's own JSON, on one line
    #[arg(long)]
    json: bool,

    /// Stay, and show them again and again
    #[arg(long)]
    watch: bool,

    /// The pause between two looks
    #[arg(long, value_name = "DURATION", default_value = "1s", requires = "watch", value_parser = args::some_duration)]
    interval: Duration,
}

/// Runs the command.
pub(crate) fn run(args: &StatsArgs, server: &ServerArgs) -> Outcome {
    client::block_on(async {
        let failed = |error| server.failure("the server's figures", &error);
        let client = server.connect().await.map_err(failed)?;
        let mut ticks = tokio::time::interval(args.interval);
        loop {
            ticks.tick().await;
            let reply =
                client.request_bytes(ACTION, "null").timeout(server.connect_timeout).await.map_err(failed)?;
            print(reply.as_bytes(), args)?;
            if !args.watch {
                client.close().await;
                return Ok(());
            }
        }
    })
}

fn print(stats: &[u8], args: &StatsArgs) -> Outcome {
    if args.json {
        return output::line(&output::one_line(stats));
    }
    let table = table(stats).map_err(|error| {
        let message =
            format!("the server's figures are not as expected ({error}): --json shows them as they are");
        Failure::new(Code::Malformed.exit_code(), message)
    })?;
    // On a terminal each look takes the place of the one before.
    let clear = if args.watch && output::is_watched() { "\x1b[2J\x1b[H" } else { "" };
    output::line(format!("{clear}{table}").as_bytes())
}

/// For people: the numbers as they are now all of them, and of the counters those that are not 0.
fn table(stats: &[u8]) -> Result<String, serde_json::Error> {
    let stats: Map<String, Value> = serde_json::from_slice(stats)?;
    let mut text = String::new();
    for (name, value) in stats.iter().filter(|(_, value)| !value.is_object()) {
        let value = match (name.as_str(), value.as_u64(), value.as_str()) {
            ("uptimeMs", Some(ms), _) => format!("{:?}", Duration::from_millis(ms)),
            (_, _, Some(text)) => text.to_owned(),
            _ => value.to_string(),
        };
        let name = name.trim_end_matches("Ms");
        let _ = writeln!(text, "{name:<12} {value}");
    }
    for (title, name, skip_zeros) in [("now", "now", false), ("since the start", "total", true)] {
        let Some(numbers) = stats.get(name).and_then(Value::as_object) else { continue };
        let rows = numbers
            .iter()
            .filter(|(_, value)| !skip_zeros || value.as_u64() != Some(0))
            .map(|(name, value)| (name.as_str(), value.to_string()));
        let _ = write!(text, "\n{title}\n{}", output::columns(rows));
    }
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is there now is shown in full, of the counters only what has happened.
    #[test]
    fn shows_what_matters() {
        let stats = br#"{"serverId":"a","boot":"01","uptimeMs":1500,
            "now":{"actions":0,"handlers":2},"total":{"requests":12,"timeouts":0}}"#;
        let table = table(stats).unwrap();
        assert!(table.contains("serverId     a\n") && table.contains("uptime       1.5s\n"), "{table}");
        assert!(table.contains("  actions   0\n  handlers  2\n"), "{table}");
        assert!(table.ends_with("since the start\n  requests  12"), "{table}");
    }

    /// Anything else is an error, not an empty table.
    #[test]
    fn refuses_what_is_no_object() {
        assert!(table(b"[]").is_err());
    }
}
