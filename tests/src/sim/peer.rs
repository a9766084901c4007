//! A client core with the wire's codec, driven as the SDK drives it, and an application on top that asks and handles.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use ringpost_client::{
    Client, ClientConfig, Completion, Delivery, DeliveryKey, Event, Output, RegistrationId, RequestKey,
    RequestSpec,
};
use ringpost_protocol::{
    Code, Content, Outgoing,
    frame::{FrameReader, Preface, decode_server, encode_client},
    message::{RequestFlags, Verdict as Answer},
    time::Now,
};

use super::{
    ledger::{Entry, Ledger, Said, Told},
    limits::Limits,
    rng::Rng,
    rules::{Verdict, Violation},
    script::{Ask, Kind},
    secure::Records,
    server::MAX_PAYLOAD,
    world::{Habits, Wish},
};

/// A client and its application.
pub(crate) struct Peer {
    process: usize,
    session: Bytes,
    pub(crate) core: Client,
    pub(crate) link: Option<usize>,
    received: BytesMut,
    /// With a secure key: all goes through these.
    records: Option<Records>,
    greeted: bool,
    outgoing: Outgoing,
    open: BTreeMap<u64, RequestKey>,
    registrations: Vec<RegistrationId>,
    /// Deliveries that were called back while the handler was at work.
    called_back: BTreeSet<DeliveryKey>,
    /// What is worked on, and whether it is a send that may be tried again.
    working: BTreeMap<DeliveryKey, (u64, bool)>,
    /// Boot and tenure of the last welcome.
    known_as: Option<(u64, u64)>,
    /// Another process has, or had, the same session.
    pub(crate) contested: bool,
    /// What it may do, if not everything.
    limits: Option<Arc<Limits>>,
    rng: Rng,
}

impl Peer {
    pub(crate) fn new(process: usize, config: ClientConfig, limits: Option<Arc<Limits>>, rng: Rng) -> Self {
        Self {
            process,
            session: config.session.clone(),
            core: Client::new(config),
            link: None,
            received: BytesMut::new(),
            records: None,
            greeted: false,
            outgoing: Outgoing::new(),
            open: BTreeMap::new(),
            registrations: Vec::new(),
            called_back: BTreeSet::new(),
            working: BTreeMap::new(),
            known_as: None,
            contested: false,
            limits,
            rng,
        }
    }

    pub(crate) fn connected(&mut self, link: usize, records: Option<Records>, now: Now) {
        self.link = Some(link);
        self.records = records;
        self.received.clear();
        self.outgoing.clear();
        self.greeted = false;
        self.outgoing.tail().extend_from_slice(&Preface::plain().encode());
        self.core.connected(now.mono);
    }

    pub(crate) fn disconnected(&mut self, now: Now) {
        self.link = None;
        self.core.disconnected("the link broke", now.mono);
    }

    pub(crate) fn receive(&mut self, bytes: &[u8], now: Now) {
        self.received.extend_from_slice(bytes);
        let Some(mut records) = self.records.take() else { return self.read(now) };
        let rest = records.open(&mut self.received);
        self.read(now);
        records.rejoin(&mut self.received, rest);
        self.records = Some(records);
    }

    /// Reads what is received.
    fn read(&mut self, now: Now) {
        if !self.greeted {
            match Preface::decode(&self.received).expect("the server speaks the protocol") {
                Some(_) => {
                    let _ = self.received.split_to(Preface::BYTES);
                    self.greeted = true;
                }
                None => return,
            }
        }
        let reader = FrameReader::new(MAX_PAYLOAD);
        while let Some(frame) = reader.next(&mut self.received).expect("the server's frames are whole") {
            if let Some(message) = decode_server(frame).expect("the server's frames are right") {
                self.core.received(message, now.mono);
            }
        }
        self.core.heard(now.mono);
        self.core.check_invariants();
    }

