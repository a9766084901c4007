//! Starting, draining, stopping.

use std::{net::SocketAddr, rc::Rc, sync::Arc, thread::JoinHandle, time::Duration};

use ringpost_io::{
    descriptors,
    event::Event,
    listener::Listener,
    ring::{self, RingConfig},
    signals::{Signal, Signals},
};
use ringpost_protocol::secure::{Role, SecureKey};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::{
    Config, Dispatch, Listen, ListenerKind, Peer, StartError,
    keys::{KeySources, read_key_file},
    peer,
    reload::{self, Reload},
    shard::{LogAtStart, Shard},
    storage::Recovery,
    tasks::{self, CrashWithMe},
};

/// Connections that may wait to be accepted. The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;
/// Connections at once, unless set.
const DEFAULT_MAX_CONNECTIONS: usize = 50_000;
/// Descriptors that are kept for others than connections: ring, epoll, listeners, signals, logs, and an embedding
/// program's own.
const OTHER_DESCRIPTORS: u64 = 128;
/// The same where descriptors are scarce: as many as a server has use for that listens on a few addresses.
const LEAST_OTHER_DESCRIPTORS: u64 = 16;
/// Fewer connections than this are soon used up.
const FEW_CONNECTIONS: usize = 64;

/// A process that may have fewer open files than this cannot run a server.
pub const LEAST_OPEN_FILES: u64 = LEAST_OTHER_DESCRIPTORS + 1;

/// The server. It begins with [`Server::builder`], or for a whole process with [`Server::run_until_signalled`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Server;

impl Server {
    /// A server with the default configuration, to be changed and started.
    pub fn builder() -> Builder {
        Builder { config: Config::default() }
    }

    /// Runs a server on this thread until it is told to leave by SIGTERM or SIGINT: then it drains. A second signal
    /// ends it at once. SIGHUP has `reload` say what the configuration is now, or what is wrong with it, on a thread of its
    /// own: its secure keys are taken over, and nothing else. `listening` is called when clients can connect.
    ///
    /// # Errors
    /// [`StartError`]: it did not start, or its log could not be read, which with a long one is found when clients are connected
    /// already.
    ///
    /// # Panics
    /// If the server itself panicked, which is a bug.
    pub fn run_until_signalled(
        config: Config,
        reload: impl Fn() -> Result<Config, String> + Send + Sync + 'static,
        listening: impl FnOnce(&[SocketAddr]) + 'static,
    ) -> Result<Ended, StartError> {
        run(config, Control::Signals(Arc::new(reload)), |addresses| {
            listening(addresses);
        })
    }
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// As it was asked to.
    Stopped,
    /// At once, by a second signal of this number, without waiting for what was open.
    BySignal(u8),
    /// Because its log does not work any more: the disk reported an error.
    LogFailed,
    /// Because its log could not be read, which was found only after it had begun; with the exit code of a server that does not
    /// start for that reason.
    LogUnusable(u8),
}

impl Ended {
    /// The exit code of a command whose server ended so: 0, 128 and the signal's number, 74, or 65, 74 or 78 for a log that cannot
    /// be used.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Stopped => 0,
            Self::BySignal(number) => 128 + number,
            Self::LogFailed => 74,
            Self::LogUnusable(code) => code,
        }
    }
}

