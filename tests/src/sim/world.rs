//! The clock, the queue of what will happen, and what connects the parts.

mod cast;
mod machine;
mod traffic;

use std::{
    collections::{BTreeMap, BinaryHeap, VecDeque},
    time::Duration,
};

use ringpost_client::ClientConfig;
use ringpost_protocol::time::{Now, Time};

pub(crate) use self::cast::{Event, Habits, Party, Process, Seat, Session, Wish};
use self::cast::{Owner, Planned};
use super::{
    Outcome, Plan,
    durable::Durable,
    json_peer::JsonPeer,
    ledger::Ledger,
    network::{End, Link},
    peer::Peer,
    rng::Rng,
    rules::{Verdict, Violation, ensure},
    script::{Deed, Step},
    server::Server,
};

pub(crate) const SECOND: u64 = 1_000_000;
const WALL_START_MS: u64 = 1_700_000_000_000;
/// The broker's clock must not begin at zero, and nobody's may run backwards.
const BEGIN: u64 = SECOND;
/// After the last step: everything ends by itself. Timeouts are up to 3 s, a process stands still for up to 20 s.
const CALM: u64 = 40 * SECOND;
/// The same with durable requests, whose requesters may wait for up to 100 s.
const LONG_CALM: u64 = 125 * SECOND;
/// The longest that a durable request is kept.
pub(crate) const LONGEST_TTL: u64 = 20 * SECOND;
/// How long a connection may take for its first message.
const HANDSHAKE: u64 = 5 * SECOND;
/// A JSON connection has no pings: there the operating system notices that nothing arrives.
const KEEPALIVE: u64 = 15 * SECOND;

pub(crate) struct World<'a> {
    pub(crate) plan: &'a Plan,
    steps: BTreeMap<usize, &'a Step>,
    pub(crate) now: u64,
    planned: BinaryHeap<Planned>,
    order: u64,
    pub(crate) server: Option<Server>,
    pub(crate) boot: u64,
    /// What outlives the server's process, while there is none.
    durable: Option<Durable>,
    /// The listeners are closed.
    pub(crate) leaving: bool,
    server_timer: Option<u64>,
    /// Until when a leaving server waits for its log.
    stopping_until: Option<u64>,
    /// When the server that runs was started.
    booted_at: u64,
    log_failed: bool,
    pub(crate) server_hangs_until: u64,
    pub(crate) server_ahead: u64,
    pub(crate) wall_offset_ms: i64,
    pub(crate) processes: Vec<Process>,
    pub(crate) seats: Vec<Seat>,
    pub(crate) links: Vec<Link>,
    pub(crate) ledger: Ledger,
    pub(crate) habits: Habits,
    fingerprint: u64,
    events: u64,
    /// What happened last, if anybody wants to know.
    pub(crate) notes: VecDeque<String>,
}

/// Events that a report shows.
const NOTES: usize = 40;

impl<'a> World<'a> {
    pub(crate) fn new(plan: &'a Plan) -> Self {
        let settings = &plan.settings;
        let mut world = Self {
            plan,
            steps: plan.script.iter().map(|step| (step.index, step)).collect(),
            now: BEGIN,
            planned: BinaryHeap::new(),
            order: 0,
            server: None,
            boot: 0,
            durable: settings.log.as_ref().map(|log| Durable::new(log, plan.seed)),
            leaving: false,
            server_timer: None,
            stopping_until: None,
            booted_at: 0,
            log_failed: false,
            server_hangs_until: 0,
            server_ahead: 0,
            wall_offset_ms: 0,
            processes: Vec::new(),
            seats: (0..settings.clients + settings.json_clients).map(|seat| Seat::new(plan, seat)).collect(),
            links: Vec::new(),
            ledger: Ledger::default(),
            habits: Habits {
                seed: plan.seed,
                work: settings.work,
                stuck: settings.stuck,
                never: settings.never,
            },
            fingerprint: 0xcbf2_9ce4_8422_2325,
            events: 0,
            notes: VecDeque::new(),
        };
        for step in &plan.script {
            world.plan_at(BEGIN + step.at, Event::Step(step.index));
        }
        let last = BEGIN + plan.script.last().map_or(0, |step| step.at);
        let linger = settings.config.session_linger.as_micros() as u64;
        let close_at = last + if settings.log.is_some() { LONG_CALM } else { CALM };
        world.plan_at(close_at, Event::CloseAll);
        let mut inspect_at = close_at + linger + 20 * SECOND;
        if settings.log.is_some() {
            let audit_at = inspect_at + LONGEST_TTL + linger;
            world.plan_at(audit_at, Event::Audit);
            inspect_at = audit_at + settings.config.dead_ttl.as_micros() as u64 + SECOND;
        }
        world.plan_at(inspect_at, Event::Inspect);
        world
    }

