//! What a returning client is told of each number that it has open.

use std::collections::BTreeMap;

use ringpost_protocol::message::{OpenState, Reply, Resume};

use crate::{
    Broker,
    state::{RequestState, Session},
};

/// The outcomes that are kept of one request.
#[derive(Debug, Clone, Copy, Default)]
struct KeptOutcomes {
    count: u32,
    /// How many it has, or will have, all together.
    expected: u32,
}

impl Broker {
    /// What is known of each of the numbers, in their order. `decided`: durable ones with an outcome, rising.
    pub(super) fn open_states(
        &self,
        session: &Session,
        resume: &Resume,
        decided: &[u64],
    ) -> Vec<(u64, OpenState)> {
        let kept = kept_outcomes(&session.outcomes.kept);
        // Outcomes that the client did not get had to make room for others.
        let incomplete = session.outcomes.dropped > resume.sequence;
        let state = |number: u64| {
            #[cfg(feature = "planted-bugs")]
            if self.config.is_planted(crate::PlantedBug::WrongResume) {
                return OpenState::NeverSeen;
            }
            let kept = kept.get(&number).copied();
            if number >= session.next_number {
                OpenState::NeverSeen
            } else if incomplete && self.lacks_a_leg(session, number, kept.unwrap_or_default()) {
                OpenState::Lost
            } else if decided.binary_search(&number).is_ok() {
                OpenState::Outcome
            } else if session.open.contains_key(&number) {
                OpenState::Running
            } else if kept.is_some() {
                OpenState::Outcome
            } else if incomplete {
                OpenState::Lost
            } else {
                // A send that was accepted: nothing is left of it but that, and that follows.
                OpenState::Running
            }
        };
        resume.open.iter().map(|number| (*number, state(*number))).collect()
    }

    /// Whether a broadcast has had more outcomes than are kept: without those that made room, it would never end for its
    /// requester. The client may have got them before; that is not known here, and then what is left of it is lost too.
    fn lacks_a_leg(&self, session: &Session, number: u64, kept: KeptOutcomes) -> bool {
        let request = session.open.get(&number).and_then(|key| self.requests.get(*key));
        match request.map(|request| (&request.state, request.wants_reply())) {
            Some((RequestState::Broadcast(legs), true)) => legs.put_out() > kept.count,
            Some(_) => false,
            None => kept.expected > kept.count,
        }
    }
}

fn kept_outcomes<'a>(kept: impl IntoIterator<Item = &'a Reply>) -> BTreeMap<u64, KeptOutcomes> {
    let mut by_number = BTreeMap::<u64, KeptOutcomes>::new();
    for reply in kept {
        let entry = by_number.entry(reply.number).or_default();
        entry.count += 1;
        entry.expected = reply.leg.map_or(1, |leg| leg.expected);
    }
    by_number
}
