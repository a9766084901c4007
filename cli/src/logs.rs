//! What is logged, on standard error. A log that cannot be written is nobody's trouble: whoever logs goes on.

mod stderr;

use std::io::{self, IsTerminal};

use clap::Args;
use tracing_subscriber::EnvFilter;

use crate::exit::{Failure, Outcome};

/// What to log.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogArgs {
    /// What to log on standard error: a level, or a filter by module such as `warn,ringpost_server=debug`
    #[arg(long, global = true, value_name = "FILTER", env = "RUST_LOG", help_heading = "Logs")]
    log: Option<String>,

    /// Log more: -v for debug, -vv for trace
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Logs")]
    verbose: u8,
}

impl LogArgs {
    /// Starts logging; `usual` is the level when nothing else is said. `-v` is stronger than the filter.
    pub(crate) fn start(&self, usual: &str) -> Outcome {
        let text = match (self.verbose, &self.log) {
            (0, Some(filter)) => filter,
            (0, None) => usual,
            (1, _) => "debug",
            _ => "trace",
        };
        let filter = EnvFilter::try_new(text).map_err(|error| {
            let example =
                "write a level (error, warn, info, debug, trace) or for example `warn,ringpost_server=debug`";
            Failure::usage(format!("`{text}` is not a filter for logs: {error}: {example}"))
        })?;
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(stderr::Lines::default())
            // It would be told on standard error, which is what failed, and the macro that tells it panics then.
            .log_internal_errors(false)
            .with_ansi(io::stderr().is_terminal())
            .finish();
        if tracing::subscriber::set_global_default(subscriber).is_err() {
            // A program that calls this one as a library may log already, and decides where to.
            tracing::debug!("logging was set up before: `--log` is not used");
        }
        Ok(())
    }
}
