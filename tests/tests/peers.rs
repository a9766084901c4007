//! Servers that work together, for real: sockets, both dialects, keys, links that break.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what is not right"
)]

mod common;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{PATIENCE, Raw, process::ServerProcess, proxy::Proxy, run, until};
use futures_util::future::join_all;
use ringpost::{Client, ErrorKind, HandlerError, HandlerOptions, Reply, Request, SecureKey};
use ringpost_protocol::secure::Role;
use ringpost_server::{Builder, Config, Handle, Peer, Server};
use serde_json::{Value, json};

fn named(id: &str) -> Builder {
    Server::builder().config(Config::default()).id(id).listen(["127.0.0.1:0".parse().unwrap()])
}

fn linked(id: &str, peers: &[SocketAddr]) -> Handle {
    let builder = peers.iter().fold(named(id), |builder, peer| builder.peer(Peer::new(peer.to_string())));
    builder.start().unwrap()
}

/// What a server says of one of its own actions.
fn sys(server: SocketAddr, action: &str) -> Value {
    let mut raw = Raw::connect(server);
    raw.object(&json!({"id": action, "clientId": 1, "data": null}));
    raw.answer()["message"]["data"].clone()
}

fn links_up(server: SocketAddr) -> u64 {
    sys(server, "$sys.stats")["now"]["links"].as_u64().unwrap()
}

/// Waits until a server knows that its peers handle an action, so many of them.
fn wait_for_far(server: SocketAddr, action: &str, peers: usize) {
    until(&format!("{peers} peers handle {action}"), || {
        let actions = sys(server, "$sys.actions");
        let of_action = actions.as_array().unwrap().iter().filter(|it| it["action"] == action);
        let handlers = of_action.flat_map(|it| it["handlers"].as_array().unwrap());
        handlers.filter(|handler| !handler["server"].is_null()).count() == peers
    });
}

fn json_handler(server: SocketAddr, action: &str) -> Raw {
    let mut raw = Raw::connect(server);
    raw.object(&json!({"id": action, "action": "init"}));
    raw.wait_for(action);
    raw
}

/// Takes one request and answers with its data under a word.
fn json_answer(handler: &mut Raw) {
    let request = handler.answer();
    json_reply(handler, &request);
}

fn json_reply(handler: &mut Raw, request: &Value) {
    assert_eq!(request["action"], "request", "{request}");
    let message = &request["message"];
    handler.object(&json!({"action": "response", "message": {
        "serverId": message["serverId"], "data": {"echo": message["data"]}, "options": message["options"],
    }}));
}

fn json_ask(server: SocketAddr, action: &str, data: &Value) -> Raw {
    let mut raw = Raw::connect(server);
    raw.object(&json!({"id": action, "clientId": "x", "data": data, "options": {"timeout": 20000}}));
    raw
}

fn json_broadcast(server: SocketAddr, action: &str, data: &Value) -> Raw {
    let mut raw = Raw::connect(server);
    let options = json!({"timeout": 20000, "broadcast": true});
    raw.object(&json!({"id": action, "clientId": "x", "data": data, "options": options}));
    raw
}

/// A leg's outcome: how many there are, and its code, or its data if it has none.
fn leg(requester: &mut Raw) -> (u64, Value) {
    let message = requester.answer()["message"].clone();
    let (info, data) = (&message["info"], &message["data"]);
    let expected = info["expected"].as_u64().unwrap_or_else(|| panic!("no leg: {message}"));
    (expected, if info["code"].is_null() { data.clone() } else { info["code"].clone() })
}

fn code(answer: &Value) -> &str {
    answer["message"]["info"]["code"].as_str().unwrap_or_default()
}

