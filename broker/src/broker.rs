//! The entry points, and the order in which things are done.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use foldhash::{SharedSeed, fast::SeedableRandomState};
use ringpost_protocol::{
    Gauge,
    limits::MIN_COUNTED_BYTES,
    message::{ClientMessage, ServerMessage, Target},
    time::{Now, Time, Wheel},
};

use crate::{
    CloseReason, Config, ConnId, Counters, Input, LinkReport, Output,
    control::Inquiry,
    durable::{Formers, Journal, PayloadBytes},
    log::Writer,
    peers::{abroad::Abroad, guests::Guests},
    receivers::Receivers,
    slab::{Key, Slab},
    state::{Action, Connection, Delivery, Handler, Kept, Request, Session, Table, Timer},
};

/// The broker's core. See the crate's documentation.
#[derive(Debug)]
pub struct Broker {
    pub(crate) config: Config,
    pub(crate) connections: Vec<Option<Connection>>,
    pub(crate) sessions: Slab<Session>,
    pub(crate) session_by_name: Table<Bytes, Key<Session>>,
    pub(crate) actions: Slab<Action>,
    pub(crate) action_by_name: Table<Bytes, Key<Action>>,
    pub(crate) handlers: Slab<Handler>,
    pub(crate) requests: Slab<Request>,
    pub(crate) kept: Slab<Kept>,
    /// Bytes of all contents and outcomes that are kept, but for those in large buffers.
    pub(crate) kept_bytes: usize,
    /// Bytes of all large buffers that came in, for as long as anybody holds them: we, or the driver until they are sent.
    pub(crate) large: Gauge,
    /// What the driver holds beside them.
    pub(crate) driver_bytes: usize,
    /// Of large messages that have not come in whole.
    pub(crate) half_received_bytes: usize,
    pub(crate) deliveries: Slab<Delivery>,
    /// Sends that were given up, by their counts.
    pub(crate) dead: BTreeMap<u64, Key<Request>>,
    /// Durable requests that wait for the handlers that had them when the broker died.
    pub(crate) formers: Formers,
    /// The first durable request under each idempotency key, by action and key.
    pub(crate) keys: Table<Bytes, Key<Request>>,
    /// Of durable requests without an outcome: where their payloads are.
    pub(crate) payload_bytes: PayloadBytes,
    /// Requests that are over, and only kept for their keys.
    pub(crate) claimed: usize,
    /// What operators have asked for that takes more than a turn, in line.
    pub(crate) inquiries: VecDeque<Inquiry>,
    /// `None` without a data directory.
    pub(crate) journal: Option<Journal>,
    pub(crate) timers: Wheel<Timer>,
    pub(crate) receivers: Receivers,
    /// Connections that are links to other servers.
    pub(crate) peers: Vec<ConnId>,
    /// What the driver last said of the links that it dials.
    pub(crate) links: BTreeMap<ConnId, LinkReport>,
    pub(crate) abroad: Abroad,
    pub(crate) guests: Guests,
    /// Actions with work that waits for the dispatch interval, in turn.
    pub(crate) paced: VecDeque<Key<Action>>,
    /// What outcomes that are kept are copied into, so that they do not pin the buffers they came in.
    pub(crate) chunk: BytesMut,
    /// Sessions whose client is away.
    pub(crate) detached: usize,
    pub(crate) next_dispatch: Time,
    pub(crate) pacing_set: bool,
    /// Sessions to which an `accepted` is due at the end of the turn.
    pub(crate) accepted: Vec<Key<Session>>,
    pub(crate) outputs: VecDeque<Output>,
    /// Of plain requests in this boot.
    pub(crate) request_count: u64,
    /// Of durable ones in this log: one for each record of one, or recovery could not tell how far it may have come.
    pub(crate) durable_count: u64,
    pub(crate) tenure_count: u64,
    pub(crate) place_count: u64,
    pub(crate) drain: Drain,
    /// While it drains: one of the requests that it waits for.
    pub(crate) awaited: Option<Key<Request>>,
    /// Its log is being read.
    pub(crate) recovering: bool,
    pub(crate) counters: Counters,
    pub(crate) started: Now,
    /// Both clocks at the start of the turn.
    pub(crate) now: Now,
    hash_state: SeedableRandomState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drain {
    No,
    Asked,
    Done,
}

impl Broker {
    /// A broker with nobody connected.
    pub fn new(config: Config) -> Self {
        let hash_state = SeedableRandomState::with_seed(config.hash_seed, SharedSeed::global_fixed());
        Self {
            config,
            connections: Vec::new(),
            sessions: Slab::default(),
            session_by_name: Table::with_hasher(hash_state.clone()),
            actions: Slab::default(),
            action_by_name: Table::with_hasher(hash_state.clone()),
            handlers: Slab::default(),
            requests: Slab::default(),
            kept: Slab::default(),
            kept_bytes: 0,
            large: Gauge::default(),
            driver_bytes: 0,
            half_received_bytes: 0,
            deliveries: Slab::default(),
            dead: BTreeMap::new(),
            formers: Formers::new(),
            keys: Table::with_hasher(hash_state.clone()),
            payload_bytes: PayloadBytes::default(),
            claimed: 0,
            inquiries: VecDeque::new(),
            journal: None,
            timers: Wheel::new(),
            receivers: Receivers::default(),
            peers: Vec::new(),
            links: BTreeMap::new(),
            abroad: Abroad::default(),
            guests: Guests::default(),
            paced: VecDeque::new(),
            chunk: BytesMut::new(),
            detached: 0,
            next_dispatch: Time::ZERO,
            pacing_set: false,
            accepted: Vec::new(),
            outputs: VecDeque::new(),
            request_count: 0,
            durable_count: 0,
            tenure_count: 0,
            place_count: 0,
            drain: Drain::No,
            awaited: None,
            recovering: false,
            counters: Counters::default(),
            started: Now::default(),
            now: Now::default(),
            hash_state,
        }
    }

