//! One link: what the own core says to it becomes what a client says to the peer, and the other way round.
//!
//! | here | there |
//! |---|---|
//! | a delivery to a handler of the peer | a request, with the time that is left |
//! | the answer | its outcome |
//! | how many legs a broadcast has there, and each leg's outcome | the same, as it is told there |
//! | a request from the peer's clients | a delivery |
//! | a registration | the peer has the action |
//! | an action that has handlers here | a registration |
//!
//! Without a name for its session, nothing outlives a connection on either side: when that is lost, the core is told that
//! the peer's connection is closed, and everything that was on it is lost at that moment.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use ringpost_broker::{ConnId, Identity, Input, LinkReport, LinkState, Speaks};
use ringpost_client::{
    Client, ClientConfig, Completion, Delivery, DeliveryKey, Error, Event, Output, RegistrationId,
    RequestKey, RequestSpec,
};
use ringpost_protocol::{
    Code, Content,
    message::{
        Answer, ClientMessage, Deliver, Ended, Hello, PeerMessage, Progress, Register, Reply, Request,
        RequestFlags, Scope, ServerMessage, Speaker, Target, Verdict,
    },
    time::Time,
};

/// After something final, which for a client would be the end: how long until the link tries once more.
const RETRY: Duration = Duration::from_secs(10);
/// How long what is open may take on a link that makes way for the peer's own.
const STAND_BY_TIME: Duration = Duration::from_secs(10);
/// When the peer's own link is gone, the peer has that long to dial again before we do.
const RESUME_PAUSE: Duration = Duration::from_secs(1);

/// What a link is to be.
#[derive(Debug, Clone)]
pub(crate) struct LinkSettings {
    /// The connection of the own core that is kept for it.
    pub(crate) conn: ConnId,
    /// This server's own name.
    pub(crate) server_id: String,
    /// This server's boot id.
    pub(crate) boot: u64,
    /// Where to, for people.
    pub(crate) address: String,
    /// The action under which the link itself answers at the peer.
    pub(crate) action: Option<String>,
    /// Requests at once in each direction, for each action.
    pub(crate) credit: u32,
    /// Of the pauses between two tries.
    pub(crate) seed: u64,
}

/// What the driver is to do, in order.
#[derive(Debug)]
pub(crate) enum LinkOutput {
    /// Tell the own core.
    Core(Input),
    /// Open a connection to the peer.
    Connect,
    /// Write this on it.
    Send(ClientMessage),
    /// Write what was to be sent, then close it, or give up opening it.
    Disconnect,
    /// Close it at once.
    Abort,
}

/// What was asked of the peer for a delivery of the own core.
#[derive(Debug)]
struct Forwarded {
    request: RequestKey,
    registration: u32,
}

/// What the own core was asked for the peer.
#[derive(Debug)]
struct Asked {
    delivery: DeliveryKey,
    registration: RegistrationId,
    send: bool,
    /// Of a broadcast: legs that have not ended; 0 until it is known how many there are.
    legs: u32,
}

/// What is on the present connection.
#[derive(Debug, Default)]
struct Open {
    /// Registrations here, for actions of the peer, by name.
    far: BTreeMap<String, u32>,
    last_registration: u32,
    /// By the number of the delivery.
    forwarded: HashMap<u64, Forwarded>,
    /// Registrations at the peer, for actions of this server, by name.
    own: BTreeMap<String, RegistrationId>,
    /// By the number of the request.
    asked: BTreeMap<u64, Asked>,
    numbers: HashMap<DeliveryKey, u64>,
    last_number: u64,
    /// The peer takes nothing new, or is to get nothing new.
    leaving: bool,
    /// This server takes nothing new.
    draining: bool,
}

