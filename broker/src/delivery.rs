//! What handlers hold, what their answers do, and how a request ends.

use ringpost_protocol::{
    Code, Content,
    message::{
        Answer, Deliver, ErrorReport, Leg, Progress, Reply, RequestFlags, RequestId, Scope, ServerMessage,
        Tag, Verdict,
    },
    time::{Now, Time},
};

use crate::{
    Broker, ConnId,
    accept::SHARED_BUFFER_BYTES,
    dispatch::HANDLER_LOST,
    slab::Key,
    state::{Delivery, Handler, LegState, Request, RequestState, Session},
};

impl Broker {
    /// Gives a request to a handler that has credit: its next attempt begins.
    pub(crate) fn deliver(&mut self, key: Key<Request>, handler: Key<Handler>) {
        let Some(request) = self.requests.get_mut(key) else { return };
        request.attempt += 1;
        let attempt = request.attempt;
        if attempt > 1 {
            self.counters.redeliveries += 1;
        }
        let content = if attempt < request.max_attempts {
            // It may be needed once more: keep it without the read buffer that it came in.
            request.content.detach(SHARED_BUFFER_BYTES);
            request.content.clone()
        } else {
            std::mem::take(&mut request.content)
        };
        let Some(delivery) = self.hold(key, handler, 0, true) else { return };
        if let Some(request) = self.requests.get_mut(key) {
            request.state = RequestState::Delivered(delivery);
        }
        self.send_delivery(key, handler, delivery, content);
    }

    /// Uses one unit of the handler's credit. `turn`: it goes behind the others of its action.
    pub(crate) fn hold(
        &mut self,
        request: Key<Request>,
        key: Key<Handler>,
        leg: u32,
        turn: bool,
    ) -> Option<Key<Delivery>> {
        if turn {
            self.displace(key);
        }
        let handler = self.handlers.get_mut(key)?;
        let before = handler.held.len();
        let place = u32::try_from(before).unwrap_or(u32::MAX);
        let delivery = self.deliveries.insert(Delivery { handler: key, request, leg, place });
        handler.held.push(delivery);
        match handler.place {
            Some(_) if !handler.has_credit() => {
                // Still counted as it was when it was put into the line.
                handler.held.pop();
                self.displace(key);
                self.handlers.get_mut(key)?.held.push(delivery);
            }
            Some(place) => {
                let action = handler.action;
                self.actions.get_mut(action)?.ready.held_changed(key, before, before + 1, place);
            }
            None => {
                self.place(key);
            }
        }
        Some(delivery)
    }

    pub(crate) fn send_delivery(
        &mut self,
        key: Key<Request>,
        handler: Key<Handler>,
        delivery: Key<Delivery>,
        content: Content,
    ) {
        let boot = self.config.boot;
        let (Some(request), Some(handler)) = (self.requests.get_mut(key), self.handlers.get(handler)) else {
            return;
        };
        self.counters.deliveries += 1;
        request.delivered_after_ms = millis_between(request.received.mono, self.now.mono);
        let message = Deliver {
            delivery: delivery.raw(),
            registration: handler.registration,
            flags: request.flags,
            attempt: request.attempt,
            time_left_ms: millis_between(self.now.mono, request.deadline),
            received_at_ms: request.received.wall_ms,
            request_id: RequestId { boot, count: request.count },
            content,
        };
        let conn = handler.conn;
        self.send(conn, ServerMessage::Deliver(message));
    }

    pub(crate) fn answer(&mut self, conn: ConnId, answer: Answer) {
        let key = Key::from_raw(answer.delivery);
        let Some(delivery) = self.release(conn, key) else {
            self.counters.foreign_answers += 1;
            let message =
                "this connection does not hold that delivery: it was answered before, or is another's"
                    .to_owned();
            let report = ErrorReport {
                scope: Scope::Delivery,
                number: answer.delivery,
                code: Code::Malformed,
                message,
            };
            return self.send(conn, ServerMessage::Error(report));
        };
        self.settle(key, &delivery, answer);
        self.offer_credit(delivery.handler);
    }