    /// Gives it a log: durable requests are taken from now on. What the log had from before is put back first, by
    /// [`Broker::restore`].
    #[must_use]
    pub fn with_log(mut self, writer: Writer) -> Self {
        self.journal = Some(Journal::new(writer));
        self
    }

    /// Lets it begin while its log is still being read: until [`Broker::recovered`], durable requests are answered
    /// [`Code::Recovering`](ringpost_protocol::Code::Recovering), and so is who may be known to the log.
    #[must_use]
    pub fn recovering(mut self) -> Self {
        self.recovering = true;
        self
    }

    /// The log, if there is one: the driver does what it asks for, and says [`Input::Logged`] when something was done.
    pub fn log(&mut self) -> Option<&mut Writer> {
        self.journal.as_mut().map(|journal| &mut journal.writer)
    }

    /// Takes in what happened at `now`. What follows from it waits in [`Broker::poll_output`].
    pub fn handle(&mut self, mut input: Input, now: Now) {
        self.enter(now);
        // By reference: a message is large, and on its way only its content is taken out of it.
        match &mut input {
            Input::Message { conn, message } => self.message(*conn, message),
            Input::Heard { conn } => self.heard(*conn),
            Input::Opened { conn, speaks, identity } => self.opened(*conn, *speaks, identity),
            Input::HalfClosed { conn } => self.half_closed(*conn),
            Input::Closed { conn } => self.closed(*conn),
            Input::Undeliverable { conn, message } => self.undeliverable(*conn, message),
            Input::Clogged { conn } => self.clog(*conn),
            Input::Unclogged { conn } => self.unclog(*conn),
            Input::HeldBack { conn } => {
                self.counters.reads_held_back += 1;
                self.heard(*conn);
            }
            Input::Refused { cause } => self.counters.count(*cause),
            Input::Link { conn, report } => {
                self.links.insert(*conn, std::mem::take(report));
            }
            Input::Logged => self.logged(),
            Input::Read { id, result } => self.read_done(*id, result),
            Input::Drain { grace_ms } => self.start_drain(*grace_ms),
            Input::DrainOver => self.end_drain(),
        }
    }

