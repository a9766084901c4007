//! Where the fixed parts hold what. Offsets count from behind the frame's 16-byte header.

/// Flag of `hello`: the client wants to be told the receivers.
pub const HELLO_WATCH: u8 = 1;
/// Flag of `hello`: a server speaks, which wants to be a peer.
pub const HELLO_PEER: u8 = 2;
/// Flag of `welcome`: all requests and sends are durable.
pub const WELCOME_DURABLE: u8 = 1;
/// Flag of `resume`: the client takes what is kept for earlier processes, too.
pub const RESUME_UNCLAIMED: u8 = 1;
/// Flag of `reply`: it is a leg of a broadcast.
pub const REPLY_LEG: u8 = 1;
/// Flag of `answer`: try again later (durable requests).
pub const ANSWER_RETRY: u8 = 1;
/// Flag of `answer`: never try again (durable requests).
pub const ANSWER_REJECT: u8 = 2;
/// Flag of `answer`: from a peer, the request has not run there and will not.
pub const ANSWER_DECLINED: u8 = 4;
/// Flag of `answer`: from a peer, the outcome of one of several handlers that a broadcast asked; the delivery goes on.
pub const ANSWER_LEG: u8 = 8;
/// A time span that is not there.
pub const NO_MILLIS: u32 = u32::MAX;

/// `hello`: then the session's name, with the flag `peer` the server's own name, then headers.
pub mod hello {
    /// u8: bytes of the session's name.
    pub const SESSION_LENGTH: usize = 0;
    /// u8: with the flag `peer`, bytes of the server's own name.
    pub const PEER_LENGTH: usize = 1;
    /// u32: which of the instance's connections this is, from 1.
    pub const CONNECTION: usize = 4;
    /// u64: random for each client; 0 without a session's name.
    pub const INSTANCE: usize = 8;
    /// Size of the fixed part; bytes 2 and 3 are reserved, 0.
    pub const SIZE: usize = 16;
}

/// `welcome`: then the server's id, then headers.
pub mod welcome {
    /// u64: the boot id.
    pub const BOOT: usize = 0;
    /// u64: which connection of the session this is.
    pub const EPOCH: usize = 8;
    /// u64: changes when the session is made anew, or gets to another instance.
    pub const TENURE: usize = 16;
    /// u64: the lowest number for the next request.
    pub const NEXT_NUMBER: usize = 24;
    /// u32: the longest payload.
    pub const MAX_PAYLOAD: usize = 32;
    /// u32: milliseconds of silence before a ping.
    pub const PING_INTERVAL: usize = 36;
    /// u8: bytes of the server's id.
    pub const SERVER_ID_LENGTH: usize = 40;
    /// Size of the fixed part; bytes 41 to 47 are reserved, 0.
    pub const SIZE: usize = 48;
}

/// `register` (number: the registration): then the action.
pub mod register {
    /// u32: how many requests at once; 0 for the server's default.
    pub const CREDIT: usize = 0;
    /// u8: bytes of the action.
    pub const ACTION_LENGTH: usize = 4;
    /// Size of the fixed part; bytes 5 to 7 are reserved, 0.
    pub const SIZE: usize = 8;
}

/// `credit` (number: the registration).
pub mod credit {
    /// u32: how many requests at once from now on.
    pub const CREDIT: usize = 0;
    /// Size of the fixed part; bytes 4 to 7 are reserved, 0.
    pub const SIZE: usize = 8;
}

/// `request` (number: the requester's): then action, options, headers, payload.
pub mod request {
    /// u32: ttl in milliseconds; 0 for the default.
    pub const TTL: usize = 0;
    /// u32: timeout in milliseconds; 0 for the default.
    pub const TIMEOUT: usize = 4;
    /// u16: bytes of the options.
    pub const OPTIONS_LENGTH: usize = 8;
    /// u16: bytes of the headers.
    pub const HEADERS_LENGTH: usize = 10;
    /// u8: bytes of the action.
    pub const ACTION_LENGTH: usize = 12;
    /// u8: deliveries at most; 0 for the default.
    pub const MAX_ATTEMPTS: usize = 13;
    /// Size of the fixed part; bytes 14 and 15 are reserved, 0.
    pub const SIZE: usize = 16;
}

