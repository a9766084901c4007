//! What a JSON client can say beside requests and replies, at a running server, in lines and back to back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::{net::SocketAddr, time::Instant};

use common::{Binary, DEADLINE, Json, server};
use ringpost_server::Handle;
use serde_json::{Value, json};

const ENDS: [&str; 2] = ["\n", ""];

/// A client that ends its objects in its own way.
struct Client {
    json: Json,
    end: &'static str,
}

impl Client {
    fn connect(server: &Handle, end: &'static str) -> Self {
        Self { json: Json::connect(server), end }
    }

    fn say(&mut self, object: &Value) {
        let text = format!("{object}{}", self.end);
        self.json.say(&text);
    }

    fn ask(&mut self, action: &str, client_id: &str) {
        self.say(&json!({"id": action, "clientId": client_id, "data": client_id}));
    }

    /// The delivery that comes next, which is of this request: its `serverId`.
    fn gets(&mut self, client_id: &str) -> Value {
        let request = self.json.hear_a("request");
        assert_eq!(request["message"]["clientId"], client_id, "{request}");
        request["message"]["serverId"].clone()
    }

    fn reply(&mut self, delivery: &Value) {
        self.say(&json!({"action": "response", "message": {"serverId": delivery, "data": 1}}));
    }

    /// The end of a request: `clientId`, `status`, `info.code`.
    fn outcome(&mut self) -> (String, String, Option<String>) {
        loop {
            let message = self.json.hear();
            if message["action"] == "response" || message["action"] == "error" {
                let text = |value: &Value| value.as_str().map(str::to_owned);
                let message = &message["message"];
                let id = text(&message["clientId"]).unwrap();
                return (id, text(&message["status"]).unwrap(), text(&message["info"]["code"]));
            }
        }
    }

    /// All that was said before has been taken in, and nothing but lists of receivers has come meanwhile.
    fn hears_nothing_else(&mut self) {
        self.say(&json!({"action": "ping"}));
        loop {
            let message = self.json.hear();
            match message["action"].as_str() {
                Some("pong") => return,
                Some("receivers") => {}
                _ => panic!("not expected: {message}"),
            }
        }
    }
}

fn outcome(id: &str, status: &str, code: Option<&str>) -> (String, String, Option<String>) {
    (id.to_owned(), status.to_owned(), code.map(str::to_owned))
}

/// `concurrency`: so many are given at once; said again, it is changed.
#[test]
fn concurrency() {
    for end in ENDS {
        let server = server();
        let (mut handler, mut requester) = (Client::connect(&server, end), Client::connect(&server, end));
        handler.say(&json!({"id": "a", "action": "init", "concurrency": 1}));
        handler.hears_nothing_else();
        for id in ["1", "2", "3"] {
            requester.ask("a", id);
        }
        let first = handler.gets("1");
        requester.hears_nothing_else();
        handler.hears_nothing_else();
        handler.say(&json!({"id": "a", "action": "init", "concurrency": 2}));
        handler.gets("2");
        handler.hears_nothing_else();
        handler.reply(&first);
        handler.gets("3");
        assert_eq!(requester.outcome(), outcome("1", "handled", None));
        server.stop();
    }
}

/// `deinit`: nothing more comes, what is held may be answered, and who asks then finds nobody.
#[test]
fn deinit() {
    for end in ENDS {
        let server = server();
        let (mut handler, mut requester) = (Client::connect(&server, end), Client::connect(&server, end));
        handler.say(&json!({"id": "a", "action": "init"}));
        handler.hears_nothing_else();
        requester.ask("a", "held");
        let held = handler.gets("held");
        handler.say(&json!({"id": "a", "action": "deinit"}));
        handler.hears_nothing_else();
        requester.ask("a", "late");
        assert_eq!(requester.outcome(), outcome("late", "notDelivered", Some("noHandler")));
        handler.reply(&held);
        assert_eq!(requester.outcome(), outcome("held", "handled", None));
        server.stop();
    }
}

/// `cancel`: the request ends, its handler is told which, and its answer changes nothing but gives the slot back.
#[test]
fn cancel() {
    for end in ENDS {
        let server = server();
        let (mut handler, mut requester) = (Client::connect(&server, end), Client::connect(&server, end));
        handler.say(&json!({"id": "a", "action": "init", "concurrency": 1}));
        handler.hears_nothing_else();
        requester.ask("a", "1");
        let delivery = handler.gets("1");
        requester.ask("a", "2");
        requester.say(&json!({"action": "cancel", "clientId": "1"}));
        requester.say(&json!({"action": "cancel", "clientId": "unknown"}));
        assert_eq!(requester.outcome(), outcome("1", "notDelivered", Some("cancelled")));
        let told = handler.json.hear_a("cancel");
        assert_eq!(told["message"], json!({"serverId": delivery, "clientId": "1"}));
        handler.hears_nothing_else();
        handler.reply(&delivery);
        let delivery = handler.gets("2");
        handler.reply(&delivery);
        assert_eq!(requester.outcome(), outcome("2", "handled", None));
        requester.say(&json!({"action": "cancel", "clientId": "2"}));
        requester.hears_nothing_else();
        server.stop();
    }
}

/// `acknowledge` is accepted and changes nothing, while there is nothing durable to acknowledge; durable requests are refused.
#[test]
fn acknowledge() {
    for end in ENDS {
        let server = server();
        let (mut handler, mut requester) = (Client::connect(&server, end), Client::connect(&server, end));
        handler.say(&json!({"id": "a", "action": "init"}));
        handler.hears_nothing_else();
        requester.ask("a", "1");
        requester.say(&json!({"action": "acknowledge", "message": {"clientId": "1"}}));
        requester.hears_nothing_else();
        let delivery = handler.gets("1");
        handler.reply(&delivery);
        assert_eq!(requester.outcome(), outcome("1", "handled", None));
        requester.say(&json!({"id": "a", "clientId": "2", "options": {"durable": true}}));
        assert_eq!(requester.outcome(), outcome("2", "notDelivered", Some("durableUnavailable")));
        handler.hears_nothing_else();
        server.stop();
    }
}

/// The kernel watches a JSON connection that is silent, from a moment after its first word on; a binary one has its pings.
#[test]
fn silent_connections_are_watched() {
    let server = server();
    let (mut json, binary) = (Json::connect(&server), Binary::connect(&server));
    json.say("{\"action\":\"ping\"}\n");
    json.hear_a("pong");
    let until = Instant::now() + DEADLINE;
    loop {
        let [watched, unwatched] =
            [&json.socket, &binary.socket].map(|it| timer(server.address(), it.local_addr().unwrap()));
        // What is not acknowledged yet has another timer, for a moment.
        if watched == KEEPALIVE && unwatched == NO_TIMER {
            break;
        }
        assert!(Instant::now() < until, "{watched} and {unwatched}");
        std::thread::yield_now();
    }
}

const NO_TIMER: &str = "00";
const KEEPALIVE: &str = "02";

/// Which timer runs for the server's end of a connection, by proc_net_tcp in the kernel's documentation.
fn timer(server: SocketAddr, client: SocketAddr) -> String {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let ends = |address: SocketAddr| format!("0100007F:{:04X}", address.port());
    let (server, client) = (ends(server), ends(client));
    let row = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = row.into_iter().find(|row| row.get(1..3) == Some(&[server.as_str(), client.as_str()]));
    row.expect("the connection is there")[5][..2].to_owned()
}
