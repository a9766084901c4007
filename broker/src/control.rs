//! The server's own actions: `$sys.…`. They are answered at once, by the core itself.

use ringpost_protocol::{
    Code, Content, json,
    message::{Request as Asked, RequestFlags},
};

use crate::{Broker, ConnId, Speaks, slab::Key, state::Session};

const KNOWN: &str = "`$sys.stats` and `$sys.receivers`";

impl Broker {
    pub(crate) fn answer_control(
        &mut self,
        conn: ConnId,
        session: Key<Session>,
        speaks: Speaks,
        asked: &Asked,
    ) {
        let (code, content) = match asked.content.name() {
            b"$sys.stats" => (None, Content::from_payload(self.stats())),
            b"$sys.receivers" => (None, Content::from_payload(self.receivers_list())),
            name => {
                let name = String::from_utf8_lossy(name);
                let message = format!("`{name}` is not one of the server's own actions: there are {KNOWN}");
                (Some(Code::NoHandler), Content::from_payload(message))
            }
        };
        if code.is_none() && asked.flags.has(RequestFlags::SEND) {
            self.accept_send(session, speaks, asked.number);
        } else {
            self.reply_at_once(session, asked, code, content);
        }
        self.close_if_finished(conn);
    }

    /// JSON text: who this is, what there is now, and what has happened since the start.
    fn stats(&self) -> Vec<u8> {
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
            ("actions", self.actions.len() as u64),
            ("handlers", self.handlers.len() as u64),
            ("handlersStuck", self.handlers.iter().filter(|(_, handler)| handler.stuck).count() as u64),
            ("openRequests", self.requests.len() as u64),
            ("openDeliveries", self.deliveries.len() as u64),
            ("queuedRequests", queued as u64),
            ("queuedBytes", queued_bytes as u64),
        ];
        let mut text = b"{\"serverId\":".to_vec();
        json::write_string(self.config.server_id.as_bytes(), &mut text);
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
