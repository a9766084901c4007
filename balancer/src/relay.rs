//! What a session does with its bytes: two ways, each a small state machine. Pure: it moves nothing itself.
//!
//! The driver asks [`Relay::next`] what a way has to do, does it, and tells by [`Relay::handle`] what came of it. A way
//! holds bytes in one place at a time, a buffer or a pipe, and takes in nothing more until that is empty: "drain the pipe
//! before reading again" is the shape of the machine, not a rule to remember.
//!
//! ```text
//!              Ready                    Came                         Went, nothing left
//!  AwaitInput ───────> Read or Fill ───────────> Write or Drain ─────────────────────> Read, Fill or AwaitInput
//!      ^                 │       │                  ^      │
//!      └── Nothing ──────┘       │ End        Ready │      │ NoRoom, or only a part Went
//!                                v                  │      v
//!                            TellEnd           AwaitRoom
//!                                │ Ended
//!                                v
//!                            Finished
//!
//!  SinkFailed   what is held is dropped, and what comes is read and thrown away until the source ends (Discarding): its
//!               other half may still bring the peer's last words, and closing over unread bytes would overtake them
//!               with a reset
//!  SourceFailed nobody can know what is missing: both ways are over, and both ends are told by a reset
//!  cut          both ways are over
//! ```
//!
//! The ways know nothing of each other but that: a half-closed session lives for as long as its other half flows.
//!
//! Invariants: a way that awaits input holds nothing, so an idle session pins neither buffer nor pipe; bytes that went
//! ≤ bytes that came; the output's end is told once, and only when all that came has gone.

use crate::pace::{Carrier, Pace};

/// Bytes that a way may move before it lets others have their turn.
pub(crate) const TURN_BYTES: usize = 1 << 20;

/// A way through the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the client to the instance.
    Up,
    /// From the instance to the client.
    Down,
}

impl Way {
    pub(crate) const BOTH: [Self; 2] = [Self::Up, Self::Down];

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// What a way has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Wait until the source has something. Buffer and pipe are empty: give them back.
    AwaitInput,
    /// Read into a buffer.
    Read,
    /// Splice into a pipe.
    Fill,
    /// Write the buffer.
    Write,
    /// Splice out of the pipe.
    Drain,
    /// Wait until the sink has room.
    AwaitRoom,
    /// Tell the sink that nothing more comes.
    TellEnd,
    /// Read, and throw it away.
    Discard,
    /// Nothing any more.
    Finished,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// What was awaited is there.
    Ready,
    /// So many bytes came; there was room for `room`.
    Came { bytes: usize, room: usize },
    /// The source has nothing now.
    Nothing,
    /// The source has ended.
    End,
    /// There is no pipe to be had.
    NoPipe,
    /// So many bytes went.
    Went { bytes: usize },
    /// The sink has no room now.
    NoRoom,
    /// The sink was told that nothing more comes.
    Ended,
    /// The source is broken.
    SourceFailed,
    /// The sink is broken.
    SinkFailed,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Both ends had said all.
    Orderly,
    /// A source broke.
    Reset,
    /// It was cut.
    Cut,
}

/// Both ways of a session.
#[derive(Debug)]
pub(crate) struct Relay {
    flows: [Flow; 2],
    ending: Option<Ending>,
}

/// One way.
#[derive(Debug)]
struct Flow {
    phase: Phase,
    pace: Pace,
    /// What the bytes that are held are in.
    carrier: Carrier,
    /// Bytes that came and have not gone.
    held: usize,
    /// The source may have something.
    can_read: bool,
    /// The sink may have room.
    can_write: bool,
    /// Bytes that came since input was last awaited.
    turn_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Flowing,
    /// The source has ended; what is held still has to go.
    Ending,
    /// The sink is broken, the source is not at its end.
    Discarding,
    Over,
}

impl Relay {
    /// A session that begins; `pace` decides for each way how its bytes are carried.
    pub(crate) fn new(pace: Pace) -> Self {
        Self { flows: [Flow::new(pace.clone()), Flow::new(pace)], ending: None }
    }

    /// What the way has to do now.
    pub(crate) fn next(&self, way: Way) -> Output {
        self.flows[way.index()].next()
    }

