//! A ring for a test with files, and the proof that it leaves none open.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::{fs, future::Future, path::Path, time::Duration};

use bytes::BytesMut;
use ringpost_io::{
    clock,
    file::File,
    ring::{self, RingConfig},
};

/// Runs a test on a ring, with a deadline, and checks afterwards that no descriptor is open of what is below the path.
pub(crate) fn on_a_ring<T>(path: &Path, test: impl Future<Output = T>) -> T {
    let output = ring::run(&RingConfig { entries: 64, ..RingConfig::default() }, async {
        clock::within(Duration::from_secs(30), test).await.expect("the test did not end in time")
    })
    .unwrap();
    let open: Vec<_> = fs::read_dir("/proc/self/fd")
        .unwrap()
        // Other tests of this process close theirs meanwhile.
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.starts_with(path))
        .collect();
    assert!(open.is_empty(), "descriptors were leaked: {open:?}");
    output
}

/// Bytes that show where they belong.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// What is in a file.
pub(crate) async fn read(file: &File, length: usize, offset: u64) -> Vec<u8> {
    let (result, buffer) = file.read_exact_at(BytesMut::new(), length, offset).await;
    result.unwrap();
    buffer.to_vec()
}
