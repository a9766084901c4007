//! `ringpost handle`: a handler from the command line.

mod capture;
mod ending;
mod environment;
mod group;
mod process;

use std::{
    env, ffi::OsString, num::NonZeroU32, os::unix::fs::PermissionsExt, path::Path, sync::Arc, thread,
    time::Duration,
};

use bytes::Bytes;
use clap::{ArgGroup, Args};
use ringpost::{Client, Event, HandlerError, HandlerOptions, Reply, Request};

use self::{ending::Ending, process::Program};
use crate::{
    args,
    client::{self, ServerArgs},
    exit::{Failure, Outcome},
    json,
    output::note,
    signals::{self, Stop},
};

const EXAMPLES: &str = "\
Examples:
  ringpost handle client_1 --echo
  ringpost handle client_1 --reply '{\"value\":3}'
  ringpost handle client_1 -- jq '{value: (.value + 1)}'
  ringpost handle mail --concurrency 4 -- ./deliver.sh --quickly

A command is started for each request. It gets the data on its standard input, and in its environment
  RINGPOST_ACTION, RINGPOST_REQUEST_ID, RINGPOST_ATTEMPT  what it is, and which delivery of it
  RINGPOST_DEADLINE_MS, RINGPOST_TIME_LEFT_MS             until when the requester waits (Unix
                                                          time), and how long that is
  RINGPOST_OPTIONS, RINGPOST_HEADERS                      JSON text
  RINGPOST_HEADER_NAME                                    a header; its key in capitals, with _ for
                                                          all but letters and digits
  RINGPOST_SERVER                                         for a `ringpost request` within it

What it writes to its standard output is the reply: JSON as it is, other text as a JSON string, \
nothing as null. If it ends with anything but 0, the requester gets an error with its standard \
error as the message and its exit code as the code. When nobody waits any more (cancelled, time \
over, this handler ends), its whole process group gets SIGTERM and two seconds later SIGKILL. \
What it starts and leaves behind is killed with it.

The connection is kept: while the server is away, it is tried again. Ctrl-C finishes what is at \
work, then ends with 0; a second Ctrl-C kills what is at work and ends at once, with \
130.";

/// Handle the requests to an action: echo them, answer always the same, or run a command
#[derive(Debug, Args)]
#[command(
    after_help = EXAMPLES,
    group = ArgGroup::new("how").required(true).args(["echo", "reply", "command"]),
    override_usage = "ringpost handle [OPTIONS] <ACTION> (--echo | --reply <JSON> | -- <COMMAND> [ARGS]...)"
)]
pub(crate) struct HandleArgs {
    /// The action to handle
    #[arg(value_parser = args::own_action)]
    action: String,

    /// Reply with the request's own data and options
    #[arg(long)]
    echo: bool,

    /// Reply always with this
    #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
    reply: Option<String>,

    /// Run this for each request
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,

    /// Wait so long before each reply: for trying out timeouts and cancellation
    #[arg(long, value_name = "DURATION", default_value = "0", conflicts_with = "command", value_parser = args::duration)]
    delay: Duration,

    /// How many requests to hold at once. Default: 64, for a command the number of processors
    #[arg(long, value_name = "N")]
    concurrency: Option<NonZeroU32>,

    /// How much a command may write to its standard output
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = args::size)]
    max_output: u64,

    /// How long to wait, when asked to end, for what is at work
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = args::duration)]
    drain_timeout: Duration,

    /// End when this process, which started it, ends
    #[arg(long, value_name = "PID", hide = true)]
    parent: Option<u32>,
}

/// How long what was stopped may take to say so.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What is done with a request.
enum Work {
    Echo,
    Reply(Bytes),
    Run(Program),
}

/// Runs the command.
pub(crate) fn run(args: &HandleArgs, server: &ServerArgs) -> Outcome {
    if let Some(parent) = args.parent {
        signals::end_with(parent)?;
    }
    let work = Arc::new(work(args, server)?);
    client::block_on(handle(args, work, server))
}

fn work(args: &HandleArgs, server: &ServerArgs) -> Outcome<Work> {
    if let Some(reply) = &args.reply {
        return Ok(Work::Reply(json::checked(reply.clone().into_bytes(), "the reply")?.into()));
    }
    let Some((name, arguments)) = args.command.split_first() else { return Ok(Work::Echo) };
    if !is_command(name) {
        let message =
            format!("there is no command `{}` that can be run: check its name and PATH", name.display());
        return Err(Failure::usage(message));
    }
    Ok(Work::Run(Program {
        name: name.clone(),
        arguments: arguments.to_vec(),
        server: server.address().to_string(),
        max_output_bytes: usize::try_from(args.max_output).unwrap_or(usize::MAX),
    }))
}

