use crate::RefusalCause;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $text:literal,)*) => {
        /// What happened how often since the start. `$sys.stats` shows all of them under their camelCase names.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            /// Every counter with the name it is shown under, always in the same order.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
                [$(($text, self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Requests that arrived, sends and broadcasts included.
    requests: "requests",
    /// Of these, sends.
    sends: "sends",
    /// Of these, broadcasts.
    broadcasts: "broadcasts",
    /// Requests given to a handler; attempts and legs count each.
    deliveries: "deliveries",
    /// Deliveries beyond a request's first.
    redeliveries: "redeliveries",
    /// Of the deliveries, those to handlers of peers.
    forwarded: "forwarded",
    /// Of these, those that the peer did not run: others were asked.
    declined: "declined",
    /// Attempts at durable requests given to peers.
    forwarded_durable: "forwardedDurable",
    /// Of these, those that were with a peer when the link to it broke.
    stranded: "stranded",
    /// Of those, the ones that were given up because the peer did not come back (`--peer-lost`).
    peers_lost: "peersLost",
    /// Attempts at durable requests of peers that were made here.
    guests: "guests",
    /// Those that were not: nobody had room for them, or could have.
    guests_declined: "guestsDeclined",
    /// Those that came when their owner had given them up already: dropped.
    guests_stale: "guestsStale",
    /// Ends of such attempts that their owner never took.
    guests_unclaimed: "guestsUnclaimed",
    /// Replies with data that reached the core in time.
    replies: "replies",
    /// Errors that handlers answered with.
    handler_errors: "handlerErrors",
    /// Answers whose request was decided before: dropped.
    late_answers: "lateAnswers",
    /// Answers to deliveries that the connection did not hold: refused.
    foreign_answers: "foreignAnswers",
    /// Requests that ended with `timeout`.
    timeouts: "timeouts",
    /// Requests that ended with `expired`.
    expired: "expired",
    /// Requests that their requester cancelled, or whose requester went away.
    cancelled: "cancelled",
    /// Attempts that were lost with their handler.
    lost_attempts: "lostAttempts",
    /// Handlers that counted as stuck for a time.
    stuck_handlers: "stuckHandlers",
    /// Requests that ended with `handlerLost`.
    handler_lost: "handlerLost",
    /// Durable requests and sends whose idempotency key an earlier one had: they did not run.
    joined_requests: "joinedRequests",
    /// Deliveries that went on over a restart of the server.
    reattached: "reattached",
    /// Durable sends that failed and were, or will be, tried again.
    retried_sends: "retriedSends",
    /// Durable sends that were given up.
    dead_letters: "deadLetters",
    /// Durable requests whose data was read back from the log, each time.
    read_back: "readBack",
    /// Durable requests that ended because their data could not be read back: the disk has damaged it.
    unreadable: "unreadable",
    /// Records of requests that a handler had, which could not be copied forward because the disk has damaged them: they stay
    /// where they are as long as the handler may answer.
    left_damaged: "leftDamaged",
    /// Reads of the log that could not be tried for now, and were put off.
    reads_put_off: "readsPutOff",
    /// Requests refused with `noHandler`.
    refused_no_handler: "refusedNoHandler",
    /// Requests and legs refused with `overloaded`, for whatever bound.
    refused_overloaded: "refusedOverloaded",
    /// Of these, requests because too many waited for their action (`--queue-limit`).
    refused_queue_limit: "refusedQueueLimit",
    /// Because too many bytes waited for it (`--queue-limit-bytes`).
    refused_queue_bytes: "refusedQueueBytes",
    /// Because too much memory was in use (`--memory`).
    refused_memory: "refusedMemory",
    /// Legs because too many broadcasts waited for their handler (`--leg-queue-limit`).
    refused_legs: "refusedLegs",
    /// Requests refused with `draining`.
    refused_draining: "refusedDraining",
    /// Durable requests refused because there is no data directory.
    refused_durable: "refusedDurable",
    /// Durable requests, and connections of clients that the log may know, refused because it was still being read.
    refused_recovering: "refusedRecovering",
    /// Requests refused because their connection's key may not ask for that.
    refused_forbidden: "refusedForbidden",
    /// Requests refused for their form.
    refused_malformed: "refusedMalformed",
    /// Payloads that were not JSON and met a JSON connection.
    undeliverable: "undeliverable",
    /// Registrations refused: a bad name, too many of them, or a key that may not.
    refused_registrations: "refusedRegistrations",
    /// Connections since the start.
    connections_opened: "connectionsOpened",
    /// Connections that ended.
    connections_closed: "connectionsClosed",
    /// Connections closed because they broke the rules.
    connections_refused: "connectionsRefused",
    /// Connections closed because what came on them cannot be read: another protocol, broken frames or JSON, more
    /// than is allowed.
    connections_unreadable: "connectionsUnreadable",
    /// Connections turned away because there were as many as may be.
    connections_surplus: "connectionsSurplus",
    /// Connections turned away because so many others had not said who they are (`--max-unauthenticated`).
    connections_crowded: "connectionsCrowded",
    /// Connections turned away because so many others from their address had not (`--max-unauthenticated-per-address`).
    connections_crowded_address: "connectionsCrowdedAddress",
    /// Connections closed because they did not begin with a PROXY header, and should have (`--proxy-from`).
    connections_unproxied: "connectionsUnproxied",
    /// Connections closed because they said nothing whole in their first seconds.
    connections_mute: "connectionsMute",
    /// Connections closed because they did not read what they were sent (`--outbound-limit`).
    connections_slow: "connectionsSlow",
    /// Times that a connection got no more deliveries because it was slow to read what it was sent.
    connections_clogged: "connectionsClogged",
    /// Times that a connection was not read for a while: it was clogged, or memory was short (`--memory`).
    reads_held_back: "readsHeldBack",
    /// Connections closed within a large message because memory stayed short (`--memory`).
    connections_starved: "connectionsStarved",
    /// Connections turned away because their client had no secure key, or not the right one.
    connections_unauthorized: "connectionsUnauthorized",
    /// Connections closed after too long a silence.
    connections_silent: "connectionsSilent",
    /// Connections closed because another one took their session.
    sessions_taken: "sessionsTaken",
    /// Sessions that a client came back to.
    sessions_resumed: "sessionsResumed",
    /// Sessions forgotten because their client stayed away, or too many were away.
    sessions_forgotten: "sessionsForgotten",
    /// Outcomes sent again to a client that came back.
    outcomes_replayed: "outcomesReplayed",
    /// Outcomes that were kept for a reconnect and had to make room.
    outcomes_dropped: "outcomesDropped",
    /// Lists of receivers sent.
    receivers_sent: "receiversSent",
}

impl Counters {
    pub(crate) fn count(&mut self, cause: RefusalCause) {
        *match cause {
            RefusalCause::Unreadable => &mut self.connections_unreadable,
            RefusalCause::Surplus => &mut self.connections_surplus,
            RefusalCause::Crowded => &mut self.connections_crowded,
            RefusalCause::CrowdedAddress => &mut self.connections_crowded_address,
            RefusalCause::Unproxied => &mut self.connections_unproxied,
            RefusalCause::Mute => &mut self.connections_mute,
            RefusalCause::Slow => &mut self.connections_slow,
            RefusalCause::Starved => &mut self.connections_starved,
            RefusalCause::Unauthorized => &mut self.connections_unauthorized,
        } += 1;
    }
}
