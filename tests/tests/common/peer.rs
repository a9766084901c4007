//! What the fault tests start as processes of their own: the command itself, and a handler and a requester whose doings
//! are written to a ledger, a file that outlives a SIGKILL.
//!
//! ```text
//! ringpost-test-process command ARGS…                                             as `ringpost ARGS…`
//! ringpost-test-process handler SERVER ACTION LEDGER CONCURRENCY HOLD_MS
//! ringpost-test-process requester SERVER ACTION LEDGER FROM WINDOW ATTEMPTS
//! ringpost-test-process heir SERVER ACTION LEDGER FROM WINDOW SESSION
//! ringpost-test-process echo                                                      a TCP service: see `tcp`
//! ringpost-test-process crowd ADDRESS COUNT PAUSE_MS                              its clients
//! ```
//!
//! Handlers and requesters write `ready` to their standard output once they are connected, and end when their standard
//! input does, which also happens when their test is killed. Lines of a ledger: `ran NUMBER ATTEMPT PID`, `asked NUMBER`,
//! `ended NUMBER CODE`, where CODE is `ok` or an error's.
//!
//! An heir is a requester under a session's name, whose requests and sends are durable, and which collects the replies that
//! its predecessors did not live to get. It writes `accepted NUMBER` of a send, and of a request's reply, its own or an
//! inherited one, `outcome NUMBER RUN`, where RUN says which run of the handler it is from; of errors `failed WHAT NUMBER CODE`.

mod tcp;