    /// Takes a delivery from the handler that holds it: its slot is free again.
    fn release(&mut self, conn: ConnId, key: Key<Delivery>) -> Option<Delivery> {
        let handler_key = self.deliveries.get(key)?.handler;
        let handler = self.handlers.get_mut(handler_key).filter(|handler| handler.conn == conn)?;
        let delivery = self.deliveries.remove(key)?;
        let before = handler.held.len();
        handler.held.swap_remove(delivery.place as usize);
        if let Some(moved) =
            handler.held.get(delivery.place as usize).and_then(|moved| self.deliveries.get_mut(*moved))
        {
            moved.place = delivery.place;
        }
        if let Some(place) = handler.place
            && let Some(action) = self.actions.get_mut(handler.action)
        {
            action.ready.held_changed(handler_key, before, before - 1, place);
        }
        Some(delivery)
    }

    /// What an answer means for its request, if that still waits for it.
    fn settle(&mut self, key: Key<Delivery>, delivery: &Delivery, answer: Answer) {
        if !self.is_current(key, delivery) {
            // A handler that was called back says so, or was faster with its answer; neither changes the outcome.
            if answer.verdict != Verdict::Cancelled {
                self.counters.late_answers += 1;
            }
            return;
        }
        let (code, mut content) = match answer.verdict {
            Verdict::Reply => {
                self.counters.replies += 1;
                (None, answer.content)
            }
            Verdict::Error | Verdict::Retry(_) | Verdict::Reject => {
                self.counters.handler_errors += 1;
                (Some(Code::Remote), answer.content)
            }
            Verdict::Cancelled => {
                self.counters.handler_errors += 1;
                (Some(Code::Remote), Content::from_payload("the handler gave up without being asked to"))
            }
        };
        if code.is_some() && content.payload().is_empty() {
            content = Content::from_parts(
                content.name(),
                content.options(),
                content.headers(),
                b"error without a message",
            );
        }
        match self.requests.get(delivery.request).map(|request| &request.state) {
            Some(RequestState::Broadcast(_)) => {
                self.end_leg(delivery.request, delivery.leg, code, content, true)
            }
            _ => self.end(delivery.request, code, content, true),
        }
    }

    /// Whether the request still waits for this delivery, and for no later one.
    fn is_current(&self, key: Key<Delivery>, delivery: &Delivery) -> bool {
        match self.requests.get(delivery.request).map(|request| &request.state) {
            Some(RequestState::Delivered(current)) => *current == key,
            Some(RequestState::Broadcast(legs)) => {
                legs.states.get(delivery.leg as usize) == Some(&LegState::Delivered(key))
            }
            Some(RequestState::Queued) | None => false,
        }
    }

    /// An attempt went down with its handler. The request is returned if it has attempts left.
    pub(crate) fn lose_attempt(&mut self, key: Key<Delivery>, delivery: &Delivery) -> Option<Key<Request>> {
        if !self.is_current(key, delivery) {
            return None;
        }
        let request = self.requests.get(delivery.request)?;
        if matches!(request.state, RequestState::Broadcast(_)) {
            let content = Content::from_payload(HANDLER_LOST);
            self.end_leg(delivery.request, delivery.leg, Some(Code::HandlerLost), content, false);
            return None;
        }
        if request.attempt < request.max_attempts {
            return Some(delivery.request);
        }
        self.end_with_error(delivery.request, Code::HandlerLost, HANDLER_LOST.to_owned());
        None
    }

    pub(crate) fn progress(&mut self, conn: ConnId, progress: Progress) {
        let key = Key::from_raw(progress.number);
        let Some(delivery) = self.deliveries.get(key) else { return };
        let held_here = self.handlers.get(delivery.handler).is_some_and(|handler| handler.conn == conn);
        if !held_here || !self.is_current(key, delivery) {
            return;
        }
        let Some(request) = self.requests.get(delivery.request) else { return };
        if request.flags.has(RequestFlags::PROGRESS)
            && let Some(session) = self.sessions.get(request.session)
        {
            let (conn, content) = (session.conn, progress.content);
            let message = Progress { number: request.number, tag: request.tag.clone(), content };
            self.send(conn, ServerMessage::Progress(message));
        }
    }

