//! Clients that speak by hand, against a running server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::Write;

use common::{Binary, Json, connect, server, until_closed};
use ringpost_protocol::{
    Code,
    frame::Preface,
    message::{ClientMessage, ServerMessage},
};
use serde_json::{Value, json};

/// Register, request, reply by JSON, with newlines and without, and the reply is the data as it was written.
#[test]
fn json_request_and_reply() {
    for end in ["\n", ""] {
        let server = server();
        let (mut handler, mut requester) = (Json::connect(&server), Json::connect(&server));
        handler.register("sum");
        requester.say(&format!("{{\"id\":\"sum\",\"data\":{{\"value\": 2}},\"clientId\":\"q1\"}}{end}"));
        let request = handler.hear_a("request");
        assert_eq!(request["message"]["data"], json!({"value": 2}));
        let delivery = &request["message"]["serverId"];
        handler.say(&format!(
            "{{\"action\":\"response\",\"message\":{{\"serverId\":{delivery},\"data\":3}}}}{end}"
        ));
        let reply = requester.hear_a("response");
        assert_eq!(reply["message"]["clientId"], "q1");
        assert_eq!((&reply["message"]["data"], &reply["message"]["status"]), (&json!(3), &json!("handled")));
        server.stop();
    }
}

/// Several objects in one write, and one object in many, are the same to the server.
#[test]
fn json_in_any_pieces() {
    let server = server();
    let (mut handler, mut requester) = (Json::connect(&server), Json::connect(&server));
    handler.register("echo");
    requester.say(r#"{"id":"echo","data":1,"clientId":"1"}{"id":"echo","data":2,"clientId":"2"} {"id":"echo","data":3,"clientId":"3"}"#);
    for byte in br#"{"id":"echo","data":"four","clientId":"4"}"# {
        requester.socket.write_all(&[*byte]).unwrap();
    }
    for expected in [json!(1), json!(2), json!(3), json!("four")] {
        assert_eq!(handler.hear_a("request")["message"]["data"], expected);
    }
}

/// Binary to binary, and across the dialects in both directions.
#[test]
fn binary_and_json_meet() {
    let server = server();
    let (mut binary, mut json) = (Binary::connect(&server), Json::connect(&server));
    binary.register("from-binary");
    json.register("from-json");
    let mut requester = Binary::connect(&server);

    requester.request(1, "from-binary", b"any bytes \xff");
    let ServerMessage::Deliver(deliver) = binary.hear() else { panic!("no delivery") };
    assert_eq!((deliver.attempt, deliver.content.payload()), (1, &b"any bytes \xff"[..]));
    binary.answer(deliver.delivery, 1, b"back");
    let ServerMessage::Reply(reply) = requester.hear() else { panic!("no reply") };
    assert_eq!((reply.number, reply.code, reply.content.payload()), (1, None, &b"back"[..]));

    requester.request(2, "from-json", br#"{"a":1}"#);
    let request = json.hear_a("request");
    assert_eq!(request["message"]["data"], json!({"a": 1}));
    json.say(&format!(
        "{{\"action\":\"response\",\"message\":{{\"serverId\":{},\"data\":[2]}}}}\n",
        request["message"]["serverId"]
    ));
    let ServerMessage::Reply(reply) = requester.hear() else { panic!("no reply") };
    assert_eq!((reply.number, reply.content.payload()), (2, &b"[2]"[..]));

    // Not JSON, for a JSON handler: that request fails, and nothing else.
    requester.request(3, "from-json", b"\xff");
    let ServerMessage::Reply(reply) = requester.hear() else { panic!("no reply") };
    assert_eq!(reply.number, 3);
    assert!(reply.code.is_some());
    requester.request(4, "from-json", b"4");
    assert_eq!(json.hear_a("request")["message"]["data"], json!(4));
}

/// Large payloads pass in both directions, cut into many reads.
#[test]
fn large_payloads_pass() {
    let server = server();
    let (mut handler, mut requester) = (Binary::connect(&server), Binary::connect(&server));
    handler.register("large");
    let payload: Vec<u8> = (0..5_000_000u32).map(|i| (i >> 3) as u8).collect();
    let sent = payload.clone();
    let sending = std::thread::spawn(move || {
        requester.request(1, "large", &sent);
        requester
    });
    let ServerMessage::Deliver(deliver) = handler.hear() else { panic!("no delivery") };
    assert!(deliver.content.payload() == payload);
    let mut requester = sending.join().unwrap();
    let answering = std::thread::spawn(move || {
        handler.answer(deliver.delivery, 1, deliver.content.payload());
        handler
    });
    let ServerMessage::Reply(reply) = requester.hear() else { panic!("no reply") };
    assert!(reply.content.payload() == payload);
    answering.join().unwrap();
}

/// A requester that ends its half is still answered, and then closed. A handler that does loses what it holds.
#[test]
fn half_close() {
    let server = server();
    let mut handler = Json::connect(&server);
    handler.register("slow");
    let mut requester = Json::connect(&server);
    requester.say("{\"id\":\"slow\",\"data\":1,\"clientId\":\"a\"}\n");
    requester.end_half();
    let request = handler.hear_a("request");
    handler.say(&format!(
        "{{\"action\":\"response\",\"message\":{{\"serverId\":{},\"data\":2}}}}\n",
        request["message"]["serverId"]
    ));
    assert_eq!(requester.hear_a("response")["message"]["data"], 2);
    assert!(requester.hear_or_end().is_none());

    let mut requester = Json::connect(&server);
    requester.say("{\"id\":\"slow\",\"data\":1,\"clientId\":\"a\"}\n");
    handler.hear_a("request");
    handler.end_half();
    let failure = requester.hear_a("error");
    assert_eq!(failure["message"]["info"]["code"], "handlerLost", "{failure}");
}

/// HTTP, TLS and garbage are told what this port is, each in its own way, and closed; others go on.
#[test]
fn strangers_are_told_and_closed() {
    let server = server();
    let mut bystander = Binary::connect(&server);
    bystander.register("still-here");

    let mut http = connect(&server);
    http.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: test\r\n\r\n").unwrap();
    let answer = String::from_utf8(until_closed(&mut http)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("Ringpost"), "{answer}");

    let mut tls = connect(&server);
    tls.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).unwrap();
    assert_eq!(until_closed(&mut tls)[..3], [0x15, 3, 1]);

    for (bytes, code) in [
        (&b"hello there\n"[..], "malformed"),
        (b"{\"id\":\n\n]", "malformed"),
        (b"{\"id\":\"a\",\"id\":\"b\"}", "malformed"),
    ] {
        let mut garbage = connect(&server);
        garbage.write_all(bytes).unwrap();
        let answer = until_closed(&mut garbage);
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["message"]["info"]["code"], code, "{answer}");
    }
    let mut deep = connect(&server);
    deep.write_all(format!("{{\"id\":\"a\",\"data\":{}", "[".repeat(100)).as_bytes()).unwrap();
    let answer: Value = serde_json::from_slice(&until_closed(&mut deep)).unwrap();
    assert_eq!(answer["message"]["info"]["code"], "tooDeep");

    bystander.request(1, "still-here", b"1");
    assert!(matches!(bystander.hear(), ServerMessage::Deliver(_)));
}