    pub(crate) fn run(&mut self) -> Result<Outcome, Violation> {
        self.boot_server()?;
        while let Some(Planned { at, order, event }) = self.planned.pop() {
            let hangs_until = match self.owner(&event) {
                Owner::World => 0,
                Owner::Server => self.server_hangs_until,
                Owner::Process(process) => self.processes[process].hangs_until,
            };
            if hangs_until > at {
                self.planned.push(Planned { at: hangs_until, order, event });
                continue;
            }
            self.now = at;
            self.events += 1;
            self.note(&event);
            if matches!(event, Event::Inspect) {
                // What a late crash took back has its time once more.
                let dead_ttl = self.plan.settings.config.dead_ttl.as_micros() as u64;
                let earliest = self.booted_at + dead_ttl + LONGEST_TTL;
                if self.plan.settings.log.is_some() && earliest > at {
                    self.plan_at(earliest, Event::Inspect);
                    continue;
                }
                break;
            }
            self.step(event)?;
        }
        self.inspect()?;
        let endings = std::mem::take(&mut self.ledger.endings);
        Ok(Outcome { fingerprint: self.fingerprint, endings, events: self.events })
    }

    fn owner(&self, event: &Event) -> Owner {
        match event {
            Event::Piece { link, to: End::Client, .. } | Event::Gone { link, to: End::Client } => {
                Owner::Process(self.links[*link].process)
            }
            Event::Piece { to: End::Server, .. }
            | Event::Gone { to: End::Server, .. }
            | Event::ServerTimer { .. }
            | Event::Mute { .. }
            | Event::Disk { .. }
            | Event::Read { .. }
            | Event::Recovered { .. }
            | Event::DrainOver { .. } => Owner::Server,
            Event::Dialed { process }
            | Event::ProcessTimer { process }
            | Event::Work { process, .. }
            | Event::Claim { process, .. }
            | Event::JsonWork { process, .. } => Owner::Process(*process),
            Event::Step(index) => match self.steps.get(index) {
                Some(step) if step.deed.is_its_own() => {
                    self.seats[step.seat].process.map_or(Owner::World, Owner::Process)
                }
                _ => Owner::World,
            },
            _ => Owner::World,
        }
    }

    fn step(&mut self, event: Event) -> Verdict {
        match event {
            Event::Step(index) => {
                let step = self.steps.get(&index).copied();
                step.map_or(Ok(()), |step| self.perform(step))
            }
            Event::Dialed { process } => self.dialed(process),
            Event::Piece { link, to, bytes } => self.arrived(link, to, bytes),
            Event::Gone { link, to } => self.gone(link, to),
            Event::ProcessTimer { process } => {
                self.processes[process].timer = None;
                let now = self.clock_of(process);
                let entry = &mut self.processes[process];
                if let Party::Client(peer) = &mut entry.party
                    && entry.alive
                {
                    peer.core.handle_timeout(now.mono);
                    return self.turn_of(process);
                }
                Ok(())
            }
            Event::ServerTimer { boot } if boot == self.boot => {
                self.server_timer = None;
                self.at_server(|server, now| server.handle_timeout(now))
            }
            Event::Work { process, delivery } => {
                let now = self.clock_of(process);
                let entry = &mut self.processes[process];
                if let Party::Client(peer) = &mut entry.party
                    && entry.alive
                {
                    peer.finish_work(delivery, &mut self.ledger, now);
                    return self.turn_of(process);
                }
                Ok(())
            }
            Event::JsonWork { process, link, delivery, token } => {
                let entry = &mut self.processes[process];
                if let Party::Json(peer) = &mut entry.party
                    && entry.alive
                    && peer.link == Some(link)
                {
                    peer.finish_work(&delivery, token, &mut self.ledger);
                    return self.turn_of(process);
                }
                Ok(())
            }
            Event::Mute { link } if self.links[link].open[End::Server as usize] => {
                self.at_server(|server, now| server.cut_if_mute(link, now))
            }
            Event::Return { seat, session } => self.occupy(seat, session),
            Event::DrainOver { boot } if boot == self.boot => {
                self.plan_at(self.now + SECOND / 50, Event::BrokerDies { boot });
                self.at_server(|server, now| server.drain_over(now))
            }
            Event::BrokerDies { boot } if boot == self.boot && self.server.is_some() => {
                self.stop_server();
                Ok(())
            }
            Event::BrokerReturns => self.boot_server(),
            Event::Disk { boot, id } if boot == self.boot => self.disk_goes_on(id),
            Event::Recovered { boot } if boot == self.boot => self.recovered(),
            Event::Read { boot, read } if boot == self.boot => {
                self.at_server(|server, now| server.read_done(read, now))
            }
            Event::Space => {
                self.fill_disk(false);
                Ok(())
            }
            Event::Claim { process, key } => {
                let now = self.clock_of(process);
                let entry = &mut self.processes[process];
                if let Party::Client(peer) = &mut entry.party
                    && entry.alive
                {
                    peer.core.claim(key, now.mono);
                    return self.turn_of(process);
                }
                Ok(())
            }
            Event::Audit => self.audit(),
            Event::CloseAll => self.close_all(),
            Event::ServerTimer { .. } | Event::DrainOver { .. } | Event::BrokerDies { .. } => Ok(()),
            Event::Disk { .. } | Event::Read { .. } | Event::Recovered { .. } => Ok(()),
            Event::Mute { .. } | Event::Inspect => Ok(()),
        }
    }