    /// Does what is due at `now`. Call it when [`Broker::next_deadline`] has come.
    pub fn handle_timeout(&mut self, now: Now) {
        self.enter(now);
        self.let_time_pass();
    }

    /// Whatever's time has come by the start of this turn.
    pub(crate) fn let_time_pass(&mut self) {
        let now = self.now;
        while let Some(timer) = self.timers.expire(now.mono) {
            match timer {
                Timer::Request(request) => self.request_timed_out(request),
                Timer::Counts(request) => self.counts_overdue(request),
                Timer::Overdue(delivery) => self.handler_is_stuck(delivery),
                Timer::Linger(session) => self.linger_over(session),
                Timer::Liveness(conn) => self.check_liveness(conn),
                Timer::Lease(request) => self.lease_over(request),
                Timer::Rested(request) => self.rested(request),
                Timer::Reread(read) => self.read_again(read),
                Timer::Guests => self.sweep_guests(),
                Timer::Pacing => self.pacing_over(),
                Timer::Receivers => self.tell_receivers(),
            }
        }
    }

    /// What to do next, or `None` when all is done that followed from the inputs so far.
    ///
    /// What can be said once for many inputs (`accepted`) comes last: take in all that has arrived first, then poll.
    #[inline]
    pub fn poll_output(&mut self) -> Option<Output> {
        if self.outputs.is_empty() {
            self.end_turn();
        }
        self.outputs.pop_front()
    }

    /// How much waits in [`Broker::poll_output`], for drivers that bound how much they take in before they ask.
    #[inline]
    pub fn pending_outputs(&self) -> usize {
        self.outputs.len()
    }

    /// When to call [`Broker::handle_timeout`] next. It may be early; it is never late.
    pub fn next_deadline(&self) -> Option<Time> {
        self.timers.next_deadline()
    }

    /// What happened how often.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes note of the bytes that the driver holds for its connections: in buffers to read into and on their way out, and
    /// apart from those, of large messages that are half received. Large messages that are whole are not among them: they
    /// are counted from their arrival on, until all is sent that shares their buffer.
    #[inline]
    pub fn count_driver_bytes(&mut self, bytes: usize, half_received: usize) {
        (self.driver_bytes, self.half_received_bytes) = (bytes, half_received);
    }

    /// Bytes of messages that are held anywhere: kept, large, and by the driver. Over three quarters of
    /// [`Config::memory_bytes`] requests are refused; the last quarter is the driver's, for large messages that are half
    /// received.
    #[inline]
    pub fn memory_used(&self) -> usize {
        self.kept_bytes + self.large.bytes() + self.driver_bytes
    }

    /// Whether a connection's handlers hold anything: what it says may be answers that others wait for.
    pub fn holds_deliveries(&self, conn: ConnId) -> bool {
        let holds =
            |key: &Key<Handler>| self.handlers.get(*key).is_some_and(|handler| !handler.held.is_empty());
        self.connection(conn).is_some_and(|connection| connection.handlers.iter().any(holds))
    }

    /// Requests that have not ended, and durable outcomes that nobody has acknowledged.
    pub fn open_requests(&self) -> usize {
        self.requests.len() - self.claimed
    }

    /// What handlers hold, the answers to which have not come.
    pub fn open_deliveries(&self) -> usize {
        self.deliveries.len()
    }

    fn enter(&mut self, now: Now) {
        if self.started == Now::default() {
            self.started = now;
        }
        self.now = now;
    }

