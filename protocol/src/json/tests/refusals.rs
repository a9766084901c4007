//! Bad input: each is refused with the right code, and a message that names what is wrong.

use super::{MAX_PAYLOAD, decode};
use crate::{
    Code, Headers,
    limits::{JSON_OVERHEAD_BYTES, MAX_JSON_DEPTH, MAX_TAG_BYTES},
    message::ClientMessage,
};

#[track_caller]
fn refused(text: impl AsRef<[u8]>, code: Code, named: &str) {
    let decoded = decode(&text);
    let error = decoded.error.unwrap_or_else(|| panic!("accepted as {:?}", decoded.messages));
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(named), "`{named}` is not in: {error}");
}

/// Anything but an object is refused where it begins, and what is no JSON when it is whole.
#[test]
fn syntax() {
    for text in ["hello", "[1]", "\"{}\"", "\u{feff}{}", "{\"action\":\"ping\"},"] {
        refused(text, Code::Malformed, "must begin with `{`");
    }
    for text in [
        "{]",
        "{\"a\"}",
        "{\"id\":\"a\",}",
        "{\"id\":\"a\" \"data\":1}",
        "{\"id\":\"a\",\"data\":01}",
        "{\"id\":\"a\",\"data\":[1}}",
        "{\"id\":\"a\",\"data\":\"\\q\"}",
        "{\"id\":\"a\",\"data\":\"\n\"}",
        "{\"id\":\"a\",\"data\":\"\\ud800\"}",
        "{'id':'a'}",
    ] {
        refused(text, Code::Malformed, "this is not JSON");
    }
    refused(b"{\"id\":\"a\",\"data\":\"\xff\"}", Code::Malformed, "this is not JSON");
}

/// Half an object is neither a message nor an error.
#[test]
fn truncated() {
    let text = br#"{"id":"a","data":[1,"x\"y"],"clientId":"1"}"#;
    for end in 0..text.len() {
        let decoded = decode(&text[..end]);
        assert_eq!((decoded.messages.len(), decoded.error), (0, None));
    }
}

