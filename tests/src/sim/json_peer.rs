//! A client that knows only the JSON table of the protocol: it asks and handles by `init`, requests, `response` and
//! `error`, with or without new lines, several objects in one write or one in many.

use std::{collections::BTreeMap, sync::Arc};

use ringpost_protocol::Code;
use serde_json::{Value, json};

use super::{
    ledger::{Entry, Ledger, Said, Told},
    limits::Limits,
    peer::{number_in, payload},
    rng::Rng,
    rules::{Verdict, Violation},
    script::{Ask, Kind},
    world::Habits,
};

/// A delivery to work on, and for how long.
pub(crate) struct Work {
    pub(crate) delivery: String,
    pub(crate) token: u64,
    pub(crate) after: u64,
}

pub(crate) struct JsonPeer {
    process: usize,
    pub(crate) link: Option<usize>,
    lines: bool,
    received: Vec<u8>,
    outgoing: Vec<u8>,
    /// Tokens without an end.
    open: BTreeMap<u64, Kind>,
    /// What it handles, with its concurrency: said again on each connection.
    handles: BTreeMap<&'static str, u32>,
    /// What it may do, if not everything.
    limits: Option<Arc<Limits>>,
    rng: Rng,
}

impl JsonPeer {
    pub(crate) fn new(process: usize, limits: Option<Arc<Limits>>, mut rng: Rng) -> Self {
        Self {
            process,
            link: None,
            lines: rng.chance(500),
            received: Vec::new(),
            outgoing: Vec::new(),
            open: BTreeMap::new(),
            handles: BTreeMap::new(),
            limits,
            rng,
        }
    }

    pub(crate) fn connected(&mut self, link: usize) {
        self.link = Some(link);
        self.received.clear();
        self.outgoing.clear();
        for (action, concurrency) in self.handles.clone() {
            self.init(action, concurrency);
        }
    }

    /// JSON clients have no sessions here: what was open may have run, and nobody will say.
    pub(crate) fn disconnected(&mut self, ledger: &mut Ledger, time: u64) -> Verdict {
        self.link = None;
        for token in std::mem::take(&mut self.open).into_keys() {
            ledger.told(token, &Told::Error(Code::ConnectionLost), None, true, time)?;
        }
        Ok(())
    }

    pub(crate) fn has_open(&self) -> bool {
        !self.open.is_empty()
    }