/// Whether there is such a command now: a mistake in its name is told at once, not with the first request.
fn is_command(name: &OsString) -> bool {
    let runs =
        |path: &Path| path.metadata().is_ok_and(|at| at.is_file() && at.permissions().mode() & 0o111 != 0);
    if name.as_encoded_bytes().contains(&b'/') {
        return runs(Path::new(name));
    }
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|folder| runs(&folder.join(name))))
}

impl Work {
    async fn answer(&self, request: Request, ending: &Ending) -> Result<Reply, HandlerError> {
        match self {
            Self::Echo => match request.options::<serde_json::Value>()? {
                Some(options) => Ok(Reply::bytes(request.bytes()).with_options(&options)?),
                None => Ok(Reply::bytes(request.bytes())),
            },
            Self::Reply(data) => Ok(Reply::bytes(data.clone())),
            Self::Run(program) => program.run(&request, ending).await,
        }
    }

    /// Commands want processors; the rest costs next to nothing.
    fn usual_concurrency(&self) -> u32 {
        match self {
            Self::Run(_) => {
                thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1))
            }
            _ => HandlerOptions::default().concurrency,
        }
    }
}

async fn handle(args: &HandleArgs, work: Arc<Work>, server: &ServerArgs) -> Outcome {
    let mut stop = Stop::listen()?;
    let action = args.action.as_str();
    let failed = |error| server.failure(&format!("the handler of `{action}`"), &error);
    let client = server
        .builder()
        .map_err(failed)?
        .retry_initial(true)
        .auto_start(false)
        .connect()
        .await
        .map_err(failed)?;
    let concurrency = args.concurrency.map_or_else(|| work.usual_concurrency(), NonZeroU32::get);
    let ending = Ending::new();
    let function = {
        let (ending, delay) = (ending.clone(), args.delay);
        move |request: Request| {
            let (work, ending) = (work.clone(), ending.clone());
            async move {
                let _run = ending.run();
                if wait(delay, &request, &ending).await {
                    work.answer(request, &ending).await
                } else {
                    Err(HandlerError::new("stopped before it replied").with_code("stopped"))
                }
            }
        }
    };
    let options = HandlerOptions { concurrency, ..HandlerOptions::default() };
    let mut events = client.events();
    let registering = async {
        client.start().await?;
        client.handle_with(action, options, function).await
    };
    let mut registering = std::pin::pin!(registering);
    let mut registered = false;
    loop {
        tokio::select! {
            biased;
            _ = stop.next() => break,
            outcome = &mut registering, if !registered => {
                // The registration lasts as long as the client.
                drop(outcome.map_err(failed)?);
                registered = true;
                note(format_args!("handling `{action}` at {}, {concurrency} at once", server.address()));
            }
            Some(event) = events.next() => report(event, action, server, registered).map_err(failed)?,
        }
    }
    finish(&client, &ending, &mut stop, args.drain_timeout).await
}

/// Lets the delay pass. `false` if nobody wants the reply any more.
async fn wait(delay: Duration, request: &Request, ending: &Ending) -> bool {
    if delay.is_zero() {
        return true;
    }
    tokio::select! {
        () = tokio::time::sleep(delay) => true,
        () = request.cancelled() => false,
        () = ending.begun() => false,
    }
}

/// Tells what happens to the connection; its final end is an error.
fn report(event: Event, action: &str, server: &ServerArgs, registered: bool) -> Result<(), ringpost::Error> {
    match event {
        Event::Connected { .. } if registered => {
            note(format_args!("connected again: handling `{action}` at {}", server.address()));
        }
        Event::ReconnectIn { delay, reason } => {
            note(format_args!("{reason}; trying again in {:.1} s", delay.as_secs_f64()));
        }
        Event::Goaway { reason, .. } => note(format_args!("{reason}")),
        Event::Closed(reason) => return Err(reason),
        _ => {}
    }
    Ok(())
}

/// Finishes what is at work for as long as it may; then, or at a second signal, stops it.
async fn finish(client: &Client, ending: &Ending, stop: &mut Stop, drain_timeout: Duration) -> Outcome {
    match ending.running() {
        0 => {}
        at_work => note(format_args!("finishing {at_work} at work; once more to stop at once")),
    }
    tokio::select! {
        _ = client.drain(Duration::MAX) => return Ok(()),
        () = tokio::time::sleep(drain_timeout) => {
            note(format_args!("stopping {} still at work after {drain_timeout:?}", ending.running()));
        }
        // What is at work is killed when the runtime ends.
        code = stop.next() => return Err(Failure::quiet(code)),
    }
    ending.begin();
    tokio::select! {
        () = ending.idle() => {}
        code = stop.next() => return Err(Failure::quiet(code)),
    }
    // Their last words leave before the connection ends.
    client.drain(LAST_WORDS).await;
    Ok(())
}
