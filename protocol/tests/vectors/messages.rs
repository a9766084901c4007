//! Makes messages of the vectors' descriptions. Members that are left out are empty or 0.

use bytes::Bytes;
use ringpost_protocol::{
    Content, encode_headers,
    frame::{Mode, Preface},
    message::{
        Answer, ClientMessage, Deliver, Ended, ErrorReport, Forward, Hello, Leg, OpenState, PeerMessage,
        Progress, Register, Reply, Request, RequestFlags, RequestId, Resume, Run, Runs, Scope, ServerMessage,
        Speaker, Target, Verdict, Welcome,
    },
};
use serde_json::Value;

use crate::files::{code, unhex};

pub(crate) fn preface(message: &Value) -> Preface {
    let mode = match text(message, "mode") {
        "plain" => Mode::Plain,
        "secure" => Mode::Secure,
        mode => panic!("there is no mode {mode}"),
    };
    Preface { version: number(message, "version") as u8, mode, capabilities: 0 }
}

pub(crate) fn client(message: &Value) -> ClientMessage {
    match text(message, "kind") {
        "hello" => ClientMessage::Hello(Hello {
            session: bytes(message, "session"),
            speaker: Speaker {
                instance: hex(message, "instance"),
                connection: number(message, "connection") as u32,
            },
            watch_receivers: message["watch"] == true,
            peer: message.get("peer").map(|_| bytes(message, "peer")),
            headers: headers(message),
        }),
        "register" => ClientMessage::Register(Register {
            registration: number(message, "registration") as u32,
            credit: number(message, "credit") as u32,
            action: bytes(message, "action"),
            session: Bytes::new(),
        }),
        "deregister" => ClientMessage::Deregister(Target::Number(number(message, "registration"))),
        "credit" => ClientMessage::Credit {
            registration: number(message, "registration") as u32,
            credit: number(message, "credit") as u32,
        },
        "request" => ClientMessage::Request(Request {
            number: number(message, "number"),
            flags: flags(message),
            max_attempts: number(message, "maxAttempts") as u8,
            ttl_ms: number(message, "ttlMs") as u32,
            timeout_ms: number(message, "timeoutMs") as u32,
            content: content(message, "action"),
        }),
        "answer" => ClientMessage::Answer(answer(message)),
        "leg" => ClientMessage::Leg(answer(message)),
        "legs" => ClientMessage::Legs {
            delivery: number(message, "delivery"),
            expected: number(message, "expected") as u32,
        },
        "resume" => ClientMessage::Resume(Resume {
            boot: boot(message),
            sequence: number(message, "sequence"),
            open: numbers(message, "open"),
            held_boot: message.get("heldBoot").map_or(0, |_| hex(message, "heldBoot")),
            held: numbers(message, "held"),
            unclaimed: message["unclaimed"] == true,
        }),
        "watch" => ClientMessage::WatchReceivers(message["on"] == true),
        "cancel" => ClientMessage::Cancel(Target::Number(number(message, "number"))),
        "progress" => ClientMessage::Progress(progress(message, "delivery")),
        "acknowledge" => ClientMessage::Acknowledge(Target::Number(number(message, "sequence"))),
        "ping" => ClientMessage::Ping(number(message, "token")),
        "pong" => ClientMessage::Pong(number(message, "token")),
        "goaway" => ClientMessage::Goaway,
        kind => match peer(message) {
            Some(peer) => ClientMessage::Peer(Box::new(peer)),
            None => panic!("a client has no {kind}"),
        },
    }
}