/// Sets what a server is to be, and starts it. See [`Config`] for what can be set and the defaults.
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

    /// The server's own name.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.config.id = id.into();
        self
    }

    /// Where to listen; port 0 takes a free one, see [`Handle::address`]. Connections are secure where the server has keys.
    #[must_use]
    pub fn listen(self, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.listen_on(addresses.into_iter().map(Listen::from))
    }

    /// The same, each with what its connections have to be.
    #[must_use]
    pub fn listen_on(mut self, listens: impl IntoIterator<Item = Listen>) -> Self {
        self.config.listen = listens.into_iter().collect();
        self
    }

    /// A secure key, and what it is good for: from the first one on, who connects must have one of them.
    #[must_use]
    pub fn secure_key(mut self, key: SecureKey, role: Role) -> Self {
        self.config.secure_keys.push((key, role));
        self
    }

    /// A server to work with: requests that nobody here can take go to its handlers, and the other way round. May be called
    /// several times.
    #[must_use]
    pub fn peer(mut self, peer: Peer) -> Self {
        self.config.peers.push(peer);
        self
    }

    /// How handlers are chosen.
    #[must_use]
    pub fn dispatch(mut self, dispatch: Dispatch) -> Self {
        self.config.dispatch = dispatch;
        self
    }

    /// The longest payload in bytes.
    #[must_use]
    pub fn max_payload(mut self, bytes: u64) -> Self {
        self.config.max_payload = bytes;
        self
    }

    /// Where the log of durable requests is; without one they are refused.
    #[must_use]
    pub fn data_dir(mut self, directory: impl Into<std::path::PathBuf>) -> Self {
        self.config.data_dir = Some(directory.into());
        self
    }

    /// Bytes of durable requests without an outcome that are kept in memory; the others are only in the log.
    #[must_use]
    pub fn queue_memory(mut self, bytes: u64) -> Self {
        self.config.queue_memory = Some(bytes);
        self
    }

    /// Connections at once.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.config.max_connections = Some(connections);
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
            .name("ringpost-shard-0".into())
            .spawn(move || {
                let listening = started.clone();
                let ended = run(config, Control::Commands(received), move |addresses| {
                    // Nobody who waits for it any more: then `Handle` is gone, and its stop is on its way.
                    listening.send(addresses.to_vec()).ok();
                });
                drop(started);
                ended
            })
            .map_err(|cause| StartError::System { what: "starting a thread", cause })?;
        match outcome.recv() {
            Ok(addresses) => Ok(Handle { addresses, commands, thread: Some(thread) }),
            Err(_) => match thread.join() {
                Ok(Err(error)) => Err(error),
                Ok(Ok(_)) | Err(_) => {
                    let cause =
                        std::io::Error::other("the thread ended before the server listened; this is a bug");
                    Err(StartError::System { what: "starting the shard", cause })
                }
            },
        }
    }
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Handle {
    addresses: Vec<SocketAddr>,
    commands: UnboundedSender<Command>,
    thread: Option<JoinHandle<Result<Ended, StartError>>>,
}

/// The server's thread panicked: a bug. What happened stands on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server crashed: its panic message is on stderr")]
pub struct Crashed;

impl Handle {
    /// The first address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// The addresses that it listens on, in the order of the configuration.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Tells it to leave: clients are told, nothing new is accepted, and what is open has as long as `grace` to end.
    /// Returns at once; see [`Handle::wait`].
    pub fn drain(&self, grace: Duration) {
        self.tell(Command::Drain(grace));
    }

    /// Reads the files of its secure keys again, those that its configuration named at the start: who came with a key that is
    /// not there any more has to leave, within `drain-timeout`. Returns at once; where a file cannot be used, the keys stay as they
    /// were, and the log says so.
    pub fn reload_keys(&self) {
        self.tell(Command::ReloadKeys);
    }

    /// Stops it at once, and waits for its end.
    pub fn stop(self) {
        drop(self);
    }

    /// Waits for its end, after [`Handle::drain`] or because its disk fails, and says which it was.
    ///
    /// # Errors
    /// [`Crashed`].
    pub fn wait(mut self) -> Result<Ended, Crashed> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Ok(ended))) => Ok(ended),
            // It had begun, and its log turned out to be unusable.
            Some(Ok(Err(error))) => Ok(Ended::LogUnusable(error.exit_code())),
            Some(Err(_)) => Err(Crashed),
            None => Ok(Ended::Stopped),
        }
    }

    fn tell(&self, command: Command) {
        // It fails only when the server has ended already, which is what every command asks for.
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
    Drain(Duration),
    ReloadKeys,
    Stop,
}

/// Who says when the server has to leave.
enum Control {
    Commands(UnboundedReceiver<Command>),
    Signals(Reload),
}

