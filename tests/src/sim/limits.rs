//! What some clients may not do, and the judge of it: nothing forbidden reaches a handler, nobody is shown what it may not
//! ask, and nothing is forbidden that is allowed.
//!
//! What is allowed is decided here by looking at each pattern, not by the core's own tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ringpost_broker::{Allowed, ConnId, Identity, Input, Names, Output, Permissions, Role};
use ringpost_protocol::{
    Code,
    message::{ClientMessage, Scope, ServerMessage},
};

use super::{
    peer::number_in,
    rng::Rng,
    rules::{Verdict, ensure},
};

/// Patterns of which each hits one of the script's actions, or none.
const PATTERNS: [&str; 7] = ["sum", "echo", "jobs", "s*", "ech*", "jobs*", "other"];

/// What a seat's clients may do.
#[derive(Debug)]
pub(crate) struct Limits {
    handle: Vec<&'static str>,
    request: Vec<&'static str>,
    permissions: Arc<Permissions>,
}

impl Limits {
    /// Those of a seat: the same in all of a history.
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let mut some = || -> Vec<_> { (0..rng.below(4)).map(|_| rng.pick(&PATTERNS)).collect() };
        let (handle, request) = (some(), some());
        let allowed = |patterns: &[&str]| Allowed::Only(Names::new(patterns).expect("these are patterns"));
        let permissions = Permissions {
            role: Role::Client,
            handle: allowed(&handle),
            request: allowed(&request),
            sys: false,
        };
        Self { handle, request, permissions: Arc::new(permissions) }
    }

    /// What the core is told of a connection with these limits.
    pub(crate) fn identity(limits: Option<&Arc<Self>>) -> Identity {
        Identity { permissions: limits.map(|limits| limits.permissions.clone()), ..Identity::default() }
    }

    pub(crate) fn may_request(&self, action: &str) -> bool {
        is_on(&self.request, action)
    }

    fn may_handle(&self, action: &str) -> bool {
        is_on(&self.handle, action)
    }
}

fn is_on(patterns: &[&str], action: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(beginning) => action.starts_with(beginning),
        None => *pattern == action,
    })
}

/// Watches what is said on connections with limits.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    limits: BTreeMap<ConnId, Arc<Limits>>,
    /// Requests that must not be delivered, by their token.
    forbidden: BTreeSet<u64>,
    /// How many registrations under a number must yet be refused: in JSON all have the number 0.
    refused: BTreeMap<(ConnId, u64), usize>,
}

impl Judge {
    /// A connection opens.
    pub(crate) fn opened(&mut self, conn: ConnId, limits: Option<Arc<Limits>>) {
        self.refused.retain(|(refused, _), _| *refused != conn);
        match limits {
            Some(limits) => self.limits.insert(conn, limits),
            None => self.limits.remove(&conn),
        };
    }

    /// The core is told something. Returns whether it is forbidden.
    pub(crate) fn forbids(&mut self, input: &Input) -> bool {
        let Input::Message { conn, message } = input else { return false };
        let Some(limits) = self.limits.get(conn) else { return false };
        match message {
            ClientMessage::Request(request) => {
                let allowed = limits.may_request(&String::from_utf8_lossy(request.content.name()));
                let token = number_in(request.content.payload());
                self.forbidden.extend(token.filter(|_| !allowed));
                !allowed
            }
            ClientMessage::Register(register) => {
                let allowed = limits.may_handle(&String::from_utf8_lossy(&register.action));
                if !allowed {
                    *self.refused.entry((*conn, register.registration.into())).or_default() += 1;
                }
                !allowed
            }
            _ => false,
        }
    }

    /// The core says something.
    pub(crate) fn said(&mut self, output: &Output) -> Verdict {
        let Output::Send { conn, message } = output else { return Ok(()) };
        let limits = self.limits.get(conn);
        match message {
            ServerMessage::Deliver(deliver) => {
                let action = String::from_utf8_lossy(deliver.content.name());
                let may = limits.is_none_or(|limits| limits.may_handle(&action));
                ensure!(may, Forbidden, "`{action}` is delivered to {conn}, which may not handle it");
                let token = number_in(deliver.content.payload());
                let forbidden = token.is_some_and(|token| self.forbidden.contains(&token));
                ensure!(!forbidden, Forbidden, "{token:?} is delivered, and may not be asked: {deliver:?}");
            }
            ServerMessage::Receivers(list) => {
                let names: Vec<String> = serde_json::from_slice(list).expect("a list of names is JSON");
                let hidden = names.iter().find(|name| limits.is_some_and(|limits| !limits.may_request(name)));
                ensure!(hidden.is_none(), Forbidden, "{conn} is shown {hidden:?}, which it may not ask");
            }
            ServerMessage::Registered { registration } => {
                let refused = self.refused.contains_key(&(*conn, u64::from(*registration)));
                ensure!(!refused, Forbidden, "{conn} may not have registration {registration}");
            }
            ServerMessage::Error(report)
                if report.scope == Scope::Registration && report.code == Code::Forbidden =>
            {
                let left = self.refused.get(&(*conn, report.number)).copied().unwrap_or_default();
                ensure!(left > 0, Forbidden, "{conn} may register that: {report:?}");
                if left == 1 {
                    self.refused.remove(&(*conn, report.number));
                } else {
                    self.refused.insert((*conn, report.number), left - 1);
                }
            }
            _ => {}
        }
        Ok(())
    }
}
