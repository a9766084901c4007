//! What a connection may do: which actions it may handle, which it may ask, and what it may know of the server.
//!
//! The driver gives a connection its permissions when it opens, and they stay as they are. Without any (a server without
//! keys) everything is allowed, and nothing here is looked at.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use ringpost_protocol::{Code, secure::Role};

use crate::{Broker, ConnId};

/// Who is on the other side of a connection, as far as the driver knows.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// Where it comes from, as `$sys.connections` shows it. Boxed: every [`Input`](crate::Input) has room for an identity.
    pub address: Option<Box<SocketAddr>>,
    /// What it may do; `None` for everything. Connections of one key share theirs: then they share lists of receivers too.
    pub permissions: Option<Arc<Permissions>>,
}

/// What a connection may do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Permissions {
    /// What its key is for. An [`Role::Admin`] may do everything, whatever the rest says.
    pub role: Role,
    /// The actions that it may register.
    pub handle: Allowed,
    /// The actions that it may send requests, sends and broadcasts to. The lists of receivers show no others.
    pub request: Allowed,
    /// Whether it may use the server's own actions (`$sys.…`) that name others or change anything. `$sys.stats`, which is
    /// numbers, and `$sys.receivers` are for everybody.
    pub sys: bool,
}

impl Permissions {
    /// Whether an action of this name may be registered.
    pub fn may_handle(&self, action: &[u8]) -> bool {
        self.role == Role::Admin || self.handle.allows(action)
    }

    /// Whether a request may go to an action of this name. The server's own are not asked here.
    pub fn may_request(&self, action: &[u8]) -> bool {
        self.role == Role::Admin || self.request.allows(action)
    }

    /// Whether the server's own action of this name may be used.
    pub fn may_control(&self, action: &[u8]) -> bool {
        self.role == Role::Admin || self.sys || matches!(action, b"$sys.stats" | b"$sys.receivers")
    }

    /// Whether every action may be requested: then there is nothing to look up for a request, nor to leave out of a list.
    fn may_request_all(&self) -> bool {
        self.role == Role::Admin || self.request == Allowed::All
    }
}

/// A set of actions' names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Allowed {
    /// Every name.
    #[default]
    All,
    /// Those of a list.
    Only(Names),
}

impl Allowed {
    /// Whether the name is in it.
    pub fn allows(&self, action: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contain(action),
        }
    }
}

/// A list of names: whole ones, and beginnings of names, which are written with a `*` at their end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// Sorted.
    whole: Vec<Box<[u8]>>,
    /// Sorted, and none is the beginning of another one: so the last that is not behind a name is the only one that can be
    /// its beginning.
    beginnings: Vec<Box<[u8]>>,
}

/// A pattern that no action's name can be meant by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no pattern for actions' names: give a whole name, or the beginning of one with a single `*` at its end; a name \
     has 1 to 255 bytes and no control characters, and does not begin with `$`"
)]
pub struct BadPattern(String);

impl Names {
    /// The names that any of the patterns means: `mail` that one, `mail.*` all that begin with `mail.`, `*` all. A `*` is
    /// only special at the end, and there is no way to name an action that ends with one but by a pattern.
    ///
    /// # Errors
    /// [`BadPattern`], for the first that is none.
    pub fn new<T: AsRef<str>>(patterns: impl IntoIterator<Item = T>) -> Result<Self, BadPattern> {
        let mut names = Self::default();
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let bad = || BadPattern(pattern.to_owned());
            let (name, list) = match pattern.strip_suffix('*') {
                Some(beginning) => (beginning, &mut names.beginnings),
                None => (pattern, &mut names.whole),
            };
            let is_name = name.len() <= 255 && !name.starts_with('$') && !name.contains('*');
            let is_some = !name.is_empty() || !pattern.is_empty();
            if !(is_name && is_some) || name.chars().any(char::is_control) {
                return Err(bad());
            }
            list.push(name.as_bytes().into());
        }
        names.whole.sort_unstable();
        names.whole.dedup();
        names.beginnings.sort_unstable();
        // Sorted, what begins with another one stands behind it, with nothing but such between.
        names.beginnings.dedup_by(|later, earlier| later.starts_with(earlier));
        Ok(names)
    }

    /// Whether the name is meant by one of them.
    pub fn contain(&self, name: &[u8]) -> bool {
        if self.whole.binary_search_by(|whole| whole.as_ref().cmp(name)).is_ok() {
            return true;
        }
        let behind = self.beginnings.partition_point(|beginning| beginning.as_ref() <= name);
        behind.checked_sub(1).is_some_and(|last| name.starts_with(&self.beginnings[last]))
    }
}

/// What the core keeps of them with each connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Granted {
    permissions: Option<Arc<Permissions>>,
    /// Whether each request's action has to be looked up.
    pub(crate) limits_requests: bool,
}

impl Granted {
    pub(crate) fn new(permissions: Option<Arc<Permissions>>) -> Self {
        let limits = |permissions: &Arc<Permissions>| !permissions.may_request_all();
        Self { limits_requests: permissions.as_ref().is_some_and(limits), permissions }
    }

    /// Whether a session of theirs may become one of ours: what waits in it was asked with their permissions.
    fn may_take_from(&self, theirs: &Self) -> bool {
        let Some(ours) = &self.permissions else { return true };
        let equal = |theirs: &Arc<Permissions>| Arc::ptr_eq(ours, theirs) || ours == theirs;
        ours.role == Role::Admin || theirs.permissions.as_ref().is_some_and(equal)
    }

