//! A thread's ring and the runtime on top of it.

use std::{
    future::Future,
    io,
    panic::{self, AssertUnwindSafe},
    time::{Duration, Instant},
};

use crate::operation;

/// How a ring is set up.
#[derive(Debug, Clone)]
pub struct RingConfig {
    /// Submissions that fit before the kernel must be called; a power of two. Completions get four times as many.
    pub entries: u32,
    /// Let completions wait until this thread enters the kernel anyway, instead of interrupting it (Linux 5.19).
    pub coop_taskrun: bool,
    /// Promise that only this thread submits (Linux 6.0).
    pub single_issuer: bool,
    /// How long the thread looks for the next completion again and again before it sleeps. That saves what waking it up
    /// takes. Where looking brings nothing, or keeps others from the processor, it is done more and more rarely. Zero: the
    /// thread sleeps at once.
    pub busy_poll: Duration,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self { entries: 4096, coop_taskrun: true, single_issuer: true, busy_poll: Duration::ZERO }
    }
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The kernel's administrator forbids it.
    #[error(
        "io_uring is forbidden on this machine (kernel.io_uring_disabled = {sysctl}): allow it with `sysctl -w \
         kernel.io_uring_disabled=0`{}",
        if *.sysctl == 1 { ", or run as a member of the group in kernel.io_uring_group" } else { "" }
    )]
    Disabled {
        /// The value of the sysctl.
        sysctl: u8,
    },
    /// Something between this process and the kernel forbids it.
    #[error(
        "io_uring is forbidden to this process, most likely by a seccomp filter: containers need a profile that allows \
         io_uring_setup, io_uring_enter and io_uring_register (with Docker: --security-opt seccomp=PROFILE)"
    )]
    Filtered,
    /// The kernel has no io_uring, or one that is too old.
    #[error("this kernel ({kernel}) offers no io_uring that can be used: Linux 5.11 or newer is needed")]
    TooOld {
        /// Its release.
        kernel: String,
    },
    /// Locked memory is limited too tightly.
    #[error(
        "no memory for a ring of {entries} entries: raise the limit of locked memory (`ulimit -l`, LimitMEMLOCK= in a \
         systemd unit) or free memory"
    )]
    Memory {
        /// The size that was tried.
        entries: u32,
    },
    /// No descriptor is left.
    #[error(
        "no descriptor left for the ring: raise the limit of open files (`ulimit -n`, LimitNOFILE= in a systemd unit)"
    )]
    Descriptors,
    /// Something else.
    #[error("the ring could not be set up: {0}; `ringpost doctor` shows what this machine allows")]
    Other(#[source] io::Error),
}

/// Runs a future on a ring of this thread's own, together with everything that it spawns.
///
/// Newer features that the kernel does not know are left out, with a line in the log. When the future is done, whatever
/// operations are still in flight are waited for, up to a second: shut sockets down first. What is in flight even then
/// is leaked together with the ring, rather than freed under the kernel's hands. The same holds when the future panics.
///
/// # Errors
/// [`RingError`]: there is no ring, and the future was not run.
pub fn run<T>(config: &RingConfig, future: impl Future<Output = T>) -> Result<T, RingError> {
    let start = |builder: &io_uring::Builder| {
        let mut runtime = tokio_uring::builder();
        tokio_uring::Runtime::new(runtime.entries(config.entries).uring_builder(builder))
    };
    let runtime = with_best_flags(config, start)?.0;
    // Nor may an unwinding panic drop the runtime while something is in flight.
    let busy_poll = config.busy_poll;
    let output = panic::catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let polling = (!busy_poll.is_zero()).then(|| tokio_uring::spawn(stay_awake(busy_poll)));
            let output = future.await;
            if let Some(polling) = polling {
                polling.abort();
            }
            output
        })
    }));
    if runtime.block_on(all_completed(Duration::from_secs(1))) {
        drop(runtime);
    } else {
        tracing::error!(
            operations = operation::in_flight(),
            "operations did not complete: their ring is leaked"
        );
        std::mem::forget(runtime);
    }
    output.map_or_else(|payload| panic::resume_unwind(payload), Ok)
}

/// Runs a task on this thread, beside the one that calls.
///
/// # Panics
/// Outside of [`run`].
pub fn spawn<T: 'static>(task: impl Future<Output = T> + 'static) -> Task<T> {
    Task(tokio_uring::spawn(task))
}

/// Gives way in the middle of long work: all who can run do so first, and all that was submitted is under way.
///
/// A task that yields by waking itself would keep the thread from parking, and with it all submissions back.
///
/// # Panics
/// Outside of [`run`].
pub async fn give_way() {
    operation::visit().await;
}

/// A task that runs whether this is kept or not.
#[derive(Debug)]
pub struct Task<T>(tokio::task::JoinHandle<T>);

impl<T> Task<T> {
    /// Waits for its end. `None` if it panicked.
    pub async fn join(self) -> Option<T> {
        self.0.await.ok()
    }
}

