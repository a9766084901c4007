//! What is measured, and what must be reached: the rows of the table of figures that need no more than a server.

use ringpost_cli::load::{Dialect, Options, Outcome};

/// A row: a load, and the figure by which it is judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// Its number in the table.
    pub number: u8,
    /// The load, in words.
    pub work: &'static str,
    /// Who puts the load on.
    pub clients: Clients,
    requesters: u32,
    in_flight: u32,
    handlers: u32,
    size: usize,
    /// The figure that counts.
    pub figure: Figure,
    /// What must be reached.
    pub must: f64,
    /// What is aimed at.
    pub aim: f64,
}

/// The clients that a row is played with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// The load generator's raw sockets. Ringpost is spoken to in this dialect, NATS in its own protocol.
    Raw(Dialect),
    /// Each side's SDK for Rust.
    Sdk,
}

/// A figure of an outcome, and how its goal is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// Requests per second, at least so many times those of the peer.
    Rate,
    /// The server's CPU for each request, at most so many microseconds.
    ServerCpu,
    /// The median latency, at most so many times that of the peer.
    Median,
}

/// All rows, by number; one with several loads is there several times.
pub const ROWS: [Row; 7] = [
    Row {
        number: 1,
        work: "16 requesters × 64 in flight, 4 handlers, 128 B",
        clients: Clients::Raw(Dialect::Binary),
        requesters: 16,
        in_flight: 64,
        handlers: 4,
        size: 128,
        figure: Figure::Rate,
        must: 2.5,
        aim: 3.5,
    },
    Row {
        number: 2,
        work: "64 requesters × 1 in flight, 8 handlers, 128 B",
        clients: Clients::Raw(Dialect::Binary),
        requesters: 64,
        in_flight: 1,
        handlers: 8,
        size: 128,
        figure: Figure::ServerCpu,
        must: 13.0,
        aim: 11.0,
    },
    Row {
        number: 3,
        work: "1 requester × 1 in flight (serial), 1 handler, 128 B",
        clients: Clients::Raw(Dialect::Binary),
        requesters: 1,
        in_flight: 1,
        handlers: 1,
        size: 128,
        figure: Figure::Median,
        must: 1.0,
        aim: 0.8,
    },
    Row {
        number: 4,
        work: "16 requesters × 16 in flight, 4 handlers, 1 KiB",
        clients: Clients::Raw(Dialect::Binary),
        requesters: 16,
        in_flight: 16,
        handlers: 4,
        size: 1024,
        figure: Figure::Rate,
        must: 2.0,
        aim: 2.5,
    },
    Row {
        number: 5,
        work: "JSON lines, 16 requesters × 64 in flight, 4 handlers, 128 B",
        clients: Clients::Raw(Dialect::Json),
        requesters: 16,
        in_flight: 64,
        handlers: 4,
        size: 128,
        figure: Figure::Rate,
        must: 0.8,
        aim: 1.2,
    },
    Row {
        number: 7,
        work: "Rust SDK ↔ Rust SDK, 64 in flight, 128 B (beside async-nats)",
        clients: Clients::Sdk,
        requesters: 1,
        in_flight: 64,
        handlers: 1,
        size: 128,
        figure: Figure::Rate,
        must: 2.0,
        aim: 3.0,
    },
    Row {
        number: 7,
        work: "Rust SDK ↔ Rust SDK, 512 in flight, 128 B (beside async-nats)",
        clients: Clients::Sdk,
        requesters: 1,
        in_flight: 512,
        handlers: 1,
        size: 128,
        figure: Figure::Rate,
        must: 2.0,
        aim: 3.0,
    },
];

impl Row {
    /// The row's load on top of the options for address, process, time and pinning.
    pub fn options(&self, base: Options) -> Options {
        let dialect = match self.clients {
            Clients::Raw(dialect) => dialect,
            Clients::Sdk => Dialect::Binary,
        };
        Options {
            dialect,
            requesters: self.requesters,
            in_flight: self.in_flight,
            handlers: self.handlers,
            size: self.size,
            ..base
        }
    }
}

impl Figure {
    /// The figure in an outcome. `None`: it was not measured.
    pub fn of(self, outcome: &Outcome) -> Option<f64> {
        match self {
            Self::Rate => Some(outcome.requests_per_second),
            Self::ServerCpu => outcome.server_cpu.map(|share| share.us_per_request),
            Self::Median => Some(outcome.latency.p50_us),
        }
    }

    /// Whether a goal is reached by the figures of both sides. `None`: it needs a peer, and there is none.
    pub fn reaches(self, goal: f64, own: f64, peer: Option<f64>) -> Option<bool> {
        match self {
            Self::Rate => peer.map(|peer| own >= goal * peer),
            Self::ServerCpu => Some(own <= goal),
            Self::Median => peer.map(|peer| own <= goal * peer),
        }
    }

    /// A goal in words.
    pub fn goal(self, goal: f64) -> String {
        match self {
            Self::Rate => format!("≥ {goal}×"),
            Self::ServerCpu => format!("≤ {goal} µs"),
            Self::Median => format!("≤ {goal}×"),
        }
    }

    /// The figure's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rate => "requests/s",
            Self::ServerCpu => "server CPU per request",
            Self::Median => "p50",
        }
    }

    /// A value with its unit.
    pub fn value(self, value: f64) -> String {
        match self {
            Self::Rate => format!("{value:.0}/s"),
            Self::ServerCpu => format!("{value:.2} µs"),
            Self::Median => format!("{value:.0} µs"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rates must be high, times low; ratios need a peer.
    #[test]
    fn goals() {
        assert_eq!(Figure::Rate.reaches(2.5, 250.0, Some(100.0)), Some(true));
        assert_eq!(Figure::Rate.reaches(2.5, 249.0, Some(100.0)), Some(false));
        assert_eq!(Figure::Rate.reaches(2.5, 250.0, None), None);
        assert_eq!(Figure::ServerCpu.reaches(13.0, 12.0, None), Some(true));
        assert_eq!(Figure::Median.reaches(1.0, 101.0, Some(100.0)), Some(false));
    }

    /// Rows are in the order of their numbers.
    #[test]
    fn numbered() {
        assert!(ROWS.is_sorted_by_key(|row| row.number));
    }
}
