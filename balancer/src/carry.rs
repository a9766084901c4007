//! Does what a way of a [`Relay`](crate::relay::Relay) has to do: the only place where a session's bytes are touched.

use std::{io, ops::Range, rc::Rc, time::Duration};

use ringpost_io::{clock, endpoint::Endpoint, pipe::Pipe, ring};

use crate::{
    core::{Core, CrashWithMe},
    pace::BUFFER_BYTES,
    pools::{Buffer, Pools},
    relay::{Input, Output, Way},
    session::Session,
};

/// How long a peer may go on after all that it could be told was told: what it sends is thrown away.
const LINGER_TIME: Duration = Duration::from_secs(1);
/// The most that one fill is asked to bring: a pipe holds what it holds.
const FILL_BYTES: usize = 1 << 20;
/// A fill of so much has most likely not emptied its source.
const LIKELY_MORE_BYTES: usize = 64 << 10;

/// A write of up to so much goes out with all others of the same turn.
const SMALL_BYTES: usize = 4 << 10;

/// What a way has in its hands while bytes are under way.
enum Hands {
    Empty,
    /// A buffer, whose bytes from `start` to `end` have not gone.
    Buffer {
        buffer: Buffer,
        start: usize,
        end: usize,
    },
    Pipe(Pipe),
}

/// Carries one way's bytes until there are no more.
pub(crate) async fn carry(core: Rc<Core>, session: Rc<Session>, way: Way) {
    let _crash = CrashWithMe(core.clone());
    let (from, to) = session.ends(way);
    let mut hands = Hands::Empty;
    loop {
        let output = session.relay.borrow().next(way);
        let input = match output {
            Output::AwaitInput => {
                hands.give_back(&mut core.pools.borrow_mut());
                from.readable().await.map_or(Input::SourceFailed, |()| Input::Ready)
            }
            Output::AwaitRoom => to.writable().await.map_or(Input::SinkFailed, |()| Input::Ready),
            Output::Read => hands.read(&core, from),
            Output::Discard => match hands.read(&core, from) {
                // It may have broken by now: then it has ended.
                Input::SourceFailed => Input::End,
                input => input,
            },
            Output::Fill => hands.fill(&core, from),
            Output::Write | Output::Drain => {
                let input = match hands.small().filter(|_| core.turn.goes_together()) {
                    Some(small) => hands.write_in_turn(small, to).await,
                    None => hands.write(to),
                };
                if let Input::Went { bytes } = input {
                    session.tally.carried(way, bytes, output == Output::Drain);
                    session.moved.set(session.moved.get() + bytes as u64);
                }
                input
            }
            Output::TellEnd => match to.shutdown(std::net::Shutdown::Write) {
                Ok(()) => Input::Ended,
                Err(_) => Input::SinkFailed,
            },
            Output::Finished => break,
        };
        match input {
            Input::Came { .. } => session.came(&core, way),
            Input::End | Input::SourceFailed => {
                let client_ended = session.relay.borrow().has_ended(Way::Up);
                session.source_ended(&core, way, client_ended);
            }
            _ => {}
        }
        session.relay.borrow_mut().handle(way, input);
        if matches!(input, Input::SinkFailed | Input::Ended) {
            linger(&session);
        }
    }
    hands.give_back(&mut core.pools.borrow_mut());
    session.way_ended(&core);
}

/// Cuts the session after a while, if all that is left of it is to throw away what comes.
fn linger(session: &Rc<Session>) {
    if session.relay.borrow().lingers() && !session.lingering.replace(true) {
        let session = session.clone();
        ring::spawn(async move {
            clock::sleep(LINGER_TIME).await;
            session.cut();
        });
    }
}

impl Hands {
    fn read(&mut self, core: &Core, from: &Endpoint) -> Input {
        if !matches!(self, Self::Buffer { .. }) {
            self.give_back(&mut core.pools.borrow_mut());
        }
        let mut buffer = match std::mem::replace(self, Self::Empty) {
            Self::Buffer { buffer, .. } => buffer,
            _ => core.pools.borrow_mut().buffer(),
        };
        let outcome = from.try_read(&mut buffer[..]);
        let end = *outcome.as_ref().unwrap_or(&0);
        *self = Self::Buffer { buffer, start: 0, end };
        came(outcome, BUFFER_BYTES)
    }

    fn fill(&mut self, core: &Core, from: &Endpoint) -> Input {
        if !matches!(self, Self::Pipe(_)) {
            self.give_back(&mut core.pools.borrow_mut());
        }
        let pipe = match std::mem::replace(self, Self::Empty) {
            Self::Pipe(pipe) => Some(pipe),
            _ => core.pools.borrow_mut().pipe(|| core.now()),
        };
        let Some(mut pipe) = pipe else { return Input::NoPipe };
        let outcome = pipe.fill(from, FILL_BYTES);
        *self = Self::Pipe(pipe);
        came(outcome, LIKELY_MORE_BYTES)
    }

    /// The bytes in a buffer, if they are few and none of them has gone.
    fn small(&self) -> Option<Range<usize>> {
        match self {
            Self::Buffer { start: 0, end, .. } if *end <= SMALL_BYTES => Some(0..*end),
            _ => None,
        }
    }

    /// Writes through the ring: what all sessions have to send in a turn leaves by one system call. Each send then finds the
    /// kernel's code for it in the cache, which for small messages is most of what it costs.
    async fn write_in_turn(&mut self, bytes: Range<usize>, to: &Endpoint) -> Input {
        let Self::Buffer { buffer, start, end } = std::mem::replace(self, Self::Empty) else {
            return Input::NoRoom;
        };
        let (outcome, buffer) = to.write(buffer, bytes).await;
        let written = *outcome.as_ref().unwrap_or(&0);
        *self = Self::Buffer { buffer, start: start + written, end };
        went(outcome)
    }

    fn write(&mut self, to: &Endpoint) -> Input {
        let outcome = match self {
            // The relay asks to write only what came.
            Self::Empty => Ok(0),
            Self::Buffer { buffer, start, end } => {
                to.try_write(&buffer[*start..*end]).inspect(|written| *start += written)
            }
            Self::Pipe(pipe) => pipe.drain(to),
        };
        went(outcome)
    }

    fn give_back(&mut self, pools: &mut Pools) {
        match std::mem::replace(self, Self::Empty) {
            Self::Empty => {}
            Self::Buffer { buffer, .. } => pools.give_buffer(buffer),
            Self::Pipe(pipe) => pools.give_pipe(pipe),
        }
    }
}

fn came(outcome: io::Result<usize>, room: usize) -> Input {
    match outcome {
        Ok(0) => Input::End,
        Ok(bytes) => Input::Came { bytes, room },
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Input::Nothing,
        Err(error) => {
            tracing::debug!(%error, "a connection that can not be read from");
            Input::SourceFailed
        }
    }
}

fn went(outcome: io::Result<usize>) -> Input {
    match outcome {
        Ok(bytes) => Input::Went { bytes },
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Input::NoRoom,
        Err(error) => {
            tracing::debug!(%error, "a connection that can not be written to");
            Input::SinkFailed
        }
    }
}
