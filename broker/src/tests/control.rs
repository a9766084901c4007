//! The server's own actions.

use serde_json::{Value, json};

use super::*;

impl Stage {
    fn control(&mut self, conn: ConnId, number: u64, action: &str, data: &Value) -> Result<Value, Code> {
        let data = if data.is_null() { String::new() } else { data.to_string() };
        let content = Content::from_parts(action.as_bytes(), b"", b"", data.as_bytes());
        self.request(conn, number, |request| request.content = content);
        let reply = self.replies(conn).into_iter().find(|reply| reply.number == number).expect("an answer");
        match reply.code {
            None => Ok(serde_json::from_slice(reply.content.payload()).unwrap()),
            Some(code) => Err(code),
        }
    }
}

/// Actions and connections are listed with who handles and holds what.
#[test]
fn lists() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Json));
    stage.register(requester, 0, "b", 3);
    stage.request(requester, 0, |_| {});
    stage.request(requester, 0, |_| {});
    let asker = stage.connect(Speaks::Binary);
    let actions = stage.control(asker, 1, "$sys.actions", &Value::Null).unwrap();
    assert_eq!(actions[0]["action"], "b");
    let sum = json!({"connection": handler.0, "server": null, "held": 1, "credit": 1, "waitingLegs": 0, "stuck": false, "clogged": false});
    assert_eq!((&actions[1]["handlers"][0], &actions[1]["queued"]), (&sum, &json!(1)));
    let connections = stage.control(asker, 2, "$sys.connections", &Value::Null).unwrap();
    assert_eq!((&connections[0]["handles"], &connections[0]["holds"]), (&json!(["sum"]), &json!(1)));
    assert_eq!((&connections[1]["dialect"], &connections[1]["openRequests"]), (&json!("json"), &json!(2)));
    assert_eq!(stage.control(asker, 3, "$sys.nothing", &Value::Null), Err(Code::NoHandler));
}

/// Queues can be listed, looked into and emptied; one request can be ended wherever it is.
#[test]
fn queues() {
    let mut stage = Stage::new(Config::default());
    let (handler, requester) = (stage.handler("sum", 1), stage.connect(Speaks::Binary));
    for number in 1..=4 {
        stage.request(requester, number, |_| {});
    }
    stage.take(handler);
    let asker = stage.connect(Speaks::Binary);
    let listed = stage.control(asker, 1, "$sys.queues", &Value::Null).unwrap();
    assert_eq!((&listed[0]["action"], &listed[0]["queued"]), (&json!("sum"), &json!(3)));
    let peek = json!({"op": "peek", "action": "sum", "count": 2});
    let peeked = stage.control(asker, 2, "$sys.queues", &peek).unwrap();
    assert_eq!((peeked.as_array().map(Vec::len), &peeked[0]["data"]), (Some(2), &json!("{\"value\":2}")));
    let cancel = json!({"op": "cancel", "requestId": peeked[0]["requestId"]});
    assert_eq!(stage.control(asker, 3, "$sys.queues", &cancel), Ok(json!({"ended": 1})));
    assert_eq!(stage.control(asker, 4, "$sys.queues", &cancel), Ok(json!({"ended": 0})));
    let purge = json!({"op": "purge", "action": "sum"});
    assert_eq!(stage.control(asker, 5, "$sys.queues", &purge), Ok(json!({"ended": 2})));
    let cancelled = Some(Code::Cancelled);
    assert_eq!(stage.codes(requester), [(2, cancelled), (3, cancelled), (4, cancelled)]);
    assert!(stage.take(handler).is_empty(), "what it holds goes on");
    for (number, wrong) in [(6, json!({"op": "drop"})), (7, json!({"op": "purge"})), (8, json!([1]))] {
        assert_eq!(stage.control(asker, number, "$sys.queues", &wrong), Err(Code::Malformed));
    }
    assert_eq!(
        stage.control(asker, 9, "$sys.queues", &json!({"op": "purge", "action": "x"})),
        Err(Code::NoHandler)
    );
}
