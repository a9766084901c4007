//! One connection's bytes: the preface, frames in, segments out; with a secure key all of it in records.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use ringpost_protocol::{
    Segment, WireError,
    frame::{FrameReader, Preface, decode_server},
    limits::DEFAULT_MAX_PAYLOAD_BYTES,
    message::ServerMessage,
    secure::{Incoming, MAX_PLAINTEXT_BYTES, Opener, Sealer},
};
use tokio::time::{Instant, timeout, timeout_at};

use super::halves::{ReadHalf, WriteHalf};

/// How long a server may do nothing during a goodbye: neither read what is written, nor close.
pub(super) const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);
/// Room for one read.
const READ_BYTES: usize = 64 << 10;
/// Room for one read within a large frame: what its length claims is not taken on trust.
const MAX_READ_BYTES: usize = 1 << 20;
/// What one read brought is handed out in so many portions.
const PORTIONS: usize = 2;
/// Frames in a portion, if there are so many: each portion costs a write.
const PORTION_FRAMES: usize = 16;
/// Segments in one write; the kernel takes at most 1024 (UIO_MAXIOV).
pub(super) const WRITE_SEGMENTS: usize = 64;
/// So much is sealed at once.
const SEALED_BYTES: usize = 3 * MAX_PLAINTEXT_BYTES;

/// The receiving half.
#[derive(Debug)]
pub(super) struct Receiver {
    half: ReadHalf,
    buffer: BytesMut,
    /// With a secure key: which part of the buffer is what.
    records: Option<Incoming>,
    /// At least the size of the allocation behind the buffer, whose capacity is only what is left of it.
    allocated: usize,
    frames: FrameReader,
    greeted: bool,
    /// Bytes of a portion of the last read.
    portion_bytes: usize,
    /// Whether the last portion may have left whole frames behind.
    frames_left: bool,
    /// What a read without waiting fills.
    scratch: Vec<u8>,
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.half.as_fd()
    }
}

impl Receiver {
    pub(super) fn new(half: ReadHalf, opener: Option<Opener>) -> Self {
        Self {
            half,
            buffer: BytesMut::new(),
            records: opener.map(Incoming::new),
            allocated: 0,
            frames: FrameReader::new(DEFAULT_MAX_PAYLOAD_BYTES),
            greeted: false,
            portion_bytes: 0,
            frames_left: false,
            scratch: Vec::new(),
        }
    }

    /// Reads once, as much as there is, unless frames of the last read are left. `false` at the end of the stream.
    /// Nothing is lost when its future is dropped.
    pub(super) async fn read(&mut self) -> io::Result<bool> {
        if self.frames_left {
            return Ok(true);
        }
        let missing = self.missing();
        prepare(&mut self.buffer, &mut self.allocated, missing);
        let read = self.half.read(&mut self.buffer).await?;
        self.portion_bytes = self.buffer.len() / PORTIONS;
        Ok(read > 0)
    }

    /// The same without waiting: [`io::ErrorKind::WouldBlock`] if there is nothing. Of a large frame it reads several times
    /// as much.
    pub(super) fn read_now(&mut self) -> io::Result<bool> {
        if self.frames_left {
            return Ok(true);
        }
        self.scratch.resize(READ_BYTES, 0);
        let mut all = 0;
        loop {
            let read = match self.half.read_now(&mut self.scratch) {
                Err(error) if all > 0 && error.kind() == io::ErrorKind::WouldBlock => break,
                // After bytes, the end is for the next read to find.
                Ok(0) if all > 0 => break,
                read => read?,
            };
            let missing = self.missing();
            prepare(&mut self.buffer, &mut self.allocated, missing);
            self.buffer.extend_from_slice(&self.scratch[..read]);
            all += read;
            if read < READ_BYTES || all >= MAX_READ_BYTES || self.missing() == 0 {
                break;
            }
        }
        // Not in portions: nobody would come for the next one unless the socket has more.
        self.portion_bytes = self.buffer.len();
        Ok(all > 0)
    }

    /// Bytes that complete the frame at the front of the buffer, as far as known.
    fn missing(&self) -> usize {
        match &self.records {
            None => self.frames.missing(&self.buffer),
            Some(records) => {
                let missing = self.frames.missing(records.plaintext(&self.buffer));
                records.missing(&self.buffer, missing)
            }
        }
    }

