//! Faults for tests: files that fail, come short, are full or take their time when a test wants it. Only with the feature `faults`, which
//! is for the tests of this project; without it nothing of this is in the program.
//!
//! A test says which files are its own by their folder, so that tests run beside each other, and so that it reaches
//! files which other threads open:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use ringpost_io::{blocking, faults::{Fault, Faults}, file::Open, file_error::FileOperation};
//!
//! let folder = tempfile::tempdir()?;
//! let faults = Faults::under(folder.path());
//! let no_space = rustix::io::Errno::NOSPC.raw_os_error();
//! faults.inject(Fault::fails(FileOperation::Write, no_space).of(".segment").nth(2).lasting());
//!
//! let file = blocking::File::open(folder.path().join("1.segment"), Open::CreateNew)?;
//! file.write_all_at(b"the first", 0)?;
//! assert!(file.write_all_at(b"the second", 9).unwrap_err().is_full());
//! faults.clear();
//! file.write_all_at(b"the second", 9)?;
//! # Ok(())
//! # }
//! ```
//!
//! **What is counted** are calls of the kernel: a transfer that comes short, or is interrupted, is followed by another
//! one, which counts too. So a torn write is [`Fault::short`] followed by [`Fault::fails`].

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{clock, file_error::FileOperation};

/// How often what is held asks whether it may go on.
const HELD_PAUSE: Duration = Duration::from_millis(1);

/// How many [`Faults`] there are: what has none asks no lock.
static ALIVE: AtomicUsize = AtomicUsize::new(0);
static NEXT: AtomicU64 = AtomicU64::new(0);
static SCOPES: Mutex<Vec<Scope>> = Mutex::new(Vec::new());

/// What goes wrong with the files in one folder. It ends when this is dropped.
#[derive(Debug)]
pub struct Faults {
    id: u64,
}

/// One thing that goes wrong, once or lasting.
#[derive(Debug, Clone)]
pub struct Fault {
    operation: FileOperation,
    name_end: String,
    effect: Effect,
    /// How many calls are still let through.
    spared: u64,
    /// How many calls it is still for.
    left: u64,
    /// Whether what is held may go on.
    over: Arc<AtomicBool>,
}

#[derive(Debug, Clone, Copy)]
enum Effect {
    Fails(i32),
    Short(usize),
    Held,
}

#[derive(Debug)]
struct Scope {
    id: u64,
    folder: PathBuf,
    faults: Vec<Fault>,
    fired: u64,
    calls: Option<Vec<(FileOperation, String)>>,
}

impl Faults {
    /// For all files below a folder, and the folder itself. The path must begin like the one that they are opened by.
    pub fn under(folder: impl Into<PathBuf>) -> Self {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        scopes().push(Scope { id, folder: folder.into(), faults: Vec::new(), fired: 0, calls: None });
        ALIVE.fetch_add(1, Ordering::Relaxed);
        Self { id }
    }

    /// Adds a fault. If several are due at the same call, the one that was added first takes it, and the others do not
    /// count it.
    pub fn inject(&self, fault: Fault) {
        self.with(|scope| scope.faults.push(fault));
    }

    /// Everything works again, and what is held goes on.
    pub fn clear(&self) {
        self.with(Scope::clear);
    }

    /// How many calls something went wrong with.
    pub fn fired(&self) -> u64 {
        self.with(|scope| scope.fired)
    }

    /// From now on all calls are written down, also those that fail by a fault.
    pub fn record(&self) {
        self.with(|scope| scope.calls = Some(Vec::new()));
    }

    /// The calls since [`Faults::record`], in order, each with the file's path within the folder; `.` is the folder.
    pub fn calls(&self) -> Vec<(FileOperation, String)> {
        self.with(|scope| scope.calls.clone().unwrap_or_default())
    }

