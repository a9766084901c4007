//! What must hold between any two inputs. Simulations and tests check it after each step.

use std::collections::{BTreeSet, HashMap};

use crate::{
    Broker,
    dispatch::Ready,
    durable::{Durable, Payload, PayloadBytes},
    session::MAX_FORMER,
    slab::Key,
    state::{Action, Connection, Kept, LegState, Request, RequestState},
};

impl Broker {
    /// Checks all that must hold between two inputs. Takes time in proportion to all that the broker holds.
    ///
    /// # Panics
    /// With what does not hold.
    pub fn check_invariants(&self) {
        self.check_requests();
        self.check_payloads();
        self.check_deliveries();
        self.check_handlers();
        self.check_actions();
    }

    /// Every request is open in its session, exactly once, and has a timer.
    fn check_requests(&self) {
        let open: usize = self.sessions.iter().map(|(_, session)| session.open.len()).sum();
        let orphan = |request: &Request| {
            !self.sessions.contains(request.session)
                && (request.is_durable() || self.guest(request).is_some())
        };
        let orphans = self.requests.iter().filter(|(_, request)| orphan(request)).count();
        assert_eq!(
            open + orphans,
            self.requests.len(),
            "open numbers = requests, but for those without a session"
        );
        let kept = self.requests.iter().filter(|(_, request)| request.kept.is_some()).count();
        assert_eq!(kept, self.kept.len(), "what is kept belongs to a request");
        let beside = |kept: &Kept| kept.durable.as_ref().map_or(0, |durable| durable.bytes());
        let contents: usize =
            self.kept.iter().map(|(_, kept)| kept.content.uncounted_len() + beside(kept)).sum();
        let outcomes: usize =
            self.sessions.iter().map(|(_, session)| session.outcomes.uncounted_bytes()).sum();
        let held = |request: &Request| match &request.state {
            RequestState::Broadcast(legs) => {
                legs.branches.as_ref().map_or(0, |branches| branches.held_bytes())
            }
            _ => 0,
        };
        let held: usize = self.requests.iter().map(|(_, request)| held(request)).sum();
        assert_eq!(
            contents + outcomes + held + self.guest_bytes(),
            self.kept_bytes,
            "what is kept is counted"
        );
        for (key, request) in self.requests.iter() {
            let session = self.sessions.get(request.session);
            assert!(
                orphan(request)
                    || session.is_some_and(|session| session.open.get(&request.number) == Some(&key)),
                "{key:?} is open"
            );
            self.check_guest(key, request);
            let durable = self.durable(key);
            assert_eq!(durable.is_some(), request.is_durable(), "what is durable of {key:?}");
            match &request.state {
                RequestState::Logging => {}
                RequestState::Inquiring => {
                    let asked = self.inquiries.iter().filter(|inquiry| inquiry.asker == Some(key));
                    assert_eq!(asked.count(), 1, "{key:?} is worked at");
                }
                RequestState::Resting => assert!(durable.is_some(), "{key:?} rests"),
                RequestState::Dead => {
                    assert_eq!(self.dead.get(&request.count), Some(&key), "{key:?} is a dead letter");
                }
                RequestState::Decided => {
                    let decided = durable.is_some_and(|durable| durable.decided.is_some());
                    let claimed = durable.is_some_and(Durable::is_claimed);
                    assert!(decided || claimed && !request.wants_reply(), "the outcome of {key:?}");
                    assert!(!claimed || orphan(request), "{key:?} belongs to nobody any more");
                }
                RequestState::Joined => {
                    let keyed = durable.and_then(|durable| durable.keyed.as_deref());
                    assert!(keyed.is_some_and(|keyed| keyed.joins != 0), "{key:?} joined another");
                }
                RequestState::Queued => {
                    assert!(self.actions.contains(request.action), "queued {key:?} has a queue to be in");
                }
                RequestState::Delivered(delivery) => {
                    let delivery = self.deliveries.get(*delivery);
                    assert!(delivery.is_some_and(|delivery| delivery.request == key), "{key:?} is held");
                    assert!((1..=request.max_attempts).contains(&request.attempt), "attempts of {key:?}");
                }
                RequestState::Broadcast(legs) => {
                    let open = legs.states.iter().filter(|leg| **leg != LegState::Ended).count();
                    assert!(open == legs.open as usize && open > 0, "open legs of {key:?}");
                    assert!(legs.own as usize <= legs.states.len(), "branches are behind them");
                    legs.branches.iter().for_each(|branches| branches.check_invariants());
                }
            }
        }
        let claimed =
            self.kept.iter().filter(|(_, kept)| kept.durable.as_ref().is_some_and(|it| it.is_claimed()));
        assert_eq!(claimed.count(), self.claimed, "kept for their keys");
        for (former, key) in &self.formers {
            let durable = self.durable(*key);
            assert!(
                durable.is_some_and(|durable| durable.former.as_deref() == Some(former)),
                "{key:?} is waited for"
            );
            let rests = self.requests.get(*key).is_some_and(|it| matches!(it.state, RequestState::Resting));
            assert!(rests, "{key:?} waits for its handler");
        }
        for (name, key) in &self.keys {
            let keyed = self.durable(*key).and_then(|durable| durable.keyed.as_deref());
            assert!(
                keyed.is_some_and(|keyed| keyed.name == *name && keyed.joins == 0),
                "first under its key"
            );
        }
        for (name, key) in &self.session_by_name {
            assert!(self.sessions.get(*key).is_some_and(|session| session.name == *name), "session names");
        }
        for (key, session) in self.sessions.iter() {
            match session.conn {
                Some(conn) => {
                    let connection = self.connection(conn);
                    let mutual = connection.is_some_and(|connection| connection.session == Some(key));
                    assert!(
                        mutual && session.linger.is_none() && !session.away,
                        "{key:?} is attached to {conn}"
                    );
                }
                None => {
                    let kept = session.outlives && session.linger.is_some() || session.durable > 0;
                    assert!(kept && session.away, "{key:?} is away, not for ever")
                }
            }
            session.outcomes.check_invariants(self.config.outcome_limit_bytes);
            let durable =
                |request: &&Key<Request>| self.requests.get(**request).is_some_and(Request::is_durable);
            assert_eq!(session.durable, session.open.values().filter(durable).count(), "durable in {key:?}");
            for (sequence, request) in &session.durable_outcomes {
                let decided = self.durable(*request).and_then(|durable| durable.decided);
                assert!(decided.is_some_and(|it| it.stable && it.sequence == Some(*sequence)), "{request:?}");
            }
            let again = session.former.iter().any(|former| former.instance == session.speaker.instance);
            assert!(!again && session.former.len() <= MAX_FORMER, "{key:?} was others' before");
        }
        let away = self.sessions.iter().filter(|(_, session)| session.conn.is_none()).count();
        assert_eq!(away, self.detached, "sessions away");
        self.check_peers();
        let with_session = |connection: &&Connection| connection.session.is_some();
        let attached = self.connections.iter().flatten().filter(with_session).count();
        assert_eq!(attached + away, self.sessions.len(), "a session each");
    }