    /// Takes in what came of it.
    pub(crate) fn handle(&mut self, way: Way, input: Input) {
        if input == Input::SourceFailed {
            return self.end(Ending::Reset);
        }
        self.flows[way.index()].handle(input);
        if self.is_over() {
            self.ending.get_or_insert(Ending::Orderly);
        }
    }

    /// Ends both ways at once.
    pub(crate) fn cut(&mut self) {
        self.end(Ending::Cut);
    }

    fn end(&mut self, how: Ending) {
        self.ending.get_or_insert(how);
        for flow in &mut self.flows {
            flow.phase = Phase::Over;
        }
    }

    /// Neither way has anything to do any more.
    pub(crate) fn is_over(&self) -> bool {
        self.flows.iter().all(|flow| flow.phase == Phase::Over)
    }

    /// The way's source has said all.
    pub(crate) fn has_ended(&self, way: Way) -> bool {
        matches!(self.flows[way.index()].phase, Phase::Ending | Phase::Over)
    }

    /// How it ended, if it has.
    pub(crate) fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// All that is left is to throw away what still comes: that needs a bound in time.
    pub(crate) fn lingers(&self) -> bool {
        self.flows.iter().any(|flow| flow.phase == Phase::Discarding)
            && self.flows.iter().all(|flow| matches!(flow.phase, Phase::Discarding | Phase::Over))
    }

    /// Bytes that came and have not gone.
    #[cfg(test)]
    fn held(&self, way: Way) -> usize {
        self.flows[way.index()].held
    }
}

impl Flow {
    fn new(pace: Pace) -> Self {
        Self {
            phase: Phase::Flowing,
            carrier: pace.carrier(),
            pace,
            held: 0,
            can_read: false,
            can_write: true,
            turn_bytes: 0,
        }
    }

    fn next(&self) -> Output {
        match self.phase {
            Phase::Over => Output::Finished,
            Phase::Discarding if self.can_read => Output::Discard,
            Phase::Discarding => Output::AwaitInput,
            Phase::Flowing | Phase::Ending if self.held > 0 => match (self.can_write, self.carrier) {
                (false, _) => Output::AwaitRoom,
                (true, Carrier::Copy) => Output::Write,
                (true, Carrier::Splice) => Output::Drain,
            },
            Phase::Ending => Output::TellEnd,
            Phase::Flowing if !self.can_read || self.turn_bytes >= TURN_BYTES => Output::AwaitInput,
            Phase::Flowing => match self.carrier {
                Carrier::Copy => Output::Read,
                Carrier::Splice => Output::Fill,
            },
        }
    }

    fn handle(&mut self, input: Input) {
        match (self.phase, input) {
            (Phase::Over, _) => {}
            (_, Input::Ready) if self.held > 0 => self.can_write = true,
            (_, Input::Ready) => {
                self.can_read = true;
                self.turn_bytes = 0;
            }
            (_, Input::Nothing) => self.can_read = false,
            (Phase::Discarding, Input::Came { .. }) => {}
            (Phase::Discarding, Input::End) => self.phase = Phase::Over,
            (_, Input::Came { bytes, room }) => self.came(bytes, room),
            (_, Input::End) => self.phase = Phase::Ending,
            (_, Input::NoPipe) => {
                self.pace.no_pipe();
                self.carrier = self.pace.carrier();
            }
            (_, Input::Went { bytes }) => {
                debug_assert!(bytes <= self.held, "{bytes} went of {} that were held", self.held);
                self.held = self.held.saturating_sub(bytes);
                // What did not go whole has filled the sink.
                self.can_write = self.held == 0;
                if self.held == 0 {
                    self.carrier = self.pace.carrier();
                    self.can_write = true;
                }
            }
            (_, Input::NoRoom) => self.can_write = false,
            (_, Input::Ended) => self.phase = Phase::Over,
            (phase, Input::SinkFailed) => {
                self.held = 0;
                self.phase = if phase == Phase::Ending { Phase::Over } else { Phase::Discarding };
            }
            // `Relay::handle` has it.
            (_, Input::SourceFailed) => self.phase = Phase::Over,
        }
    }

