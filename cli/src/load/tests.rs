//! The load generator against a small broker that can be told to misbehave.

mod fake;

use std::time::Duration;

use super::*;
use fake::{Broker, Fault};

/// A short run of small traffic. Tests look at counts, never at rates.
fn options(broker: &Broker, dialect: Dialect) -> Options {
    Options {
        dialect,
        requesters: 3,
        in_flight: 5,
        handlers: 2,
        warm_up: Duration::from_millis(20),
        duration: Duration::from_millis(100),
        ..Options::new(broker.address())
    }
}

/// Runs, and waits until the broker has seen the end of every connection: the next run must not meet handlers of this
/// one, and nothing may be left open, however the run ended.
fn run_quietly(broker: &Broker, options: &Options) -> anyhow::Result<Outcome> {
    let outcome = run(options, &mut |_| {});
    assert!(broker.is_idle(Duration::from_secs(10)), "connections were left open");
    outcome
}

/// In both dialects, whatever the size: all is answered, and nothing is an error.
#[test]
fn echoes() {
    let broker = Broker::start(Fault::None);
    for dialect in [Dialect::Binary, Dialect::Json] {
        for size in [1, 128, 100_000] {
            let outcome = run_quietly(&broker, &Options { size, ..options(&broker, dialect) }).unwrap();
            assert!(outcome.requests > 0, "{dialect:?} {size}");
            assert_eq!((outcome.errors, outcome.unanswered), (0, 0), "{:?}", outcome.error_counts);
            assert!(outcome.latency.p50_us > 0.0 && outcome.latency.p50_us <= outcome.latency.max_us);
            assert!(outcome.server_cpu.is_none());
        }
    }
}

/// An empty payload is one in the binary dialect and none in JSON.
#[test]
fn empty_payload() {
    let broker = Broker::start(Fault::None);
    let outcome = run_quietly(&broker, &Options { size: 0, ..options(&broker, Dialect::Binary) }).unwrap();
    assert!(outcome.requests > 0 && outcome.errors == 0);
    let error = run_quietly(&broker, &Options { size: 0, ..options(&broker, Dialect::Json) }).unwrap_err();
    assert!(error.to_string().contains("1 byte"), "{error:#}");
}

/// Requests that end with an error are counted by their code, and others take their place.
#[test]
fn counts_failures() {
    let broker = Broker::start(Fault::Overloaded);
    for dialect in [Dialect::Binary, Dialect::Json] {
        let outcome = run_quietly(&broker, &options(&broker, dialect)).unwrap();
        assert!(outcome.errors > 0 && outcome.requests > 0, "{dialect:?}");
        assert_eq!(outcome.error_counts.keys().collect::<Vec<_>>(), ["overloaded"]);
        assert_eq!(outcome.unanswered, 0);
    }
}

/// A reply with another payload, or one to a request that is not open, is seen.
#[test]
fn sees_wrong_replies() {
    for (fault, expected) in
        [(Fault::OtherPayload, "is not the request's"), (Fault::Twice, "which is not open")]
    {
        let broker = Broker::start(fault);
        for dialect in [Dialect::Binary, Dialect::Json] {
            let outcome = run_quietly(&broker, &options(&broker, dialect)).unwrap();
            assert!(outcome.errors > 0, "{dialect:?}");
            assert!(outcome.error_counts.keys().all(|reason| reason.contains(expected) || reason == "other"));
        }
    }
}

/// A server that goes away ends the run with an error that says so; nobody waits for the time to be over.
#[test]
fn sees_the_end() {
    let broker = Broker::start(Fault::Close);
    for dialect in [Dialect::Binary, Dialect::Json] {
        let options = Options { duration: Duration::from_secs(600), ..options(&broker, dialect) };
        let error = run_quietly(&broker, &options).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            ["closed the connection", "receiving", "sending"].iter().any(|part| text.contains(part)),
            "{text}"
        );
    }
}

/// With the server's process known, its CPU is measured; the outcome survives serde, and reads well.
#[test]
fn measures_and_reports() {
    let broker = Broker::start(Fault::None);
    let mut phases = Vec::new();
    let options = Options {
        server_pid: Some(std::process::id()),
        duration: Duration::from_millis(1200),
        ..options(&broker, Dialect::Binary)
    };
    let outcome = run(&options, &mut |progress: Progress| phases.push(progress.phase)).unwrap();
    assert!(outcome.server_cpu.unwrap().us_per_request > 0.0 && outcome.load_cpu.us_per_request > 0.0);
    assert!(phases.contains(&Phase::Measure));
    let text = serde_json::to_string(&outcome).unwrap();
    assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap().requests, outcome.requests);
    let mut table = Vec::new();
    print_table(&outcome, &mut table).unwrap();
    let table = String::from_utf8(table).unwrap();
    assert!(table.contains("3 requesters × 5 in flight, 2 handlers, 128 bytes"), "{table}");
}

/// Nonsense is refused before anything is connected.
#[test]
fn refuses_nonsense() {
    let good = Options::new("127.0.0.1:9".parse().unwrap());
    for bad in [
        Options { requesters: 0, ..good.clone() },
        Options { handlers: 0, ..good.clone() },
        Options { in_flight: 0, ..good.clone() },
        Options { duration: Duration::ZERO, ..good.clone() },
        Options { action: "init".to_owned(), ..good.clone() },
    ] {
        assert!(run(&bad, &mut |_| {}).is_err(), "{bad:?}");
    }
}
