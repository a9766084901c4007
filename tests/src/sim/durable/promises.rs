//! The book over restarts and at the end: what must still be there, what must never come again.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_broker::log::SyncPolicy;
use ringpost_protocol::Code;

use super::{
    book::{Book, Promise, SLACK_MICROS},
    disk::Crash,
    view::View,
};
use crate::sim::rules::{Verdict, ensure};

/// Beyond its interval, a sync may take as long as the server stands still and the disk is slow.
const LATEST_SYNC: u64 = 3_000_000;

impl Book {
    /// Something has become stable. What is finished must have a reason for it.
    pub(super) fn stable(&mut self, view: &View, time: u64) -> Verdict {
        self.learn(view);
        for count in &view.done {
            if !self.finished.insert(*count) {
                continue;
            }
            let Some(token) = self.tokens.get(count) else { continue };
            let Some(asked) = self.asked.get(token) else { continue };
            let over = time + SLACK_MICROS >= asked.over_at;
            let reason = match asked.send {
                true => asked.handled || asked.cancelled || self.buried.contains(count),
                false => asked.acknowledged.is_some() || asked.cancelled || !asked.named || over,
            };
            ensure!(reason, Kept, "{count} ({token}) is done without a reason: {asked:?}");
        }
        Ok(())
    }

    /// A server has started, and has this log.
    pub(super) fn restarted(&mut self, view: &View, crash: Crash, boot: u64, time: u64) -> Verdict {
        self.learn(view);
        for count in &self.finished {
            let back = view.living.get(count);
            ensure!(back.is_none(), Settled, "{count} was done, and comes back after {crash:?}: {back:?}");
        }
        // What was heard later is in the log: so is whatever followed from what was heard before.
        let logged_later = |time: u64| {
            // One that was promised before it was heard again was refused then: nothing of it was logged later.
            let heard = |promise: &Promise| {
                self.asked.get(&promise.token).map(|asked| asked.heard).filter(|heard| *heard <= promise.at)
            };
            self.promised.values().filter_map(heard).any(|heard| heard > time)
        };
        for count in view.living.keys().filter(|_| self.policy == SyncPolicy::Always) {
            let asked = self.tokens.get(count).and_then(|token| self.asked.get(token));
            let done = asked.and_then(|asked| asked.acknowledged).is_some_and(logged_later);
            ensure!(!done, Settled, "{count} was acknowledged, and comes back after {crash:?}: {asked:?}");
        }
        for (count, logged) in &view.living {
            let asked = self.tokens.get(count).and_then(|token| self.asked.get(token));
            let same = asked
                .is_some_and(|asked| asked.send == logged.send && asked.named != logged.session.is_empty());
            ensure!(same, Invented, "{count} is in the log, and nobody asked it: {logged:?}, {asked:?}");
        }
        let gone: Vec<_> = self
            .promised
            .iter()
            .filter(|(count, _)| !view.living.contains_key(count) && !view.done.contains(count))
            .filter(|(count, _)| !self.finished.contains(count))
            .map(|(count, promise)| (*count, *promise))
            .collect();
        for (count, promise) in gone {
            let token = promise.token;
            ensure!(
                self.may_lose(crash, promise.at, time),
                Kept,
                "{count} ({token}) was accepted at {}, and is gone after {crash:?} at {time}",
                promise.at
            );
            self.promised.remove(&count);
            self.outcomes.remove(&count);
        }
        let lossy = self.may_lose(crash, time, time);
        let changed = |count: &u64, told| view.living.get(count).is_some_and(|it| it.outcome != Some(told));
        let others = self.outcomes.iter().find(|(count, told)| changed(count, **told));
        ensure!(others.is_none() || lossy, OneOutcome, "after {crash:?}, {others:?} is not what is kept");
        self.outcomes.retain(|count, told| !changed(count, *told));
        for (count, logged) in &view.living {
            let unlogged = self.begun.get(count).map_or(0, |begun| begun.range(logged.attempt + 1..).count());
            *self.spared.entry(*count).or_default() += 1 + unlogged as u64;
        }
        // What an acknowledgement led to was not synced.
        for token in view.living.keys().filter_map(|count| self.tokens.get(count)) {
            if let Some(asked) = self.asked.get_mut(token) {
                asked.acknowledged = None;
            }
        }
        // The counts of what is not in the log may be given again.
        let finished = &self.finished;
        let in_log = |count: &u64| {
            view.living.contains_key(count) || view.done.contains(count) || finished.contains(count)
        };
        self.tokens.retain(|count, _| in_log(count));
        self.deliveries.retain(|count, _| in_log(count));
        self.spared.retain(|count, _| in_log(count));
        self.buried.retain(in_log);
        // What never got into the log is not known by its number any more.
        let logged: BTreeSet<_> =
            view.living.keys().chain(&view.done).filter_map(|it| self.tokens.get(it)).collect();
        self.numbers.retain(|_, token| logged.contains(token));
        self.begin_anew(boot);
        Ok(())
    }

    /// Whether the policy allows that what was promised then is gone after a crash now.
    fn may_lose(&self, crash: Crash, at: u64, now: u64) -> bool {
        let weak = matches!(crash, Crash::PowerLost | Crash::SyncFailed);
        match self.policy {
            SyncPolicy::Always => false,
            SyncPolicy::Never => weak,
            SyncPolicy::Interval(interval) => weak && at + interval.as_micros() as u64 + LATEST_SYNC > now,
        }
    }

    /// All has come to its end.
    pub(super) fn audit(&self, view: &View, refused: &BTreeMap<u64, Code>) -> Verdict {
        for (count, logged) in &view.living {
            ensure!(logged.dead, Memory, "the log keeps {count}, and everything has ended: {logged:?}");
            ensure!(logged.send, DeadLetters, "{count} is a dead letter, and no send: {logged:?}");
        }
        for (count, promise) in &self.promised {
            let ended = self.finished.contains(count) || view.done.contains(count);
            let lies = view.living.contains_key(count);
            let asked = self.asked.get(&promise.token);
            ensure!(ended || lies, Kept, "{count} ({promise:?}) was accepted, and never ended: {asked:?}");
            // A send ends without a word, and an outcome is kept only for a time.
            let unheard = asked.is_some_and(|asked| asked.send || promise.at >= asked.over_at);
            let damaged = self.damaged.contains(count);
            let told = refused.get(&promise.token).filter(|_| !unheard && !damaged);
            ensure!(told.is_none(), Kept, "{count} ({promise:?}) was accepted, and ended with {told:?}");
        }
        Ok(())
    }
}
