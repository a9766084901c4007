//! What this client handles.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use ringpost_protocol::message::{ClientMessage, Register, Target};

use crate::{RegistrationId, output::Output};

#[derive(Debug)]
struct Registration {
    action: Arc<str>,
    credit: u32,
    /// Deregistered; gone for good when the pong of this ping is here: deliveries may have crossed the message.
    leaving: Option<u64>,
}

/// All registrations, in the order they were made in.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    all: BTreeMap<u32, Registration>,
    last: u32,
}

impl Registrations {
    pub(crate) fn add(&mut self, action: &str, credit: u32) -> RegistrationId {
        self.last += 1;
        self.all.insert(self.last, Registration { action: action.into(), credit, leaving: None });
        RegistrationId(self.last)
    }

    /// The message that makes a registration known to the broker.
    pub(crate) fn message(&self, id: RegistrationId) -> Option<ClientMessage> {
        let registration = self.all.get(&id.0)?;
        Some(ClientMessage::Register(Register {
            registration: id.0,
            credit: registration.credit,
            action: Bytes::copy_from_slice(registration.action.as_bytes()),
            session: Bytes::new(),
        }))
    }

    /// All messages after a welcome.
    pub(crate) fn messages(&self) -> impl Iterator<Item = ClientMessage> + '_ {
        self.all.keys().filter_map(|id| self.message(RegistrationId(*id)))
    }

    pub(crate) fn action(&self, id: RegistrationId) -> Option<&Arc<str>> {
        self.all.get(&id.0).map(|registration| &registration.action)
    }

    /// All of them.
    pub(crate) fn ids(&self) -> Vec<RegistrationId> {
        self.all.keys().copied().map(RegistrationId).collect()
    }

    /// Whether it is known and not on its way out.
    pub(crate) fn holds(&self, id: RegistrationId) -> bool {
        self.all.get(&id.0).is_some_and(|registration| registration.leaving.is_none())
    }

    /// Changes the credit; `None` if there is no such registration.
    pub(crate) fn set_credit(&mut self, id: RegistrationId, credit: u32) -> Option<ClientMessage> {
        let registration = self.all.get_mut(&id.0).filter(|registration| registration.leaving.is_none())?;
        registration.credit = credit;
        Some(ClientMessage::Credit { registration: id.0, credit })
    }

    /// Lets go of one once the pong of the `fence` is here.
    pub(crate) fn leave(&mut self, id: RegistrationId, fence: u64) -> Option<ClientMessage> {
        let registration = self.all.get_mut(&id.0)?;
        registration.leaving = Some(fence);
        Some(ClientMessage::Deregister(Target::Number(u64::from(id.0))))
    }

    pub(crate) fn remove(&mut self, id: RegistrationId) -> bool {
        self.all.remove(&id.0).is_some()
    }

    /// Forgets those whose fence is passed; with `u64::MAX`, all that are on their way out.
    pub(crate) fn passed(&mut self, fence: u64, outputs: &mut impl Extend<Output>) {
        self.all.retain(|id, registration| {
            let gone = registration.leaving.is_some_and(|at| at <= fence);
            outputs.extend(gone.then_some(Output::Deregistered(RegistrationId(*id))));
            !gone
        });
    }

    pub(crate) fn clear(&mut self, outputs: &mut impl Extend<Output>) {
        let all = std::mem::take(&mut self.all);
        outputs.extend(all.into_keys().map(|id| Output::Deregistered(RegistrationId(id))));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}
