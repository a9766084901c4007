//! The server's process and its machine: how they begin and end, and the disk.

use ringpost_broker::{Read, log::OperationId};

use super::{Event, SECOND, World};
use crate::sim::{
    durable::Crash,
    network::End,
    rules::{Verdict, ensure},
    server::{LOG_ID, Server},
};

/// How long a leaving server waits for its log at most.
const LAST_WRITES: u64 = 5 * SECOND;

impl World<'_> {
    pub(super) fn boot_server(&mut self) -> Verdict {
        if self.server.is_some() {
            return Ok(());
        }
        self.boot += 1;
        let now = self.server_clock();
        let settings = &self.plan.settings;
        let mut config = ringpost_broker::Config { boot: self.boot, ..settings.config.clone() };
        config.log_id = if self.durable.is_some() { LOG_ID } else { 0 };
        let mut server = Server::new(config, settings.outbound_limit, self.plan.check_invariants);
        server = server.traced(self.plan.trace);
        if let Some(mut durable) = self.durable.take() {
            durable.begin();
            let takes = settings.log.as_ref().map_or(0, |log| log.recovery);
            server = if takes == 0 {
                let opened = durable.open(self.boot, now.mono.micros())?;
                server.with_log(durable, opened, now)
            } else {
                let boot = self.boot;
                self.plan_at(self.now + takes, Event::Recovered { boot });
                server.recovering(durable)
            };
        }
        self.server = Some(server);
        (self.leaving, self.server_timer, self.stopping_until) = (false, None, None);
        (self.booted_at, self.ledger.server_leaves) = (self.now, false);
        self.at_server(|server, now| server.turn(now))
    }

    /// The log was read while others were served. A server that leaves takes nothing more.
    pub(super) fn recovered(&mut self) -> Verdict {
        if self.leaving {
            return Ok(());
        }
        self.at_server(|server, now| server.recovered(now))
    }

    /// The server's process is gone, and with it all that it knew: its system ends the connections.
    pub(crate) fn kill_server(&mut self, away: u64, crash: Crash) {
        let Some(server) = self.server.take() else { return };
        self.durable = server.leave_behind();
        if let Some(durable) = &mut self.durable {
            durable.disk.crash(crash);
        }
        (self.server_hangs_until, self.log_failed) = (0, false);
        for link in 0..self.links.len() {
            if std::mem::replace(&mut self.links[link].open[End::Server as usize], false) {
                self.break_link(link, &[End::Client]);
            }
        }
        self.plan_at(self.now + away, Event::BrokerReturns);
    }

    /// A server that leaves goes when its log has all that it was given.
    pub(super) fn stop_server(&mut self) {
        let until = *self.stopping_until.get_or_insert(self.now + LAST_WRITES);
        let Some(server) = &mut self.server else { return };
        if !server.stop_log() && self.now < until {
            self.poll_disk();
            let boot = self.boot;
            return self.plan_at(self.now + SECOND / 1000, Event::BrokerDies { boot });
        }
        let crash = match server.is_synced() {
            true => Crash::Stopped,
            false if self.log_failed => Crash::SyncFailed,
            false => Crash::Killed,
        };
        self.log_failed = false;
        self.kill_server(SECOND / 20, crash);
    }

    pub(super) fn disk_goes_on(&mut self, id: OperationId) -> Verdict {
        let mut again = None;
        self.at_server(|server, now| {
            let (after, effects) = server.step_disk(id, now)?;
            again = after;
            Ok(effects)
        })?;
        if let Some(after) = again {
            let boot = self.boot;
            self.plan_at(self.now + after, Event::Disk { boot, id });
        }
        Ok(())
    }

    /// Begins what the log wants to have done.
    pub(super) fn poll_disk(&mut self) {
        let now = self.server_clock();
        let boot = self.boot;
        let asked = self.server.as_mut().map(|server| server.ask_disk(now)).unwrap_or_default();
        for (id, after) in asked {
            self.plan_at(self.now + after, Event::Disk { boot, id });
        }
    }

    /// Begins a read of the log.
    pub(super) fn begin_read(&mut self, read: Read) {
        let Some(durable) = self.server.as_mut().and_then(Server::durable) else { return };
        let (after, boot) = (durable.disk.pause(), self.boot);
        self.plan_at(self.now + after, Event::Read { boot, read });
    }

    /// A disk that lost something is not asked again: the server ends, as it would when asked to.
    pub(super) fn log_failed(&mut self) -> Verdict {
        self.log_failed = true;
        (self.leaving, self.ledger.server_leaves) = (true, true);
        let boot = self.boot;
        self.plan_at(self.now + SECOND / 50, Event::BrokerDies { boot });
        self.at_server(|server, now| server.drain(20, now))
    }

    /// Lets the disk be full, or have space again.
    pub(crate) fn fill_disk(&mut self, full: bool) {
        let durable = match &mut self.server {
            Some(server) => server.durable(),
            None => self.durable.as_mut(),
        };
        if let Some(durable) = durable {
            durable.disk.fill(full);
        }
    }

    /// The next sync fails.
    pub(crate) fn fail_sync(&mut self) {
        if let Some(durable) = self.server.as_mut().and_then(Server::durable) {
            durable.disk.fail_sync();
        }
    }

    /// Nothing is under way any more, and what was accepted has ended.
    pub(super) fn audit(&mut self) -> Verdict {
        let Some(durable) = self.server.as_mut().and_then(Server::durable) else { return Ok(()) };
        durable.audit(&self.ledger.refused)
    }

    /// All is over: nothing is left behind.
    pub(super) fn inspect(&mut self) -> Verdict {
        let now = self.server_clock();
        let Some(server) = &mut self.server else { return Ok(()) };
        if self.plan.check_invariants {
            server.broker.check_invariants();
        }
        for (what, count) in server.what_is_left(now) {
            ensure!(count == 0, Memory, "{count} {what} are left when all is closed");
        }
        if let Some(durable) = server.durable() {
            durable.is_empty()?;
        }
        Ok(())
    }
}
