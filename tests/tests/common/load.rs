//! Load with numbered requests, what became of each, and the ledger in which handlers write what they ran.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ringpost::{Client, Error, ErrorKind};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{PATIENCE, process::Process, until};

/// A request that failed at once is not followed by the next at once.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(5);

/// A client that comes back soon.
pub async fn client(server: SocketAddr) -> Client {
    let builder = Client::builder(server.to_string()).reconnect_interval(Duration::from_millis(10));
    builder.connect().await.unwrap()
}

/// What a load does.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The first request's number; loads of one test begin far apart.
    pub from: u64,
    /// Requests that are open at a time.
    pub window: usize,
    pub max_attempts: u8,
    pub durable: bool,
}

/// A request's number, and the attempt that was answered or what went wrong.
type Ended = (u64, Result<u16, Error>);

/// Requests that follow one another until [`Load::stop`].
#[derive(Debug)]
pub struct Load {
    plan: Plan,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<u64>,
    workers: Vec<JoinHandle<Vec<Ended>>>,
}

impl Load {
    /// Each request's data is its number, and its reply must be that.
    pub fn start(client: &Client, action: &'static str, plan: Plan) -> Self {
        let next = Arc::new(AtomicU64::new(plan.from));
        let stop = watch::Sender::new(false);
        let (count, ended) = watch::channel(0);
        let count = Arc::new(count);
        let workers = (0..plan.window)
            .map(|_| {
                let (client, next, stopped) = (client.clone(), next.clone(), stop.subscribe());
                let count = count.clone();
                tokio::spawn(async move {
                    let mut outcomes = Vec::new();
                    while !*stopped.borrow() {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let mut request = client.request(action, &number).max_attempts(plan.max_attempts);
                        if plan.durable {
                            request = request.durable();
                        }
                        // Longer than any test waits: an outcome that takes so long has not come.
                        let outcome = request.timeout(PATIENCE * 4).await.map(|reply| {
                            assert_eq!(reply.data::<u64>().unwrap(), number, "a reply of its own");
                            reply.info().attempt
                        });
                        if outcome.is_err() {
                            sleep(PAUSE_AFTER_ERROR).await;
                        }
                        outcomes.push((number, outcome));
                        count.send_modify(|count| *count += 1);
                    }
                    outcomes
                })
            })
            .collect();
        Self { plan, stop, ended, workers }
    }

    /// Waits until so many more requests have ended.
    pub async fn goes_on(&self, requests: u64) {
        let mut ended = self.ended.clone();
        let goal = *ended.borrow() + requests;
        let reached = timeout(PATIENCE, ended.wait_for(|ended| *ended >= goal)).await;
        assert!(
            reached.is_ok(),
            "{} requests ended, {goal} should have: {:?}",
            *self.ended.borrow(),
            self.plan
        );
    }

    /// Sends no more, waits for what is open, and gives what became of all of them.
    pub async fn stop(self) -> Outcomes {
        self.stop.send_replace(true);
        let mut outcomes = BTreeMap::new();
        let deadline = Instant::now() + PATIENCE;
        for worker in self.workers {
            let ended = tokio::time::timeout_at(deadline, worker).await;
            let ended = ended.unwrap_or_else(|_| panic!("a request hangs: {:?}", self.plan));
            for (number, outcome) in ended.unwrap() {
                assert!(outcomes.insert(number, outcome).is_none(), "request {number} has one outcome");
            }
        }
        Outcomes { plan: self.plan, outcomes }
    }
}

/// Two loads at once: one whose requests may be lost with a handler, one whose requests then go to another.
#[derive(Debug)]
pub struct Loads {
    once: Load,
    often: Load,
}

impl Loads {
    const ONCE: Plan = Plan { from: 1 << 32, window: 32, max_attempts: 1, durable: false };
    const OFTEN: Plan = Plan { from: 2 << 32, window: 32, max_attempts: 8, durable: false };

