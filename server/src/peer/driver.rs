//! A link's tasks: one that opens connections and reads from them, and for each connection one that writes.

use std::{net::Shutdown, rc::Rc};

use bytes::{Buf, BytesMut};
use ringpost_io::{event::Event, ring, stream::Stream};
use ringpost_protocol::{
    Segment, WireError,
    frame::{FrameReader, Preface, decode_server},
    message::ServerMessage,
    secure::{Incoming, Opener, Sealer, SecureKey},
};

use super::dial::{Dialed, dial};
use crate::{
    shard::{LinkNext, LinkWrite, Shard},
    tasks::CrashWithMe,
};

/// Room for one read.
const READ_BYTES: usize = 64 << 10;
/// Room for one read within a large frame: what its length claims is not taken on trust.
const MAX_READ_BYTES: usize = 1 << 20;
/// So much is sealed at once.
const SEALED_BYTES: usize = 192 << 10;

/// Keeps a link for as long as the server runs.
pub(crate) async fn keep_link(shard: Rc<Shard>, link: usize, address: String, key: Option<SecureKey>) {
    let _crash = CrashWithMe(shard.clone());
    loop {
        match shard.link_next(link) {
            LinkNext::Wait(wake) => wake.wait().await,
            LinkNext::End => return,
            LinkNext::Dial => {
                let dialed = dial(&address, key.as_ref(), |stream| shard.link_begun(link, stream)).await;
                match dialed {
                    Ok(dialed) => serve(&shard, link, dialed).await,
                    Err(error) => shard.link_turned_away(link, error),
                }
            }
        }
    }
}

/// Speaks on a connection until either side ends it.
async fn serve(shard: &Rc<Shard>, link: usize, dialed: Dialed) {
    let Dialed { stream, records, rest } = dialed;
    let (sealer, opener) = records.unzip();
    let Some(wake) = shard.link_connected(link, &stream) else { return shard.link_over(link) };
    let writer = ring::spawn(write(shard.clone(), link, stream.clone(), sealer, wake));
    let reason = read(shard, link, &stream, opener, rest).await;
    shard.link_lost(link, reason);
    writer.join().await;
    shard.link_over(link);
}

/// Reads until the end, and says what that was.
async fn read(
    shard: &Shard,
    link: usize,
    stream: &Stream,
    opener: Option<Opener>,
    mut buffer: BytesMut,
) -> String {
    let mut frames = Frames::new(opener, shard.link_max_payload());
    let mut messages = Vec::new();
    loop {
        let decoded = frames.decode(&mut buffer, &mut messages);
        shard.link_received(link, &mut messages);
        if let Err(error) = decoded {
            return format!("the peer sent what cannot be understood: {error}");
        }
        if buffer.capacity() - buffer.len() < READ_BYTES / 4 {
            buffer.reserve(frames.missing(&buffer).clamp(READ_BYTES, MAX_READ_BYTES));
        }
        let (read, filled) = stream.read(buffer).await;
        buffer = filled;
        match read {
            Ok(0) => return "the peer closed the connection".to_owned(),
            Ok(_) => {}
            Err(error) => return format!("reading from the peer: {error}"),
        }
    }
}

async fn write(shard: Rc<Shard>, link: usize, stream: Stream, sealer: Option<Sealer>, wake: Rc<Event>) {
    let _crash = CrashWithMe(shard.clone());
    let mut sealer = sealer;
    loop {
        match shard.link_write(link) {
            LinkWrite::Wait => wake.wait().await,
            LinkWrite::Gone => return,
            LinkWrite::End => {
                if let Some(sealer) = &mut sealer {
                    let mut end = Vec::new();
                    sealer.end(&mut end);
                    // It may be gone: then there is nobody to tell.
                    let _ = stream.write_all(end).await;
                }
                if let Err(error) = stream.shutdown(Shutdown::Write) {
                    tracing::debug!(%error, "shutdown");
                }
                return;
            }
            LinkWrite::Write(segment) => {
                let written = match &mut sealer {
                    None => stream.write_all(segment).await.0,
                    Some(sealer) => write_sealed(&stream, sealer, &segment).await,
                };
                shard.link_written(link);
                if let Err(error) = written {
                    shard.link_lost(link, format!("writing to the peer: {error}"));
                }
            }
        }
    }
}

async fn write_sealed(stream: &Stream, sealer: &mut Sealer, segment: &Segment) -> std::io::Result<()> {
    let mut records = Vec::new();
    for plaintext in segment.as_ref().chunks(SEALED_BYTES) {
        records.clear();
        sealer.seal(plaintext, &mut records);
        let (written, buffer) = stream.write_all(records).await;
        records = buffer;
        written?;
    }
    Ok(())
}

/// Frames out of what was read; with a secure key, out of records.
struct Frames {
    records: Option<Incoming>,
    frames: FrameReader,
    greeted: bool,
}

impl Frames {
    fn new(opener: Option<Opener>, max_payload: u32) -> Self {
        Self { records: opener.map(Incoming::new), frames: FrameReader::new(max_payload), greeted: false }
    }

    /// Takes all whole frames off the front.
    fn decode(&mut self, buffer: &mut BytesMut, messages: &mut Vec<ServerMessage>) -> Result<(), WireError> {
        let Some(records) = &mut self.records else { return self.decode_frames(buffer, messages) };
        let opened = records.open(buffer);
        let rest = records.part(buffer);
        let decoded = self.decode_frames(buffer, messages);
        if let Some(records) = &mut self.records {
            records.rejoin(buffer, rest);
        }
        decoded?;
        opened.map_err(|error| WireError::malformed(error.to_string()))
    }

    fn decode_frames(
        &mut self,
        buffer: &mut BytesMut,
        messages: &mut Vec<ServerMessage>,
    ) -> Result<(), WireError> {
        if !self.greeted {
            if Preface::decode(buffer)?.is_none() {
                return Ok(());
            }
            buffer.advance(Preface::BYTES);
            self.greeted = true;
        }
        while let Some(frame) = self.frames.next(buffer)? {
            messages.extend(decode_server(frame)?);
        }
        Ok(())
    }

    fn missing(&self, buffer: &[u8]) -> usize {
        match &self.records {
            None => self.frames.missing(buffer),
            Some(records) => records.missing(buffer, self.frames.missing(records.plaintext(buffer))),
        }
    }
}