    fn came(&mut self, bytes: usize, room: usize) {
        debug_assert_eq!(self.held, 0, "nothing is taken in on top of what is held");
        self.held += bytes;
        self.turn_bytes += bytes;
        // A read that leaves room has emptied the source. Should more have come since, awaiting it takes no time.
        self.can_read = bytes >= room;
        self.pace.came(bytes, room);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::config::Splicing;

    /// One end of a connection as the kernel has it: what it will still send, and what it has room for.
    #[derive(Debug, Default)]
    struct End {
        to_send: VecDeque<u8>,
        /// Bytes of it that have arrived.
        arrived: usize,
        ends: bool,
        got: Vec<u8>,
        got_end: bool,
        room: usize,
    }

    /// What the world does between two steps of the relay.
    #[derive(Debug, Clone)]
    enum Event {
        Arrive(bool, usize),
        Room(bool, usize),
        PipesRunOut(bool),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (any::<bool>(), 1..200_000usize).prop_map(|(end, bytes)| Event::Arrive(end, bytes)),
            (any::<bool>(), 1..200_000usize).prop_map(|(end, bytes)| Event::Room(end, bytes)),
            any::<bool>().prop_map(Event::PipesRunOut),
        ]
    }

    struct World {
        relay: Relay,
        ends: [End; 2],
        held: [Vec<u8>; 2],
        no_pipes: bool,
    }

    const BUFFER: usize = 16 << 10;
    const PIPE: usize = 64 << 10;

    impl World {
        /// Lets a way do what it can; whether it did anything.
        fn step(&mut self, way: Way) -> bool {
            let (from, to) = (way.index(), 1 - way.index());
            let output = self.relay.next(way);
            let held = self.held[way.index()].len();
            assert_eq!(held, self.relay.held(way));
            let input = match output {
                Output::Finished => return false,
                Output::AwaitInput => {
                    assert_eq!(held, 0, "an idle way holds nothing");
                    let source = &self.ends[from];
                    if source.arrived == 0 && !(source.ends && source.to_send.is_empty()) {
                        return false;
                    }
                    Input::Ready
                }
                Output::AwaitRoom if self.ends[to].room == 0 => return false,
                Output::AwaitRoom => Input::Ready,
                Output::Fill if self.no_pipes => Input::NoPipe,
                Output::Read | Output::Fill | Output::Discard => {
                    assert_eq!(held, 0);
                    let room = if output == Output::Fill { PIPE } else { BUFFER };
                    let source = &mut self.ends[from];
                    let bytes = source.arrived.min(room);
                    source.arrived -= bytes;
                    self.held[way.index()] = source.to_send.drain(..bytes).collect();
                    match bytes {
                        0 if source.ends && source.to_send.is_empty() => Input::End,
                        0 => Input::Nothing,
                        bytes => Input::Came { bytes, room },
                    }
                }
                Output::Write | Output::Drain => {
                    let bytes = held.min(self.ends[to].room);
                    self.ends[to].room -= bytes;
                    self.ends[to].got.extend(self.held[way.index()].drain(..bytes));
                    if bytes == 0 { Input::NoRoom } else { Input::Went { bytes } }
                }
                Output::TellEnd => {
                    assert_eq!(held, 0, "the end comes behind all bytes");
                    assert!(!self.ends[to].got_end, "the end is told once");
                    self.ends[to].got_end = true;
                    Input::Ended
                }
            };
            self.relay.handle(way, input);
            true
        }

        fn run(&mut self) {
            while Way::BOTH.map(|way| self.step(way)).contains(&true) {}
        }
    }

