//! What all sessions share: the roster, the pools, who is there, and whether the balancer is leaving.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use ringpost_io::{
    clock::{self, Clock},
    event::Event,
    listener::Listener,
    ring,
};
use ringpost_protocol::{throttle::Throttle, time::Time};
use slotmap::SlotMap;
use tokio::sync::Notify;

use crate::{
    Config, Instance,
    connect::ConnectError,
    health::{Change, Observation},
    pools::Pools,
    resolver::Resolver,
    roster::{Changes, MemberId, Roster, add},
    session::{Session, SessionKey},
    turn::Turn,
    watch,
};

/// How often it is looked for sessions that are idle and for pipes that nobody needs.
const SWEEP_TIME: Duration = Duration::from_secs(1);
/// Looks at a session within its idle time.
const LOOKS: u32 = 8;
/// Sweeps between two trims of the pools.
const TRIM_SWEEPS: u32 = 10;

/// The balancer's heart; nothing in here waits.
pub(crate) struct Core {
    pub(crate) config: Config,
    clock: Clock,
    pub(crate) roster: RefCell<Roster>,
    pub(crate) pools: RefCell<Pools>,
    pub(crate) resolver: Resolver,
    pub(crate) turn: Turn,
    sessions: RefCell<SlotMap<SessionKey, Rc<Session>>>,
    /// Clients that are there, those without an instance too.
    places: Cell<usize>,
    max_places: usize,
    /// Told when a place becomes free.
    room: Notify,
    /// Told when an instance comes up.
    pub(crate) available: Notify,
    /// Told when there is a first session to look after.
    first: Event,
    listeners: Vec<Listener>,
    leaving: Cell<bool>,
    pub(crate) ended: Event,
    pub(crate) crashed: Cell<bool>,
    drawn: Cell<u64>,
    pub(crate) accepted: Cell<u64>,
    pub(crate) refused: Cell<u64>,
    /// Times that accepting had to wait for a place.
    pub(crate) paused: Cell<u64>,
    lines: RefCell<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    refused: Throttle,
    exhausted: Throttle,
    full: Throttle,
}

/// A client's place among those that may be there at once. It becomes free when this is dropped.
pub(crate) struct Place(Rc<Core>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places.set(self.0.places.get() - 1);
        self.0.room.notify_waiters();
        self.0.end_if_last();
    }
}

impl Core {
    pub(crate) fn new(
        config: Config,
        listeners: Vec<Listener>,
        limits: Limits,
        seed: u64,
        resolver: Resolver,
    ) -> Self {
        Self {
            clock: Clock::start(),
            roster: RefCell::new(Roster::new(&config, seed)),
            pools: RefCell::new(Pools::new(limits.pipes)),
            resolver,
            turn: Turn::default(),
            sessions: RefCell::default(),
            places: Cell::new(0),
            max_places: limits.sessions,
            room: Notify::new(),
            available: Notify::new(),
            first: Event::default(),
            listeners,
            leaving: Cell::new(false),
            ended: Event::default(),
            crashed: Cell::new(false),
            drawn: Cell::new(seed),
            accepted: Cell::new(0),
            refused: Cell::new(0),
            paused: Cell::new(0),
            lines: RefCell::default(),
            config,
        }
    }

    pub(crate) fn now(&self) -> Time {
        self.clock.now().mono
    }

    /// A number that nobody foresees, for jitter.
    pub(crate) fn draw(&self) -> u64 {
        self.drawn.set(self.drawn.get().wrapping_add(0x9E37_79B9_7F4A_7C15));
        self.drawn.get()
    }