/// Runs a shard on this thread until it has left.
fn run(
    config: Config,
    control: Control,
    listening: impl FnOnce(&[SocketAddr]) + 'static,
) -> Result<Ended, StartError> {
    config.validate()?;
    let max_connections = max_connections(&config)?;
    let keys = KeySources::of(&config).read()?;
    let peers = peer_keys(&config)?;
    let began = config.clone();
    let seeds = [random()?, random()?, random()?];
    let mut recovery = Recovery::begin(&config, seeds[0], [random()?, random()?, random()?])?;
    let ring = RingConfig { busy_poll: config.busy_poll, ..RingConfig::default() };
    ring::run(&ring, async move {
        let listeners = config
            .listen
            .iter()
            .map(|listen| Listener::bind(listen.address, BACKLOG))
            .collect::<Result<Vec<_>, _>>()?;
        let addresses = listeners.iter().map(Listener::local_addr).collect::<Result<Vec<_>, _>>();
        let addresses =
            addresses.map_err(|cause| StartError::System { what: "reading an address", cause })?;
        let signals = match &control {
            Control::Signals(_) => Some(
                Signals::listen()
                    .map_err(|cause| StartError::System { what: "listening for signals", cause })?,
            ),
            Control::Commands(_) => None,
        };
        let soon = match &mut recovery {
            Some(recovery) => recovery.soon().await,
            None => None,
        };
        let has_keys = config.has_keys();
        let secure: Vec<_> = config.listen.iter().map(|listen| listen.kind.is_secure(has_keys)).collect();
        for (listen, address) in config.listen.iter().zip(&addresses) {
            tracing::info!(%address, id = config.id, secure = listen.kind.is_secure(has_keys), "listening");
            warn_if_open(listen, *address, has_keys);
        }
        if !keys.is_empty() {
            tracing::info!(keys = keys.describe(), "who connects needs a secure key");
        }
        if keys.has_passphrase() && addresses.iter().any(|address| !address.ip().is_loopback()) {
            tracing::warn!(
                "a secure key is a passphrase, and the server listens beyond loopback: who hears a connection begin can try \
                 passphrases at home; `ringpost keygen` makes keys that cannot be guessed"
            );
        }
        let drain_timeout = config.drain_timeout;
        let (log, performer) = match soon.transpose()? {
            Some((storage, performer)) => (LogAtStart::Read(Box::new(storage)), Some(performer)),
            None if recovery.is_some() => (LogAtStart::Reading, None),
            None => (LogAtStart::None, None),
        };
        let shard = Rc::new(Shard::new(config, listeners.clone(), max_connections, seeds, keys, log));
        match (performer, recovery) {
            (Some(performer), _) => {
                ring::spawn(tasks::keep_log(shard.clone(), Rc::new(performer)));
            }
            (None, Some(recovery)) => {
                ring::spawn(tasks::recover(shard.clone(), recovery));
            }
            (None, None) => {}
        }
        for (link, (address, key)) in peers.into_iter().enumerate() {
            ring::spawn(peer::driver::keep_link(shard.clone(), link, address, key));
        }
        shard.start_links();
        for (listener, secure) in listeners.into_iter().zip(secure) {
            ring::spawn(tasks::accept(shard.clone(), listener, secure));
        }
        ring::spawn(tasks::flush(shard.clone()));
        ring::spawn(tasks::keep_time(shard.clone()));
        let by_signal = Rc::new(std::cell::Cell::new(Ended::Stopped));
        let keys_wanted = Rc::<Event>::default();
        let reload = match control {
            Control::Commands(commands) => {
                ring::spawn(obey(shard.clone(), commands, keys_wanted.clone()));
                let same = began.clone();
                Arc::new(move || Ok(same.clone()))
            }
            Control::Signals(reload) => reload,
        };
        if let Some(signals) = signals {
            ring::spawn(heed(shard.clone(), signals, keys_wanted.clone(), drain_timeout, by_signal.clone()));
        }
        ring::spawn(reload::keep_keys(shard.clone(), keys_wanted, began, reload));
        listening(&addresses);
        shard.ended.wait().await;
        let crashed = shard.crashed.get();
        if crashed {
            // Nobody shall be left hanging on a server that does not answer any more.
            shard.cut_all();
        }
        assert!(!crashed, "a task of the server panicked: what it left behind cannot be trusted");
        let lock = shard.lock.take();
        if lock.is_some() {
            shard.stop_log();
            shard.log_stopped.wait().await;
        }
        drop(lock);
        if let Some(error) = shard.log_unusable.take() {
            return Err(error.into());
        }
        tracing::info!("stopped");
        Ok(if shard.log_failed.get() { Ended::LogFailed } else { by_signal.get() })
    })?
}

/// Where the links go, and with which key each.
fn peer_keys(config: &Config) -> Result<Vec<(String, Option<SecureKey>)>, StartError> {
    let with_key = |peer: &Peer| {
        let of_file = peer.key_file.as_deref().map(read_key_file).transpose()?;
        Ok((peer.address.clone(), peer.key.clone().or(of_file)))
    };
    config.peers.iter().map(with_key).collect()
}

async fn obey(shard: Rc<Shard>, mut commands: UnboundedReceiver<Command>, keys_wanted: Rc<Event>) {
    let _crash = CrashWithMe(shard.clone());
    while let Some(command) = commands.recv().await {
        match command {
            Command::Drain(grace) => shard.drain(grace),
            Command::ReloadKeys => keys_wanted.set(),
            Command::Stop => shard.stop(),
        }
    }
}

