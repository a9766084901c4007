//! Watching an instance: where it is, and whether it is well. Two tasks for each, until it is none any more.

use std::{io, rc::Rc, time::Duration};

use ringpost_io::{clock, endpoint::Endpoint, ring};
use ringpost_protocol::{
    json::{PING, PONG},
    proxy,
};

use crate::{
    config::Health,
    connect,
    core::{Core, CrashWithMe},
    health::{Observation, pause},
    roster::{MemberId, add},
};

/// Watches an instance from now on.
pub(crate) fn begin(core: &Rc<Core>, member: MemberId) {
    ring::spawn(keep_looking_up(core.clone(), member));
    ring::spawn(keep_probing(core.clone(), member));
}

async fn keep_looking_up(core: Rc<Core>, member: MemberId) {
    let _crash = CrashWithMe(core.clone());
    while look_up(&core, member).await && !core.is_leaving() {
        let missing = core.roster.borrow().get(member).is_some_and(|member| member.addresses.is_empty());
        // Without an address it is of no use: that is worth asking more often.
        let time = core.config.resolve_interval;
        clock::sleep(if missing { time.min(core.config.health_interval) } else { time }).await;
    }
}

/// Looks up where an instance is. Whether that may change: it is a name, and the instance is still one.
pub(crate) async fn look_up(core: &Core, member: MemberId) -> bool {
    let parts = |member: &crate::roster::Member| {
        let (host, port) = member.instance.parts().filter(|_| !member.removed)?;
        Some((host.to_owned(), port))
    };
    let Some((host, port)) = core.roster.borrow().get(member).and_then(parts) else { return false };
    match core.resolver.resolve(&host, port).await {
        Ok(addresses) => {
            if core.roster.borrow_mut().resolved(member, addresses.clone()) {
                tracing::debug!(host, ?addresses, "where an instance is");
                core.available.notify_waiters();
            }
        }
        // What was known of it is most likely still so.
        Err(error) => tracing::warn!(host, %error, "an instance's name was not found"),
    }
    host.parse::<std::net::IpAddr>().is_err()
}

async fn keep_probing(core: Rc<Core>, member: MemberId) {
    let _crash = CrashWithMe(core.clone());
    loop {
        let time = pause(core.roster.borrow().rules(), core.draw());
        clock::sleep(time).await;
        let known = core.roster.borrow().get(member).map(|it| (it.removed, it.addresses.first().copied()));
        let Some((false, address)) = known else { return };
        if core.is_leaving() {
            return;
        }
        let (kind, within) = (core.config.health, core.config.health_timeout);
        let outcome = match (kind, address) {
            (Health::Off, _) => Ok(()),
            (_, None) => continue,
            (kind, Some(address)) => match connect::to_address(address, within).await {
                Ok(endpoint) => probe(&endpoint, kind, core.config.proxy_v2, within).await,
                // Not its fault, and nothing was learnt of it.
                Err(connect::ConnectError::Exhausted(_)) => continue,
                Err(error) => Err(io::Error::other(error)),
            },
        };
        if let Err(error) = &outcome {
            tracing::debug!(?address, %error, "a probe failed");
            if let Some(it) = core.roster.borrow().get(member) {
                add(&it.tally.probe_failures, 1);
            }
        }
        let seen = if outcome.is_ok() { Observation::ProbePassed } else { Observation::ProbeFailed };
        core.observe(member, seen);
    }
}

/// Says and hears what the kind of probe wants, on a connection of its own.
async fn probe(endpoint: &Endpoint, kind: Health, proxy_v2: bool, within: Duration) -> io::Result<()> {
    let mut words = Vec::new();
    if proxy_v2 {
        proxy::encode_local(&mut words);
    }
    if kind == Health::Ping {
        words.extend_from_slice(PING);
    }
    if !words.is_empty() && endpoint.try_write(&words)? < words.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    if kind != Health::Ping {
        return Ok(());
    }
    let mut heard = [0; PONG.len()];
    let mut length = 0;
    while length < heard.len() {
        endpoint.readable_within(within).await?;
        match endpoint.try_read(&mut heard[length..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    // Nothing else will do: a refusal shows that a server is there, and that nobody is served by it.
    if heard == PONG {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the answer to a ping is no pong"))
}
