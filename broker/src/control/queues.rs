//! `$sys.queues`: what waits for handlers.
//!
//! | data | reply |
//! |---|---|
//! | `null` or `{"op":"list"}` | the queues with something in them, sorted by action |
//! | `{"op":"peek","action":A,"count":N}` | the first requests that wait for A, at most 100, with the beginning of their data, which
//! is read from the log if it is only there |
//! | `{"op":"purge","action":A}` | ends all that wait for A with `cancelled`; how many |
//! | `{"op":"cancel","requestId":R}` | ends one request, waiting or not, with `cancelled`; whether it was there |

use ringpost_protocol::Code;
use serde_json::{Value, json};

use super::{
    Answer, Refused,
    inquiry::{Shown, Work},
    shown,
};
use crate::{
    Broker,
    slab::Key,
    state::{Action, Request},
};

/// Requests that one peek shows, unless it says how many, and at most.
const PEEK_COUNT: u64 = 10;
const MAX_PEEK_COUNT: u64 = 100;
/// Bytes of data that a peek shows of each.
const PEEK_BYTES: usize = 256;
const USAGE: &str =
    "give no data, or an `op`: list, peek (action, count), purge (action), cancel (requestId)";

impl Broker {
    pub(super) fn queues(&mut self, data: &[u8]) -> Result<Answer, Refused> {
        let malformed = |message: String| (Code::Malformed, message);
        let data = if data.is_empty() { b"null" } else { data };
        let data: Value =
            serde_json::from_slice(data).map_err(|error| malformed(format!("{error}: {USAGE}")))?;
        match (data.is_null(), data["op"].as_str()) {
            (true, _) | (_, Some("list")) => Ok(self.list_queues().into()),
            (_, Some("peek")) => {
                let count = data["count"].as_u64().unwrap_or(PEEK_COUNT).min(MAX_PEEK_COUNT);
                let waiting = self.waiting_for(self.action_called(&data)?);
                Ok(Answer::Later(Work::show(waiting.take(count as usize).collect(), Shown::Queue)))
            }
            (_, Some("purge")) => {
                let waiting = self.waiting_for(self.action_called(&data)?).collect::<Vec<_>>();
                let ended = waiting.len();
                // None of them is to have its turn because those before it are gone.
                waiting.iter().for_each(|request| self.give_up_payload(*request));
                for request in waiting {
                    self.end_by_operator(request);
                }
                Ok(json!({ "ended": ended }).into())
            }
            (_, Some("cancel")) => {
                let id =
                    data["requestId"].as_str().ok_or_else(|| malformed(format!("no requestId: {USAGE}")))?;
                let found = self.requests.iter().find(|(_, request)| self.id_of(request) == id);
                let found = found.map(|(request, _)| request);
                if let Some(request) = found {
                    self.call_back(request);
                    self.end_by_operator(request);
                }
                Ok(json!({ "ended": u8::from(found.is_some()) }).into())
            }
            _ => Err(malformed(USAGE.to_owned())),
        }
    }

    fn list_queues(&self) -> Value {
        let mut queues: Vec<_> = self.actions.iter().filter(|(_, action)| action.queue.waiting > 0).collect();
        queues.sort_unstable_by(|(_, one), (_, other)| one.name.cmp(&other.name));
        let describe = |(key, action): (Key<Action>, &Action)| {
            let oldest = self.waiting_for(key).next().and_then(|request| self.requests.get(request));
            json!({
                "action": String::from_utf8_lossy(&action.name),
                "queued": action.queue.waiting,
                "queuedBytes": action.queue.bytes,
                "oldestMs": oldest.map(|request| self.age_ms(request)),
            })
        };
        queues.into_iter().map(describe).collect()
    }

    /// A request that waits, unless it has had its turn meanwhile.
    pub(super) fn describe_waiting(&self, key: Key<Request>) -> Option<Value> {
        let request = self.requests.get(key).filter(|request| request.is_queued())?;
        Some(json!({
            "requestId": self.id_of(request),
            "attempts": request.attempt,
            "ageMs": self.age_ms(request),
            "timeLeftMs": request.deadline.since(self.now.mono).as_millis() as u64,
            "bytes": request.content_bytes,
            "data": shown(self.kept_of(key)?, PEEK_BYTES),
        }))
    }

    /// Requests that wait for an action, in the order in which they will be dispatched.
    fn waiting_for(&self, action: Key<Action>) -> impl Iterator<Item = Key<Request>> + '_ {
        let line = self.actions.get(action).into_iter().flat_map(|action| action.queue.line.iter().copied());
        line.filter(|key| self.requests.get(*key).is_some_and(Request::is_queued))
    }

    fn action_called(&self, data: &Value) -> Result<Key<Action>, Refused> {
        let name = data["action"].as_str().ok_or_else(|| (Code::Malformed, format!("no action: {USAGE}")))?;
        let known = self.action_by_name.get(name.as_bytes()).copied();
        known.ok_or_else(|| (Code::NoHandler, format!("nobody handles `{name}`, so nothing waits for it")))
    }

    fn end_by_operator(&mut self, request: Key<Request>) {
        self.counters.cancelled += 1;
        self.end_with_error(request, Code::Cancelled, "an operator ended it".to_owned());
    }

    fn age_ms(&self, request: &Request) -> u64 {
        self.now.mono.since(request.received.mono).as_millis() as u64
    }

    /// As handlers see it: boot and count, in hex.
    pub(super) fn id_of(&self, request: &Request) -> String {
        let boot = if request.is_durable() { self.config.log_id } else { self.config.boot };
        format!("{boot:016x}-{:x}", request.count)
    }
}
