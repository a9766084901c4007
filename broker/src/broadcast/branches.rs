//! What of a broadcast goes to peers: a branch for each, which there becomes a leg for each handler.
//!
//! ```text
//! waiting ──> asked ──legs──> counted ──leg, leg, …──> ended
//!    │          │                │                       ^
//!    └──────────┴────────────────┴── declined, lost, … ──┘
//! ```
//!
//! A branch is a delivery to the peer's handler, and holds its credit until the answer that ends it. How many legs it has, the
//! peer says first. The requester is told the sum over all servers, so it is told when the last branch has said its part;
//! outcomes that come before wait. A branch that does not say in time is one leg, which ends with that. Legs of peers get
//! their indices as they end, behind those of this server's handlers.

use std::time::Duration;

use ringpost_protocol::{
    Code, Content,
    limits::{MAX_LEGS, MIN_COUNTED_BYTES},
    message::{Answer, Leg, Reply, Verdict},
    time::TimerId,
};

use crate::{
    Broker, ConnId,
    dispatch::{HANDLER_LOST, no_handler},
    slab::Key,
    state::{Action, Delivery, Handler, LegState, Legs, Request, RequestState, Session, Timer},
};

/// How long peers may take to say whom they asked, in which outcomes are held back. A peer says it at once, so this is a
/// way there and back; one that takes longer is not there, or has no credit.
const COUNT_TIME: Duration = Duration::from_secs(1);
/// No server has so many handlers of one action. If the link is lost each of them becomes an outcome, whoever claimed it.
const MAX_BRANCH_LEGS: u32 = 1 << 16;
/// What an outcome that is held back costs beside its content.
const HELD_BYTES: usize = std::mem::size_of::<Reply>();

/// The branches of a broadcast that wants replies.
#[derive(Debug, Default)]
pub(crate) struct Branches {
    /// For each branch: legs that have not ended. `None` until the peer has said how many there are.
    left: Vec<Option<u32>>,
    /// Branches that have not.
    uncounted: u32,
    /// Legs that are known of, of all servers.
    expected: u32,
    /// Legs of branches that have ended: the next one's index, from behind the own ones.
    ended: u32,
    /// Outcomes that wait for the sum.
    held: Vec<Reply>,
    held_bytes: usize,
    /// Outcomes that were put out.
    pub(super) put_out: u32,
    /// The requester knows how many legs there are.
    told: bool,
    /// Runs while branches have not said how many.
    timer: Option<TimerId>,
}

impl Branches {
    pub(super) fn new(own: u32, branches: usize) -> Self {
        let uncounted = branches as u32;
        Self { left: vec![None; branches], uncounted, expected: own, ..Self::default() }
    }

    /// A branch turns out to have so many legs.
    fn count(&mut self, branch: usize, legs: u32) {
        if let Some(left @ None) = self.left.get_mut(branch) {
            *left = Some(legs);
            self.uncounted -= 1;
            self.expected += legs;
        }
    }

    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    pub(crate) fn check_invariants(&self) {
        let uncounted = self.left.iter().filter(|left| left.is_none()).count();
        assert_eq!(uncounted, self.uncounted as usize, "branches that have not said how many");
        assert_eq!(self.timer.is_some(), uncounted > 0, "nobody waits for ever for the sum");
        assert_eq!(self.told, uncounted == 0, "the sum is told as soon as it is known");
        assert!(!self.told || self.held.is_empty(), "outcomes wait only for the sum");
        let bytes: usize = self.held.iter().map(|reply| HELD_BYTES + reply.content.uncounted_len()).sum();
        assert_eq!(bytes, self.held_bytes, "bytes of outcomes that wait");
    }
}

impl Broker {
    /// Handlers of peers that a broadcast goes to: of each server one, whichever link leads there.
    pub(super) fn branches_to(&self, action: &Action, session: Key<Session>) -> Vec<Key<Handler>> {
        let Some(far) = action.far.as_ref().and_then(|far| self.actions.get(far.action)) else {
            return Vec::new();
        };
        if self.is_from_peer(session) {
            return Vec::new();
        }
        let mut branches: Vec<(&[u8], Key<Handler>)> = Vec::new();
        for key in far.handlers.values() {
            let Some(handler) = self.handlers.get(*key) else { continue };
            let peer = self.connection(handler.conn).and_then(|connection| connection.peer.as_deref());
            let Some(server_id) = peer.map(|peer| peer.server_id.as_ref()) else { continue };
            match branches.iter_mut().find(|(known, _)| *known == server_id) {
                None => branches.push((server_id, *key)),
                Some((_, chosen)) => {
                    if handler.has_credit() && !self.handlers.get(*chosen).is_some_and(Handler::has_credit) {
                        *chosen = *key;
                    }
                }
            }
        }
        branches.into_iter().map(|(_, key)| key).collect()
    }

