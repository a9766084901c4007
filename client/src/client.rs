//! The client itself: inputs from driver and application, and what each of them leads to.

mod ending;
mod incoming;
mod legs;

use std::{borrow::Cow, collections::VecDeque};

use ringpost_protocol::{
    Code, Content,
    limits::{MAX_ACTION_BYTES, MAX_HEADERS_BYTES, MAX_OPTIONS_BYTES, check_name, check_own_name},
    message::{ClientMessage, Hello, PeerMessage, Request, ServerMessage, Speaker, Target, Verdict},
    time::Time,
};

pub use self::ending::Cut;
use crate::{
    ClientConfig, Error, RequestSpec,
    config::DEFAULT_TIMEOUT,
    deliveries::Deliveries,
    link::{Link, Phase},
    output::{DeliveryKey, Event, Output, RegistrationId, RequestKey},
    registrations::Registrations,
    requests::{Requests, check_payload, millis, too_many_legs},
    session::Session,
    unclaimed::UnclaimedKey,
};

/// A client of a Ringpost server. See the [crate]'s front page for how to drive it.
///
/// Its life: not started → dialing → greeting (hello sent) → ready → … → closed. A connection that is lost leads back
/// to dialing after a pause, unless the configuration or the reason forbids it.
///
/// * Requests made without a connection wait, in order, each until its own timeout.
/// * What was sent and has no outcome when a connection is lost stays open, until its own timeout: after the next
///   welcome the broker is asked for it. What it never saw is sent again; what it has runs on, or its outcome comes. Only
///   if the broker has restarted, or forgotten the session, or another client has had it meanwhile, such requests end with
///   [`Code::ConnectionLost`], for they may have run; those with attempts left are sent again.
/// * Registrations are made again after each welcome.
/// * Deliveries of a lost connection are cancelled, and answers to them dropped: the broker has moved on. Durable ones go on
///   until it is known whether the broker was restarted: a restarted one takes them back, and their answers with them.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    link: Link,
    session: Session,
    requests: Requests,
    registrations: Registrations,
    deliveries: Deliveries,
    /// The application wants the client to end when all is done, then at the latest.
    draining: Option<Time>,
    cut: Cut,
    outputs: VecDeque<Output>,
    counters: Counters,
}

/// What a client dropped or ignored, for diagnosis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Outcomes that came when nobody waited for them any more.
    pub late_replies: u64,
    /// Handlers' answers to deliveries that were not held any more.
    pub late_answers: u64,
    /// Answers that the broker did not want.
    pub refused_answers: u64,
    /// Connections that were lost.
    pub lost_connections: u64,
}

