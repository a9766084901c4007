//! Durable requests: nothing is promised before it is stable, and everything that was promised is there after a restart.

mod abroad;
mod all;
mod any_order;
mod instances;
mod keys;
mod memory;
mod reattach;
mod recovering;

use ringpost_protocol::message::{OpenState, Resume, Speaker};

use super::*;
use crate::{
    Restore,
    log::{
        self, LogId, Record, SyncPolicy, Writer,
        files::{Files, perform},
        memory::{Call, Memory},
        names,
    },
};

const HOUR: Duration = Duration::from_secs(3600);

/// A broker with a log on a disk in memory.
struct Logged {
    stage: Stage,
    disk: Memory,
    sync: SyncPolicy,
}

impl std::ops::Deref for Logged {
    type Target = Stage;
    fn deref(&self) -> &Stage {
        &self.stage
    }
}

impl std::ops::DerefMut for Logged {
    fn deref_mut(&mut self) -> &mut Stage {
        &mut self.stage
    }
}

impl Logged {
    fn new(config: Config) -> Self {
        Self::with_policy(config, SyncPolicy::Always)
    }

    fn with_policy(config: Config, sync: SyncPolicy) -> Self {
        let stage = Stage::new(config);
        let mut logged = Self { stage, disk: Memory::new(), sync };
        logged.boot(1);
        logged
    }

    /// Starts a broker from what is on the disk.
    fn boot(&mut self, boot: u64) {
        let mut restore = Restore::new(self.stage.broker.config.queue_memory_bytes);
        let mut died = Vec::new();
        let recovered = log::recover(&mut self.disk, LogId([7; 16]), |at, record: &Record<'_>| {
            restore.take(at, record, &mut |location| died.push(location));
        })
        .unwrap();
        let sync = self.sync;
        let config = log::Config { segment_bytes: 4096, max_disk: 1 << 20, sync, boot, seed: boot };
        let mut writer = Writer::new(config, &recovered);
        died.into_iter().for_each(|location| writer.died(location));
        let config = Config { boot, hash_seed: boot, log_id: 9, ..self.stage.broker.config.clone() };
        let now = self.stage.now;
        self.stage.broker = Broker::new(config).with_log(writer);
        self.stage.broker.restore(restore, recovered.highest_count, now);
        self.stage.sent.clear();
        self.stage.closed.clear();
        self.stage.reads.clear();
        self.stage.connections = 0;
        self.stage.collect();
        self.sync();
    }

    /// The broker dies, with what was not synced, and another one starts from its disk.
    fn restart(&mut self) {
        let lost = vec![0; self.disk.unsynced().len()];
        self.disk = self.disk.crash(&lost);
        let boot = self.stage.broker.config.boot + 1;
        self.boot(boot);
    }

    /// All that was logged becomes stable.
    fn sync(&mut self) {
        self.stage.broker.log().unwrap().hurry();
        self.sync_awaited();
    }

    /// The disk does all that it was asked for: what nobody waits for is not even written.
    fn sync_awaited(&mut self) {
        let now = self.stage.now;
        while let Some(operation) = self.stage.broker.log().unwrap().poll(now) {
            let result = perform(&mut self.disk, &operation.action);
            self.stage.broker.log().unwrap().done(operation.id, result);
        }
        self.stage.input(Input::Logged);
    }

    /// The disk reads what it was asked for first, or a later one; `damage` is done to the bytes.
    fn read(&mut self, place: usize, damage: impl FnOnce(&mut [u8])) -> bool {
        let Some(Read { id, segment, offset, bytes }) = self.stage.reads.remove(place) else { return false };
        let mut read = vec![0; bytes as usize];
        let count = self.disk.read_at(&names::segment(segment), offset.into(), &mut read).unwrap();
        assert_eq!(count, read.len(), "{segment}: {offset}, {bytes} bytes");
        damage(&mut read);
        self.stage.input(Input::Read { id, result: Ok(read.into()) });
        true
    }

    /// It reads all that it was asked for.
    fn read_all(&mut self) {
        while self.read(0, |_| {}) {}
    }

    fn named(&mut self, session: &'static str) -> ConnId {
        self.named_as(session, 1)
    }

    fn named_as(&mut self, session: &'static str, instance: u64) -> ConnId {
        let conn = ConnId(self.stage.connections);
        self.stage.connections += 1;
        self.input(Input::Opened { conn, speaks: Speaks::Binary, identity: Identity::default() });
        let speaker = Speaker { instance, connection: self.stage.connections };
        self.say(conn, ClientMessage::Hello(Hello { session: session.into(), speaker, ..Hello::default() }));
        conn
    }

    fn resume(&mut self, conn: ConnId, boot: u64, open: &[u64]) -> Vec<(u64, OpenState)> {
        let resume = Resume { boot, open: open.to_vec(), unclaimed: open.is_empty(), ..Resume::default() };
        self.come_back(conn, resume)
    }

    fn come_back(&mut self, conn: ConnId, resume: Resume) -> Vec<(u64, OpenState)> {
        self.say(conn, ClientMessage::Resume(resume));
        let resumed = self
            .sent
            .iter()
            .position(|(to, message)| *to == conn && matches!(message, ServerMessage::Resumed { .. }));
        match self.sent.remove(resumed.expect("an answer")) {
            (_, ServerMessage::Resumed { open, .. }) => open,
            _ => unreachable!(),
        }
    }

    fn answered(&mut self, conn: ConnId, delivery: u64, sequence: u64) {
        let content = Content::from_payload("3");
        let verdict = Verdict::Reply;
        self.say(conn, ClientMessage::Answer(Answer { delivery, sequence, verdict, content }));
    }

    fn accepted(&mut self, conn: ConnId) -> Option<u64> {
        let upto =
            |message| if let ServerMessage::Accepted { upto, .. } = message { Some(upto) } else { None };
        self.take(conn).into_iter().filter_map(upto).max()
    }
}

fn durable(request: &mut Request) {
    request.flags = RequestFlags::DURABLE;
}

