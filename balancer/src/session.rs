//! A session: a client's connection, the instance's that was found for it, and what goes between.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    net::{Shutdown, SocketAddr},
    rc::Rc,
};

use ringpost_io::{endpoint::Endpoint, ring, stream::Stream};
use ringpost_protocol::proxy;
use slotmap::new_key_type;

use crate::{
    carry::carry,
    connect,
    core::{Core, CrashWithMe, Place},
    health::Observation,
    pace::Pace,
    relay::{Ending, Relay, Way},
    roster::{MemberId, Tally, add},
};

new_key_type! {
    /// A session that carries bytes.
    pub(crate) struct SessionKey;
}

/// A client and its instance.
pub(crate) struct Session {
    client: Endpoint,
    instance: Endpoint,
    pub(crate) relay: RefCell<Relay>,
    pub(crate) member: MemberId,
    pub(crate) tally: Rc<Tally>,
    /// Bytes that went, to see whether any did.
    pub(crate) moved: Cell<u64>,
    /// As many of them had gone when it was looked at last, and for how many looks that has not changed.
    pub(crate) looked: Cell<(u64, u32)>,
    /// The instance has said something.
    spoke: Cell<bool>,
    /// Ways that still run.
    running: Cell<u8>,
    /// Its lingering is being timed.
    pub(crate) lingering: Cell<bool>,
    key: Cell<SessionKey>,
    _place: Place,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("key", &self.key.get()).finish_non_exhaustive()
    }
}

/// A client's connection, from its accept to the moment when its bytes flow; or to its end, if there is no instance.
pub(crate) async fn serve(core: Rc<Core>, stream: Stream, place: Place) {
    let _crash = CrashWithMe(core.clone());
    let prepared = Endpoint::new(stream).and_then(|client| {
        client.set_nodelay()?;
        client.set_keepalive(core.config.keepalive)?;
        let from = client.peer_addr()?;
        Ok((client, from))
    });
    let (client, from) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return tracing::debug!(%error, "a client was gone before it was taken in"),
    };
    let Some((member, instance)) = connect::find(&core, from).await else {
        core.refused(from);
        return abort(&client);
    };
    if core.config.proxy_v2
        && let Err(error) = introduce(&client, &instance, from)
    {
        tracing::debug!(%error, "an instance did not take the client's address");
        core.observe(member, Observation::Failed);
        core.roster.borrow_mut().ended(member);
        return abort(&client);
    }
    begin(&core, client, instance, member, place);
}

/// Says who the client is. The connection is new: what is so short fits.
fn introduce(client: &Endpoint, instance: &Endpoint, from: SocketAddr) -> io::Result<()> {
    let mut header = Vec::new();
    proxy::encode(from, client.local_addr()?, &mut header);
    let written = instance.try_write(&header)?;
    if written == header.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn begin(core: &Rc<Core>, client: Endpoint, instance: Endpoint, member: MemberId, place: Place) {
    let Some(tally) = core.roster.borrow().get(member).map(|member| member.tally.clone()) else { return };
    add(&tally.sessions, 1);
    let session = Rc::new(Session {
        client,
        instance,
        relay: RefCell::new(Relay::new(Pace::new(core.config.splicing))),
        member,
        tally,
        moved: Cell::new(0),
        looked: Cell::default(),
        spoke: Cell::new(false),
        running: Cell::new(Way::BOTH.len() as u8),
        lingering: Cell::new(false),
        key: Cell::default(),
        _place: place,
    });
    core.keep(session.clone(), |key| session.key.set(key));
    for way in Way::BOTH {
        ring::spawn(carry(core.clone(), session.clone(), way));
    }
}

impl Session {
    /// Where the way's bytes come from, and where they go.
    pub(crate) fn ends(&self, way: Way) -> (&Endpoint, &Endpoint) {
        match way {
            Way::Up => (&self.client, &self.instance),
            Way::Down => (&self.instance, &self.client),
        }
    }

    /// Ends it at once.
    pub(crate) fn cut(&self) {
        let over = {
            let mut relay = self.relay.borrow_mut();
            let over = relay.is_over();
            relay.cut();
            over
        };
        if !over {
            for end in [&self.client, &self.instance] {
                if let Err(error) = end.shutdown(Shutdown::Both) {
                    tracing::debug!(%error, "a connection that could not be shut down");
                }
            }
        }
    }

    /// Bytes came this way. The first ones from the instance show that it serves.
    pub(crate) fn came(&self, core: &Core, way: Way) {
        if way == Way::Down && !self.spoke.replace(true) {
            core.observe(self.member, Observation::Served);
        }
    }

    /// A source has ended or broken. An instance that does that without a word, and before the client, has failed.
    pub(crate) fn source_ended(&self, core: &Core, way: Way, client_ended: bool) {
        if way == Way::Down && !self.spoke.get() && !client_ended && self.relay.borrow().ending().is_none() {
            add(&self.tally.early_ends, 1);
            core.observe(self.member, Observation::Failed);
        }
    }

    /// One way has nothing to do any more. With the second one the session is over.
    pub(crate) fn way_ended(&self, core: &Core) {
        self.running.set(self.running.get() - 1);
        let ending = self.relay.borrow().ending();
        if ending == Some(Ending::Reset) {
            // The other way may still wait for one of them; and both peers are to know that something is missing.
            abort(&self.client);
            abort(&self.instance);
        }
        if self.running.get() == 0 {
            match ending {
                Some(Ending::Reset) => add(&self.tally.resets, 1),
                Some(Ending::Cut) => add(&self.tally.cuts, 1),
                Some(Ending::Orderly) | None => {}
            }
            core.forget(self.key.get(), self.member);
        }
    }
}

/// Ends a connection by a reset. One that is gone already is as it should be.
pub(crate) fn abort(end: &Endpoint) {
    if let Err(error) = end.abort() {
        tracing::debug!(%error, "a connection that could not be reset");
    }
}
