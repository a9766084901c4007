//! `--durable all`: what did not ask for durability is durable all the same.

use super::*;

fn all() -> Logged {
    Logged::new(Config { durable_all: true, ..Config::default() })
}

/// A request that says nothing of durability waits for a handler and survives a restart, as long as its requester waits for it;
/// and so does a send.
#[test]
fn everything_survives_a_restart() {
    let mut logged = all();
    let requester = logged.named("r");
    logged.request(requester, 1, |request| request.timeout_ms = 60_000);
    logged.request(requester, 2, |request| {
        send(request);
        request.ttl_ms = 60_000;
    });
    logged.request(requester, 3, |request| request.timeout_ms = 1000);
    logged.sync();
    assert_eq!(logged.accepted(requester), Some(3));
    logged.restart();
    logged.pass(Duration::from_secs(2));
    logged.sync();
    let (handler, requester) = (logged.handler("sum", 9), logged.named("r"));
    logged.take(requester);
    assert_eq!(logged.resume(requester, 1, &[1, 3]), [(1, OpenState::Running), (3, OpenState::Outcome)]);
    assert_eq!(logged.codes(requester), [(3, Some(Code::Expired))]);
    let held = logged.deliveries(handler);
    assert_eq!(held.iter().map(|it| it.request_id.count).collect::<Vec<_>>(), [1, 2]);
    logged.answered(handler, held[0].delivery, 1);
    logged.sync();
    assert_eq!(logged.codes(requester), [(1, None)]);
}

/// A broadcast stays plain, and so do the server's own actions; the welcome says what all others are.
#[test]
fn broadcasts_stay_plain() {
    let mut logged = all();
    let (handler, requester) = (logged.handler("sum", 9), logged.named("r"));
    let Some(ServerMessage::Welcome(welcome)) = logged.take(requester).into_iter().next() else { panic!() };
    assert!(welcome.durable_all);
    logged.request(requester, 1, broadcast);
    let deliver = logged.deliveries(handler).remove(0);
    assert!(!deliver.flags.has(RequestFlags::DURABLE), "and nothing was waited for");
    logged.request(requester, 2, |request| {
        request.content = Content::from_parts(b"$sys.stats", b"", b"", b"null");
    });
    assert_eq!(logged.codes(requester), [(2, None)]);
}

/// A JSON client that knows nothing of durability hears nothing of it: no word of acceptance, and its reply is done with when
/// it was sent.
#[test]
fn json_clients_need_not_know() {
    let mut logged = all();
    let (handler, requester) = (logged.handler("sum", 9), logged.connect(Speaks::Json));
    logged.request(requester, 0, |request| {
        request.content = Content::with_tag(b"sum", b"1", b"", b"", b"2");
    });
    logged.sync();
    assert_eq!(logged.take(requester), []);
    let held = logged.deliveries(handler).remove(0);
    logged.answered(handler, held.delivery, 1);
    logged.sync();
    assert_eq!(logged.codes(requester), [(1, None)]);
    assert_eq!(logged.broker.open_requests(), 0);
}
