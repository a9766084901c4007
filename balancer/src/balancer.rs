//! Starting, reading again, draining, stopping.

use std::{cell::Cell, net::SocketAddr, rc::Rc, thread::JoinHandle, time::Duration};

use ringpost_io::{
    clock, descriptors,
    listener::{AcceptError, Listener},
    ring::{self, RingConfig},
    signals::{self, Signal, Signals},
};
use ringpost_protocol::throttle::Throttle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::{
    Choice, Config, ConfigError, Instance, StartError, admin,
    core::{Core, CrashWithMe, Limits},
    resolver::Resolver,
    roster::add,
    session, watch,
};

/// Connections that may wait to be accepted. The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;
/// Requests for figures that may wait to be accepted.
const ADMIN_BACKLOG: u32 = 64;
/// Sessions at once, unless set.
const DEFAULT_MAX_CONNECTIONS: usize = 50_000;
/// Pipes at once, unless set.
const DEFAULT_MAX_PIPES: u64 = 256;
/// Descriptors that are kept for others than sessions and pipes: ring, epoll, listeners, signals, probes, requests for
/// figures, and an embedding program's own.
const OTHER_DESCRIPTORS: u64 = 128;
/// The same where descriptors are scarce.
const LEAST_OTHER_DESCRIPTORS: u64 = 24;
/// How long to wait when there is no room for one more connection.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// How long the end may take when all connections are cut.
const END_TIME: Duration = Duration::from_secs(5);

/// The balancer. It begins with [`Balancer::builder`], or for a whole process with [`Balancer::run_until_signalled`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Balancer;

impl Balancer {
    /// A balancer with the default configuration, to be changed and started.
    pub fn builder() -> Builder {
        Builder { config: Config::default() }
    }

    /// Runs a balancer on this thread until it is told to leave by SIGTERM or SIGINT: then it drains. A second signal
    /// ends it at once. SIGHUP has `reload` say what the configuration is now: its instances are taken over, and no
    /// connection is dropped for it; `None`: they are nowhere that could be read again. `listening` is called when clients can
    /// connect.
    ///
    /// # Errors
    /// [`StartError`]: it did not start.
    ///
    /// # Panics
    /// If the balancer itself panicked, which is a bug.
    pub fn run_until_signalled(
        config: Config,
        reload: impl FnMut() -> Result<Option<Config>, ConfigError> + 'static,
        listening: impl FnOnce(&Listening) + 'static,
    ) -> Result<Ended, StartError> {
        run(config, Control::Signals(Box::new(reload)), listening)
    }
}

/// Where a balancer can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listening {
    /// For clients, in the order of the configuration.
    pub addresses: Vec<SocketAddr>,
    /// For figures.
    pub admin: Option<SocketAddr>,
}

/// How a balancer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// As it was asked to.
    Stopped,
    /// At once, by a second signal of this number, without waiting for what was open.
    BySignal(u8),
}

impl Ended {
    /// The exit code of a command whose balancer ended so: 0, or 128 and the signal's number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Stopped => 0,
            Self::BySignal(number) => 128 + number,
        }
    }
}

/// Sets what a balancer is to be, and starts it. See [`Config`] for what can be set and the defaults.
#[derive(Debug, Clone)]
pub struct Builder {
    config: Config,
}

impl Builder {
    /// Replaces all that was set before.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Where to listen; port 0 takes a free one, see [`Handle::address`].
    #[must_use]
    pub fn listen(mut self, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.config.listen = addresses.into_iter().collect();
        self
    }

    /// One more server behind it.
    #[must_use]
    pub fn instance(mut self, instance: Instance) -> Self {
        self.config.instances.push(instance);
        self
    }

    /// How an instance is chosen.
    #[must_use]
    pub fn choice(mut self, choice: Choice) -> Self {
        self.config.choice = choice;
        self
    }

    /// Starts it on a thread of its own, and returns when clients can connect.
    ///
    /// # Errors
    /// [`StartError`], which says what to do.
    pub fn start(self) -> Result<Handle, StartError> {
        let (commands, received) = unbounded_channel();
        let (started, outcome) = std::sync::mpsc::channel();
        let config = self.config;
        let thread = std::thread::Builder::new()
            .name("ringpost-balancer".into())
            .spawn(move || {
                let begun = started.clone();
                let ended = run(config, Control::Commands(received), move |listening| {
                    // Nobody who waits for it any more: then `Handle` is gone, and its stop is on its way.
                    begun.send(Ok(listening.clone())).ok();
                });
                if let Err(error) = ended {
                    started.send(Err(error)).ok();
                }
            })
            .map_err(|cause| StartError::System { what: "starting a thread", cause })?;
        match outcome.recv() {
            Ok(Ok(listening)) => Ok(Handle { listening, commands, thread: Some(thread) }),
            Ok(Err(error)) => {
                thread.join().ok();
                Err(error)
            }
            Err(_) => {
                thread.join().ok();
                let cause =
                    std::io::Error::other("the thread ended before the balancer listened; this is a bug");
                Err(StartError::System { what: "starting", cause })
            }
        }
    }
}