    /// Requests for `work`; those of different rounds have different numbers.
    pub fn start(client: &Client, round: u64) -> Self {
        let load = |plan: Plan| Load::start(client, "work", Plan { from: plan.from + (round << 24), ..plan });
        Self { once: load(Self::ONCE), often: load(Self::OFTEN) }
    }

    /// Waits until some hundred more of each have ended.
    pub async fn go_on(&self) {
        self.once.goes_on(200).await;
        self.often.goes_on(200).await;
    }

    /// Both at their end, in agreement with the ledger.
    pub async fn stop(self, ledger: &Ledger) -> (Outcomes, Outcomes) {
        let outcomes = (self.once.stop().await, self.often.stop().await);
        let (runs, _) = ledger.runs();
        outcomes.0.assert_agrees(&runs);
        outcomes.1.assert_agrees(&runs);
        outcomes
    }
}

/// What went down with handlers: ended, or given to another.
#[derive(Debug, Default)]
pub struct Lost {
    ended: usize,
    repeated: usize,
}

impl Lost {
    /// Two loads, while a handler was lost under them: those without attempts left ended so, and nothing else ended badly.
    pub fn add(&mut self, once: &Outcomes, often: &Outcomes) {
        often.assert_only(&[]);
        once.assert_only(&[ErrorKind::HandlerLost]);
        let (ended, repeated) = (once.count(ErrorKind::HandlerLost), often.repeated());
        assert!(ended + repeated > 0, "the lost handler held something");
        self.ended += ended;
        self.repeated += repeated;
    }

    /// In all of it, there was something of both.
    pub fn assert_both(&self) {
        assert!(
            self.ended > 0 && self.repeated > 0,
            "handlers were lost with requests of both loads: {self:?}"
        );
    }
}

/// What became of a load's requests.
#[derive(Debug)]
pub struct Outcomes {
    plan: Plan,
    outcomes: BTreeMap<u64, Result<u16, Error>>,
}

impl Outcomes {
    pub fn len(&self) -> usize {
        self.outcomes.len()
    }

    /// All have replies, and each ran.
    pub fn assert_durable(&self, ledger: &BTreeMap<u64, Vec<u16>>) {
        self.assert_only(&[]);
        for number in self.outcomes.keys() {
            assert!(ledger.contains_key(number), "request {number} has a reply and never ran");
        }
    }

    /// How many ended so.
    pub fn count(&self, kind: ErrorKind) -> usize {
        self.errors().filter(|error| error.kind() == kind).count()
    }

    /// How many were answered by a later attempt than the first.
    pub fn repeated(&self) -> usize {
        self.outcomes.values().filter(|outcome| outcome.as_ref().is_ok_and(|attempt| *attempt > 1)).count()
    }

    fn errors(&self) -> impl Iterator<Item = &Error> {
        self.outcomes.values().filter_map(|outcome| outcome.as_ref().err())
    }

    /// All have replies, but for those that ended with one of these.
    pub fn assert_only(&self, kinds: &[ErrorKind]) {
        for (number, outcome) in &self.outcomes {
            if let Err(error) = outcome {
                assert!(
                    kinds.contains(&error.kind()),
                    "request {number} of {:?} ended with {error}",
                    self.plan
                );
            }
        }
    }

    /// What a ledger must say of these: who has a reply ran, and nobody ran more often than allowed.
    pub fn assert_agrees(&self, ledger: &BTreeMap<u64, Vec<u16>>) {
        let max_attempts = usize::from(self.plan.max_attempts);
        for (number, outcome) in &self.outcomes {
            let runs = ledger.get(number).map_or(&[][..], Vec::as_slice);
            assert!(
                runs.len() <= max_attempts,
                "request {number} of {:?} ran {} times, as attempts {runs:?}, and ended with {outcome:?}",
                self.plan,
                runs.len()
            );
            assert!(outcome.is_err() || !runs.is_empty(), "request {number} has a reply and never ran");
        }
    }
}

