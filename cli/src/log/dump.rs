//! `ringpost log dump`: every record with its place, for people or as JSON; what is damaged is shown where it is.

use std::path::Path;

use ringpost_broker::log::inspect::inspect;

use super::{entry::Entry, opened::Opened, progress::Progress, results::Results, survey::Survey, verify};
use crate::{exit::Outcome, output};

/// Runs the command.
pub(super) fn run(directory: &Path, json: bool) -> Outcome {
    let log = Opened::open(directory, Progress::begin(!output::is_watched()))?;
    log.read_once()?;
    let mut survey = Survey::default();
    let mut results = Results::of(&log);
    let read = inspect(&log, |finding| {
        survey.take(&finding);
        match Entry::of(&finding) {
            Some(entry) if json => results.json(&entry),
            Some(entry) => results.line(&entry.text()),
            None => {}
        }
    });
    results.end(read)?;
    if survey.damaged > 0 {
        return Err(verify::damaged(&log, &survey).with(&format!(": {}", survey.remedies())));
    }
    Ok(())
}
