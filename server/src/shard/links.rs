//! Links to other servers: between their translators, the core and the tasks that move their bytes.

use std::{net::Shutdown, rc::Rc, time::Duration};

use ringpost_broker::{ConnId, Input, LinkState};
use ringpost_client::Error;
use ringpost_io::{event::Event, stream::Stream};
use ringpost_protocol::{
    Outgoing, Segment,
    frame::{Preface, encode_client},
    message::ServerMessage,
    time::{Now, Time},
};

use super::{Shard, State};
use crate::peer::{Link, LinkOutput};

/// How long a peer may take to end its half after we ended ours.
const PARTING_TIME: Duration = Duration::from_secs(2);

/// A link, and the connection that it has now.
pub(crate) struct Linked {
    link: Link,
    out: Outgoing,
    /// Bytes that are being written.
    in_flight: usize,
    /// Wakes the task that keeps it.
    wake: Rc<Event>,
    /// Wakes the one that writes.
    writer: Rc<Event>,
    wire: Wire,
    /// The next connection, when this one is over.
    wants_connection: bool,
    /// Much waits to be sent: the core gives it nothing more.
    clogged: bool,
}

/// Where a link's connection stands.
enum Wire {
    None,
    /// It is being opened; the socket, once there is one.
    Dialing(Option<Stream>),
    Open(Stream),
    /// What waits is written, then the peer has until then.
    Parting(Stream, Time),
    /// It is shut down: its tasks end.
    Cut(Stream),
}

/// What the task that keeps a link does next.
pub(crate) enum LinkNext {
    Dial,
    Wait(Rc<Event>),
    End,
}

/// What the task that writes does next.
pub(crate) enum LinkWrite {
    Write(Segment),
    Wait,
    /// All is written: our half ends.
    End,
    /// The connection is gone.
    Gone,
}

impl Linked {
    pub(crate) fn new(link: Link) -> Self {
        Self {
            link,
            out: Outgoing::new(),
            in_flight: 0,
            wake: Rc::default(),
            writer: Rc::default(),
            wire: Wire::None,
            wants_connection: false,
            clogged: false,
        }
    }

    fn waiting(&self) -> u64 {
        (self.out.len() + self.in_flight) as u64
    }

    /// Ends the connection at once, in whatever state it is.
    fn cut(&mut self) {
        self.wire = match std::mem::replace(&mut self.wire, Wire::None) {
            Wire::None => Wire::None,
            Wire::Dialing(None) => Wire::Dialing(None),
            Wire::Dialing(Some(stream)) => {
                shut_down(&stream, Shutdown::Both);
                if let Err(error) = stream.abort() {
                    tracing::debug!(%error, "giving up a connection");
                }
                Wire::Dialing(Some(stream))
            }
            Wire::Open(stream) | Wire::Parting(stream, _) | Wire::Cut(stream) => {
                shut_down(&stream, Shutdown::Both);
                Wire::Cut(stream)
            }
        };
        self.out.clear();
        self.writer.set();
    }
}

fn shut_down(stream: &Stream, how: Shutdown) {
    if let Err(error) = stream.shutdown(how) {
        tracing::debug!(%error, "shutdown");
    }
}

impl Shard {
    /// The links begin to connect.
    pub(crate) fn start_links(&self) {
        self.turn(|state, now| {
            for index in 0..state.links.len() {
                state.with_link(index, now, |link| link.start(now.mono));
            }
            state.act(now);
        });
    }

    pub(crate) fn link_max_payload(&self) -> u32 {
        self.state.borrow().config.max_payload_bytes()
    }

    pub(crate) fn link_next(&self, index: usize) -> LinkNext {
        let state = &mut *self.state.borrow_mut();
        let Some(linked) = state.links.get_mut(index) else { return LinkNext::End };
        if *linked.link.state() == LinkState::Ended {
            return LinkNext::End;
        }
        if std::mem::take(&mut linked.wants_connection) {
            linked.wire = Wire::Dialing(None);
            return LinkNext::Dial;
        }
        LinkNext::Wait(linked.wake.clone())
    }

    /// A socket is being connected. Whether to go on.
    pub(crate) fn link_begun(&self, index: usize, stream: &Stream) -> bool {
        let state = &mut *self.state.borrow_mut();
        match state.links.get_mut(index) {
            Some(linked) if matches!(linked.wire, Wire::Dialing(_)) && !linked.is_over() => {
                linked.wire = Wire::Dialing(Some(stream.clone()));
                true
            }
            _ => false,
        }
    }

