//! The time in which the log is still being read.

use super::*;

const RANDOM: &str = "00112233445566778899aabbccddeeff";

impl Logged {
    /// Another broker starts from the disk, and has not read it yet.
    fn restart_slowly(&mut self) {
        let boot = self.stage.broker.config.boot + 1;
        let config = Config { boot, hash_seed: boot, log_id: 0, ..self.stage.broker.config.clone() };
        self.stage.broker = Broker::new(config).recovering();
        self.stage.sent.clear();
        self.stage.closed.clear();
        self.stage.connections = 0;
    }

    fn recovered(&mut self) {
        let mut restore = Restore::new(usize::MAX);
        let mut died = Vec::new();
        let recovered = log::recover(&mut self.disk, LogId([7; 16]), |at, record: &Record<'_>| {
            restore.take(at, record, &mut |location| died.push(location));
        })
        .unwrap();
        let boot = self.stage.broker.config.boot;
        let sync = SyncPolicy::Always;
        let config = log::Config { segment_bytes: 4096, max_disk: 1 << 20, sync, boot, seed: boot };
        let mut writer = Writer::new(config, &recovered);
        died.into_iter().for_each(|location| writer.died(location));
        let now = self.stage.now;
        self.stage.broker.recovered(writer, 9, restore, recovered.highest_count, now);
        self.stage.collect();
        self.sync();
    }

    fn says_hello(&mut self, session: &'static str, connection: u32) -> ConnId {
        let conn = ConnId(self.stage.connections);
        self.stage.connections += 1;
        self.input(Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() });
        self.say(conn, hello(session, 5, connection));
        conn
    }

    /// What the server says of itself.
    fn state(&mut self, conn: ConnId, number: u64) -> String {
        self.request(conn, number, |request| {
            request.content = Content::from_parts(b"$sys.stats", b"", b"", b"");
        });
        let reply = self.replies(conn).pop().unwrap();
        let stats: serde_json::Value = serde_json::from_slice(reply.content.payload()).unwrap();
        stats["state"].as_str().unwrap().to_owned()
    }

    /// Whether a connection was told that the server recovers, and closed.
    fn is_refused(&mut self, conn: ConnId) -> bool {
        let told = self.take(conn);
        let refused = |message: &ServerMessage| matches!(message, ServerMessage::Error(report) if report.code == Code::Recovering);
        let closed = (conn, CloseReason::Refused(Code::Recovering));
        told.iter().any(refused) && self.stage.closed.contains(&closed)
    }
}

/// Plain requests are served; durable ones are told `recovering`, and so is who may be known to the log: under a name of its own,
/// or on a later connection. When the log is read, what it has goes to the handlers that came meanwhile, once, in its order.
#[test]
fn plain_is_served_and_durable_is_not() {
    let mut logged = Logged::new(Config::default());
    let requester = logged.named("r");
    logged.request(requester, 1, durable);
    logged.request(requester, 2, durable_send);
    logged.sync();
    logged.restart_slowly();

    let handler = logged.handler("sum", 9);
    let stranger = logged.says_hello(RANDOM, 1);
    logged.take(stranger);
    logged.request(stranger, 1, |_| {});
    logged.request(stranger, 2, durable);
    let delivered = logged.deliveries(handler);
    assert_eq!((delivered.len(), delivered[0].request_id.boot), (1, 2));
    assert_eq!(logged.codes(stranger), [(2, Some(Code::Recovering))]);
    let known = logged.says_hello("r", 1);
    assert!(logged.is_refused(known));
    let known = logged.says_hello("fedcba9876543210fedcba9876543210", 2);
    assert!(logged.is_refused(known));
    let json = logged.connect(Speaks::Json);
    let register = Register { registration: 0, credit: 1, action: "sum".into(), session: "r".into() };
    logged.say(json, ClientMessage::Register(register));
    assert!(logged.is_refused(json));
    assert_eq!(logged.broker.counters.refused_recovering, 4);
    assert_eq!(logged.broker.open_requests(), 1);
    assert_eq!(logged.state(stranger, 4), "recovering");

    logged.recovered();
    let delivered = logged.deliveries(handler);
    assert_eq!(delivered.iter().map(|it| it.request_id.count).collect::<Vec<_>>(), [1, 2]);
    assert!(delivered.iter().all(|it| it.request_id.boot == 9), "{delivered:?}");
    let requester = logged.named("r");
    assert_eq!(logged.resume(requester, 1, &[1, 2]), [(1, OpenState::Running), (2, OpenState::Running)]);
    logged.request(stranger, 5, durable);
    logged.sync();
    assert!(logged.deliveries(handler)[0].request_id.count > 2, "counts go on behind all that were");
    assert_eq!(logged.state(stranger, 6), "serving");
}

/// A name that looks random and is in the log all the same: its client was let in as a new one, and comes back.
#[test]
fn a_name_that_only_looks_random() {
    let mut logged = Logged::new(Config::default());
    let requester = logged.named(RANDOM);
    logged.request(requester, 1, durable);
    logged.sync();
    logged.restart_slowly();
    let early = logged.says_hello(RANDOM, 1);
    logged.request(early, 1, |_| {});
    logged.take(early);
    logged.recovered();
    assert!(logged.is_refused(early));
    let again = logged.says_hello(RANDOM, 2);
    assert!(matches!(logged.take(again)[0], ServerMessage::Welcome(_)));
    assert_eq!(logged.broker.open_requests(), 1);
}

/// What expired while the server was away goes to no handler that came before the log was read, and nobody is told meanwhile
/// that nothing waits or has died.
#[test]
fn what_has_expired_is_for_nobody() {
    let mut logged = Logged::new(Config::default());
    let requester = logged.named("r");
    logged.request(requester, 1, |request| {
        durable_send(request);
        request.ttl_ms = 1000;
    });
    logged.sync();
    logged.restart_slowly();
    logged.pass(Duration::from_secs(2));
    let handler = logged.handler("sum", 9);
    for (number, action) in [(1, "$sys.dead"), (2, "$sys.queues")] {
        logged.request(handler, number, |request| {
            request.content = Content::from_parts(action.as_bytes(), b"", b"", b"");
        });
    }
    assert_eq!(logged.codes(handler), [(1, Some(Code::Recovering)), (2, Some(Code::Recovering))]);
    logged.recovered();
    assert_eq!(logged.deliveries(handler), []);
    assert_eq!(logged.broker.dead.len(), 1, "it is a dead letter, which nobody has seen");
}

/// Under `--durable all` everything but broadcasts waits for the log; the server's own actions answer.
#[test]
fn all_is_durable() {
    let mut logged = Logged::new(Config { durable_all: true, ..Config::default() });
    logged.restart_slowly();
    logged.handler("sum", 1);
    let requester = logged.connect(Speaks::Binary);
    logged.request(requester, 1, |_| {});
    assert_eq!(logged.codes(requester), [(1, Some(Code::Recovering))]);
    logged
        .request(requester, 2, |request| request.content = Content::from_parts(b"$sys.stats", b"", b"", b""));
    assert_eq!(logged.codes(requester), [(2, None)]);
}
