//! What nobody should send: each gets a clear error where someone can read it, others do not notice, nothing is left.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at what is not right"
)]

mod common;

use common::{Raw, frames::Frames, server, server_with, stats, wait_until_quiet};
use ringpost_protocol::{
    frame::{Preface, kind},
    message::{ClientMessage, ServerMessage},
};
use ringpost_server::{Config, Handle};
use serde_json::{Value, json};

/// A handler and a requester that have nothing to do with the mischief; they must go on as if nothing were.
struct Bystanders {
    handler: Raw,
    requester: Raw,
}

impl Bystanders {
    fn new(server: &Handle) -> Self {
        let mut handler = Raw::connect(server.address());
        handler.object(&json!({"id": "quiet", "action": "init"}));
        handler.wait_for("quiet");
        Self { handler, requester: Raw::connect(server.address()) }
    }

    fn check(&mut self) {
        self.requester.object(&json!({"id": "quiet", "clientId": 1, "data": "are you well?"}));
        let message = self.handler.answer()["message"].clone();
        let reply = json!({"serverId": message["serverId"], "data": message["data"]});
        self.handler.object(&json!({"action": "response", "message": reply}));
        assert_eq!(self.requester.answer()["message"]["data"], "are you well?");
    }
}

/// The last JSON object before the end of the stream: it must be the error.
fn told(raw: Raw) -> Value {
    let rest = raw.rest();
    let objects = serde_json::Deserializer::from_slice(&rest).into_iter::<Value>();
    objects.map(Result::unwrap).last().expect("it is told before it is closed")["message"]["info"].clone()
}

