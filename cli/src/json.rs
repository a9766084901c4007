//! JSON that users give and get, as text: it is checked, and passes through as it was written.

use std::io::Read;

use serde::de::IgnoredAny;

use crate::exit::{BAD_DATA, Failure, Outcome};

/// The longest data that is read from standard input: no server takes more.
const MAX_INPUT_BYTES: u64 = ringpost_protocol::limits::MAX_MAX_PAYLOAD_BYTES as u64;

/// Whether these bytes are exactly one JSON value.
pub(crate) fn check(bytes: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    serde_json::from_str::<IgnoredAny>(text).map(drop).map_err(|error| error.to_string())
}

/// The data of a request: the argument itself, or with `-` what standard input has.
///
/// Called before there is a connection: what is wrong with the data is told without a server too.
pub(crate) fn data(argument: &str) -> Outcome<Vec<u8>> {
    let (bytes, source) = if argument == "-" {
        let mut bytes = Vec::new();
        let mut input = std::io::stdin().lock().take(MAX_INPUT_BYTES + 1);
        input
            .read_to_end(&mut bytes)
            .map_err(|error| Failure::system("standard input cannot be read", &error))?;
        if bytes.len() as u64 > MAX_INPUT_BYTES {
            return Err(Failure::new(
                BAD_DATA,
                "standard input has more than 1 GiB: no server takes that much",
            ));
        }
        (bytes, "standard input")
    } else {
        (argument.as_bytes().to_vec(), "the data")
    };
    checked(bytes, source)
}

/// Options for the handler: a JSON object.
pub(crate) fn options(argument: &str) -> Outcome<serde_json::Value> {
    let options: serde_json::Value =
        serde_json::from_str(argument).map_err(|error| not_json("the options", &error.to_string()))?;
    if !options.is_object() {
        let message = format!("the options must be a JSON object, for example '{{\"a\":1}}', not {options}");
        return Err(Failure::new(BAD_DATA, message));
    }
    Ok(options)
}

/// JSON text from the user, as it was written but for the white space around it.
pub(crate) fn checked(bytes: Vec<u8>, source: &str) -> Outcome<Vec<u8>> {
    check(&bytes).map_err(|error| not_json(source, &error))?;
    let trimmed = bytes.trim_ascii();
    Ok(if trimmed.len() == bytes.len() { bytes } else { trimmed.to_vec() })
}

fn not_json(source: &str, error: &str) -> Failure {
    let message = format!("{source} must be JSON, for example '{{\"value\":2}}' or '\"text\"': {error}");
    Failure::new(BAD_DATA, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One value, whatever its kind; nothing less and nothing behind it.
    #[test]
    fn one_value() {
        for text in ["{}", " [1, 2] \n", "\"x\"", "null", "1e400"] {
            assert_eq!(check(text.as_bytes()), Ok(()), "{text}");
        }
        for text in [&b""[..], b"{", b"{} {}", b"hello", b"'x'", b"\"\xff\""] {
            assert!(check(text).is_err(), "{text:?}");
        }
    }

    /// The argument is passed on exactly as it was written, but for the white space around it.
    #[test]
    fn argument_is_kept() {
        assert_eq!(data("{ \"a\": 1.0 }").unwrap(), b"{ \"a\": 1.0 }");
        assert_eq!(data(" \t{ \"a\": 1.0 }\r\n").unwrap(), b"{ \"a\": 1.0 }");
        assert!(data("{").is_err());
    }

    /// The wire has no place for options that are no object.
    #[test]
    fn options_are_an_object() {
        assert!(options("{\"a\":1}").is_ok());
        for text in ["[1]", "1", "null", "{"] {
            assert!(options(text).unwrap_err().to_string().contains("the options must be"), "{text}");
        }
    }
}
