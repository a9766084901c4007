//! The JSON codec, the server's side: what a request costs on its way in and out, at 128 bytes and 1 KiB of data.

// criterion_group! defines an undocumented public function; a bench that cannot be set up may stop.
#![allow(missing_docs, clippy::expect_used)]

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringpost_cli::load::wire;
use ringpost_protocol::{
    Content, Outgoing, Span,
    json::{Context, Decoder, Parser, encode},
    message::{Deliver, Reply, ServerMessage},
};

const SIZES: [usize; 2] = [128, 1024];
const MAX_PAYLOAD: u32 = 1 << 20;
const BOOT: u64 = 7;
/// What one read brings under load.
const OBJECTS: usize = 64;
const CLIENT_ID: &str = r#""000000000001""#;

fn data(size: usize) -> String {
    String::from_utf8(wire::payload(size)).expect("the load generator's payloads are JSON text")
}

fn content(size: usize) -> Content {
    let data = data(size);
    let tag = Span::new(0, CLIENT_ID.len());
    let payload = Span::new(tag.end as usize, CLIENT_ID.len() + data.len());
    let none = Span::default();
    Content::from_spans(Bytes::from(format!("{CLIENT_ID}{data}")), none, tag, none, none, payload)
}

fn deliver(size: usize) -> ServerMessage {
    ServerMessage::Deliver(Deliver { delivery: 1, attempt: 1, content: content(size), ..Deliver::default() })
}

fn reply(size: usize) -> ServerMessage {
    let tag = CLIENT_ID.as_bytes().into();
    ServerMessage::Reply(Reply { number: 1, tag, attempt: 1, content: content(size), ..Reply::default() })
}

const CONTEXT: Context = Context { boot: BOOT, wall_ms: 1_700_000_000_000, lines: true };

/// A handler's answer to the delivery of [`deliver`], with the `serverId` that the encoder gives it.
fn answer_line(size: usize) -> String {
    let mut out = Outgoing::new();
    encode(&deliver(size), &CONTEXT, &mut Parser::new(), &mut out).expect("a payload of JSON text");
    let line: serde_json::Value = serde_json::from_slice(&out.drain_to_vec()).expect("what we write is JSON");
    let server_id = &line["message"]["serverId"];
    let data = data(size);
    format!(
        "{{\"action\":\"response\",\"message\":{{\"serverId\":{server_id},\"clientId\":{CLIENT_ID},\"data\":{data}}}}}\n"
    )
}

fn request_line(size: usize) -> String {
    format!("{{\"id\":\"bench\",\"clientId\":{CLIENT_ID},\"data\":{}}}\n", data(size))
}

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
