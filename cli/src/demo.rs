//! `ringpost demo`: what Ringpost does, shown on a server of its own.

mod durable;
mod narrator;
mod play;
mod troupe;

use clap::Args;

use crate::{
    client,
    exit::{Failure, Outcome},
    signals::Stop,
};

/// Show what Ringpost does, in a few seconds: requests, broadcast, a killed handler, a killed server, a burst of load
///
/// It starts a server on a free port, and everything that it starts is gone when it ends.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {}

/// Runs the command.
pub(crate) fn run(_args: &DemoArgs) -> Outcome {
    client::block_on(async {
        let mut stop = Stop::listen()?;
        // Whatever the play has started is dropped with it, and ends thereby.
        tokio::select! {
            outcome = play::perform() => outcome,
            code = stop.next() => Err(Failure::new(code, "interrupted: all that was started is ended")),
        }
    })
}
