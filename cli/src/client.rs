//! Where the server is, and how the commands reach it.

use std::{future::Future, time::Duration};

use clap::Args;
use ringpost_protocol::limits::DEFAULT_PORT;

use crate::{
    args,
    exit::{Failure, Outcome},
};

/// Where the server is.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArgs {
    /// The server to talk to: HOST:PORT. Default: 127.0.0.1:8888
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "RINGPOST_SERVER",
        value_parser = ringpost::Address::parse,
        help_heading = "Server"
    )]
    server: Option<ringpost::Address>,

    /// How long to try to reach the server
    #[arg(
        long,
        global = true,
        value_name = "DURATION",
        default_value = "5s",
        value_parser = args::some_duration,
        help_heading = "Server"
    )]
    pub(crate) connect_timeout: Duration,
}

impl ServerArgs {
    /// The address that was given, or the usual one.
    pub(crate) fn address(&self) -> ringpost::Address {
        let usual = || ringpost::Address { host: "127.0.0.1".to_owned(), port: DEFAULT_PORT };
        self.server.clone().unwrap_or_else(usual)
    }
}

/// Runs a command's future on a runtime of its own, on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::system("the runtime cannot be started", &error))?
        .block_on(future)
}