/// `deliver` (number: the delivery; flags: those of the request): then options, headers, payload.
pub mod deliver {
    /// u64: boot that accepted the request.
    pub const REQUEST_BOOT: usize = 0;
    /// u64: the request's count within that boot.
    pub const REQUEST_COUNT: usize = 8;
    /// u64: milliseconds since the Unix epoch.
    pub const RECEIVED_AT: usize = 16;
    /// u32: milliseconds until the requester stops waiting; all ones for no end.
    pub const TIME_LEFT: usize = 24;
    /// u32: the handler's registration.
    pub const REGISTRATION: usize = 28;
    /// u16: from 1.
    pub const ATTEMPT: usize = 32;
    /// u16: bytes of the options.
    pub const OPTIONS_LENGTH: usize = 34;
    /// u16: bytes of the headers.
    pub const HEADERS_LENGTH: usize = 36;
    /// Size of the fixed part; bytes 38 and 39 are reserved, 0.
    pub const SIZE: usize = 40;
}

/// `answer` (number: the delivery): then the handler's own error code, options, headers, payload.
pub mod answer {
    /// u64: counts the session's answers from 1.
    pub const SEQUENCE: usize = 0;
    /// u32: with the flag `retry`, milliseconds until the next attempt.
    pub const RETRY_AFTER: usize = 8;
    /// u16: 0 for a reply, `remote` for an error, `cancelled` when it stopped because it was told to; from a peer any
    /// error's number.
    pub const CODE: usize = 12;
    /// u16: bytes of the options.
    pub const OPTIONS_LENGTH: usize = 14;
    /// u16: bytes of the headers.
    pub const HEADERS_LENGTH: usize = 16;
    /// u8: bytes of the handler's own error code.
    pub const NAME_LENGTH: usize = 18;
    /// Size of the fixed part; bytes 19 to 23 are reserved, 0.
    pub const SIZE: usize = 24;
}

/// `reply` (number: the requester's): then the handler's own error code, options, headers, payload.
pub mod reply {
    /// u64: counts the session's outcomes from 1.
    pub const SEQUENCE: usize = 0;
    /// u64: milliseconds since the Unix epoch.
    pub const RECEIVED_AT: usize = 8;
    /// u32: milliseconds from receipt to the last delivery; all ones if there was none.
    pub const DELIVERED_AFTER: usize = 16;
    /// u32: milliseconds from receipt to the answer; all ones if there was none.
    pub const HANDLED_AFTER: usize = 20;
    /// u32: with the flag `leg`, which one, from 0.
    pub const LEG: usize = 24;
    /// u32: with the flag `leg`, how many there are.
    pub const EXPECTED: usize = 28;
    /// u16: attempts so far.
    pub const ATTEMPT: usize = 32;
    /// u16: 0 for a reply, else the error's number.
    pub const CODE: usize = 34;
    /// u16: bytes of the options.
    pub const OPTIONS_LENGTH: usize = 36;
    /// u16: bytes of the headers.
    pub const HEADERS_LENGTH: usize = 38;
    /// u8: bytes of the handler's own error code.
    pub const NAME_LENGTH: usize = 40;
    /// Size of the fixed part; bytes 41 to 47 are reserved, 0.
    pub const SIZE: usize = 48;
}

/// `asked` (number: the requester's): then the action, then headers.
pub mod asked {
    /// u8: bytes of the action.
    pub const ACTION_LENGTH: usize = 0;
    /// Size of the fixed part; bytes 1 to 7 are reserved, 0.
    pub const SIZE: usize = 8;
}

/// `legs` (number: the requester's; from a peer, the delivery).
pub mod legs {
    /// u32: how many handlers were asked.
    pub const EXPECTED: usize = 0;
    /// Size of the fixed part; bytes 4 to 7 are reserved, 0.
    pub const SIZE: usize = 8;
}

/// `resume`: then the open numbers and the held deliveries, 8 bytes each.
pub mod resume {
    /// u64: the boot that the client knew.
    pub const BOOT: usize = 0;
    /// u64: the last outcome that it received.
    pub const SEQUENCE: usize = 8;
    /// u64: the boot that made the held deliveries.
    pub const HELD_BOOT: usize = 16;
    /// u32: how many open numbers follow.
    pub const OPEN_COUNT: usize = 24;
    /// u32: how many held deliveries follow those.
    pub const HELD_COUNT: usize = 28;
    /// Size of the fixed part.
    pub const SIZE: usize = 32;
}