/// In a mesh of three, each server's clients reach the handlers of the two others, in both dialects, over one link for each
/// pair, whoever dialled it.
#[test]
fn a_mesh_of_three() {
    let a = linked("a", &[]);
    let b = linked("b", &[a.address()]);
    let c = linked("c", &[a.address(), b.address()]);
    let servers = [a.address(), b.address(), c.address()];
    until("all are linked", || servers.iter().all(|server| links_up(*server) == 2));
    for handles in servers {
        let mut by_json = json_handler(handles, "json");
        let asking: Vec<_> = servers.into_iter().filter(|server| *server != handles).collect();
        for server in &asking {
            wait_for_far(*server, "json", 1);
            let mut requester = json_ask(*server, "json", &json!({"n": 1}));
            json_answer(&mut by_json);
            let answer = requester.answer();
            assert_eq!(answer["message"]["data"], json!({"echo": {"n": 1}}), "{answer}");
        }
        run(async {
            let handler = Client::connect(handles.to_string()).await.unwrap();
            let about = |request: Request| async move {
                assert!(request.time_left().unwrap() <= Duration::from_secs(9), "minus what was spent");
                let headers = [("trace", request.header("trace").unwrap_or("none"))];
                Ok::<_, HandlerError>(Reply::json(&request.attempt())?.with_headers(headers)?)
            };
            handler.handle("about", about).await.unwrap();
            for server in &asking {
                tokio::task::block_in_place(|| wait_for_far(*server, "about", 1));
                let client = Client::connect(server.to_string()).await.unwrap();
                let request =
                    client.request("about", &1).header("trace", "t1").timeout(Duration::from_secs(9));
                let reply = request.await.unwrap();
                assert_eq!((reply.data::<u16>().unwrap(), reply.header("trace")), (1, Some("t1")));
                let text = "x".repeat(2 << 20);
                let large = client.request("json", &text);
                let large = tokio::spawn(async move { large.json::<Value>().await });
                tokio::task::block_in_place(|| json_answer(&mut by_json));
                assert!(large.await.unwrap().unwrap()["echo"] == text.as_str(), "it came as it was sent");
                client.close().await;
            }
            handler.close().await;
        });
    }
}

/// A broadcast at any server of a mesh reaches the handlers of all three, each once, and says how many they are; Rust and JSON
/// on either side.
#[test]
fn broadcasts_over_a_mesh() {
    let a = linked("a", &[]);
    let b = linked("b", &[a.address()]);
    let c = linked("c", &[a.address(), b.address()]);
    let servers = [a.address(), b.address(), c.address()];
    let runs: Arc<Mutex<BTreeMap<(String, u32), u32>>> = Arc::default();
    let mut by_json = json_handler(b.address(), "all");
    run(async {
        let mut handlers = Vec::new();
        for (name, server) in ["at_a", "at_b", "at_c"].into_iter().zip(servers) {
            let handler = Client::connect(server.to_string()).await.unwrap();
            let ledger = runs.clone();
            let answer = move |request: Request| {
                let ledger = ledger.clone();
                async move {
                    let number: u32 = request.json()?;
                    *ledger.lock().unwrap().entry((name.to_owned(), number)).or_default() += 1;
                    Ok::<_, HandlerError>(Reply::json(name)?)
                }
            };
            handler.handle("all", answer).await.unwrap();
            handlers.push(handler);
        }
        for server in servers {
            tokio::task::block_in_place(|| wait_for_far(server, "all", 2));
        }
        for (number, server) in servers.into_iter().enumerate() {
            let client = Client::connect(server.to_string()).await.unwrap();
            let request = client.broadcast("all", &number).timeout(Duration::from_secs(20));
            let legs = tokio::spawn(request.into_future());
            tokio::task::block_in_place(|| json_answer(&mut by_json));
            let legs = legs.await.unwrap().unwrap();
            let data = legs.iter().map(|leg| leg.as_ref().unwrap().data::<Value>().unwrap());
            let mut data: Vec<_> = data.map(|data| data.to_string()).collect();
            data.sort();
            let echo = json!({"echo": number}).to_string();
            assert_eq!(data, ["\"at_a\"", "\"at_b\"", "\"at_c\"", &echo]);
            client.close().await;
            let number = number + 10;
            let mut requester = json_broadcast(server, "all", &json!(number));
            tokio::task::block_in_place(|| json_answer(&mut by_json));
            let mut legs: Vec<_> = (0..4).map(|_| leg(&mut requester)).collect();
            legs.sort_by_key(|(_, data)| data.to_string());
            let data = [json!("at_a"), json!("at_b"), json!("at_c"), json!({"echo": number})];
            assert_eq!(legs, data.map(|data| (4, data)));
        }
        for handler in handlers {
            handler.close().await;
        }
    });
    let runs = runs.lock().unwrap();
    assert!(runs.len() == 18 && runs.values().all(|times| *times == 1), "each ran once in each: {runs:?}");
    drop(by_json);
    for server in servers {
        wait_for_far(server, "all", 0);
        assert_eq!(code(&json_broadcast(server, "all", &json!(1)).answer()), "noHandler");
        until("nothing is open", || {
            let now = sys(server, "$sys.stats")["now"].clone();
            now["openRequests"] == 0 && now["openDeliveries"] == 0
        });
    }
}

