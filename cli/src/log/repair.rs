//! `ringpost log repair`: what would be lost, or, if that is allowed, going on without it.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use ringpost_broker::log::{
    Damage, Sequence,
    repair::{Loss, RepairOptions, Unrepaired, repair},
};

use super::{
    opened::Opened,
    progress::Progress,
    survey::{Survey, place, span},
    text, verify,
};
use crate::{
    exit::{Failure, NOT_USABLE, Outcome},
    output,
};

/// Runs the command.
pub(super) fn run(directory: &Path, allow_loss: bool) -> Outcome {
    let mut log = Opened::open(directory, Progress::begin(!output::is_watched()))?;
    if !allow_loss {
        return refuse(&log);
    }
    log.read_again();
    let seed = getrandom::u64().map_err(|error| {
        Failure::new(
            NOT_USABLE,
            format!("the system gives no random numbers, which new records need: {error}"),
        )
    })?;
    let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let options = RepairOptions { allow_loss, seed, wall_ms };
    let (losses, failed) = match repair(&mut log, options) {
        Ok(losses) if losses.is_empty() => return nothing_to_repair(),
        Ok(losses) => (losses, None),
        Err(Unrepaired { error, losses }) => (losses, Some(error)),
    };
    for loss in &losses {
        output::line(line(loss, &log).as_bytes())?;
    }
    if let Some(error) = failed {
        let left = match losses.len() {
            0 => "; nothing was given up",
            _ => "; what is listed stays given up, and `ringpost log verify` shows the rest",
        };
        return Err(log.failure(&error).with(left));
    }
    let path = log.path();
    output::note(format_args!("repaired: `ringpost serve --data-dir {path}` goes on with the rest"));
    Ok(())
}

/// Says what would be lost. Nothing is changed.
fn refuse(log: &Opened) -> Outcome {
    log.read_once()?;
    let survey = verify::list_damage(log)?;
    if survey.damaged == 0 {
        return nothing_to_repair();
    }
    Err(verify::damaged(log, &survey).with(&cost(log, &survey)))
}

fn cost(log: &Opened, survey: &Survey) -> String {
    let mut lost = Vec::new();
    if survey.unreadable_bytes > 0 {
        lost.push(format!("{} of records", text::size(survey.unreadable_bytes)));
    }
    if survey.lost_segments > 0 {
        let known = survey.lost_with_segments.join(", ");
        let known = if known.is_empty() { known } else { format!(" ({known})") };
        lost.push(format!("all that was in {}{known}", text::count(survey.lost_segments, "segment")));
    }
    if survey.without_manifest {
        lost.push("what only a look at the segments can tell, which needs a manifest".to_owned());
    }
    if lost.is_empty() {
        lost.push("no record".to_owned());
    }
    format!(
        ": {} would be lost. Nothing was changed. If files can be put back from elsewhere, do that first. Otherwise copy \
         the directory, and give up what is listed with `ringpost log repair {} --allow-loss`",
        lost.join(", and "),
        log.path()
    )
}

fn nothing_to_repair() -> Outcome {
    output::line(b"no damage: nothing was changed")
}

/// What was lost, and where a copy of it is.
fn line(loss: &Loss, log: &Opened) -> String {
    let copy = match &loss.kept {
        Some(name) => format!("; kept in {}", log.path_of(name)),
        None => String::new(),
    };
    format!("{}; {}{copy}", place(&loss.corruption), lost(loss))
}

fn lost(loss: &Loss) -> String {
    let bytes = text::count(loss.bytes, "byte");
    // Of a file that is not there, nobody knows how many.
    let lost = if loss.bytes == 0 { "lost".to_owned() } else { format!("{bytes} lost") };
    match (&loss.corruption.what, loss.first, loss.through) {
        (Damage::Manifest(_) | Damage::ManifestMissing, ..) => {
            "made anew from the segments, which may name some whose removal had begun: what was done long ago may be \
             done again"
                .to_owned()
        }
        (Damage::Shortened { .. }, None, None) => format!("prolonged by {bytes} of zeros"),
        (_, Some(first), Some(through)) => format!("{lost}: {}", span(first..=through)),
        (_, Some(first), None) => format!("{lost}: record {first} and those behind it, nobody knows how many"),
        (_, None, Some(through)) => format!("{lost}: {}", up_to(through)),
        (_, None, None) => format!("{lost}, nobody knows which records"),
    }
}

fn up_to(through: Sequence) -> String {
    format!("the records up to {through} that were in it")
}

#[cfg(test)]
mod tests {
    use ringpost_broker::log::Corruption;

    use super::*;

    /// What is known of a loss is said, and what is not known is called that.
    #[test]
    fn losses() {
        let said = |what, first: Option<u64>, through: Option<u64>| {
            let corruption = Corruption { file: "f".into(), offset: 0, what };
            let (first, through) = (first.map(Sequence), through.map(Sequence));
            lost(&Loss { corruption, bytes: 64, first, through, kept: None })
        };
        assert_eq!(said(Damage::BehindNewest, Some(2), Some(3)), "64 bytes lost: records 2 to 3");
        assert!(said(Damage::SegmentMissing, Some(2), None).contains("record 2 and those behind it"));
        assert!(said(Damage::SegmentMissing, None, Some(3)).contains("the records up to 3"));
        assert!(said(Damage::SegmentMissing, None, None).contains("nobody knows which"));
        assert_eq!(said(Damage::Shortened { expected: 100 }, None, None), "prolonged by 64 bytes of zeros");
        assert!(said(Damage::ManifestMissing, None, None).contains("made anew"));
    }
}
