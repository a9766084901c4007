//! `ringpost send`: a request that wants no reply.

use std::time::Duration;

use clap::Args;

use crate::{
    args,
    client::{self, ServerArgs},
    exit::Outcome,
    request::MessageArgs,
};

const EXAMPLES: &str = "\
Examples:
  ringpost send mail '{\"to\":\"you\"}'
  generate | ringpost send mail -

It prints nothing. It ends with 0 when the server has accepted the message: a handler has it, or \
it has a place in the queue. What the handler makes of it is not told. It must be \
done within --ttl, or --timeout if that is longer.";

/// Send a message that wants no reply to a handler of an action
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SendArgs {
    #[command(flatten)]
    message: MessageArgs,

    /// How long to wait for the server to accept it
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = args::some_duration)]
    timeout: Duration,
}

/// Runs the command.
pub(crate) fn run(args: &SendArgs, server: &ServerArgs) -> Outcome {
    let message = args.message.read()?;
    client::block_on(async {
        let what = format!("the message to `{}`", message.action);
        server
            .with_client(&what, message.durable, async |client| {
                let send = client.send_bytes(message.action, &message.data).timeout(args.timeout);
                message.complete(send).await.map(drop)
            })
            .await
    })
}