/// A server that is killed while its handlers work at a broadcast: their legs end with `handlerLost`, all the others go on.
#[test]
fn a_server_is_killed_under_a_broadcast() {
    let started = |id: &str, peers: &[SocketAddr]| {
        let peers: Vec<String> = peers.iter().map(SocketAddr::to_string).collect();
        let mut args = vec!["--id", id];
        args.extend(peers.iter().flat_map(|peer| ["--peer", peer]));
        ServerProcess::start(&args)
    };
    let mut b = started("b", &[]);
    let a = started("a", &[b.address]);
    // One link is dialled here, the other there: either may be the one that breaks.
    let c = started("c", &[a.address, b.address]);
    let mut handlers: Vec<_> = [&a, &b, &b, &c].map(|server| json_handler(server.address, "all")).into();
    for asks in [&a, &c] {
        wait_for_far(asks.address, "all", 2);
    }
    let mut requesters = [&a, &c].map(|asks| json_broadcast(asks.address, "all", &json!(1)));
    let held: Vec<_> = handlers.iter_mut().map(|handler| [handler.answer(), handler.answer()]).collect();
    b.process.kill();
    for requester in &mut requesters {
        assert_eq!([leg(requester), leg(requester)], [(4, json!("handlerLost")), (4, json!("handlerLost"))]);
    }
    for at in [0, 3] {
        for request in &held[at] {
            json_reply(&mut handlers[at], request);
        }
    }
    for requester in &mut requesters {
        assert_eq!([leg(requester), leg(requester)], [(4, json!({"echo": 1})), (4, json!({"echo": 1}))]);
    }
    for asks in [&a, &c] {
        wait_for_far(asks.address, "all", 1);
        let mut requester = json_broadcast(asks.address, "all", &json!(2));
        for at in [0, 3] {
            json_answer(&mut handlers[at]);
        }
        assert_eq!([leg(&mut requester).0, leg(&mut requester).0], [2, 2]);
    }
}

/// In a line of servers and in a ring, a request whose handlers are two hops away ends with `noHandler`.
#[test]
fn a_line_and_a_ring() {
    let back = Proxy::start("127.0.0.1:1".parse().unwrap());
    let a = linked("a", &[back.address()]);
    let b = linked("b", &[a.address()]);
    let c = linked("c", &[b.address()]);
    let d = linked("d", &[c.address()]);
    let mut handler = json_handler(d.address(), "far");
    for ring in [false, true] {
        if ring {
            back.set_target(d.address());
            until("a is linked to d", || links_up(a.address()) == 2);
            wait_for_far(a.address(), "far", 1);
        }
        wait_for_far(c.address(), "far", 1);
        for (server, reaches) in [(&a, ring), (&b, false), (&c, true)] {
            let mut requester = json_ask(server.address(), "far", &json!(1));
            if reaches {
                json_answer(&mut handler);
                assert_eq!(requester.answer()["message"]["data"]["echo"], 1);
            } else {
                assert_eq!(code(&requester.answer()), "noHandler");
            }
        }
    }
}

/// A link that is cut and healed under load: each request has one outcome and runs at most once, and when the link is back
/// so are the replies.
#[test]
fn a_link_breaks_under_load() {
    let b = linked("b", &[]);
    let proxy = Proxy::start(b.address());
    let a = linked("a", &[proxy.address()]);
    let runs: Arc<Mutex<BTreeMap<u64, u32>>> = Arc::default();
    run(async {
        let handler = Client::connect(b.address().to_string()).await.unwrap();
        let ledger = runs.clone();
        let count = move |request: Request| {
            let ledger = ledger.clone();
            async move {
                let number: u64 = request.json()?;
                *ledger.lock().unwrap().entry(number).or_default() += 1;
                tokio::time::sleep(Duration::from_millis(number % 4)).await;
                Ok::<_, HandlerError>(Reply::json(&number)?)
            }
        };
        let options = HandlerOptions { concurrency: 64, ..HandlerOptions::default() };
        handler.handle_with("count", options, count).await.unwrap();
        let requester = Client::connect(a.address().to_string()).await.unwrap();
        let (mut replies, mut lost) = (0, 0);
        for round in 0..4u64 {
            tokio::task::block_in_place(|| wait_for_far(a.address(), "count", 1));
            let requests = (round * 500..round * 500 + 500).map(|number| {
                let request = requester.request("count", &number).timeout(PATIENCE);
                tokio::spawn(async move { (number, request.await) })
            });
            let requests: Vec<_> = requests.collect();
            tokio::time::sleep(Duration::from_millis(round)).await;
            proxy.cut();
            for answer in join_all(requests).await {
                let (number, reply) = answer.unwrap();
                match reply {
                    Ok(reply) => {
                        assert_eq!(reply.data::<u64>().unwrap(), number);
                        assert_eq!(runs.lock().unwrap()[&number], 1);
                        replies += 1;
                    }
                    Err(error) => {
                        let known = [ErrorKind::HandlerLost, ErrorKind::NoHandler];
                        assert!(known.contains(&error.kind()), "{error}");
                        let ran = runs.lock().unwrap().contains_key(&number);
                        assert!(!ran || error.kind() == ErrorKind::HandlerLost, "{error}");
                        lost += 1;
                    }
                }
            }
        }
        tokio::task::block_in_place(|| wait_for_far(a.address(), "count", 1));
        assert_eq!(requester.request("count", &9999).json::<u64>().await.unwrap(), 9999);
        assert_eq!(replies + lost, 2000);
        assert!(lost > 0, "nothing was under way when the link was cut");
        requester.close().await;
        handler.close().await;
    });
    assert!(runs.lock().unwrap().values().all(|times| *times == 1), "nothing ran twice");
    for server in [&a, &b] {
        until("nothing is open", || {
            let now = sys(server.address(), "$sys.stats")["now"].clone();
            now["openRequests"] == 0 && now["openDeliveries"] == 0
        });
    }
}

