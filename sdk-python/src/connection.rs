//! A client as the typed front drives it: calls go in, and [`Connection::drain`] brings what came back.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use pyo3::{PyTraverseError, PyVisit, exceptions::PyOSError, prelude::*, types::PyList};
use ringpost::{
    Client, ClientBuilder, ErrorKind,
    raw::{self, Completion, RegistrationId, RequestFlags, RequestSpec},
};
use tokio::runtime::{self, Runtime};

use crate::{
    content,
    delivery::Delivery,
    failure,
    link::{Kind, Link, Waiting},
    news::{self, UnclaimedKey},
    queue::{Arrivals, News, Queue},
    reply::Reply,
};

/// One client: a thread of its own that moves the bytes, and the queue through which it is heard.
///
/// Nothing here waits. `fileno` is readable while `drain` has something to give.
#[pyclass(frozen, weakref, module = "ringpost._ringpost")]
pub(crate) struct Connection {
    link: Arc<Link>,
    runtime: runtime::Handle,
    /// What the last drain emptied, to be filled again.
    spare: Mutex<Arrivals>,
}

/// What `drain` gives: outcomes as a list of futures and values in turns, failures likewise, deliveries, and news.
type Drained<'py> = (Bound<'py, PyList>, Bound<'py, PyList>, Bound<'py, PyList>, Bound<'py, PyList>);

