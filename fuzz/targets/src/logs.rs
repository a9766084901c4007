//! Logs that are made of decisions, and directories that are made of bytes.

use std::{collections::VecDeque, time::Duration};

use ringpost_broker::log::{
    Config, Location, LogId, Record, SyncPolicy, Writer,
    body::{Boot, Done, Request},
    files::Files,
    memory::Memory,
    names::MANIFEST,
    recover,
};
use ringpost_protocol::time::{Now, Time};

use crate::choices::Choices;

/// The id of the logs in here.
pub(crate) const LOG: [u8; 16] = [7; 16];

/// What files of a directory may be called. Those of a log first.
pub(crate) const NAMES: [&str; 9] = [
    MANIFEST,
    "0000000000000001.segment",
    "0000000000000002.segment",
    "0000000000000003.segment",
    "manifest.new",
    "lock",
    "0000000000000002.snapshot",
    "0000000000000001.torn-96",
    "something else",
];

/// Where a segment's header has its checksum.
const CRC_AT: usize = 92;
/// No log of a few thousand decisions is longer.
const MAX_DISK: u64 = 1 << 20;

/// A directory of files. Of the bytes, the first says whether segments' headers get the checksum that they should have, so
/// that what is behind them is read; then each file is a byte for its name, two for its length, and its content.
pub(crate) fn files(input: &[u8]) -> Memory {
    let mut disk = Memory::new();
    let Some((&first, mut rest)) = input.split_first() else { return disk };
    while let [name, low, high, more @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(more.len());
        let (content, behind) = more.split_at(length);
        rest = behind;
        let name = NAMES[usize::from(*name) % NAMES.len()];
        let mut content = content.to_vec();
        if first % 2 == 1 && name.ends_with(".segment") {
            mend(&mut content);
        }
        disk.create(name, 0).expect("memory has room");
        disk.write_at(name, 0, &content).expect("memory has room");
    }
    disk
}

/// A directory as [`files`] reads it.
pub(crate) fn to_input(disk: &Memory, mended: bool) -> Vec<u8> {
    let mut input = vec![u8::from(mended)];
    for (index, name) in (0..).zip(NAMES) {
        let Some(content) = disk.content(name) else { continue };
        input.push(index);
        input.extend_from_slice(&(content.len() as u16).to_le_bytes());
        input.extend_from_slice(content);
    }
    input
}

/// Gives a segment's header the checksum that its bytes have.
fn mend(content: &mut [u8]) {
    if content.len() >= CRC_AT + 4 {
        let crc = crc32fast::hash(&content[..CRC_AT]);
        content[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// A log with some requests that wait and some that are done, whose server was killed at some moment. Its disk has all that
/// was written.
pub(crate) fn history(decisions: &[u8]) -> Memory {
    let mut choices = Choices::new(decisions);
    let mut disk = Memory::new();
    let recovered = recover(&mut disk, LogId(LOG), |_, _| {}).expect("an empty directory");
    let segment_bytes = 1024 + 8 * choices.below(64) as u32;
    let config = Config {
        segment_bytes,
        max_disk: MAX_DISK,
        sync: SyncPolicy::Always,
        boot: 1,
        seed: choices.below(256),
    };
    let mut life = Life {
        writer: Writer::new(config, &recovered),
        disk,
        now: Now { mono: Time::from_micros(1_000_000), wall_ms: 1_700_000_000_000 },
        open: VecDeque::new(),
        count: 0,
    };
    life.append(&Record::Boot(Boot { boot: 1, wall_ms: 0 }));
    while !choices.are_over() {
        match choices.below(8) {
            0 | 1 => life.request(choices.below(200) as usize),
            2 => life.finish_oldest(),
            3 => life.now.mono = life.now.mono + Duration::from_millis(15),
            4 | 5 => life.begin_one(),
            _ => life.proceed(choices.below(4) as usize),
        }
        life.writer.check_invariants();
    }
    life.disk.kill();
    life.disk
}

struct Life {
    disk: Memory,
    writer: Writer,
    now: Now,
    open: VecDeque<(u64, Location)>,
    count: u64,
}

impl Life {
    fn append(&mut self, record: &Record<'_>) -> Location {
        self.writer.append(record).expect("a short record, and a log that works")
    }

    fn request(&mut self, payload_bytes: usize) {
        self.count += 1;
        let payload = vec![self.count as u8; payload_bytes];
        let request = sample_request(self.count, &payload);
        let location = self.append(&Record::Request(request));
        self.open.push_back((self.count, location));
    }

    fn finish_oldest(&mut self) {
        if let Some((count, location)) = self.open.pop_front() {
            self.append(&Record::Done(Done { count }));
            self.writer.died(location);
        }
    }

    fn begin_one(&mut self) {
        if let Some(operation) = self.writer.poll(self.now) {
            self.disk.begin(operation);
        }
    }

    fn proceed(&mut self, index: usize) {
        let Some(index) = index.checked_rem(self.disk.under_way()) else { return };
        if let Some((id, result)) = self.disk.proceed(index) {
            self.writer.done(id, result);
        }
    }
}

/// A request with something in each field.
pub(crate) fn sample_request(count: u64, payload: &[u8]) -> Request<'_> {
    Request {
        count,
        number: count * 2,
        received_ms: 1,
        expires_ms: 2,
        max_attempts: 5,
        flags: 5,
        dialect: 1,
        instance: 7,
        joins: 0,
        session: b"session",
        action: b"action",
        tag: b"\"tag\"",
        idempotency_key: b"key",
        options: b"{}",
        headers: b"",
        payload,
    }
}