    /// Payloads are counted where they are, and one that is being read is read once.
    fn check_payloads(&self) {
        let (mut bytes, mut reading) = (PayloadBytes::default(), BTreeSet::new());
        for (key, request) in self.requests.iter() {
            let Some(durable) = self.durable(key) else { continue };
            bytes.add(durable.payload, request.content_bytes as usize);
            let decided = matches!(request.state, RequestState::Decided);
            assert!(!decided || durable.payload == Payload::None, "{key:?} needs its payload no more");
            if durable.payload.is_absent() {
                assert!(durable.places.request.is_some(), "{key:?} is in the log");
                assert!(self.kept_of(key).is_some_and(|kept| kept.content.payload().is_empty()), "{key:?}");
            }
            if durable.payload == Payload::Reading {
                reading.insert(key);
            }
        }
        assert_eq!(bytes, self.payload_bytes, "bytes of payloads");
        let asked: Vec<_> = self.journal.iter().flat_map(|journal| journal.reads.requests()).collect();
        let asked: Vec<_> =
            asked.into_iter().filter(|key| self.payload_of(*key) == Payload::Reading).collect();
        assert_eq!(
            (asked.len(), asked.into_iter().collect::<BTreeSet<_>>()),
            (reading.len(), reading),
            "reads"
        );
    }

    /// Every delivery stands in its handler's list, at the place that it says.
    fn check_deliveries(&self) {
        let held: usize = self.handlers.iter().map(|(_, handler)| handler.held.len()).sum();
        assert_eq!(held, self.deliveries.len(), "held = deliveries");
        for (key, delivery) in self.deliveries.iter() {
            let handler = self.handlers.get(delivery.handler);
            let place = delivery.place as usize;
            assert!(handler.is_some_and(|handler| handler.held.get(place) == Some(&key)), "place of {key:?}");
        }
    }

