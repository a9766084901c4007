//! The broker's core behind the server's codec, driven as the server drives it, with the model listening.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::BytesMut;
use ringpost_broker::{
    Broker, Config, ConnId, Identity, Input, Output, Read, RefusalCause, Speaks, log::OperationId,
};
use ringpost_protocol::{
    Content, Outgoing,
    dialect::{Decoded, Dialect, ServerCodec},
    json::Parser,
    message::{ClientMessage, Hello, Request, ServerMessage},
    time::{Now, Time},
};

use serde_json::Value;

use super::{
    durable::{Durable, Opened, Stepped},
    heard::heard,
    limits::{Judge, Limits},
    model::{Heard, Model},
    rules::{Verdict, Violation},
    secure::Records,
};

/// What the server wants the world to do.
#[derive(Debug)]
pub(crate) enum Effect {
    /// There is something to send on this link.
    Ready { link: usize },
    /// Send what waits on this link, then close it.
    Close { link: usize },
    /// Read this from the disk.
    Read(Read),
    /// All is drained.
    Drained,
    /// The log failed: the process ends.
    LogFailed,
}

pub(crate) struct Server {
    pub(crate) broker: Broker,
    /// Knows plain requests only: it is not there where there are others.
    pub(crate) model: Option<Model>,
    /// What outlives this process.
    durable: Option<Durable>,
    boot: u64,
    outbound_limit: usize,
    check_invariants: bool,
    connections: BTreeMap<ConnId, Connection>,
    by_link: BTreeMap<usize, ConnId>,
    free: Vec<ConnId>,
    next: u32,
    parser: Parser,
    /// What the core was told, by the count of the first output that can follow from it.
    told: VecDeque<(u64, Heard, Time)>,
    /// Outputs taken so far.
    taken: u64,
    judge: Judge,
    /// What was said by both sides since it was last looked at, if anybody wants to know.
    pub(crate) notes: Option<Vec<String>>,
}

struct Connection {
    link: usize,
    /// What it may do, if not everything.
    limits: Option<Arc<Limits>>,
    codec: ServerCodec,
    /// With a secure key: all goes through these.
    records: Option<Records>,
    received: BytesMut,
    outgoing: Outgoing,
    /// What is left to be sent, in order: what the socket has not taken.
    waiting: VecDeque<u8>,
    /// The core knows it.
    known: bool,
    /// Its first message has come.
    greeted: bool,
    clogged: bool,
    /// What comes is thrown away; what waits is sent.
    ending: bool,
}

impl Connection {
    /// What was encoded waits to be sent.
    fn send(&mut self) {
        let bytes = self.outgoing.drain_to_vec();
        match &mut self.records {
            None => self.waiting.extend(bytes),
            Some(records) => self.waiting.extend(records.seal(&bytes)),
        }
    }
}

pub(crate) const MAX_PAYLOAD: u32 = 1 << 20;
/// The log's, as the core is told.
pub(crate) const LOG_ID: u64 = 9;

impl Server {
    pub(crate) fn new(config: Config, outbound_limit: usize, check_invariants: bool) -> Self {
        Self {
            boot: config.boot,
            model: Some(Model::new(&config)),
            durable: None,
            broker: Broker::new(config),
            outbound_limit,
            check_invariants,
            connections: BTreeMap::new(),
            by_link: BTreeMap::new(),
            free: Vec::new(),
            next: 0,
            parser: Parser::new(),
            told: VecDeque::new(),
            taken: 0,
            judge: Judge::default(),
            notes: None,
        }
    }

    /// A server with a log, which has been read.
    pub(crate) fn with_log(mut self, durable: Durable, opened: Opened, now: Now) -> Self {
        self.broker = self.broker.with_log(opened.writer);
        self.broker.restore(opened.restore, opened.highest_count, now);
        (self.model, self.durable) = (None, Some(durable));
        self
    }