fn durable_send(request: &mut Request) {
    request.flags = RequestFlags::DURABLE.with(RequestFlags::SEND);
}

/// A durable request is accepted, and given to a handler, once its record is stable, and not before.
#[test]
fn accepted_once_stable() {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (logged.handler("sum", 2), logged.named("r"));
    logged.take(requester);
    logged.request(requester, 1, durable);
    assert_eq!((logged.deliveries(handler).len(), logged.accepted(requester)), (0, None));
    logged.sync();
    assert_eq!((logged.deliveries(handler).len(), logged.accepted(requester)), (1, Some(1)));
}

/// The reply goes out, and the handler is told so, once its record is stable; acknowledged, nothing of it is left.
#[test]
fn answered_once_stable() {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (logged.handler("sum", 2), logged.named("r"));
    logged.request(requester, 1, durable);
    logged.sync();
    let delivery = logged.deliveries(handler)[0].delivery;
    logged.answered(handler, delivery, 1);
    assert!(logged.replies(requester).is_empty() && logged.take(handler).is_empty());
    logged.sync();
    assert_eq!(logged.take(handler), [ServerMessage::Acknowledge { sequence: 1 }]);
    let reply = logged.replies(requester).remove(0);
    assert_eq!((reply.number, reply.code, reply.content.payload()), (1, None, &b"3"[..]));
    assert_eq!(logged.broker.open_requests(), 1);
    logged.say(requester, ClientMessage::Acknowledge(Target::Number(reply.sequence)));
    assert_eq!(logged.broker.open_requests(), 0);
    logged.sync();
    logged.restart();
    assert_eq!(logged.broker.open_requests(), 0);
}

/// An answer is acknowledged on the connection that it came on, not on a later one that has its number: there, the same
/// sequence is another answer's, which would be let go of before it is stable.
#[test]
fn acknowledged_where_it_was_said() {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (logged.handler("sum", 1), logged.named("r"));
    logged.request(requester, 1, durable);
    logged.sync();
    let delivery = logged.deliveries(handler)[0].delivery;
    logged.answered(handler, delivery, 1);
    logged.input(Input::Closed { conn: handler });
    logged.input(Input::Opened { conn: handler, speaks: Speaks::Binary, identity: Identity::default() });
    logged.say(handler, ClientMessage::Hello(Hello::default()));
    logged.take(handler);
    logged.sync();
    assert_eq!(logged.take(handler), []);
    assert_eq!(logged.replies(requester).len(), 1);
}

/// Without a handler a durable request waits for one; a plain one to the same action fails at once.
#[test]
fn waits_for_a_handler() {
    let mut logged = Logged::new(Config::default());
    let requester = logged.named("r");
    logged.request(requester, 1, durable);
    logged.sync();
    logged.request(requester, 2, |_| {});
    assert_eq!(logged.codes(requester), [(2, Some(Code::NoHandler))]);
    logged.pass(HOUR);
    let handler = logged.handler("sum", 1);
    assert_eq!(logged.deliveries(handler).len(), 1);
    logged.input(Input::Closed { conn: handler });
    assert_eq!(logged.broker.open_requests(), 1, "its last handler's end does not end it");
}

/// What is sent behind a durable request is not dispatched before it, nor accepted before it is.
#[test]
fn keeps_the_order_of_a_session() {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (logged.handler("sum", 9), logged.named("r"));
    logged.take(requester);
    logged.request(requester, 1, durable);
    logged.request(requester, 2, |_| {});
    logged.request(requester, 3, send);
    logged.request(requester, 4, durable_send);
    assert_eq!((logged.deliveries(handler).len(), logged.accepted(requester)), (0, None));
    logged.sync();
    let plain = |deliver: &Deliver| !deliver.flags.has(RequestFlags::DURABLE);
    let ids: Vec<_> = logged.deliveries(handler).iter().map(|it| (plain(it), it.request_id.count)).collect();
    assert_eq!(ids, [(false, 1), (true, 1), (true, 2), (false, 2)]);
    assert_eq!(logged.accepted(requester), Some(4));
}

/// What was accepted is there after a restart, goes to a handler, and its reply to the session that asked.
#[test]
fn survives_a_restart() {
    let mut logged = Logged::new(Config::default());
    let requester = logged.named("r");
    logged.request(requester, 5, durable);
    logged.request(requester, 6, durable_send);
    logged.sync();
    logged.request(requester, 7, durable);
    logged.restart();
    let (handler, requester) = (logged.handler("sum", 9), logged.named("r"));
    let deliveries = logged.deliveries(handler);
    assert_eq!(deliveries.len(), 2, "7 was never stable");
    assert_eq!((deliveries[0].attempt, deliveries[0].request_id.boot), (1, 9));
    let Some(ServerMessage::Welcome(welcome)) = logged.take(requester).into_iter().next() else { panic!() };
    assert_eq!((welcome.boot, welcome.epoch, welcome.next_number), (2, 2, 7));
    let states = logged.resume(requester, 1, &[5, 6, 7]);
    assert_eq!(states, [(5, OpenState::Running), (6, OpenState::Running), (7, OpenState::Lost)]);
    assert_eq!(logged.accepted(requester), Some(6));
    for (sequence, deliver) in (1..).zip(&deliveries) {
        logged.answered(handler, deliver.delivery, sequence);
    }
    logged.sync();
    let reply = logged.replies(requester).remove(0);
    assert_eq!((reply.number, reply.code), (5, None));
    logged.say(requester, ClientMessage::Acknowledge(Target::Number(reply.sequence)));
    assert_eq!(logged.broker.open_requests(), 0);
    logged.request(requester, 7, durable);
    logged.sync();
    assert_eq!(logged.deliveries(handler).len(), 1);
}