    /// A process begins in a seat, beside whoever may still be there.
    pub(crate) fn occupy(&mut self, seat: usize, session: Session) -> Verdict {
        let process = self.processes.len();
        let place = &mut self.seats[seat];
        place.processes += 1;
        place.session += u64::from(session == Session::Another);
        place.process = Some(process);
        place.contested &= session == Session::Same;
        let contested = place.contested;
        let settings = &self.plan.settings;
        let mut rng = Rng::of(self.plan.seed, [seat as u64, place.processes, 1]);
        let party = if seat < settings.clients {
            let named = seat >= settings.unnamed;
            // Most have a name of their user's; others draw one, which no other process has.
            let random = settings.log.is_some() && rng.chance(300);
            let session = match (named, random) {
                (false, _) => String::new(),
                (true, true) => format!("{:032x}", process + 1),
                (true, false) => format!("seat-{seat}-{}", place.session),
            };
            let config = ClientConfig {
                session: session.into(),
                instance: process as u64 + 1,
                seed: rng.next(),
                reconnect_interval: Duration::from_millis(50),
                max_unclaimed: if settings.log.is_some() && rng.chance(600) { 8 } else { 0 },
                ..ClientConfig::default()
            };
            let mut peer = Peer::new(process, config, place.limits.clone(), rng.clone());
            peer.contested = contested;
            Party::Client(Box::new(peer))
        } else {
            Party::Json(JsonPeer::new(process, place.limits.clone(), rng.clone()))
        };
        self.processes.push(Process { seat, party, alive: true, hangs_until: 0, ahead: 0, timer: None, rng });
        let now = self.clock_of(process);
        match &mut self.processes[process].party {
            Party::Client(peer) => {
                peer.core.start(now.mono);
                self.turn_of(process)
            }
            Party::Json(_) => {
                self.plan_at(self.now + 1000, Event::Dialed { process });
                Ok(())
            }
        }
    }

    pub(crate) fn plan_at(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.planned.push(Planned { at, order: self.order, event });
    }

    pub(crate) fn clock_of(&self, process: usize) -> Now {
        self.clock(self.processes[process].ahead)
    }

    pub(crate) fn server_clock(&self) -> Now {
        self.clock(self.server_ahead)
    }

    fn clock(&self, ahead: u64) -> Now {
        let wall_ms = (WALL_START_MS + self.now / 1000).saturating_add_signed(self.wall_offset_ms);
        Now { mono: Time::from_micros(self.now + ahead), wall_ms }
    }

    fn note(&mut self, event: &Event) {
        let mut hash = |bytes: &[u8]| {
            for byte in bytes {
                self.fingerprint = (self.fingerprint ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            }
        };
        hash(&self.now.to_le_bytes());
        if let Event::Piece { link, bytes, .. } = event {
            hash(&link.to_le_bytes());
            hash(bytes);
        }
        if !self.plan.trace {
            return;
        }
        let text = match event {
            Event::Piece { link, to, bytes } => format!("link {link}: {} bytes to {to:?}", bytes.len()),
            Event::Step(index) => match self.steps.get(index) {
                Some(step) => format!("step {index}: seat {}: {:?}", step.seat, step.deed),
                None => format!("step {index}"),
            },
            other => format!("{other:?}"),
        };
        self.add_note(format!("{:>12} {text}", self.now));
    }

    /// What the server heard and said.
    fn note_server(&mut self) {
        let notes = self.server.as_mut().and_then(|server| server.notes.as_mut());
        for note in notes.map(std::mem::take).unwrap_or_default() {
            self.add_note(note);
        }
    }

    fn add_note(&mut self, note: String) {
        self.notes.push_back(note);
        if self.notes.len() > NOTES && !self.plan.trace_all {
            self.notes.pop_front();
        }
    }

    /// Everything has ended by itself. Then all clients go.
    fn close_all(&mut self) -> Verdict {
        self.ledger.finish()?;
        for process in 0..self.processes.len() {
            let entry = &mut self.processes[process];
            if !std::mem::replace(&mut entry.alive, false) {
                continue;
            }
            match &mut entry.party {
                Party::Client(peer) => {
                    peer.core.close();
                    self.turn_of(process)?;
                    let Party::Client(peer) = &self.processes[process].party else { continue };
                    let (open, held) = (peer.core.open_requests(), peer.core.held_deliveries());
                    ensure!((open, held) == (0, 0), Memory, "process {process} keeps {open} and {held}");
                }
                Party::Json(peer) => {
                    ensure!(!peer.has_open(), Once, "a request of the JSON process {process} never ended");
                    if let Some(link) = peer.link {
                        self.break_link(link, &[End::Server]);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Deed {
    /// A process does it itself; the rest is done to it.
    fn is_its_own(&self) -> bool {
        matches!(
            self,
            Self::Ask(_) | Self::Cancel(_) | Self::Register(..) | Self::Deregister(_) | Self::Credit(..)
        )
    }
}