/// Keeps the thread from sleeping for a while after a completion, where that was of use lately.
async fn stay_awake(window: Duration) {
    let (mut patience, mut seen) = (Patience::default(), operation::completed());
    loop {
        operation::completed_since(seen).await;
        seen = operation::completed();
        if !patience.is_worth_a_try() {
            continue;
        }
        let (before, began) = (seen, Instant::now());
        let (mut since, mut now, mut contended) = (began, began, false);
        while now - since < window && !contended {
            operation::visit().await;
            let visited = Instant::now();
            if operation::completed() != seen {
                (seen, since) = (operation::completed(), visited);
            }
            // Whoever else wants this processor has better use for it; and who was kept waiting by them sleeps from now on:
            // then the system lets it in as soon as there is work.
            rustix::thread::sched_yield();
            now = Instant::now();
            contended = now - visited > CONTENDED;
        }
        patience.learn(seen != before && !contended);
    }
}

/// Giving way takes a microsecond if nobody else is there.
const CONTENDED: Duration = Duration::from_micros(50);

/// Whether staying awake pays: after each time that brought nothing, twice as many completions pass before the next try.
#[derive(Debug, Default)]
struct Patience {
    /// Tries in vain, one after the other.
    in_vain: u32,
    /// Completions to let pass.
    skip: u32,
}

impl Patience {
    /// No more than so many times in vain make it wait longer: load that gets denser is noticed after 2^8 completions.
    const MOST_IN_VAIN: u32 = 8;

    fn is_worth_a_try(&mut self) -> bool {
        let worth = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        worth
    }

    fn learn(&mut self, found: bool) {
        self.in_vain = if found { 0 } else { (self.in_vain + 1).min(Self::MOST_IN_VAIN) };
        self.skip = (1 << self.in_vain) - 1;
    }
}

/// Lets the other tasks run until nothing is in flight. Whether that came to pass.
async fn all_completed(within: Duration) -> bool {
    let deadline = tokio::time::Instant::now() + within;
    while operation::in_flight() > 0 {
        if tokio::time::Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    true
}

/// Flags of a ring that was set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingFlags {
    /// See [`RingConfig::coop_taskrun`].
    pub coop_taskrun: bool,
    /// See [`RingConfig::single_issuer`].
    pub single_issuer: bool,
}

/// Tries to set up a ring, with fewer of the newer flags as long as the kernel says that it does not know them.
pub(crate) fn with_best_flags<T>(
    config: &RingConfig,
    start: impl Fn(&io_uring::Builder) -> io::Result<T>,
) -> Result<(T, RingFlags), RingError> {
    let wanted = RingFlags { coop_taskrun: config.coop_taskrun, single_issuer: config.single_issuer };
    let mut flags = wanted;
    loop {
        let mut builder = io_uring::IoUring::builder();
        builder.setup_cqsize(config.entries.saturating_mul(4));
        if flags.coop_taskrun {
            builder.setup_coop_taskrun();
        }
        if flags.single_issuer {
            builder.setup_single_issuer();
        }
        match start(&builder) {
            Ok(ring) => {
                if flags != wanted {
                    tracing::warn!(
                        ?flags,
                        "this kernel knows fewer ring flags than wanted: expect some more CPU time"
                    );
                }
                return Ok((ring, flags));
            }
            Err(error) if is(&error, rustix::io::Errno::INVAL) && flags.single_issuer => {
                flags.single_issuer = false
            }
            Err(error) if is(&error, rustix::io::Errno::INVAL) && flags.coop_taskrun => {
                flags.coop_taskrun = false
            }
            Err(error) => return Err(explain(error, config.entries)),
        }
    }
}

fn explain(error: io::Error, entries: u32) -> RingError {
    use rustix::io::Errno;
    match Errno::from_io_error(&error) {
        Some(Errno::PERM | Errno::ACCESS) => match disabled_sysctl() {
            Some(sysctl @ 1..) => RingError::Disabled { sysctl },
            _ => RingError::Filtered,
        },
        Some(Errno::NOSYS | Errno::INVAL) => RingError::TooOld { kernel: kernel_release() },
        Some(Errno::NOMEM) => RingError::Memory { entries },
        Some(Errno::MFILE | Errno::NFILE) => RingError::Descriptors,
        _ => RingError::Other(error),
    }
}

/// `kernel.io_uring_disabled`: 0 for everybody, 1 only for a group, 2 for nobody. `None` before Linux 6.6.
pub(crate) fn disabled_sysctl() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

