//! One request to all handlers of an action, leg by leg; those of peers, branch by branch.

mod branches;

use ringpost_protocol::{
    Code, Content,
    message::{Leg, ServerMessage},
};

pub(crate) use self::branches::Branches;
use crate::{
    Broker, Speaks,
    dispatch::TOO_MANY_HELD,
    slab::Key,
    state::{Handler, LegState, Legs, Request, RequestState, Session},
};

impl Broker {
    /// Asks all handlers that the action has now. Their number is told at once, or when peers have said theirs.
    pub(crate) fn start_broadcast(&mut self, key: Key<Request>) {
        let Some(request) = self.requests.get(key) else { return };
        let Some(action) = self.actions.get(request.action) else { return };
        let (session, wants_reply) = (request.session, request.wants_reply());
        let mut handlers: Vec<_> = action.handlers.values().copied().collect();
        let own = handlers.len() as u32;
        if action.far.is_some() {
            handlers.extend(self.branches_to(action, session));
        }
        let count = handlers.len() - own as usize;
        let (states, open) = (vec![LegState::Waiting; handlers.len()], handlers.len() as u32);
        // Nobody counts the legs of a send.
        let branches = (count > 0 && wants_reply).then(|| Box::new(Branches::new(own, count)));
        let counts = branches.is_some();
        if let Some(request) = self.requests.get_mut(key) {
            request.state = RequestState::Broadcast(Box::new(Legs { open, own, states, branches }));
            request.attempt = 1;
        }
        if wants_reply && !counts {
            self.tell_legs(key, own);
        }
        self.count_dispatch();
        let mut waiting = false;
        for (leg, handler_key) in handlers.into_iter().enumerate() {
            let leg = leg as u32;
            let Some(handler) = self.handlers.get_mut(handler_key) else { continue };
            if handler.has_credit() {
                self.deliver_leg(key, leg, handler_key);
                continue;
            }
            if handler.legs.len() >= self.config.leg_queue_limit {
                // Those whose broadcast has ended meanwhile do not wait for anything.
                let requests = &self.requests;
                handler.legs.retain(|(request, _)| requests.contains(*request));
            }
            let behind = handler.legs.len();
            if behind < self.config.leg_queue_limit {
                handler.legs.push_back((key, leg));
                waiting = true;
            } else {
                self.counters.refused_legs += 1;
                let message = format!(
                    "this handler has no credit, and {behind} broadcasts wait for it already (the server's --leg-queue-limit)"
                );
                self.refuse_leg(key, leg, message);
            }
        }
        if !waiting
            && let Some(kept) = self.requests.get(key).and_then(|request| self.kept.get_mut(request.kept?))
        {
            self.kept_bytes -= std::mem::take(&mut kept.content).uncounted_len();
        }
        if counts {
            self.wait_for_counts(key);
        }
    }

    /// Tells a requester how many legs its broadcast has. In JSON each outcome says it.
    fn tell_legs(&mut self, key: Key<Request>, expected: u32) {
        let Some(request) = self.requests.get(key) else { return };
        let (number, session) = (request.number, request.session);
        if let Some(conn) = self.sessions.get(session).and_then(Session::listens)
            && self.connection(conn).is_some_and(|connection| connection.speaks == Speaks::Binary)
        {
            #[cfg(feature = "planted-bugs")]
            let expected = expected + u32::from(self.config.is_planted(crate::PlantedBug::WrongLegs));
            self.send(conn, ServerMessage::Legs { number, expected });
        }
    }

    /// Gives a leg to its handler, which has credit.
    pub(crate) fn deliver_leg(&mut self, key: Key<Request>, leg: u32, handler: Key<Handler>) {
        if self.requests.get(key).and_then(|request| leg_state(request, leg)) != Some(LegState::Waiting) {
            return;
        }
        if self.deliveries.is_full() {
            return self.refuse_leg(key, leg, TOO_MANY_HELD.to_owned());
        }
        let Some(content) = self.kept_of(key).map(|kept| kept.content.clone()) else { return };
        let Some(delivery) = self.hold(key, handler, leg, false) else { return };
        if let Some(RequestState::Broadcast(legs)) =
            self.requests.get_mut(key).map(|request| &mut request.state)
            && let Some(state) = legs.states.get_mut(leg as usize)
        {
            *state = LegState::Delivered(delivery);
            self.counters.forwarded += u64::from(leg >= legs.own);
        }
        self.send_delivery(key, handler, delivery, content);
    }

    fn refuse_leg(&mut self, key: Key<Request>, leg: u32, message: String) {
        self.counters.refused_overloaded += 1;
        self.end_leg(key, leg, Some(Code::Overloaded), Content::from_payload(message), false);
    }

    /// A leg whose handler went before it got it.
    pub(crate) fn end_waiting_leg(&mut self, key: Key<Request>, leg: u32) {
        let content = Content::from_payload("the handler went before it got this");
        self.end_leg(key, leg, Some(Code::HandlerLost), content, false);
    }

    /// Ends a leg, and with the last one the broadcast. A leg that has ended stays as it is.
    pub(crate) fn end_leg(
        &mut self,
        key: Key<Request>,
        leg: u32,
        code: Option<Code>,
        content: Content,
        handled: bool,
    ) {
        let Some(request) = self.requests.get(key) else { return };
        let Some(state) = leg_state(request, leg).filter(|state| *state != LegState::Ended) else { return };
        if has_branches(request) {
            return self.end_part(key, leg, code, content, handled);
        }
        let (wants_reply, tag) = (request.wants_reply(), self.tag_of(request));
        let (session, mut of) = (request.session, request.ended(tag));
        if state == LegState::Waiting {
            of.never_delivered();
        }
        let mut expected = 0;
        let mut open = 0;
        if let Some(RequestState::Broadcast(legs)) =
            self.requests.get_mut(key).map(|request| &mut request.state)
        {
            legs.states[leg as usize] = LegState::Ended;
            legs.open -= 1;
            (expected, open) = (legs.states.len() as u32, legs.open);
        }
        if wants_reply {
            self.send_outcome(of, code, Some(Leg { index: leg, expected }), content, handled);
        }
        if open == 0 {
            self.forget(key);
            self.close_if_session_finished(session);
        }
    }
}

/// Whether a request is a broadcast whose legs are not all known from the start.
fn has_branches(request: &Request) -> bool {
    matches!(&request.state, RequestState::Broadcast(legs) if legs.branches.is_some())
}

fn leg_state(request: &Request, leg: u32) -> Option<LegState> {
    match &request.state {
        RequestState::Broadcast(legs) => legs.states.get(leg as usize).copied(),
        _ => None,
    }
}

impl Legs {
    /// Outcomes of legs that were put out.
    pub(crate) fn put_out(&self) -> u32 {
        match &self.branches {
            Some(branches) => branches.put_out,
            None => self.states.len() as u32 - self.open,
        }
    }
}