use std::{
    error::Error,
    fs::File,
    io::Write,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ringpost::{Client, HandlerError, HandlerOptions, Reply, Request, UnclaimedReplies};
use tokio::io::AsyncReadExt;

/// How soon these clients come back, and how long they wait for a reply.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(60);
/// A refused request is not followed by the next at once: nobody learns anything from a flood of refusals.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(5);
/// The header that says which run of a handler a reply is from.
const RUN: &str = "run";
/// A durable request whose handlers are killed again and again still gets its reply.
const MANY_ATTEMPTS: u8 = 200;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    let outcome = match &words[..] {
        ["command", rest @ ..] => {
            return ringpost_cli::main(std::iter::once("ringpost").chain(rest.iter().copied()));
        }
        ["handler", server, action, ledger, concurrency, hold_ms] => {
            run(handler(server, action, ledger, concurrency, hold_ms))
        }
        ["requester", server, action, ledger, from, window, attempts] => {
            run(requester(server, action, ledger, from, window, attempts))
        }
        ["heir", server, action, ledger, from, window, session] => {
            run(heir(server, action, ledger, from, window, session))
        }
        ["echo"] => run(tcp::echo()),
        ["crowd", address, count, pause_ms] => run(tcp::crowd(address, count, pause_ms)),
        _ => Err("see this program's first lines".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where standard error is closed, the exit code says enough.
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(peer: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(peer)
}

async fn handler(server: &str, action: &str, ledger: &str, concurrency: &str, hold_ms: &str) -> Outcome {
    let ledger = Ledger::open(ledger)?;
    let hold = Duration::from_millis(hold_ms.parse()?);
    let runs = Arc::new(AtomicU64::new(0));
    let work = move |request: Request| {
        let ledger = ledger.clone();
        let run = format!("{}-{}", std::process::id(), runs.fetch_add(1, Ordering::Relaxed));
        async move {
            let number: u64 = request.json()?;
            ledger.note(format_args!("ran {number} {} {}", request.attempt(), std::process::id()))?;
            // Not all alike: who sends a request for each reply would send them in batches.
            tokio::time::sleep(hold.mul_f64(0.5 + (number * 7 % 16) as f64 / 16.0)).await;
            Ok::<_, HandlerError>(Reply::json(&number)?.with_headers([(RUN, run.as_str())])?)
        }
    };
    let options = HandlerOptions { concurrency: concurrency.parse()?, ..HandlerOptions::default() };
    let client = Client::builder(server)
        .reconnect_interval(RECONNECT_INTERVAL)
        .handler_with(action, options, work)
        .connect()
        .await?;
    ready()?;
    wait_for_end().await?;
    client.drain(Duration::from_secs(10)).await;
    Ok(())
}

async fn requester(
    server: &str,
    action: &str,
    ledger: &str,
    from: &str,
    window: &str,
    attempts: &str,
) -> Outcome {
    let ledger = Ledger::open(ledger)?;
    let max_attempts: u8 = attempts.parse()?;
    let client = Client::builder(server).reconnect_interval(RECONNECT_INTERVAL).connect().await?;
    ready()?;
    let (asking, action) = (client.clone(), action.to_owned());
    keep_asking(from, window, move |_, number| {
        let (client, ledger, action) = (asking.clone(), ledger.clone(), action.clone());
        async move {
            ledger.note(format_args!("asked {number}"))?;
            let request = client.request(&action, &number).max_attempts(max_attempts);
            let code = match request.timeout(TIMEOUT).await {
                Ok(reply) if reply.data::<u64>().is_ok_and(|echo| echo == number) => "ok",
                Ok(_) => "wrongReply",
                Err(error) => error.code(),
            };
            ledger.note(format_args!("ended {number} {code}"))?;
            Ok(code == "ok")
        }
    })
    .await?;
    client.close().await;
    Ok(())
}

async fn heir(server: &str, action: &str, ledger: &str, from: &str, window: &str, session: &str) -> Outcome {
    let ledger = Ledger::open(ledger)?;
    let builder = Client::builder(server).reconnect_interval(RECONNECT_INTERVAL);
    let client = builder.session(session).unclaimed_replies(true).connect().await?;
    ready()?;
    let inherited = tokio::spawn(collect(client.unclaimed_replies(), ledger.clone()));
    let (asking, action) = (client.clone(), action.to_owned());
    keep_asking(from, window, move |worker, number| {
        let (client, ledger, action) = (asking.clone(), ledger.clone(), action.clone());
        async move {
            match worker % 4 {
                0 => ask(&client, &action, number, false, &ledger).await,
                // Whoever asks again with the key gets the reply of the same run.
                1 => Ok(ask(&client, &action, number, true, &ledger).await?
                    && ask(&client, &action, number, true, &ledger).await?),
                _ => send(&client, &action, number, &ledger).await,
            }
        }
    })
    .await?;
    client.close().await;
    inherited.await??;
    Ok(())
}

/// One durable request, and what became of it. Whether all went well.
async fn ask(
    client: &Client,
    action: &str,
    number: u64,
    keyed: bool,
    ledger: &Ledger,
) -> std::io::Result<bool> {
    ledger.note(format_args!("asked {number}"))?;
    let mut request = client.request(action, &number).durable().max_attempts(MANY_ATTEMPTS);
    if keyed {
        request = request.idempotency_key(number.to_string());
    }
    match request.timeout(TIMEOUT).await {
        Ok(reply) => ledger.note_outcome(&reply).map(|()| true),
        Err(error) => ledger.note(format_args!("failed request {number} {}", error.code())).map(|()| false),
    }
}

/// One durable send, and whether it was accepted.
async fn send(client: &Client, action: &str, number: u64, ledger: &Ledger) -> std::io::Result<bool> {
    let send = client.send(action, &number).durable().max_attempts(MANY_ATTEMPTS);
    match send.timeout(TIMEOUT).await {
        Ok(_) => ledger.note(format_args!("accepted {number}")).map(|()| true),
        Err(error) => ledger.note(format_args!("failed send {number} {}", error.code())).map(|()| false),
    }
}

/// Makes requests with rising numbers, as many at a time as the window is wide, each worker the next when it is through with
/// its last, until the standard input ends. `ask` gets the worker's own number and the request's, and says whether all
/// went well.
async fn keep_asking<F>(
    from: &str,
    window: &str,
    ask: impl Fn(u32, u64) -> F + Clone + Send + 'static,
) -> Outcome
where
    F: Future<Output = std::io::Result<bool>> + Send + 'static,
{
    let next = Arc::new(AtomicU64::new(from.parse()?));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let workers: Vec<_> = (0..window.parse()?)
        .map(|worker| {
            let (ask, next, stopped) = (ask.clone(), next.clone(), stopped.clone());
            tokio::spawn(async move {
                while !*stopped.borrow() {
                    if !ask(worker, next.fetch_add(1, Ordering::Relaxed)).await? {
                        tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                    }
                }
                std::io::Result::Ok(())
            })
        })
        .collect();
    wait_for_end().await?;
    stop.send(true)?;
    for worker in workers {
        worker.await??;
    }
    Ok(())
}

/// Notes the replies of a session's earlier processes, until the client is closed.
async fn collect(mut unclaimed: UnclaimedReplies, ledger: Ledger) -> std::io::Result<()> {
    while let Some(unclaimed) = unclaimed.next().await {
        match unclaimed.result {
            Ok(reply) => ledger.note_outcome(&reply)?,
            // The data that would say which request it was is in the reply that there is not.
            Err(error) => ledger.note(format_args!("failed inherited - {}", error.code()))?,
        }
    }
    Ok(())
}

fn ready() -> std::io::Result<()> {
    say("ready")
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}

async fn wait_for_end() -> std::io::Result<()> {
    tokio::io::stdin().read_to_end(&mut Vec::new()).await.map(|_| ())
}

/// One write for each line, appended: the kernel has it when the process dies.
#[derive(Clone)]
struct Ledger(Arc<File>);

impl Ledger {
    fn open(path: &str) -> std::io::Result<Self> {
        Ok(Self(Arc::new(File::options().create(true).append(true).open(path)?)))
    }

    /// A reply, by its data the request's number.
    fn note_outcome(&self, reply: &Reply) -> std::io::Result<()> {
        let number = reply.data::<u64>().map_err(std::io::Error::other)?;
        let run = reply.header(RUN).unwrap_or("none");
        self.note(format_args!("outcome {number} {run}"))
    }

    fn note(&self, line: std::fmt::Arguments<'_>) -> std::io::Result<()> {
        (&*self.0).write_all(format!("{line}\n").as_bytes())
    }
}
