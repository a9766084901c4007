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
    Broker, ConnId, Output,
    dispatch::HANDLER_LOST,
    durable::{Answered, By},
    peers::guests::Guest,
    slab::Key,
    state::{Delivery, Handler, Kept, LegState, Request, RequestState, Session, Timer},
};

impl Broker {
    /// Gives a request to a handler that has credit: its next attempt begins. `content` is what has not been kept.
    pub(crate) fn deliver(&mut self, key: Key<Request>, handler: Key<Handler>, content: Option<Content>) {
        let Some(request) = self.requests.get_mut(key) else { return };
        request.attempt += 1;
        if request.attempt > 1 {
            self.counters.redeliveries += 1;
        }
        // A durable request may need its content again whatever its attempts: those of leaving handlers do not count.
        let last = request.attempt >= request.max_attempts && !request.is_durable();
        if let Some(content) = content {
            if last {
                return self.deliver_content(key, handler, content);
            }
            self.keep(key, content);
        }
        let Some(kept) = self.requests.get(key).and_then(|request| self.kept.get_mut(request.kept?)) else {
            return;
        };
        let (content, durable) = if last {
            self.kept_bytes -= kept.content.uncounted_len();
            (std::mem::take(&mut kept.content), false)
        } else {
            (kept.content.clone(), kept.durable.is_some())
        };
        self.deliver_content(key, handler, content);
        if durable {
            self.drop_payload_if_over(key);
        }
    }

    pub(crate) fn deliver_content(&mut self, key: Key<Request>, handler: Key<Handler>, content: Content) {
        if let Some(delivery) = self.hold(key, handler, 0, true) {
            self.send_delivery(key, handler, delivery, content);
        }
    }