#[pymethods]
impl Connection {
    /// Prepares a client; it does not connect before `start`. Intervals and timeouts are in milliseconds.
    #[new]
    #[pyo3(signature = (host, port, *, session, unclaimed_replies, reconnect, reconnect_interval_ms, max_reconnects,
        retry_initial, task_interval_ms, default_timeout_ms, max_pending, receivers, secure_key))]
    #[expect(clippy::too_many_arguments, reason = "the typed front has names and defaults for them")]
    fn new(
        py: Python<'_>,
        host: &str,
        port: u16,
        session: Option<&str>,
        unclaimed_replies: bool,
        reconnect: bool,
        reconnect_interval_ms: u64,
        max_reconnects: Option<u32>,
        retry_initial: bool,
        task_interval_ms: u64,
        default_timeout_ms: u64,
        max_pending: usize,
        receivers: bool,
        secure_key: Option<&str>,
    ) -> PyResult<Self> {
        let mut builder = Client::builder(format_address(host, port))
            .sdk("ringpost-python", env!("CARGO_PKG_VERSION"))
            .unclaimed_replies(unclaimed_replies)
            .reconnect(reconnect)
            .reconnect_interval(Duration::from_millis(reconnect_interval_ms))
            .retry_initial(retry_initial)
            .task_interval(Duration::from_millis(task_interval_ms))
            .default_request_timeout(Duration::from_millis(default_timeout_ms))
            .max_pending(max_pending)
            .receivers(receivers);
        if let Some(session) = session {
            builder = builder.session(session);
        }
        if let Some(tries) = max_reconnects {
            builder = builder.max_reconnects(tries);
        }
        if let Some(key) = secure_key {
            builder = builder.secure_key(key);
        }
        Self::build(py, builder)
    }

    /// Begins to connect.
    fn start(&self, py: Python<'_>) -> PyResult<()> {
        self.link.check(py)?;
        self.link.raw.start();
        Ok(())
    }

    /// The descriptor that is readable while `drain` has something to give.
    fn fileno(&self) -> i32 {
        self.link.queue.fd()
    }

    /// Takes a request, and gives its token; its outcome comes with `drain`. `None` if too much is unsent: then ask for
    /// `room` first. It leaves with the next `flush`.
    #[pyo3(signature = (future, action, payload, flags=0, max_attempts=0, ttl_ms=0, timeout_ms=0, options=None,
        headers=None, on_progress=None))]
    #[expect(clippy::too_many_arguments, reason = "the typed front has names and defaults for them")]
    fn request(
        &self,
        py: Python<'_>,
        future: Py<PyAny>,
        action: &str,
        payload: &[u8],
        flags: u8,
        max_attempts: u8,
        ttl_ms: u64,
        timeout_ms: u64,
        options: Option<&[u8]>,
        headers: Option<Vec<(String, String)>>,
        on_progress: Option<Py<PyAny>>,
    ) -> PyResult<Option<u64>> {
        self.link.check(py)?;
        if !self.link.has_room() {
            return Ok(None);
        }
        let flags = RequestFlags(flags);
        let spec = RequestSpec {
            flags,
            max_attempts,
            ttl: Duration::from_millis(ttl_ms),
            timeout: Duration::from_millis(timeout_ms),
            content: content::content(py, action.as_bytes(), payload, options, headers)?,
        };
        let kind = match flags {
            flags if flags.has(RequestFlags::SEND) => Kind::Accepted,
            flags if flags.has(RequestFlags::BROADCAST) => Kind::Legs,
            _ => Kind::Reply,
        };
        let waiting = Waiting { future, on_progress, key: None, legs: Vec::new(), kind };
        Ok(Some(self.link.request(spec, waiting)))
    }

    /// Lets what was gathered leave, requests and answers.
    fn flush(&self) {
        self.link.flush();
    }

    /// Gives a request up: nothing comes for it any more, and broker and handler are told.
    fn cancel(&self, py: Python<'_>, token: u64) -> PyResult<()> {
        self.link.check(py)?;
        self.link.cancel(token);
        Ok(())
    }

    /// Asks to be told, by the news `room`, when there is room to send again.
    fn room(&self, py: Python<'_>) -> PyResult<()> {
        self.link.check(py)?;
        let (client, queue) = (self.link.raw.clone(), self.link.queue.clone());
        self.runtime.spawn(async move {
            client.room().await;
            queue.push(|arrivals| arrivals.news.push(News::Room));
        });
        Ok(())
    }

    /// Offers to handle an action; gives the registration's number. The broker's word on it comes as news.
    fn register(&self, py: Python<'_>, action: &str, credit: u32) -> PyResult<u32> {
        self.link.check(py)?;
        let id = self.link.raw.register(action, credit).map_err(|error| failure::raised(py, &error))?;
        Ok(id.0)
    }

    /// Handles an action no more. The news `deregistered` says when nothing more can come.
    fn deregister(&self, py: Python<'_>, registration: u32) -> PyResult<()> {
        self.link.check(py)?;
        self.link.raw.deregister(RegistrationId(registration));
        Ok(())
    }

    /// Changes how many requests a registration holds at once.
    fn set_credit(&self, py: Python<'_>, registration: u32, credit: u32) -> PyResult<()> {
        self.link.check(py)?;
        self.link.raw.set_credit(RegistrationId(registration), credit);
        Ok(())
    }

    /// Asks to be told the receivers from now on.
    fn watch_receivers(&self, py: Python<'_>) -> PyResult<()> {
        self.link.check(py)?;
        self.link.raw.watch_receivers(true);
        Ok(())
    }

    /// Says that an unclaimed reply is in safe hands.
    fn claim(&self, py: Python<'_>, key: &UnclaimedKey) -> PyResult<()> {
        self.link.check(py)?;
        self.link.raw.claim(key.0);
        Ok(())
    }

    /// Takes nothing new, finishes what is open, then closes; at the latest after so many milliseconds.
    fn drain_until(&self, py: Python<'_>, deadline_ms: u64) -> PyResult<()> {
        self.link.check(py)?;
        self.link.flush();
        self.link.raw.drain(Duration::from_millis(deadline_ms));
        Ok(())
    }

    /// Closes at once. The news `ended` says when it has.
    fn close(&self) {
        if !self.link.is_forked() {
            self.link.flush();
            self.link.raw.close();
        }
    }

    /// This process is a child of the client's: from now on nothing of it is touched.
    fn forked(&self) {
        self.link.forked();
    }

    /// Whether this process is a child of the client's.
    #[getter]
    fn is_forked(&self) -> bool {
        self.link.is_forked()
    }

    /// Requests without an outcome.
    #[getter]
    fn open_requests(&self) -> usize {
        self.link.waiting().len()
    }

    /// Deliveries without an answer.
    #[getter]
    fn held_deliveries(&self) -> usize {
        self.link.held().len()
    }

    /// Takes all that came: outcomes (a future, its value, a future, …), failures (a future, its exception, …),
    /// deliveries, and news (tuples that begin with their kind).
    fn drain<'py>(&self, py: Python<'py>) -> PyResult<Drained<'py>> {
        let outcomes = PyList::empty(py);
        let failures = PyList::empty(py);
        let deliveries = PyList::empty(py);
        let told = PyList::empty(py);
        if self.link.is_forked() {
            return Ok((outcomes, failures, deliveries, told));
        }
        let mut arrivals = mem::take(&mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner));
        self.link.queue.take(&self.link.raw, &mut arrivals);
        // First: behind its outcome nobody is left to hear what a handler said.
        for (token, content) in arrivals.progress.drain(..) {
            if let Some(progress) = news::progress(py, token, &content, &self.link)? {
                told.append(progress)?;
            }
        }
        for completion in arrivals.completions.drain(..) {
            let Some((waiting, last)) = self.ended(completion) else { continue };
            let Waiting { future, kind, legs, .. } = waiting;
            let value = match (kind, last.result) {
                (Kind::Legs, result) => {
                    let last = Completion { result, ..last };
                    self.legs(py, legs, last)
                }
                (Kind::Accepted, Ok(_)) => Ok(py.None()),
                (Kind::Reply, Ok(content)) => {
                    Ok(Py::new(py, Reply::received(py, &content, last.info))?.into_any())
                }
                (_, Err(error)) => Err(error),
            };
            match value {
                Ok(value) => {
                    outcomes.append(future)?;
                    outcomes.append(value)?;
                }
                Err(error) => {
                    failures.append(future)?;
                    failures.append(failure::exception(py, &error)?)?;
                }
            }
        }
        let came = Instant::now();
        for delivery in arrivals.deliveries.drain(..) {
            deliveries.append(Delivery::hold(py, delivery, &self.link, came)?)?;
        }
        for news in arrivals.news.drain(..) {
            if let Some(news) = news::tuple(py, news, &self.link)? {
                told.append(news)?;
            }
        }
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = arrivals;
        Ok((outcomes, failures, deliveries, told))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(waiting) = self.link.try_waiting() {
            for waiting in waiting.values() {
                visit.call(&waiting.future)?;
                visit.call(&waiting.on_progress)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        let waiting = self.link.waiting().take_all();
        drop(waiting);
    }
}