/// A running balancer. Dropping it stops it.
#[derive(Debug)]
pub struct Handle {
    listening: Listening,
    commands: UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
}

/// The balancer's thread panicked: a bug. What happened stands on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the balancer crashed: its panic message is on stderr")]
pub struct Crashed;

impl Handle {
    /// The first address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.listening.addresses[0]
    }

    /// Where it can be reached.
    pub fn listening(&self) -> &Listening {
        &self.listening
    }

    /// Gives it another list of instances. No connection is dropped: those of an instance that is not in the list go on
    /// until they end. Returns at once.
    pub fn reload(&self, instances: Vec<Instance>) {
        self.tell(Command::Reload(instances));
    }

    /// Tells it to leave: nothing new is accepted, and sessions have as long as `grace` to end. Returns at once; see
    /// [`Handle::wait`].
    pub fn drain(&self, grace: Duration) {
        self.tell(Command::Drain(grace));
    }

    /// Stops it at once, and waits for its end.
    pub fn stop(self) {
        drop(self);
    }

    /// Waits for its end, after [`Handle::drain`].
    ///
    /// # Errors
    /// [`Crashed`].
    pub fn wait(mut self) -> Result<(), Crashed> {
        self.thread.take().map_or(Ok(()), JoinHandle::join).map_err(|_| Crashed)
    }

    fn tell(&self, command: Command) {
        // It fails only when the balancer has ended already.
        self.commands.send(command).ok();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.tell(Command::Stop);
            if thread.join().is_err() {
                tracing::error!("{Crashed}");
            }
        }
    }
}

#[derive(Debug)]
enum Command {
    Reload(Vec<Instance>),
    Drain(Duration),
    Stop,
}

type Reload = Box<dyn FnMut() -> Result<Option<Config>, ConfigError>>;

/// Who says what the balancer has to do.
enum Control {
    Commands(UnboundedReceiver<Command>),
    Signals(Reload),
}

/// Runs a balancer on this thread until it has left.
fn run(
    config: Config,
    control: Control,
    listening: impl FnOnce(&Listening) + 'static,
) -> Result<Ended, StartError> {
    let system = |what| move |cause| StartError::System { what, cause };
    config.validate()?;
    let limits = limits(&config)?;
    let seed = getrandom::u64()
        .map_err(|error| StartError::System { what: "drawing random numbers", cause: error.into() })?;
    signals::survive_broken_pipes().map_err(system("blocking SIGPIPE"))?;
    let resolver = Resolver::start().map_err(system("starting a thread"))?;
    let ring = RingConfig { busy_poll: config.busy_poll, ..RingConfig::default() };
    ring::run(&ring, async move {
        let bind = |address: &SocketAddr, backlog| -> Result<(Listener, SocketAddr), StartError> {
            let listener = Listener::bind(*address, backlog)?;
            let address = listener.local_addr().map_err(system("reading an address"))?;
            Ok((listener, address))
        };
        let bound = config.listen.iter().map(|address| bind(address, BACKLOG));
        let (listeners, addresses): (Vec<_>, Vec<_>) =
            bound.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let admin = config.admin.map(|address| bind(&address, ADMIN_BACKLOG)).transpose()?;
        let control = match control {
            Control::Commands(commands) => Told::Commands(commands),
            Control::Signals(reload) => {
                Told::Signals(Signals::listen().map_err(system("listening for signals"))?, reload)
            }
        };
        let found = Listening { addresses, admin: admin.as_ref().map(|(_, address)| *address) };
        let core = Rc::new(Core::new(config, listeners.clone(), limits, seed, resolver));
        start_watching(&core).await;
        for address in &found.addresses {
            tracing::info!(%address, instances = core.config.instances.len(), "listening");
        }
        ring::spawn(core.clone().sweep());
        ring::spawn(core.clone().see_turns());
        for listener in listeners {
            ring::spawn(accept(core.clone(), listener));
        }
        if let Some((listener, address)) = &admin {
            tracing::info!(%address, "listening for requests for figures");
            ring::spawn(admin::accept(core.clone(), listener.clone()));
        }
        let by_signal = Rc::new(Cell::new(Ended::Stopped));
        match control {
            Told::Commands(commands) => drop(ring::spawn(obey(core.clone(), commands))),
            Told::Signals(signals, reload) => {
                drop(ring::spawn(heed(core.clone(), signals, reload, by_signal.clone())));
            }
        }
        listening(&found);
        core.ended.wait().await;
        // Until now it told how the draining goes.
        if let Some((listener, _)) = &admin {
            listener.close();
        }
        if core.crashed.get() {
            // Nobody shall be left hanging on a balancer that does not carry any more.
            core.cut_all();
        }
        assert!(
            !core.crashed.get(),
            "a task of the balancer panicked: what it left behind cannot be trusted"
        );
        tracing::info!("stopped");
        Ok(by_signal.get())
    })?
}

enum Told {
    Commands(UnboundedReceiver<Command>),
    Signals(Signals, Reload),
}

