//! Durations and sizes as people write them: `250ms`, `10s`, `7d`; `64KiB`, `16MiB`.
//!
//! The same in the configuration file, in environment variables and in flags. In the file a bare number is
//! milliseconds or bytes too.

use std::time::Duration;

/// Text that is no duration or size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct UnitError {
    text: String,
    expected: &'static str,
}

const DURATION: &str =
    "a duration: a number with ms, s, m, h or d behind it (`250ms`, `1.5s`), or of milliseconds alone";
const SIZE: &str = "a size: a number with KiB, MiB or GiB behind it (`64KiB`), or of bytes alone";

/// Reads a duration.
///
/// ```
/// use std::time::Duration;
/// use ringpost_protocol::units::parse_duration;
/// assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
/// assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
/// assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
/// assert_eq!(parse_duration("30"), Ok(Duration::from_millis(30)));
/// ```
///
/// # Errors
/// [`UnitError`], which says what is allowed.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    const UNITS: [(&str, f64); 7] =
        [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0), ("", 1e-3)];
    let error = || UnitError { text: text.to_owned(), expected: DURATION };
    let seconds = scaled(text, &UNITS).ok_or_else(error)?;
    Duration::try_from_secs_f64(seconds).map_err(|_| error())
}

/// Reads a size in bytes.
///
/// ```
/// use ringpost_protocol::units::parse_size;
/// assert_eq!(parse_size("16MiB"), Ok(16 << 20));
/// assert_eq!(parse_size("1000"), Ok(1000));
/// assert!(parse_size("16 apples").is_err());
/// ```
///
/// # Errors
/// [`UnitError`], which says what is allowed.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    const UNITS: [(&str, f64); 5] =
        [("KiB", 1024.0), ("MiB", 1_048_576.0), ("GiB", 1_073_741_824.0), ("B", 1.0), ("", 1.0)];
    let bytes = scaled(text, &UNITS).filter(|bytes| bytes.fract() == 0.0 && *bytes < 9e15);
    bytes.map(|bytes| bytes as u64).ok_or_else(|| UnitError { text: text.to_owned(), expected: SIZE })
}

/// The number at the front of `text` times the unit behind it.
fn scaled(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (text[..digits].parse::<f64>().ok()?, text[digits..].trim());
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    Some(number * factor)
}

/// A duration in a configuration file, for `#[serde(with = "…")]`.
pub mod duration {
    use super::{DURATION, Duration, Quantity, parse_duration};

    /// Reads it.
    ///
    /// # Errors
    /// What is no duration, with what would be one.
    pub fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        from.deserialize_any(Quantity { expected: DURATION, parse: parse_duration })
    }
}

/// A size in a configuration file, for `#[serde(with = "…")]`.
pub mod size {
    use super::{Quantity, SIZE, parse_size};

    /// Reads it.
    ///
    /// # Errors
    /// What is no size, with what would be one.
    pub fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        from.deserialize_any(Quantity { expected: SIZE, parse: parse_size })
    }
}

/// The same where there is no size unless it is said, for `#[serde(deserialize_with = "…")]`.
///
/// # Errors
/// What is no size, with what would be one.
pub fn some_size<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    size::deserialize(from).map(Some)
}

/// A number with its unit as text, or alone.
struct Quantity<T> {
    expected: &'static str,
    parse: fn(&str) -> Result<T, UnitError>,
}

impl<T> serde::de::Visitor<'_> for Quantity<T> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blanks are forgiven; signs, unknown units, nothing at all and overflow are not.
    #[test]
    fn bad_text_is_refused() {
        assert_eq!(parse_duration(" 10 s "), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for text in ["", "s", "-1s", "10 sec", "1e9s", "99999999999999999999d", "1..5s"] {
            let error = parse_duration(text).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("250ms"), "{error}");
        }
        for text in ["", "MiB", "-1", "0.5", "16MB", "99999999999999GiB"] {
            let error = parse_size(text).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("64KiB"), "{error}");
        }
        assert_eq!(parse_size("0.5KiB"), Ok(512));
    }
}
