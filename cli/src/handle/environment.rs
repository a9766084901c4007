//! What a command is told of its request beside the data: its environment.
//!
//! | of the request | variable |
//! |---|---|
//! | action | `RINGPOST_ACTION` |
//! | stable id | `RINGPOST_REQUEST_ID`: the same at each attempt |
//! | attempt, from 1 | `RINGPOST_ATTEMPT` |
//! | deadline, ms since the Unix epoch | `RINGPOST_DEADLINE_MS`, unset where there is none |
//! | time left at the start, ms | `RINGPOST_TIME_LEFT_MS`, unset where there is no end |
//! | options, JSON text | `RINGPOST_OPTIONS`, `null` where there are none |
//! | headers | `RINGPOST_HEADERS`, a JSON object; each also as `RINGPOST_HEADER_NAME`, see [`variable_name`] |
//! | the server | `RINGPOST_SERVER`: a `ringpost request` within the command reaches the same one |

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use ringpost::Request;
use tokio::process::Command;

/// The variable of each header begins so.
const HEADER_PREFIX: &str = "RINGPOST_HEADER_";

/// Sets the variables of a request.
pub(super) fn describe(command: &mut Command, request: &Request, server: &str) {
    // A handler that was itself started by one must not pass on what is not of this request.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with(HEADER_PREFIX)) {
            command.env_remove(name);
        }
    }
    let id = request.id();
    command
        .env("RINGPOST_ACTION", request.action())
        .env("RINGPOST_REQUEST_ID", format!("{:016x}-{}", id.boot, id.count))
        .env("RINGPOST_ATTEMPT", request.attempt().to_string())
        .env("RINGPOST_SERVER", server)
        .env_remove("RINGPOST_DEADLINE_MS")
        .env_remove("RINGPOST_TIME_LEFT_MS");
    if let Some(left) = request.time_left() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        command.env("RINGPOST_DEADLINE_MS", (now + left).as_millis().to_string());
        command.env("RINGPOST_TIME_LEFT_MS", left.as_millis().to_string());
    }
    let options = String::from_utf8_lossy(request.options_bytes());
    command.env("RINGPOST_OPTIONS", if options.is_empty() { "null" } else { &options });
    let variables = Variables::of(request.headers());
    command.env("RINGPOST_HEADERS", variables.json);
    command.envs(variables.single);
}

/// Headers as a command's environment. Where a key comes twice, its first value counts.
#[derive(Debug, PartialEq)]
struct Variables {
    json: String,
    single: BTreeMap<String, String>,
}

impl Variables {
    fn of<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut object = serde_json::Map::new();
        let mut single = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for (key, value) in headers {
            if !seen.insert(key) {
                continue;
            }
            object.insert(key.to_owned(), value.into());
            // No variable can hold this character; the JSON text can.
            if !value.contains('\0') {
                single.entry(variable_name(key)).or_insert_with(|| value.to_owned());
            }
        }
        Self { json: serde_json::Value::Object(object).to_string(), single }
    }
}

/// The variable of a header: its key in capitals, with `_` for all that is neither letter nor digit of ASCII.
fn variable_name(key: &str) -> String {
    let fitting = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("{HEADER_PREFIX}{}", key.chars().map(fitting).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every header is in the object, and those that can be are variables.
    #[test]
    fn headers_as_variables() {
        let headers = [("trace-parent", "1"), ("TRACE.PARENT", "2"), ("trace-parent", "3"), ("nul", "a\0b")];
        let variables = Variables::of(headers.into_iter());
        assert_eq!(variables.json, r#"{"TRACE.PARENT":"2","nul":"a\u0000b","trace-parent":"1"}"#);
        assert_eq!(
            variables.single,
            BTreeMap::from([("RINGPOST_HEADER_TRACE_PARENT".to_owned(), "1".to_owned())])
        );
    }
}