    /// A payload that is not JSON met a JSON connection: that request fails, whichever half it is.
    pub(crate) fn undeliverable(&mut self, conn: ConnId, message: ServerMessage) {
        self.counters.undeliverable += 1;
        match message {
            ServerMessage::Deliver(deliver) => {
                let key = Key::from_raw(deliver.delivery);
                let Some(delivery) = self.release(conn, key) else { return };
                if self.is_current(key, &delivery) {
                    let message = "the handler speaks JSON and the request's payload or options are not JSON";
                    match self.requests.get(delivery.request).map(|request| &request.state) {
                        Some(RequestState::Broadcast(_)) => {
                            let content = Content::from_payload(message);
                            self.end_leg(
                                delivery.request,
                                delivery.leg,
                                Some(Code::Unsupported),
                                content,
                                false,
                            );
                        }
                        _ => self.end_with_error(delivery.request, Code::Unsupported, message.to_owned()),
                    }
                }
                self.offer_credit(delivery.handler);
            }
            ServerMessage::Reply(reply) if reply.code != Some(Code::Unsupported) => {
                let content = Content::from_payload(
                    "the reply's payload or options are not JSON, and this connection speaks JSON",
                );
                self.send(
                    conn,
                    ServerMessage::Reply(Reply { code: Some(Code::Unsupported), content, ..reply }),
                );
            }
            _ => {}
        }
    }

    /// Ends a request with an error of the broker's own; for a broadcast, all legs that are open.
    pub(crate) fn end_with_error(&mut self, key: Key<Request>, code: Code, message: String) {
        let content = Content::from_payload(message);
        match self.requests.get(key).map(|request| &request.state) {
            Some(RequestState::Broadcast(legs)) => {
                for leg in 0..legs.states.len() as u32 {
                    self.end_leg(key, leg, Some(code), content.clone(), false);
                }
            }
            Some(_) => {
                if code == Code::HandlerLost {
                    self.counters.handler_lost += 1;
                }
                self.end(key, Some(code), content, false);
            }
            None => {}
        }
    }

    /// Ends a request: its one outcome goes to the requester.
    fn end(&mut self, key: Key<Request>, code: Option<Code>, content: Content, handled: bool) {
        let Some(request) = self.forget(key) else { return };
        if request.wants_reply() {
            self.send_outcome(request.subject(), code, None, content, handled);
        }
        if let Some(session) = self.sessions.get(request.session) {
            self.close_if_finished(session.conn);
        }
    }

    pub(crate) fn send_outcome(
        &mut self,
        of: Subject,
        code: Option<Code>,
        leg: Option<Leg>,
        content: Content,
        handled: bool,
    ) {
        let Some(session) = self.sessions.get_mut(of.session) else { return };
        session.sequence += 1;
        let handled_after_ms =
            if handled { millis_between(of.received.mono, self.now.mono) } else { u32::MAX };
        let reply = Reply {
            number: of.number,
            tag: of.tag,
            sequence: session.sequence,
            code,
            leg,
            attempt: of.attempt,
            received_at_ms: of.received.wall_ms,
            delivered_after_ms: of.delivered_after_ms,
            handled_after_ms,
            content,
        };
        let conn = session.conn;
        self.send(conn, ServerMessage::Reply(reply));
    }

    /// Takes a request out of all tables. Handlers that hold it keep their slot until they answer.
    pub(crate) fn forget(&mut self, key: Key<Request>) -> Option<Request> {
        let request = self.requests.remove(key)?;
        self.timers.cancel(request.timer);
        if let Some(session) = self.sessions.get_mut(request.session) {
            session.open.remove(&request.number);
            if !request.tag.is_empty() && session.by_tag.get(&request.tag) == Some(&request.number) {
                session.by_tag.remove(&request.tag);
            }
        }
        if request.is_queued() {
            self.left_queue(request.action, request.content.len());
        }
        Some(request)
    }
}

/// What an outcome says of its request.
pub(crate) struct Subject {
    session: Key<Session>,
    number: u64,
    tag: Tag,
    attempt: u16,
    received: Now,
    delivered_after_ms: u32,
}

impl Request {
    pub(crate) fn subject(&self) -> Subject {
        Subject {
            session: self.session,
            number: self.number,
            tag: self.tag.clone(),
            attempt: self.attempt,
            received: self.received,
            delivered_after_ms: self.delivered_after_ms,
        }
    }
}

/// Whole milliseconds from `from` to `to`; the wire's mark for "none", all ones, never comes out of it.
fn millis_between(from: Time, to: Time) -> u32 {
    u32::try_from(to.since(from).as_millis()).unwrap_or(u32::MAX).min(u32::MAX - 1)
}
