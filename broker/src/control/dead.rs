//! `$sys.dead`: dead letters, which are durable sends that were given up.
//!
//! | data | reply |
//! |---|---|
//! | `null` or `{"op":"list","count":N}` | the oldest dead letters, at most 1000, with why and the beginning of their data |
//! | `{"op":"show","requestId":R}` | one of them, with all of its data if that is text, read from the log if it is only there |
//! | `{"op":"resend","requestId":R}`, or without an id all | gives it another life; how many, and how many could not be sent because the disk has damaged their data |
//! | `{"op":"drop","requestId":R}`, or without an id all | forgets it; how many |

use ringpost_protocol::Code;
use serde_json::{Value, json};

use super::{
    Answer, Refused,
    inquiry::{Shown, Work},
    is_stored, shown,
};
use crate::{Broker, slab::Key, state::Request};

const COUNT: u64 = 100;
const MAX_COUNT: u64 = 1000;
/// Bytes of data that a list shows of each.
const PEEK_BYTES: usize = 256;
const USAGE: &str =
    "give no data, or an `op`: list (count), show (requestId), resend, drop (requestId, or all)";

impl Broker {
    pub(super) fn dead_letters(&mut self, data: &[u8]) -> Result<Answer, Refused> {
        let malformed = |message: String| (Code::Malformed, message);
        let data = if data.is_empty() { b"null" } else { data };
        let data: Value =
            serde_json::from_slice(data).map_err(|error| malformed(format!("{error}: {USAGE}")))?;
        match (data.is_null(), data["op"].as_str()) {
            (true, _) | (_, Some("list")) => {
                let count = data["count"].as_u64().unwrap_or(COUNT).min(MAX_COUNT) as usize;
                let letters = self.dead.values().take(count);
                let list: Value = letters.filter_map(|key| self.describe_dead(*key, PEEK_BYTES)).collect();
                Ok(list.into())
            }
            (_, Some("show")) => {
                let mut letters = self.dead_called(&data)?;
                letters.truncate(1);
                Ok(Answer::Later(Work::show(letters, Shown::Letter)))
            }
            (_, Some("resend")) => {
                let letters = self.dead_called(&data)?;
                Ok(Answer::Later(Work::resend(letters.into_iter().filter_map(|key| self.count_of(key)))))
            }
            (_, Some("drop")) => {
                let dropped = self.dead_called(&data)?;
                dropped.iter().for_each(|key| self.finish(*key));
                self.hurry_log();
                Ok(json!({ "dropped": dropped.len() }).into())
            }
            _ => Err(malformed(USAGE.to_owned())),
        }
    }

    fn count_of(&self, key: Key<Request>) -> Option<u64> {
        self.requests.get(key).map(|request| request.count)
    }

    /// The one that is meant, or all of them.
    fn dead_called(&self, data: &Value) -> Result<Vec<Key<Request>>, Refused> {
        let all = || self.dead.values().copied();
        let Some(id) = data.get("requestId") else { return Ok(all().collect()) };
        let called = |key: &Key<Request>| {
            self.requests.get(*key).is_some_and(|request| Some(self.id_of(request).as_str()) == id.as_str())
        };
        match all().find(called) {
            Some(key) => Ok(vec![key]),
            None => Err((Code::NoHandler, format!("there is no dead letter {id}: `list` shows their ids"))),
        }
    }

    pub(super) fn describe_dead(&self, key: Key<Request>, bytes: usize) -> Option<Value> {
        let (request, kept) = (self.requests.get(key)?, self.kept_of(key)?);
        let failure = kept.durable.as_deref()?.failure.as_deref()?;
        let damaged = self.is_damaged(key);
        Some(json!({
            "requestId": self.id_of(request),
            "action": String::from_utf8_lossy(kept.content.name()),
            "code": failure.dead.map(Code::text),
            "error": String::from_utf8_lossy(&failure.message),
            "attempts": request.attempt,
            "receivedAt": request.received.wall_ms,
            "diedAt": failure.at_ms,
            "bytes": request.content_bytes,
            "data": if damaged { Value::Null } else { shown(kept, bytes) },
            "stored": is_stored(kept) && !damaged,
            "damaged": damaged,
        }))
    }
}