    fn message(&mut self, conn: ConnId, message: &mut ClientMessage) {
        let now = self.now.mono;
        let Some(connection) = self.connection_mut(conn).filter(|connection| !connection.closing) else {
            return;
        };
        connection.last_heard = now;
        if connection.session.is_none() && !matches!(message, ClientMessage::Hello(_)) {
            return self.break_off(conn, "the first frame must be a hello");
        }
        match message {
            ClientMessage::Request(request) => {
                request.content.count_large(MIN_COUNTED_BYTES, &self.large);
                self.request(conn, request);
            }
            ClientMessage::Answer(answer) => {
                answer.content.count_large(MIN_COUNTED_BYTES, &self.large);
                self.answer(conn, answer);
            }
            ClientMessage::Leg(answer) => {
                answer.content.count_large(MIN_COUNTED_BYTES, &self.large);
                self.branch_leg(conn, answer);
            }
            ClientMessage::Legs { delivery, expected } => self.branch_counted(conn, *delivery, *expected),
            ClientMessage::Hello(hello) => self.hello(conn, hello),
            ClientMessage::Register(register) => self.register(conn, register),
            ClientMessage::Deregister(target) => self.deregister(conn, target),
            ClientMessage::Credit { registration, credit } => self.credit(conn, *registration, *credit),
            ClientMessage::Cancel(target) => self.cancel(conn, target),
            ClientMessage::Progress(progress) => {
                progress.content.count_large(MIN_COUNTED_BYTES, &self.large);
                self.progress(conn, progress);
            }
            ClientMessage::Resume(resume) => self.resume(conn, resume),
            ClientMessage::WatchReceivers(on) => self.watch_receivers(conn, *on),
            ClientMessage::Ping(token) => self.send(conn, ServerMessage::Pong(*token)),
            ClientMessage::Goaway => self.client_leaves(conn),
            ClientMessage::Acknowledge(Target::Number(sequence)) => self.acknowledge(conn, *sequence),
            ClientMessage::Acknowledge(Target::Name(tag)) => self.acknowledge_tag(conn, tag),
            ClientMessage::Peer(message) => self.peer_says(conn, message),
            ClientMessage::Pong(_) => {}
        }
    }

    fn heard(&mut self, conn: ConnId) {
        let now = self.now.mono;
        if let Some(connection) = self.connection_mut(conn) {
            connection.last_heard = now;
        }
    }

    fn end_turn(&mut self) {
        while let Some(session) = self.accepted.pop() {
            self.tell_accepted(session);
        }
        if self.drain == Drain::Asked && !self.has_to_wait() {
            self.drain = Drain::Done;
            self.outputs.push_back(Output::Drained);
        }
    }

    /// Says `accepted` if it is due.
    pub(crate) fn tell_accepted(&mut self, session: Key<Session>) {
        let Some(session) = self.sessions.get_mut(session) else { return };
        // A number is accepted with all below it, and what is not stable may yet be lost.
        let upto = match session.unstable.front() {
            Some(first) => session.accepted.map(|accepted| accepted.min(first - 1)),
            None => session.accepted.take(),
        };
        if let (Some(upto), Some(conn)) = (upto.filter(|upto| *upto > 0), session.listens()) {
            self.send(conn, ServerMessage::Accepted { upto, tag: Default::default() });
        }
    }

    #[inline(always)]
    pub(crate) fn send(&mut self, conn: ConnId, message: ServerMessage) {
        self.outputs.push_back(Output::Send { conn, message });
    }

    pub(crate) fn close(&mut self, conn: ConnId, reason: CloseReason) {
        if let Some(connection) = self.connection_mut(conn)
            && !connection.closing
        {
            connection.closing = true;
            self.outputs.push_back(Output::Close { conn, reason });
        }
    }

    pub(crate) fn connection(&self, conn: ConnId) -> Option<&Connection> {
        self.connections.get(conn.0 as usize)?.as_ref()
    }

    pub(crate) fn connection_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.connections.get_mut(conn.0 as usize)?.as_mut()
    }

    pub(crate) fn table<K, V>(&self) -> Table<K, V> {
        Table::with_hasher(self.hash_state.clone())
    }
}