    /// From now on the client's task waits for bytes, where somebody else did.
    pub(super) fn returned(mut self) -> io::Result<Self> {
        self.half = self.half.returned()?;
        Ok(self)
    }

    /// Whether whole frames may be left of the last read.
    pub(super) fn has_frames(&self) -> bool {
        self.frames_left
    }

    /// Drops what was read.
    fn discard(&mut self) {
        self.buffer.clear();
        self.frames_left = false;
    }

    /// Decodes the next portion of the whole frames that were read; what is left the next call of [`Self::read`] brings.
    ///
    /// Were all handed out at once, then all that they lead to would leave at once too, and come back at once: client
    /// and server would take turns, each idle while the other works. With two portions on their way both have work.
    pub(super) fn decode(&mut self, messages: &mut Vec<ServerMessage>) -> Result<(), WireError> {
        let Some(records) = &mut self.records else { return self.decode_frames(messages) };
        let opened = records.open(&mut self.buffer);
        let rest = records.part(&mut self.buffer);
        let decoded = self.decode_frames(messages);
        if let Some(records) = &mut self.records {
            records.rejoin(&mut self.buffer, rest);
        }
        decoded?;
        // What was opened before counts: the error comes behind the last of it.
        if self.frames_left {
            Ok(())
        } else {
            opened.map_err(|error| WireError::malformed(error.to_string()))
        }
    }

    /// How the stream has ended, for people.
    pub(super) fn end(&self) -> &'static str {
        match &self.records {
            Some(records) if !records.has_ended() => {
                "it was cut off: its stream ended without the record that ends it"
            }
            _ => "the server closed it",
        }
    }

    fn decode_frames(&mut self, messages: &mut Vec<ServerMessage>) -> Result<(), WireError> {
        if !self.greeted {
            let preface = Preface::decode(&self.buffer).map_err(|error| {
                let message =
                    "the server's answer is not Ringpost's binary dialect: is this a Ringpost port?";
                WireError::new(error.code, message)
            })?;
            if preface.is_none() {
                return Ok(());
            }
            let _preface = self.buffer.split_to(Preface::BYTES);
            self.greeted = true;
        }
        let (mut taken, rest) = (0, self.buffer.len().saturating_sub(self.portion_bytes));
        self.frames_left = false;
        while let Some(frame) = self.frames.next(&mut self.buffer)? {
            let Some(message) = decode_server(frame)? else { continue };
            if let ServerMessage::Welcome(welcome) = &message {
                self.frames = FrameReader::new(welcome.max_payload);
            }
            messages.push(message);
            taken += 1;
            if taken >= PORTION_FRAMES && self.buffer.len() <= rest {
                self.frames_left = !self.buffer.is_empty();
                break;
            }
        }
        Ok(())
    }
}

/// Makes room for the next read; `missing` bytes complete the frame at the front of the buffer, as far as known.
fn prepare(buffer: &mut BytesMut, allocated: &mut usize, missing: usize) {
    if buffer.is_empty() && *allocated > 2 * READ_BYTES {
        // What a large frame needed: the small replies behind it would each keep all of it.
        *buffer = BytesMut::with_capacity(READ_BYTES);
        *allocated = buffer.capacity();
    } else if buffer.capacity() - buffer.len() < READ_BYTES / 4 {
        buffer.reserve(missing.clamp(READ_BYTES, MAX_READ_BYTES));
        *allocated = (*allocated).max(buffer.capacity());
    }
}

/// The sending half.
#[derive(Debug)]
pub(super) struct Sender {
    half: Arc<WriteHalf>,
    /// With a secure key: what is to be sealed. Else it waits to be written at once.
    sealing: Option<Sealing>,
    waiting: VecDeque<Segment>,
    /// Bytes of the first segment that are written.
    offset: usize,
    /// Buffers that can be filled again.
    pub(super) written: Vec<Vec<u8>>,
}