    pub(crate) fn link_turned_away(&self, index: usize, error: Error) {
        self.turn(|state, now| {
            if let Some(linked) = state.links.get_mut(index) {
                linked.wire = Wire::None;
            }
            state.with_link(index, now, |link| link.turned_away(error, now.mono));
            state.act(now);
        });
        self.end_if_last();
    }

    /// A connection is open, and may be spoken on. `None`: it is not wanted any more.
    pub(crate) fn link_connected(&self, index: usize, stream: &Stream) -> Option<Rc<Event>> {
        self.turn(|state, now| {
            let linked = state.links.get_mut(index)?;
            if !matches!(linked.wire, Wire::Dialing(_)) || linked.is_over() {
                return None;
            }
            linked.wire = Wire::Open(stream.clone());
            linked.out.clear();
            linked.out.tail().extend_from_slice(&Preface::plain().encode());
            let writer = linked.writer.clone();
            state.with_link(index, now, |link| link.connected(now.mono));
            state.act(now);
            Some(writer)
        })
    }

    pub(crate) fn link_received(&self, index: usize, messages: &mut Vec<ServerMessage>) {
        self.turn(|state, now| {
            let open = state.links.get(index).is_some_and(|linked| matches!(linked.wire, Wire::Open(_)));
            if messages.is_empty() && open {
                state.with_link(index, now, |link| link.heard(now.mono));
            }
            for message in messages.drain(..) {
                // It may have ended with one of them.
                let open = state.links.get(index).is_some_and(|linked| matches!(linked.wire, Wire::Open(_)));
                if open {
                    state.with_link(index, now, |link| link.received(message, now.mono));
                }
            }
            state.act(now);
        });
    }

    /// The connection broke, or the peer has ended it.
    pub(crate) fn link_lost(&self, index: usize, reason: String) {
        self.turn(|state, now| {
            let Some(linked) = state.links.get_mut(index) else { return };
            let open = matches!(linked.wire, Wire::Open(_));
            linked.cut();
            if open {
                state.with_link(index, now, |link| link.disconnected(reason, now.mono));
                state.act(now);
            }
        });
    }

    /// Both tasks are done with the connection.
    pub(crate) fn link_over(&self, index: usize) {
        if let Some(linked) = self.state.borrow_mut().links.get_mut(index) {
            (linked.wire, linked.in_flight) = (Wire::None, 0);
        }
        self.end_if_last();
    }

    pub(crate) fn link_write(&self, index: usize) -> LinkWrite {
        let state = &mut *self.state.borrow_mut();
        let Some(linked) = state.links.get_mut(index) else { return LinkWrite::Gone };
        let ends = match linked.wire {
            Wire::Open(_) => false,
            Wire::Parting(..) => true,
            _ => return LinkWrite::Gone,
        };
        match linked.out.pop(Vec::new) {
            Some(segment) => {
                linked.in_flight = segment.as_ref().len();
                LinkWrite::Write(segment)
            }
            None if ends => LinkWrite::End,
            None => LinkWrite::Wait,
        }
    }

    pub(crate) fn link_written(&self, index: usize) {
        self.turn(|state, now| {
            let limit = state.config.outbound_limit / 4;
            let Some(linked) = state.links.get_mut(index) else { return };
            linked.in_flight = 0;
            if linked.clogged && linked.waiting() <= limit {
                linked.clogged = false;
                state.broker.handle(Input::Unclogged { conn: ConnId(index as u32) }, now);
                state.act(now);
            }
        });
    }
}

impl Linked {
    fn is_over(&self) -> bool {
        *self.link.state() == LinkState::Ended
    }
}

impl State {
    /// Whether a connection's number is that of a link.
    pub(super) fn link_of(&self, conn: ConnId) -> Option<usize> {
        Some(conn.0 as usize).filter(|index| *index < self.links.len())
    }

    /// Calls a link's translator, and does what it says.
    fn with_link(&mut self, index: usize, now: Now, call: impl FnOnce(&mut Link)) {
        if let Some(linked) = self.links.get_mut(index) {
            call(&mut linked.link);
            self.settle_link(index, now);
        }
    }

