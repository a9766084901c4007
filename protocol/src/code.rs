//! The one table of error codes. Wire, SDK error kinds, Python exceptions and exit codes all come from it.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $text:literal, exit $exit:literal;)*) => {
        /// What went wrong, as a stable code: a number in binary frames, a text in JSON.
        ///
        /// Codes are only ever added. A number that this build does not know reads as [`Code::Remote`] together with
        /// the message that came with it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// Every code of this version, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The code's number in binary frames.
            pub fn number(self) -> u16 {
                match self { $(Self::$variant => $number,)* }
            }

            /// The code with this number, if this version knows it.
            pub fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            /// The code as JSON and people see it.
            pub fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The exit code of a command that ends with this error.
            pub fn exit_code(self) -> u8 {
                match self { $(Self::$variant => $exit,)* }
            }
        }
    };
}

codes! {
    /// Nobody handles the action.
    NoHandler = 1, "noHandler", exit 3;
    /// A queue or the memory budget is full.
    Overloaded = 2, "overloaded", exit 3;
    /// The handler died and no attempts are left.
    HandlerLost = 3, "handlerLost", exit 3;
    /// The server is leaving.
    Draining = 4, "draining", exit 3;
    /// The server is reading its log and not ready for durable requests.
    Recovering = 5, "recovering", exit 3;
    /// No room on the disk for durable requests.
    StorageFull = 6, "storageFull", exit 3;
    /// The server has no data directory.
    DurableUnavailable = 7, "durableUnavailable", exit 3;
    /// The handler answered with an error of its own.
    Remote = 16, "remote", exit 1;
    /// The requester's time is over.
    Timeout = 32, "timeout", exit 4;
    /// The request's ttl is over.
    Expired = 33, "expired", exit 4;
    /// The requester cancelled.
    Cancelled = 34, "cancelled", exit 4;
    /// The connection broke and the request may have run.
    ConnectionLost = 48, "connectionLost", exit 69;
    /// No connection could be made.
    Connect = 49, "connect", exit 69;
    /// The key is wrong or missing.
    Unauthorized = 64, "unauthorized", exit 77;
    /// The key may not do that.
    Forbidden = 65, "forbidden", exit 77;
    /// Another connection took the session over. Final for this client.
    SessionTaken = 80, "sessionTaken", exit 75;
    /// The bytes are not what the protocol allows.
    Malformed = 96, "malformed", exit 65;
    /// Longer than a limit allows.
    TooLarge = 97, "tooLarge", exit 65;
    /// Nested deeper than a limit allows.
    TooDeep = 98, "tooDeep", exit 65;
    /// The name belongs to the broker.
    ReservedName = 99, "reservedName", exit 65;
    /// Well formed, but not understood or not offered here.
    Unsupported = 100, "unsupported", exit 65;
    /// The client was closed.
    Closed = 112, "closed", exit 69;
}

/// What finally became of a request, in the reference's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It waits for a handler.
    Enqueued,
    /// The broker has it.
    Received,
    /// A handler has it.
    Delivered,
    /// A handler replied.
    Handled,
    /// No handler got it, or the one that did is gone.
    NotDelivered,
    /// A handler answered with an error.
    NotHandled,
    /// Its time was over first.
    Expired,
}

impl Status {
    /// The status as it stands in JSON.
    pub fn text(self) -> &'static str {
        match self {
            Self::Enqueued => "enqueued",
            Self::Received => "received",
            Self::Delivered => "delivered",
            Self::Handled => "handled",
            Self::NotDelivered => "notDelivered",
            Self::NotHandled => "notHandled",
            Self::Expired => "expired",
        }
    }
}

impl Code {
    /// The status of a request that ended with this code.
    pub fn status(self) -> Status {
        match self {
            Self::Remote => Status::NotHandled,
            Self::Timeout | Self::Expired => Status::Expired,
            _ => Status::NotDelivered,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers and texts are unique, and a number leads back to its code.
    #[test]
    fn table_is_one_to_one() {
        for (index, code) in Code::ALL.iter().enumerate() {
            assert_eq!(Code::from_number(code.number()), Some(*code));
            for other in &Code::ALL[index + 1..] {
                assert_ne!(code.number(), other.number());
                assert_ne!(code.text(), other.text());
            }
        }
        assert_eq!(Code::from_number(0), None);
    }
}
