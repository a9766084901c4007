//! `ringpost keygen`: a secure key for a server and its clients.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use ringpost::SecureKey;
use zeroize::Zeroizing;

use crate::{
    exit::{Failure, Outcome},
    output::{self, note},
};

const EXAMPLES: &str = "\
Examples:
  ringpost keygen --out ringpost.key
  ringpost serve --secure-key-file ringpost.key
  ringpost request shout '\"you\"' --secure-key-file ringpost.key

A key has 256 random bits: who has it may speak to the server, and nobody else. Give each side the \
file, or what is in it as RINGPOST_SECURE_KEY; there is no flag for the key itself, since others on \
the machine could see it in the list of processes.";

/// Make a secure key
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct KeygenArgs {
    /// Write it to this new file, which only its owner may read; without it, to standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: &KeygenArgs) -> Outcome {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes)
        .map_err(|error| Failure::system("the system gives no random bytes", &error.into()))?;
    let text = SecureKey::text_of(&bytes);
    match &args.out {
        None => output::line(text.as_bytes())?,
        Some(path) => write(path, &text)?,
    }
    note(format_args!("the key's id is {}", SecureKey::from_bytes(*bytes).id()));
    Ok(())
}

fn write(path: &Path, text: &str) -> Outcome {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::AlreadyExists => Failure::usage(format!(
            "{} is there already, and is not overwritten: whoever has that key would be locked out",
            path.display()
        )),
        _ => Failure::system(&format!("{} cannot be written", path.display()), &error),
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    // In one piece: a file with a part of a key would be of no use.
    let line = Zeroizing::new([text.as_bytes(), b"\n"].concat());
    file.write_all(&line).and_then(|()| file.sync_all()).map_err(failed)
}
