//! What the fault tests start as processes of their own: the command itself, and a handler and a requester whose doings
//! are written to a ledger, a file that outlives a SIGKILL.
//!
//! ```text
//! ringpost-test-process command ARGS…                                             as `ringpost ARGS…`
//! ringpost-test-process handler SERVER ACTION LEDGER CONCURRENCY HOLD_MS
//! ringpost-test-process requester SERVER ACTION LEDGER FROM WINDOW ATTEMPTS
//! ```
//!
//! Handler and requester write `ready` to their standard output once they are connected, and end when their standard
//! input does, which also happens when their test is killed. Lines of a ledger: `ran NUMBER ATTEMPT PID`, `asked NUMBER`,
//! `ended NUMBER CODE`, where CODE is `ok` or an error's.

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

use ringpost::{Client, HandlerError, HandlerOptions, Reply, Request};
use tokio::io::AsyncReadExt;

/// How soon these clients come back, and how long they wait for a reply.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(60);
/// A refused request is not followed by the next at once: nobody learns anything from a flood of refusals.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(5);

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
    let work = move |request: Request| {
        let ledger = ledger.clone();
        async move {
            let number: u64 = request.json()?;
            ledger.note(format_args!("ran {number} {} {}", request.attempt(), std::process::id()))?;
            // Not all alike: who sends a request for each reply would send them in batches.
            tokio::time::sleep(hold.mul_f64(0.5 + (number * 7 % 16) as f64 / 16.0)).await;
            Ok::<_, HandlerError>(Reply::json(&number)?)
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
    let (window, max_attempts): (u32, u8) = (window.parse()?, attempts.parse()?);
    let next = Arc::new(AtomicU64::new(from.parse()?));
    let client = Client::builder(server).reconnect_interval(RECONNECT_INTERVAL).connect().await?;
    ready()?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let workers: Vec<_> = (0..window)
        .map(|_| {
            let (client, ledger, next, stopped) =
                (client.clone(), ledger.clone(), next.clone(), stopped.clone());
            let action = action.to_owned();
            tokio::spawn(async move {
                while !*stopped.borrow() {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    ledger.note(format_args!("asked {number}"))?;
                    let request = client.request(&action, &number).max_attempts(max_attempts);
                    let code = match request.timeout(TIMEOUT).await {
                        Ok(reply) if reply.data::<u64>().is_ok_and(|echo| echo == number) => "ok",
                        Ok(_) => "wrongReply",
                        Err(error) => error.code(),
                    };
                    ledger.note(format_args!("ended {number} {code}"))?;
                    if code != "ok" {
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
    client.close().await;
    Ok(())
}

fn ready() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(b"ready\n")?;
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

    fn note(&self, line: std::fmt::Arguments<'_>) -> std::io::Result<()> {
        (&*self.0).write_all(format!("{line}\n").as_bytes())
    }
}
