//! Which keys the server takes, and what the connections of each may do.

use std::{path::PathBuf, sync::Arc};

use ringpost_broker::{Allowed, BadPattern, Names, Permissions, Role};
use serde::{Deserialize, Deserializer};

/// One key: its file, and what its connections may do. In the configuration file:
///
/// ```
/// let config = ringpost_server::Config::from_toml_text(r#"
///     [[key]]
///     file = "/etc/ringpost/billing.key"
///     handle = ["billing.*"]
///     request = ["mail", "pdf.*"]
///
///     [[key]]
///     file = "/etc/ringpost/operator.key"
///     role = "admin"
/// "#)?;
/// assert!(config.keys[0].permissions.may_handle(b"billing.invoice"));
/// assert!(!config.keys[0].permissions.may_request(b"billing.invoice"));
/// # Ok::<(), ringpost_server::ConfigError>(())
/// ```
///
/// `handle` and `request` are lists of whole names, or beginnings of names with a `*` at their end; a list that is not there
/// allows everything, one that is empty nothing. `sys = true` allows the server's own actions that name others or change
/// something (`$sys.actions`, `$sys.connections`, `$sys.queues`, `$sys.dead`). `role` is `client` (the default), `peer` for
/// the links between servers, or `admin`, which may do everything.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
#[non_exhaustive]
pub struct KeyConfig {
    /// Where the key is.
    pub file: PathBuf,
    /// What may be done with it.
    pub permissions: Arc<Permissions>,
}

impl KeyConfig {
    /// A key in this file, with which everything may be done that goes with the role.
    pub fn new(file: PathBuf, role: Role) -> Self {
        Self { file, permissions: Arc::new(Permissions { role, ..Permissions::default() }) }
    }
}

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    file: PathBuf,
    #[serde(default, deserialize_with = "role")]
    role: Role,
    handle: Option<Vec<String>>,
    request: Option<Vec<String>>,
    sys: Option<bool>,
}

fn role<'de, D: Deserializer<'de>>(from: D) -> Result<Role, D::Error> {
    String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
}

/// A key that contradicts itself.
#[derive(Debug, thiserror::Error)]
enum KeyError {
    #[error("key {}: `{list}`: {cause}", file.display())]
    Pattern { file: PathBuf, list: &'static str, cause: BadPattern },
    #[error(
        "key {}: the role admin may do everything: leave `handle`, `request` and `sys` out, or make it a client",
        file.display()
    )]
    LimitedAdmin { file: PathBuf },
}

impl TryFrom<Written> for KeyConfig {
    type Error = KeyError;

    fn try_from(written: Written) -> Result<Self, KeyError> {
        let Written { file, role, handle, request, sys } = written;
        if role == Role::Admin && (handle.is_some() || request.is_some() || sys.is_some()) {
            return Err(KeyError::LimitedAdmin { file });
        }
        let allowed = |list, patterns: Option<Vec<String>>| match patterns.map(Names::new) {
            None => Ok(Allowed::All),
            Some(Ok(names)) => Ok(Allowed::Only(names)),
            Some(Err(cause)) => Err(KeyError::Pattern { file: file.clone(), list, cause }),
        };
        let permissions = Permissions {
            role,
            handle: allowed("handle", handle)?,
            request: allowed("request", request)?,
            sys: sys.unwrap_or(false),
        };
        Ok(Self { file, permissions: Arc::new(permissions) })
    }
}

#[cfg(test)]
mod tests {
    use crate::Config;

    /// What is not said allows everything but control; a list that is empty allows nothing.
    #[test]
    fn reads_keys() {
        let text = r#"
            [[key]]
            file = "a"
            [[key]]
            file = "b"
            role = "client"
            handle = ["a", "b*"]
            request = []
            sys = true
        "#;
        let keys = Config::from_toml_text(text).unwrap().keys;
        let (one, other) = (&keys[0].permissions, &keys[1].permissions);
        assert!(one.may_handle(b"x") && one.may_request(b"x") && !one.may_control(b"$sys.queues"));
        assert!(other.may_handle(b"bc") && !other.may_handle(b"c") && !other.may_request(b"a"));
        assert!(other.may_control(b"$sys.queues"));
    }

    /// A wrong key is refused with the line, and says which key and what is wrong with it.
    #[test]
    fn errors_name_line_and_key() {
        for (text, expected) in [
            ("[[key]]\nfile = \"x\"\nhandle = [\"a*b\"]", vec!["line 1", "key x", "`handle`", "`a*b`"]),
            (
                "id = \"a\"\n[[key]]\nfile = \"x\"\nrole = \"admin\"\nsys = true",
                vec!["line 2", "key x", "admin"],
            ),
            ("[[key]]\nfile = \"x\"\nrole = \"boss\"", vec!["line 3", "boss", "`client`"]),
            ("[[key]]\nfile = \"x\"\nhandles = []", vec!["line 3", "handles", "`handle`"]),
            ("[[key]]\nhandle = []", vec!["line 1", "`file`"]),
        ] {
            let error = Config::from_toml_text(text).unwrap_err().to_string();
            for part in expected {
                assert!(error.contains(part), "{part} in {error}");
            }
        }
    }
}