pub(crate) fn server(message: &Value) -> ServerMessage {
    match text(message, "kind") {
        "welcome" => ServerMessage::Welcome(Welcome {
            server_id: bytes(message, "serverId"),
            boot: boot(message),
            epoch: number(message, "epoch"),
            tenure: number(message, "tenure"),
            next_number: number(message, "nextNumber"),
            max_payload: number(message, "maxPayload") as u32,
            ping_interval_ms: number(message, "pingIntervalMs") as u32,
            durable_all: message["durableAll"] == true,
            headers: headers(message),
        }),
        "registered" => ServerMessage::Registered { registration: number(message, "registration") as u32 },
        "deliver" => ServerMessage::Deliver(Deliver {
            delivery: number(message, "delivery"),
            registration: number(message, "registration") as u32,
            flags: flags(message),
            attempt: number(message, "attempt") as u16,
            time_left_ms: millis_or_never(message, "timeLeftMs"),
            received_at_ms: number(message, "receivedAtMs"),
            request_id: RequestId { boot: boot(message), count: number(message, "count") },
            content: content(message, "action"),
        }),
        "accepted" => ServerMessage::Accepted { upto: number(message, "upto"), tag: Default::default() },
        "legs" => ServerMessage::Legs {
            number: number(message, "number"),
            expected: number(message, "expected") as u32,
        },
        "asked" => ServerMessage::Asked {
            number: number(message, "number"),
            tag: Default::default(),
            content: content(message, "action"),
        },
        "reply" => ServerMessage::Reply(reply(message)),
        "resumed" => ServerMessage::Resumed {
            open: message["open"].as_array().unwrap().iter().map(open_state).collect(),
            forgotten: numbers(message, "forgotten"),
            attached: message["attached"].as_array().into_iter().flatten().map(pair).collect(),
        },
        "receivers" => ServerMessage::Receivers(bytes(message, "list")),
        "error" => ServerMessage::Error(ErrorReport {
            scope: match text(message, "scope") {
                "connection" => Scope::Connection,
                "registration" => Scope::Registration,
                "delivery" => Scope::Delivery,
                scope => panic!("there is no scope {scope}"),
            },
            number: number(message, "number"),
            code: code(text(message, "code")).unwrap(),
            message: text(message, "text").to_owned(),
        }),
        "cancel" => ServerMessage::Cancel { delivery: number(message, "delivery"), tag: Default::default() },
        "progress" => ServerMessage::Progress(progress(message, "number")),
        "acknowledge" => ServerMessage::Acknowledge { sequence: number(message, "sequence") },
        "ping" => ServerMessage::Ping(number(message, "token")),
        "pong" => ServerMessage::Pong(number(message, "token")),
        "goaway" => ServerMessage::Goaway {
            grace_ms: number(message, "graceMs") as u32,
            reason: text(message, "reason").to_owned(),
        },
        kind => match peer(message) {
            Some(peer) => ServerMessage::Peer(Box::new(peer)),
            None => panic!("a server has no {kind}"),
        },
    }
}

/// What servers say to each other, in both directions.
fn peer(message: &Value) -> Option<PeerMessage> {
    Some(match text(message, "kind") {
        "forward" => PeerMessage::Forward(Forward {
            run: run(message),
            flags: flags(message),
            time_left_ms: number(message, "timeLeftMs") as u32,
            received_at_ms: number(message, "receivedAtMs"),
            content: content(message, "action"),
        }),
        "ended" => PeerMessage::Ended(Ended {
            run: run(message),
            verdict: verdict(message),
            content: content(message, "ownCode"),
        }),
        "working" => PeerMessage::Working { run: run(message), content: content(message, "") },
        "withdraw" => PeerMessage::Withdraw(run(message)),
        "taken" => PeerMessage::Taken(run(message)),
        "abroad" => PeerMessage::Abroad(runs(message)),
        "unknown" => PeerMessage::Unknown(runs(message)),
        _ => return None,
    })
}

fn run(message: &Value) -> Run {
    Run {
        request: RequestId { boot: boot(message), count: number(message, "count") },
        attempt: number(message, "attempt") as u16,
        tie: number(message, "tie"),
    }
}

fn runs(message: &Value) -> Runs {
    Runs {
        tie: number(message, "tie"),
        more: message["more"] == true,
        runs: message["runs"].as_array().unwrap().iter().map(run).collect(),
    }
}

