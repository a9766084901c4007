//! Finding an instance for a client: the next one is tried before the client notices that one is gone.

use std::{io, net::SocketAddr, rc::Rc};

use ringpost_io::{clock, endpoint::Endpoint};
use ringpost_protocol::time::Time;

use crate::{
    config::WhenDown,
    core::Core,
    health::Observation,
    roster::{MemberId, add},
};

/// Why there is no connection to an instance.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The instance does not take it.
    #[error("{address}: {cause}")]
    Refused {
        address: SocketAddr,
        #[source]
        cause: io::Error,
    },
    /// This machine has no room for one more: the instance is not to blame.
    #[error("no room for one more connection: {0}")]
    Exhausted(#[source] io::Error),
    /// Its name has no address.
    #[error("its name has no address")]
    Unresolved,
}

/// An instance for this client, counted and connected. `None`: there is none to be had.
pub(crate) async fn find(core: &Rc<Core>, client: SocketAddr) -> Option<(MemberId, Endpoint)> {
    let until = core.now() + core.config.connect_timeout;
    let mut tried = Vec::new();
    loop {
        let picked = core.roster.borrow_mut().pick(client.ip(), &tried, core.now());
        let Some(member) = picked else {
            wait_for_one(core, until).await?;
            tried.clear();
            continue;
        };
        match to_member(core, member).await {
            Ok(endpoint) => return Some((member, endpoint)),
            Err(error) => {
                core.roster.borrow_mut().ended(member);
                failed(core, member, &error);
                tried.push(member);
            }
        }
    }
}

/// Waits until it is worth to look again. `None`: the client has to go.
async fn wait_for_one(core: &Core, until: Time) -> Option<()> {
    let left = until.since(core.now());
    if core.config.when_down == WhenDown::Refuse || left.is_zero() || core.is_leaving() {
        return None;
    }
    // One that comes up tells; one whose limit of connections was reached is looked at again.
    clock::within(left.min(core.config.health_interval.min(LOOK_AGAIN)), core.available.notified()).await;
    Some(())
}

const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(100);

fn failed(core: &Rc<Core>, member: MemberId, error: &ConnectError) {
    if matches!(error, ConnectError::Exhausted(_)) {
        core.pools.borrow_mut().trim(true);
        return core.warn_exhausted(error);
    }
    if let Some(tally) = core.roster.borrow().get(member).map(|member| member.tally.clone()) {
        add(&tally.connect_failures, 1);
    }
    tracing::debug!(%error, "an instance cannot be connected to");
    core.observe(member, Observation::Failed);
}

/// Connects to an instance: to the address that worked last, then to its others.
async fn to_member(core: &Core, member: MemberId) -> Result<Endpoint, ConnectError> {
    let addresses = core.roster.borrow().get(member).map(|member| member.addresses.clone());
    let mut outcome = Err(ConnectError::Unresolved);
    for (place, address) in addresses.unwrap_or_default().into_iter().enumerate() {
        outcome = to_address(address, core.config.connect_timeout).await;
        if outcome.is_ok() && place > 0 {
            core.roster.borrow_mut().prefer(member, address);
        }
        if outcome.is_ok() || matches!(outcome, Err(ConnectError::Exhausted(_))) {
            break;
        }
    }
    let endpoint = outcome?;
    let refused = |cause| ConnectError::Refused { address: ([0, 0, 0, 0], 0).into(), cause };
    endpoint.set_nodelay().map_err(refused)?;
    endpoint.set_keepalive(core.config.keepalive).map_err(refused)?;
    Ok(endpoint)
}

/// Connects to an address.
pub(crate) async fn to_address(
    address: SocketAddr,
    within: std::time::Duration,
) -> Result<Endpoint, ConnectError> {
    let classify = |cause: io::Error| {
        if is_exhausted(&cause) {
            ConnectError::Exhausted(cause)
        } else {
            ConnectError::Refused { address, cause }
        }
    };
    let endpoint = Endpoint::connect(address).map_err(classify)?;
    endpoint.writable_within(within).await.map_err(classify)?;
    endpoint.take_error().map_err(classify)?;
    Ok(endpoint)
}

/// Whether it is this machine that cannot: no descriptor, no memory, no free port towards that address.
fn is_exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL)
    )
}