/// What came before bad input in the same write is answered before the refusal.
#[test]
fn bad_input_does_not_swallow_earlier_answers() {
    let server = server();
    let mut client = connect(&server);
    client.write_all(b"{\"action\":\"ping\"}\n{\"id\":}\n").unwrap();
    let answer = String::from_utf8(until_closed(&mut client)).unwrap();
    let said: Vec<Value> = answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let actions: Vec<_> = said.iter().map(|message| &message["action"]).collect();
    assert_eq!(actions, ["pong", "error"], "{answer}");
}

/// Bad frames get an error frame and a close: a length that lies, an unknown kind, anything before the hello.
#[test]
fn bad_frames_are_refused() {
    let server = server();
    let expect = |mut client: Binary, code: Code| {
        let Some(ServerMessage::Error(report)) = client.hear_or_end() else { panic!("no error") };
        assert_eq!(report.code, code, "{}", report.message);
        assert!(client.hear_or_end().is_none());
    };
    let mut client = Binary::connect(&server);
    client.socket.write_all(&[0xff; 16]).unwrap();
    expect(client, Code::TooLarge);
    let mut client = Binary::connect(&server);
    client.socket.write_all(&[0, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    expect(client, Code::Unsupported);
    let mut client = Binary::connect_without_hello(&server);
    client.say(&ClientMessage::Ping(1));
    expect(client, Code::Malformed);

    let mut future = connect(&server);
    future.write_all(&Preface { version: 0, ..Preface::plain() }.encode()).unwrap();
    assert!(until_closed(&mut future).starts_with(&Preface::MAGIC));
}

/// A stream that ends within something is told so in its dialect, and counted; white space is nothing.
#[test]
fn truncated_streams_are_refused() {
    let server = server();
    for (bytes, within) in [
        (&b"{\"id\":\"a"[..], "an object"),
        (b"{\"action\":\"ping\"}\n{", "an object"),
        (&Preface::MAGIC[..3], "the preface"),
        (b"GE", "the first message"),
    ] {
        let mut client = Json::connect(&server);
        client.socket.write_all(bytes).unwrap();
        client.end_half();
        let refusal = client.hear_a("error");
        assert_eq!(refusal["message"]["info"]["code"], "malformed", "{refusal}");
        let message = refusal["message"]["info"]["error"].as_str().unwrap();
        assert!(message.contains(&format!("ended within {within}")), "{message}");
        assert!(client.hear_or_end().is_none());
    }
    let mut binary = Binary::connect(&server);
    binary.socket.write_all(&[200, 0, 0, 0, 1]).unwrap();
    binary.socket.shutdown(std::net::Shutdown::Write).unwrap();
    let Some(ServerMessage::Error(report)) = binary.hear_or_end() else { panic!("no error") };
    assert_eq!(report.code, Code::Malformed);
    assert!(report.message.contains("ended within a frame"), "{}", report.message);
    assert!(binary.hear_or_end().is_none());

    for blank in ["", " \r\n", "{\"action\":\"ping\"} \n\t"] {
        let mut client = Json::connect(&server);
        client.say(blank);
        client.end_half();
        while let Some(message) = client.hear_or_end() {
            assert_eq!(message["action"], "pong");
        }
    }
    let mut asking = Json::connect(&server);
    asking.say("{\"id\":\"$sys.stats\",\"data\":null,\"clientId\":\"1\"}\n");
    let stats = asking.hear_a("response");
    assert_eq!(stats["message"]["data"]["total"]["connectionsUnreadable"], 5, "{stats}");
}

/// A flood in one write is answered whole and in order, however the server cuts it into turns.
#[test]
fn a_flood_is_answered_whole() {
    let server = server();
    let mut json = Json::connect(&server);
    let mut writer = json.socket.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        let flood: String =
            (0..5000).map(|n| format!("{{\"id\":\"$sys.receivers\",\"clientId\":\"{n}\"}}\n")).collect();
        writer.write_all(flood.as_bytes()).unwrap();
    });
    for n in 0..5000 {
        assert_eq!(json.hear_a("response")["message"]["clientId"], n.to_string());
    }
    writing.join().unwrap();
}
