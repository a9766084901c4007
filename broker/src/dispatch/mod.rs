//! Actions, their handlers and queues: who gets the next request, and when.

mod far;
mod ready;

use ringpost_protocol::{Code, Content, message::RequestFlags, time::Time};

pub(crate) use self::{far::Far, ready::Ready};
use crate::{
    Broker, ConnId, Policy,
    broker::Drain,
    slab::Key,
    state::{Action, Handler, Queue, Request, RequestState, Timer},
};

impl Broker {
    pub(crate) fn add_handler(&mut self, conn: ConnId, registration: u32, credit: u32, name: &[u8]) {
        let of_peer = self.connection(conn).is_some_and(|connection| connection.peer.is_some());
        let action = if of_peer { self.far_action_for(name) } else { self.action_for(name) };
        self.place_count += 1;
        let joined = self.place_count;
        let (held, legs) = (Vec::new(), Default::default());
        let key = self.handlers.insert(Handler {
            conn,
            action,
            joined,
            registration,
            credit,
            held,
            place: None,
            legs,
            retired: false,
            stuck: false,
            clogged: self.connection(conn).is_some_and(|connection| connection.clogged),
        });
        if let Some(connection) = self.connection_mut(conn) {
            connection.handlers.push(key);
        }
        if let Some(action) = self.actions.get_mut(action) {
            action.handlers.insert(joined, key);
            if action.handlers.len() == 1 {
                self.receivers_changed();
            }
        }
        self.offer_credit(key);
    }

    /// The action of that name. It is forgotten again when it has neither handlers nor anything that waits for them.
    pub(crate) fn action_for(&mut self, name: &[u8]) -> Key<Action> {
        if let Some(action) = self.action_by_name.get(name) {
            return *action;
        }
        // A copy: the name must not pin the buffer that it came in.
        let name = bytes::Bytes::copy_from_slice(name);
        let action = self.actions.insert(Action::new(name.clone(), self.config.policy, None));
        self.action_by_name.insert(name, action);
        action
    }

    pub(crate) fn forget_action_if_unused(&mut self, key: Key<Action>) {
        let unused = |action: &&Action| {
            action.handlers.is_empty() && action.queue.waiting == 0 && action.far.is_none()
        };
        if let Some(action) = self.actions.get(key).filter(unused) {
            self.action_by_name.remove(&action.name);
            self.actions.remove(key);
        }
    }

    pub(crate) fn set_credit(&mut self, key: Key<Handler>, credit: u32) {
        if let Some(handler) = self.handlers.get_mut(key) {
            handler.credit = credit;
            // One that has some left keeps its turn.
            if !handler.has_credit() {
                self.displace(key);
            }
            self.offer_credit(key);
        }
    }

    /// The handler takes nothing more. It is forgotten with the answer to the last thing that it holds.
    pub(crate) fn retire_handler(&mut self, key: Key<Handler>) {
        self.displace(key);
        let Some(handler) = self.handlers.get_mut(key).filter(|handler| !handler.retired) else { return };
        handler.retired = true;
        let (action, joined, legs) = (handler.action, handler.joined, std::mem::take(&mut handler.legs));
        for (request, leg) in legs {
            self.end_waiting_leg(request, leg);
        }
        self.leave_action(action, joined);
        self.offer_credit(key);
    }

    /// The handler is gone, and with it the attempts that it held.
    pub(crate) fn lose_handler(&mut self, key: Key<Handler>) {
        self.displace(key);
        let Some(handler) = self.handlers.remove(key) else { return };
        let mut lost: Vec<_> = Vec::with_capacity(handler.held.len());
        for delivery_key in handler.held {
            let Some(delivery) = self.deliveries.remove(delivery_key) else { continue };
            self.not_overdue(&delivery);
            if let Some(request) = self.requests.get(delivery.request) {
                let received = (request.received.mono, request.is_durable(), request.count);
                lost.push((received, delivery_key, delivery));
            }
        }
        let of_peer = self.is_peer(handler.conn);
        let leaves = self.drain != Drain::No
            || self.connection(handler.conn).is_some_and(|connection| connection.leaving);
        // What was accepted first is dispatched first again.
        lost.sort_unstable_by_key(|(received, _, _)| *received);
        let mut again = Vec::new();
        for (_, delivery_key, delivery) in lost {
            if of_peer && self.strand(delivery_key, &delivery) {
                continue;
            }
            self.counters.lost_attempts += 1;
            if let Some(request) = self.lose_attempt(delivery_key, &delivery, leaves) {
                again.push(request);
            }
        }
        for (request, leg) in handler.legs {
            self.end_waiting_leg(request, leg);
        }
        #[cfg(feature = "planted-bugs")]
        if self.config.is_planted(crate::PlantedBug::LostAttempt) {
            again.clear();
        }
        // The action may have been left by all, and registered anew since, when the handler was retired.
        let mut heir = handler.action;
        for request in again.into_iter().rev() {
            let name = self.kept_of(request).map(|kept| kept.content.name());
            let action = name.and_then(|name| self.action_by_name.get(name)).copied();
            // What is durable waits for a handler to come, also when the last one has left.
            let durable = self.requests.get(request).is_some_and(Request::is_durable);
            let name = name.filter(|_| action.is_none() && durable).map(<[u8]>::to_vec);
            match action.or_else(|| name.map(|name| self.action_for(&name))) {
                Some(action) => {
                    heir = action;
                    self.enqueue(action, request, true);
                }
                None => self.end_with_error(request, Code::HandlerLost, HANDLER_LOST.to_owned()),
            }
        }
        if !handler.retired {
            self.leave_action(handler.action, handler.joined);
        }
        self.dispatch(heir);
    }