    /// Sessions that carry bytes, and clients that are there in all.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.sessions.borrow().len(), self.places.get())
    }

    pub(crate) fn max_places(&self) -> usize {
        self.max_places
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    /// A place for one more client, as soon as there is one.
    pub(crate) async fn place(self: &Rc<Self>) -> Place {
        self.until_room().await;
        self.places.set(self.places.get() + 1);
        Place(self.clone())
    }

    /// Waits until one more client may be there, or the balancer leaves.
    pub(crate) async fn until_room(&self) {
        let mut waited = false;
        loop {
            let room = self.room.notified();
            if self.places.get() < self.max_places || self.leaving.get() {
                return;
            }
            if !std::mem::replace(&mut waited, true) {
                add(&self.paused, 1);
                if let Some(left_out) = self.lines.borrow_mut().full.line(self.now()) {
                    let limit = self.max_places;
                    tracing::warn!(limit, left_out, "max-connections is reached: new ones have to wait");
                }
            }
            room.await;
        }
    }

    pub(crate) fn keep(&self, session: Rc<Session>, tell: impl FnOnce(SessionKey)) {
        let mut sessions = self.sessions.borrow_mut();
        if sessions.is_empty() {
            self.first.set();
        }
        tell(sessions.insert(session));
    }

    /// A session is over.
    pub(crate) fn forget(&self, key: SessionKey, member: MemberId) {
        self.roster.borrow_mut().ended(member);
        // Not dropped while the sessions are borrowed: it gives its place back.
        let session = self.sessions.borrow_mut().remove(key);
        drop(session);
    }

    /// Takes in what was seen of an instance, and tells if that changes anything.
    pub(crate) fn observe(&self, member: MemberId, seen: Observation) {
        let change = self.roster.borrow_mut().observe(member, seen, self.now());
        let Some(change) = change else { return };
        let name = self.name(member);
        match change {
            Change::Up => {
                tracing::info!(instance = name, "up again");
                self.available.notify_waiters();
            }
            Change::Down => {
                tracing::warn!(instance = name, last = ?seen, "down: it gets no new connections");
                if self.config.cut_when_down {
                    self.cut_sessions_of(member);
                }
            }
        }
    }

    fn name(&self, member: MemberId) -> String {
        self.roster.borrow().get(member).map_or_else(|| "gone".to_owned(), |it| it.instance.address.clone())
    }

    /// A client could not be given an instance.
    pub(crate) fn refused(&self, client: SocketAddr) {
        add(&self.refused, 1);
        if let Some(left_out) = self.lines.borrow_mut().refused.line(self.now()) {
            let states: Vec<_> = self
                .roster
                .borrow()
                .members()
                .iter()
                .map(|member| format!("{} {}", member.instance.address, member.state()))
                .collect();
            tracing::warn!(%client, left_out, instances = states.join(", "), "refused: no instance can be had");
        }
    }

    pub(crate) fn warn_exhausted(&self, error: &ConnectError) {
        if let Some(left_out) = self.lines.borrow_mut().exhausted.line(self.now()) {
            tracing::warn!(%error, left_out, "a client is refused; raise the limit of open files (`ulimit -n`) if it is that");
        }
    }

    /// Takes over a new list of instances.
    pub(crate) fn reload(self: &Rc<Self>, instances: &[Instance]) {
        let changes = self.roster.borrow_mut().replace(instances);
        let Changes { added, removed, draining } = &changes;
        tracing::info!(
            instances = instances.len(),
            added = added.len(),
            removed = removed.len(),
            draining = draining.len(),
            "instances read again"
        );
        for &member in added {
            watch::begin(self, member);
        }
        for &member in draining {
            self.cut_when_drained(member);
        }
        self.available.notify_waiters();
    }

    /// Begins or ends the draining of an instance. Whether there is one by this address.
    pub(crate) fn drain(self: &Rc<Self>, address: &str, drain: bool) -> bool {
        let Some(member) = self.roster.borrow().named(address) else { return false };
        if self.roster.borrow_mut().drain(member, drain) {
            if drain {
                tracing::info!(instance = address, "draining: it gets no new connections");
                self.cut_when_drained(member);
            } else {
                tracing::info!(instance = address, "drains no more");
                self.available.notify_waiters();
            }
        }
        true
    }

    fn cut_when_drained(self: &Rc<Self>, member: MemberId) {
        let core = self.clone();
        let drain = core.roster.borrow().drain_of(member);
        ring::spawn(async move {
            let _crash = CrashWithMe(core.clone());
            clock::sleep(core.config.drain_timeout).await;
            let same = core.roster.borrow().drain_of(member) == drain;
            if drain.is_some() && same {
                core.cut_sessions_of(member);
            }
        });
    }

    fn cut_sessions_of(&self, member: MemberId) {
        let sessions: Vec<_> = self.sessions.borrow().values().cloned().collect();
        let its: Vec<_> = sessions.into_iter().filter(|session| session.member == member).collect();
        if !its.is_empty() {
            tracing::info!(instance = self.name(member), sessions = its.len(), "cut");
        }
        its.iter().for_each(|session| session.cut());
    }

    /// Leaves in order: accepts nothing new, lets sessions end for as long as `grace`, then cuts them.
    pub(crate) fn leave(self: &Rc<Self>, grace: Duration) {
        if self.leaving.replace(true) {
            return;
        }
        let sessions = self.sessions.borrow().len();
        tracing::info!(?grace, sessions, "draining");
        self.close();
        let core = self.clone();
        ring::spawn(async move {
            let _crash = CrashWithMe(core.clone());
            clock::sleep(grace).await;
            core.stop();
        });
        self.end_if_last();
    }

    /// Leaves at once.
    pub(crate) fn stop(&self) {
        self.leaving.set(true);
        self.close();
        self.cut_all();
        self.end_if_last();
    }

    fn close(&self) {
        self.listeners.iter().for_each(Listener::close);
        self.available.notify_waiters();
        self.room.notify_waiters();
    }

    pub(crate) fn cut_all(&self) {
        let sessions: Vec<_> = self.sessions.borrow().values().cloned().collect();
        sessions.iter().for_each(|session| session.cut());
    }

    fn end_if_last(&self) {
        if self.leaving.get() && self.places.get() == 0 {
            self.ended.set();
        }
    }

    /// Sees turns end, for ever.
    pub(crate) async fn see_turns(self: Rc<Self>) {
        let _crash = CrashWithMe(self.clone());
        self.turn.see_ends().await;
    }

    /// Looks after sessions that are idle and pipes that nobody needs, for ever.
    pub(crate) async fn sweep(self: Rc<Self>) {
        let _crash = CrashWithMe(self.clone());
        let idle = self.config.idle_timeout;
        let pause = if idle.is_zero() { SWEEP_TIME } else { SWEEP_TIME.min(idle / LOOKS) };
        let mut sweeps = 0u32;
        loop {
            let nothing_left = self.sessions.borrow().is_empty() && self.pools.borrow().pipes().0 == 0;
            if nothing_left {
                self.first.wait().await;
            }
            clock::sleep(pause).await;
            sweeps = sweeps.wrapping_add(1);
            if sweeps.is_multiple_of(TRIM_SWEEPS) {
                self.pools.borrow_mut().trim(false);
            }
            if !idle.is_zero() {
                self.cut_idle(idle.div_duration_f64(pause).ceil() as u32);
            }
        }
    }

    /// Cuts those of which nothing has moved for so many looks.
    fn cut_idle(&self, looks: u32) {
        let mut idle = Vec::new();
        for session in self.sessions.borrow().values() {
            let (moved, unchanged) = session.looked.get();
            let unchanged = if session.moved.get() == moved { unchanged + 1 } else { 0 };
            session.looked.set((session.moved.get(), unchanged));
            if unchanged >= looks {
                idle.push(session.clone());
            }
        }
        idle.iter().for_each(|session| session.cut());
    }
}

/// What there may be at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) sessions: usize,
    pub(crate) pipes: usize,
}

/// A bug that stops one task must not leave a balancer that half works: it ends, and says so.
pub(crate) struct CrashWithMe(pub(crate) Rc<Core>);

impl Drop for CrashWithMe {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.crashed.set(true);
            self.0.ended.set();
        }
    }
}
