//! All figures at one moment, and how they are written.

use std::fmt::Write;

use serde::Serialize;

use crate::{core::Core, health::WHOLE, relay::Way};

/// Everything. The names are those of the JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stats {
    /// Sessions that carry bytes.
    sessions: usize,
    /// Clients that are there, those without an instance too.
    connections: usize,
    max_connections: usize,
    leaving: bool,
    accepted: u64,
    refused: u64,
    paused: u64,
    pipes: usize,
    pipes_idle: usize,
    no_pipe: u64,
    instances: Vec<InstanceStats>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct InstanceStats {
    address: String,
    resolved: Vec<String>,
    state: &'static str,
    weight: u32,
    /// The part of its weight that it has now: less than 1 in slow start.
    weight_part: f64,
    max: Option<usize>,
    active: usize,
    sessions: u64,
    bytes_up: u64,
    bytes_down: u64,
    /// The part of all bytes that was spliced.
    spliced_share: f64,
    spliced_bytes: u64,
    connect_failures: u64,
    early_ends: u64,
    resets: u64,
    cuts: u64,
    probe_failures: u64,
    downs: u64,
}

impl Stats {
    pub(crate) fn take(core: &Core) -> Self {
        let ((sessions, connections), now) = (core.counts(), core.now());
        let (roster, pools) = (core.roster.borrow(), core.pools.borrow());
        let (pipes, pipes_idle) = pools.pipes();
        let instances = roster.members().iter().map(|member| {
            let tally = &member.tally;
            let bytes = [tally.bytes(Way::Up), tally.bytes(Way::Down)];
            let spliced_bytes = tally.spliced_bytes(Way::Up) + tally.spliced_bytes(Way::Down);
            let all: u64 = bytes.iter().sum();
            InstanceStats {
                address: member.instance.address.clone(),
                resolved: member.addresses.iter().map(ToString::to_string).collect(),
                state: member.state(),
                weight: member.instance.weight,
                weight_part: f64::from(member.health.part(roster.rules(), now)) / f64::from(WHOLE),
                max: member.instance.max,
                active: member.active,
                sessions: tally.sessions.get(),
                bytes_up: bytes[0],
                bytes_down: bytes[1],
                spliced_share: if all == 0 { 0.0 } else { spliced_bytes as f64 / all as f64 },
                spliced_bytes,
                connect_failures: tally.connect_failures.get(),
                early_ends: tally.early_ends.get(),
                resets: tally.resets.get(),
                cuts: tally.cuts.get(),
                probe_failures: tally.probe_failures.get(),
                downs: tally.downs.get(),
            }
        });
        Self {
            sessions,
            connections,
            max_connections: core.max_places(),
            leaving: core.is_leaving(),
            accepted: core.accepted.get(),
            refused: core.refused.get(),
            paused: core.paused.get(),
            pipes,
            pipes_idle,
            no_pipe: pools.no_pipe(),
            instances: instances.collect(),
        }
    }

    /// As JSON.
    pub(crate) fn json(&self) -> String {
        // Numbers, strings and lists can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// In Prometheus's text format, version 0.0.4.
    pub(crate) fn prometheus(&self) -> String {
        let mut text = Text::default();
        text.one("sessions", "gauge", "Sessions that carry bytes.", self.sessions as f64);
        text.one("connections", "gauge", "Clients that are there.", self.connections as f64);
        text.one("max_connections", "gauge", "Clients that may be there.", self.max_connections as f64);
        text.one("leaving", "gauge", "Whether it is leaving.", f64::from(self.leaving));
        text.one("accepted_total", "counter", "Clients that came.", self.accepted as f64);
        text.one("refused_total", "counter", "Clients that no instance was had for.", self.refused as f64);
        text.one("accept_paused_total", "counter", "Times that clients had to wait.", self.paused as f64);
        text.one("pipes", "gauge", "Pipes that are open.", self.pipes as f64);
        text.one("no_pipe_total", "counter", "Times that no pipe could be had.", self.no_pipe as f64);
        text.each(self, "up", "gauge", "Whether it is well.", |it| f64::from(it.state == "up"));
        text.each(self, "draining", "gauge", "Whether it drains.", |it| f64::from(it.state == "draining"));
        text.each(self, "weight", "gauge", "Its weight now.", |it| f64::from(it.weight) * it.weight_part);
        text.each(self, "active", "gauge", "Its sessions now.", |it| it.active as f64);
        text.each(self, "sessions_total", "counter", "Its sessions.", |it| it.sessions as f64);
        text.each(self, "up_bytes_total", "counter", "Bytes to it.", |it| it.bytes_up as f64);
        text.each(self, "down_bytes_total", "counter", "Bytes from it.", |it| it.bytes_down as f64);
        text.each(self, "spliced_bytes_total", "counter", "Bytes that were spliced.", |it| {
            it.spliced_bytes as f64
        });
        text.each(self, "connect_failures_total", "counter", "Failed connections.", |it| {
            it.connect_failures as f64
        });
        text.each(self, "early_ends_total", "counter", "Sessions that it ended without a word.", |it| {
            it.early_ends as f64
        });
        text.each(self, "resets_total", "counter", "Sessions that broke.", |it| it.resets as f64);
        text.each(self, "cuts_total", "counter", "Sessions that were cut.", |it| it.cuts as f64);
        text.each(self, "probe_failures_total", "counter", "Failed probes.", |it| it.probe_failures as f64);
        text.each(self, "downs_total", "counter", "Times that it went down.", |it| it.downs as f64);
        text.0
    }
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let name = format!("ringpost_balancer_{name}");
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        let _ = writeln!(self.0, "ringpost_balancer_{name} {value}");
    }

    fn each(
        &mut self,
        stats: &Stats,
        name: &str,
        kind: &str,
        help: &str,
        value: impl Fn(&InstanceStats) -> f64,
    ) {
        let name = format!("instance_{name}");
        self.head(&name, kind, help);
        // One that was taken out and put in again may still have sessions of its first time: the newest counts.
        for it in stats.instances.iter().filter(|it| it.state != "removed") {
            let address = it.address.replace('\\', "\\\\").replace('"', "\\\"");
            let _ = writeln!(self.0, "ringpost_balancer_{name}{{instance=\"{address}\"}} {}", value(it));
        }
    }
}