/// The id of a request that a handler was given never comes again, also if the loss of power takes the request, without a trace,
/// since it was not synced: neither under the same clock, nor under one that has lost its time. Sends that join others use up none.
#[test]
fn ids_never_come_again() {
    for sync in [SyncPolicy::Interval(HOUR), SyncPolicy::Never] {
        let mut logged = Logged::with_policy(Config::default(), sync);
        let mut seen = std::collections::BTreeMap::new();
        for boot in 1..=5 {
            let (handler, requester) = (logged.handler("sum", 100), logged.named("r"));
            logged.resume(requester, boot - 1, &[]);
            for number in 1..=40 * boot {
                logged.request(requester, boot * 1000 + number, |request| {
                    durable_send(request);
                    let key = ringpost_protocol::encode_headers([("idempotency-key", "k")]).unwrap();
                    let headers = if number % 2 == 0 { &key[..] } else { &[] };
                    let data = format!("{boot}{number:03}");
                    request.content = Content::from_parts(b"sum", b"", headers, data.as_bytes());
                });
                logged.sync_awaited();
                for deliver in logged.deliveries(handler) {
                    let (id, data) = (deliver.request_id, deliver.content.payload().to_vec());
                    // That it was done may be forgotten, and then it runs again, under its own id.
                    let before = seen.insert(id, data.clone());
                    assert!(before.is_none_or(|it| it == data), "{id:?} is another's, under {sync:?}");
                    logged.answered(handler, deliver.delivery, number);
                }
            }
            logged.now.wall_ms -= 1_000_000;
            logged.restart();
        }
        assert!(seen.len() > 300, "{} requests", seen.len());
    }
}

/// A reply that was decided is kept over a restart, until its session acknowledges it.
#[test]
fn replies_survive_a_restart() {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (logged.handler("sum", 9), logged.named("r"));
    logged.request(requester, 1, durable);
    logged.sync();
    let delivery = logged.deliveries(handler)[0].delivery;
    logged.answered(handler, delivery, 1);
    logged.sync();
    for boot in 1..=3 {
        logged.restart();
        assert!(logged.handler("sum", 9) == ConnId(0) && logged.deliveries(ConnId(0)).is_empty());
        let requester = logged.named("r");
        assert_eq!(logged.resume(requester, boot, &[1]), [(1, OpenState::Outcome)]);
        let reply = logged.replies(requester).remove(0);
        assert_eq!((reply.number, reply.content.payload(), reply.attempt), (1, &b"3"[..], 1));
        if boot == 3 {
            logged.say(requester, ClientMessage::Acknowledge(Target::Number(reply.sequence)));
        }
    }
    logged.sync();
    logged.restart();
    assert_eq!(logged.broker.open_requests(), 0);
}

/// That a reply was acknowledged hurries nobody. A crash that forgets it keeps the reply: it is sent to the session again, which
/// knows it, and may acknowledge it again; nothing runs again.
#[test]
fn a_forgotten_acknowledgement_replays_the_reply() {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (logged.handler("sum", 9), logged.named("r"));
    logged.request(requester, 1, durable);
    logged.sync_awaited();
    let delivery = logged.deliveries(handler)[0].delivery;
    logged.answered(handler, delivery, 1);
    logged.sync_awaited();
    let reply = logged.replies(requester).remove(0);
    logged.say(requester, ClientMessage::Acknowledge(Target::Number(reply.sequence)));
    assert_eq!(logged.broker.open_requests(), 0);
    let now = logged.now;
    assert!(logged.broker.log().unwrap().poll(now).is_none(), "nobody waits for it");

    logged.restart();
    assert_eq!(logged.broker.open_requests(), 1);
    let (handler, requester) = (logged.handler("sum", 9), logged.named("r"));
    assert_eq!(logged.resume(requester, 1, &[]), []);
    let again = logged.replies(requester).remove(0);
    assert_eq!((again.number, again.code, again.content.payload()), (1, None, &b"3"[..]));
    assert!(logged.deliveries(handler).is_empty(), "it does not run again");
    logged.say(requester, ClientMessage::Acknowledge(Target::Number(again.sequence)));
    // With whatever somebody waits for it becomes stable.
    logged.request(requester, 2, durable);
    logged.sync_awaited();
    logged.restart();
    assert_eq!(logged.broker.open_requests(), 1, "the second one");
}

/// That an attempt began hurries nobody. A crash that forgets it does not count the attempt: one more may follow, and there is one
/// outcome.
#[test]
fn a_forgotten_attempt_does_not_count() {
    let mut logged = Logged::new(Config::default());
    let requester = logged.named("r");
    logged.request(requester, 1, durable);
    logged.sync_awaited();
    let handler = logged.handler("sum", 1);
    assert_eq!(logged.deliveries(handler)[0].attempt, 1);
    logged.input(Input::Closed { conn: handler });
    let handler = logged.handler("sum", 1);
    assert_eq!(logged.deliveries(handler)[0].attempt, 2);
    let now = logged.now;
    assert!(logged.broker.log().unwrap().poll(now).is_none(), "nobody waits for these");

    logged.restart();
    let (handler, requester) = (logged.handler("sum", 1), logged.named("r"));
    assert_eq!(logged.resume(requester, 1, &[1]), [(1, OpenState::Running)]);
    let deliver = logged.deliveries(handler).remove(0);
    assert_eq!(deliver.attempt, 1, "that there were two is forgotten");
    logged.answered(handler, deliver.delivery, 1);
    logged.sync_awaited();
    assert_eq!(logged.codes(requester), [(1, None)]);
}

/// What ends a send is waited for: by its handler, whose answer is acknowledged behind it, and by nobody in particular if it is
/// cancelled or given up, but then it must not run after all.
#[test]
fn the_end_of_a_send_is_not_forgotten() {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (logged.handler("sum", 9), logged.named("r"));
    logged.request(requester, 1, durable_send);
    logged.request(requester, 2, durable_send);
    logged.request(requester, 3, durable_send);
    logged.sync_awaited();
    let deliveries: Vec<_> = logged.deliveries(handler).into_iter().map(|deliver| deliver.delivery).collect();
    logged.answered(handler, deliveries[0], 1);
    logged.sync_awaited();
    assert_eq!(logged.take(handler), [ServerMessage::Acknowledge { sequence: 1 }]);
    logged.say(requester, ClientMessage::Cancel(Target::Number(2)));
    say_verdict(&mut logged, handler, deliveries[2], Verdict::Reject);
    logged.sync_awaited();
    logged.restart();
    let handler = logged.handler("sum", 9);
    assert!(logged.deliveries(handler).is_empty(), "none of them runs again");
    assert_eq!(logged.broker.open_requests(), 1, "the dead letter");
}

