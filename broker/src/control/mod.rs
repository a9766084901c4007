//! The server's own actions: `$sys.…`. They are answered at once, by the core itself. The first two are for everybody; what
//! names others, or changes anything, is for keys that may: see `permissions`.
//!
//! | action | data | reply |
//! |---|---|---|
//! | `$sys.stats` | – | what there is now, and what has happened since the start |
//! | `$sys.receivers` | – | the names of the actions that have handlers |
//! | `$sys.actions` | – | each action with its handlers and its queue |
//! | `$sys.connections` | – | each connection with what it has open |
//! | `$sys.peers` | – | each server that this one works with, and what goes there |
//! | `$sys.dead` | see `dead` | sends that were given up; sending them again, forgetting them |
//! | `$sys.queues` | see `queues` | what waits for handlers; looking into it, ending it |

use bytes::Bytes;
use ringpost_protocol::{
    Code, Content,
    limits::MIN_COUNTED_BYTES,
    message::{Request as Asked, RequestFlags},
};

use serde_json::Value;

use crate::{
    Broker, ConnId, Speaks,
    durable::RECOVERING,
    slab::Key,
    state::{Kept, Session},
};

mod dead;
mod lists;
mod peers;
mod queues;
mod stats;

const KNOWN: &str = "`$sys.stats`, `$sys.receivers`, `$sys.actions`, `$sys.connections`, `$sys.peers`, `$sys.queues` and `$sys.dead`";

/// Why a control request could not be done: the code and the message of its reply.
type Refused = (Code, String);

/// The beginning of a request's data; `null` where that is only in the log, for want of room in `--queue-memory`.
fn shown(kept: &Kept, bytes: usize) -> Value {
    if kept.durable.as_deref().is_some_and(|durable| durable.payload.is_absent()) {
        return Value::Null;
    }
    let data = kept.content.payload();
    String::from_utf8_lossy(&data[..data.len().min(bytes)]).into()
}

impl Broker {
    pub(crate) fn answer_control(
        &mut self,
        conn: ConnId,
        session: Key<Session>,
        speaks: Speaks,
        asked: &Asked,
    ) {
        let forbidden = self.forbids_controlling(conn, asked.content.name());
        let answer = match forbidden {
            Some(refused) => {
                self.counters.refused_forbidden += 1;
                Err(refused)
            }
            None => self.control(conn, &asked.content),
        };
        let (code, mut content) = match answer {
            Ok(text) => (None, Content::from_payload(text)),
            Err((code, message)) => (Some(code), Content::from_payload(message)),
        };
        content.count_large(MIN_COUNTED_BYTES, &self.large);
        if code.is_none() && asked.flags.has(RequestFlags::SEND) {
            self.accept_send(session, speaks, asked.number);
        } else {
            self.reply_at_once(session, asked, code, content);
        }
        self.close_if_finished(conn);
    }

    /// What the server says: JSON text.
    fn control(&mut self, conn: ConnId, content: &Content) -> Result<Bytes, Refused> {
        match content.name() {
            // What is in the log is not there yet: nobody is told that there is nothing.
            b"$sys.queues" | b"$sys.dead" if self.recovering => {
                Err((Code::Recovering, RECOVERING.to_owned()))
            }
            b"$sys.stats" => Ok(self.stats().into()),
            b"$sys.receivers" => Ok(self.receivers_for(conn)),
            b"$sys.actions" => Ok(self.list_actions().to_string().into()),
            b"$sys.connections" => Ok(self.list_connections().to_string().into()),
            b"$sys.peers" => Ok(self.list_peers().to_string().into()),
            b"$sys.queues" => self.queues(content.payload()).map(|answer| answer.to_string().into()),
            b"$sys.dead" => self.dead_letters(content.payload()).map(|answer| answer.to_string().into()),
            name => {
                let name = String::from_utf8_lossy(name);
                let message = format!("`{name}` is not one of the server's own actions: there are {KNOWN}");
                Err((Code::NoHandler, message))
            }
        }
    }
}