    pub(crate) fn take_outgoing(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.outgoing)
    }

    fn say(&mut self, message: &Value) {
        if self.link.is_none() {
            return;
        }
        self.outgoing.extend_from_slice(message.to_string().as_bytes());
        if self.lines {
            self.outgoing.push(b'\n');
        }
    }

    fn init(&mut self, action: &str, concurrency: u32) {
        self.say(&json!({"id": action, "action": "init", "concurrency": concurrency}));
    }

    pub(crate) fn register(&mut self, action: &'static str, concurrency: u32) {
        self.handles.insert(action, concurrency);
        self.init(action, concurrency);
    }

    pub(crate) fn deregister(&mut self, which: usize) {
        if let Some(action) = self.handles.keys().nth(which).copied() {
            self.handles.remove(action);
            self.say(&json!({"id": action, "action": "deinit"}));
        }
    }

    pub(crate) fn set_credit(&mut self, which: usize, concurrency: u32) {
        if let Some(action) = self.handles.keys().nth(which).copied() {
            self.register(action, concurrency);
        }
    }

    pub(crate) fn cancel(&mut self, which: usize, ledger: &mut Ledger) {
        if let Some(token) = self.open.keys().nth(which).copied() {
            ledger.cancels(token);
            self.say(&json!({"action": "cancel", "clientId": token}));
        }
    }

    pub(crate) fn ask(&mut self, token: u64, ask: &Ask, ledger: &mut Ledger, time: u64) {
        if self.link.is_none() {
            return;
        }
        let kind = if ask.kind == Kind::Send { Kind::Request } else { ask.kind };
        let timeout = ask.timeout.div_ceil(1000);
        let process = self.process;
        let forbidden = self.limits.as_ref().is_some_and(|limits| !limits.may_request(ask.action));
        ledger.asks(
            &Entry {
                token,
                process,
                kind,
                timeout: timeout * 1000,
                resumes: false,
                durable: None,
                forbidden,
            },
            time,
        );
        self.open.insert(token, kind);
        let mut options = json!({"timeout": timeout, "maxAttempts": ask.max_attempts.max(1)});
        if kind == Kind::Broadcast {
            options["broadcast"] = true.into();
        }
        // Blanks around the data stand for its length.
        let data = payload(token, ask.padding);
        let text = json!({"id": ask.action, "clientId": token, "options": options, "data": 0}).to_string();
        let text = text.replacen("\"data\":0", &format!("\"data\":{data}"), 1);
        self.outgoing.extend_from_slice(text.as_bytes());
        if self.lines {
            self.outgoing.push(b'\n');
        }
    }

    /// Deliveries to work on come back.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        ledger: &mut Ledger,
        habits: &Habits,
        time: u64,
    ) -> Result<Vec<Work>, Violation> {
        self.received.extend_from_slice(bytes);
        let received = std::mem::take(&mut self.received);
        let mut stream = serde_json::Deserializer::from_slice(&received).into_iter::<Value>();
        let mut work = Vec::new();
        while let Some(Ok(object)) = stream.next() {
            work.extend(self.take_in(&object, ledger, habits, time)?);
        }
        self.received = received[stream.byte_offset()..].to_vec();
        Ok(work)
    }

    fn take_in(
        &mut self,
        object: &Value,
        ledger: &mut Ledger,
        habits: &Habits,
        time: u64,
    ) -> Result<Option<Work>, Violation> {
        let message = &object["message"];
        match object["action"].as_str() {
            Some("request") => {
                let token = message["data"].as_u64().expect("data of the simulation is a number");
                let delivery = message["serverId"].as_str().expect("a serverId").to_owned();
                let attempt = message["info"]["attempt"].as_u64().unwrap_or(1) as u16;
                return Ok(habits.work(token, attempt).map(|after| Work { delivery, token, after }));
            }
            Some("response") => {
                self.told(message, &Told::Reply(message["data"].as_u64()), ledger, time)?;
            }
            Some("error") if message["clientId"].is_u64() => {
                let info = &message["info"];
                let told = match info["code"].as_str() {
                    Some("remote") => {
                        Told::Remote(number_in(info["error"].as_str().unwrap_or_default().as_bytes()))
                    }
                    code => {
                        let known = Code::ALL.iter().find(|known| Some(known.text()) == code);
                        Told::Error(*known.unwrap_or_else(|| panic!("a code: {object}")))
                    }
                };
                self.told(message, &told, ledger, time)?;
            }
            // Of the connection as a whole, or of a registration over the bound.
            Some("error" | "receivers" | "cancel" | "pong") => {}
            _ => panic!("not in the table: {object}"),
        }
        Ok(None)
    }

    fn told(&mut self, message: &Value, told: &Told, ledger: &mut Ledger, time: u64) -> Verdict {
        let token = message["clientId"].as_u64().expect("a clientId");
        let info = &message["info"];
        let leg = info["expected"]
            .as_u64()
            .map(|expected| (info["leg"].as_u64().unwrap_or(0) as u32, expected as u32));
        let last = ledger.legs_end(token, leg);
        if last {
            self.open.remove(&token);
        }
        ledger.told(token, told, leg, last, time)
    }

    pub(crate) fn finish_work(&mut self, delivery: &str, token: u64, ledger: &mut Ledger) {
        let said = if self.rng.chance(100) { Said::Error } else { Said::Reply };
        let number = ledger.answers(token, said);
        match said {
            Said::Error => self.say(
                &json!({"action": "error", "message": {"serverId": delivery, "info": {"error": number.to_string()}}}),
            ),
            _ => self.say(&json!({"action": "response", "message": {"serverId": delivery, "data": number}})),
        }
    }
}