impl Client {
    /// A client that has not been started.
    pub fn new(config: ClientConfig) -> Self {
        Self {
            link: Link::new(config.seed),
            session: Session::new(!config.session.is_empty(), config.max_unclaimed),
            requests: Requests::new(config.timeout_grace, !config.session.is_empty(), config.peer.is_some()),
            registrations: Registrations::default(),
            deliveries: Deliveries::new(config.task_interval, !config.session.is_empty()),
            draining: None,
            cut: Cut::default(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            config,
        }
    }

    // From the driver.

    /// What the driver is to do next. Ask until it is `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Client::handle_timeout`] at the latest. It may be called earlier, and at any time.
    pub fn next_deadline(&self) -> Option<Time> {
        let next = [
            self.requests.next_deadline(),
            self.deliveries.next_deadline(),
            self.link.next_deadline(),
            self.session.next_deadline(),
            self.draining.filter(|_| !self.link.is_closed()).unwrap_or(Time::NEVER),
        ];
        let next = next.into_iter().min().unwrap_or(Time::NEVER);
        (next != Time::NEVER).then_some(next)
    }

    /// Begins to connect. Without effect when it was started before.
    pub fn start(&mut self, now: Time) {
        if self.link.phase == Phase::Idle {
            self.dial(now);
        }
    }

    /// The connection that was asked for is open.
    pub fn connected(&mut self, now: Time) {
        if self.link.phase != Phase::Dialing {
            self.outputs.push_back(Output::Disconnect);
            return;
        }
        self.link.greet(now);
        self.say(ClientMessage::Hello(Hello {
            session: self.config.session.clone(),
            speaker: Speaker { instance: self.config.instance, connection: self.link.connection },
            watch_receivers: self.config.watch_receivers,
            peer: self.config.peer.clone(),
            headers: self.config.headers.clone(),
        }));
    }

    /// The connection that was asked for could not be opened.
    pub fn connect_failed(&mut self, reason: impl Into<Cow<'static, str>>, now: Time) {
        self.turned_away(Error::new(Code::Connect, reason), now);
    }

    /// The connection that was asked for came to nothing, for a reason of its own: there is no secure key, or not the right
    /// one. It is no reason to give up for good: nobody has proven to be the server.
    pub fn turned_away(&mut self, error: Error, now: Time) {
        if self.link.phase == Phase::Dialing {
            self.link.failures += 1;
            self.go_on_or_finish(error, now);
        }
    }

    /// The connection ended by itself: end of stream, or an error on the socket, or bytes that are no protocol.
    pub fn disconnected(&mut self, reason: impl Into<Cow<'static, str>>, now: Time) {
        if self.link.is_connected() {
            self.lose(Error::new(Code::ConnectionLost, reason), now);
        }
    }

    /// A message came on the open connection.
    pub fn received(&mut self, message: ServerMessage, now: Time) {
        if !self.link.is_connected() {
            return;
        }
        self.link.heard(now);
        if self.link.phase != Phase::Ready {
            return self.received_in_greeting(message, now);
        }
        let outcome = match message {
            ServerMessage::Reply(reply) => self.replied(reply, now),
            ServerMessage::Deliver(deliver) => self.deliver(deliver, now),
            ServerMessage::Accepted { upto, .. } => {
                self.session.claims.replayed();
                self.requests.accepted(upto, &mut self.outputs);
                Ok(())
            }
            ServerMessage::Cancel { delivery, .. } => {
                let key = self.delivery_key(delivery);
                self.deliveries.cancel(key, &mut self.outputs);
                Ok(())
            }
            ServerMessage::Legs { number, expected } => {
                let possible = self.requests.legs(number, expected, &mut self.outputs);
                if possible { Ok(()) } else { Err(too_many_legs(expected)) }
            }
            other => self.received_seldom(other, now),
        };
        match outcome {
            Ok(()) => self.leave_if_done(now),
            Err(error) => {
                self.outputs.push_back(Output::Disconnect);
                self.lose(error, now);
            }
        }
    }

    /// Bytes came that do not complete a message yet: the server is there, however long its message takes.
    pub fn heard(&mut self, now: Time) {
        if self.link.is_connected() {
            self.link.heard(now);
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        self.acknowledge(now);
        self.requests.expire(now, &mut self.outputs);
        self.deliveries.release(now, &mut self.outputs);
        match self.link.phase {
            Phase::Pausing { until } if now >= until => self.dial(now),
            Phase::Greeting { until } if now >= until => {
                self.outputs.push_back(Output::Abort);
                self.lose(Error::new(Code::ConnectionLost, "the server did not answer the hello"), now);
            }
            Phase::Ready => self.check_liveness(now),
            _ => {}
        }
        self.leave_if_done(now);
        if self.draining.is_some_and(|until| now >= until) {
            self.close();
        }
    }

    // From the application.

    /// Offers to handle an action. `credit` is how many requests it will hold at once; 0 for the server's default.
    ///
    /// The broker's word on it comes as [`Output::Registered`] or [`Output::RegistrationFailed`].
    ///
    /// # Errors
    /// [`Code::Malformed`] or [`Code::ReservedName`] for a name that cannot be registered; when the client was closed,
    /// the reason.
    pub fn register(&mut self, action: &str, credit: u32) -> Result<RegistrationId, Error> {
        check_own_name(action.as_bytes())?;
        self.refuse_when_over()?;
        let id = self.registrations.add(action, credit);
        if self.link.takes_requests()
            && let Some(message) = self.registrations.message(id)
        {
            self.say(message);
        }
        Ok(id)
    }

    /// Handles an action no more. What is held may still be answered, and deliveries that crossed this on the way
    /// still come, until [`Output::Deregistered`].
    pub fn deregister(&mut self, id: RegistrationId) {
        if !self.registrations.holds(id) {
            return;
        }
        if self.link.phase == Phase::Ready {
            let fence = self.link.ping();
            if let Some(message) = self.registrations.leave(id, fence) {
                self.say(message);
                self.say(ClientMessage::Ping(fence));
            }
        } else if self.registrations.remove(id) {
            self.outputs.push_back(Output::Deregistered(id));
        }
    }

    /// Changes how many requests a registration will hold at once.
    pub fn set_credit(&mut self, id: RegistrationId, credit: u32) {
        if let Some(message) = self.registrations.set_credit(id, credit)
            && self.link.phase == Phase::Ready
        {
            self.say(message);
        }
    }

    /// Makes a request. Its outcome comes as [`Output::Complete`] with this token: one, or for a broadcast one for
    /// each leg. A send completes when the broker has accepted it.
    ///
    /// # Errors
    /// [`Code::Malformed`] for a bad action's name; [`Code::TooLarge`]; [`Code::Overloaded`] when there is no
    /// connection and too many requests wait for one; when the client was closed, the reason.
    pub fn request(&mut self, spec: RequestSpec, token: u64, now: Time) -> Result<RequestKey, Error> {
        self.refuse_when_over()?;
        check_name(spec.content.name())?;
        check_sizes(&spec.content)?;
        check_payload(&spec.content, self.link.max_payload)?;
        let timeout = [spec.timeout, self.config.default_request_timeout, DEFAULT_TIMEOUT]
            .into_iter()
            .find(|timeout| !timeout.is_zero())
            .unwrap_or(DEFAULT_TIMEOUT);
        let request = Request {
            number: 0,
            flags: spec.flags,
            max_attempts: spec.max_attempts,
            ttl_ms: millis(spec.ttl),
            timeout_ms: millis(timeout),
            content: spec.content,
        };
        if self.takes_requests() {
            let (key, message) = self.requests.send(request, token, now + timeout);
            self.say(message);
            return Ok(key);
        }
        if self.requests.waiting() >= self.config.max_pending {
            let waiting = self.requests.waiting();
            let message = format!(
                "{waiting} requests wait for a connection already, as many as `max_pending` allows; try again later"
            );
            return Err(Error::new(Code::Overloaded, message));
        }
        Ok(self.requests.wait(request, token, now + timeout))
    }

    /// Ends a request without its reply: it completes with [`Code::Cancelled`], and the broker is told. A send that
    /// has left goes on; only its completion is given up. `false` if the request had ended before.
    pub fn cancel(&mut self, key: RequestKey, now: Time) -> bool {
        let open = self.requests.is_open(key);
        let error = Error::new(Code::Cancelled, "cancelled by the requester");
        let number = self.requests.cancel(key, &error, &mut self.outputs);
        // Without a connection the broker learns it from what the next `resume` does not ask for.
        if let Some(number) = number.filter(|_| self.link.phase == Phase::Ready) {
            self.say(ClientMessage::Cancel(Target::Number(number)));
        }
        self.leave_if_done(now);
        open
    }

    /// A handler's answer to a delivery. It must come for every delivery, cancelled ones included: only then the
    /// broker gives the slot to another request. `false` if the delivery is not held any more, because it was answered
    /// before or its connection is gone.
    pub fn answer(&mut self, key: DeliveryKey, verdict: Verdict, content: Content, now: Time) -> bool {
        let (verdict, content) = checked(verdict, content, self.link.max_payload);
        let (answer, held) = match self.on_this_connection(key) {
            Some(key) => {
                let answer = self.deliveries.answer(key, verdict, content);
                let held = answer.is_some();
                (answer, held)
            }
            // The next server may want it.
            None => (None, self.deliveries.answer_former(key, verdict, content)),
        };
        self.counters.late_answers += u64::from(!held);
        self.outputs.extend(answer);
        self.leave_if_done(now);
        held
    }

    /// A handler is still at work; `content` may be empty. `false` if nobody waits for it, or if it is longer than the
    /// server takes: nothing is sent then.
    pub fn progress(&mut self, key: DeliveryKey, content: Content) -> bool {
        let fits =
            check_sizes(&content).and_then(|()| check_payload(&content, self.link.max_payload)).is_ok();
        let here = self.on_this_connection(key).filter(|_| fits);
        let progress = here.and_then(|key| self.deliveries.progress(key, content));
        let wanted = progress.is_some() || fits && self.deliveries.holds_former(key);
        self.outputs.extend(progress);
        wanted
    }

    /// What a delivery is called on the present connection, if that has it.
    fn on_this_connection(&self, key: DeliveryKey) -> Option<DeliveryKey> {
        let connection = self.link.connection;
        match self.deliveries.attached(key) {
            Some(delivery) => Some(DeliveryKey { connection, delivery }),
            None => {
                Some(key).filter(|key| key.connection == connection && !self.deliveries.holds_former(*key))
            }
        }
    }

    /// The application has an outcome of [`Output::Unclaimed`]: the broker may let go of it. `false` if that is not news,
    /// or if the broker has forgotten it meanwhile.
    pub fn claim(&mut self, key: UnclaimedKey, now: Time) -> bool {
        let taken = self.session.claims.take(key);
        // Without a connection the next `resume` says it.
        if taken && self.link.phase == Phase::Ready {
            self.session.owe(now);
            self.acknowledge(now);
        }
        taken
    }

    /// Why the server would not take this content in any message, if it would not.
    pub fn refuses_payload(&self, content: &Content) -> Option<Error> {
        check_payload(content, self.link.max_payload).err()
    }

    /// Of a server that speaks as a peer: says something of durable requests. `false` without a connection.
    pub fn say_to_peer(&mut self, message: Box<PeerMessage>) -> bool {
        let ready = self.link.phase == Phase::Ready;
        if ready {
            self.say(ClientMessage::Peer(message));
        }
        ready
    }

    /// Asks to be told the receivers once more, whether or not they change.
    pub fn ask_receivers(&mut self) {
        if self.config.watch_receivers && self.link.phase == Phase::Ready {
            self.say(ClientMessage::WatchReceivers(true));
        }
    }

    /// Whether to be told the receivers, now and on change.
    pub fn watch_receivers(&mut self, watch: bool) {
        if self.config.watch_receivers != watch {
            self.config.watch_receivers = watch;
            if self.link.phase == Phase::Ready {
                self.say(ClientMessage::WatchReceivers(watch));
            }
        }
    }

    // What a driver or a test may want to know.

    /// Whether the server said welcome on the present connection.
    pub fn is_ready(&self) -> bool {
        self.link.phase == Phase::Ready
    }

    /// Why the client is closed, if it is.
    pub fn closed(&self) -> Option<&Error> {
        if let Phase::Closed(error) = &self.link.phase { Some(error) } else { None }
    }

    /// Requests without an outcome, waiting ones included.
    pub fn open_requests(&self) -> usize {
        self.requests.len()
    }

    /// Deliveries without an answer.
    pub fn held_deliveries(&self) -> usize {
        self.deliveries.len()
    }

    /// What was dropped or ignored so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Checks what must hold between any two calls.
    ///
    /// # Panics
    /// When it does not.
    pub fn check_invariants(&self) {
        self.requests.check_invariants();
        self.deliveries.check_invariants();
        self.session.claims.check_invariants();
        if self.link.phase != Phase::Ready {
            assert!(
                self.session.named || self.requests.sent() == 0,
                "without a name nothing outlives a connection"
            );
            assert!(
                !self.deliveries.has_connected(),
                "deliveries end with their connection, or wait for the next"
            );
        }
        if self.takes_requests() {
            assert_eq!(self.requests.waiting(), 0, "nothing waits while it could be sent");
        }
        if self.link.is_closed() {
            assert_eq!(self.requests.len(), 0, "a closed client has nothing open");
            assert!(self.deliveries.is_empty(), "nor does it hold anything");
            assert!(self.registrations.is_empty(), "a closed client handles nothing");
            assert_eq!(self.next_deadline(), None, "a closed client waits for nothing");
        }
    }

    // Steps that several of the above share.

    /// Whether new requests may leave now.
    fn takes_requests(&self) -> bool {
        self.link.takes_requests() && !self.session.resuming
    }

    fn say(&mut self, message: ClientMessage) {
        self.outputs.push_back(Output::Send(message));
    }

    fn tell(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn delivery_key(&self, delivery: u64) -> DeliveryKey {
        DeliveryKey { connection: self.link.connection, delivery }
    }

    fn dial(&mut self, now: Time) {
        self.requests.expire(now, &mut self.outputs);
        self.link.phase = Phase::Dialing;
        self.outputs.push_back(Output::Connect);
    }

    fn refuse_when_over(&self) -> Result<(), Error> {
        if let Phase::Closed(reason) = &self.link.phase {
            return Err(reason.for_unsent());
        }
        if self.draining.is_some() {
            return Err(Error::new(Code::Closed, "the client is being closed"));
        }
        Ok(())
    }
}

/// An answer as it can be sent: one that the server would not take becomes an error that says so.
fn checked(verdict: Verdict, content: Content, max_payload: Option<u32>) -> (Verdict, Content) {
    match check_sizes(&content).and_then(|()| check_payload(&content, max_payload)) {
        Ok(()) => (verdict, content),
        Err(error) => {
            let text = error.message().as_bytes();
            (Verdict::Error, Content::from_parts(error.code().as_bytes(), b"", b"", text))
        }
    }
}

/// Checks what the wire bounds, so that one bad message fails alone instead of with its connection.
fn check_sizes(content: &Content) -> Result<(), Error> {
    let bounded = [
        ("name", content.name(), MAX_ACTION_BYTES),
        ("options", content.options(), MAX_OPTIONS_BYTES),
        ("headers", content.headers(), MAX_HEADERS_BYTES),
    ];
    for (what, bytes, max) in bounded {
        if bytes.len() > max {
            let message = format!("{} bytes of {what}; at most {max} are allowed", bytes.len());
            return Err(Error::new(Code::TooLarge, message));
        }
    }
    Ok(())
}