    /// Does what a link's translator says.
    fn settle_link(&mut self, index: usize, now: Now) {
        let Some(linked) = self.links.get_mut(index) else { return };
        while let Some(output) = linked.link.poll_output() {
            match output {
                LinkOutput::Core(input) => {
                    if let Input::Link { report, .. } = &input {
                        log(&report.address, &report.state, report.server_id.as_deref());
                    }
                    self.broker.handle(input, now);
                }
                LinkOutput::Send(message) => encode_client(&message, &mut linked.out),
                LinkOutput::Connect => linked.wants_connection = true,
                LinkOutput::Disconnect => {
                    linked.wants_connection = false;
                    match std::mem::replace(&mut linked.wire, Wire::None) {
                        Wire::Open(stream) => {
                            linked.wire = Wire::Parting(stream, now.mono + PARTING_TIME);
                            linked.writer.set();
                        }
                        other => {
                            linked.wire = other;
                            if matches!(linked.wire, Wire::Dialing(_)) {
                                linked.cut();
                            }
                        }
                    }
                }
                LinkOutput::Abort => linked.cut(),
            }
        }
        linked.wake.set();
        if linked.waiting() > self.config.outbound_limit && matches!(linked.wire, Wire::Open(_)) {
            let reason = format!("{} bytes wait for the peer, which does not read them", linked.waiting());
            linked.cut();
            linked.link.disconnected(reason, now.mono);
            self.settle_link(index, now);
        }
    }

    /// The core says something to the server at the other end of a link.
    pub(super) fn send_to_link(&mut self, conn: ConnId, message: &ServerMessage, now: Now) {
        if let Some(index) = self.link_of(conn) {
            self.with_link(index, now, |link| link.heard_from_core(message.clone(), now.mono));
        }
    }

    /// The core has broken off with it.
    pub(super) fn drop_link(&mut self, conn: ConnId, now: Now) {
        if let Some(index) = self.link_of(conn) {
            self.with_link(index, now, |link| link.dropped_by_core(now.mono));
        }
    }

    /// The core has given much to it, and waits for a word.
    pub(super) fn make_room_on_link(&mut self, conn: ConnId, now: Now) {
        let limit = self.config.outbound_limit / 4;
        let Some(linked) = self.link_of(conn).and_then(|index| self.links.get_mut(index)) else { return };
        if linked.waiting() <= limit {
            self.broker.handle(Input::Unclogged { conn }, now);
        } else {
            linked.clogged = true;
        }
    }

    /// A link has come or gone, of those that this server dials or that were dialled by others.
    pub(super) fn peers_changed(&mut self, now: Now) {
        for index in 0..self.links.len() {
            let Some(peer) = self.links[index].link.peer_id() else { continue };
            let dialled_by_peer = self.broker.has_dialling_peer(peer);
            self.with_link(index, now, |link| link.peers_changed(dialled_by_peer, now.mono));
        }
    }

    pub(super) fn links_deadline(&self) -> Option<Time> {
        let parting = |linked: &Linked| match linked.wire {
            Wire::Parting(_, until) => Some(until),
            _ => None,
        };
        self.links
            .iter()
            .flat_map(|linked| linked.link.next_deadline().into_iter().chain(parting(linked)))
            .min()
    }

    pub(super) fn time_out_links(&mut self, now: Now) {
        for index in 0..self.links.len() {
            let linked = &mut self.links[index];
            if matches!(linked.wire, Wire::Parting(_, until) if until <= now.mono) {
                linked.cut();
            }
            if linked.link.next_deadline().is_some_and(|deadline| deadline <= now.mono) {
                self.with_link(index, now, |link| link.handle_timeout(now.mono));
            }
        }
    }

    /// The server leaves: links say goodbye.
    pub(super) fn end_links(&mut self, now: Now) {
        for index in 0..self.links.len() {
            self.with_link(index, now, |link| link.end(now.mono));
        }
    }

    /// They are cut, whatever they were at.
    pub(super) fn cut_links(&mut self) {
        self.links.iter_mut().for_each(Linked::cut);
    }

    /// The turn ends: what it has for peers is written.
    pub(super) fn wake_links(&self) {
        for linked in self.links.iter().filter(|linked| !linked.out.is_empty()) {
            linked.writer.set();
        }
    }

    /// Bytes that wait to be sent to peers.
    pub(super) fn links_bytes(&self) -> usize {
        self.links.iter().map(|linked| linked.out.own_bytes() + linked.in_flight).sum()
    }

    /// Whether no link has a socket any more. A name that is looked up is not waited for.
    pub(super) fn links_are_over(&self) -> bool {
        self.links.iter().all(|linked| matches!(linked.wire, Wire::None | Wire::Dialing(None)))
    }
}

/// A line when a link gets into another state; what it fails of is said once, not for each try.
fn log(address: &str, state: &LinkState, peer: Option<&str>) {
    match state {
        LinkState::Up => tracing::info!(address, peer, "linked"),
        LinkState::Failed(reason) => tracing::warn!(address, reason, "no link to a peer: trying again"),
        LinkState::StandsBy => tracing::info!(address, peer, "the link that the peer has dialled stays"),
        LinkState::Connecting | LinkState::Ended => tracing::debug!(address, state = state.text(), "link"),
    }
}
