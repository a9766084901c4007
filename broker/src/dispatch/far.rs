//! The second line of an action: handlers of peers, which get what no handler of this server has room for.
//!
//! They are an [`Action`] of their own, which no name leads to: it hangs at the one that the name leads to (`far` there,
//! `near` here). So turns, credit and loss are the same code for both; what is particular stands here:
//!
//! * Handlers of this server come first. A request goes to a peer when none of them has credit, or there is none.
//! * What came from a peer never goes there: one hop, so that no ring of servers hands a request round for ever. A
//!   [broadcast](crate::broadcast) goes to all of them at once.
//! * A peer may decline: it has not run there. That is no attempt, and the next one is asked; each at most once.
//! * Of durable requests an attempt goes there: [`crate::peers::abroad`] has what is particular of that.

use std::collections::VecDeque;

use ringpost_protocol::{Code, Content};

use super::{TOO_MANY_HELD, no_handler};
use crate::{
    Broker,
    dispatch::HANDLER_LOST,
    slab::Key,
    state::{Action, Handler, Request, Session},
};

/// What an action with handlers at peers has more than others.
#[derive(Debug)]
pub(crate) struct Far {
    /// The action that these handlers are in.
    pub(crate) action: Key<Action>,
    /// Of the requests that wait in the queue, those that may go to a peer, in the same order. Keys of others, left behind,
    /// are skipped.
    pub(crate) line: VecDeque<Key<Request>>,
}

impl Broker {
    /// The action that the handlers of peers are in, for this name.
    pub(super) fn far_action_for(&mut self, name: &[u8]) -> Key<Action> {
        let near = self.action_for(name);
        if let Some(far) = self.actions.get(near).and_then(|action| action.far.as_ref()) {
            return far.action;
        }
        let name = self.actions.get(near).map(|action| action.name.clone()).unwrap_or_default();
        let far = self.actions.insert(Action::new(name, self.config.policy, Some(near)));
        let waiting = self.actions.get(near).map(|action| &action.queue.line);
        let may = |key: &Key<Request>| {
            self.requests.get(*key).is_some_and(|request| request.is_queued() && self.may_go_far(request))
        };
        let line = waiting.into_iter().flatten().copied().filter(may).collect();
        if let Some(action) = self.actions.get_mut(near) {
            action.far = Some(Box::new(Far { action: far, line }));
        }
        far
    }

    /// Its last handler has left: the action that the name leads to stands alone again.
    pub(super) fn end_far(&mut self, far: Key<Action>, near: Key<Action>) {
        self.actions.remove(far);
        if let Some(action) = self.actions.get_mut(near) {
            action.far = None;
        }
    }

    /// Whether a request may be given to a peer's handler: it did not come from a peer, and none has declined it.
    pub(crate) fn may_go_far(&self, request: &Request) -> bool {
        let declined =
            || request.kept.and_then(|kept| self.kept.get(kept)).is_some_and(|it| !it.declined.is_empty());
        !self.is_from_peer(request.session) && !declined() && self.guest(request).is_none()
    }

    /// Whether a session's requests come from a peer.
    pub(crate) fn is_from_peer(&self, session: Key<Session>) -> bool {
        let conn = self.sessions.get(session).and_then(|session| session.conn);
        conn.and_then(|conn| self.connection(conn)).is_some_and(|connection| connection.peer.is_some())
    }

    /// A handler of a peer that has credit now, for a request that comes in.
    pub(crate) fn far_turn(&self, action: Key<Action>, session: Key<Session>) -> Option<Key<Handler>> {
        let far = self.actions.get(action)?.far.as_ref()?;
        let handler = self.actions.get(far.action)?.ready.first()?;
        (!self.is_from_peer(session)).then_some(handler)
    }

    /// Whether an action of peers has somebody with credit.
    fn far_is_ready(&self, near: Key<Action>) -> bool {
        let far = self.actions.get(near).and_then(|action| action.far.as_ref());
        far.and_then(|far| self.actions.get(far.action)).is_some_and(|action| !action.ready.is_empty())
    }

    /// A request has come into the queue of an action.
    #[cold]
    pub(super) fn line_up_far(&mut self, near: Key<Action>, key: Key<Request>, at_head: bool) {
        if !self.requests.get(key).is_some_and(|request| self.may_go_far(request)) {
            return;
        }
        let Some(action) = self.actions.get_mut(near) else { return };
        let waiting = action.queue.waiting;
        let Some(far) = &mut action.far else { return };
        if far.line.len() > 2 * waiting + 32 {
            let requests = &self.requests;
            far.line.retain(|key| requests.get(*key).is_some_and(Request::is_queued));
        }
        if at_head { far.line.push_front(key) } else { far.line.push_back(key) }
    }

    /// Gives waiting requests to handlers of peers with credit, as far as both go.
    #[cold]
    pub(super) fn dispatch_far(&mut self, near: Key<Action>) {
        while self.far_is_ready(near) {
            if !self.may_dispatch() {
                return self.wait_for_pace(near);
            }
            let Some(key) = self.next_far(near) else { return };
            if self.payload_of(key).is_absent() {
                // It is first in this line until it has been read.
                if let Some(far) = self.actions.get_mut(near).and_then(|action| action.far.as_mut()) {
                    far.line.push_front(key);
                }
                // What comes next in the action's own line mostly comes next in this one.
                self.first_is_here(near);
                return self.read_back(&[key]);
            }
            if self.deliveries.is_full() {
                self.counters.refused_overloaded += 1;
                self.end_with_error(key, Code::Overloaded, TOO_MANY_HELD.to_owned());
                continue;
            }
            let bytes = self.requests.get(key).map_or(0, |request| request.content_bytes as usize);
            let Some(action) = self.actions.get_mut(near) else { return };
            action.queue.waiting -= 1;
            action.queue.bytes -= bytes;
            let far = action.far.as_ref().map(|far| far.action);
            if let Some(handler) = far.and_then(|far| self.actions.get(far)?.ready.first()) {
                self.forward(key, handler, None);
            }
            self.sweep(near);
        }
    }

