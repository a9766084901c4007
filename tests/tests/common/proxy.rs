//! A TCP proxy that does what networks do: it delays, throttles, freezes, forgets, and cuts at a byte of one's choice.
//! What it forwards it forwards whole and in order: it never reorders and never corrupts.
//!
//! It runs on a thread of its own, so that a busy or blocked test does not slow it down, and ends when it is dropped.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};

/// What is read and forwarded at once.
const PIECE_BYTES: usize = 16 << 10;
/// Pieces on their way: with these the reading side waits, as it would for a full pipe.
const PIECES_UNDER_WAY: usize = 64;
/// A throttled direction moves in steps of about this time.
const THROTTLE_STEP: Duration = Duration::from_millis(5);

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// How all connections are treated now.
#[derive(Debug, Clone, Copy, Default)]
struct Conditions {
    delay: Duration,
    bytes_per_second: Option<u64>,
    frozen: bool,
}

/// How a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Lives,
    /// Both sockets stay, what comes is read and goes nowhere.
    Forgotten,
    Cut,
}

/// What the thread and the test both see.
#[derive(Debug)]
struct Shared {
    target: Mutex<SocketAddr>,
    /// For connections that are made from now on.
    cut_at: Mutex<Option<(Direction, u64)>>,
    fates: Mutex<Vec<watch::Sender<Fate>>>,
    conditions: watch::Sender<Conditions>,
    accepted: AtomicU64,
    to_server: AtomicU64,
    to_client: AtomicU64,
}

/// The proxy. All its connections end when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// In front of a server, on a free port.
    pub fn start(target: SocketAddr) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            cut_at: Mutex::default(),
            fates: Mutex::default(),
            conditions: watch::Sender::new(Conditions::default()),
            accepted: AtomicU64::new(0),
            to_server: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
        });
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, shared) => {}
                        _ = stopped => {}
                    }
                });
            }
        });
        Self { address, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections go to this server.
    pub fn set_target(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap() = target;
    }

    /// Each byte arrives so much later, in both directions.
    pub fn delay(&self, delay: Duration) {
        self.shared.conditions.send_modify(|conditions| conditions.delay = delay);
    }

    /// Each direction of each connection moves at most so many bytes in a second; `None`: as fast as it can.
    pub fn throttle(&self, bytes_per_second: Option<u64>) {
        self.shared.conditions.send_modify(|conditions| conditions.bytes_per_second = bytes_per_second);
    }

    /// Nothing moves, on new connections either, until [`Proxy::thaw`]; then all of it does.
    pub fn freeze(&self) {
        self.shared.conditions.send_modify(|conditions| conditions.frozen = true);
    }

    pub fn thaw(&self) {
        self.shared.conditions.send_modify(|conditions| conditions.frozen = false);
    }

    /// The connections that there are become half-open, as if a cable had been pulled out: both ends keep their sockets,
    /// what they say is taken and never arrives. New ones are as usual.
    pub fn half_open(&self) {
        self.decide(Fate::Forgotten);
    }

    /// Resets the connections that there are; what was under way is lost.
    pub fn cut(&self) {
        self.decide(Fate::Cut);
    }

    /// New connections are reset when so many bytes have gone in this direction, and not one more; `None`: they are not.
    pub fn cut_at(&self, at: Option<(Direction, u64)>) {
        *self.shared.cut_at.lock().unwrap() = at;
    }

    /// Connections that there are.
    pub fn connections(&self) -> usize {
        let mut fates = self.shared.fates.lock().unwrap();
        fates.retain(|fate| !fate.is_closed());
        fates.len()
    }

    /// Connections that there were.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Bytes that have arrived.
    pub fn forwarded(&self, direction: Direction) -> u64 {
        self.shared.counter(direction).load(Ordering::SeqCst)
    }

    fn decide(&self, fate: Fate) {
        let mut fates = self.shared.fates.lock().unwrap();
        fates.retain(|known| !known.is_closed());
        for known in &*fates {
            known.send_replace(fate);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // An error says that the thread has ended already, as it does when it panicked.
        let _ = self.stop.take().map(|stop| stop.send(()));
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

impl Shared {
    fn counter(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::ToServer => &self.to_server,
            Direction::ToClient => &self.to_client,
        }
    }
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let (fate, decided) = watch::channel(Fate::Lives);
        shared.fates.lock().unwrap().push(fate);
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(relay(client, decided, shared.clone()));
    }
}

/// One connection, to its end.
async fn relay(mut client: TcpStream, mut fate: watch::Receiver<Fate>, shared: Arc<Shared>) {
    let target = *shared.target.lock().unwrap();
    // Nobody there: the client's connection ends, too.
    let Ok(mut server) = TcpStream::connect(target).await else { return reset(&client) };
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let limit = *shared.cut_at.lock().unwrap();
    let way = |direction| Way {
        direction,
        shared: &shared,
        conditions: shared.conditions.subscribe(),
        fate: fate.clone(),
        limit: limit.filter(|(limited, _)| *limited == direction).map(|(_, bytes)| bytes),
    };
    let (to_server, to_client) = (way(Direction::ToServer), way(Direction::ToClient));
    let ended = {
        let (from_client, into_client) = client.split();
        let (from_server, into_server) = server.split();
        let both = async {
            tokio::try_join!(
                to_server.forward(from_client, into_server),
                to_client.forward(from_server, into_client)
            )
        };
        tokio::select! {
            biased;
            _ = fate.wait_for(|fate| *fate == Fate::Cut) => None,
            ended = both => ended.ok(),
        }
    };
    // What one end does with a half-open connection, the other does not see.
    if *fate.borrow() == Fate::Forgotten && fate.wait_for(|fate| *fate == Fate::Cut).await.is_err() {
        return;
    }
    if ended.is_none() {
        reset(&client);
        reset(&server);
    }
}

/// The end of this socket will be a reset.
fn reset(socket: &TcpStream) {
    // An error says that the peer has reset it.
    let _ = socket.set_zero_linger();
}

/// One direction of one connection.
struct Way<'a> {
    direction: Direction,
    shared: &'a Shared,
    conditions: watch::Receiver<Conditions>,
    fate: watch::Receiver<Fate>,
    /// It is cut behind so many bytes.
    limit: Option<u64>,
}