    /// Uses one unit of the handler's credit. `turn`: it goes behind the others of its action.
    pub(crate) fn hold(
        &mut self,
        request: Key<Request>,
        key: Key<Handler>,
        leg: u32,
        turn: bool,
    ) -> Option<Key<Delivery>> {
        #[cfg(feature = "planted-bugs")]
        let turn = turn && !self.config.is_planted(crate::PlantedBug::WrongFairness);
        let handler = self.handlers.get_mut(key)?;
        let before = handler.held.len();
        let place = u32::try_from(before).unwrap_or(u32::MAX);
        let delivery = self.deliveries.insert(Delivery { handler: key, request, leg, place, overdue: None });
        handler.held.push(delivery);
        let has_credit = handler.has_credit();
        // One that stands in no line is put into it by whoever is giving it work, when that is done.
        if let Some(place) = handler.place
            && let Some(action) = self.actions.get_mut(handler.action)
        {
            if !has_credit {
                handler.place = None;
                action.ready.remove(key, before, place);
            } else if turn {
                self.place_count += 1;
                handler.place = Some(self.place_count);
                action.ready.remove(key, before, place);
                action.ready.insert(key, before + 1, self.place_count);
            } else {
                action.ready.held_changed(key, before, before + 1, place);
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
        let durable = request.is_durable();
        // A broadcast's deliveries are noted with its legs.
        if !matches!(request.state, RequestState::Broadcast(_)) {
            request.state = RequestState::Delivered(delivery);
        }
        request.delivered_after_ms = millis_between(request.received.mono, self.now.mono);
        let (conn, bytes) = (handler.conn, content.len());
        if durable && self.is_peer(conn) {
            self.go_abroad(key, conn, delivery, content);
            self.use_window(conn, bytes);
            self.log_delivered(key, delivery, conn);
            return self.lease(key);
        }
        let Some(request) = self.requests.get(key) else { return };
        let mut message = Deliver {
            delivery: delivery.raw(),
            registration: handler.registration,
            flags: request.flags,
            attempt: request.attempt,
            time_left_ms: millis_between(self.now.mono, request.deadline),
            received_at_ms: request.received.wall_ms,
            // Over all boots of a log its counts never come again.
            request_id: RequestId {
                boot: if durable { self.config.log_id } else { boot },
                count: request.count,
            },
            content,
        };
        if request.kept.is_some()
            && let Some(guest) = self.guest(request)
        {
            (message.flags, message.request_id) = (guest.flags, guest.run.request);
        }
        self.send(conn, ServerMessage::Deliver(message));
        self.use_window(conn, bytes);
        if durable {
            self.log_delivered(key, delivery, conn);
            self.lease(key);
        }
    }

    pub(crate) fn answer(&mut self, conn: ConnId, answer: &mut Answer) {
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
        self.settle(conn, key, &delivery, answer);
        #[cfg(feature = "planted-bugs")]
        if self.config.is_planted(crate::PlantedBug::LostCredit) {
            return;
        }
        self.offer_credit(delivery.handler);
    }

    /// Takes a delivery from the handler that holds it, wherever that is.
    pub(crate) fn release_any(&mut self, key: Key<Delivery>) -> Option<Delivery> {
        let handler = self.deliveries.get(key)?.handler;
        let conn = self.handlers.get(handler)?.conn;
        self.release(conn, key)
    }

    /// Takes a delivery from the handler that holds it, on this connection: its slot is free again.
    fn release(&mut self, conn: ConnId, key: Key<Delivery>) -> Option<Delivery> {
        let handler_key = self.deliveries.get(key)?.handler;
        let handler = self.handlers.get_mut(handler_key).filter(|handler| handler.conn == conn)?;
        let delivery = self.deliveries.remove(key)?;
        // Whatever it sat on: it is alive.
        handler.stuck = false;
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
        self.not_overdue(&delivery);
        Some(delivery)
    }

    /// Tells a handler that nobody waits for its answer any more. It keeps the slot until it answers.
    pub(crate) fn call_back_delivery(&mut self, key: Key<Delivery>, tag: Tag) {
        let overdue_at = self.now.mono + self.config.stuck_after;
        let Some(delivery) = self.deliveries.get_mut(key) else { return };
        if delivery.overdue.is_none() {
            delivery.overdue = Some(self.timers.insert(overdue_at, Timer::Overdue(key)));
        }
        let request = delivery.request;
        if let Some(conn) = self.handlers.get(delivery.handler).map(|handler| handler.conn)
            && !(self.is_peer(conn) && self.withdraw(conn, key, request))
        {
            self.send(conn, ServerMessage::Cancel { delivery: key.raw(), tag });
        }
    }

    pub(crate) fn not_overdue(&mut self, delivery: &Delivery) {
        if let Some(timer) = delivery.overdue {
            self.timers.cancel(timer);
        }
    }

    /// A handler has sat on a delivery for long after it was called back: it gets nothing more until it answers.
    pub(crate) fn handler_is_stuck(&mut self, key: Key<Delivery>) {
        let Some(delivery) = self.deliveries.get_mut(key) else { return };
        delivery.overdue = None;
        let handler = delivery.handler;
        self.displace(handler);
        if let Some(handler) = self.handlers.get_mut(handler)
            && !handler.stuck
        {
            handler.stuck = true;
            self.counters.stuck_handlers += 1;
        }
    }

    /// What an answer means for its request, if that still waits for it.
    fn settle(&mut self, conn: ConnId, key: Key<Delivery>, delivery: &Delivery, answer: &mut Answer) {
        let Some(request) = self.current(key, delivery) else {
            // A handler that was called back says so, or was faster with its answer; neither changes the outcome.
            if answer.verdict != Verdict::Cancelled {
                self.counters.late_answers += 1;
            }
            return;
        };
        let (broadcast, durable) =
            (matches!(request.state, RequestState::Broadcast(_)), request.is_durable());
        if request.kept.is_some() && self.guest(request).is_some() {
            return self.guest_answered(conn, delivery.request, answer);
        }
        if durable {
            let Some(count) = self.connection(conn).map(|connection| connection.count) else { return };
            let answered = Answered { conn, connection: count, by: By::Sequence(answer.sequence) };
            let content = std::mem::take(&mut answer.content);
            return self.durable_answered(delivery.request, answer.verdict, content, answered);
        }
        let mut content = std::mem::take(&mut answer.content);
        let code = match answer.verdict {
            // From a peer: what became of it there. From anybody else it is an error like others.
            Verdict::Failed(code) | Verdict::Declined(code) if self.is_peer(conn) => {
                return self.settle_far(delivery, answer.verdict, code, content);
            }
            verdict => self.count_answer(verdict, &mut content),
        };
        if broadcast {
            self.end_leg(delivery.request, delivery.leg, code, content, true);
        } else {
            self.end_plain(delivery.request, code, content, true);
        }
    }

    /// What an answer to a durable request does.
    pub(crate) fn durable_answered(
        &mut self,
        key: Key<Request>,
        verdict: Verdict,
        mut content: Content,
        answered: Answered,
    ) {
        let send = self.requests.get(key).is_some_and(|request| !request.wants_reply());
        let code = self.count_answer(verdict, &mut content);
        if send && code.is_some() {
            return self.send_failed(key, verdict, &content, answered);
        }
        self.decide(key, code, content, Some(answered));
    }

    /// The error that a handler's answer stands for, if it does; an error always has a message.
    pub(crate) fn count_answer(&mut self, verdict: Verdict, content: &mut Content) -> Option<Code> {
        if verdict == Verdict::Reply {
            self.counters.replies += 1;
            return None;
        }
        self.counters.handler_errors += 1;
        if verdict == Verdict::Cancelled {
            *content = Content::from_payload("the handler gave up without being asked to");
        }
        if content.payload().is_empty() {
            *content = Content::from_parts(
                content.name(),
                content.options(),
                content.headers(),
                b"error without a message",
            );
        }
        Some(Code::Remote)
    }

    /// What a peer says of a request that it did not get an answer to.
    #[cold]
    fn settle_far(&mut self, delivery: &Delivery, verdict: Verdict, code: Code, content: Content) {
        let plain =
            |request: &Request| matches!(request.state, RequestState::Delivered(_)) && !request.is_durable();
        if !self.requests.get(delivery.request).is_some_and(plain) {
            return self.branch_failed(delivery, verdict, code, content);
        }
        match (verdict, code) {
            (Verdict::Declined(_), _) => self.declined(delivery.request, delivery.handler, code, content),
            (_, Code::HandlerLost) => self.lost_at_peer(delivery.request, content),
            _ => self.end_with_content(delivery.request, code, content),
        }
    }

    /// The request of a delivery, if it still waits for this one, and for no later one.
    fn current(&self, key: Key<Delivery>, delivery: &Delivery) -> Option<&Request> {
        let request = self.requests.get(delivery.request)?;
        let waits = match &request.state {
            RequestState::Delivered(current) => *current == key,
            RequestState::Broadcast(legs) => {
                legs.states.get(delivery.leg as usize) == Some(&LegState::Delivered(key))
            }
            _ => false,
        };
        waits.then_some(request)
    }

    /// An attempt went down with its handler. The request is returned if it has attempts left.
    /// `leaves`: the handler was leaving, which uses up no attempt of a durable request.
    pub(crate) fn lose_attempt(
        &mut self,
        key: Key<Delivery>,
        delivery: &Delivery,
        leaves: bool,
    ) -> Option<Key<Request>> {
        self.current(key, delivery)?;
        if leaves {
            self.attempt_does_not_count(delivery.request);
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

    pub(crate) fn progress(&mut self, conn: ConnId, progress: &mut Progress) {
        let key = Key::from_raw(progress.number);
        let Some(delivery) = self.deliveries.get(key) else { return };
        let held_here = self.handlers.get(delivery.handler).is_some_and(|handler| handler.conn == conn);
        let Some(request) = self.current(key, delivery).filter(|_| held_here) else { return };
        let request_key = delivery.request;
        if request.is_durable() {
            self.lease(request_key);
        } else if self.guest(request).is_some() {
            return self.guest_progresses(request_key, std::mem::take(&mut progress.content));
        }
        let Some(request) = self.requests.get(request_key) else { return };
        if request.flags.has(RequestFlags::PROGRESS)
            && let Some(session) = self.sessions.get(request.session)
        {
            let Some(conn) = session.listens() else { return };
            let content = std::mem::take(&mut progress.content);
            let message = Progress { number: request.number, tag: self.tag_of(request), content };
            self.send(conn, ServerMessage::Progress(message));
        }
    }

    /// A payload that is not JSON met a JSON connection: that request fails, whichever half it is.
    pub(crate) fn undeliverable(&mut self, conn: ConnId, message: &mut ServerMessage) {
        self.counters.undeliverable += 1;
        match message {
            ServerMessage::Deliver(deliver) => {
                let key = Key::from_raw(deliver.delivery);
                let Some(delivery) = self.release(conn, key) else { return };
                if let Some(request) = self.current(key, &delivery) {
                    let message = "the handler speaks JSON and the request's payload or options are not JSON";
                    match request.state {
                        RequestState::Broadcast(_) => {
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
                let reply = Reply { code: Some(Code::Unsupported), content, ..std::mem::take(reply) };
                // In the place of the one that it stands for: a close may be on its way behind that.
                self.outputs.push_front(Output::Send { conn, message: ServerMessage::Reply(reply) });
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

    /// Ends a request with an error that somebody else has put into words.
    pub(crate) fn end_with_content(&mut self, key: Key<Request>, code: Code, content: Content) {
        // The name of an error's content is the handler's own code: a peer's words have none.
        let content = Content::from_payload(content.payload_bytes());
        self.end(key, Some(code), content, false);
    }

    /// Ends a request: its one outcome goes to the requester.
    fn end(&mut self, key: Key<Request>, code: Option<Code>, content: Content, handled: bool) {
        if self.requests.get(key).is_some_and(Request::is_durable) {
            return self.decide(key, code, content, None);
        }
        self.end_plain(key, code, content, handled);
    }

    pub(crate) fn end_plain(
        &mut self,
        key: Key<Request>,
        code: Option<Code>,
        content: Content,
        handled: bool,
    ) {
        let Some(mut request) = self.forget(key) else { return };
        if let Some(guest) = request.guest.take() {
            return self.guest_failed(*guest, request.attempt, code.unwrap_or(Code::Remote), content);
        }
        let session = request.session;
        if request.wants_reply() {
            self.send_outcome(request, code, None, content, handled);
        }
        self.close_if_session_finished(session);
    }

    pub(crate) fn send_outcome(
        &mut self,
        request: Ended,
        code: Option<Code>,
        leg: Option<Leg>,
        content: Content,
        handled: bool,
    ) {
        let session = request.session;
        let reply = self.outcome(request, code, leg, content, handled);
        self.put_out(session, reply);
    }

    /// An outcome, as it is put out now or later.
    #[inline]
    pub(crate) fn outcome(
        &self,
        request: Ended,
        code: Option<Code>,
        leg: Option<Leg>,
        content: Content,
        handled: bool,
    ) -> Reply {
        let handled_after_ms =
            if handled { millis_between(request.received.mono, self.now.mono) } else { u32::MAX };
        Reply {
            number: request.number,
            tag: request.tag,
            sequence: 0,
            code,
            leg,
            attempt: request.attempt,
            received_at_ms: request.received.wall_ms,
            delivered_after_ms: request.delivered_after_ms,
            handled_after_ms,
            content,
        }
    }

    /// Takes a request out of all tables. Handlers that hold it keep their slot until they answer.
    pub(crate) fn forget(&mut self, key: Key<Request>) -> Option<Ended> {
        let request = self.requests.get(key)?;
        let (timer, kept) = (request.timer, request.kept);
        let (queued, action, content_bytes) = (request.is_queued(), request.action, request.content_bytes);
        let mut ended = request.ended(Tag::new());
        self.requests.remove(key);
        self.timers.cancel(timer);
        if let Some(kept) = kept.and_then(|kept| self.kept.remove(kept)) {
            self.kept_bytes -= kept.content.uncounted_len();
            if let Some(durable) = &kept.durable {
                self.payload_bytes.subtract(durable.payload, content_bytes as usize);
                self.forget_durable(key, durable);
            }
            (ended.tag, ended.guest) = (kept.tag, kept.guest);
        }
        if let Some(session) = self.sessions.get_mut(ended.session) {
            session.open.remove(&ended.number);
            session.durable -= usize::from(ended.flags.has(RequestFlags::DURABLE));
            if !ended.tag.is_empty() && session.by_tag.get(&ended.tag) == Some(&ended.number) {
                session.by_tag.remove(&ended.tag);
            }
        }
        if queued {
            self.left_queue(action, content_bytes as usize);
        }
        Some(ended)
    }

    pub(crate) fn kept_of(&self, key: Key<Request>) -> Option<&Kept> {
        self.kept.get(self.requests.get(key)?.kept?)
    }

    /// JSON's `clientId` of a request; empty in the binary dialect.
    pub(crate) fn tag_of(&self, request: &Request) -> Tag {
        request.kept.and_then(|kept| self.kept.get(kept)).map(|kept| kept.tag.clone()).unwrap_or_default()
    }
}

/// What is left of a request when it is over: what its outcome says.
pub(crate) struct Ended {
    pub(crate) session: Key<Session>,
    number: u64,
    tag: Tag,
    flags: RequestFlags,
    attempt: u16,
    received: Now,
    delivered_after_ms: u32,
    pub(crate) guest: Option<Box<Guest>>,
}

impl Request {
    /// What an outcome says of this request.
    pub(crate) fn ended(&self, tag: Tag) -> Ended {
        Ended {
            session: self.session,
            number: self.number,
            tag,
            flags: self.flags,
            attempt: self.attempt,
            received: self.received,
            delivered_after_ms: self.delivered_after_ms,
            guest: None,
        }
    }
}

impl Ended {
    /// Of a leg that no handler got, whatever became of the others.
    pub(crate) fn never_delivered(&mut self) {
        (self.attempt, self.delivered_after_ms) = (0, u32::MAX);
    }

    fn wants_reply(&self) -> bool {
        !self.flags.has(RequestFlags::SEND)
    }
}

/// Whole milliseconds from `from` to `to`; the wire's mark for "none", all ones, never comes out of it.
pub(crate) fn millis_between(from: Time, to: Time) -> u32 {
    u32::try_from(to.since(from).as_millis()).unwrap_or(u32::MAX).min(u32::MAX - 1)
}