    /// The first request in line that still waits.
    fn next_far(&mut self, near: Key<Action>) -> Option<Key<Request>> {
        loop {
            let key = self.actions.get_mut(near)?.far.as_mut()?.line.pop_front()?;
            let waits = |request: &Request| request.is_queued() && request.action == near;
            if self.requests.get(key).is_some_and(|request| waits(request) && self.may_go_far(request)) {
                return Some(key);
            }
        }
    }

    /// Gives a request to a peer's handler, which has credit. Its content is kept whatever its attempts: the peer may decline.
    pub(crate) fn forward(&mut self, key: Key<Request>, handler: Key<Handler>, content: Option<Content>) {
        self.count_dispatch();
        let Some(request) = self.requests.get_mut(key) else { return };
        request.attempt += 1;
        self.counters.redeliveries += u64::from(request.attempt > 1);
        self.counters.forwarded += 1;
        if let Some(content) = content {
            self.keep(key, content);
        }
        let Some(kept) = self.kept_of(key) else { return };
        let (content, durable) = (kept.content.clone(), kept.durable.is_some());
        self.deliver_content(key, handler, content);
        if durable {
            self.drop_payload_if_over(key);
        }
    }

    /// A peer has not run a request that it was given, and will not. Others are asked that can take it now; if there are none,
    /// it waits for a handler of this server, or ends with what the peer said.
    #[cold]
    pub(crate) fn declined(&mut self, key: Key<Request>, by: Key<Handler>, code: Code, content: Content) {
        self.counters.declined += 1;
        let Some(request) = self.requests.get_mut(key) else { return };
        request.attempt = request.attempt.saturating_sub(1);
        let Some(kept) = request.kept.and_then(|kept| self.kept.get_mut(kept)) else { return };
        kept.declined.push(by);
        let (declined, ran) = (kept.declined.clone(), request.attempt > 0);
        // An earlier attempt may have run: then what this peer says is not the whole truth.
        let last_word = if ran { Code::HandlerLost } else { code };
        let content = if ran { Content::from_payload(HANDLER_LOST) } else { content };
        let name = kept.content.name().to_vec();
        let Some(near) = self.action_by_name.get(&name[..]).copied() else {
            return self.end_with_content(key, last_word, content);
        };
        let Some(action) = self.actions.get(near) else { return };
        if let Some(handler) = action.ready.first().filter(|_| self.may_dispatch()) {
            self.count_dispatch();
            return self.deliver(key, handler, None);
        }
        let far = action.far.as_ref().and_then(|far| self.actions.get(far.action));
        let next = far.and_then(|far| far.ready.iter().find(|handler| !declined.contains(handler)));
        if let Some(handler) = next {
            return self.forward(key, handler, None);
        }
        if !action.handlers.is_empty() {
            return self.enqueue(near, key, true);
        }
        let others = far.into_iter().flat_map(|far| far.handlers.values());
        if !ran && others.into_iter().any(|handler| !declined.contains(handler)) {
            self.counters.refused_overloaded += 1;
            let message = format!(
                "the peers that handle `{}` have no room for more: try again later",
                String::from_utf8_lossy(&name)
            );
            return self.end_with_error(key, Code::Overloaded, message);
        }
        self.end_with_content(key, last_word, content);
    }

    /// The handler at a peer was lost there, which the peer says itself.
    #[cold]
    pub(crate) fn lost_at_peer(&mut self, key: Key<Request>, content: Content) {
        self.counters.lost_attempts += 1;
        let Some(request) = self.requests.get(key) else { return };
        let name = self.kept_of(key).map(|kept| kept.content.name());
        let action = name.and_then(|name| self.action_by_name.get(name)).copied();
        match action.filter(|_| request.attempt < request.max_attempts) {
            Some(action) if self.is_handled(action, request.session) => {
                self.enqueue(action, key, true);
                self.dispatch(action);
            }
            _ => {
                self.counters.handler_lost += 1;
                let own = content.payload().is_empty();
                let content = if own { Content::from_payload(HANDLER_LOST) } else { content };
                self.end_with_content(key, Code::HandlerLost, content);
            }
        }
    }

    /// Whether there is anybody whom a session's requests for this action can go to.
    pub(crate) fn is_handled(&self, action: Key<Action>, session: Key<Session>) -> bool {
        self.actions.get(action).is_some_and(|action| {
            !action.handlers.is_empty() || action.far.is_some() && !self.is_from_peer(session)
        })
    }

    /// Why a plain request is refused whose action has handlers only at peers, if it is.
    #[cold]
    pub(crate) fn forbids_far(&self, action: Key<Action>, session: Key<Session>) -> Option<String> {
        let action = self.actions.get(action)?;
        let nobody = action.far.is_none() || self.is_from_peer(session);
        nobody.then(|| no_handler(&String::from_utf8_lossy(&action.name)))
    }
}