/// JSON that is not, is too long, too deep or says things twice: an error with its code, then the end.
#[test]
fn bad_json() {
    let mut config = Config::default();
    config.max_payload = 1 << 16;
    let server = server_with(config);
    let mut bystanders = Bystanders::new(&server);
    let deep = format!(r#"{{"id":"quiet","clientId":1,"data":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
    let long = format!(r#"{{"id":"quiet","clientId":1,"data":"{}"}}"#, "x".repeat(1 << 18));
    let cases = [
        (r#"{"id":"quiet","data":tru}"#.to_owned(), "malformed"),
        (r#"{"id":"quiet","data":1,}"#.to_owned(), "malformed"),
        (r#"{"id":"quiet" "data":1}"#.to_owned(), "malformed"),
        ("{\"id\":\"quiet\",\"data\":\"\u{1}\"}".to_owned(), "malformed"),
        (r#"{"id":"quiet","id":"other","data":1}"#.to_owned(), "malformed"),
        (r#"{"id":"quiet","data":1,"options":{"ttl":1,"ttl":2}}"#.to_owned(), "malformed"),
        (r#"{"id":"quiet","data":1,"options":[]}"#.to_owned(), "malformed"),
        (r#"{"id":7,"data":1}"#.to_owned(), "malformed"),
        (r#"{"data":1}"#.to_owned(), "malformed"),
        (r#"{} [1]"#.to_owned(), "malformed"),
        (deep, "tooDeep"),
        (long, "tooLarge"),
    ];
    for (bytes, code) in cases {
        let mut raw = Raw::connect(server.address());
        raw.try_to_say(&bytes);
        let info = told(raw);
        assert_eq!(info["code"], code, "{}: {info}", &bytes[..bytes.len().min(80)]);
        assert!(info["error"].as_str().is_some_and(|text| text.len() > 10), "a message for people: {info}");
        bystanders.check();
    }
    let mut raw = Raw::connect(server.address());
    raw.say(b"{\"id\":\"quiet\",\"data\":\"\xff\xfe\"}");
    assert_eq!(told(raw)["code"], "malformed");
    wait_until_quiet(server.address(), 3);
}

/// An object that ends before its end: the client has hung up, and nothing is left of it.
#[test]
fn truncated_json() {
    let server = server();
    let mut bystanders = Bystanders::new(&server);
    let whole = br#"{"id":"quiet","clientId":"1","data":{"a":[1,2]}}"#;
    for end in 1..whole.len() {
        let mut raw = Raw::connect(server.address());
        raw.say(&whole[..end]);
        raw.end();
        raw.rest();
    }
    bystanders.check();
    wait_until_quiet(server.address(), 3);
}

/// Frames that lie about their length, are of an unknown kind, or break the order: an error frame, then the end.
#[test]
fn bad_frames() {
    let server = server();
    let mut bystanders = Bystanders::new(&server);
    let header = |length: u32, kind: u8, number: u64| {
        let mut header = vec![0; 16];
        header[..4].copy_from_slice(&length.to_le_bytes());
        header[4] = kind;
        header[8..].copy_from_slice(&number.to_le_bytes());
        header
    };
    let mut short = header(16, kind::REQUEST, 1);
    short.extend_from_slice(&[0; 12]);
    short.extend_from_slice(&[200, 0, 0, 0]);
    let cases = [
        (header(u32::MAX, kind::REQUEST, 1), "tooLarge"),
        (header(0, 0x7e, 0), "unsupported"),
        (header(0, kind::REQUEST, 1), "malformed"),
        (header(0, kind::REGISTER, 0), "malformed"),
        (header(0, kind::HELLO, 0), "malformed"),
        (short, "malformed"),
    ];
    for (bytes, code) in cases {
        let mut frames = Frames::connect(server.address());
        frames.raw.say(&bytes);
        match frames.next() {
            Some(ServerMessage::Error(report)) => assert_eq!(report.code.text(), code, "{}", report.message),
            other => panic!("an error, not {other:?}"),
        }
        assert!(frames.next().is_none(), "then the end");
        bystanders.check();
    }
    let mut skipped = Frames::connect(server.address());
    skipped.raw.say(header(0, 0xfe, 0));
    skipped.request(1, "nobody");
    assert_eq!(skipped.reply().number, 1);
    drop(skipped);
    wait_until_quiet(server.address(), 3);
}

/// A version or mode that is not spoken here, and a first frame that is no hello.
#[test]
fn bad_beginnings() {
    let server = server();
    for (at, byte) in [(4, 0), (5, 1), (5, 9)] {
        let mut preface = Preface::plain().encode();
        preface[at] = byte;
        let mut raw = Raw::connect(server.address());
        raw.say(preface);
        assert!(!raw.rest().is_empty(), "byte {at} = {byte}: it is told before it is closed");
    }
    let mut newer = Preface::plain().encode();
    newer[4] = 200;
    let mut raw = Raw::connect(server.address());
    raw.say(newer);
    raw.end();
    assert_eq!(raw.rest()[4], 1, "a newer client is told the version that is spoken");
    let mut frames = Frames::over(Raw::connect(server.address()));
    frames.raw.say(Preface::plain().encode());
    frames.request(1, "sum");
    assert!(matches!(frames.next(), Some(ServerMessage::Error(_))));
    assert!(frames.next().is_none());
}

/// HTTP and TLS on this port are told, each in its own way, what this port is.
#[test]
fn other_protocols() {
    let server = server();
    let mut http = Raw::connect(server.address());
    http.say("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let answer = String::from_utf8(http.rest()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 4") && answer.contains("Ringpost"), "{answer}");
    let mut tls = Raw::connect(server.address());
    tls.say([0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0]);
    assert_eq!(tls.rest()[..2], [0x15, 3], "an alert");
    let mut other = Raw::connect(server.address());
    other.say("SSH-2.0-OpenSSH_9.2\r\n");
    assert_eq!(told(other)["code"], "malformed");
    wait_until_quiet(server.address(), 1);
}

/// Reserved and empty names: refused on that request or registration, and the connection goes on.
#[test]
fn bad_names() {
    let server = server();
    let mut raw = Raw::connect(server.address());
    for (name, code) in
        [("", "malformed"), ("ping\u{7}", "malformed"), ("$mine", "reservedName"), ("ping", "reservedName")]
    {
        raw.object(&json!({"id": name, "action": "init"}));
        assert_eq!(raw.answer()["message"]["info"]["code"], code, "init {name:?}");
        raw.object(&json!({"id": name, "clientId": "x", "data": 1}));
        let answer = raw.answer();
        assert_eq!(
            (&answer["message"]["info"]["code"], &answer["message"]["clientId"]),
            (&json!(code), &json!("x"))
        );
    }
    raw.object(&json!({"action": "ping"}));
    assert_eq!(raw.answer(), json!({"action": "pong"}));
}

/// A reply to what one does not hold, another's included, and a second reply: refused, the first one counts.
#[test]
fn replies_to_what_is_not_held() {
    let server = server();
    let (mut handler, mut other, mut requester) = (
        Frames::connect(server.address()),
        Frames::connect(server.address()),
        Frames::connect(server.address()),
    );
    handler.register("sum");
    other.register("other");
    requester.request(1, "sum");
    let delivery = handler.delivery().delivery;
    let mut json = Raw::connect(server.address());
    let boot = stats(server.address())["boot"].as_str().unwrap().to_owned();
    json.object(
        &json!({"action": "response", "message": {"serverId": format!("{boot}-{delivery:x}"), "data": 9}}),
    );
    assert_eq!(json.answer()["message"]["info"]["code"], "malformed");
    json.object(&json!({"action": "response", "message": {"serverId": "nonsense", "data": 9}}));
    assert_eq!(json.answer()["message"]["info"]["code"], "malformed", "and it goes on");
    for wrong in [delivery, 0, u64::MAX] {
        other.answer(wrong);
        assert!(matches!(other.next(), Some(ServerMessage::Error(report)) if report.number == wrong));
    }
    handler.answer(delivery);
    handler.answer(delivery);
    assert!(matches!(handler.next(), Some(ServerMessage::Error(report)) if report.number == delivery));
    assert_eq!(requester.reply().content.payload(), b"2");
    requester.request(2, "sum");
    handler.delivery();
    assert_eq!(stats(server.address())["total"]["foreignAnswers"], 6);
}

/// Half a connection: a requester that has no more to say, and says so, is answered; a handler loses what it holds.
#[test]
fn half_closes() {
    let server = server();
    let (mut handler, mut requester) = (Frames::connect(server.address()), Frames::connect(server.address()));
    handler.register("sum");
    requester.request(1, "sum");
    requester.say(&ClientMessage::Goaway);
    requester.raw.end();
    let delivery = handler.delivery().delivery;
    handler.answer(delivery);
    assert_eq!(requester.reply().number, 1);
    assert!(requester.next().is_none());
    let mut requester = Frames::connect(server.address());
    requester.request(1, "sum");
    handler.delivery();
    handler.raw.end();
    assert_eq!(requester.reply().code.map(|code| code.text()), Some("handlerLost"));
    assert!(handler.next().is_none());
    drop(requester);
    wait_until_quiet(server.address(), 1);
}