/// Whether the link is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Yes,
    /// The peer's own link stays instead.
    StandBy,
    /// The server leaves.
    No,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Link {
    settings: LinkSettings,
    client: Client,
    /// Of the link's own action at the peer.
    own_action: Option<RegistrationId>,
    /// `None` without a connection.
    open: Option<Open>,
    /// While the peer's own link stays: the link's own action is handled here, and the peer has it over that one.
    attends: bool,
    peer_id: Option<Bytes>,
    wanted: Wanted,
    /// When a new client takes the place of the one that has ended.
    restart_at: Option<Time>,
    restarts: u64,
    state: LinkState,
    outputs: VecDeque<LinkOutput>,
}

impl Link {
    pub(crate) fn new(settings: LinkSettings) -> Self {
        let mut link = Self {
            client: client(&settings, 0),
            own_action: None,
            open: None,
            attends: false,
            peer_id: None,
            wanted: Wanted::Yes,
            restart_at: None,
            restarts: 0,
            state: LinkState::Connecting,
            outputs: VecDeque::new(),
            settings,
        };
        link.report();
        link
    }

    /// What to do next.
    pub(crate) fn poll_output(&mut self) -> Option<LinkOutput> {
        self.outputs.pop_front()
    }

    /// When to call [`Link::handle_timeout`] at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.client.next_deadline().into_iter().chain(self.restart_at).min()
    }

    /// What it is doing.
    pub(crate) fn state(&self) -> &LinkState {
        &self.state
    }

    /// The peer's name, once it was there.
    pub(crate) fn peer_id(&self) -> Option<&Bytes> {
        self.peer_id.as_ref()
    }

    #[cfg(test)]
    pub(crate) fn check_invariants(&self) {
        self.client.check_invariants();
        if let Some(open) = &self.open {
            assert_eq!(open.numbers.len(), open.asked.len(), "each delivery has its request");
        }
    }

    // From the network.

    pub(crate) fn start(&mut self, now: Time) {
        self.register_own_action();
        self.client.start(now);
        self.settle(now);
    }

    pub(crate) fn connected(&mut self, now: Time) {
        self.client.connected(now);
        self.settle(now);
    }

    pub(crate) fn turned_away(&mut self, error: Error, now: Time) {
        self.client.turned_away(error, now);
        self.settle(now);
    }

    pub(crate) fn disconnected(&mut self, reason: String, now: Time) {
        self.client.disconnected(reason, now);
        self.settle(now);
    }

    pub(crate) fn received(&mut self, message: ServerMessage, now: Time) {
        self.client.received(message, now);
        self.settle(now);
    }

    /// Bytes came that do not complete a message yet.
    pub(crate) fn heard(&mut self, now: Time) {
        self.client.heard(now);
    }

    pub(crate) fn handle_timeout(&mut self, now: Time) {
        if self.restart_at.is_some_and(|at| at <= now) {
            self.restart(now);
        }
        self.client.handle_timeout(now);
        self.settle(now);
    }

    // From the server.

    /// Links have come or gone. `dialled_by_peer`: the server at the other end has one of its own to this one, and it is there.
    ///
    /// Of two links between the same servers, that one stays which the smaller name has dialled: the other server, which
    /// always learns of both, lets go of its own.
    pub(crate) fn peers_changed(&mut self, dialled_by_peer: bool, now: Time) {
        let gives_way = |peer: &Bytes| peer.as_ref() < self.settings.server_id.as_bytes();
        if dialled_by_peer && self.peer_id.as_ref().is_some_and(gives_way) {
            if self.state == LinkState::Up {
                self.stand_by(now);
            }
        } else {
            self.resume(now);
        }
    }

    /// Makes way for the link that the peer has dialled: what is open is finished, then it ends, until [`Link::resume`].
    fn stand_by(&mut self, now: Time) {
        if self.wanted == Wanted::Yes {
            self.wanted = Wanted::StandBy;
            self.let_go_of_far();
            self.client.drain(now + STAND_BY_TIME, now);
            self.settle(now);
        }
    }

    /// The peer's own link is gone.
    fn resume(&mut self, now: Time) {
        if self.wanted == Wanted::StandBy {
            self.wanted = Wanted::Yes;
            self.attend_no_more();
            if self.client.closed().is_some() {
                self.restart_at = Some(now + RESUME_PAUSE);
            }
        }
    }

    /// The server leaves: the link ends, and nothing comes after it.
    pub(crate) fn end(&mut self, now: Time) {
        self.wanted = Wanted::No;
        self.restart_at = None;
        self.attend_no_more();
        self.client.close();
        self.settle(now);
    }

    /// The own core has closed the connection that was kept for the link.
    pub(crate) fn dropped_by_core(&mut self, now: Time) {
        self.attend_no_more();
        self.close_open();
        self.client.close();
        self.settle(now);
    }

    /// The own core says this to the peer.
    pub(crate) fn heard_from_core(&mut self, message: ServerMessage, now: Time) {
        match message {
            ServerMessage::Deliver(deliver) if self.attends => {
                let content = Content::from_payload(self.about());
                self.answer(deliver.delivery, Verdict::Reply, content);
            }
            ServerMessage::Deliver(deliver) => self.forward(deliver, now),
            ServerMessage::Reply(reply) => self.replied(reply, now),
            ServerMessage::Legs { number, expected } => self.counted(number, expected),
            ServerMessage::Accepted { upto, .. } => self.accepted(upto, now),
            ServerMessage::Cancel { delivery, .. } => {
                let forwarded = self.open.as_ref().and_then(|open| open.forwarded.get(&delivery));
                if let Some(request) = forwarded.map(|forwarded| forwarded.request) {
                    self.client.cancel(request, now);
                }
            }
            ServerMessage::Progress(progress) => {
                let asked = self.open.as_ref().and_then(|open| open.asked.get(&progress.number));
                if let Some(delivery) = asked.map(|asked| asked.delivery) {
                    self.client.progress(delivery, progress.content);
                }
            }
            ServerMessage::Receivers(list) => self.tell_own(&list),
            ServerMessage::Ping(token) => self.say(ClientMessage::Pong(token)),
            ServerMessage::Goaway { .. } => self.take_own_back(),
            ServerMessage::Error(report) if report.scope == Scope::Registration => {
                tracing::debug!(
                    link = self.settings.address,
                    report.message,
                    "an action of the peer is not taken"
                );
                if let Some(open) = &mut self.open {
                    open.far.retain(|_, registration| u64::from(*registration) != report.number);
                }
            }
            ServerMessage::Error(report) => {
                tracing::debug!(link = self.settings.address, report.message, "the own core says");
            }
            ServerMessage::Peer(message) => self.tell_peer(message),
            // What a client with a session or with durable requests would want to know.
            ServerMessage::Welcome(_)
            | ServerMessage::Registered { .. }
            | ServerMessage::Asked { .. }
            | ServerMessage::Acknowledge { .. }
            | ServerMessage::Resumed { .. }
            | ServerMessage::Pong(_) => {}
        }
        self.settle(now);
    }

    // This server's clients ask the peer's handlers.

    fn forward(&mut self, deliver: Deliver, now: Time) {
        let takes = self.client.is_ready() && self.open.as_ref().is_some_and(|open| !open.leaving);
        if !takes {
            let text = "the link to the peer is ending";
            return self.answer(
                deliver.delivery,
                Verdict::Declined(Code::Draining),
                Content::from_payload(text),
            );
        }
        // 0 would be the default.
        let left = Duration::from_millis(u64::from(deliver.time_left_ms.max(1)));
        let spec = RequestSpec {
            flags: passed_on(deliver.flags),
            max_attempts: 1,
            ttl: left,
            timeout: left,
            content: deliver.content,
        };
        match self.client.request(spec, deliver.delivery, now) {
            Ok(request) => {
                let forwarded = Forwarded { request, registration: deliver.registration };
                self.open.as_mut().and_then(|open| open.forwarded.insert(deliver.delivery, forwarded));
            }
            Err(error) => {
                let verdict = match error.kind() {
                    Code::TooLarge | Code::Malformed => Verdict::Failed(error.kind()),
                    code => Verdict::Declined(code),
                };
                let content = Content::from_payload(error.message().to_owned());
                self.answer(deliver.delivery, verdict, content);
            }
        }
    }

    fn completed(&mut self, completion: Completion) {
        let Some(open) = &mut self.open else { return };
        let (delivery, last) = (completion.token, completion.last);
        let Some(registration) = open.forwarded.get(&delivery).map(|forwarded| forwarded.registration) else {
            return;
        };
        if last {
            open.forwarded.remove(&delivery);
        }
        let error = match completion.result {
            Ok(content) => return self.answer_part(delivery, Verdict::Reply, content, last),
            Err(error) => error,
        };
        let content = || Content::from_payload(error.message().to_owned());
        let (verdict, content) = match error.kind() {
            // The end of the connection, which is told as that: right behind this.
            Code::ConnectionLost | Code::Closed => return,
            Code::Cancelled => (Verdict::Cancelled, Content::default()),
            Code::Remote => {
                let own_code = error.handler_code().unwrap_or_default().as_bytes();
                let content = Content::from_parts(own_code, b"", b"", error.message().as_bytes());
                (Verdict::Error, content)
            }
            code if completion.leg.is_none()
                && completion.info.attempt == 0
                && may_be_tried_elsewhere(code) =>
            {
                if code == Code::NoHandler {
                    self.forget_far(registration);
                }
                (Verdict::Declined(code), content())
            }
            code => (Verdict::Failed(code), content()),
        };
        self.answer_part(delivery, verdict, content, last);
    }

    /// The peer has nobody for an action any more, and the list that says so is still on its way, or never comes: whoever it
    /// was may be there again.
    fn forget_far(&mut self, registration: u32) {
        let Some(open) = &mut self.open else { return };
        let known = open.far.len();
        open.far.retain(|_, its| *its != registration);
        if open.far.len() < known {
            self.say(ClientMessage::Deregister(Target::Number(u64::from(registration))));
            self.client.ask_receivers();
        }
    }

    /// The peer tells which actions its own handlers are for.
    fn told_far(&mut self, list: &[u8]) {
        let Some(open) = self.open.as_mut().filter(|open| !open.leaving) else { return };
        let Some(names) = names(list) else { return };
        let mut messages = Vec::new();
        open.far.retain(|name, registration| {
            let stays = names.binary_search(name).is_ok();
            let gone = || ClientMessage::Deregister(Target::Number(u64::from(*registration)));
            messages.extend((!stays).then(gone));
            stays
        });
        for name in names {
            if open.far.contains_key(&name) {
                continue;
            }
            open.last_registration += 1;
            let registration = open.last_registration;
            messages.push(ClientMessage::Register(Register {
                registration,
                credit: self.settings.credit,
                action: Bytes::copy_from_slice(name.as_bytes()),
                session: Bytes::new(),
            }));
            open.far.insert(name, registration);
        }
        messages.into_iter().for_each(|message| self.say(message));
    }

    /// Nothing more goes to the peer on this connection; what is there may be answered.
    fn let_go_of_far(&mut self) {
        let Some(open) = &mut self.open else { return };
        open.leaving = true;
        for registration in std::mem::take(&mut open.far).into_values() {
            self.say(ClientMessage::Deregister(Target::Number(u64::from(registration))));
        }
    }

    // The peer's clients ask this server's handlers.

    fn delivered(&mut self, delivery: Delivery, now: Time) {
        let Delivery { key, registration, action, message } = delivery;
        if self.own_action == Some(registration) {
            let content = Content::from_payload(self.about());
            self.client.answer(key, Verdict::Reply, content, now);
            return;
        }
        let Some(open) = &mut self.open else { return };
        open.last_number += 1;
        let number = open.last_number;
        let flags = passed_on(message.flags);
        let send = flags.has(RequestFlags::SEND);
        open.asked.insert(number, Asked { delivery: key, registration, send, legs: 0 });
        open.numbers.insert(key, number);
        let content = &message.content;
        let content =
            Content::from_parts(action.as_bytes(), content.options(), content.headers(), content.payload());
        let left_ms = message.time_left_ms.max(1);
        self.say(ClientMessage::Request(Request {
            number,
            flags,
            max_attempts: 1,
            ttl_ms: left_ms,
            timeout_ms: left_ms,
            content,
        }));
    }

    /// A broadcast of the peer's clients went to so many handlers here.
    fn counted(&mut self, number: u64, expected: u32) {
        let Some(asked) = self.open.as_mut().and_then(|open| open.asked.get_mut(&number)) else { return };
        asked.legs = expected;
        self.client.legs(asked.delivery, expected);
    }

    fn replied(&mut self, reply: Reply, now: Time) {
        let Some(asked) = self.open.as_mut().and_then(|open| open.asked.get_mut(&reply.number)) else {
            return;
        };
        let (delivery, registration) = (asked.delivery, asked.registration);
        let whole = reply.leg.is_none();
        asked.legs = if whole { 0 } else { asked.legs.saturating_sub(1) };
        let last = asked.legs == 0;
        if last && let Some(open) = &mut self.open {
            open.asked.remove(&reply.number);
            open.numbers.remove(&delivery);
        }
        let verdict = match reply.code {
            None => Verdict::Reply,
            Some(Code::Remote) => Verdict::Error,
            Some(Code::Cancelled) => Verdict::Cancelled,
            Some(code) if whole && reply.attempt == 0 && may_be_tried_elsewhere(code) => {
                if code == Code::NoHandler {
                    self.forget_own(registration);
                }
                Verdict::Declined(code)
            }
            Some(code) => Verdict::Failed(code),
        };
        if last {
            self.client.answer(delivery, verdict, reply.content, now);
        } else {
            self.client.leg(delivery, verdict, reply.content);
        }
    }

    /// Sends up to this number have a handler here, or a place in a queue: that is all that they wait for.
    fn accepted(&mut self, upto: u64, now: Time) {
        let Some(open) = &mut self.open else { return };
        let sends = open.asked.range(..=upto).filter(|(_, asked)| asked.send);
        let sends: Vec<_> = sends.map(|(number, _)| *number).collect();
        for asked in sends {
            let Some(asked) = open.asked.remove(&asked) else { continue };
            open.numbers.remove(&asked.delivery);
            self.client.answer(asked.delivery, Verdict::Reply, Content::default(), now);
        }
    }

    /// As [`Link::forget_far`], the other way round.
    fn forget_own(&mut self, registration: RegistrationId) {
        let Some(open) = &mut self.open else { return };
        let known = open.own.len();
        open.own.retain(|_, its| *its != registration);
        if open.own.len() < known {
            self.client.deregister(registration);
            self.say(ClientMessage::WatchReceivers(true));
        }
    }

    /// The own core tells which actions this server's handlers are for.
    fn tell_own(&mut self, list: &[u8]) {
        let Some(open) = self.open.as_mut().filter(|open| !open.draining && !open.leaving) else { return };
        let Some(names) = names(list) else { return };
        open.own.retain(|name, registration| {
            let stays = names.binary_search(name).is_ok();
            if !stays {
                self.client.deregister(*registration);
            }
            stays
        });
        for name in names {
            if open.own.contains_key(&name) {
                continue;
            }
            match self.client.register(&name, self.settings.credit) {
                Ok(registration) => {
                    open.own.insert(name, registration);
                }
                Err(error) => tracing::debug!(name, %error, "not told to the peer"),
            }
        }
    }

    /// This server leaves: the peer is to send nothing more.
    fn take_own_back(&mut self) {
        let Some(open) = &mut self.open else { return };
        open.draining = true;
        for registration in std::mem::take(&mut open.own).into_values().chain(self.own_action.take()) {
            self.client.deregister(registration);
        }
    }

    fn register_own_action(&mut self) {
        if let Some(action) = &self.settings.action {
            // Its name was checked when the server was configured.
            self.own_action = self.client.register(action, self.settings.credit).ok();
        }
    }

    /// What the link itself answers at the peer.
    fn about(&self) -> String {
        let version = env!("CARGO_PKG_VERSION");
        serde_json::json!({ "serverId": self.settings.server_id, "version": version }).to_string()
    }

    // Of durable requests, servers speak to each other directly.

    fn tell_peer(&mut self, message: Box<PeerMessage>) {
        if let PeerMessage::Forward(forward) = &*message
            && let Some(error) = self.client.refuses_payload(&forward.content)
        {
            // The peer would have to break the connection off.
            let (run, content) = (forward.run, Content::from_payload(error.message().to_owned()));
            let ended = Ended { run, verdict: Verdict::Failed(error.kind()), content };
            return self.say(ClientMessage::Peer(Box::new(PeerMessage::Ended(ended))));
        }
        // Without a connection the own core is about to hear of that.
        self.client.say_to_peer(message);
    }

    // The connection.

    fn welcomed(&mut self, server_id: Bytes, boot: u64) {
        let conn = self.settings.conn;
        self.tell(Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() });
        // As in a hello that the peer would have said itself.
        let speaker = Speaker { instance: boot.max(1), connection: 1 };
        let hello =
            Hello { speaker, watch_receivers: true, peer: Some(server_id.clone()), ..Hello::default() };
        self.open = Some(Open::default());
        self.say(ClientMessage::Hello(hello));
        self.peer_id = Some(server_id);
        self.change_state(LinkState::Up);
    }

    fn close_open(&mut self) {
        if self.open.take().is_some() {
            self.tell(Input::Closed { conn: self.settings.conn });
        }
    }

    /// The client is at its end.
    fn ended(&mut self, reason: &Error, now: Time) {
        self.close_open();
        match self.wanted {
            Wanted::No => self.change_state(LinkState::Ended),
            Wanted::StandBy => {
                self.change_state(LinkState::StandsBy);
                self.attend();
            }
            Wanted::Yes => {
                self.restart_at.get_or_insert(now + RETRY);
                self.change_state(LinkState::Failed(reason.to_string()));
            }
        }
    }

    /// Handles the link's own action as a client of the own core.
    fn attend(&mut self) {
        let Some(action) = self.settings.action.clone() else { return };
        let conn = self.settings.conn;
        self.tell(Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() });
        self.attends = true;
        self.say(ClientMessage::Hello(Hello::default()));
        self.say(ClientMessage::Register(Register {
            registration: 1,
            credit: self.settings.credit,
            action: action.into(),
            session: Bytes::new(),
        }));
    }

    fn attend_no_more(&mut self) {
        if std::mem::take(&mut self.attends) {
            self.tell(Input::Closed { conn: self.settings.conn });
        }
    }

    fn restart(&mut self, now: Time) {
        self.restart_at = None;
        self.restarts += 1;
        self.client = client(&self.settings, self.restarts);
        self.start(now);
    }

    fn change_state(&mut self, state: LinkState) {
        if self.state != state {
            self.state = state;
            self.report();
        }
    }

    fn report(&mut self) {
        let peer_id = &self.peer_id;
        let report = LinkReport {
            address: self.settings.address.clone(),
            action: self.settings.action.clone(),
            server_id: peer_id.as_ref().map(|id| String::from_utf8_lossy(id).into_owned()),
            state: self.state.clone(),
        };
        self.tell(Input::Link { conn: self.settings.conn, report: Box::new(report) });
    }

    // Steps that several of the above share.

    fn answer(&mut self, delivery: u64, verdict: Verdict, content: Content) {
        self.say(ClientMessage::Answer(Answer { delivery, sequence: 0, verdict, content }));
    }

    /// What became of a delivery; unless it is the last word, of one leg.
    fn answer_part(&mut self, delivery: u64, verdict: Verdict, content: Content, last: bool) {
        if last {
            return self.answer(delivery, verdict, content);
        }
        self.say(ClientMessage::Leg(Answer { delivery, sequence: 0, verdict, content }));
    }

    /// Says something to the own core, mostly as the peer.
    fn say(&mut self, message: ClientMessage) {
        if self.open.is_some() || self.attends {
            self.tell(Input::Message { conn: self.settings.conn, message });
        }
    }

    fn tell(&mut self, input: Input) {
        self.outputs.push_back(LinkOutput::Core(input));
    }

    /// Takes what the client's core wants.
    fn settle(&mut self, now: Time) {
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::Connect => self.outputs.push_back(LinkOutput::Connect),
                Output::Send(message) => self.outputs.push_back(LinkOutput::Send(message)),
                Output::Disconnect => self.outputs.push_back(LinkOutput::Disconnect),
                Output::Abort => self.outputs.push_back(LinkOutput::Abort),
                Output::Complete(completion) => self.completed(completion),
                Output::Legs { token, expected } => {
                    self.say(ClientMessage::Legs { delivery: token, expected });
                }
                Output::Progress { token, content } => {
                    self.say(ClientMessage::Progress(Progress {
                        number: token,
                        content,
                        ..Progress::default()
                    }));
                }
                Output::Deliver(delivery) => self.delivered(delivery, now),
                Output::CancelDelivery(key) => {
                    let number = self.open.as_ref().and_then(|open| open.numbers.get(&key)).copied();
                    if let Some(number) = number {
                        self.say(ClientMessage::Cancel(Target::Number(number)));
                    }
                }
                Output::Receivers(list) => self.told_far(&list),
                Output::Peer(message) => self.say(ClientMessage::Peer(message)),
                Output::RegistrationFailed(id, error) => {
                    tracing::warn!(link = self.settings.address, %error, "the peer does not take an action");
                    if let Some(open) = &mut self.open {
                        open.own.retain(|_, its| *its != id);
                    }
                }
                Output::Event(event) => self.happened(event, now),
                // A session without a name has no unclaimed replies.
                Output::Unclaimed(_) | Output::Registered(_) | Output::Deregistered(_) => {}
            }
        }
    }

    fn happened(&mut self, event: Event, now: Time) {
        match event {
            Event::Connected { server_id, boot, .. } => self.welcomed(server_id, boot),
            Event::Disconnected(_) => {
                // The registrations of the last connection are not those of the next: which actions there are is told anew.
                let own = self.open.as_mut().map(|open| std::mem::take(&mut open.own)).unwrap_or_default();
                for registration in own.into_values() {
                    self.client.deregister(registration);
                }
                self.close_open();
            }
            Event::ReconnectIn { reason, .. } => self.change_state(LinkState::Failed(reason.to_string())),
            Event::Goaway { .. } => self.let_go_of_far(),
            Event::Closed(reason) => self.ended(&reason, now),
            _ => {}
        }
    }
}

