//! The JSON codec, the server's side: what a request costs on its way in and out, at 128 bytes and 1 KiB of data.

// criterion_group! defines an undocumented public function.
#![allow(missing_docs)]

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringpost_bench::work::json::{BOOT, CONTEXT, MAX_PAYLOAD, answer_line, deliver, reply, request_line};
use ringpost_cli::load::wire;
use ringpost_protocol::{
    Outgoing,
    json::{Decoder, Parser, encode},
};

const SIZES: [usize; 2] = [128, 1024];
/// What one read brings under load.
const OBJECTS: usize = 64;

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("json/decode-64");
    let mut parser = Parser::new();
    for size in SIZES {
        for (kind, line) in [("request", request_line(size)), ("answer", answer_line(size))] {
            let stream = line.repeat(OBJECTS);
            group.throughput(Throughput::Elements(OBJECTS as u64));
            group.bench_function(BenchmarkId::new(kind, size), |b| {
                b.iter_batched(
                    || (Decoder::new(BOOT, MAX_PAYLOAD), BytesMut::from(stream.as_str())),
                    |(mut decoder, mut buffer)| {
                        for _ in 0..OBJECTS {
                            let message = decoder.decode(&mut parser, &mut buffer);
                            assert!(matches!(black_box(message), Ok(Some(_))));
                        }
                    },
                    BatchSize::SmallInput,
                );
            });
        }
    }
    group.finish();
}

fn encode_out(c: &mut Criterion) {
    let mut group = c.benchmark_group("json/encode");
    let mut parser = Parser::new();
    for size in SIZES {
        for (kind, message) in [("deliver", deliver(size)), ("reply", reply(size))] {
            let mut out = Outgoing::new();
            group.throughput(Throughput::Elements(1));
            group.bench_function(BenchmarkId::new(kind, size), |b| {
                b.iter(|| {
                    out.tail().clear();
                    encode(black_box(&message), &CONTEXT, &mut parser, &mut out)
                });
            });
        }
    }
    group.finish();
}

fn validate(c: &mut Criterion) {
    let mut group = c.benchmark_group("json/is_json");
    let mut parser = Parser::new();
    for size in SIZES {
        let data = wire::payload(size);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| parser.is_json(black_box(&data)))
        });
    }
    group.finish();
}

criterion_group!(benches, decode, encode_out, validate);
criterion_main!(benches);
