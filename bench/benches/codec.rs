//! The binary codec: every kind of the path request → reply, encoded and decoded, at 128 bytes and 1 KiB.

// criterion_group! defines an undocumented public function.
#![allow(missing_docs)]

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringpost_bench::work::frames::{client_messages, encoded, server_messages};
use ringpost_protocol::{
    Outgoing,
    frame::{FrameReader, decode_client, decode_server, encode_client, encode_server},
};

const SIZES: [usize; 2] = [128, 1024];

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame/encode");
    for size in SIZES {
        group.throughput(Throughput::Bytes(size as u64));
        for (kind, message) in client_messages(size) {
            let mut out = Outgoing::new();
            group.bench_function(BenchmarkId::new(kind, size), |b| {
                b.iter(|| {
                    out.tail().clear();
                    encode_client(black_box(&message), &mut out);
                });
            });
        }
        for (kind, message) in server_messages(size) {
            let mut out = Outgoing::new();
            group.bench_function(BenchmarkId::new(kind, size), |b| {
                b.iter(|| {
                    out.tail().clear();
                    encode_server(black_box(&message), &mut out);
                });
            });
        }
    }
    group.finish();
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame/decode");
    for size in SIZES {
        group.throughput(Throughput::Bytes(size as u64));
        for (kind, message) in client_messages(size) {
            let frame = encoded(|out| encode_client(&message, out));
            group.bench_function(BenchmarkId::new(kind, size), |b| {
                b.iter(|| decode_client(black_box(&frame).clone()));
            });
        }
        for (kind, message) in server_messages(size) {
            let frame = encoded(|out| encode_server(&message, out));
            group.bench_function(BenchmarkId::new(kind, size), |b| {
                b.iter(|| decode_server(black_box(&frame).clone()));
            });
        }
    }
    group.finish();
}

/// What a server does with a read that brought 64 requests: cut and decode them.
fn read(c: &mut Criterion) {
    const FRAMES: usize = 64;
    let mut group = c.benchmark_group("frame/read-64");
    for size in SIZES {
        let [(_, request), _] = client_messages(size);
        let stream = encoded(|out| (0..FRAMES).for_each(|_| encode_client(&request, out)));
        let reader = FrameReader::new(1 << 20);
        group.throughput(Throughput::Elements(FRAMES as u64));
        group.bench_function(BenchmarkId::new("request", size), |b| {
            b.iter_batched(
                || BytesMut::from(&stream[..]),
                |mut buffer| {
                    while let Ok(Some(frame)) = reader.next(&mut buffer) {
                        let _ = black_box(decode_client(frame));
                    }
                },
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, encode, decode, read);
criterion_main!(benches);