    /// A server with a log, which is still to be read.
    pub(crate) fn recovering(mut self, durable: Durable) -> Self {
        self.broker = self.broker.recovering();
        (self.model, self.durable) = (None, Some(durable));
        self
    }

    /// The log has been read.
    pub(crate) fn recovered(&mut self, now: Now) -> Result<Vec<Effect>, Violation> {
        let Some(durable) = &mut self.durable else { return Ok(Vec::new()) };
        let opened = durable.open(self.boot, now.mono.micros())?;
        self.broker.recovered(opened.writer, LOG_ID, opened.restore, opened.highest_count, now);
        self.turn(now)
    }

    /// Lets it keep notes.
    pub(crate) fn traced(mut self, trace: bool) -> Self {
        self.notes = trace.then(Vec::new);
        self
    }

    /// The process is gone: what outlives it.
    pub(crate) fn leave_behind(self) -> Option<Durable> {
        self.durable
    }

    pub(crate) fn durable(&mut self) -> Option<&mut Durable> {
        self.durable.as_mut()
    }

    /// What the log wants to have done now, each with the time until it goes on.
    pub(crate) fn ask_disk(&mut self, now: Now) -> Vec<(OperationId, u64)> {
        let (Some(durable), Some(log)) = (&mut self.durable, self.broker.log()) else { return Vec::new() };
        let mut asked = Vec::new();
        while let Some(operation) = log.poll(now) {
            asked.push((operation.id, durable.disk.ask(operation)));
        }
        asked
    }

    /// An operation of the log goes on: after how long again, or what follows from its end.
    pub(crate) fn step_disk(
        &mut self,
        id: OperationId,
        now: Now,
    ) -> Result<(Option<u64>, Vec<Effect>), Violation> {
        let Some(durable) = &mut self.durable else { return Ok((None, Vec::new())) };
        match durable.step(id, now.mono.micros())? {
            Stepped::Again(after) => Ok((Some(after), Vec::new())),
            Stepped::Forgotten => Ok((None, Vec::new())),
            Stepped::Done { id, result, .. } => {
                let mut effects = Vec::new();
                if let Some(log) = self.broker.log() {
                    let worked = log.failed().is_none();
                    log.done(id, result);
                    effects.extend((worked && log.failed().is_some()).then_some(Effect::LogFailed));
                }
                self.tell(Input::Logged, now);
                effects.extend(self.turn(now)?);
                Ok((None, effects))
            }
        }
    }

    /// The disk has read something, well or badly.
    pub(crate) fn read_done(&mut self, read: Read, now: Now) -> Result<Vec<Effect>, Violation> {
        let Some(durable) = &mut self.durable else { return Ok(Vec::new()) };
        let result = durable.disk.read(read);
        self.tell(Input::Read { id: read.id, result }, now);
        self.turn(now)
    }

    /// When the core or its log has something to do, though nothing else happens.
    pub(crate) fn next_deadline(&mut self) -> Option<Time> {
        let log = self.broker.log().and_then(|log| log.next_deadline());
        self.broker.next_deadline().into_iter().chain(log).min()
    }

    /// Lets the log write all that it has. Whether it has.
    pub(crate) fn stop_log(&mut self) -> bool {
        let Some(log) = self.broker.log() else { return true };
        log.stop();
        log.stopped() || log.failed().is_some()
    }

    /// Whether everything that was appended is synced.
    pub(crate) fn is_synced(&mut self) -> bool {
        self.broker.log().is_none_or(|log| log.stable() == log.appended() && log.failed().is_none())
    }

