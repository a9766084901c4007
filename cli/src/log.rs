//! `ringpost log`: the log of durable requests on the disk, without a server: is it whole, what is in it, going on
//! without what is lost.
//!
//! What a log is and what its damage means is the broker's (`ringpost_broker::log`). Here it is opened and shown.
//!
//! | module | owns |
//! |---|---|
//! | `opened` | a log's directory: there, locked, read with progress; what its errors mean for the exit code |
//! | `progress` | telling somebody who waits how far the reading is |
//! | `results` | many lines on standard output, until nobody reads them |
//! | `verify`, `dump`, `repair` | the commands |
//! | `survey` | what a whole log comes to: the summary, and the damage |
//! | `entry`, `fields` | a record as keys and values, for people and as JSON |
//! | `text` | points in time, sizes and bytes as text |

mod dump;
mod entry;
mod fields;
mod opened;
mod progress;
mod repair;
mod results;
mod survey;
mod text;
mod verify;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::exit::Outcome;

const EXAMPLES: &str = "\
Examples:
  ringpost log verify DIR                  reads everything, and lists every damaged place
  ringpost log dump DIR                    a line for each record
  ringpost log dump DIR --json | jq 'select(.kind == \"request\")'
  ringpost log repair DIR                  says what would be lost, and changes nothing
  ringpost log repair DIR --allow-loss     goes on without it, and keeps a copy beside

DIR is what `ringpost serve --data-dir` has. No server may run on it meanwhile.

The end of a log that a crash has torn is no damage: the next start cuts it off, and nobody was \
promised what was in it.

Exit codes: 65 the log is damaged, 74 it cannot be read or written, 78 a server has it, or a newer \
version wrote it.";

/// Verify, show or repair the log of durable requests in a data directory
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LogFilesArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Read the whole log and list every damaged place; nothing is changed
    Verify {
        /// The data directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Print every record; nothing is changed
    Dump {
        /// The data directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Print a JSON object on a line for each, with all of its data
        #[arg(long)]
        json: bool,
    },
    /// Make a damaged log one that a server starts with, without what is lost
    Repair {
        /// The data directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Give up what cannot be read. Without this nothing is changed
        #[arg(long)]
        allow_loss: bool,
    },
}

/// Runs the command.
pub(crate) fn run(args: &LogFilesArgs) -> Outcome {
    match &args.what {
        What::Verify { directory } => verify::run(directory),
        What::Dump { directory, json } => dump::run(directory, *json),
        What::Repair { directory, allow_loss } => repair::run(directory, *allow_loss),
    }
}