    /// All branches are on their way, or wait; they are given a time to say how many they ask.
    pub(super) fn wait_for_counts(&mut self, key: Key<Request>) {
        if self.branches_mut(key).is_some_and(|branches| branches.uncounted > 0) {
            let timer = self.timers.insert(self.now.mono + COUNT_TIME, Timer::Counts(key));
            if let Some(branches) = self.branches_mut(key) {
                branches.timer = Some(timer);
            }
        }
        self.settle_sum(key);
    }

    /// A peer says how many of its handlers it asked.
    pub(crate) fn branch_counted(&mut self, conn: ConnId, delivery: u64, expected: u32) {
        if !self.is_peer(conn) {
            return self
                .break_off(conn, "only a server that comes as a peer says how many handlers it asked");
        }
        let Some((request, part)) = self.open_branch(conn, delivery) else { return };
        let Some((branch, branches)) = self.branch_mut(request, part) else { return };
        if branches.left.get(branch).is_none_or(Option::is_some) {
            return;
        }
        if expected > MAX_BRANCH_LEGS || branches.expected + expected > MAX_LEGS {
            self.call_back_delivery(Key::from_raw(delivery), Default::default());
            let message = format!(
                "the peer has {expected} handlers: at most {MAX_BRANCH_LEGS} of one peer and {MAX_LEGS} in all can be asked at once; some may have run"
            );
            return self.refuse_leg(request, part, message);
        }
        branches.count(branch, expected);
        self.settle_sum(request);
    }

    /// A peer says what became of one of the handlers that it asked, and not the last.
    pub(crate) fn branch_leg(&mut self, conn: ConnId, answer: &mut Answer) {
        if !self.is_peer(conn) {
            return self.break_off(conn, "only a server that comes as a peer answers for several handlers");
        }
        let left = self.open_branch(conn, answer.delivery).and_then(|(request, part)| {
            let (branch, branches) = self.branch_mut(request, part)?;
            branches.left.get(branch).copied().flatten().filter(|left| *left > 0).map(|_| (request, part))
        });
        let Some((request, part)) = left else {
            self.counters.late_answers += u64::from(answer.verdict != Verdict::Cancelled);
            return;
        };
        let content = std::mem::take(&mut answer.content);
        let (code, content, handled) = match answer.verdict {
            Verdict::Reply => {
                self.counters.replies += 1;
                (None, content, true)
            }
            Verdict::Failed(code) | Verdict::Declined(code) => {
                (Some(code), Content::from_payload(content.payload_bytes()), false)
            }
            Verdict::Error | Verdict::Cancelled | Verdict::Retry(_) | Verdict::Reject => {
                self.counters.handler_errors += 1;
                (Some(Code::Remote), content, true)
            }
        };
        self.end_far_leg(request, part, code, content, handled);
        self.settle_sum(request);
    }

    /// What a peer says of a branch that ends without a handler's answer.
    #[cold]
    pub(crate) fn branch_failed(
        &mut self,
        delivery: &Delivery,
        verdict: Verdict,
        code: Code,
        content: Content,
    ) {
        let (request, part) = (delivery.request, delivery.leg);
        let declined = matches!(verdict, Verdict::Declined(_));
        self.counters.declined += u64::from(declined);
        // Who has nobody, or will not have them for long, was not asked. Who has and says why not is a leg that fails: without
        // it the count would look whole.
        if declined
            && matches!(code, Code::NoHandler | Code::Draining)
            && let Some((branch, branches)) = self.branch_mut(request, part)
        {
            branches.count(branch, 0);
        }
        let content = Content::from_payload(content.payload_bytes());
        self.end_leg(request, part, Some(code), content, false);
    }