    /// An action that is left by its last handler ends all that waits for it, but for what is durable, and what a peer may
    /// still take.
    fn leave_action(&mut self, mut action_key: Key<Action>, joined: u64) {
        let Some(action) = self.actions.get_mut(action_key) else { return };
        action.handlers.remove(&joined);
        if !action.handlers.is_empty() {
            return;
        }
        if let Some(near) = action.near {
            self.end_far(action_key, near);
            action_key = near;
        }
        self.receivers_changed();
        let Some(action) = self.actions.get(action_key) else { return };
        if !action.handlers.is_empty() {
            return;
        }
        let (name, line) = (action.name.clone(), action.queue.line.iter().copied().collect::<Vec<_>>());
        let has_far = action.far.is_some();
        for key in line {
            let ends = |request: &&Request| {
                request.is_queued() && !request.is_durable() && !(has_far && self.may_go_far(request))
            };
            let Some(request) = self.requests.get(key).filter(ends) else { continue };
            if request.attempt > 0 {
                self.end_with_error(key, Code::HandlerLost, HANDLER_LOST.to_owned());
            } else if self.drain != Drain::No {
                // Handlers leave because the server does; on another there may be some.
                let message =
                    "the server is leaving and its handlers have left; it has not run: send it to another";
                self.end_with_error(key, Code::Draining, message.to_owned());
            } else {
                let message = format!("the last handler of `{}` is gone", String::from_utf8_lossy(&name));
                self.end_with_error(key, Code::NoHandler, message);
            }
        }
        self.forget_action_if_unused(action_key);
    }

    /// Puts a request into its action's queue: at the end, or at the head when it was delivered before.
    pub(crate) fn enqueue(&mut self, action: Key<Action>, key: Key<Request>, at_head: bool) {
        let (Some(action_entry), Some(request)) = (self.actions.get_mut(action), self.requests.get_mut(key))
        else {
            return;
        };
        request.state = RequestState::Queued;
        request.action = action;
        let (durable, far) = (request.is_durable(), action_entry.far.is_some());
        let queue = &mut action_entry.queue;
        queue.waiting += 1;
        queue.bytes += request.content_bytes as usize;
        #[cfg(feature = "planted-bugs")]
        let at_head = at_head || self.config.is_planted(crate::PlantedBug::LastFirst);
        if at_head {
            queue.line.push_front(key)
        } else {
            queue.line.push_back(key)
        }
        if durable {
            self.payload_joins_queue(key);
        }
        if far {
            self.line_up_far(action, key, at_head);
        }
    }

    /// A request that waited ends. Its key stays in the line until it is met or swept out.
    pub(crate) fn left_queue(&mut self, key: Key<Action>, bytes: usize) {
        let Some(action) = self.actions.get_mut(key) else { return };
        let queue = &mut action.queue;
        queue.waiting -= 1;
        queue.bytes -= bytes;
        self.sweep(key);
        self.forget_action_if_unused(key);
    }

    /// Lets go of the keys that requests left behind in an action's line, if they are most of it.
    fn sweep(&mut self, key: Key<Action>) {
        let Some(queue) = self.actions.get_mut(key).map(|action| &mut action.queue) else { return };
        if queue.line.len() > 2 * queue.waiting + 32 {
            let requests = &self.requests;
            queue.line.retain(|key| requests.get(*key).is_some_and(Request::is_queued));
        }
    }

    /// Gives waiting requests to handlers with credit, as far as both go.
    pub(crate) fn dispatch(&mut self, action_key: Key<Action>) {
        loop {
            let Some(action) = self.actions.get_mut(action_key) else { return };
            if action.queue.waiting == 0 || action.ready.is_empty() {
                if action.queue.waiting > 0 && action.far.is_some() {
                    self.dispatch_far(action_key);
                }
                return;
            }
            if action.queue.absent > 0 && !self.first_is_here(action_key) {
                return;
            }
            if !self.may_dispatch() {
                return self.wait_for_pace(action_key);
            }
            self.dispatch_one(action_key);
        }
    }

    fn dispatch_one(&mut self, action_key: Key<Action>) {
        let Some(action) = self.actions.get_mut(action_key) else { return };
        while let Some(key) = action.queue.line.pop_front() {
            // A key may stand twice in the line after a redelivery; only the request's own state counts.
            if let Some(request) = self.requests.get(key).filter(|request| request.is_queued()) {
                if self.deliveries.is_full() {
                    self.counters.refused_overloaded += 1;
                    return self.end_with_error(key, Code::Overloaded, TOO_MANY_HELD.to_owned());
                }
                action.queue.waiting -= 1;
                action.queue.bytes -= request.content_bytes as usize;
                return self.dispatch_now(action_key, key, None);
            }
        }
    }