/// The death of a handler at the other server ends its request at once, with `handlerLost`; and a handler's error comes with
/// its own code and message.
#[test]
fn a_far_handlers_death_and_errors() {
    let b = linked("b", &[]);
    let a = linked("a", &[b.address()]);
    for (handles, asks) in [(&b, &a), (&a, &b)] {
        let mut handler = json_handler(handles.address(), "dies");
        wait_for_far(asks.address(), "dies", 1);
        let mut requester = json_ask(asks.address(), "dies", &json!(1));
        let request = handler.answer();
        let error = json!({"serverId": request["message"]["serverId"], "info": {"error": "no such row", "code": "E42"}});
        handler.object(&json!({"action": "error", "message": error}));
        let answer = requester.answer();
        assert_eq!(answer["message"]["info"]["error"], "no such row", "{answer}");
        let mut requester = json_ask(asks.address(), "dies", &json!(2));
        handler.answer();
        handler.die(true);
        assert_eq!(code(&requester.answer()), "handlerLost");
        let mut requester = json_ask(asks.address(), "dies", &json!(3));
        assert_eq!(code(&requester.answer()), "noHandler");
    }
}

/// Who gives up is known to the handler at the other server.
#[test]
fn cancellation_reaches_the_far_handler() {
    let b = linked("b", &[]);
    let a = linked("a", &[b.address()]);
    let mut handler = json_handler(b.address(), "slow");
    wait_for_far(a.address(), "slow", 1);
    let mut requester = json_ask(a.address(), "slow", &json!(1));
    handler.answer();
    requester.object(&json!({"action": "cancel", "clientId": "x"}));
    assert_eq!(code(&requester.answer()), "cancelled");
    assert_eq!(handler.answer()["action"], "cancel");
}

/// Each link has a key of its own. A link with a wrong key is in error, and says why; the others work.
#[test]
fn keys_for_each_link() {
    let key = |byte| SecureKey::from_bytes([byte; 32]);
    let keyed = |id: &str, byte| {
        let builder = named(id).secure_key(key(byte), Role::Peer).secure_key(key(9), Role::Client);
        builder.secure_key(key(8), Role::Admin).start().unwrap()
    };
    let (b, c, d) = (keyed("b", 1), keyed("c", 2), keyed("d", 3));
    let peer = |server: &Handle, byte| Peer::new(server.address().to_string()).secure_key(key(byte));
    let a =
        named("a").peer(peer(&b, 1)).peer(peer(&c, 2)).peer(peer(&d, 7)).peer(peer(&d, 9)).start().unwrap();
    let state = |index: usize| sys(a.address(), "$sys.peers")[index].clone();
    until("two links are up, two are not", || {
        links_up(a.address()) == 2 && (2..4).all(|index| state(index)["state"] == "failed")
    });
    let (unknown, of_client) = (state(2)["error"].to_string(), state(3)["error"].to_string());
    // The same words for both: what a key is for is told to nobody who has proven nothing.
    for error in [unknown, of_client] {
        assert!(
            error.contains("does not know the secure key") && error.contains("not for a peer"),
            "{error}"
        );
    }
    run(async {
        for server in [&b, &c] {
            let name = format!("at-{}", server.address().port());
            let handler =
                Client::builder(server.address().to_string()).secure_key(key(9)).connect().await.unwrap();
            let echo = |request: Request| async move { Ok::<_, HandlerError>(Reply::bytes(request.bytes())) };
            handler.handle(&name, echo).await.unwrap();
            tokio::task::block_in_place(|| wait_for_far(a.address(), &name, 1));
            let requester = Client::connect(a.address().to_string()).await.unwrap();
            assert_eq!(requester.request(&name, &5).json::<u32>().await.unwrap(), 5);
            let large = requester.request_bytes(&name, vec![b'1'; 1 << 20]).await.unwrap();
            assert_eq!(large.as_bytes().len(), 1 << 20);
            requester.close().await;
            handler.close().await;
        }
    });
}