    /// Does what the core says; what the world must do comes back.
    pub(crate) fn turn(
        &mut self,
        ledger: &mut Ledger,
        habits: &Habits,
        time: u64,
    ) -> Result<Vec<Wish>, Violation> {
        let mut wishes = Vec::new();
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Connect => wishes.push(Wish::Dial),
                Output::Send(message) => encode_client(&message, &mut self.outgoing),
                Output::Disconnect => {
                    self.flush(&mut wishes);
                    wishes.push(Wish::HangUp { link: self.link.take() });
                }
                Output::Abort => {
                    self.outgoing.clear();
                    wishes.push(Wish::HangUp { link: self.link.take() });
                }
                Output::Complete(completion) => self.completed(&completion, ledger, time)?,
                Output::Deliver(delivery) => self.delivered(&delivery, habits, &mut wishes),
                Output::CancelDelivery(key) => {
                    self.called_back.insert(key);
                    let mut rng =
                        habits.of(self.working.get(&key).map(|(token, _)| *token).unwrap_or_default(), 1);
                    // One that is stuck does not listen.
                    if !rng.chance(habits.stuck) {
                        wishes.push(Wish::Work { delivery: key, after: rng.below(3000) });
                    }
                }
                Output::Event(Event::Connected { boot, tenure, .. }) => {
                    match self.known_as.replace((boot, tenure)) {
                        Some((before, _)) if before != boot => ledger.excuse(self.process),
                        Some((_, before)) if before != tenure && !self.contested => {
                            ledger.is_unknown(self.process, &self.session)?;
                        }
                        _ => {}
                    }
                }
                Output::Unclaimed(unclaimed) => {
                    let number = unclaimed.result.as_ref().map(|content| number_in(content.payload()));
                    if let Ok(number) = number {
                        ledger.left_behind(number)?;
                    }
                    let after = if self.rng.chance(700) { 0 } else { self.rng.below(500_000) };
                    wishes.push(Wish::Claim { key: unclaimed.key, after });
                }
                Output::Progress { .. }
                | Output::Legs { .. }
                | Output::Receivers(_)
                | Output::Registered(_)
                | Output::Peer(_)
                | Output::Event(_) => {}
                Output::RegistrationFailed(id, _) | Output::Deregistered(id) => {
                    self.registrations.retain(|known| *known != id)
                }
            }
        }
        self.core.check_invariants();
        self.flush(&mut wishes);
        Ok(wishes)
    }

    fn flush(&mut self, wishes: &mut Vec<Wish>) {
        if let Some(link) = self.link
            && !self.outgoing.is_empty()
        {
            let bytes = self.outgoing.drain_to_vec();
            let bytes = match &mut self.records {
                None => bytes,
                Some(records) => records.seal(&bytes),
            };
            wishes.push(Wish::Send { link, bytes });
        }
    }

    fn completed(&mut self, completion: &Completion, ledger: &mut Ledger, time: u64) -> Verdict {
        let told = match &completion.result {
            Ok(content) if content.is_empty() => Told::Accepted,
            Ok(content) => Told::Reply(number_in(content.payload())),
            Err(error) if error.kind() == Code::Remote => Told::Remote(number_in(error.message().as_bytes())),
            Err(error) => Told::Error(error.kind()),
        };
        if completion.last {
            self.open.remove(&completion.token);
        }
        let leg = completion.leg.map(|leg| (leg.index, leg.expected));
        ledger.told(completion.token, &told, leg, completion.last, time)
    }

    fn delivered(&mut self, delivery: &Delivery, habits: &Habits, wishes: &mut Vec<Wish>) {
        let token = number_in(delivery.message.content.payload()).expect("payloads begin with a number");
        let flags = delivery.message.flags;
        let tried = flags.has(RequestFlags::DURABLE) && flags.has(RequestFlags::SEND);
        self.working.insert(delivery.key, (token, tried));
        if let Some(after) = habits.work(token, delivery.message.attempt) {
            wishes.push(Wish::Work { delivery: delivery.key, after });
        }
    }

    /// The handler has come to an end with a delivery.
    pub(crate) fn finish_work(&mut self, key: DeliveryKey, ledger: &mut Ledger, now: Now) {
        let Some((token, tried)) = self.working.remove(&key) else { return };
        let called_back = self.called_back.remove(&key);
        let (said, verdict) = if called_back && self.rng.chance(800) {
            (Said::Cancelled, Answer::Cancelled)
        } else if tried && self.rng.chance(200) {
            let pause = self.rng.below(500) as u32;
            (Said::Error, self.rng.pick(&[Answer::Retry(pause), Answer::Retry(0), Answer::Reject]))
        } else if self.rng.chance(100) {
            (Said::Error, Answer::Error)
        } else {
            (Said::Reply, Answer::Reply)
        };
        let number = ledger.answers(token, said);
        self.core.answer(key, verdict, Content::from_payload(number.to_string()), now.mono);
    }

    pub(crate) fn register(&mut self, action: &str, credit: u32) {
        if self.registrations.len() < 4
            && let Ok(id) = self.core.register(action, credit)
        {
            self.registrations.push(id);
        }
    }

    pub(crate) fn deregister(&mut self, which: usize) {
        if let Some(id) = self.registrations.get(which).copied() {
            self.core.deregister(id);
        }
    }

    pub(crate) fn set_credit(&mut self, which: usize, credit: u32) {
        if let Some(id) = self.registrations.get(which).copied() {
            self.core.set_credit(id, credit);
        }
    }

    pub(crate) fn cancel(&mut self, which: usize, ledger: &mut Ledger, now: Now) {
        if let Some((&token, &key)) = self.open.iter().nth(which) {
            ledger.cancels(token);
            self.core.cancel(key, now.mono);
        }
    }

    pub(crate) fn ask(&mut self, token: u64, ask: &Ask, ledger: &mut Ledger, time: u64, now: Now) -> Verdict {
        let flags = match ask.kind {
            Kind::Request => RequestFlags::default(),
            Kind::Send => RequestFlags::SEND,
            Kind::Broadcast => RequestFlags::BROADCAST,
        };
        let flags = if ask.durable.is_some() { flags.with(RequestFlags::DURABLE) } else { flags };
        let ttl = std::time::Duration::from_micros(ask.durable.unwrap_or_default());
        let timeout = std::time::Duration::from_micros(ask.timeout);
        let payload = payload(token, ask.padding);
        let content = Content::from_parts(ask.action.as_bytes(), b"", b"", payload.as_bytes());
        let max_attempts = ask.max_attempts;
        let spec = RequestSpec { flags, max_attempts, ttl, timeout, content };
        let resumes = !self.session.is_empty() && !self.contested;
        ledger.asks(
            &Entry {
                token,
                process: self.process,
                kind: ask.kind,
                timeout: ask.timeout,
                resumes,
                durable: ask.durable,
                forbidden: self.limits.as_ref().is_some_and(|limits| !limits.may_request(ask.action)),
            },
            time,
        );
        match self.core.request(spec, token, now.mono) {
            Ok(key) => {
                self.open.insert(token, key);
                Ok(())
            }
            Err(error) => ledger.told(token, &Told::Error(error.kind()), None, true, time),
        }
    }
}

/// A payload that begins with a number.
pub(crate) fn payload(number: u64, padding: usize) -> String {
    format!("{number}{}", " ".repeat(padding))
}

/// The number that a payload begins with: a request's token, or an answer's number.
pub(crate) fn number_in(payload: &[u8]) -> Option<u64> {
    std::str::from_utf8(payload).ok()?.trim().parse().ok()
}
