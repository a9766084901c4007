//! The broker's core without wire and sockets: request → delivery → answer → reply, with four handlers.

// criterion_group! defines an undocumented public function.
#![allow(missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringpost_bench::work::core::Stage;

fn request_reply(c: &mut Criterion) {
    let mut group = c.benchmark_group("core/request-reply");
    for in_flight in [1, 64] {
        let mut stage = Stage::new("");
        group.throughput(Throughput::Elements(in_flight as u64));
        group.bench_function(BenchmarkId::from_parameter(in_flight), |b| b.iter(|| stage.round(in_flight)));
    }
    group.finish();
}

criterion_group!(benches, request_reply);
criterion_main!(benches);