impl Connection {
    fn build(py: Python<'_>, builder: ClientBuilder) -> PyResult<Self> {
        let queue = Arc::new(Queue::new().map_err(|error| PyOSError::new_err(error.to_string()))?);
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        // Without the interpreter: to make a key of a passphrase takes its time.
        let sink = queue.clone();
        let raw = py
            .detach(|| runtime.block_on(builder.build_raw(sink)))
            .map_err(|error| failure::raised(py, &error))?;
        let handle = runtime.handle().clone();
        let link = Arc::new(Link::new(raw.clone(), queue.clone()));
        thread::Builder::new().name("ringpost".to_owned()).spawn(move || run(&runtime, &raw, &queue))?;
        Ok(Self { link, runtime: handle, spare: Mutex::default() })
    }

    /// The request that ends with this completion, if Python still waits for it and nothing more comes.
    fn ended(&self, completion: Completion) -> Option<(Waiting, Completion)> {
        let mut all = self.link.waiting();
        if completion.last {
            return all.remove(completion.token).map(|waiting| (waiting, completion));
        }
        if let Some(waiting) = all.of(completion.token) {
            waiting.legs.push(completion);
        }
        None
    }

    /// Every leg of a broadcast, in the broker's order, as a list of replies and exceptions.
    fn legs(
        &self,
        py: Python<'_>,
        before: Vec<Completion>,
        last: Completion,
    ) -> Result<Py<PyAny>, ringpost::Error> {
        let mut legs = before;
        // No leg ended at the broker: it is the broadcast itself that failed.
        if last.leg.is_none() && legs.iter().all(|leg| leg.leg.is_none()) {
            let nameless = "the server replied to a broadcast without naming a leg";
            return Err(last
                .result
                .err()
                .unwrap_or_else(|| ringpost::Error::new(ErrorKind::Malformed, nameless)));
        }
        legs.push(last);
        legs.sort_by_key(|leg| leg.leg.map_or(u32::MAX, |leg| leg.index));
        let list =
            legs.into_iter().map(|leg| news::result(py, leg.result, leg.info)).collect::<PyResult<Vec<_>>>();
        list.and_then(|list| Ok(PyList::new(py, list)?.into_any().unbind()))
            .map_err(|error| ringpost::Error::new(ErrorKind::Malformed, error.to_string()))
    }
}

/// An abandoned client ends at once.
impl Drop for Connection {
    fn drop(&mut self) {
        if self.link.is_forked() {
            // What is below it has locks that may never come free here: it is never dropped.
            mem::forget(self.link.clone());
            return;
        }
        self.link.raw.close();
        // Held deliveries keep the link, which keeps them.
        let held = self.link.held().take_all();
        drop(held);
    }
}

/// The client's thread.
fn run(runtime: &Runtime, raw: &raw::Client, queue: &Queue) {
    runtime.block_on(raw.ended());
    queue.push(|arrivals| arrivals.news.push(News::Ended));
}

/// IPv6 addresses go into brackets; anything that has a port or brackets already is refused by the builder.
fn format_address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
