//! The end of a handler: told to whatever is at work, and waited for.

use std::sync::Arc;

use tokio::sync::watch;

/// Shared by the handler and all of its runs.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug, Default)]
struct State {
    begun: bool,
    running: usize,
}

/// A run that is counted until it is dropped.
#[derive(Debug)]
pub(super) struct Run {
    state: Arc<watch::Sender<State>>,
}

impl Ending {
    pub(super) fn new() -> Self {
        Self { state: Arc::new(watch::Sender::new(State::default())) }
    }

    /// A run begins.
    pub(super) fn run(&self) -> Run {
        self.state.send_modify(|state| state.running += 1);
        Run { state: self.state.clone() }
    }

    /// How many runs there are now.
    pub(super) fn running(&self) -> usize {
        self.state.borrow().running
    }

    /// Tells all runs to stop.
    pub(super) fn begin(&self) {
        self.state.send_modify(|state| state.begun = true);
    }

    /// Completes when runs are to stop.
    pub(super) async fn begun(&self) {
        self.until(|state| state.begun).await;
    }

    /// Completes when there is no run.
    pub(super) async fn idle(&self) {
        self.until(|state| state.running == 0).await;
    }

    async fn until(&self, holds: impl FnMut(&State) -> bool) {
        // The sender lives as long as `self`: the only result is "it is so".
        let _ = self.state.subscribe().wait_for(holds).await;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.state.send_modify(|state| state.running -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs hear of the end, and the end waits for the last of them.
    #[tokio::test]
    async fn waits_for_all() {
        let ending = Ending::new();
        ending.idle().await;
        let runs: Vec<_> = (0..3).map(|_| (ending.run(), ending.clone())).collect();
        assert_eq!(ending.running(), 3);
        for (run, ending) in runs {
            tokio::spawn(async move {
                ending.begun().await;
                drop(run);
            });
        }
        ending.begin();
        ending.idle().await;
        assert_eq!(ending.running(), 0);
    }
}