    /// Ends a part of a broadcast with branches: an own handler's leg, or all that is left of a branch.
    pub(super) fn end_part(
        &mut self,
        key: Key<Request>,
        part: u32,
        code: Option<Code>,
        content: Content,
        handled: bool,
    ) {
        let never_delivered = self.part_state(key, part) == Some(LegState::Waiting);
        let Some(legs) = self.legs_mut(key) else { return };
        if let Some(state) = legs.states.get_mut(part as usize) {
            *state = LegState::Ended;
        }
        legs.open -= 1;
        if part < legs.own {
            self.put_out_leg(key, part, code, content, handled, never_delivered);
            return self.settle_sum(key);
        }
        if let Some((branch, branches)) = self.branch_mut(key, part) {
            branches.count(branch, 1);
            let left = branches.left.get_mut(branch).and_then(Option::as_mut).map_or(0, std::mem::take);
            // One handler's own answer says nothing of the others, if there should be any.
            let (mut code, mut content, mut handled) = (code, content, handled);
            for _ in 0..left {
                let index = self.next_far_index(key);
                self.put_out_leg(key, index, code, content.clone(), handled, never_delivered);
                if handled {
                    (code, handled) = (Some(Code::HandlerLost), false);
                    content = Content::from_payload(HANDLER_LOST);
                }
            }
        }
        self.settle_sum(key);
    }

    /// Ends one leg of a branch that goes on.
    fn end_far_leg(
        &mut self,
        key: Key<Request>,
        part: u32,
        code: Option<Code>,
        content: Content,
        handled: bool,
    ) {
        let Some((branch, branches)) = self.branch_mut(key, part) else { return };
        if let Some(Some(left)) = branches.left.get_mut(branch) {
            *left -= 1;
        }
        let index = self.next_far_index(key);
        self.put_out_leg(key, index, code, content, handled, false);
    }

    fn next_far_index(&mut self, key: Key<Request>) -> u32 {
        let own = self.legs_mut(key).map_or(0, |legs| legs.own);
        let Some(branches) = self.branches_mut(key) else { return own };
        branches.ended += 1;
        own + branches.ended - 1
    }

    /// The outcome of a leg goes to the requester, or waits until it can be said how many there are.
    fn put_out_leg(
        &mut self,
        key: Key<Request>,
        index: u32,
        code: Option<Code>,
        content: Content,
        handled: bool,
        never_delivered: bool,
    ) {
        let Some(request) = self.requests.get(key) else { return };
        let mut of = request.ended(self.tag_of(request));
        if never_delivered {
            of.never_delivered();
        }
        let session = of.session;
        let mut reply = self.outcome(of, code, Some(Leg { index, expected: 0 }), content, handled);
        let Some(branches) = self.branches_mut(key) else { return };
        if branches.told {
            reply.leg = Some(Leg { index, expected: branches.expected });
            branches.put_out += 1;
            return self.put_out(session, reply);
        }
        reply.content.detach(MIN_COUNTED_BYTES);
        let bytes = HELD_BYTES + reply.content.uncounted_len();
        branches.held_bytes += bytes;
        branches.held.push(reply);
        self.kept_bytes += bytes;
    }

    /// Once all branches have said how many they asked, the sum is told, and what has waited for it; and after the last leg the
    /// broadcast is over.
    fn settle_sum(&mut self, key: Key<Request>) {
        let Some(branches) = self.branches_mut(key) else { return };
        if branches.uncounted > 0 {
            if !branches.held.is_empty() && self.is_over_memory(0) {
                self.give_up_counting(
                    key,
                    "memory is short, and the outcomes of the others had to wait for it",
                );
            }
            return;
        }
        let expected = branches.expected;
        if !std::mem::replace(&mut branches.told, true) {
            self.sum_is_known(key, expected);
        }
        let Some(legs) = self.legs_mut(key).filter(|legs| legs.open == 0) else { return };
        debug_assert!(legs.branches.as_ref().is_some_and(|branches| branches.put_out == branches.expected));
        if expected == 0 {
            let name = self.kept_of(key).map(|kept| kept.content.name().to_vec()).unwrap_or_default();
            let Some(mut ended) = self.forget(key) else { return };
            ended.never_delivered();
            self.counters.refused_no_handler += 1;
            let content = Content::from_payload(no_handler(&String::from_utf8_lossy(&name)));
            let session = ended.session;
            self.send_outcome(ended, Some(Code::NoHandler), None, content, false);
            return self.close_if_session_finished(session);
        }
        if let Some(ended) = self.forget(key) {
            self.close_if_session_finished(ended.session);
        }
    }

