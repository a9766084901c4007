//! A client that knows only the JSON table of the protocol: it asks and handles by `init`, requests, `response` and
//! `error`, with or without new lines, several objects in one write or one in many.

use std::collections::BTreeMap;

use ringpost_protocol::{Code, time::Now};
use serde_json::{Value, json};

use super::{
    oracle::{Kind, Oracle, Said, Told},
    peer::number_in,
    rng::Rng,
    world::ACTIONS,
};

pub(crate) struct JsonPeer {
    pub(crate) link: Option<usize>,
    lines: bool,
    received: Vec<u8>,
    outgoing: Vec<u8>,
    /// Tokens without an end, with whether they are broadcasts.
    open: BTreeMap<u64, Kind>,
}

impl JsonPeer {
    pub(crate) fn new(lines: bool) -> Self {
        Self { link: None, lines, received: Vec::new(), outgoing: Vec::new(), open: BTreeMap::new() }
    }

    pub(crate) fn connected(&mut self, link: usize) {
        self.link = Some(link);
        self.received.clear();
        self.outgoing.clear();
    }

    /// JSON clients have no sessions here: what was open may have run, and nobody will say.
    pub(crate) fn disconnected(&mut self, oracle: &mut Oracle, now: Now) {
        self.link = None;
        for token in std::mem::take(&mut self.open).into_keys() {
            oracle.told(token, &Told::Error(Code::ConnectionLost), None, true, now.mono.micros());
        }
    }

    pub(crate) fn take_outgoing(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.outgoing)
    }

    fn say(&mut self, message: &Value) {
        self.outgoing.extend_from_slice(message.to_string().as_bytes());
        if self.lines {
            self.outgoing.push(b'\n');
        }
    }

    pub(crate) fn register(&mut self, action: &str, concurrency: u64) {
        self.say(&json!({"id": action, "action": "init", "concurrency": concurrency}));
    }

    pub(crate) fn ask(&mut self, token: u64, oracle: &mut Oracle, rng: &mut Rng, now: Now) {
        let kind = if rng.chance(100) { Kind::Broadcast } else { Kind::Request };
        let timeout = rng.between(2, 3000);
        oracle.asks(token, kind, 1, timeout * 1000, false, now.mono.micros());
        self.open.insert(token, kind);
        let mut options = json!({"timeout": timeout});
        if kind == Kind::Broadcast {
            options["broadcast"] = true.into();
        }
        self.say(&json!({"id": rng.pick(&ACTIONS), "clientId": token, "data": token, "options": options}));
    }

    /// Deliveries to work on come back, with the time that each takes.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        oracle: &mut Oracle,
        rng: &mut Rng,
        now: Now,
    ) -> Vec<(String, u64, u64)> {
        self.received.extend_from_slice(bytes);
        let received = std::mem::take(&mut self.received);
        let mut stream = serde_json::Deserializer::from_slice(&received).into_iter::<Value>();
        let mut work = Vec::new();
        while let Some(Ok(object)) = stream.next() {
            work.extend(self.take_in(&object, oracle, rng, now));
        }
        self.received = received[stream.byte_offset()..].to_vec();
        work
    }

    fn take_in(
        &mut self,
        object: &Value,
        oracle: &mut Oracle,
        rng: &mut Rng,
        now: Now,
    ) -> Option<(String, u64, u64)> {
        let message = &object["message"];
        match object["action"].as_str() {
            Some("request") => {
                let token = message["data"].as_u64().expect("data of the simulation is a number");
                oracle.delivered(token);
                let delivery = message["serverId"].as_str().expect("a serverId").to_owned();
                return Some((delivery, token, rng.between(10, 20_000)));
            }
            Some("response") => {
                let number = message["data"].as_u64().expect("replies are numbers");
                self.told(message, &Told::Reply(number), oracle, now);
            }
            Some("error") if message["clientId"].is_u64() => {
                let info = &message["info"];
                let told = match info["code"].as_str() {
                    Some("remote") => {
                        Told::Remote(number_in(info["error"].as_str().unwrap_or_default().as_bytes()))
                    }
                    code => {
                        let known = Code::ALL.iter().find(|known| Some(known.text()) == code);
                        // A JSON request whose timeout is over is `timeout` or `expired`; both are the reference's `expired`.
                        Told::Error(*known.unwrap_or_else(|| panic!("a code: {object}")))
                    }
                };
                self.told(message, &told, oracle, now);
            }
            Some("error") => panic!("this peer keeps to the protocol: {object}"),
            Some("receivers" | "cancel" | "pong") => {}
            _ => panic!("not in the table: {object}"),
        }
        None
    }

    fn told(&mut self, message: &Value, told: &Told, oracle: &mut Oracle, now: Now) {
        let token = message["clientId"].as_u64().expect("a clientId");
        let info = &message["info"];
        let leg = info["expected"]
            .as_u64()
            .map(|expected| (info["leg"].as_u64().unwrap_or(0) as u32, expected as u32));
        let last = oracle.legs_end(token, leg);
        if last {
            self.open.remove(&token);
        }
        oracle.told(token, told, leg, last, now.mono.micros());
    }

    pub(crate) fn finish_work(&mut self, delivery: &str, token: u64, oracle: &mut Oracle, rng: &mut Rng) {
        let said = if rng.chance(100) { Said::Error } else { Said::Reply };
        let number = oracle.answers(token, said);
        match said {
            Said::Error => self.say(
                &json!({"action": "error", "message": {"serverId": delivery, "info": {"error": number.to_string()}}}),
            ),
            _ => self.say(&json!({"action": "response", "message": {"serverId": delivery, "data": number}})),
        }
    }
}