    pub(crate) fn accept(&mut self, link: usize, limits: Option<Arc<Limits>>, records: Option<Records>) {
        let conn = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            ConnId(self.next - 1)
        });
        self.by_link.insert(link, conn);
        let connection = Connection {
            link,
            limits,
            codec: ServerCodec::new(self.boot, MAX_PAYLOAD),
            records,
            received: BytesMut::new(),
            outgoing: Outgoing::new(),
            waiting: VecDeque::new(),
            known: false,
            greeted: false,
            clogged: false,
            ending: false,
        };
        self.connections.insert(conn, connection);
    }

    pub(crate) fn receive(&mut self, link: usize, bytes: &[u8], now: Now) -> Result<Vec<Effect>, Violation> {
        let Some(conn) = self.by_link.get(&link).copied() else { return Ok(Vec::new()) };
        let Some(connection) = self.connections.get_mut(&conn).filter(|connection| !connection.ending) else {
            return Ok(Vec::new());
        };
        connection.received.extend_from_slice(bytes);
        let rest = connection.records.as_mut().map(|records| records.open(&mut connection.received));
        let mut quiet = true;
        while let Some(input) = self.next_input(conn) {
            quiet = false;
            self.tell(input, now);
        }
        if let (Some(rest), Some(connection)) = (rest, self.connections.get_mut(&conn))
            && let Some(records) = &mut connection.records
        {
            records.rejoin(&mut connection.received, rest);
        }
        if quiet && self.connections.get(&conn).is_some_and(|connection| connection.known) {
            self.tell(Input::Heard { conn }, now);
        }
        self.turn(now)
    }

    fn next_input(&mut self, conn: ConnId) -> Option<Input> {
        let connection = self.connections.get_mut(&conn).filter(|connection| !connection.ending)?;
        match connection.codec.decode(&mut self.parser, &mut connection.received, &mut connection.outgoing) {
            Ok(Decoded::Opened(dialect)) => {
                connection.known = true;
                let speaks = if dialect == Dialect::Json { Speaks::Json } else { Speaks::Binary };
                let limits = connection.limits.clone();
                let identity = Limits::identity(limits.as_ref());
                self.judge.opened(conn, limits);
                Some(Input::Opened { conn, speaks, identity })
            }
            Ok(Decoded::Message(message)) => {
                connection.greeted = true;
                Some(Input::Message { conn, message })
            }
            Ok(Decoded::NeedMore) => None,
            Ok(Decoded::Secure(hello)) => panic!("{hello:?} in a simulation without keys"),
            Err(error) => panic!("the peers of this simulation keep to the protocol: {error}"),
        }
    }

    /// The client's half has ended. What it had begun to say is no message.
    pub(crate) fn half_closed(&mut self, link: usize, now: Now) -> Result<Vec<Effect>, Violation> {
        if let Some(conn) = self.by_link.get(&link).copied()
            && let Some(connection) = self.connections.get_mut(&conn).filter(|connection| connection.known)
        {
            if connection.received.is_empty() {
                self.tell(Input::HalfClosed { conn }, now);
            } else {
                self.tell(Input::Refused { cause: RefusalCause::Unreadable }, now);
                self.forget(conn, now);
            }
        }
        self.turn(now)
    }

    /// A connection on which nothing whole was said in time is cut.
    pub(crate) fn cut_if_mute(&mut self, link: usize, now: Now) -> Result<Vec<Effect>, Violation> {
        let Some(conn) = self.by_link.get(&link).copied() else { return Ok(Vec::new()) };
        if self.connections.get(&conn).is_none_or(|connection| connection.greeted || connection.ending) {
            return Ok(Vec::new());
        }
        self.tell(Input::Refused { cause: RefusalCause::Mute }, now);
        self.forget(conn, now);
        let mut effects = self.turn(now)?;
        effects.push(Effect::Close { link });
        Ok(effects)
    }

    /// The link is gone.
    pub(crate) fn closed(&mut self, link: usize, now: Now) -> Result<Vec<Effect>, Violation> {
        if let Some(conn) = self.by_link.remove(&link) {
            self.forget(conn, now);
            let effects = self.turn(now);
            self.connections.remove(&conn);
            self.free.push(conn);
            return effects;
        }
        self.turn(now)
    }

    fn forget(&mut self, conn: ConnId, now: Now) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        connection.ending = true;
        if std::mem::take(&mut connection.known) {
            self.tell(Input::Closed { conn }, now);
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Now) -> Result<Vec<Effect>, Violation> {
        let at = self.taken + self.broker.pending_outputs() as u64;
        self.told.push_back((at, Heard::Time, now.mono));
        self.broker.handle_timeout(now);
        self.turn(now)
    }

    pub(crate) fn drain(&mut self, grace_ms: u32, now: Now) -> Result<Vec<Effect>, Violation> {
        self.tell(Input::Drain { grace_ms }, now);
        self.turn(now)
    }

    pub(crate) fn drain_over(&mut self, now: Now) -> Result<Vec<Effect>, Violation> {
        self.tell(Input::DrainOver, now);
        self.turn(now)
    }

    /// What a link's socket can take now.
    pub(crate) fn take(&mut self, link: usize, room: usize, now: Now) -> (Vec<u8>, bool) {
        let Some(conn) = self.by_link.get(&link).copied() else { return (Vec::new(), true) };
        let Some(connection) = self.connections.get_mut(&conn) else { return (Vec::new(), true) };
        let bytes = connection.waiting.drain(..room.min(connection.waiting.len())).collect();
        let finished = connection.ending && connection.waiting.is_empty();
        let known = connection.known;
        if known && connection.clogged && connection.waiting.len() * 2 < self.clog_bytes() {
            self.unclog(conn, now);
        }
        (bytes, finished)
    }

    fn unclog(&mut self, conn: ConnId, now: Now) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.clogged = false;
        }
        self.tell(Input::Unclogged { conn }, now);
    }

    /// Whether the core was told something since it was last asked what to do.
    pub(crate) fn has_news(&self) -> bool {
        !self.told.is_empty()
    }

    fn clog_bytes(&self) -> usize {
        self.outbound_limit / 2
    }

    /// What the broker still has, by its own account: `$sys.stats`, asked on a connection of its own.
    pub(crate) fn what_is_left(&mut self, now: Now) -> Vec<(String, u64)> {
        let conn = ConnId(self.next);
        let request = Request {
            number: 1,
            content: Content::from_parts(b"$sys.stats", b"", b"", b""),
            ..Request::default()
        };
        self.broker
            .handle(Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() }, now);
        for message in [ClientMessage::Hello(Hello::default()), ClientMessage::Request(request)] {
            self.broker.handle(Input::Message { conn, message }, now);
        }
        let mut stats = Value::Null;
        while let Some(output) = self.broker.poll_output() {
            if let Output::Send { conn: to, message: ServerMessage::Reply(reply) } = output
                && to == conn
            {
                stats = serde_json::from_slice(reply.content.payload()).unwrap_or_default();
            }
        }
        let of_the_probe = |name: &str| u64::from(matches!(name, "connectionsBinary" | "sessions"));
        let bounds = |name: &str| matches!(name, "memoryLimitBytes" | "queueMemoryLimitBytes");
        let now = stats["now"].as_object().into_iter().flatten().filter(|(name, _)| !bounds(name));
        let left: Vec<_> = now
            .map(|(name, count)| (name.clone(), count.as_u64().unwrap_or(u64::MAX) - of_the_probe(name)))
            .collect();
        assert!(!left.is_empty(), "the broker says what it has: {stats}");
        left
    }

    /// Tells the core, and notes what for the model.
    fn tell(&mut self, input: Input, now: Now) {
        let at = self.taken + self.broker.pending_outputs() as u64;
        let mut heard = heard(&input);
        if self.judge.forbids(&input) {
            match &mut heard {
                Heard::Asked { asked, .. } => asked.forbidden = true,
                // The model knows nothing of it: what is refused does not count.
                other => *other = Heard::Other,
            }
        }
        self.told.push_back((at, heard, now.mono));
        if let Some(notes) = &mut self.notes
            && !matches!(input, Input::Logged | Input::Heard { .. })
        {
            notes.push(format!("    hears {input:?}"));
        }
        if let Some(durable) = &mut self.durable {
            durable.heard(&input, now.mono.micros());
        }
        self.broker.handle(input, now);
        if self.check_invariants {
            self.broker.check_invariants();
        }
    }

    /// Does what the core says; what there is for each connection leaves at once.
    pub(crate) fn turn(&mut self, now: Now) -> Result<Vec<Effect>, Violation> {
        let mut effects = Vec::new();
        while let Some(output) = self.broker.poll_output() {
            self.model_hears()?;
            self.taken += 1;
            if let Some(notes) = &mut self.notes {
                notes.push(format!("    says {output:?}"));
            }
            self.judge.said(&output)?;
            if let Some(model) = &mut self.model {
                model.said(&output)?;
            }
            if let Some(durable) = &mut self.durable {
                durable.said(&output, now.mono.micros())?;
            }
            match output {
                Output::Send { conn, message } => {
                    let Some(connection) = self.connections.get_mut(&conn) else { continue };
                    if connection.ending {
                        continue;
                    }
                    let out = &mut connection.outgoing;
                    let encoded = connection.codec.encode(&message, now.wall_ms, &mut self.parser, out);
                    assert!(encoded.is_ok(), "payloads of the simulation are JSON");
                    connection.send();
                    self.bound(conn, now, &mut effects);
                }
                Output::Close { conn, .. } => {
                    if let Some(connection) = self.connections.get(&conn) {
                        effects.push(Effect::Close { link: connection.link });
                    }
                    self.forget(conn, now);
                }
                Output::Read(read) => effects.push(Effect::Read(read)),
                // The book takes note of it.
                Output::Unreadable(_) => {}
                Output::Unavailable(what) => {
                    effects.extend(what.again_after.is_none().then_some(Effect::LogFailed));
                }
                Output::Drained => effects.push(Effect::Drained),
                Output::PeersChanged => {}
                Output::Full { conn } => self.make_room(conn, now),
            }
        }
        self.model_hears()?;
        if let Some(model) = &mut self.model {
            model.turn_ended()?;
        }
        if self.check_invariants {
            self.broker.check_invariants();
        }
        for connection in self.connections.values_mut() {
            if !connection.outgoing.is_empty() {
                connection.send();
            }
            if !connection.waiting.is_empty() {
                effects.push(Effect::Ready { link: connection.link });
            }
        }
        Ok(effects)
    }

    /// The core holds back because much has gone out: with little of it still here, it need not.
    fn make_room(&mut self, conn: ConnId, now: Now) {
        let clog_bytes = self.clog_bytes();
        let Some(connection) = self.connections.get_mut(&conn).filter(|connection| connection.known) else {
            return;
        };
        connection.clogged = connection.waiting.len() * 2 >= clog_bytes;
        if !connection.clogged {
            self.unclog(conn, now);
        }
    }

    /// What a slow reader does not take is bounded: first it gets no more deliveries, then it is cut.
    fn bound(&mut self, conn: ConnId, now: Now, effects: &mut Vec<Effect>) {
        let clog_bytes = self.clog_bytes();
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let waiting = connection.waiting.len();
        if waiting > self.outbound_limit {
            connection.waiting.clear();
            effects.push(Effect::Close { link: connection.link });
            self.tell(Input::Refused { cause: RefusalCause::Slow }, now);
            self.forget(conn, now);
        } else if waiting > clog_bytes && !connection.clogged && connection.known {
            connection.clogged = true;
            self.tell(Input::Clogged { conn }, now);
        }
    }

    /// The model hears what the core was told before its next output.
    fn model_hears(&mut self) -> Verdict {
        while self.told.front().is_some_and(|(at, ..)| *at <= self.taken)
            && let Some((_, heard, now)) = self.told.pop_front()
        {
            if let Some(model) = &mut self.model {
                model.heard(heard, now)?;
            }
        }
        Ok(())
    }
}