fn client(settings: &LinkSettings, restarts: u64) -> Client {
    Client::new(ClientConfig {
        instance: settings.boot.max(1),
        peer: Some(Bytes::copy_from_slice(settings.server_id.as_bytes())),
        watch_receivers: true,
        // What cannot leave now is for others.
        max_pending: 0,
        hold_back: false,
        seed: settings.seed.wrapping_add(restarts),
        ..ClientConfig::default()
    })
}

/// Of a request's flags, those that are the peer's business too.
fn passed_on(flags: RequestFlags) -> RequestFlags {
    let passed = RequestFlags::SEND.with(RequestFlags::BROADCAST).with(RequestFlags::PROGRESS);
    RequestFlags(flags.0 & passed.0)
}

/// Whether a request that ended so, before any handler got it, may go to another server.
fn may_be_tried_elsewhere(code: Code) -> bool {
    matches!(code, Code::NoHandler | Code::Overloaded | Code::Draining | Code::Recovering | Code::Forbidden)
}

fn names(list: &[u8]) -> Option<Vec<String>> {
    serde_json::from_slice(list)
        .inspect_err(|error| tracing::warn!(%error, "a list of receivers is not understood"))
        .ok()
        .map(|mut names: Vec<String>| {
            names.sort_unstable();
            names
        })
}