/// Neither its requester's end nor its timeout ends a durable request: only its ttl does, and that is an outcome too.
#[test]
fn only_the_ttl_ends_it() {
    let mut logged = Logged::new(Config::default());
    let requester = logged.named("r");
    logged.request(requester, 1, |request| {
        durable(request);
        (request.timeout_ms, request.ttl_ms) = (1000, 7_200_000);
    });
    logged.sync();
    logged.say(requester, ClientMessage::Goaway);
    logged.input(Input::Closed { conn: requester });
    logged.pass(HOUR);
    assert_eq!(logged.broker.open_requests(), 1);
    logged.restart();
    logged.pass(HOUR);
    logged.sync();
    let requester = logged.named("r");
    assert_eq!(logged.resume(requester, 1, &[1]), [(1, OpenState::Outcome)]);
    assert_eq!(logged.codes(requester), [(1, Some(Code::Expired))]);
    // It is to be had for as long as a session without a client.
    logged.pass(HOUR);
    assert_eq!(logged.broker.open_requests(), 0);
}

/// An outcome that is decided just before the ttl ends reaches its requester, though it is stable only later, and though the
/// broker is restarted meanwhile: it is to be had for as long as a session without a client.
#[test]
fn an_outcome_at_the_last_moment() {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (logged.handler("sum", 2), logged.named("r"));
    for number in [1, 2] {
        logged.request(requester, number, |request| {
            durable(request);
            request.ttl_ms = 1000;
        });
    }
    logged.sync();
    let held = logged.deliveries(handler);
    logged.pass(Duration::from_millis(990));
    logged.answered(handler, held[0].delivery, 1);
    logged.pass(Duration::from_millis(100));
    assert!(logged.replies(requester).is_empty(), "it is not stable yet");
    logged.sync();
    assert_eq!(logged.codes(requester), [(1, None), (2, Some(Code::Expired))]);
    logged.pass(Duration::from_secs(2));
    logged.restart();
    logged.pass(Duration::from_secs(2));
    let requester = logged.named("r");
    let states = logged.resume(requester, 1, &[1, 2]);
    assert_eq!(states, [(1, OpenState::Outcome), (2, OpenState::Outcome)]);
    assert_eq!(logged.codes(requester), [(1, None), (2, Some(Code::Expired))]);
    logged.pass(HOUR);
    assert_eq!(logged.broker.open_requests(), 0);
}

/// A handler that had deregistered is lost with what it holds, and it was the last of its action: what is durable waits for
/// another one to come.
#[test]
fn lost_with_the_last_handler_that_was_leaving() {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (logged.handler("sum", 2), logged.named("r"));
    logged.request(requester, 1, durable);
    logged.request(requester, 2, durable_send);
    logged.sync();
    assert_eq!(logged.deliveries(handler).len(), 2);
    logged.say(handler, ClientMessage::Deregister(Target::Number(1)));
    logged.input(Input::Closed { conn: handler });
    logged.sync();
    assert!(logged.codes(requester).is_empty());
    let handler = logged.handler("sum", 2);
    let again = logged.deliveries(handler);
    assert_eq!(again.iter().map(|deliver| deliver.attempt).collect::<Vec<_>>(), [2, 2]);
}

/// A durable request has five attempts, and keeps them over a restart of the broker; then it fails with `handlerLost`.
#[test]
fn attempts_are_counted_over_restarts() {
    let mut logged = Logged::new(Config::default());
    let requester = logged.named("r");
    logged.request(requester, 1, durable);
    logged.sync();
    for attempt in 1..=5 {
        let handler = logged.handler("sum", 1);
        let deliver = logged.deliveries(handler).remove(0);
        assert_eq!(deliver.attempt, attempt);
        logged.sync();
        if attempt == 3 {
            // Held by a handler while the broker dies: that attempt does not count.
            logged.restart();
            let handler = logged.handler("sum", 1);
            assert_eq!(logged.deliveries(handler)[0].attempt, 3);
            logged.input(Input::Closed { conn: handler });
        } else {
            logged.input(Input::Closed { conn: handler });
        }
    }
    logged.sync();
    let requester = logged.named("r");
    logged.resume(requester, 1, &[1]);
    assert_eq!(logged.codes(requester), [(1, Some(Code::HandlerLost))]);
}

/// A requester that gives its durable request up says so, and the outcome is logged as every other.
#[test]
fn cancelling_is_explicit() {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (logged.handler("sum", 1), logged.named("r"));
    logged.request(requester, 1, durable);
    logged.sync();
    logged.say(requester, ClientMessage::Cancel(Target::Number(1)));
    assert!(logged.take(handler).iter().any(|message| matches!(message, ServerMessage::Cancel { .. })));
    assert!(logged.codes(requester).is_empty());
    logged.sync();
    assert_eq!(logged.codes(requester), [(1, Some(Code::Cancelled))]);
}

/// A new process under an old name gets none of the older one's outcomes, unless it asks for what is there.
#[test]
fn outcomes_wait_for_an_heir() {
    let mut logged = Logged::new(Config::default());
    let (handler, first) = (logged.handler("sum", 9), logged.named("r"));
    logged.request(first, 1, durable);
    logged.request(first, 2, durable);
    logged.sync();
    let held = logged.deliveries(handler);
    logged.answered(handler, held[0].delivery, 1);
    logged.sync();
    logged.input(Input::Closed { conn: first });
    let second = logged.named_as("r", 2);
    logged.request(second, 3, durable);
    logged.sync();
    let third = logged.deliveries(handler).remove(0).delivery;
    logged.answered(handler, held[1].delivery, 2);
    logged.answered(handler, third, 3);
    logged.sync();
    let replies = logged.replies(second);
    assert_eq!(replies.iter().map(|reply| reply.number).collect::<Vec<_>>(), [3]);
    logged.say(second, ClientMessage::Acknowledge(Target::Number(replies[0].sequence)));
    logged.input(Input::Closed { conn: second });
    let heir = logged.named_as("r", 3);
    logged.resume(heir, 1, &[]);
    assert_eq!(logged.codes(heir), [(1, None), (2, None)]);
}

