//! The steps of the demo, in their order.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use ringpost::{Client, ErrorKind};
use serde_json::json;

use super::{
    durable,
    narrator::Narrator,
    troupe::{
        PATIENCE, SlowHandler, Sum, adding_handler, client, handled, named_handler, say_as_nc, stat,
        went_wrong,
    },
};
use crate::{
    bench::{self, Cores},
    exit::{Failure, Outcome},
    load,
};

/// How many requests are spread over the three handlers.
const SPREAD: u32 = 300;

/// Performs the whole of it. Dropping the future ends all that it has started.
pub(super) async fn perform() -> Outcome {
    let mut tell = Narrator::default();
    tell.line(
        "Ringpost: a client registers an action with a handler; others send requests to it and get replies.",
    )?;

    tell.step("A server on a free port, in a process of its own")?;
    let cores = Cores::choose(None)?;
    let server = bench::spawn_server(cores.server)?;
    let address = server.address();
    tell.command("ringpost serve --listen 127.0.0.1:0")?;
    tell.say(&format!("listening on {address}, process {}", server.pid()))?;

    let client = client(address).await?;
    first_example(&mut tell, &client, address).await?;
    three_handlers(&mut tell, &client, address).await?;
    killed_handler(&mut tell, &client, address).await?;
    durable::killed_server(&mut tell, cores).await?;
    burst(&mut tell, &server, cores).await?;
    client.close().await;
    drop(server);

    tell.line(
        "\nThat was all of it; everything that was started is gone. Now you, with a terminal for each:",
    )?;
    tell.command("ringpost serve")?;
    tell.command("ringpost handle client_1 --echo")?;
    tell.command("ringpost request client_1 '{\"value\":2}'")
}

/// A handler, and its requester in three ways.
async fn first_example(tell: &mut Narrator, client: &Client, server: SocketAddr) -> Outcome {
    tell.step("A handler for the action `client_1` that adds one, and a request to it")?;
    let handler = adding_handler(server).await?;
    let started = Instant::now();
    let reply = client
        .request("client_1", &Sum { value: 2 })
        .ttl(PATIENCE)
        .timeout(PATIENCE)
        .await
        .map_err(went_wrong)?;
    let took = started.elapsed();
    let sum: Sum = reply.data().map_err(went_wrong)?;
    if sum.value != 3 {
        return Err(went_wrong(format_args!("2 + 1 is not {}", sum.value)));
    }
    tell.say("client.request(\"client_1\", &json!({\"value\": 2})).timeout(…).await   // Rust")?;
    tell.say(&format!(
        "{{\"value\":2}} → {} in {} µs",
        String::from_utf8_lossy(reply.as_bytes()),
        took.as_micros()
    ))?;
    tell.say("The same from the command line:")?;
    tell.command(&format!("ringpost --server {server} request client_1 '{{\"value\":2}}'"))?;
    tell.say("And without any SDK, a line of JSON on the same port (just sent so):")?;
    let line = r#"{"id":"client_1","data":{"value":2},"clientId":"1"}"#;
    tell.command(&format!("echo '{line}' | nc {} {}", server.ip(), server.port()))?;
    tell.say(&say_as_nc(server, line).await?)?;
    handler.close().await;
    Ok(())
}

/// Round-robin, then a broadcast to the same handlers.
async fn three_handlers(tell: &mut Narrator, client: &Client, server: SocketAddr) -> Outcome {
    const ACTION: &str = "team";
    tell.step(&format!("Three handlers of one action share {SPREAD} requests: one after the other"))?;
    let names = ["anna", "bert", "cleo"];
    let mut handlers = Vec::new();
    for name in names {
        handlers.push(named_handler(server, ACTION, name).await?);
    }
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..SPREAD {
        let reply = client.request(ACTION, &json!(null)).timeout(PATIENCE).await.map_err(went_wrong)?;
        *counts.entry(reply.data().map_err(went_wrong)?).or_default() += 1;
    }
    let shown: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    tell.say(&shown.join(", "))?;
    if counts.len() != names.len() || counts.values().any(|&count| count != SPREAD / 3) {
        return Err(went_wrong("they were not shared evenly"));
    }

    tell.step("A broadcast asks all of them, and knows how many answers there will be")?;
    tell.command(&format!("ringpost --server {server} request {ACTION} null --broadcast"))?;
    let legs = client.broadcast(ACTION, &json!(null)).timeout(PATIENCE).await.map_err(went_wrong)?;
    for (index, leg) in legs.iter().enumerate() {
        match leg {
            Ok(reply) => tell.say(&format!("leg {index}: {}", String::from_utf8_lossy(reply.as_bytes())))?,
            Err(error) => tell.say(&format!("leg {index}: an error of the handler's own, {error}"))?,
        }
    }
    if (legs.len(), legs.iter().filter(|leg| leg.is_err()).count()) != (3, 1) {
        return Err(went_wrong("two replies and one error were expected"));
    }
    for handler in handlers {
        handler.close().await;
    }
    Ok(())
}

