//! Durable deliveries of an earlier connection, whose server may have been restarted: the handlers go on with them, and the
//! server is asked to take them back.
//!
//! ```text
//! Held ── the connection is lost ──> former ── welcome of another boot: `resume` names it ──> attached, under a new number
//!                                      │ └── welcome of the same boot: another handler has it by now ──┐
//!                                      └──────────── the server does not want it any more ─────────────┴──> cancelled
//! ```

use std::collections::BTreeMap;

use ringpost_protocol::{Content, message::Verdict};

use crate::output::DeliveryKey;

/// How it stands with one of them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Former {
    /// The handler is at work.
    Held,
    /// It has answered, and the server may not know it.
    Answered(Verdict, Content),
}

/// All of them, of one boot of the server.
#[derive(Debug, Default)]
pub(crate) struct Formers {
    /// The boot whose deliveries they are; their numbers are unique in it.
    pub(crate) boot: u64,
    by_number: BTreeMap<u64, (DeliveryKey, Former)>,
}

impl Formers {
    pub(crate) fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_number.len()
    }

    pub(crate) fn insert(&mut self, number: u64, key: DeliveryKey, former: Former) {
        self.by_number.insert(number, (key, former));
    }

    /// A handler's answer, kept until the server can be told. `false` if the delivery is none of these.
    pub(crate) fn answer(&mut self, key: DeliveryKey, verdict: Verdict, content: Content) -> bool {
        let held = |(known, former): &&mut (DeliveryKey, Former)| *known == key && *former == Former::Held;
        let Some((_, former)) = self.by_number.values_mut().find(held) else { return false };
        *former = Former::Answered(verdict, content);
        true
    }

    /// Whether a handler is at work on it.
    pub(crate) fn holds(&self, key: DeliveryKey) -> bool {
        self.by_number.values().any(|(known, former)| *known == key && *former == Former::Held)
    }

    /// Their numbers, rising.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.by_number.keys().copied().collect()
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<(DeliveryKey, Former)> {
        self.by_number.remove(&number)
    }

    /// Gives all of them up. The keys of those that handlers are still at work on, in the order of their numbers.
    pub(crate) fn clear(&mut self) -> Vec<DeliveryKey> {
        let all = std::mem::take(&mut self.by_number).into_values();
        all.filter(|(_, former)| *former == Former::Held).map(|(key, _)| key).collect()
    }
}