pub(crate) fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn is(error: &io::Error, errno: rustix::io::Errno) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(errno)
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        io::Write,
        net::{TcpListener, TcpStream},
        rc::Rc,
    };

    use bytes::BytesMut;

    use rustix::io::Errno;

    use super::*;
    use crate::stream::Stream;

    /// A future that panics over a pending read does not free the read's buffer before the kernel is done with it.
    #[test]
    fn a_panic_waits_for_what_is_in_flight() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Stream::from_std(listener.accept().unwrap().0);
        let arrived = Rc::new(Cell::new(false));
        let seen = arrived.clone();
        let ended = panic::catch_unwind(AssertUnwindSafe(|| {
            run(&RingConfig { entries: 8, ..RingConfig::default() }, async move {
                spawn(async move {
                    let (read, buffer) = stream.read(BytesMut::with_capacity(16)).await;
                    seen.set(read.is_ok() && buffer[..] == *b"late");
                });
                // It is in the kernel's hands when this thread has slept once.
                tokio::time::sleep(Duration::from_millis(1)).await;
                client.write_all(b"late").unwrap();
                panic!("as the test wants it");
            })
        }));
        assert!(ended.is_err() && arrived.get());
        assert_eq!(operation::in_flight(), 0);
    }

    /// Looking in vain is given up soon, and taken up again when something is found.
    #[test]
    fn patience_wears_out() {
        let mut patience = Patience::default();
        let mut tries = |found, completions| {
            let mut one = || patience.is_worth_a_try().then(|| patience.learn(found));
            (0..completions).filter_map(|_| one()).count()
        };
        assert_eq!(tries(true, 100), 100);
        assert!((8..=12).contains(&tries(false, 1000)));
        // The next try finds something, and all after it.
        assert!(tries(true, 356) >= 100);
    }

    /// What has completed is waited for once: the thread does not look on for what it has seen.
    #[test]
    fn completions_are_seen_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Stream::from_std(listener.accept().unwrap().0);
        client.write_all(b"x").unwrap();
        run(&RingConfig { entries: 8, ..RingConfig::default() }, async move {
            let before = operation::completed();
            stream.read(BytesMut::with_capacity(1)).await.0.unwrap();
            operation::completed_since(before).await;
            let again = operation::completed_since(operation::completed());
            assert!(tokio::time::timeout(Duration::from_millis(1), again).await.is_err());
        })
        .unwrap();
    }

    /// A thread that looks for completions finds those that come meanwhile and those that come later, and ends when the
    /// future does.
    #[test]
    fn busy_polling_misses_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Stream::from_std(listener.accept().unwrap().0);
        let writer = std::thread::spawn(move || {
            for pause in [0, 0, 10, 0, 2000, 0, 30].map(Duration::from_micros) {
                std::thread::sleep(pause);
                client.write_all(b"x").unwrap();
            }
        });
        let config = RingConfig { entries: 8, busy_poll: Duration::from_micros(50), ..RingConfig::default() };
        run(&config, async move {
            let mut buffer = BytesMut::with_capacity(1);
            for _ in 0..7 {
                let (read, filled) = stream.read(buffer).await;
                assert_eq!(read.unwrap(), 1);
                buffer = filled;
                buffer.clear();
            }
        })
        .unwrap();
        writer.join().unwrap();
        assert_eq!(operation::in_flight(), 0);
    }

    /// Whoever gives way lets others run, also those who wait for the kernel.
    #[test]
    fn giving_way_submits() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Stream::from_std(listener.accept().unwrap().0);
        client.write_all(b"x").unwrap();
        run(&RingConfig { entries: 8, ..RingConfig::default() }, async move {
            let read = Rc::new(Cell::new(false));
            let done = read.clone();
            spawn(async move {
                done.set(stream.read(BytesMut::with_capacity(16)).await.0.is_ok());
            });
            while !read.get() {
                give_way().await;
            }
        })
        .unwrap();
    }

    /// Flags that a kernel refuses are left out one after the other, the newest first.
    #[test]
    fn older_kernels_get_fewer_flags() {
        let tries = RefCell::new(0);
        let start = |_: &io_uring::Builder| {
            *tries.borrow_mut() += 1;
            if *tries.borrow() < 3 { Err(Errno::INVAL.into()) } else { Ok(()) }
        };
        let ((), flags) = with_best_flags(&RingConfig::default(), start).unwrap();
        assert_eq!(flags, RingFlags { coop_taskrun: false, single_issuer: false });
    }

    /// Each refusal of the kernel's becomes an error that says what to do.
    #[test]
    fn errors_name_the_remedy() {
        let refused = |errno: Errno| {
            with_best_flags::<()>(&RingConfig::default(), |_| Err(errno.into())).unwrap_err().to_string()
        };
        assert!(refused(Errno::PERM).contains("seccomp"));
        assert!(refused(Errno::NOSYS).contains("Linux 5.11"));
        assert!(refused(Errno::INVAL).contains(&kernel_release()));
        assert!(refused(Errno::NOMEM).contains("ulimit -l"));
        assert!(refused(Errno::MFILE).contains("ulimit -n"));
        assert!(
            RingError::Disabled { sysctl: 2 }.to_string().contains("sysctl -w kernel.io_uring_disabled=0")
        );
        assert!(RingError::Disabled { sysctl: 1 }.to_string().contains("kernel.io_uring_group"));
    }
}
