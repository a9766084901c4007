//! Links between processes and the server: what is said on them, and how they come and go.

use ringpost_protocol::time::Now;

use super::{Event, HANDSHAKE, KEEPALIVE, Party, SECOND, Wish, World};
use crate::sim::{
    network::{End, Link},
    rng::Rng,
    rules::{Verdict, Violation},
    secure::Records,
    server::{Effect, Server},
};

impl World<'_> {
    pub(super) fn dialed(&mut self, process: usize) -> Verdict {
        let now = self.clock_of(process);
        let entry = &mut self.processes[process];
        if !entry.alive {
            return Ok(());
        }
        let seat = &mut self.seats[entry.seat];
        let reachable = self.server.is_some() && !self.leaving && seat.unreachable_until <= self.now;
        if !reachable {
            if let Party::Client(peer) = &mut entry.party {
                peer.core.connect_failed("nobody listens", now.mono);
                return self.turn_of(process);
            }
            self.plan_at(self.now + SECOND / 20, Event::Dialed { process });
            return Ok(());
        }
        let limits = seat.limits.clone();
        let link = self.links.len();
        seat.links += 1;
        let rng = Rng::of(self.plan.seed, [entry.seat as u64, seat.links, 2]);
        let mut of_keys = Rng::of(self.plan.seed, [entry.seat as u64, seat.links, 4]);
        let has_key = of_keys.chance(self.plan.settings.secure) && matches!(entry.party, Party::Client(_));
        let (ours, theirs) = has_key.then(|| Records::pair(&mut of_keys)).unzip();
        self.links.push(Link::new(process, rng));
        if let Some(server) = &mut self.server {
            server.accept(link, limits, theirs);
        }
        let mute_at = self.now + HANDSHAKE;
        match &mut entry.party {
            Party::Client(peer) => peer.connected(link, ours, now),
            Party::Json(peer) => peer.connected(link),
        }
        self.plan_at(mute_at, Event::Mute { link });
        self.turn_of(process)
    }

    pub(super) fn arrived(&mut self, link: usize, to: End, mut bytes: Vec<u8>) -> Verdict {
        self.links[link].arrived(to, &mut bytes);
        if to == End::Client && !self.links[link].dark {
            self.pump(link)?;
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let process = self.links[link].process;
        if to == End::Server {
            return self.at_server(|server, now| server.receive(link, &bytes, now));
        }
        let (now, time) = (self.clock_of(process), self.now);
        let entry = &mut self.processes[process];
        if !entry.alive {
            return Ok(());
        }
        match &mut entry.party {
            Party::Client(peer) if peer.link == Some(link) => peer.receive(&bytes, now),
            Party::Json(peer) if peer.link == Some(link) => {
                for work in peer.receive(&bytes, &mut self.ledger, &self.habits, time)? {
                    let (delivery, token) = (work.delivery, work.token);
                    self.plan_at(time + work.after, Event::JsonWork { process, link, delivery, token });
                }
            }
            _ => {}
        }
        self.turn_of(process)
    }

    pub(super) fn gone(&mut self, link: usize, to: End) -> Verdict {
        if !std::mem::replace(&mut self.links[link].open[to as usize], false) {
            return Ok(());
        }
        let process = self.links[link].process;
        if to == End::Server {
            // An end of stream or a reset: the system tells one or the other.
            if self.links[link].is_orderly() {
                self.at_server(|server, now| server.half_closed(link, now))?;
            }
            return self.at_server(|server, now| server.closed(link, now));
        }
        let (now, time) = (self.clock_of(process), self.now);
        let entry = &mut self.processes[process];
        if !entry.alive {
            return Ok(());
        }
        match &mut entry.party {
            Party::Client(peer) if peer.link == Some(link) => {
                peer.disconnected(now);
                self.turn_of(process)
            }
            Party::Json(peer) if peer.link == Some(link) => {
                peer.disconnected(&mut self.ledger, time)?;
                self.plan_at(time + SECOND / 20, Event::Dialed { process });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A link breaks for these ends, each in its time.
    pub(crate) fn break_link(&mut self, link: usize, ends: &[End]) {
        for (to, at) in self.links[link].cut(self.now) {
            if ends.contains(&to) {
                self.plan_at(at, Event::Gone { link, to });
            }
        }
    }

    /// Nothing arrives on a link any more.
    pub(crate) fn darken(&mut self, link: usize) {
        let entry = &mut self.links[link];
        entry.dark = true;
        self.ledger.disturb(entry.process);
        if matches!(self.processes[entry.process].party, Party::Json(_)) {
            for to in [End::Client, End::Server] {
                self.plan_at(self.now + KEEPALIVE, Event::Gone { link, to });
            }
        }
    }

    /// The link that a process has now.
    pub(crate) fn link_of(&self, process: usize) -> Option<usize> {
        match &self.processes[process].party {
            Party::Client(peer) => peer.link,
            Party::Json(peer) => peer.link,
        }
    }

    /// Does what a process wants to be done.
    pub(crate) fn turn_of(&mut self, process: usize) -> Verdict {
        let time = self.now;
        let entry = &mut self.processes[process];
        let wishes = match &mut entry.party {
            Party::Client(peer) => peer.turn(&mut self.ledger, &self.habits, time)?,
            Party::Json(peer) => {
                let bytes = peer.take_outgoing();
                peer.link.map(|link| Wish::Send { link, bytes }).into_iter().collect()
            }
        };
        for wish in wishes {
            match wish {
                Wish::Dial => {
                    let at = time + self.processes[process].rng.between(50, 3000);
                    self.plan_at(at, Event::Dialed { process });
                }
                Wish::Send { link, bytes } => self.transmit(link, End::Server, &bytes),
                Wish::HangUp { link: Some(link) } => {
                    self.links[link].open[End::Client as usize] = false;
                    if !self.links[link].dark {
                        let at = self.links[link].arrival(End::Server, time);
                        self.plan_at(at, Event::Gone { link, to: End::Server });
                    }
                }
                Wish::HangUp { link: None } => {}
                Wish::Claim { key, after } => self.plan_at(time + after, Event::Claim { process, key }),
                Wish::Work { delivery, after } => {
                    self.plan_at(time + after, Event::Work { process, delivery })
                }
            }
        }
        self.set_timer_of(process);
        Ok(())
    }

    fn set_timer_of(&mut self, process: usize) {
        let entry = &mut self.processes[process];
        let Party::Client(peer) = &entry.party else { return };
        let Some(deadline) = peer.core.next_deadline() else { return };
        let at = deadline.micros().saturating_sub(entry.ahead).max(self.now + 1);
        if entry.timer.is_none_or(|planned| at < planned) {
            entry.timer = Some(at);
            self.plan_at(at, Event::ProcessTimer { process });
        }
    }

    /// Something happens at the server, and what follows from it.
    pub(crate) fn at_server(
        &mut self,
        what: impl FnOnce(&mut Server, Now) -> Result<Vec<Effect>, Violation>,
    ) -> Verdict {
        let now = self.server_clock();
        let Some(server) = &mut self.server else { return Ok(()) };
        let effects = what(server, now);
        self.note_server();
        self.apply(effects?)?;
        let Some(server) = &mut self.server else { return Ok(()) };
        if let Some(model) = &mut server.model {
            for name in model.forgotten.drain(..) {
                self.ledger.forgotten(name);
            }
            for token in model.dropped.drain(..) {
                self.ledger.excuse_one(token);
            }
        }
        self.poll_disk();
        let Some(server) = &mut self.server else { return Ok(()) };
        if let Some(deadline) = server.next_deadline() {
            let at = deadline.micros().saturating_sub(self.server_ahead).max(self.now + 1);
            if self.server_timer.is_none_or(|planned| at < planned) {
                self.server_timer = Some(at);
                let boot = self.boot;
                self.plan_at(at, Event::ServerTimer { boot });
            }
        }
        Ok(())
    }

    fn apply(&mut self, effects: Vec<Effect>) -> Verdict {
        for effect in effects {
            match effect {
                Effect::Ready { link } | Effect::Close { link } => self.pump(link)?,
                Effect::Read(read) => self.begin_read(read),
                Effect::Drained => {
                    let boot = self.boot;
                    self.plan_at(self.now + SECOND / 50, Event::BrokerDies { boot });
                }
                Effect::LogFailed => self.log_failed()?,
            }
        }
        Ok(())
    }

    /// Hands to a link what it can take of what waits for it.
    fn pump(&mut self, link: usize) -> Verdict {
        let now = self.server_clock();
        let entry = &self.links[link];
        if !entry.open[End::Server as usize] {
            return Ok(());
        }
        let room = self.plan.settings.socket_bytes.saturating_sub(entry.under_way[End::Client as usize]);
        let Some(server) = &mut self.server else { return Ok(()) };
        let (bytes, finished) = server.take(link, room, now);
        // One that has caught up may get deliveries again.
        let effects = if server.has_news() { server.turn(now)? } else { Vec::new() };
        self.transmit(link, End::Client, &bytes);
        if finished && !self.links[link].dark {
            let at = self.links[link].arrival(End::Client, self.now);
            self.plan_at(at, Event::Gone { link, to: End::Client });
            self.plan_at(at, Event::Gone { link, to: End::Server });
        }
        self.apply(effects)
    }

    fn transmit(&mut self, link: usize, to: End, bytes: &[u8]) {
        for (at, bytes) in self.links[link].pieces(to, bytes, self.now) {
            self.plan_at(at, Event::Piece { link, to, bytes });
        }
    }
}