/// `resumed`: then a number (8 bytes) and a state (1 byte) for each open number, then the forgotten deliveries, 8 bytes
/// each, then for each delivery that goes on the number that it had and the one that it has now.
pub mod resumed {
    /// u32: how many open numbers follow.
    pub const OPEN_COUNT: usize = 0;
    /// u32: how many forgotten deliveries follow those.
    pub const FORGOTTEN_COUNT: usize = 4;
    /// u32: how many deliveries that go on follow those.
    pub const ATTACHED_COUNT: usize = 8;
    /// Size of the fixed part; bytes 12 to 15 are reserved, 0.
    pub const SIZE: usize = 16;
    /// State: it will be answered.
    pub const RUNNING: u8 = 1;
    /// State: the outcome follows.
    pub const OUTCOME: u8 = 2;
    /// State: send it again.
    pub const NEVER_SEEN: u8 = 3;
    /// State: it may have run; nothing more is known.
    pub const LOST: u8 = 4;
}

/// `error` (number: by scope): then the message, UTF-8.
pub mod error {
    /// u8: 0 the connection, 1 a registration, 2 a delivery.
    pub const SCOPE: usize = 0;
    /// u16: the error's number.
    pub const CODE: usize = 2;
    /// Size of the fixed part; byte 1 is reserved, 0.
    pub const SIZE: usize = 4;
}

/// `goaway` from a server: then the reason, UTF-8.
pub mod goaway {
    /// u32: how long it waits, in milliseconds.
    pub const GRACE: usize = 0;
    /// Size of the fixed part.
    pub const SIZE: usize = 4;
}

/// Flag of `abroad` and `unknown`: more of the same list follows.
pub const RUNS_MORE: u8 = 1;

/// Which attempt: `working`, `withdraw` and `taken` (number: the request's count) have nothing else in their fixed part, and
/// `abroad` and `unknown` (number: the tie) a list of these with the count behind the boot.
pub mod run {
    /// u64: the boot that counts the request: its owner's log.
    pub const REQUEST_BOOT: usize = 0;
    /// u16: which attempt, from 1.
    pub const ATTEMPT: usize = 8;
    /// u64: the last tie that the peer had been told when it was given this; 0 if the owner does not know.
    pub const TIE: usize = 16;
    /// Size of the fixed part; bytes 10 to 15 are reserved, 0.
    pub const SIZE: usize = 24;
    /// In a list, u64: the request's count.
    pub const LISTED_COUNT: usize = 24;
    /// Size in a list.
    pub const LISTED_SIZE: usize = 32;
}

/// `forward` (number: the request's count; flags: those of the request): then action, options, headers, payload.
pub mod forward {
    /// u64: the boot that counts the request.
    pub const REQUEST_BOOT: usize = 0;
    /// u16: which attempt, from 1.
    pub const ATTEMPT: usize = 8;
    /// u16: bytes of the options.
    pub const OPTIONS_LENGTH: usize = 10;
    /// u16: bytes of the headers.
    pub const HEADERS_LENGTH: usize = 12;
    /// u8: bytes of the action.
    pub const ACTION_LENGTH: usize = 14;
    /// u64: the last tie that was told.
    pub const TIE: usize = 16;
    /// u64: milliseconds since the Unix epoch.
    pub const RECEIVED_AT: usize = 24;
    /// u32: milliseconds until it expires.
    pub const TIME_LEFT: usize = 32;
    /// Size of the fixed part; bytes 15 and 36 to 39 are reserved, 0.
    pub const SIZE: usize = 40;
}

/// `ended` (number: the request's count; flags: those of an answer): then the handler's own error code, options, headers,
/// payload.
pub mod ended {
    /// u64: the boot that counts the request.
    pub const REQUEST_BOOT: usize = 0;
    /// u16: which attempt, from 1.
    pub const ATTEMPT: usize = 8;
    /// u16: as an answer's.
    pub const CODE: usize = 10;
    /// u32: with the flag `retry`, milliseconds until the next attempt.
    pub const RETRY_AFTER: usize = 12;
    /// u16: bytes of the options.
    pub const OPTIONS_LENGTH: usize = 16;
    /// u16: bytes of the headers.
    pub const HEADERS_LENGTH: usize = 18;
    /// u8: bytes of the handler's own error code.
    pub const NAME_LENGTH: usize = 20;
    /// u64: the tie of the `forward` that it answers.
    pub const TIE: usize = 24;
    /// Size of the fixed part; bytes 21 to 23 are reserved, 0.
    pub const SIZE: usize = 32;
}
