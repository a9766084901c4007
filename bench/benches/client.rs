//! The client's core without wire and sockets: request → reply, and delivery → answer, with a session to come back to.

// criterion_group! defines an undocumented public function.
#![allow(missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringpost_bench::work::client::Stage;

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("client/request-reply");
    for in_flight in [1, 64] {
        let mut stage = Stage::default();
        group.throughput(Throughput::Elements(in_flight));
        group
            .bench_function(BenchmarkId::from_parameter(in_flight), |b| b.iter(|| stage.requests(in_flight)));
    }
    group.finish();
}

fn deliveries(c: &mut Criterion) {
    let mut stage = Stage::default();
    c.bench_function("client/delivery-answer", |b| b.iter(|| stage.delivery()));
}

criterion_group!(benches, requests, deliveries);
criterion_main!(benches);