/// Why a direction ends before its stream does.
struct Broken;

impl From<std::io::Error> for Broken {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

impl Way<'_> {
    async fn forward(self, from: ReadHalf<'_>, into: WriteHalf<'_>) -> Result<(), Broken> {
        let (pieces, under_way) = mpsc::channel(PIECES_UNDER_WAY);
        let read = read(from, pieces, self.conditions.clone());
        tokio::try_join!(read, self.write(into, under_way)).map(|_| ())
    }

    async fn write(
        mut self,
        mut into: WriteHalf<'_>,
        mut under_way: mpsc::Receiver<(Instant, Vec<u8>)>,
    ) -> Result<(), Broken> {
        let mut written = 0;
        while let Some((due, piece)) = under_way.recv().await {
            sleep_until(due).await;
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let rate = self.fair_weather().await;
                if *self.fate.borrow() == Fate::Forgotten {
                    break;
                }
                let mut step = match rate {
                    Some(rate) => rest.len().min((rate as f64 * THROTTLE_STEP.as_secs_f64()).ceil() as usize),
                    None => rest.len(),
                };
                if let Some(limit) = self.limit {
                    step = step.min((limit - written) as usize);
                }
                into.write_all(&rest[..step]).await?;
                rest = &rest[step..];
                written += step as u64;
                self.shared.counter(self.direction).fetch_add(step as u64, Ordering::SeqCst);
                if self.limit == Some(written) {
                    return Err(Broken);
                }
                if let Some(rate) = rate {
                    sleep(Duration::from_secs_f64(step as f64 / rate as f64)).await;
                }
            }
        }
        self.fair_weather().await;
        // The end of a half-open connection does not arrive either.
        if *self.fate.borrow() == Fate::Forgotten {
            return std::future::pending().await;
        }
        Ok(into.shutdown().await?)
    }

    /// Waits until nothing is frozen, and gives the throttle.
    async fn fair_weather(&mut self) -> Option<u64> {
        let thawed = self.conditions.wait_for(|conditions| !conditions.frozen).await;
        // The sender lives as long as the proxy.
        thawed.unwrap().bytes_per_second
    }
}

async fn read(
    mut from: ReadHalf<'_>,
    pieces: mpsc::Sender<(Instant, Vec<u8>)>,
    conditions: watch::Receiver<Conditions>,
) -> Result<(), Broken> {
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let read = from.read(&mut piece).await?;
        if read == 0 {
            return Ok(());
        }
        piece.truncate(read);
        let due = Instant::now() + conditions.borrow().delay;
        if pieces.send((due, piece)).await.is_err() {
            return Ok(());
        }
    }
}