    /// A handler stands in line exactly while it has credit.
    fn check_handlers(&self) {
        let mut in_line = HashMap::new();
        for (_, action) in self.actions.iter() {
            match &action.ready {
                Ready::RoundRobin(turns) => {
                    for (place, key) in turns.iter() {
                        let handler = self.handlers.get(key);
                        assert!(
                            handler.is_some_and(|handler| handler.place == Some(place)),
                            "turn of {key:?}"
                        );
                        *in_line.entry(key.raw()).or_insert(0) += 1;
                    }
                }
                Ready::LeastBusy(order) => {
                    for (held, place, key) in order {
                        let handler = self.handlers.get(*key);
                        assert!(
                            handler.is_some_and(
                                |handler| handler.held.len() == *held && handler.place == Some(*place)
                            ),
                            "order of {key:?}"
                        );
                        *in_line.entry(key.raw()).or_insert(0) += 1;
                    }
                }
            }
        }
        for (key, handler) in self.handlers.iter() {
            let times = in_line.remove(&key.raw()).unwrap_or(0);
            assert_eq!(times, usize::from(handler.place.is_some()), "{key:?} in line");
            assert_eq!(handler.place.is_some(), handler.has_credit(), "{key:?} in line while it has credit");
            assert!(handler.legs.len() <= self.config.leg_queue_limit, "legs of {key:?}");
            assert!(handler.legs.is_empty() || !handler.has_credit(), "legs wait only for credit");
            let connection = self.connection(handler.conn);
            assert!(
                connection.is_some_and(|connection| connection.handlers.contains(&key)),
                "{key:?} is connected"
            );
            assert!(
                !(handler.retired && handler.held.is_empty()),
                "a retired handler without work is forgotten"
            );
        }
        assert!(in_line.is_empty(), "nobody unknown is in line");
    }

    /// Queues are counted, bounded, and empty while a handler has credit.
    fn check_actions(&self) {
        for (key, action) in self.actions.iter() {
            assert!(
                !action.handlers.is_empty() || action.queue.waiting > 0 || action.far.is_some(),
                "an action has handlers, or something waits for them"
            );
            self.check_far(key, action);
            for (joined, handler) in &action.handlers {
                let known = self.handlers.get(*handler);
                assert!(
                    known.is_some_and(|known| known.joined == *joined
                        && known.action == key
                        && !known.retired),
                    "{handler:?} handles its action"
                );
            }
            let named = action.near.unwrap_or(key);
            assert_eq!(self.action_by_name.get(&action.name), Some(&named), "an action is found by its name");
            let mut waiting: Vec<_> = action
                .queue
                .line
                .iter()
                .filter(|request| {
                    self.requests
                        .get(**request)
                        .is_some_and(|request| request.is_queued() && request.action == key)
                })
                .collect();
            waiting.sort_unstable();
            waiting.dedup();
            assert_eq!(waiting.len(), action.queue.waiting, "waiting in the queue");
            let bytes: usize = waiting
                .iter()
                .filter_map(|key| self.requests.get(**key))
                .map(|request| request.content_bytes as usize)
                .sum();
            assert_eq!(bytes, action.queue.bytes, "bytes in the queue");
            let absent = waiting.iter().map(|key| self.payload_of(**key));
            let absent = absent.filter(|payload| payload.is_absent()).count();
            assert_eq!(absent, action.queue.absent, "payloads that are not here");
            let first = action.queue.line.iter().find(|key| waiting.binary_search(key).is_ok());
            let read = first.is_some_and(|first| self.payload_of(*first) == Payload::Reading);
            let idle = action.queue.waiting > 0 && !action.ready.is_empty();
            assert!(!idle || action.paced || read, "nothing waits while a handler has credit");
        }
    }

    /// Handlers of peers are in an action of their own, which takes what may go there, and in which nothing waits.
    fn check_far(&self, key: Key<Action>, action: &Action) {
        for handler in action.handlers.values().filter_map(|handler| self.handlers.get(*handler)) {
            assert_eq!(self.is_peer(handler.conn), action.near.is_some(), "handlers of peers stand apart");
        }
        if let Some(near) = action.near {
            let far = self.actions.get(near).and_then(|near| near.far.as_ref());
            assert_eq!(far.map(|far| far.action), Some(key), "it hangs at another");
            assert!(!action.handlers.is_empty() && action.queue.waiting == 0 && action.far.is_none());
        }
        let Some(far) = &action.far else { return };
        let near = key;
        let ready = self.actions.get(far.action).is_some_and(|far| !far.ready.is_empty());
        let read = far.line.iter().any(|key| self.payload_of(*key).is_absent());
        let waits = |(key, request): &(Key<Request>, &Request)| {
            request.is_queued()
                && request.action == near
                && self.may_go_far(request)
                && !self.payload_of(*key).is_absent()
        };
        let eligible = self.requests.iter().filter(waits).map(|(request, _)| request);
        for request in eligible {
            assert!(!ready || action.paced || read, "{request:?} waits while a peer has credit");
            assert!(far.line.contains(&request), "{request:?} stands in line for peers");
        }
    }
}
