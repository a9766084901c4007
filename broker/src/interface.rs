//! What goes into the core and what comes out of it.

use std::{fmt, time::Duration};

use bytes::Bytes;
use ringpost_protocol::{
    Code,
    message::{ClientMessage, ServerMessage},
};

use crate::{Identity, LinkReport, log::SegmentNumber};

/// A connection, as the driver numbers it. A number may be used again once its [`Input::Closed`] was handled and all
/// outputs were taken that waited then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u32);

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection {}", self.0)
    }
}

/// Which dialect a connection speaks: JSON has no hello and no numbers, the binary one has both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// The binary dialect.
    Binary,
    /// The JSON dialect.
    Json,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// A connection is there and has shown which dialect it speaks.
    Opened {
        /// Its number from now on.
        conn: ConnId,
        /// Its dialect.
        speaks: Speaks,
        /// Who it is, and what it may do from now on.
        identity: Identity,
    },
    /// A client said something.
    Message {
        /// On this connection.
        conn: ConnId,
        /// What it said.
        message: ClientMessage,
    },
    /// Bytes came that do not complete a message yet: the client is there, however long its message takes.
    Heard {
        /// On this connection.
        conn: ConnId,
    },
    /// A payload could not be put into the dialect of the connection that it was for ([`Output::Send`] of a delivery
    /// or a reply): it is not JSON. Say it before the next output is taken: what stands for the message comes in its place.
    Undeliverable {
        /// The connection that would have got it.
        conn: ConnId,
        /// The message that could not be encoded.
        message: Box<ServerMessage>,
    },
    /// A client has ended its half of the connection: it will say nothing more.
    HalfClosed {
        /// On this connection.
        conn: ConnId,
    },
    /// A connection is gone. Nothing more comes from it, and nothing can be sent to it.
    Closed {
        /// Which.
        conn: ConnId,
    },
    /// Much waits to be sent on a connection: its handlers get nothing more until [`Input::Unclogged`].
    Clogged {
        /// Which.
        conn: ConnId,
    },
    /// A connection that was clogged or full has read most of what waited.
    Unclogged {
        /// Which.
        conn: ConnId,
    },
    /// The driver does not read a connection for a while: it is clogged, or memory is short. It counts as heard.
    HeldBack {
        /// Which.
        conn: ConnId,
    },
    /// The driver has refused somebody, or broken off with them, before or without asking the core: it is counted here,
    /// beside what the core itself refuses.
    Refused {
        /// Why.
        cause: RefusalCause,
    },
    /// A link that the driver dials has got into another state, also before it is there: for `$sys.peers`, and to tell it
    /// from links that others have dialled.
    Link {
        /// The connection's number that is kept for it.
        conn: ConnId,
        /// What there is to say of it.
        report: Box<LinkReport>,
    },
    /// The log has got further, or failed: see [`Broker::log`](crate::Broker::log).
    Logged,
    /// What [`Output::Read`] asked for.
    Read {
        /// Which one.
        id: ReadId,
        /// All of the bytes, or why they are not there.
        result: Result<Bytes, ReadFault>,
    },
    /// The server shall leave: tell everybody, accept nothing new, finish what is open.
    Drain {
        /// How long the driver will wait for that, in milliseconds.
        grace_ms: u32,
    },
    /// The driver has waited long enough after [`Input::Drain`]: what is still open ends now, with `draining`.
    DrainOver,
}

/// Why a driver ends a connection by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalCause {
    /// What came on it cannot be read: another protocol, broken frames or JSON, more than is allowed.
    Unreadable,
    /// There are as many connections as may be.
    Surplus,
    /// So many connections had not said who they are that it was left to chance whether this one may try.
    Crowded,
    /// Its address had as many such connections as it may have.
    CrowdedAddress,
    /// It came from a network whose connections begin with a PROXY header, and that was missing or broken.
    Unproxied,
    /// It said nothing whole in its first seconds.
    Mute,
    /// It does not read what it is sent.
    Slow,
    /// It was within a large message, and memory stayed short.
    Starved,
    /// It has no secure key, or another one, or one for something else.
    Unauthorized,
}

/// What to do. The driver does it in this order for each connection.
#[derive(Debug)]
pub enum Output {
    /// Send a message.
    Send {
        /// To this connection.
        conn: ConnId,
        /// The message.
        message: ServerMessage,
    },
    /// Send what was given before, then close. Nothing more is said to this connection.
    Close {
        /// This connection.
        conn: ConnId,
        /// Why.
        reason: CloseReason,
    },
    /// As much as [`Config::window_bytes`](crate::Config::window_bytes) has gone out to this connection's handlers, and they
    /// get nothing more until [`Input::Unclogged`]. Say that at once if little of it still waits to be sent.
    Full {
        /// This connection.
        conn: ConnId,
    },
    /// Read a part of a segment of the log, beside everything else, and say [`Input::Read`]. It has been written before.
    Read(Read),
    /// What had been accepted cannot be read back from the log: the disk has damaged it. Its requester is told; people have to
    /// be, too.
    Unreadable(Unreadable),
    /// A link to another server has come or gone: look again which of those that the driver dials are wanted, by
    /// [`Broker::has_dialling_peer`](crate::Broker::has_dialling_peer).
    PeersChanged,
    /// A part of the log could not be read for now. It is asked for again, or, if that has been in vain for too long, the server
    /// has to end: see [`Unavailable::again_after`].
    Unavailable(Unavailable),
    /// After [`Input::Drain`]: nothing is open any more.
    Drained,
}

/// Names a read until it is done. Never used twice by one broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub(crate) u64);

/// A part of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// To be given back with what was read.
    pub id: ReadId,
    /// Of which segment.
    pub segment: SegmentNumber,
    /// From which byte of its file on.
    pub offset: u32,
    /// How many bytes: all of them are there.
    pub bytes: u32,
}

/// Why a read has not brought what is there. What it says is for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadFault {
    /// The disk has been asked for these bytes and does not have them any more, or the file ends before them: asked again, it
    /// will say the same.
    Damaged(String),
    /// It could not be asked, for want of memory or descriptors, or because the file is out of reach: nothing is known of the
    /// bytes.
    Unavailable(String),
}

/// A read that was in vain, of bytes that may be whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    /// Of which segment.
    pub segment: SegmentNumber,
    /// From which byte of its file on.
    pub offset: u32,
    /// How often it has been tried.
    pub tries: u32,
    /// What was in the way.
    pub why: String,
    /// When it is tried again. `None`: it is not any more. What was to be read can neither be given to anybody nor be called
    /// lost, so the driver ends the server, whose next start finds everything in the log.
    pub again_after: Option<Duration>,
}

/// Where the log is damaged, and what was lost by that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The request's count in the log.
    pub count: u64,
    /// The damaged segment.
    pub segment: SegmentNumber,
    /// Where the request's record begins.
    pub offset: u32,
    /// What is wrong with it.
    pub why: String,
    /// Whether the request has ended by that. It has not if it is with a handler, which may yet answer it.
    pub ended: bool,
}

/// Why the broker closes a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// The client had ended its half, and everything that was open is answered.
    Finished,
    /// It broke the rules, or may not be here any more. It has been told.
    Refused(Code),
    /// It was silent for too long.
    Silent,
    /// Its stream ended without a goodbye.
    Gone,
}
