//! A client core with the wire's codec, driven as the SDK drives it, and an application on top that asks and handles.

use std::collections::BTreeMap;

use bytes::BytesMut;
use ringpost_client::{
    Client, ClientConfig, Completion, Delivery, DeliveryKey, Output, RegistrationId, RequestKey, RequestSpec,
};
use ringpost_protocol::{
    Code, Content, Outgoing,
    frame::{FrameReader, Preface, decode_server, encode_client},
    message::{RequestFlags, Verdict},
    time::Now,
};

use super::{
    oracle::{Kind, Oracle, Said, Told},
    rng::Rng,
    world::{ACTIONS, Wish},
};

/// A client and its application.
pub(crate) struct Peer {
    pub(crate) index: usize,
    pub(crate) core: Client,
    pub(crate) link: Option<usize>,
    received: BytesMut,
    greeted: bool,
    outgoing: Outgoing,
    open: BTreeMap<u64, RequestKey>,
    registrations: Vec<RegistrationId>,
    /// Deliveries that were called back while the handler was at work.
    called_back: BTreeMap<DeliveryKey, ()>,
    working: BTreeMap<DeliveryKey, u64>,
}

/// Bounds frames that the peer accepts.
const MAX_PAYLOAD: u32 = 1 << 20;

impl Peer {
    pub(crate) fn new(index: usize, config: ClientConfig) -> Self {
        Self {
            index,
            core: Client::new(config),
            link: None,
            received: BytesMut::new(),
            greeted: false,
            outgoing: Outgoing::new(),
            open: BTreeMap::new(),
            registrations: Vec::new(),
            called_back: BTreeMap::new(),
            working: BTreeMap::new(),
        }
    }

    pub(crate) fn connected(&mut self, link: usize, now: Now) {
        self.link = Some(link);
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
                self.core.check_invariants();
            }
        }
    }

    /// Does what the core says; what the world must do comes back.
    pub(crate) fn turn(&mut self, oracle: &mut Oracle, rng: &mut Rng, now: Now) -> Vec<Wish> {
        let mut wishes = Vec::new();
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Connect => wishes.push(Wish::Dial),
                Output::Send(message) => encode_client(&message, &mut self.outgoing),
                Output::Disconnect => {
                    self.flush(&mut wishes);
                    wishes.push(Wish::HangUp { link: self.link.take() });
                }
                Output::Complete(completion) => self.completed(completion, oracle, now),
                Output::Deliver(delivery) => self.delivered(delivery, oracle, rng, &mut wishes),
                Output::CancelDelivery(key) => {
                    self.called_back.insert(key, ());
                    wishes.push(Wish::Work { delivery: key, after: rng.below(3000) });
                }
                Output::Progress { .. } | Output::Receivers(_) | Output::Registered(_) | Output::Event(_) => {
                }
                Output::RegistrationFailed(id, _) | Output::Deregistered(id) => {
                    self.registrations.retain(|known| *known != id)
                }
            }
            self.core.check_invariants();
        }
        self.flush(&mut wishes);
        wishes
    }

    fn flush(&mut self, wishes: &mut Vec<Wish>) {
        if let Some(link) = self.link
            && !self.outgoing.is_empty()
        {
            wishes.push(Wish::Send { link, bytes: self.outgoing.drain_to_vec() });
        }
    }

    fn completed(&mut self, completion: Completion, oracle: &mut Oracle, now: Now) {
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
        oracle.told(completion.token, &told, leg, completion.last, now.mono.micros());
    }

    fn delivered(&mut self, delivery: Delivery, oracle: &mut Oracle, rng: &mut Rng, wishes: &mut Vec<Wish>) {
        let token = number_in(delivery.message.content.payload());
        oracle.delivered(token);
        self.working.insert(delivery.key, token);
        // One in fifty sits on it until it is called back.
        let after = if rng.chance(20) { 30_000_000 } else { rng.between(10, 20_000) };
        wishes.push(Wish::Work { delivery: delivery.key, after });
    }

    /// The handler has come to an end with a delivery.
    pub(crate) fn finish_work(&mut self, key: DeliveryKey, oracle: &mut Oracle, rng: &mut Rng, now: Now) {
        let Some(token) = self.working.remove(&key) else { return };
        let called_back = self.called_back.remove(&key).is_some();
        let said = if called_back && rng.chance(800) {
            Said::Cancelled
        } else if rng.chance(100) {
            Said::Error
        } else {
            Said::Reply
        };
        let verdict = match said {
            Said::Reply => Verdict::Reply,
            Said::Error => Verdict::Error,
            Said::Cancelled => Verdict::Cancelled,
        };
        let number = oracle.answers(token, said);
        self.core.answer(key, verdict, Content::from_payload(number.to_string()), now.mono);
    }

    /// The application does one thing.
    pub(crate) fn act(&mut self, token: u64, oracle: &mut Oracle, rng: &mut Rng, now: Now) {
        match rng.below(100) {
            0..=2 if self.registrations.len() < 4 => {
                let id = self.core.register(rng.pick(&ACTIONS), rng.between(1, 8) as u32);
                self.registrations.extend(id);
            }
            3 if !self.registrations.is_empty() => {
                let id = rng.pick(&self.registrations);
                self.core.deregister(id);
            }
            4..=9 => {
                if let Some((&token, &key)) = self.open.iter().next() {
                    oracle.cancels(token);
                    self.core.cancel(key, now.mono);
                }
            }
            _ => self.ask(token, oracle, rng, now),
        }
        self.core.check_invariants();
    }

    pub(crate) fn register(&mut self, action: &str, credit: u32) {
        let id = self.core.register(action, credit);
        self.registrations.extend(id);
    }

    fn ask(&mut self, token: u64, oracle: &mut Oracle, rng: &mut Rng, now: Now) {
        let kind = match rng.below(10) {
            0 => Kind::Broadcast,
            1 => Kind::Send,
            _ => Kind::Request,
        };
        let flags = match kind {
            Kind::Request => RequestFlags::default(),
            Kind::Send => RequestFlags::SEND,
            Kind::Broadcast => RequestFlags::BROADCAST,
        };
        let timeout = std::time::Duration::from_micros(rng.between(2_000, 3_000_000));
        let max_attempts = rng.between(1, 3) as u8;
        let action = rng.pick(&ACTIONS);
        let padding = " ".repeat(if rng.chance(20) { 30_000 } else { rng.below(200) as usize });
        let content =
            Content::from_parts(action.as_bytes(), b"", b"", format!("{token}{padding}").as_bytes());
        let spec = RequestSpec { flags, max_attempts, timeout, content, ..RequestSpec::default() };
        oracle.asks(
            token,
            kind,
            u32::from(max_attempts),
            timeout.as_micros() as u64,
            true,
            now.mono.micros(),
        );
        match self.core.request(spec, token, now.mono) {
            Ok(key) => {
                self.open.insert(token, key);
            }
            Err(error) => oracle.told(token, &Told::Error(error.kind()), None, true, now.mono.micros()),
        }
    }
}

/// The number that a payload begins with: a request's token, or an answer's number.
pub(crate) fn number_in(payload: &[u8]) -> u64 {
    let text = std::str::from_utf8(payload).expect("payloads of the simulation are text");
    text.trim().parse().unwrap_or_else(|_| panic!("`{text}` is a number"))
}
