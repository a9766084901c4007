//! `ringpost log verify`: every damaged place, or what is in the log.

use std::path::Path;

use ringpost_broker::log::inspect::inspect;

use super::{opened::Opened, progress::Progress, results::Results, survey::Survey, text};
use crate::{
    exit::{BAD_DATA, Failure, Outcome},
    output,
};

/// Runs the command.
pub(super) fn run(directory: &Path) -> Outcome {
    let log = Opened::open(directory, Progress::begin(!output::is_watched()))?;
    log.read_once()?;
    let survey = list_damage(&log)?;
    if survey.damaged > 0 {
        return Err(damaged(&log, &survey).with(&format!(": {}", survey.remedies())));
    }
    output::line(format!("no damage\n{}", survey.summary()).as_bytes())
}

/// Reads a whole log, and prints a line for each damaged place.
pub(super) fn list_damage(log: &Opened) -> Outcome<Survey> {
    let mut survey = Survey::default();
    let mut results = Results::of(log);
    let read = inspect(log, |finding| {
        if let Some(line) = survey.take(&finding) {
            results.line(&line);
        }
    });
    results.end(read)?;
    for note in &survey.notes {
        output::note(format_args!("{note}"));
    }
    Ok(survey)
}

/// How much is damaged.
pub(super) fn damaged(log: &Opened, survey: &Survey) -> Failure {
    let places = text::count(survey.damaged, "place");
    Failure::new(BAD_DATA, format!("the log in {} is damaged in {places}", log.path()))
}