    /// Gives a request to the handler whose turn it is. The caller has seen that there is one. `content` comes with it
    /// if it has not been kept.
    pub(crate) fn dispatch_now(
        &mut self,
        action: Key<Action>,
        request: Key<Request>,
        content: Option<Content>,
    ) {
        let Some(handler) = self.actions.get(action).and_then(|action| action.ready.first()) else { return };
        self.count_dispatch();
        self.deliver(request, handler, content);
    }

    /// What a handler's free credit is used for: legs that wait for it, then its action's queue.
    pub(crate) fn offer_credit(&mut self, key: Key<Handler>) {
        let Some(handler) = self.handlers.get_mut(key) else { return };
        if handler.retired {
            if handler.held.is_empty() {
                let conn = handler.conn;
                self.handlers.remove(key);
                if let Some(connection) = self.connection_mut(conn) {
                    connection.handlers.retain(|handler| *handler != key);
                }
                self.close_if_finished(conn);
            }
            return;
        }
        while let Some(handler) = self.handlers.get_mut(key)
            && handler.has_credit()
            && let Some((request, leg)) = handler.legs.pop_front()
        {
            self.deliver_leg(request, leg, key);
        }
        let Some(action) = self.place(key) else { return };
        let Some(entry) = self.actions.get(action) else { return };
        if entry.queue.waiting > 0 {
            self.dispatch(action);
        } else if let Some(near) = entry.near {
            self.dispatch(near);
        }
    }

    /// Lets a handler with credit stand in line, if it does not yet.
    pub(crate) fn place(&mut self, key: Key<Handler>) -> Option<Key<Action>> {
        let handler = self.handlers.get_mut(key)?;
        let action = handler.action;
        if handler.has_credit() && handler.place.is_none() {
            self.place_count += 1;
            handler.place = Some(self.place_count);
            self.actions.get_mut(action)?.ready.insert(key, handler.held.len(), self.place_count);
        }
        Some(action)
    }

    /// Takes a handler out of the line.
    pub(crate) fn displace(&mut self, key: Key<Handler>) {
        if let Some(handler) = self.handlers.get_mut(key)
            && let Some(place) = handler.place.take()
            && let Some(action) = self.actions.get_mut(handler.action)
        {
            action.ready.remove(key, handler.held.len(), place);
        }
    }

    /// Whether the dispatch interval allows a dispatch now.
    pub(crate) fn may_dispatch(&self) -> bool {
        self.config.dispatch_interval.is_zero() || self.now.mono >= self.next_dispatch
    }

    pub(crate) fn count_dispatch(&mut self) {
        if !self.config.dispatch_interval.is_zero() {
            self.next_dispatch = self.now.mono + self.config.dispatch_interval;
        }
    }

    fn wait_for_pace(&mut self, action_key: Key<Action>) {
        if let Some(action) = self.actions.get_mut(action_key)
            && !action.paced
        {
            action.paced = true;
            self.paced.push_back(action_key);
        }
        if !self.pacing_set {
            self.pacing_set = true;
            self.timers.insert(self.next_dispatch.max(Time::ZERO), Timer::Pacing);
        }
    }

    /// The dispatch interval is over: the action whose turn it is dispatches one request.
    pub(crate) fn pacing_over(&mut self) {
        self.pacing_set = false;
        while self.may_dispatch()
            && let Some(key) = self.paced.pop_front()
        {
            if let Some(action) = self.actions.get_mut(key) {
                action.paced = false;
                self.dispatch(key);
            }
        }
        if let Some(first) = self.paced.front().copied() {
            self.wait_for_pace(first);
        }
    }
}

/// What a requester is told whose request nobody can take.
pub(crate) fn no_handler(action: &str) -> String {
    format!("nobody handles `{action}` now: start a handler for it, or check the name")
}

/// What a requester is told whose request finds no slot any more.
pub(crate) const TOO_MANY_HELD: &str =
    "handlers hold as many requests as the server can count: try again later";

/// What a requester is told whose request went down with its handler.
pub(crate) const HANDLER_LOST: &str = "the handler's connection was lost before it answered; it may have run";

impl Action {
    /// An action without anything. `near`: the one that it hangs at, if it is for handlers of peers.
    fn new(name: bytes::Bytes, policy: Policy, near: Option<Key<Action>>) -> Self {
        let (handlers, ready, queue) = (Default::default(), Ready::new(policy), Queue::default());
        Self { name, handlers, ready, queue, paced: false, far: None, near }
    }
}

impl Handler {
    pub(crate) fn has_credit(&self) -> bool {
        !self.retired && !self.stuck && !self.clogged && self.held.len() < self.credit as usize
    }
}

impl Request {
    pub(crate) fn is_queued(&self) -> bool {
        matches!(self.state, RequestState::Queued)
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.flags.has(RequestFlags::DURABLE)
    }

    pub(crate) fn wants_reply(&self) -> bool {
        !self.flags.has(RequestFlags::SEND)
    }
}