/// JSON: `acknowledge` says that a durable request is accepted, and releases its reply; who registers under the session's
/// name later gets what is there.
#[test]
fn json_clients_come_back_by_name() {
    let mut logged = Logged::new(Config::default());
    let handler = logged.handler("sum", 9);
    let json = |logged: &mut Logged| {
        let conn = logged.connect(Speaks::Json);
        let (action, session) = ("me".into(), "mine".into());
        logged.say(conn, ClientMessage::Register(Register { registration: 0, credit: 1, action, session }));
        conn
    };
    let first = json(&mut logged);
    for tag in [&b"\"a\""[..], b"\"b\""] {
        logged.request(first, 0, |request| {
            durable(request);
            request.content = Content::with_tag(b"sum", tag, b"", b"", b"1");
        });
    }
    logged.sync();
    let accepted =
        |message: &ServerMessage| matches!(message, ServerMessage::Accepted { tag, .. } if !tag.is_empty());
    assert_eq!(logged.take(first).iter().filter(|message| accepted(message)).count(), 2);
    let held = logged.deliveries(handler);
    assert_eq!(held[0].content.tag(), b"\"a\"");
    logged.answered(handler, held[0].delivery, 1);
    logged.sync();
    assert_eq!(logged.replies(first).len(), 1);
    logged.say(first, ClientMessage::Acknowledge(Target::Name("\"a\"".into())));
    assert_eq!(logged.broker.open_requests(), 1);
    logged.input(Input::Closed { conn: first });
    logged.restart();
    let handler = logged.handler("sum", 9);
    let held = logged.deliveries(handler);
    assert_eq!((held.len(), held[0].content.tag()), (1, &b"\"b\""[..]));
    let second = json(&mut logged);
    logged.take(second);
    logged.answered(handler, held[0].delivery, 1);
    logged.sync();
    let reply = logged.replies(second).remove(0);
    assert_eq!((&reply.tag[..], reply.code), (&b"\"b\""[..], None));
}

/// What was plain is gone when its client has been away for long, also where the session stays for something durable: the
/// client is told that, and does not wait for it.
#[test]
fn what_stays_for_long_is_only_what_is_durable() {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (logged.handler("sum", 9), logged.named("r"));
    logged.request(requester, 1, |request| {
        durable(request);
        request.content = Content::from_parts(b"later", b"", b"", b"1");
    });
    logged.sync();
    logged.request(requester, 2, |request| request.timeout_ms = 3_600_000);
    logged.request(requester, 3, |request| request.timeout_ms = 3_600_000);
    let held = logged.deliveries(handler);
    logged.input(Input::Closed { conn: requester });
    logged.answered(handler, held[0].delivery, 1);
    logged.pass(Duration::from_secs(61));
    let requester = logged.named("r");
    let states = logged.resume(requester, 1, &[1, 2, 3]);
    assert_eq!(states, [(1, OpenState::Running), (2, OpenState::Lost), (3, OpenState::Lost)]);
}

/// A binary client that takes the name over from a JSON one can come back to what is its own.
#[test]
fn a_name_may_change_its_dialect() {
    let mut logged = Logged::new(Config::default());
    let handler = logged.handler("sum", 9);
    let json = logged.connect(Speaks::Json);
    let (action, session) = ("me".into(), "mine".into());
    logged.say(json, ClientMessage::Register(Register { registration: 0, credit: 1, action, session }));
    logged.request(json, 0, |request| {
        durable(request);
        request.content = Content::with_tag(b"later", b"1", b"", b"", b"1");
    });
    logged.sync();
    logged.input(Input::Closed { conn: json });
    let binary = logged.named("mine");
    logged.resume(binary, 0, &[]);
    logged.request(binary, 10, |_| {});
    let held = logged.deliveries(handler).remove(0);
    logged.input(Input::Closed { conn: binary });
    logged.answered(handler, held.delivery, 1);
    let binary = logged.named("mine");
    assert_eq!(logged.resume(binary, 1, &[10]), [(10, OpenState::Outcome)]);
    assert_eq!(logged.codes(binary), [(10, None)]);
}

/// JSON: who has ended its half and only waits for the end of a send that was accepted has nothing to wait for.
#[test]
fn an_accepted_send_holds_no_connection() {
    let mut logged = Logged::new(Config::default());
    let json = logged.connect(Speaks::Json);
    logged.request(json, 0, |request| {
        durable_send(request);
        request.content = Content::with_tag(b"later", b"1", b"", b"", b"1");
    });
    logged.input(Input::HalfClosed { conn: json });
    assert!(logged.closed.is_empty(), "it is to be told that the send is accepted");
    logged.sync();
    assert!(matches!(logged.take(json)[..], [ServerMessage::Accepted { .. }]));
    assert_eq!(logged.closed.len(), 1);
    logged.input(Input::Closed { conn: json });
    let handler = logged.handler("later", 1);
    assert_eq!(logged.deliveries(handler).len(), 1);
}

/// Of a requester without a session's name nothing is kept once it is gone, but what it asked for is done.
#[test]
fn without_a_name_nobody_comes_back() {
    let mut logged = Logged::new(Config::default());
    let requester = logged.connect(Speaks::Binary);
    logged.request(requester, 1, durable);
    logged.request(requester, 2, durable_send);
    logged.sync();
    logged.input(Input::Closed { conn: requester });
    let handler = logged.handler("sum", 9);
    for (sequence, deliver) in (1..).zip(logged.deliveries(handler)) {
        logged.answered(handler, deliver.delivery, sequence);
    }
    logged.sync();
    assert_eq!(logged.broker.open_requests(), 0);
    logged.restart();
    assert_eq!(logged.broker.open_requests(), 0);
}

