//! Several processes under one session's name: who gets what was asked by whom, and how it is known what that was.

use ringpost_protocol::encode_headers;

use super::*;

/// A request with the headers that its reply may have to be told by.
fn with_key(request: &mut Request) {
    let headers = encode_headers([("idempotency-key", "k"), ("mine", "1")]).unwrap();
    durable(request);
    request.content = Content::from_parts(b"sum", b"", &headers, b"2");
}

/// What a connection was told before each reply of what was asked: the number and the action with the headers.
fn asked(logged: &mut Logged, conn: ConnId) -> Vec<(u64, Content)> {
    let asked = |message| match message {
        ServerMessage::Asked { number, content, .. } => Some((number, content)),
        _ => None,
    };
    logged.take(conn).into_iter().filter_map(asked).collect()
}

fn own_open(boot: u64, open: &[u64]) -> Resume {
    Resume { boot, open: open.to_vec(), ..Resume::default() }
}

/// After a restart, too, it is known which process made which request: a number that one of them used is not taken for the
/// other's, and each gets its own replies, and no other.
#[test]
fn two_processes_are_told_apart_after_a_restart() {
    let mut logged = Logged::new(Config::default());
    let first = logged.named_as("r", 1);
    logged.request(first, 1, durable);
    logged.sync();
    logged.request(first, 2, durable);
    logged.restart();
    let second = logged.named_as("r", 2);
    let Some(ServerMessage::Welcome(welcome)) = logged.take(second).into_iter().next() else { panic!() };
    assert_eq!(welcome.next_number, 2);
    logged.request(second, 2, durable);
    logged.sync();
    logged.restart();
    let handler = logged.handler("sum", 9);
    let first = logged.named_as("r", 1);
    assert_eq!(
        logged.come_back(first, own_open(1, &[1, 2])),
        [(1, OpenState::Running), (2, OpenState::Lost)]
    );
    for (sequence, held) in (1..).zip(logged.deliveries(handler)) {
        logged.answered(handler, held.delivery, sequence);
    }
    logged.sync();
    let reply = logged.replies(first).remove(0);
    assert_eq!((reply.number, reply.sequence), (1, 1));
    logged.say(first, ClientMessage::Acknowledge(Target::Number(1)));
    assert_eq!(logged.broker.open_requests(), 1, "the other one's is kept");
    logged.input(Input::Closed { conn: first });
    let second = logged.named_as("r", 2);
    assert_eq!(logged.come_back(second, own_open(2, &[2])), [(2, OpenState::Outcome)]);
    assert_eq!(logged.codes(second), [(2, None)]);
}

/// A process that comes back, and takes only what is its own, is not sent what an earlier one asked for, and so does not
/// acknowledge it either.
#[test]
fn who_comes_back_gets_its_own() {
    let mut logged = Logged::new(Config::default());
    let (handler, first) = (logged.handler("sum", 9), logged.named_as("r", 1));
    logged.request(first, 1, durable);
    logged.sync();
    logged.input(Input::Closed { conn: first });
    let second = logged.named_as("r", 2);
    logged.request(second, 2, durable);
    logged.sync();
    logged.input(Input::Closed { conn: second });
    let second = logged.named_as("r", 2);
    assert_eq!(logged.come_back(second, own_open(1, &[2])), [(2, OpenState::Running)]);
    for (sequence, held) in (1..).zip(logged.deliveries(handler)) {
        logged.answered(handler, held.delivery, sequence);
    }
    logged.sync();
    let reply = logged.replies(second).remove(0);
    assert_eq!(reply.number, 2);
    logged.say(second, ClientMessage::Acknowledge(Target::Number(reply.sequence)));
    logged.input(Input::Closed { conn: second });
    let heir = logged.named_as("r", 3);
    logged.resume(heir, 1, &[]);
    assert_eq!(logged.codes(heir), [(1, None)]);
}

/// A process that takes the replies to what another one asked is told what that was: the action, the headers, the key. Who
/// asked is not.
#[test]
fn an_heir_is_told_what_was_asked() {
    for restarts in [false, true] {
        let mut logged = Logged::new(Config::default());
        let (mut handler, first) = (logged.handler("sum", 9), logged.named_as("r", 1));
        logged.request(first, 1, with_key);
        logged.sync();
        let held = logged.deliveries(handler).remove(0);
        if restarts {
            logged.input(Input::Closed { conn: first });
        }
        logged.answered(handler, held.delivery, 1);
        logged.sync();
        assert_eq!(asked(&mut logged, first), []);
        if restarts {
            logged.restart();
            handler = logged.handler("sum", 9);
        } else {
            logged.input(Input::Closed { conn: first });
        }
        let heir = logged.named_as("r", 2);
        logged.take(heir);
        logged.resume(heir, if restarts { 1 } else { 2 }.min(1), &[]);
        let told = asked(&mut logged, heir);
        assert_eq!(told.len(), 1);
        let headers = encode_headers([("idempotency-key", "k"), ("mine", "1")]).unwrap();
        assert_eq!((told[0].0, told[0].1.name(), told[0].1.headers()), (1, &b"sum"[..], &headers[..]));
        logged.request(heir, 2, durable);
        logged.sync();
        let held = logged.deliveries(handler).remove(0);
        logged.answered(handler, held.delivery, 2);
        logged.sync();
        assert_eq!(asked(&mut logged, heir), []);
    }
}

fn json(logged: &mut Logged) -> ConnId {
    let conn = logged.connect(Speaks::Json);
    let (action, session) = ("me".into(), "mine".into());
    logged.say(conn, ClientMessage::Register(Register { registration: 0, credit: 1, action, session }));
    conn
}

/// JSON connections count their requests anew, each for itself, and go on with what earlier ones left: whatever the numbers in
/// the log, a restart keeps them all, and the next connection of the name gets their replies, and what they were for.
#[test]
fn json_numbers_may_repeat_in_the_log() {
    let mut logged = Logged::new(Config::default());
    let first = json(&mut logged);
    for tag in [&b"1"[..], b"2"] {
        logged.request(first, 0, |request| {
            durable(request);
            request.content = Content::with_tag(b"sum", tag, b"", b"", b"1");
        });
    }
    logged.sync();
    logged.say(first, ClientMessage::Cancel(Target::Name("1".into())));
    logged.sync();
    logged.say(first, ClientMessage::Acknowledge(Target::Name("1".into())));
    logged.input(Input::Closed { conn: first });
    let second = json(&mut logged);
    logged.request(second, 0, |request| {
        durable(request);
        request.content = Content::with_tag(b"sum", b"3", b"", b"", b"1");
    });
    logged.sync();
    logged.restart();
    logged.broker.check_invariants();
    let (third, handler) = (json(&mut logged), logged.handler("sum", 9));
    for (sequence, held) in (1..).zip(logged.deliveries(handler)) {
        logged.answered(handler, held.delivery, sequence);
    }
    logged.sync();
    let said = logged.take(third);
    let tags = |said: &[ServerMessage]| -> Vec<_> {
        let tag = |message: &ServerMessage| match message {
            ServerMessage::Reply(reply) => Some(reply.tag.to_vec()),
            ServerMessage::Asked { tag, content, .. } if content.name() == b"sum" => Some(tag.to_vec()),
            _ => None,
        };
        said.iter().filter_map(tag).collect()
    };
    assert_eq!(tags(&said), [b"2", b"2", b"3", b"3"], "each reply, and before it what was asked");
}
