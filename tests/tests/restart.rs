//! Servers that are killed or leave under load, and come back or hand over to another: every request ends once and truly,
//! none hangs, none runs more often than it may.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what is not right"
)]

mod common;

use std::net::SocketAddr;

use common::{
    load::{Ledger, Loads, client},
    process::{self, Process, ServerProcess},
    proxy::Proxy,
    run, until, wait_until_quiet,
};
use ringpost::ErrorKind;
use rustix::process::Signal;

/// No ping comes up within a test: a broken connection is noticed because it breaks.
const ARGS: [&str; 4] = ["--ping-interval", "10m", "--drain-timeout", "30s"];
fn handler(server: SocketAddr, ledger: &Ledger) -> Process {
    process::handler(server, "work", ledger.path(), 32, 10)
}

/// A server that is killed and started anew on its port at once: clients come back, requests that may have run and have no
/// attempts left are `connectionLost`, and those that have run again.
#[test]
fn a_killed_server() {
    let mut server = ServerProcess::start(&ARGS);
    let address = server.address;
    let proxy = Proxy::start(address);
    let ledger = Ledger::new();
    run(async {
        let handlers = [handler(address, &ledger), handler(address, &ledger)];
        let client = client(proxy.address()).await;
        let loads = Loads::start(&client, 0);
        for _ in 0..4 {
            loads.go_on().await;
            // A requester that comes back before the handlers would find none.
            proxy.freeze();
            server.process.kill();
            // Its port may still be taken: the kernel closes the sockets of a ring when the process is long gone.
            server = ServerProcess::at(address, &ARGS);
            until("the handlers are back", || server.stats()["now"]["handlers"] == handlers.len());
            proxy.thaw();
        }
        loads.go_on().await;
        let (once, often) = loads.stop(&ledger).await;
        once.assert_only(&[ErrorKind::ConnectionLost]);
        often.assert_only(&[]);
        assert!(once.count(ErrorKind::ConnectionLost) > 0, "some were under way");
        let again = ledger.runs().0.into_values().filter(|attempts| attempts.len() > 1).count();
        assert!(again > 0, "some of those with attempts left ran again");
        client.close().await;
        handlers.into_iter().for_each(Process::finish);
    });
    wait_until_quiet(address, 1);
}

/// Servers that hand over to the next, one after the other, each of which has its handlers before the requesters come: not
/// one request fails, with attempts left or without, and none runs twice.
#[test]
fn a_rolling_restart() {
    let mut server = ServerProcess::start(&ARGS);
    let proxy = Proxy::start(server.address);
    let ledger = Ledger::new();
    run(async {
        let mut handlers = vec![handler(proxy.address(), &ledger), handler(proxy.address(), &ledger)];
        let client = client(proxy.address()).await;
        let loads = Loads::start(&client, 0);
        for _ in 0..4 {
            loads.go_on().await;
            let next = ServerProcess::start(&ARGS);
            proxy.set_target(next.address);
            handlers.push(handler(proxy.address(), &ledger));
            server.process.signal(Signal::TERM);
            let status = server.process.wait();
            assert!(status.success(), "the server left with {status}");
            server = next;
        }
        loads.go_on().await;
        let (once, often) = loads.stop(&ledger).await;
        once.assert_only(&[]);
        often.assert_only(&[]);
        for (number, attempts) in ledger.runs().0 {
            assert_eq!(attempts, [1], "request {number} ran once, and whoever held it finished it");
        }
        client.close().await;
        handlers.into_iter().for_each(Process::finish);
    });
    wait_until_quiet(server.address, 1);
}

/// A server that leaves and is started anew on its port: what handlers hold they finish, nothing is lost, and nothing runs
/// twice. A requester may be back before any handler is; that is all that can go wrong.
#[test]
fn a_server_is_replaced() {
    let mut server = ServerProcess::start(&ARGS);
    let address = server.address;
    let ledger = Ledger::new();
    run(async {
        let handlers = [handler(address, &ledger), handler(address, &ledger)];
        let client = client(address).await;
        let loads = Loads::start(&client, 0);
        for _ in 0..4 {
            loads.go_on().await;
            server.process.signal(Signal::TERM);
            let status = server.process.wait();
            assert!(status.success(), "the server left with {status}");
            server = ServerProcess::at(address, &ARGS);
        }
        loads.go_on().await;
        let (once, often) = loads.stop(&ledger).await;
        once.assert_only(&[ErrorKind::NoHandler]);
        often.assert_only(&[ErrorKind::NoHandler]);
        for (number, attempts) in ledger.runs().0 {
            assert_eq!(attempts, [1], "request {number} ran once, and whoever held it finished it");
        }
        client.close().await;
        handlers.into_iter().for_each(Process::finish);
    });
    wait_until_quiet(address, 1);
}
