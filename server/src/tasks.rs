//! What waits: reader and writer of each connection, acceptor, flusher, timekeeper.

use std::{rc::Rc, time::Duration};

use bytes::BytesMut;
use ringpost_broker::{ConnId, Read, log::Operation};
use ringpost_io::{
    clock,
    event::Event,
    listener::{AcceptError, Listener},
    read_size::ReadSize,
    ring,
    stream::Stream,
};

use crate::{
    shard::{MayRead, NextRead, NextWrite, Shard},
    storage::{Performer, Recovery},
    throttle::Throttle,
};

/// How long a connection is not read when memory is short or it is clogged, unless that is over before.
const HOLD_TIME: Duration = Duration::from_secs(1);
/// How long to wait when there is no room for one more connection.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Takes in connections until the listener is closed. `secure`: only those with a key.
pub(crate) async fn accept(shard: Rc<Shard>, listener: Listener, secure: bool) {
    let _crash = CrashWithMe(shard.clone());
    let mut lines = Throttle::default();
    loop {
        match listener.accept().await {
            Ok(stream) => {
                if let Some((conn, wake)) = shard.admit(stream.clone(), secure) {
                    ring::spawn(serve(shard.clone(), conn, stream, wake));
                }
            }
            Err(AcceptError::Closed) => return,
            Err(error) => {
                if let Some(left_out) = lines.line(shard.clock().now().mono) {
                    tracing::warn!(%error, left_out, "new connections have to wait");
                }
                clock::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// A connection's whole life.
async fn serve(shard: Rc<Shard>, conn: ConnId, stream: Stream, wake: Rc<Event>) {
    let _crash = CrashWithMe(shard.clone());
    let writer = ring::spawn(write(shard.clone(), conn, stream.clone(), wake));
    read(&shard, conn, &stream).await;
    writer.join().await;
    shard.remove(conn);
}

async fn read(shard: &Shard, conn: ConnId, stream: &Stream) {
    let (mut size, mut buffer, mut missing) = (ReadSize::default(), BytesMut::new(), 0);
    loop {
        loop {
            match shard.may_read(conn, size.allocated_bytes(), buffer.len()) {
                MayRead::Now => break,
                MayRead::After(relief) => {
                    clock::within(HOLD_TIME, relief.wait()).await;
                    break;
                }
                MayRead::NotYet(relief) => {
                    clock::within(HOLD_TIME, relief.wait()).await;
                }
            }
        }
        size.prepare(&mut buffer, missing);
        shard.count_buffer(conn, size.allocated_bytes());
        let offered = buffer.capacity() - buffer.len();
        let (read, filled) = stream.read(buffer).await;
        buffer = filled;
        let read = match read {
            Ok(0) => return shard.half_closed(conn, &buffer),
            Ok(read) => read,
            Err(error) => {
                tracing::debug!(%conn, %error, "lost");
                return shard.lost(conn);
            }
        };
        missing = loop {
            match shard.take_in(conn, &mut buffer) {
                NextRead::Read(more) => {
                    size.observe(read, offered);
                    break more;
                }
                NextRead::Greeting(more) => break more,
                NextRead::Later => ring::give_way().await,
                NextRead::Discard => {
                    buffer.clear();
                    break 0;
                }
            }
        };
    }
}

async fn write(shard: Rc<Shard>, conn: ConnId, stream: Stream, wake: Rc<Event>) {
    let _crash = CrashWithMe(shard.clone());
    loop {
        match shard.next_write(conn) {
            NextWrite::Wait => wake.wait().await,
            NextWrite::End => return shard.flushed(conn),
            NextWrite::Write(segment) => {
                let (written, segment) = stream.write_all(segment).await;
                shard.written(conn, segment);
                if let Err(error) = written {
                    return shard.lost_writing(conn, &error);
                }
            }
        }
    }
}

/// Waits for the log that is being read, and hands it to the core.
pub(crate) async fn recover(shard: Rc<Shard>, mut recovery: Recovery) {
    let _crash = CrashWithMe(shard.clone());
    let Some(read) = recovery.finished().await else { return };
    let (storage, performer) = match read {
        Ok(read) => read,
        Err(error) => return shard.log_is_unusable(error),
    };
    if shard.recovered(storage) {
        ring::spawn(keep_log(shard.clone(), Rc::new(performer)));
    }
}

/// Lets the log's files follow the log.
pub(crate) async fn keep_log(shard: Rc<Shard>, performer: Rc<Performer>) {
    let _crash = CrashWithMe(shard.clone());
    loop {
        while let Some(operation) = shard.next_log_operation() {
            ring::spawn(perform(shard.clone(), performer.clone(), operation));
        }
        while let Some(read) = shard.next_read() {
            ring::spawn(read_back(shard.clone(), performer.clone(), read));
        }
        if shard.log_has_stopped() {
            return shard.log_stopped.set();
        }
        match shard.log_pause() {
            // A millisecond at least: this must not spin, whatever the clock says.
            Some(pause) => {
                clock::within(pause.max(Duration::from_millis(1)), shard.log.wait()).await;
            }
            None => shard.log.wait().await,
        }
    }
}

async fn perform(shard: Rc<Shard>, performer: Rc<Performer>, operation: Operation) {
    let _crash = CrashWithMe(shard.clone());
    let result = performer.perform(operation.action).await;
    shard.log_done(operation.id, result);
}

async fn read_back(shard: Rc<Shard>, performer: Rc<Performer>, read: Read) {
    let _crash = CrashWithMe(shard.clone());
    let result = performer.read(read.segment, read.offset, read.bytes).await;
    shard.read_done(read.id, result);
}

/// Ends each turn.
pub(crate) async fn flush(shard: Rc<Shard>) {
    let _crash = CrashWithMe(shard.clone());
    loop {
        shard.flush.wait().await;
        shard.end_turn();
    }
}

/// Does what is due when it is due.
pub(crate) async fn keep_time(shard: Rc<Shard>) {
    let _crash = CrashWithMe(shard.clone());
    loop {
        let Some(deadline) = shard.arm() else {
            shard.rearm.wait().await;
            continue;
        };
        let ahead = deadline.since(shard.clock().now().mono);
        if ahead.is_zero() || clock::within(ahead, shard.rearm.wait()).await.is_none() {
            shard.time_out();
        }
    }
}

/// A bug that stops one task must not leave a server that half works: the shard ends, and says so.
pub(crate) struct CrashWithMe(pub(crate) Rc<Shard>);

impl Drop for CrashWithMe {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.crashed.set(true);
            self.0.ended.set();
        }
    }
}