    fn sum_is_known(&mut self, key: Key<Request>, expected: u32) {
        let Some(session) = self.requests.get(key).map(|request| request.session) else { return };
        let Some(branches) = self.branches_mut(key) else { return };
        let (timer, held) = (branches.timer.take(), std::mem::take(&mut branches.held));
        let bytes = std::mem::take(&mut branches.held_bytes);
        branches.put_out += held.len() as u32;
        self.kept_bytes -= bytes;
        if let Some(timer) = timer {
            self.timers.cancel(timer);
        }
        if expected > 0 {
            self.tell_legs(key, expected);
        }
        for mut reply in held {
            reply.leg = reply.leg.map(|leg| Leg { expected, ..leg });
            self.put_out(session, reply);
        }
    }

    /// Peers have had their time to say how many they asked.
    pub(crate) fn counts_overdue(&mut self, key: Key<Request>) {
        if let Some(branches) = self.branches_mut(key) {
            branches.timer = None;
        }
        self.give_up_counting(key, &format!("that takes {} ms at most", COUNT_TIME.as_millis()));
    }

    /// Branches that have not said how many they asked are one leg each, and are called back.
    fn give_up_counting(&mut self, key: Key<Request>, why: &str) {
        let Some(legs) = self.legs_mut(key) else { return };
        let (own, parts) = (legs.own, legs.states.len() as u32);
        let Some(branches) = self.branches_mut(key) else { return };
        let late: Vec<_> = (own..parts)
            .zip(&branches.left)
            .filter(|(_, left)| left.is_none())
            .map(|(part, _)| part)
            .collect();
        for part in late {
            let message = match self.part_state(key, part) {
                Some(LegState::Delivered(delivery)) => {
                    let tag = self.requests.get(key).map(|request| self.tag_of(request)).unwrap_or_default();
                    self.call_back_delivery(delivery, tag);
                    format!("the peer did not say in time whom it asked; some may have run ({why})")
                }
                None | Some(LegState::Ended) => continue,
                Some(LegState::Waiting) => {
                    format!("the peer had no credit for it; nobody was asked there ({why})")
                }
            };
            self.refuse_leg(key, part, message);
        }
    }

    /// A request that ends without an outcome leaves none that waits.
    pub(crate) fn drop_held_outcomes(&mut self, key: Key<Request>) {
        let Some(branches) = self.branches_mut(key) else { return };
        let (timer, bytes) = (branches.timer.take(), std::mem::take(&mut branches.held_bytes));
        branches.held.clear();
        self.kept_bytes -= bytes;
        if let Some(timer) = timer {
            self.timers.cancel(timer);
        }
    }

    /// The request and the part that a peer's delivery is for, if that still waits for it.
    fn open_branch(&self, conn: ConnId, delivery: u64) -> Option<(Key<Request>, u32)> {
        let key = Key::from_raw(delivery);
        let delivery = self.deliveries.get(key)?;
        self.handlers.get(delivery.handler).filter(|handler| handler.conn == conn)?;
        (self.part_state(delivery.request, delivery.leg)? == LegState::Delivered(key))
            .then_some((delivery.request, delivery.leg))
    }

    fn part_state(&self, key: Key<Request>, part: u32) -> Option<LegState> {
        super::leg_state(self.requests.get(key)?, part)
    }

    fn legs_mut(&mut self, key: Key<Request>) -> Option<&mut Legs> {
        match &mut self.requests.get_mut(key)?.state {
            RequestState::Broadcast(legs) => Some(legs),
            _ => None,
        }
    }

    fn branches_mut(&mut self, key: Key<Request>) -> Option<&mut Branches> {
        self.legs_mut(key)?.branches.as_deref_mut()
    }

    /// A part that is a branch: which, of which.
    fn branch_mut(&mut self, key: Key<Request>, part: u32) -> Option<(usize, &mut Branches)> {
        let legs = self.legs_mut(key)?;
        let branch = part.checked_sub(legs.own)? as usize;
        Some((branch, legs.branches.as_deref_mut()?))
    }
}
