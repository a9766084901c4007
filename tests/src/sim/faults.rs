//! The script's steps, performed.

use super::{
    durable::Crash,
    network::End,
    rules::Verdict,
    script::{Deed, Step},
    world::{Event, Party, Session, World},
};

impl World<'_> {
    pub(crate) fn perform(&mut self, step: &Step) -> Verdict {
        match &step.deed {
            Deed::Start => self.occupy(step.seat, Session::Same),
            Deed::Ask(_) | Deed::Cancel(_) | Deed::Register(..) | Deed::Deregister(_) | Deed::Credit(..) => {
                self.act(step)
            }
            Deed::BrokerHang(time) => {
                self.server_hangs_until = self.server_hangs_until.max(self.now + time);
                self.ledger.stands_still(*time);
                Ok(())
            }
            Deed::BrokerCrash(away) => {
                self.kill_server(*away, Crash::Killed);
                Ok(())
            }
            Deed::PowerLoss(away) => {
                self.kill_server(*away, Crash::PowerLost);
                Ok(())
            }
            Deed::DiskFull(time) => {
                self.fill_disk(true);
                self.plan_at(self.now + time, Event::Space);
                Ok(())
            }
            Deed::SyncFails => {
                self.fail_sync();
                Ok(())
            }
            Deed::BrokerLeaves(grace) => {
                let (grace, boot) = (*grace, self.boot);
                (self.leaving, self.ledger.server_leaves) = (true, true);
                self.plan_at(self.now + grace, Event::DrainOver { boot });
                self.at_server(|server, now| server.drain((grace / 1000) as u32, now))
            }
            Deed::WallStep(by) => {
                self.wall_offset_ms = self.wall_offset_ms.saturating_add(*by);
                Ok(())
            }
            Deed::BrokerLeap(by) => {
                self.server_ahead += by;
                self.ledger.leaps(*by);
                self.at_server(|server, now| server.handle_timeout(now))
            }
            Deed::Unreachable(time) => {
                self.seats[step.seat].unreachable_until = self.now + time;
                Ok(())
            }
            Deed::Cut
            | Deed::Dark { .. }
            | Deed::Unread(_)
            | Deed::Hang(_)
            | Deed::Crash { .. }
            | Deed::TakeOver
            | Deed::Leap(_) => match self.seats[step.seat].process {
                Some(process) => self.befall(step, process),
                None => Ok(()),
            },
        }
    }

    /// A process does something.
    fn act(&mut self, step: &Step) -> Verdict {
        let Some(process) = self.seats[step.seat].process else { return Ok(()) };
        let (now, time) = (self.clock_of(process), self.now);
        let (ledger, entry) = (&mut self.ledger, &mut self.processes[process]);
        let token = step.index as u64 + 1;
        match (&mut entry.party, &step.deed) {
            _ if !entry.alive => return Ok(()),
            (Party::Client(peer), Deed::Ask(ask)) => peer.ask(token, ask, ledger, time, now)?,
            (Party::Client(peer), Deed::Cancel(which)) => peer.cancel(*which, ledger, now),
            (Party::Client(peer), Deed::Register(action, credit)) => peer.register(action, *credit),
            (Party::Client(peer), Deed::Deregister(which)) => peer.deregister(*which),
            (Party::Client(peer), Deed::Credit(which, credit)) => peer.set_credit(*which, *credit),
            (Party::Json(peer), Deed::Ask(ask)) => {
                peer.ask(token, ask, ledger, time);
                let stalls = self.plan.settings.socket_bytes < 1 << 20;
                if stalls || peer.link.is_some_and(|link| self.links[link].is_troubled(time)) {
                    ledger.disturb(process);
                }
            }
            (Party::Json(peer), Deed::Cancel(which)) => peer.cancel(*which, ledger),
            (Party::Json(peer), Deed::Register(action, credit)) => peer.register(action, *credit),
            (Party::Json(peer), Deed::Deregister(which)) => peer.deregister(*which),
            (Party::Json(peer), Deed::Credit(which, credit)) => peer.set_credit(*which, *credit),
            _ => {}
        }
        self.turn_of(process)
    }

    /// Something is done to a process, or to its link.
    fn befall(&mut self, step: &Step, process: usize) -> Verdict {
        let link = self.link_of(process);
        match (&step.deed, link) {
            (Deed::Cut, Some(link)) => self.break_link(link, &[End::Client, End::Server]),
            (Deed::Dark { client_knows, server_knows }, Some(link)) => {
                self.darken(link);
                for (to, knows) in [(End::Client, client_knows), (End::Server, server_knows)] {
                    if *knows {
                        self.plan_at(self.now + 1000, Event::Gone { link, to });
                    }
                }
            }
            (Deed::Unread(time), Some(link)) => {
                let until = &mut self.links[link].unread_until;
                *until = (*until).max(self.now + time);
                self.ledger.disturb(process);
            }
            (Deed::Hang(time), _) => {
                let until = &mut self.processes[process].hangs_until;
                *until = (*until).max(self.now + time);
                self.ledger.stands_still(*time);
            }
            (Deed::Leap(by), _) => {
                self.processes[process].ahead += by;
                self.ledger.leaps(*by);
                self.plan_at(self.now, Event::ProcessTimer { process });
            }
            (Deed::Crash { away, same_session, silent }, link) => {
                let session = if *same_session { Session::Same } else { Session::Another };
                self.crash(process, link, *silent);
                self.plan_at(self.now + away, Event::Return { seat: step.seat, session });
            }
            (Deed::TakeOver, _) => match &mut self.processes[process].party {
                Party::Client(peer) => {
                    // Neither knows of the other: the newest connection has the session.
                    peer.contested = true;
                    self.seats[step.seat].contested = true;
                    self.ledger.excuse(process);
                    return self.occupy(step.seat, Session::Same);
                }
                Party::Json(_) => {}
            },
            _ => {}
        }
        Ok(())
    }

    fn crash(&mut self, process: usize, link: Option<usize>, silent: bool) {
        self.processes[process].alive = false;
        self.ledger.vanish(process);
        self.seats[self.processes[process].seat].process = None;
        match link {
            Some(link) if silent => self.darken(link),
            Some(link) => self.break_link(link, &[End::Server]),
            None => {}
        }
    }
}