/// What became of the durable requests of sessions whose processes were killed.
#[derive(Debug, Default)]
pub struct Inheritance {
    /// Requests that were made, if not necessarily sent.
    pub asked: BTreeSet<u64>,
    /// Sends of which the broker has said that they are accepted.
    pub accepted: BTreeSet<u64>,
    /// The replies to each request, by the run that each is from.
    pub outcomes: BTreeMap<u64, Vec<String>>,
    /// Lines about what went wrong.
    pub failed: Vec<String>,
}

impl Inheritance {
    /// What a ledger must say of these. Whatever was accepted has run; what has run was answered, if a reply was wanted; and
    /// all the replies that processes of a session have seen to one request are the same one: it may come again as long as
    /// the word that somebody has it is not stable.
    pub fn assert_whole(&self, runs: &BTreeMap<u64, Vec<u16>>) {
        // A send of which a restarted broker found nothing left: it may have run, says that error, and mostly it has.
        let lost = |line: &&String| line.starts_with("failed send ") && line.ends_with(" connectionLost");
        assert_eq!(self.failed.iter().find(|line| !lost(line)), None);
        for number in &self.accepted {
            assert!(runs.contains_key(number), "send {number} was accepted and never ran");
        }
        for number in runs.keys().filter(|number| self.asked.contains(number)) {
            assert!(self.outcomes.contains_key(number), "request {number} ran and was never answered");
        }
        for (number, outcomes) in &self.outcomes {
            assert!(runs.contains_key(number), "request {number} has a reply and never ran");
            assert!(outcomes.iter().all(|run| *run == outcomes[0]), "request {number}: {outcomes:?}");
        }
    }
}

/// A file that handlers and requesters of other processes write to.
#[derive(Debug)]
pub struct Ledger {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Ledger {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { path: folder.path().join("ledger"), _folder: folder }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn lines(&self) -> String {
        // Nobody has written yet: then there is no file.
        std::fs::read_to_string(&self.path).unwrap_or_default()
    }

    /// The attempts of each request that were run, and how many by each process.
    pub fn runs(&self) -> (BTreeMap<u64, Vec<u16>>, BTreeMap<u32, usize>) {
        let (mut by_request, mut by_process) = (BTreeMap::<_, Vec<u16>>::new(), BTreeMap::new());
        for line in self.lines().lines() {
            if let ["ran", number, attempt, process] = line.split(' ').collect::<Vec<_>>()[..] {
                by_request.entry(number.parse().unwrap()).or_default().push(attempt.parse().unwrap());
                *by_process.entry(process.parse().unwrap()).or_default() += 1;
            }
        }
        (by_request, by_process)
    }

    /// How often a process ran anything.
    pub fn runs_of(&self, process: u32) -> usize {
        self.runs().1.get(&process).copied().unwrap_or_default()
    }

    /// What heirs have written.
    pub fn inheritance(&self) -> Inheritance {
        let mut inheritance = Inheritance::default();
        for line in self.lines().lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["asked", number] => drop(inheritance.asked.insert(number.parse().unwrap())),
                ["accepted", number] => drop(inheritance.accepted.insert(number.parse().unwrap())),
                ["outcome", number, run] => {
                    inheritance.outcomes.entry(number.parse().unwrap()).or_default().push(run.to_owned());
                }
                ["failed", ..] => inheritance.failed.push(line.to_owned()),
                _ => {}
            }
        }
        inheritance
    }

    /// The codes that each asked request ended with: none, as long as it is open.
    pub fn ends(&self) -> BTreeMap<u64, Vec<String>> {
        let mut ends = BTreeMap::<_, Vec<String>>::new();
        for line in self.lines().lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["asked", number] => drop(ends.entry(number.parse().unwrap()).or_default()),
                ["ended", number, code] => {
                    ends.entry(number.parse().unwrap()).or_default().push(code.to_owned());
                }
                _ => {}
            }
        }
        ends
    }
}

/// Waits until a handler is at work, so that whatever happens to it happens under load.
pub fn works(handler: &Process, ledger: &Ledger) {
    let before = ledger.runs_of(handler.id());
    until("the handler is at work", || ledger.runs_of(handler.id()) >= before + 100);
}
