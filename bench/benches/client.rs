//! The client's core without wire and sockets: request → reply, and delivery → answer, with a session to come back to.

// criterion_group! defines an undocumented public function.
#![allow(missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringpost_client::{Client, ClientConfig, Output, RequestSpec};
use ringpost_protocol::{
    Content,
    message::{ClientMessage, Deliver, Reply, ServerMessage, Verdict, Welcome},
    time::Time,
};

/// A client that was welcomed, and handles an action.
fn ready() -> Client {
    let mut client = Client::new(ClientConfig { session: "bench".into(), ..ClientConfig::default() });
    let now = Time::from_micros(1);
    let registered = client.register("bench", 1024);
    assert!(registered.is_ok());
    client.start(now);
    client.connected(now);
    client.received(
        ServerMessage::Welcome(Welcome { boot: 1, epoch: 1, next_number: 1, ..Welcome::default() }),
        now,
    );
    while client.poll_output().is_some() {}
    client
}

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("client/request-reply");
    let content = Content::from_parts(b"bench", b"", b"", &[b'1'; 128]);
    let answer = Content::from_payload(vec![b'1'; 128]);
    for in_flight in [1u64, 64] {
        let (mut client, mut micros, mut sequence) = (ready(), 1, 0);
        group.throughput(Throughput::Elements(in_flight));
        group.bench_function(BenchmarkId::from_parameter(in_flight), |b| {
            b.iter(|| {
                micros += 2;
                let now = Time::from_micros(micros);
                for token in 0..in_flight {
                    let spec = RequestSpec { content: content.clone(), ..RequestSpec::default() };
                    assert!(client.request(spec, token, now).is_ok());
                }
                let mut numbers = Vec::new();
                while let Some(output) = client.poll_output() {
                    if let Output::Send(ClientMessage::Request(request)) = output {
                        numbers.push(request.number);
                    }
                }
                for number in numbers {
                    sequence += 1;
                    let reply = Reply { number, sequence, content: answer.clone(), ..Reply::default() };
                    client.received(ServerMessage::Reply(reply), now);
                }
                let mut completed = 0;
                while let Some(output) = client.poll_output() {
                    completed += u64::from(matches!(output, Output::Complete(_)));
                }
                assert_eq!(completed, in_flight);
            });
        });
    }
    group.finish();
}

fn deliveries(c: &mut Criterion) {
    let (mut client, mut micros, mut delivery) = (ready(), 1, 0);
    let content = Content::from_payload(vec![b'1'; 128]);
    c.bench_function("client/delivery-answer", |b| {
        b.iter(|| {
            (micros, delivery) = (micros + 2, delivery + 1);
            let now = Time::from_micros(micros);
            let message = Deliver {
                delivery,
                registration: 1,
                attempt: 1,
                content: content.clone(),
                ..Deliver::default()
            };
            client.received(ServerMessage::Deliver(message), now);
            while let Some(output) = client.poll_output() {
                if let Output::Deliver(delivered) = output {
                    assert!(client.answer(delivered.key, Verdict::Reply, content.clone(), now));
                }
            }
        });
    });
}

criterion_group!(benches, requests, deliveries);
criterion_main!(benches);