/// Without a log, and where nothing can be durable, the refusal says what to do.
#[test]
fn refusals_name_the_remedy() {
    let mut stage = Stage::new(Config::default());
    let requester = stage.connect(Speaks::Binary);
    stage.request(requester, 1, durable);
    let reply = stage.replies(requester).remove(0);
    assert_eq!(reply.code, Some(Code::DurableUnavailable));
    assert!(String::from_utf8_lossy(reply.content.payload()).contains("--data-dir"));
    let mut logged = Logged::new(Config::default());
    let requester = logged.named("r");
    logged
        .request(requester, 1, |request| request.flags = RequestFlags::DURABLE.with(RequestFlags::BROADCAST));
    assert_eq!(logged.codes(requester), [(1, Some(Code::Unsupported))]);
}

/// However many requests come and go, a few that stay do not keep the log from staying short, and survive that too: one that
/// waits, one that has used up an attempt, and one whose reply nobody has fetched.
#[test]
fn what_stays_does_not_keep_the_rest() {
    let mut logged = Logged::new(Config::default());
    let (stays, requester) = (logged.named("stays"), logged.named("r"));
    for (number, action) in [(1, "later"), (2, "tried"), (3, "sum")] {
        logged.request(stays, number, |request| {
            durable(request);
            request.content =
                Content::from_parts(action.as_bytes(), b"", b"", format!("{number}").as_bytes());
        });
    }
    logged.sync();
    let tried = logged.handler("tried", 1);
    assert_eq!(logged.deliveries(tried).len(), 1);
    logged.input(Input::Closed { conn: tried });
    let tried = logged.handler("tried", 1);
    assert_eq!(logged.deliveries(tried)[0].attempt, 2);
    let handler = logged.handler("sum", 9);
    let held = logged.deliveries(handler).remove(0);
    logged.answered(handler, held.delivery, 1);
    logged.sync();
    logged.input(Input::Closed { conn: stays });
    for number in 1..=2000_u64 {
        logged.request(requester, number, durable);
        logged.sync();
        let held = logged.deliveries(handler).remove(0);
        logged.answered(handler, held.delivery, number + 1);
        logged.sync();
        let sequence = logged.replies(requester).remove(0).sequence;
        logged.say(requester, ClientMessage::Acknowledge(Target::Number(sequence)));
        logged.take(handler);
    }
    logged.sync();
    let (disk, living) = logged.broker.log().unwrap().disk_and_living_bytes();
    assert!(disk <= 16 * 4096 && living < 4096, "{disk} bytes, of which {living} live");
    logged.restart();
    assert_eq!(logged.broker.open_requests(), 3);
    let tried = logged.handler("tried", 1);
    assert_eq!(logged.deliveries(tried)[0].attempt, 2);
    let stays = logged.named("stays");
    let states = logged.resume(stays, 1, &[1, 2, 3]);
    assert_eq!(states, [(1, OpenState::Running), (2, OpenState::Running), (3, OpenState::Outcome)]);
    assert_eq!(logged.replies(stays)[0].content.payload(), b"3");
    let later = logged.handler("later", 1);
    assert_eq!(logged.deliveries(later)[0].content.payload(), b"1");
}

fn say_verdict(logged: &mut Logged, conn: ConnId, delivery: u64, verdict: Verdict) {
    logged.answer(conn, delivery, verdict);
    logged.sync();
}

/// A send that its handler fails is tried again, after pauses that grow, also over a restart; when its attempts are used up
/// it is a dead letter. It can be looked at, sent again, and forgotten.
#[test]
fn failed_sends_become_dead_letters() {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (logged.handler("sum", 1), logged.named("r"));
    logged.request(requester, 1, durable_send);
    logged.sync();
    let mut pauses = Vec::new();
    let mut held = logged.deliveries(handler);
    for attempt in 1..=4 {
        assert_eq!(held.remove(0).attempt, attempt);
        let delivery = logged.broker.deliveries.iter().next().unwrap().0.raw();
        say_verdict(&mut logged, handler, delivery, Verdict::Error);
        let begun = logged.now.mono;
        while held.is_empty() {
            logged.pass(Duration::from_millis(1));
            held = logged.deliveries(handler);
        }
        pauses.push(logged.now.mono.since(begun).as_millis() / 100);
        logged.sync();
    }
    assert_eq!(pauses, [0, 1, 2, 4], "in tenths of a second");
    logged.restart();
    let handler = logged.handler("sum", 1);
    let last = logged.deliveries(handler).remove(0);
    assert_eq!(last.attempt, 5, "the attempt that the restart broke off does not count");
    say_verdict(&mut logged, handler, last.delivery, Verdict::Error);
    assert_eq!((logged.broker.dead.len(), logged.broker.counters().dead_letters), (1, 1));
    logged.restart();
    assert_eq!(logged.broker.dead.len(), 1);
    let handler = logged.handler("sum", 1);
    assert!(logged.deliveries(handler).is_empty());
    let operator = logged.connect(Speaks::Binary);
    let ask = |logged: &mut Logged, number: u64, data: &[u8]| -> serde_json::Value {
        logged.request(operator, number, |request| {
            request.content = Content::from_parts(b"$sys.dead", b"", b"", data);
        });
        let reply = logged.replies(operator).remove(0);
        serde_json::from_slice(reply.content.payload()).unwrap()
    };
    let list = ask(&mut logged, 1, b"null");
    assert_eq!(
        (&list[0]["attempts"], &list[0]["error"], &list[0]["code"]),
        (&5.into(), &"3".into(), &"remote".into())
    );
    let id = list[0]["requestId"].as_str().unwrap().to_owned();
    let resend = format!("{{\"op\":\"resend\",\"requestId\":\"{id}\"}}");
    assert_eq!(ask(&mut logged, 2, resend.as_bytes())["sent"], 1);
    let again = logged.deliveries(handler).remove(0);
    assert_eq!(again.attempt, 1);
    say_verdict(&mut logged, handler, again.delivery, Verdict::Reject);
    assert_eq!(ask(&mut logged, 3, b"{\"op\":\"drop\"}")["dropped"], 1);
    assert_eq!(logged.broker.open_requests(), 0);
    logged.sync();
    logged.restart();
    assert_eq!((logged.broker.dead.len(), logged.broker.open_requests()), (0, 0));
}