    fn bytes(seed: u8, count: usize) -> Vec<u8> {
        (0..count).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed) ^ (at >> 8) as u8).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        /// However bytes arrive and room comes, with pipes or without, both ends get exactly what the other one sent and
        /// then its end, each way for itself; nothing is taken in on top of what is held.
        #[test]
        fn both_ways_are_exact(
            counts in [0..500_000usize, 0..500_000usize],
            ends_half in any::<[bool; 2]>(),
            splicing in prop_oneof![Just(Splicing::Auto), Just(Splicing::Never), Just(Splicing::Always)],
            events in prop::collection::vec(event(), 0..60),
        ) {
            let sent = [bytes(1, counts[0]), bytes(2, counts[1])];
            let end = |way: usize| End {
                to_send: sent[way].iter().copied().collect(),
                ends: ends_half[way],
                ..End::default()
            };
            let mut world = World {
                relay: Relay::new(Pace::new(splicing)),
                ends: [end(0), end(1)],
                held: Default::default(),
                no_pipes: false,
            };
            for event in events {
                match event {
                    Event::Arrive(end, bytes) => {
                        let end = &mut world.ends[usize::from(end)];
                        end.arrived = (end.arrived + bytes).min(end.to_send.len());
                    }
                    Event::Room(end, bytes) => world.ends[usize::from(end)].room += bytes,
                    Event::PipesRunOut(out) => world.no_pipes = out,
                }
                world.run();
            }
            for end in &mut world.ends {
                (end.arrived, end.room) = (end.to_send.len(), usize::MAX / 2);
            }
            world.run();
            for way in Way::BOTH {
                let (from, to) = (way.index(), 1 - way.index());
                prop_assert_eq!(&world.ends[to].got, &sent[from]);
                prop_assert_eq!(world.ends[to].got_end, ends_half[from]);
            }
            prop_assert_eq!(world.relay.is_over(), ends_half == [true, true]);
            // A half that is left open still flows.
            for way in Way::BOTH.into_iter().filter(|way| !ends_half[way.index()]) {
                world.ends[way.index()].to_send = VecDeque::from(vec![7; 3]);
                world.ends[way.index()].arrived = 3;
                world.run();
                prop_assert!(world.ends[1 - way.index()].got.ends_with(&[7; 3]));
                world.ends[way.index()].ends = true;
            }
            world.run();
            prop_assert_eq!(world.relay.ending(), Some(Ending::Orderly));
        }
    }

    fn relay() -> Relay {
        Relay::new(Pace::new(Splicing::Never))
    }

    fn feed(relay: &mut Relay, way: Way, inputs: &[Input]) {
        for input in inputs {
            relay.handle(way, *input);
        }
    }

    /// A sink that breaks ends its way alone: the other one brings the last words, and what comes meanwhile is thrown
    /// away until its source ends.
    #[test]
    fn a_broken_sink_leaves_the_other_way() {
        let mut relay = relay();
        feed(&mut relay, Way::Up, &[Input::Ready, Input::Came { bytes: 5, room: 9 }, Input::SinkFailed]);
        assert_eq!((relay.next(Way::Up), relay.next(Way::Down)), (Output::AwaitInput, Output::AwaitInput));
        feed(&mut relay, Way::Down, &[Input::Ready, Input::Came { bytes: 3, room: 9 }]);
        assert_eq!(relay.next(Way::Down), Output::Write);
        assert!(!relay.lingers());
        feed(&mut relay, Way::Down, &[Input::Went { bytes: 3 }, Input::Ready, Input::End, Input::Ended]);
        assert!(relay.lingers() && !relay.is_over());
        feed(&mut relay, Way::Up, &[Input::Ready, Input::Came { bytes: 9, room: 9 }]);
        assert_eq!(relay.next(Way::Up), Output::Discard);
        feed(&mut relay, Way::Up, &[Input::End]);
        assert_eq!(relay.ending(), Some(Ending::Orderly));
    }

    /// A source that breaks ends both ways, as a reset; so does a cut, and what comes after it changes nothing.
    #[test]
    fn a_broken_source_ends_both() {
        for (cut, ending) in [(false, Ending::Reset), (true, Ending::Cut)] {
            let mut relay = relay();
            feed(&mut relay, Way::Down, &[Input::Ready, Input::Came { bytes: 5, room: 9 }, Input::NoRoom]);
            if cut {
                relay.cut()
            } else {
                relay.handle(Way::Up, Input::SourceFailed)
            }
            feed(&mut relay, Way::Down, &[Input::Ready, Input::End, Input::SourceFailed]);
            assert_eq!(Way::BOTH.map(|way| relay.next(way)), [Output::Finished; 2]);
            assert_eq!(relay.ending(), Some(ending));
        }
    }

    /// A way that never runs dry lets others have their turn.
    #[test]
    fn a_stream_takes_turns() {
        let mut relay = relay();
        relay.handle(Way::Up, Input::Ready);
        let mut moved = 0;
        while relay.next(Way::Up) == Output::Read {
            feed(
                &mut relay,
                Way::Up,
                &[Input::Came { bytes: 1000, room: 1000 }, Input::Went { bytes: 1000 }],
            );
            moved += 1000;
        }
        assert_eq!(relay.next(Way::Up), Output::AwaitInput);
        assert!((TURN_BYTES..TURN_BYTES + 1000).contains(&moved), "{moved}");
        relay.handle(Way::Up, Input::Ready);
        assert_eq!(relay.next(Way::Up), Output::Read);
    }
}
