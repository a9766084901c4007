//! What the demo tells, on standard output.

use crate::{exit::Outcome, output};

/// Numbers the steps.
#[derive(Debug, Default)]
pub(super) struct Narrator {
    step: u32,
}

impl Narrator {
    /// A step begins.
    pub(super) fn step(&mut self, title: &str) -> Outcome {
        self.step += 1;
        output::line(format!("\n{}. {title}", self.step).as_bytes())
    }

    /// A line without a number.
    pub(super) fn line(&self, text: &str) -> Outcome {
        output::line(text.as_bytes())
    }

    /// Something that happens.
    pub(super) fn say(&self, text: &str) -> Outcome {
        output::line(format!("   {text}").as_bytes())
    }

    /// The command that does the same.
    pub(super) fn command(&self, text: &str) -> Outcome {
        output::line(format!("   $ {text}").as_bytes())
    }
}
