//! The server's own actions: `$sys.…`. They are answered by the core itself, at once if nothing has to be read from the log for
//! that. The first two are for everybody; what
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

pub(crate) use self::inquiry::Inquiry;
use self::inquiry::Work;

mod dead;
mod inquiry;
mod lists;
mod peers;
mod queues;
mod stats;

const KNOWN: &str = "`$sys.stats`, `$sys.receivers`, `$sys.actions`, `$sys.connections`, `$sys.peers`, `$sys.queues` and `$sys.dead`";

/// Why a control request could not be done: the code and the message of its reply.
type Refused = (Code, String);

/// What becomes of a control request.
enum Answer {
    Now(Bytes),
    Later(Work),
}

impl From<Value> for Answer {
    fn from(answer: Value) -> Self {
        Self::Now(answer.to_string().into())
    }
}

/// Whether a request's data is only in the log, for want of room in `--queue-memory`.
fn is_stored(kept: &Kept) -> bool {
    kept.durable.as_deref().is_some_and(|durable| durable.payload.is_absent())
}

/// The beginning of a request's data; `null` where that is not in memory.
fn shown(kept: &Kept, bytes: usize) -> Value {
    if is_stored(kept) {
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
            Ok(Answer::Now(text)) => (None, Content::from_payload(text)),
            Ok(Answer::Later(work)) => return self.inquire(conn, session, speaks, asked, work),
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
    fn control(&mut self, conn: ConnId, content: &Content) -> Result<Answer, Refused> {
        match content.name() {
            // What is in the log is not there yet: nobody is told that there is nothing.
            b"$sys.queues" | b"$sys.dead" if self.recovering => {
                Err((Code::Recovering, RECOVERING.to_owned()))
            }
            b"$sys.stats" => Ok(Answer::Now(self.stats().into())),
            b"$sys.receivers" => Ok(Answer::Now(self.receivers_for(conn))),
            b"$sys.actions" => Ok(self.list_actions().into()),
            b"$sys.connections" => Ok(self.list_connections().into()),
            b"$sys.peers" => Ok(self.list_peers().into()),
            b"$sys.queues" => self.queues(content.payload()),
            b"$sys.dead" => self.dead_letters(content.payload()),
            name => {
                let name = String::from_utf8_lossy(name);
                let message = format!("`{name}` is not one of the server's own actions: there are {KNOWN}");
                Err((Code::NoHandler, message))
            }
        }
    }
}