/// It never waits for anything but the next signal: whoever sends a second one does not want to wait.
async fn heed(
    shard: Rc<Shard>,
    mut signals: Signals,
    keys_wanted: Rc<Event>,
    grace: Duration,
    ended: Rc<std::cell::Cell<Ended>>,
) {
    let _crash = CrashWithMe(shard.clone());
    let mut asked = false;
    loop {
        match signals.next().await {
            Signal::Hangup => {
                tracing::info!("SIGHUP: reading the secure keys again");
                keys_wanted.set();
            }
            signal if asked => {
                tracing::warn!(?signal, "a second signal: leaving at once");
                ended.set(Ended::BySignal(signal.number()));
                return shard.stop();
            }
            signal => {
                tracing::info!(?signal, "leaving; a second signal leaves at once");
                asked = true;
                shard.drain(grace);
            }
        }
    }
}

/// Whoever can reach a plain listener can do everything: beyond this machine that is said, unless somebody wrote that it
/// is meant.
fn warn_if_open(listen: &Listen, address: SocketAddr, has_keys: bool) {
    if is_open(listen, has_keys) {
        tracing::warn!("{}", open_warning(address));
    }
}

/// Whether others than this machine's own can use a listener without a key, and nobody has written that they may.
fn is_open(listen: &Listen, has_keys: bool) -> bool {
    let unsaid = listen.kind == ListenerKind::Auto && !listen.kind.is_secure(has_keys);
    unsaid && !listen.address.ip().to_canonical().is_loopback()
}

fn open_warning(address: SocketAddr) -> String {
    format!(
        "everybody who can reach {address} can use this server, for it has no key: give it one (--secure-key-file FILE), \
         listen on 127.0.0.1, or write `--listen {address},plain` if that is meant"
    )
}

/// How many connections may be there at once: as configured, or as many as descriptors are allowed.
fn max_connections(config: &Config) -> Result<usize, StartError> {
    let limit = descriptors::raise_limit()
        .map_err(|cause| StartError::System { what: "raising the limit of open files", cause })?;
    let wanted = config.max_connections.unwrap_or(DEFAULT_MAX_CONNECTIONS);
    let allowed = connections_within(limit.soft);
    if wanted <= allowed {
        return Ok(wanted);
    }
    if config.max_connections.is_some() {
        let needed = (wanted as u64).saturating_add(OTHER_DESCRIPTORS);
        return Err(StartError::Descriptors { wanted, needed, allowed: limit.soft });
    }
    if allowed == 0 {
        return Err(StartError::Descriptors { wanted: 1, needed: LEAST_OPEN_FILES, allowed: limit.soft });
    }
    if allowed < FEW_CONNECTIONS {
        tracing::warn!(
            allowed,
            open_files = limit.soft,
            "very few connections are possible: raise the limit of open files (`ulimit -Hn`, LimitNOFILE= in a \
             systemd unit)"
        );
    } else {
        tracing::info!(allowed, "connections are limited by the limit of open files (`ulimit -n`)");
    }
    Ok(allowed)
}

/// How many connections go with a limit of open files: what is kept for others is at most half of a low one.
fn connections_within(limit: u64) -> usize {
    let others = OTHER_DESCRIPTORS.min(limit / 2).max(LEAST_OTHER_DESCRIPTORS);
    usize::try_from(limit.saturating_sub(others)).unwrap_or(usize::MAX)
}

fn random() -> Result<u64, StartError> {
    getrandom::u64()
        .map_err(|error| StartError::System { what: "drawing random numbers", cause: error.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A listener that others can reach without a key is warned of, with what to do, unless it is written that it is meant.
    #[test]
    fn open_listeners_are_warned_of() {
        for (text, has_keys, open) in [
            ("127.0.0.1:1", false, false),
            ("[::1]:1", false, false),
            ("[::ffff:127.0.0.1]:1", false, false),
            ("0.0.0.0:1", false, true),
            ("[::]:1", false, true),
            ("192.0.2.1:1", false, true),
            ("192.0.2.1:1", true, false),
            ("192.0.2.1:1,plain", false, false),
            ("192.0.2.1:1,plain", true, false),
        ] {
            assert_eq!(is_open(&text.parse().unwrap(), has_keys), open, "{text}, keys: {has_keys}");
        }
        let warning = open_warning(([192, 0, 2, 1], 8888).into());
        for remedy in ["--secure-key-file", "127.0.0.1", "--listen 192.0.2.1:8888,plain"] {
            assert!(warning.contains(remedy), "{warning}");
        }
    }

    /// A low limit is shared between connections and the rest; the lowest leaves one connection.
    #[test]
    fn connections_within_limits() {
        for (limit, connections) in
            [(8, 0), (LEAST_OPEN_FILES, 1), (20, 4), (64, 32), (256, 128), (1024, 896)]
        {
            assert_eq!(connections_within(limit), connections, "{limit}");
        }
    }
}