    pub(crate) fn role(&self) -> Option<Role> {
        self.permissions.as_ref().map(|permissions| permissions.role)
    }

    /// What bounds the lists of receivers that it is told, if anything does.
    pub(crate) fn request_list(&self) -> Option<&Arc<Permissions>> {
        self.permissions.as_ref().filter(|_| self.limits_requests)
    }
}

impl Broker {
    fn permissions(&self, conn: ConnId) -> Option<&Permissions> {
        self.connection(conn)?.granted.permissions.as_deref()
    }

    /// Why this connection may not have the session of that name, if it may not: one with other permissions has it, or had it
    /// last.
    pub(crate) fn forbids_session(&self, conn: ConnId, name: &Bytes) -> Option<String> {
        let session = self.session_by_name.get(name).filter(|_| !name.is_empty())?;
        let owner = self.sessions.get(*session)?.owner.as_ref()?;
        if self.connection(conn)?.granted.may_take_from(owner) {
            return None;
        }
        let name = String::from_utf8_lossy(name);
        Some(format!(
            "the session `{name}` belongs to a key that may do other things than this one: choose another name"
        ))
    }

    /// Why this connection may not register the action, if it may not.
    pub(crate) fn forbids_handling(&self, conn: ConnId, action: &[u8]) -> Option<String> {
        if self.permissions(conn).is_none_or(|permissions| permissions.may_handle(action)) {
            return None;
        }
        let action = String::from_utf8_lossy(action);
        Some(format!("this key may not handle `{action}`: its `handle` list on the server does not have it"))
    }

    /// Why this connection may not send requests to the action, if it may not. Only asked where
    /// [`Granted::limits_requests`].
    #[cold]
    pub(crate) fn forbids_requesting(&self, conn: ConnId, action: &[u8]) -> Option<(Code, String)> {
        #[cfg(feature = "planted-bugs")]
        if self.config.is_planted(crate::PlantedBug::ForbiddenAsked) {
            return None;
        }
        if self.permissions(conn).is_none_or(|permissions| permissions.may_request(action)) {
            return None;
        }
        let action = String::from_utf8_lossy(action);
        let message =
            format!("this key may not ask `{action}`: its `request` list on the server does not have it");
        Some((Code::Forbidden, message))
    }

    /// Why this connection may not use one of the server's own actions, if it may not.
    pub(crate) fn forbids_controlling(&self, conn: ConnId, action: &[u8]) -> Option<(Code, String)> {
        if self.permissions(conn).is_none_or(|permissions| permissions.may_control(action)) {
            return None;
        }
        let action = String::from_utf8_lossy(action);
        let message = format!(
            "this key may not use `{action}`: that takes `sys = true` on the server, or a key whose role is admin"
        );
        Some((Code::Forbidden, message))
    }
}

/// Of the actions' names, sorted, those that a connection may request.
pub(crate) fn visible<'a>(
    names: &'a [Bytes],
    permissions: Option<&'a Permissions>,
) -> impl Iterator<Item = &'a Bytes> {
    names.iter().filter(move |name| permissions.is_none_or(|permissions| permissions.may_request(name)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(patterns: &[&str]) -> Names {
        Names::new(patterns).unwrap()
    }

    /// A whole name means itself; a `*` at the end means all that begins so, and alone everything.
    #[test]
    fn patterns() {
        let list = names(&["mail", "log.*", "log.a*", "ß*"]);
        for (name, contained) in [
            ("mail", true),
            ("mai", false),
            ("mail2", false),
            ("log.", true),
            ("log.b", true),
            ("log", false),
            ("loh", false),
            ("ßa", true),
        ] {
            assert_eq!(list.contain(name.as_bytes()), contained, "{name}");
        }
        assert!(names(&["*"]).contain(b"anything") && !names(&[]).contain(b"anything"));
    }

    /// What can mean no action is refused, and named.
    #[test]
    fn bad_patterns() {
        for bad in ["", "a*b", "**", "$sys.stats", "$*", "a\n"] {
            let error = Names::new(["good", bad]).unwrap_err().to_string();
            assert!(error.contains(&format!("`{bad}`")), "{error}");
        }
    }

    /// An admin may do everything; what names others or changes anything takes `sys`.
    #[test]
    fn roles() {
        let none = || Allowed::Only(Names::default());
        let admin = Permissions { role: Role::Admin, handle: none(), request: none(), sys: false };
        assert!(admin.may_handle(b"a") && admin.may_request(b"a") && admin.may_control(b"$sys.queues"));
        for role in [Role::Client, Role::Peer] {
            let mut permissions = Permissions { role, ..Permissions::default() };
            assert!(permissions.may_handle(b"a") && permissions.may_request(b"a"));
            assert!(permissions.may_control(b"$sys.stats") && permissions.may_control(b"$sys.receivers"));
            for control in ["$sys.queues", "$sys.dead", "$sys.actions", "$sys.connections", "$sys.new"] {
                assert!(!permissions.may_control(control.as_bytes()), "{role} may use {control}");
            }
            permissions.sys = true;
            assert!(permissions.may_control(b"$sys.queues"));
        }
    }

    proptest! {
        /// The list answers as going through its patterns one by one would.
        #[test]
        fn as_one_by_one(patterns in proptest::collection::vec("[ab]{0,4}\\*|[ab]{1,4}", 0..12), name in "[ab]{1,6}") {
            let one_by_one = patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(beginning) => name.starts_with(beginning),
                None => *pattern == name,
            });
            prop_assert_eq!(Names::new(&patterns).unwrap().contain(name.as_bytes()), one_by_one);
        }
    }
}