/// The link answers at the peer under its own action, with the server's name: the reference's `proxyTo` has that, too.
#[test]
fn the_links_own_action() {
    let b = linked("server_2", &[]);
    let _a = named("server_1").peer(Peer::new(b.address().to_string()).action("server_1")).start().unwrap();
    wait_for_far(b.address(), "server_1", 1);
    let answer = json_ask(b.address(), "server_1", &json!(null)).answer();
    assert_eq!(answer["message"]["data"]["serverId"], "server_1", "{answer}");
    assert_eq!(answer["message"]["data"]["version"], env!("CARGO_PKG_VERSION"));
    for format in [&["topology"][..], &["topology", "--json"]] {
        let address = b.address().to_string();
        assert!(common::process::command(&[format, &["--server", &address]].concat()).success());
    }
}

/// When both servers dial, one link stays, and both directions work over it; a server may start long before its peer.
#[test]
fn both_dial() {
    let to_b = Proxy::start("127.0.0.1:1".parse().unwrap());
    let a = linked("a", &[to_b.address()]);
    until("the first try has failed", || sys(a.address(), "$sys.peers")[0]["state"] == "failed");
    let b = named("b").peer(Peer::new(a.address().to_string()).action("link_b")).start().unwrap();
    to_b.set_target(b.address());
    until("b's link gives way", || {
        sys(b.address(), "$sys.peers")[0]["state"] == "standsBy" && links_up(a.address()) == 1
    });
    wait_for_far(a.address(), "link_b", 1);
    let about = json_ask(a.address(), "link_b", &json!(null)).answer();
    assert_eq!(about["message"]["data"]["serverId"], "b", "{about}");
    for (handles, asks) in [(&b, &a), (&a, &b)] {
        let mut handler = json_handler(handles.address(), "x");
        wait_for_far(asks.address(), "x", 1);
        let mut requester = json_ask(asks.address(), "x", &json!(1));
        json_answer(&mut handler);
        assert_eq!(requester.answer()["message"]["data"]["echo"], 1);
        let mut requester = json_broadcast(asks.address(), "x", &json!(2));
        json_answer(&mut handler);
        assert_eq!(leg(&mut requester), (1, json!({"echo": 2})));
        drop(handler);
        wait_for_far(asks.address(), "x", 0);
    }
    to_b.set_target("127.0.0.1:1".parse().unwrap());
    to_b.cut();
    until("b dials again", || sys(b.address(), "$sys.peers")[0]["state"] == "up");
}

/// A server that leaves tells its peers: they ask it nothing more, and what it was asked it answers.
#[test]
fn a_peer_leaves() {
    let (b, c) = (linked("b", &[]), linked("c", &[]));
    let a = linked("a", &[b.address(), c.address()]);
    let (mut at_b, mut at_c) = (json_handler(b.address(), "x"), json_handler(c.address(), "x"));
    wait_for_far(a.address(), "x", 2);
    let mut both: Vec<_> = (0..2).map(|number| json_ask(a.address(), "x", &json!(number))).collect();
    let (held_by_b, held_by_c) = (at_b.answer(), at_c.answer());
    b.drain(PATIENCE);
    wait_for_far(a.address(), "x", 1);
    let mut later = json_ask(a.address(), "x", &json!(2));
    json_reply(&mut at_b, &held_by_b);
    json_reply(&mut at_c, &held_by_c);
    json_answer(&mut at_c);
    assert_eq!(later.answer()["message"]["data"]["echo"], 2);
    for requester in &mut both {
        assert!(requester.answer()["message"]["data"]["echo"].is_number());
    }
    b.wait().unwrap();
}