/// A handler may say when to try again; and a send that nobody handles in its time is a dead letter too, for a time and up
/// to a number of its own.
#[test]
fn dead_letters_are_bounded() {
    let mut logged = Logged::new(Config { dead_limit: 2, dead_ttl: HOUR, ..Config::default() });
    let (handler, requester) = (logged.handler("sum", 1), logged.named("r"));
    logged.request(requester, 1, durable_send);
    logged.sync();
    let held = logged.deliveries(handler).remove(0);
    say_verdict(&mut logged, handler, held.delivery, Verdict::Retry(5000));
    logged.pass(Duration::from_millis(4990));
    assert!(logged.deliveries(handler).is_empty());
    logged.pass(Duration::from_millis(20));
    assert_eq!(logged.deliveries(handler).remove(0).attempt, 2);
    logged.input(Input::Closed { conn: handler });
    for number in 2..=4 {
        logged.request(requester, number, |request| {
            durable_send(request);
            request.ttl_ms = 1000;
        });
    }
    logged.sync();
    logged.pass(Duration::from_secs(2));
    logged.sync();
    assert_eq!((logged.broker.dead.len(), logged.broker.counters().dead_letters), (2, 3));
    logged.pass(HOUR);
    assert_eq!((logged.broker.dead.len(), logged.broker.open_requests()), (0, 1));
}

/// A handler that has had a durable request for too long loses it to another, unless it says that it is at work; what it
/// answers later does not count.
#[test]
fn leases_end_and_progress_extends_them() {
    let handle_timeout = Duration::from_secs(10);
    let mut logged = Logged::new(Config { handle_timeout, ..Config::default() });
    let (slow, requester) = (logged.handler("sum", 1), logged.named("r"));
    logged.request(requester, 1, durable);
    logged.sync();
    let held = logged.deliveries(slow).remove(0);
    for _ in 0..3 {
        logged.pass(Duration::from_secs(9));
        logged.say(requester, ClientMessage::Ping(1));
        let (number, tag) = (held.delivery, Default::default());
        let content = Content::default();
        logged.say(
            slow,
            ClientMessage::Progress(ringpost_protocol::message::Progress { number, tag, content }),
        );
    }
    let quick = logged.handler("sum", 1);
    logged.pass(Duration::from_millis(9990));
    assert!(logged.deliveries(quick).is_empty());
    logged.pass(Duration::from_millis(20));
    let again = logged.deliveries(quick).remove(0);
    assert_eq!(again.attempt, 2);
    assert!(logged.take(slow).iter().any(|message| matches!(message, ServerMessage::Cancel { .. })));
    logged.answered(slow, held.delivery, 1);
    logged.answered(quick, again.delivery, 1);
    logged.sync();
    assert_eq!(logged.codes(requester), [(1, None)]);
    assert_eq!(logged.broker.counters().late_answers, 1);
}

/// A durable request that names no ttl has a day; a longer one than the server allows is cut.
#[test]
fn a_day_is_the_usual_ttl() {
    for (max_ttl, ttl_ms, hours) in [(7 * 24, 0, 24), (7 * 24, 3_600_000, 1), (2, 0, 2), (2, 10_800_000, 2)] {
        let mut logged = Logged::new(Config { max_ttl: HOUR * max_ttl, ..Config::default() });
        let requester = logged.named("r");
        logged.request(requester, 1, |request| {
            durable(request);
            request.ttl_ms = ttl_ms;
        });
        logged.sync();
        logged.pass(HOUR * hours - Duration::from_secs(1));
        let waits = |logged: &Logged| logged.broker.requests.iter().any(|(_, request)| request.is_queued());
        assert!(waits(&logged));
        logged.pass(Duration::from_secs(2));
        assert!(!waits(&logged), "{max_ttl} h at most, {ttl_ms} ms asked for");
    }
}

/// What cannot be logged any more is neither accepted nor answered, however stable all that came before it is.
#[test]
fn nothing_goes_out_of_a_log_that_failed() {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (logged.handler("sum", 9), logged.named("r"));
    logged.request(requester, 1, durable);
    logged.sync();
    let held = logged.deliveries(handler).remove(0);
    logged.sync();
    logged.take(requester);
    logged.disk.fail(Call::Sync, 0, std::io::ErrorKind::Other);
    logged.request(requester, 2, durable);
    logged.sync();
    assert!(logged.broker.log().unwrap().failed().is_some());
    logged.answered(handler, held.delivery, 1);
    logged.sync();
    logged.request(requester, 3, durable);
    logged.sync();
    assert_eq!(logged.codes(requester), [(3, Some(Code::DurableUnavailable))]);
    assert!(logged.take(handler).is_empty(), "neither a delivery of 2 nor word that the answer is safe");
    logged.restart();
    assert_eq!(logged.broker.open_requests(), 1, "1 is undecided, 2 was never accepted");
}

/// A log that is being closed takes nothing more: an answer that comes then is not promised to anybody.
#[test]
fn nothing_goes_out_behind_the_end_of_the_log() {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (logged.handler("sum", 9), logged.named("r"));
    logged.request(requester, 1, durable);
    logged.sync();
    let held = logged.deliveries(handler).remove(0);
    logged.broker.log().unwrap().stop();
    logged.sync();
    logged.answered(handler, held.delivery, 1);
    logged.sync();
    assert!(logged.replies(requester).is_empty() && logged.take(handler).is_empty());
    logged.restart();
    assert_eq!(logged.broker.open_requests(), 1);
}