/// A key that the broker reads may be there once, also when one of the two is written with escapes.
#[test]
fn duplicate_keys() {
    for (text, key) in [
        (r#"{"id":"a","id":"b"}"#, "id"),
        (r#"{"id":"a","\u0069d":"b"}"#, "id"),
        (r#"{"id":"a","data":1,"data":2}"#, "data"),
        (r#"{"id":"a","message":null,"message":null}"#, "message"),
        (r#"{"id":"a","options":{"ttl":1,"ttl":2}}"#, "ttl"),
        (r#"{"action":"response","message":{"serverId":"x","data":1,"data":2}}"#, "data"),
        (r#"{"action":"error","message":{"info":{"error":"x","error":"y"}}}"#, "error"),
    ] {
        refused(text, Code::Malformed, &format!("`{key}` is there twice"));
    }
    assert_eq!(decode(r#"{"id":"a","x":1,"x":2}"#).messages.len(), 1);
}

/// Values of the wrong type are named, with what is expected.
#[test]
fn types() {
    for (text, named) in [
        (r#"{}"#, "`id`"),
        (r#"{"data":1}"#, "`id`"),
        (r#"{"id":7}"#, "`id` must be a string"),
        (r#"{"action":["ping"]}"#, "`action` must be a string"),
        (r#"{"action":"init"}"#, "`init` must name the action in `id`"),
        (r#"{"action":"deinit"}"#, "`deinit` must name the action in `id`"),
        (r#"{"action":"cancel"}"#, "`clientId`"),
        (r#"{"action":"acknowledge"}"#, "`message.clientId`"),
        (r#"{"id":"a","action":"init","concurrency":-1}"#, "`concurrency` must be a whole number"),
        (r#"{"id":"a","action":"init","concurrency":4294967296}"#, "`concurrency` must be a whole number"),
        (r#"{"id":"a","action":"init","session":5}"#, "`session` must be a string"),
        (r#"{"id":"a","clientId":{}}"#, "`clientId` must be"),
        (r#"{"id":"a","options":[]}"#, "`options` must be an object"),
        (r#"{"id":"a","options":"x"}"#, "`options` must be an object"),
        (r#"{"id":"a","options":{"ttl":"1"}}"#, "`options.ttl` must be a time in milliseconds"),
        (r#"{"id":"a","options":{"timeout":-1}}"#, "`options.timeout` must be a time in milliseconds"),
        (r#"{"id":"a","options":{"broadcast":1}}"#, "`options.broadcast` must be true or false"),
        (
            r#"{"id":"a","options":{"maxAttempts":0}}"#,
            "`options.maxAttempts` must be a whole number from 1 to 255",
        ),
        (r#"{"id":"a","options":{"maxAttempts":1.5}}"#, "`options.maxAttempts`"),
        (r#"{"id":"a","options":{"idempotencyKey":1}}"#, "`options.idempotencyKey` must be a string"),
        (r#"{"id":"a","options":{"headers":{"a":1}}}"#, "`options.headers` must be an object of strings"),
        (r#"{"action":"response"}"#, "`message.serverId`"),
        (r#"{"action":"response","message":[]}"#, "`message` must be an object"),
        (r#"{"action":"response","message":{"serverId":1}}"#, "`message.serverId` must be a string"),
        (r#"{"action":"response","message":{"serverId":""}}"#, "`message.serverId` must be the one"),
        (r#"{"action":"error","message":{"info":"boom"}}"#, "`info` must be an object"),
    ] {
        refused(text, Code::Malformed, named);
    }
}

/// A key whose value is forwarded as written is refused, not overlooked, when it is written with escapes.
#[test]
fn escaped_keys() {
    for (text, key) in [
        (r#"{"id":"a","dat\u0061":1}"#, "data"),
        (r#"{"id":"a","\u0063lientId":1}"#, "clientId"),
        (r#"{"id":"a","option\u0073":{}}"#, "options"),
        (r#"{"action":"response","messag\u0065":{"serverId":"0123456789abcdef-1","data":1}}"#, "data"),
    ] {
        refused(text, Code::Malformed, &format!("`{key}` must be written without escapes"));
    }
    let decoded = decode(r#"{"\u0069d":"a\u0062c"}"#);
    assert!(
        matches!(&decoded.messages[..], [ClientMessage::Request(request)] if request.content.name() == b"abc")
    );
}

/// Each bound is exact, and its error says which it is.
#[test]
fn sizes() {
    let data = |bytes: usize| format!(r#"{{"id":"a","data":"{}"}}"#, "x".repeat(bytes - 2));
    let most = MAX_PAYLOAD as usize;
    assert_eq!(decode(data(most)).messages.len(), 1);
    refused(data(most + 1), Code::TooLarge, "--max-payload");
    refused(data(most + JSON_OVERHEAD_BYTES as usize), Code::TooLarge, "--max-payload");
    refused(&data(most * 4)[..most * 3], Code::TooLarge, "--max-payload");
    let tag = |bytes: usize| format!(r#"{{"id":"a","clientId":"{}"}}"#, "x".repeat(bytes - 2));
    assert_eq!(decode(tag(MAX_TAG_BYTES)).messages.len(), 1);
    refused(tag(MAX_TAG_BYTES + 1), Code::TooLarge, "`clientId`");
    let session = |bytes: usize| format!(r#"{{"id":"a","action":"init","session":"{}"}}"#, "x".repeat(bytes));
    assert_eq!(decode(session(255)).messages.len(), 1);
    refused(session(256), Code::TooLarge, "`session`");
    refused(
        format!(r#"{{"id":"a","options":{{"x":"{}"}}}}"#, "x".repeat(1 << 16)),
        Code::TooLarge,
        "`options`",
    );
    refused(
        format!(r#"{{"id":"a","options":{{"headers":{{"{}":""}}}}}}"#, "x".repeat(256)),
        Code::TooLarge,
        "headers",
    );
}

/// A handler's error may go to a binary client, and has the bounds of its frames.
#[test]
fn sizes_of_a_failure() {
    let failure = |error: usize, code: usize| {
        let (error, code) = ("x".repeat(error), "y".repeat(code));
        format!(
            r#"{{"action":"error","message":{{"serverId":"0123456789abcdef-1","info":{{"error":"{error}","code":"{code}"}}}}}}"#
        )
    };
    let most = MAX_PAYLOAD as usize;
    assert_eq!(decode(failure(most, 255)).messages.len(), 1);
    refused(failure(most + 1, 0), Code::TooLarge, "`message.info.error`");
    refused(failure(1, 256), Code::TooLarge, "`message.info.code`");
}

/// Members that nobody reads are not kept with those that are.
#[test]
fn what_is_not_known_is_not_kept() {
    let kept = |text: String| {
        let decoded = decode(text);
        let [ClientMessage::Request(request)] = &decoded.messages[..] else { panic!("{decoded:?}") };
        let (payload, whole) = (request.content.payload_bytes(), request.content.options_bytes());
        assert_eq!((&payload[..], &whole[..]), (&b"1"[..], &b"{}"[..]));
        // Parts of one small buffer lie side by side.
        payload.as_ptr().addr().abs_diff(whole.as_ptr().addr())
    };
    let text = |junk: usize| format!(r#"{{"id":"a","options":{{}},"x":"{}","data":1}}"#, "x".repeat(junk));
    assert!(kept(text(100)) > 100, "not worth a copy");
    assert!(kept(text(50_000)) < 10);
}

/// What a requester may send, a handler can send back: data may be as deep in a reply as in a request.
#[test]
fn depth() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let request = |depth| format!(r#"{{"id":"a","data":{}}}"#, nested(depth));
    let reply = |depth| {
        let data = nested(depth);
        format!(r#"{{"action":"response","message":{{"serverId":"0123456789abcdef-1","data":{data}}}}}"#)
    };
    assert_eq!(decode(request(MAX_JSON_DEPTH - 1)).messages.len(), 1);
    assert_eq!(decode(reply(MAX_JSON_DEPTH - 1)).messages.len(), 1);
    refused(request(MAX_JSON_DEPTH), Code::TooDeep, "64");
    refused(reply(MAX_JSON_DEPTH), Code::TooDeep, "64");
}

/// Headers and the idempotency key become headers, beside the options that still hold them.
#[test]
fn headers() {
    let decoded =
        decode(r#"{"id":"a","options":{"headers":{"trace\u0070arent":"00-\u00e4"},"idempotencyKey":"k"}}"#);
    let [ClientMessage::Request(request)] = &decoded.messages[..] else { panic!("{decoded:?}") };
    let pairs: Vec<_> = Headers::new(request.content.headers()).map(Result::unwrap).collect();
    assert_eq!(pairs, [("idempotency-key", "k"), ("traceparent", "00-ä")]);
    assert!(request.content.options().starts_with(b"{\"headers\":"));
}