/// Names are looked up before the first client comes, for as long as one connection may take.
async fn start_watching(core: &Rc<Core>) {
    let members: Vec<_> = core.roster.borrow().members().iter().map(|member| member.id).collect();
    let look_up_all = async {
        for &member in &members {
            watch::look_up(core, member).await;
        }
    };
    if clock::within(core.config.connect_timeout, look_up_all).await.is_none() {
        tracing::warn!("names are still being looked up");
    }
    for &member in &members {
        watch::begin(core, member);
    }
}

/// Takes in clients until the listener is closed.
async fn accept(core: Rc<Core>, listener: Listener) {
    let _crash = CrashWithMe(core.clone());
    let mut lines = Throttle::default();
    loop {
        core.until_room().await;
        match listener.accept().await {
            Ok(stream) => {
                let place = core.place().await;
                // One that was under way when the listener was closed.
                if core.is_leaving() {
                    return;
                }
                add(&core.accepted, 1);
                ring::spawn(session::serve(core.clone(), stream, place));
            }
            Err(AcceptError::Closed) => return,
            Err(error) => {
                core.pools.borrow_mut().trim(true);
                if let Some(left_out) = lines.line(core.now()) {
                    tracing::warn!(%error, left_out, "new connections have to wait");
                }
                clock::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

async fn obey(core: Rc<Core>, mut commands: UnboundedReceiver<Command>) {
    let _crash = CrashWithMe(core.clone());
    while let Some(command) = commands.recv().await {
        match command {
            Command::Reload(instances) => core.reload(&instances),
            Command::Drain(grace) => core.leave(grace),
            Command::Stop => stop(&core),
        }
    }
}

async fn heed(core: Rc<Core>, mut signals: Signals, mut reload: Reload, ended: Rc<Cell<Ended>>) {
    let _crash = CrashWithMe(core.clone());
    loop {
        match signals.next().await {
            Signal::Hangup => match reload().and_then(|config| config.map(Config::validated).transpose()) {
                Ok(None) => tracing::warn!(
                    "SIGHUP: nothing was read again, for the instances are from flags or the environment; those of a \
                     configuration's file (--config) can be read again"
                ),
                Ok(Some(config)) => {
                    if !core.config.differs_only_in_instances(&config) {
                        tracing::warn!("only instances are read again: other changes need a restart");
                    }
                    core.reload(&config.instances);
                }
                Err(error) => tracing::error!(%error, "SIGHUP: everything stays as it was"),
            },
            signal if core.is_leaving() => {
                tracing::warn!(?signal, "a second signal: leaving at once");
                ended.set(Ended::BySignal(signal.number()));
                return stop(&core);
            }
            signal => {
                tracing::info!(?signal, "leaving; a second signal leaves at once");
                core.leave(core.config.drain_timeout);
            }
        }
    }
}

/// Leaves at once. A peer that cannot be reached must not hold it up.
fn stop(core: &Rc<Core>) {
    core.stop();
    let core = core.clone();
    ring::spawn(async move {
        clock::sleep(END_TIME).await;
        core.ended.set();
    });
}

/// How many sessions and pipes there may be: as configured, or as descriptors allow. A session has two, a pipe too.
fn limits(config: &Config) -> Result<Limits, StartError> {
    let limit = descriptors::raise_limit()
        .map_err(|cause| StartError::System { what: "raising the limit of open files", cause })?;
    let (sessions, pipes) = within(limit.soft, config.max_pipes);
    let wanted = config.max_connections.unwrap_or(DEFAULT_MAX_CONNECTIONS);
    if wanted <= sessions {
        return Ok(Limits { sessions: wanted, pipes });
    }
    let needed = |sessions: usize| 2 * (sessions + pipes) as u64 + others(limit.soft);
    if config.max_connections.is_some() || sessions == 0 {
        let wanted = if sessions == 0 { wanted.min(1) } else { wanted };
        return Err(StartError::Descriptors { wanted, needed: needed(wanted), allowed: limit.soft });
    }
    tracing::info!(sessions, "sessions are limited by the limit of open files (`ulimit -n`)");
    Ok(Limits { sessions, pipes })
}

fn others(limit: u64) -> u64 {
    OTHER_DESCRIPTORS.min(limit / 4).max(LEAST_OTHER_DESCRIPTORS)
}

/// Sessions and pipes that go with a limit of open files.
fn within(limit: u64, max_pipes: Option<usize>) -> (usize, usize) {
    let pipes = max_pipes.map_or(DEFAULT_MAX_PIPES.min(limit / 16), |pipes| pipes as u64);
    let rest = limit.saturating_sub(others(limit)).saturating_sub(pipes.saturating_mul(2));
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    (count(rest / 2), count(pipes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A limit of open files is shared between sessions, pipes and the rest; the lowest leaves one session.
    #[test]
    fn shares_of_a_limit() {
        for (limit, expected) in
            [(8, (0, 0)), (26, (0, 1)), (30, (2, 1)), (64, (16, 4)), (1024, (384, 64)), (20_000, (9680, 256))]
        {
            assert_eq!(within(limit, None), expected, "{limit}");
        }
        assert_eq!(within(1024, Some(0)), (448, 0));
    }
}