fn reply(message: &Value) -> Reply {
    Reply {
        number: number(message, "number"),
        sequence: number(message, "sequence"),
        code: message.get("code").map(|text| code(text.as_str().unwrap()).unwrap()),
        leg: message
            .get("leg")
            .map(|leg| Leg { index: number(leg, "index") as u32, expected: number(leg, "expected") as u32 }),
        attempt: number(message, "attempt") as u16,
        received_at_ms: number(message, "receivedAtMs"),
        delivered_after_ms: millis_or_never(message, "deliveredAfterMs"),
        handled_after_ms: millis_or_never(message, "handledAfterMs"),
        content: content(message, "ownCode"),
        ..Reply::default()
    }
}

fn answer(message: &Value) -> Answer {
    Answer {
        delivery: number(message, "delivery"),
        sequence: number(message, "sequence"),
        verdict: verdict(message),
        content: content(message, "ownCode"),
    }
}

fn verdict(message: &Value) -> Verdict {
    match text(message, "verdict") {
        "reply" => Verdict::Reply,
        "error" => Verdict::Error,
        "cancelled" => Verdict::Cancelled,
        "retry" => Verdict::Retry(number(message, "afterMs") as u32),
        "reject" => Verdict::Reject,
        "failed" => Verdict::Failed(code(text(message, "code")).unwrap()),
        "declined" => Verdict::Declined(code(text(message, "code")).unwrap()),
        verdict => panic!("there is no verdict {verdict}"),
    }
}

fn flags(message: &Value) -> RequestFlags {
    let names = message["flags"].as_array().into_iter().flatten().map(|name| name.as_str().unwrap());
    names.fold(RequestFlags::default(), |flags, name| {
        flags.with(match name {
            "send" => RequestFlags::SEND,
            "broadcast" => RequestFlags::BROADCAST,
            "durable" => RequestFlags::DURABLE,
            "progress" => RequestFlags::PROGRESS,
            name => panic!("there is no flag {name}"),
        })
    })
}

fn open_state(entry: &Value) -> (u64, OpenState) {
    let state = match entry[1].as_str().unwrap() {
        "running" => OpenState::Running,
        "outcome" => OpenState::Outcome,
        "neverSeen" => OpenState::NeverSeen,
        "lost" => OpenState::Lost,
        state => panic!("there is no state {state}"),
    };
    (entry[0].as_u64().unwrap(), state)
}

fn progress(message: &Value, number_key: &str) -> Progress {
    Progress { number: number(message, number_key), content: content(message, ""), ..Progress::default() }
}

fn content(message: &Value, name_key: &str) -> Content {
    let payload = match message.get("payloadHex") {
        Some(hex) => unhex(hex.as_str().unwrap()).unwrap(),
        None => text(message, "payload").into(),
    };
    let (name, options) = (text(message, name_key).as_bytes(), text(message, "options").as_bytes());
    Content::from_parts(name, options, &headers(message), &payload)
}

fn headers(message: &Value) -> Bytes {
    let pairs = message["headers"].as_array().into_iter().flatten();
    encode_headers(pairs.map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))).unwrap()
}

/// 64 bits are more than a JSON number holds everywhere: boots and instances are written as 16 hexadecimal digits.
fn pair(pair: &Value) -> (u64, u64) {
    (pair[0].as_u64().unwrap(), pair[1].as_u64().unwrap())
}

fn boot(message: &Value) -> u64 {
    hex(message, "boot")
}

fn hex(message: &Value, key: &str) -> u64 {
    message.get(key).map_or(0, |digits| u64::from_str_radix(digits.as_str().unwrap(), 16).unwrap())
}

fn numbers(message: &Value, key: &str) -> Vec<u64> {
    message[key].as_array().into_iter().flatten().map(|number| number.as_u64().unwrap()).collect()
}

fn number(message: &Value, key: &str) -> u64 {
    message.get(key).map_or(0, |number| number.as_u64().unwrap())
}

fn millis_or_never(message: &Value, key: &str) -> u32 {
    message.get(key).map_or(u32::MAX, |number| number.as_u64().unwrap().try_into().unwrap())
}

fn text<'v>(message: &'v Value, key: &str) -> &'v str {
    message.get(key).map_or("", |text| text.as_str().unwrap())
}

fn bytes(message: &Value, key: &str) -> Bytes {
    Bytes::copy_from_slice(text(message, key).as_bytes())
}