    fn with<T>(&self, action: impl FnOnce(&mut Scope) -> T) -> T {
        let mut scopes = scopes();
        let scope = scopes.iter_mut().find(|scope| scope.id == self.id);
        #[allow(clippy::expect_used, reason = "it is there until this is dropped")]
        action(scope.expect("the faults of a folder"))
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.clear();
        scopes().retain(|scope| scope.id != self.id);
        ALIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Fault {
    /// The operation is not done, and fails with this errno. Of a transfer EINTR (4) is no failure: it is tried again.
    pub fn fails(operation: FileOperation, errno: i32) -> Self {
        Self::new(operation, Effect::Fails(errno))
    }

    /// A read or write transfers at most so many bytes. 0 stands for the end of the file, or a disk that takes nothing.
    pub fn short(operation: FileOperation, bytes: usize) -> Self {
        Self::new(operation, Effect::Short(bytes))
    }

    /// The operation does not begin before [`Faults::clear`], or the end of the [`Faults`]. What else happens meanwhile
    /// happened without it.
    pub fn held(operation: FileOperation) -> Self {
        Self::new(operation, Effect::Held)
    }

    fn new(operation: FileOperation, effect: Effect) -> Self {
        Self { operation, name_end: String::new(), effect, spared: 0, left: 1, over: Arc::default() }
    }

    /// Only for files whose names end so: `manifest`, or `.segment`.
    pub fn of(self, name_end: &str) -> Self {
        Self { name_end: name_end.into(), ..self }
    }

    /// At the n-th call that it is for, counted from 1 and from the moment it was added.
    pub fn nth(self, n: u64) -> Self {
        Self { spared: n.saturating_sub(1), ..self }
    }

    /// Then and at all later calls, until it is cleared.
    pub fn lasting(self) -> Self {
        Self { left: u64::MAX, ..self }
    }

    fn is_for(&self, path: &Path, operation: FileOperation) -> bool {
        self.operation == operation
            && self.left > 0
            && path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(&self.name_end))
    }
}

impl Scope {
    fn clear(&mut self) {
        for fault in self.faults.drain(..) {
            fault.over.store(true, Ordering::Release);
        }
    }
}

/// How many of `length` bytes an operation may transfer, or why it is not done at all.
pub(crate) fn admit(path: &Path, operation: FileOperation, length: usize) -> io::Result<usize> {
    match decide(path, operation, length) {
        Verdict::Now(result) => result,
        Verdict::After(over) => {
            while !over.load(Ordering::Acquire) {
                thread::sleep(HELD_PAUSE);
            }
            Ok(length)
        }
    }
}

/// The same for an operation on a ring, whose thread goes on while it is held.
pub(crate) async fn admit_on_ring(path: &Path, operation: FileOperation, length: usize) -> io::Result<usize> {
    match decide(path, operation, length) {
        Verdict::Now(result) => result,
        Verdict::After(over) => {
            while !over.load(Ordering::Acquire) {
                clock::sleep(HELD_PAUSE).await;
            }
            Ok(length)
        }
    }
}

enum Verdict {
    Now(io::Result<usize>),
    After(Arc<AtomicBool>),
}

fn decide(path: &Path, operation: FileOperation, length: usize) -> Verdict {
    if ALIVE.load(Ordering::Relaxed) == 0 {
        return Verdict::Now(Ok(length));
    }
    let mut scopes = scopes();
    for scope in scopes.iter_mut() {
        let Ok(name) = path.strip_prefix(&scope.folder) else { continue };
        if let Some(calls) = &mut scope.calls {
            let name = name.to_string_lossy();
            calls.push((operation, if name.is_empty() { ".".into() } else { name.into_owned() }));
        }
        for fault in &mut scope.faults {
            if !fault.is_for(path, operation) {
                continue;
            }
            if fault.spared > 0 {
                fault.spared -= 1;
                continue;
            }
            fault.left -= 1;
            scope.fired += 1;
            return match fault.effect {
                Effect::Fails(errno) => Verdict::Now(Err(io::Error::from_raw_os_error(errno))),
                Effect::Short(bytes) => Verdict::Now(Ok(bytes.min(length))),
                Effect::Held => Verdict::After(fault.over.clone()),
            };
        }
    }
    Verdict::Now(Ok(length))
}

fn scopes() -> MutexGuard<'static, Vec<Scope>> {
    SCOPES.lock().unwrap_or_else(PoisonError::into_inner)
}
