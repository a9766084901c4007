//! What a server process costs at a moment: descriptors, threads, memory, and what its core holds. A fault must not leave
//! any of it behind.

use std::time::Instant;

use super::{LOOK_AGAIN, PATIENCE, process::ServerProcess};

/// What the core must have as much of as before.
const COUNTED: [&str; 9] = [
    "connectionsBinary",
    "connectionsJson",
    "sessions",
    "sessionsAway",
    "actions",
    "handlers",
    "openRequests",
    "openDeliveries",
    "queuedRequests",
];

/// A server at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    descriptors: usize,
    threads: usize,
    pub resident_kib: u64,
    counted: [u64; COUNTED.len()],
}

impl Level {
    pub fn of(server: &ServerProcess) -> Self {
        let folder = format!("/proc/{}", server.process.id());
        let entries = |name| std::fs::read_dir(format!("{folder}/{name}")).unwrap().count();
        let stats = server.stats();
        let now = |name: &str| stats["now"][name].as_u64().unwrap_or_else(|| panic!("no {name}: {stats}"));
        Self {
            descriptors: entries("fd"),
            threads: entries("task"),
            resident_kib: resident_kib(server.process.id()),
            counted: COUNTED.map(now),
        }
    }

    /// Of a server on which nothing is open, and nobody's session waits for its client any more.
    pub fn settled(server: &ServerProcess) -> Self {
        super::until("nothing is open", || {
            let stats = server.stats();
            ["openRequests", "openDeliveries", "sessionsAway"].iter().all(|name| stats["now"][*name] == 0)
        });
        Self::of(server)
    }

    /// Waits until the server has come back to this level: nothing more than then, and its memory within `slack_kib`.
    pub fn returns(&self, server: &ServerProcess, slack_kib: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Self::of(server);
            if now.descriptors <= self.descriptors
                && now.threads <= self.threads
                && now.resident_kib <= self.resident_kib + slack_kib
                && now.counted == self.counted
            {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the server does not come back to where it was, but for {slack_kib} KiB:\n before {self:?}\n    now \
                 {now:?}\n counted are {COUNTED:?}\n {}",
                server.stats()
            );
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// A process's memory.
pub fn resident_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line VmRSS");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