/// A handler dies over two requests: one fails at once with a reason, the other one goes on to the next handler.
async fn killed_handler(tell: &mut Narrator, client: &Client, server: SocketAddr) -> Outcome {
    const ACTION: &str = "work";
    tell.step("A handler's process is killed over two requests")?;
    let slow = SlowHandler::start(server, ACTION)?;
    tell.command(&format!("ringpost --server {server} handle {ACTION} --echo --delay 30s"))?;
    handled(client, ACTION).await?;
    let request = |text: &str| client.request(ACTION, &json!(text)).timeout(Duration::from_secs(10));
    let story = async {
        stat(client, "openDeliveries", 2).await?;
        tell.say("It holds both. Another handler, a quick one, registers the same action.")?;
        let quick = named_handler(server, ACTION, "the quick handler").await?;
        tell.command(&format!("kill -9 {}", slow.pid()))?;
        let killed_at = Instant::now();
        slow.kill()?;
        Ok::<_, Failure>((quick, killed_at))
    };
    let timed = |request: ringpost::RequestBuilder<ringpost::One>| async { (request.await, Instant::now()) };
    let (story, (once, failed_at), (again, _)) =
        tokio::join!(story, timed(request("a")), timed(request("b").max_attempts(2)));
    let (quick, killed_at) = story?;
    let noticed = failed_at.saturating_duration_since(killed_at);
    match once {
        Err(error) if error.kind() == ErrorKind::HandlerLost => tell.say(&format!(
            "The request with one attempt ended {:.1} ms later, not at its timeout of 10 s: {error}",
            noticed.as_secs_f64() * 1000.0
        ))?,
        other => return Err(went_wrong(format_args!("handlerLost was expected, not {other:?}"))),
    }
    let reply = again.map_err(went_wrong)?;
    tell.say(&format!(
        "The request with two attempts went on: attempt {}, answered by {}",
        reply.info().attempt,
        String::from_utf8_lossy(reply.as_bytes())
    ))?;
    quick.close().await;
    Ok(())
}

/// One second of load, from the load generator of `ringpost bench`.
async fn burst(tell: &mut Narrator, server: &load::Server, cores: Cores) -> Outcome {
    tell.step("One second of load: 16 requesters with 64 requests in flight each, 4 handlers, 128 bytes")?;
    tell.command(&format!(
        "ringpost --server {} bench --server-pid {} --duration 1s",
        server.address(),
        server.pid()
    ))?;
    let options = load::Options {
        server_pid: Some(server.pid()),
        warm_up: Duration::from_millis(300),
        duration: Duration::from_secs(1),
        pin: cores.load,
        ..load::Options::new(server.address())
    };
    let running = tokio::task::spawn_blocking(move || load::run(&options, &mut |_| {}));
    let outcome = running.await.map_err(went_wrong)?.map_err(|error| bench::failure(&error))?;
    tell.say(&format!(
        "{:.0} requests answered per second, {} errors",
        outcome.requests_per_second, outcome.errors
    ))?;
    let latency = outcome.latency;
    tell.say(&format!("half of them within {:.0} µs, 99 % within {:.0} µs", latency.p50_us, latency.p99_us))?;
    if let Some(cpu) = outcome.server_cpu {
        tell.say(&format!("{:.2} µs of the server's processor time for each", cpu.us_per_request))?;
    }
    if outcome.requests == 0 || outcome.errors + outcome.unanswered > 0 {
        return Err(went_wrong(format_args!(
            "{:?}, {} unanswered",
            outcome.error_counts, outcome.unanswered
        )));
    }
    Ok(())
}