/// Copied forward while the next attempt is under way, the record of a failed attempt still says which one that was: the one
/// under way is not used up by the restart.
#[test]
fn compaction_does_not_use_up_attempts() {
    let mut logged = Logged::new(Config::default());
    let (stays, requester) = (logged.named("stays"), logged.named("r"));
    logged.request(stays, 1, |request| {
        durable_send(request);
        request.max_attempts = 2;
        request.content = Content::from_parts(b"tried", b"", b"", b"1");
    });
    logged.sync();
    let (tried, handler) = (logged.handler("tried", 1), logged.handler("sum", 9));
    let held = logged.deliveries(tried).remove(0);
    logged.answer(tried, held.delivery, Verdict::Error);
    logged.pass(Duration::from_millis(1));
    assert_eq!(logged.deliveries(tried)[0].attempt, 2);
    for number in 1..=300_u64 {
        logged.request(requester, number, durable);
        logged.sync();
        let held = logged.deliveries(handler).remove(0);
        logged.answered(handler, held.delivery, number);
        logged.sync();
        let sequence = logged.replies(requester).remove(0).sequence;
        logged.say(requester, ClientMessage::Acknowledge(Target::Number(sequence)));
        logged.take(handler);
    }
    logged.sync();
    logged.restart();
    let tried = logged.handler("tried", 1);
    assert_eq!(logged.deliveries(tried)[0].attempt, 2);
}

/// A log that is being stopped takes no copies of what lives in a segment that is mostly dead: that segment stays, and what
/// lives in it is there after the restart.
#[test]
fn compaction_at_the_end_of_the_log_loses_nothing() {
    for others in 1..=60 {
        let mut logged = Logged::new(Config::default());
        let (handler, stays, requester) =
            (logged.handler("sum", 9), logged.named("stays"), logged.named("r"));
        logged.request(stays, 1, |request| {
            durable(request);
            request.content = Content::from_parts(b"later", b"", b"", b"1");
        });
        logged.sync();
        for number in 1..=others {
            logged.request(requester, number, durable);
        }
        logged.sync();
        let mut sequence = 0;
        loop {
            let held = logged.deliveries(handler);
            if held.is_empty() {
                break;
            }
            for held in held {
                sequence += 1;
                logged.answered(handler, held.delivery, sequence);
            }
            logged.sync();
        }
        let last = logged.replies(requester).last().map_or(0, |reply| reply.sequence);
        logged.say(requester, ClientMessage::Acknowledge(Target::Number(last)));
        logged.broker.log().unwrap().stop();
        for _ in 0..4 {
            logged.sync();
        }
        logged.restart();
        let later = logged.handler("later", 9);
        assert_eq!(logged.deliveries(later).len(), 1, "with {others} others");
    }
}

/// An acknowledgement that a stopping log cannot take any more lets none of a request's records go: were its reply removed
/// with an old segment, and the request itself not, it would run again.
#[test]
fn an_acknowledgement_at_the_end_of_the_log_lets_nothing_go() {
    let mut logged = Logged::new(Config::default());
    let (handler, requester) = (logged.handler("sum", 1), logged.named("r"));
    logged.request(requester, 1, durable);
    logged.sync();
    let held = logged.deliveries(handler).remove(0);
    logged.answered(handler, held.delivery, 1);
    logged.sync();
    let told = logged.replies(requester).remove(0).sequence;
    logged.broker.log().unwrap().stop();
    let (_, before) = logged.broker.log().unwrap().disk_and_living_bytes();
    logged.say(requester, ClientMessage::Acknowledge(Target::Number(told)));
    logged.sync();
    assert_eq!(logged.broker.log().unwrap().disk_and_living_bytes().1, before);
    logged.restart();
    let requester = logged.named("r");
    assert_eq!(logged.resume(requester, 1, &[1]), [(1, OpenState::Outcome)]);
}

/// What a stopping log cannot take of a send's end, or of an operator's word, lets none of its records go: were a dead letter's
/// removed, and the send itself not, it would run again; were the send's own removed, nothing would be left of it.
#[test]
fn nothing_of_a_dead_letter_goes_at_the_end_of_the_log() {
    let headers = ringpost_protocol::encode_headers([("idempotency-key", "k")]).unwrap();
    for op in ["drop", "resend"] {
        let mut logged = Logged::new(Config::default());
        let (handler, requester) = (logged.handler("sum", 1), logged.named("r"));
        logged.request(requester, 1, |request| {
            durable_send(request);
            request.content = Content::from_parts(b"sum", b"", &headers, b"1");
        });
        logged.sync();
        let held = logged.deliveries(handler).remove(0);
        say_verdict(&mut logged, handler, held.delivery, Verdict::Reject);
        logged.broker.log().unwrap().stop();
        let (_, before) = logged.broker.log().unwrap().disk_and_living_bytes();
        logged.request(requester, 2, |request| {
            let data = format!("{{\"op\":\"{op}\"}}");
            request.content = Content::from_parts(b"$sys.dead", b"", b"", data.as_bytes());
        });
        logged.sync();
        assert_eq!(logged.broker.log().unwrap().disk_and_living_bytes().1, before, "after {op}");
        logged.restart();
        assert_eq!(logged.broker.dead.len(), 1);
    }
}

/// Durable requests that wait count in the memory budget like all others.
#[test]
fn what_waits_is_bounded_by_memory() {
    let mut logged = Logged::new(Config { memory_bytes: 4000, ..Config::default() });
    let requester = logged.named("r");
    for number in 1..=4 {
        logged.request(requester, number, |request| {
            durable(request);
            request.content = Content::from_parts(b"sum", b"", b"", &[b'1'; 900]);
        });
        logged.sync();
    }
    assert_eq!(logged.codes(requester), [(4, Some(Code::Overloaded))]);
    assert_eq!(logged.broker.counters().refused_memory, 1);
}