impl Sender {
    pub(super) fn new(half: WriteHalf, sealer: Option<Sealer>) -> Self {
        let sealing = sealer.map(Sealing::new);
        let half = Arc::new(half);
        let mut sender = Self { half, sealing, waiting: VecDeque::new(), offset: 0, written: Vec::new() };
        sender.queues().0.push_back(Segment::Owned(Preface::plain().encode().to_vec()));
        sender
    }

    /// The socket, for others to write on while this one is idle; none where what is written must be sealed, in order.
    pub(super) fn socket(&self) -> Option<Arc<WriteHalf>> {
        self.sealing.is_none().then(|| self.half.clone())
    }

    /// What is to be written, and the buffers that were.
    pub(super) fn queues(&mut self) -> (&mut VecDeque<Segment>, &mut Vec<Vec<u8>>) {
        let queue = match &mut self.sealing {
            None => &mut self.waiting,
            Some(sealing) => &mut sealing.plain,
        };
        (queue, &mut self.written)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.sealing.as_ref().is_none_or(|sealing| sealing.plain.is_empty())
    }

    /// Bytes that wait to be written.
    fn unsent_bytes(&self) -> usize {
        let bytes: usize = self.waiting.iter().map(|segment| segment.as_ref().len()).sum();
        bytes - self.offset + self.sealing.as_ref().map_or(0, Sealing::bytes)
    }

    /// Says that nothing follows, where that can be said apart from the socket's own end. `false` if there is nothing to
    /// be written for it.
    fn end(&mut self) -> bool {
        let end = self.sealing.as_mut().and_then(Sealing::end);
        let says = end.is_some();
        self.waiting.extend(end.map(Segment::Owned));
        says
    }

    /// Waits until the socket takes bytes; for ever, if there are none.
    pub(super) async fn writable(&self) -> io::Result<()> {
        if self.is_idle() { std::future::pending().await } else { self.half.writable().await }
    }

