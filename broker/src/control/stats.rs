//! `$sys.stats`: numbers.

use ringpost_protocol::json;

use crate::{Broker, Speaks, broker::Drain};

impl Broker {
    /// JSON text: who this is, what there is now, and what has happened since the start.
    pub(super) fn stats(&self) -> Vec<u8> {
        let connections = |speaks| {
            self.connections.iter().flatten().filter(|connection| connection.speaks == speaks).count() as u64
        };
        let queued: usize = self.actions.iter().map(|(_, action)| action.queue.waiting).sum();
        let queued_bytes: usize = self.actions.iter().map(|(_, action)| action.queue.bytes).sum();
        let now = [
            ("connectionsBinary", connections(Speaks::Binary)),
            ("connectionsJson", connections(Speaks::Json)),
            ("sessions", self.sessions.len() as u64),
            ("sessionsAway", self.detached as u64),
            ("actions", self.action_by_name.len() as u64),
            ("handlers", self.handlers.len() as u64),
            ("links", self.links_up() as u64),
            ("linksWanted", self.links.len() as u64),
            ("farHandlers", self.far_handlers() as u64),
            ("handlersStuck", self.handlers.iter().filter(|(_, handler)| handler.stuck).count() as u64),
            ("openRequests", self.open_requests() as u64),
            ("openDeliveries", self.deliveries.len() as u64),
            ("queuedRequests", queued as u64),
            ("queuedBytes", queued_bytes as u64),
            ("durableHeldBytes", (self.payload_bytes.new + self.payload_bytes.held) as u64),
            ("durableStoredBytes", self.payload_bytes.stored as u64),
            ("deadLetters", self.dead.len() as u64),
            ("idempotencyKeys", self.keys.len() as u64),
            ("keptBytes", self.kept_bytes as u64),
            ("largeBytes", self.large.bytes() as u64),
            ("driverBytes", self.driver_bytes as u64),
            ("halfReceivedBytes", self.half_received_bytes as u64),
            ("memoryBytes", (self.memory_used() + self.half_received_bytes) as u64),
            ("memoryLimitBytes", self.config.memory_bytes as u64),
            ("queueMemoryLimitBytes", self.config.queue_memory_bytes as u64),
        ];
        let mut text = b"{\"serverId\":".to_vec();
        json::write_string(self.config.server_id.as_bytes(), &mut text);
        let state = match self.drain {
            _ if self.recovering => "recovering",
            Drain::No => "serving",
            Drain::Asked | Drain::Done => "draining",
        };
        text.extend_from_slice(format!(",\"state\":\"{state}\"").as_bytes());
        text.extend_from_slice(format!(",\"boot\":\"{:016x}\"", self.config.boot).as_bytes());
        let uptime = self.now.mono.since(self.started.mono).as_millis();
        text.extend_from_slice(format!(",\"uptimeMs\":{uptime},\"now\":").as_bytes());
        write_numbers(now.into_iter(), &mut text);
        text.extend_from_slice(b",\"total\":");
        write_numbers(self.counters.iter(), &mut text);
        text.push(b'}');
        text
    }
}

fn write_numbers(numbers: impl Iterator<Item = (&'static str, u64)>, text: &mut Vec<u8>) {
    for (index, (name, number)) in numbers.enumerate() {
        let before = if index == 0 { '{' } else { ',' };
        text.extend_from_slice(format!("{before}\"{name}\":{number}").as_bytes());
    }
    text.push(b'}');
}