    /// Writes as much as the socket takes.
    pub(super) fn write(&mut self) -> io::Result<()> {
        loop {
            if self.waiting.is_empty() {
                let sealed = self.sealing.as_mut().and_then(|sealing| sealing.next(&mut self.written));
                let Some(records) = sealed else { return Ok(()) };
                self.waiting.push_back(Segment::Owned(records));
            }
            let mut slices = [IoSlice::new(&[]); WRITE_SEGMENTS];
            let mut used = 0;
            for (slice, segment) in slices.iter_mut().zip(&self.waiting) {
                let skip = if used == 0 { self.offset } else { 0 };
                *slice = IoSlice::new(&segment.as_ref()[skip..]);
                used += 1;
            }
            match self.half.write_now(&slices[..used]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn advance(&mut self, written: usize) {
        self.offset += written;
        while let Some(first) = self.waiting.front() {
            let length = first.as_ref().len();
            if self.offset < length {
                return;
            }
            self.offset -= length;
            if let Some(Segment::Owned(buffer)) = self.waiting.pop_front() {
                match &mut self.sealing {
                    None => self.written.push(buffer),
                    Some(sealing) => sealing.give_back(buffer),
                }
            }
        }
    }
}

/// What is to be written, on its way into records.
#[derive(Debug)]
struct Sealing {
    sealer: Sealer,
    plain: VecDeque<Segment>,
    /// Bytes of the first segment that are sealed.
    offset: usize,
    /// For the next records.
    spare: Vec<u8>,
    ended: bool,
}

impl Sealing {
    fn new(sealer: Sealer) -> Self {
        Self { sealer, plain: VecDeque::new(), offset: 0, spare: Vec::new(), ended: false }
    }

    fn bytes(&self) -> usize {
        self.plain.iter().map(|segment| segment.as_ref().len()).sum::<usize>() - self.offset
    }

    /// As much as goes into one write, as records; `done` gets the buffers that are empty then.
    fn next(&mut self, done: &mut Vec<Vec<u8>>) -> Option<Vec<u8>> {
        if self.plain.is_empty() {
            return None;
        }
        let mut records = std::mem::take(&mut self.spare);
        while let Some(first) = self.plain.front()
            && records.len() < SEALED_BYTES
        {
            let bytes = first.as_ref();
            let end = bytes.len().min(self.offset + SEALED_BYTES);
            self.sealer.seal(&bytes[self.offset..end], &mut records);
            self.offset = end;
            if end == bytes.len() {
                self.offset = 0;
                if let Some(Segment::Owned(buffer)) = self.plain.pop_front() {
                    done.push(buffer);
                }
            }
        }
        Some(records)
    }

    fn end(&mut self) -> Option<Vec<u8>> {
        if std::mem::replace(&mut self.ended, true) {
            return None;
        }
        let mut record = std::mem::take(&mut self.spare);
        self.sealer.end(&mut record);
        Some(record)
    }

    fn give_back(&mut self, mut records: Vec<u8>) {
        records.clear();
        self.spare = records;
    }
}

/// Ends a connection in good order: writes what waits, says that nothing follows, and reads until the server has
/// closed too. Closing with unread bytes would make the kernel reset the connection, and the server could lose what
/// was written last. It takes until `latest` at most. How many bytes the server did not take.
pub(super) async fn part(mut sender: Sender, mut receiver: Receiver, latest: Instant) -> usize {
    let orderly = async {
        while !sender.is_idle() || sender.end() {
            patiently(sender.writable()).await?;
            sender.write()?;
        }
        // Nobody else has it any more; if somebody had, its end would be theirs to say.
        if let Some(half) = Arc::get_mut(&mut sender.half) {
            half.shutdown().await?;
        }
        loop {
            receiver.discard();
            if !patiently(receiver.read()).await? {
                return io::Result::Ok(());
            }
        }
    };
    let outcome = timeout_at(latest, orderly).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let unsent_bytes = sender.unsent_bytes();
    if let Err(error) = outcome {
        tracing::debug!(%error, unsent_bytes, "the connection did not end in good order");
    }
    unsent_bytes
}

/// A step of a goodbye, as long as the server may do nothing.
async fn patiently<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(FAREWELL_TIMEOUT, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use ringpost_protocol::{Outgoing, frame::encode_server};
    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpStream},
    };

    use super::{super::halves::for_task, *};

    /// What one read brings is handed out in portions, in order and whole; the next read waits for the last of them.
    #[tokio::test]
    async fn hands_out_a_read_in_portions() {
        const PONGS: u64 = 100;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut outgoing = Outgoing::new();
        (0..PONGS).for_each(|number| encode_server(&ServerMessage::Pong(number), &mut outgoing));
        let mut bytes = Preface::plain().encode().to_vec();
        bytes.extend(outgoing.drain_to_vec());
        server.write_all(&bytes).await.unwrap();
        drop(server);

        let mut receiver = Receiver::new(for_task(stream).0, None);
        let mut portions = Vec::new();
        let mut messages = Vec::new();
        let receiving = async {
            while receiver.read().await.unwrap() {
                let before = messages.len();
                receiver.decode(&mut messages).unwrap();
                portions.push(messages.len() - before);
            }
        };
        timeout(Duration::from_secs(60), receiving).await.unwrap();
        let expected: Vec<_> = (0..PONGS).map(ServerMessage::Pong).collect();
        assert_eq!(messages, expected);
        assert!(portions.len() > 1 && portions.iter().all(|frames| *frames < PONGS as usize), "{portions:?}");
    }

    /// What a large frame needed is given back behind it; small ones share one buffer.
    #[test]
    fn lets_go_of_a_large_buffer() {
        let (mut buffer, mut allocated) = (BytesMut::new(), 0);
        for _ in 0..3 {
            while buffer.capacity() < 4 << 20 {
                let missing = (16 << 20) - buffer.len();
                prepare(&mut buffer, &mut allocated, missing);
                buffer.resize(buffer.capacity(), 7);
            }
            let allocation = buffer.as_ptr_range();
            buffer.truncate(buffer.len() - READ_BYTES);
            drop(buffer.split().freeze());
            prepare(&mut buffer, &mut allocated, 0);
            assert!(!allocation.contains(&buffer.as_ptr()));
            assert_eq!(buffer.capacity(), READ_BYTES);
        }
        let first = buffer.as_ptr();
        for _ in 0..100 {
            buffer.extend_from_slice(&[7; 1000]);
            drop(buffer.split_to(1000).freeze());
            prepare(&mut buffer, &mut allocated, 0);
        }
        assert_eq!(buffer.as_ptr(), first);
    }
}
