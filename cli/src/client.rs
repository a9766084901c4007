//! Where the server is, and how the commands reach it.

use std::{ffi::OsString, future::Future, time::Duration};

use clap::Args;
use ringpost::{Address, Client, ClientBuilder, Error, ErrorKind, Reply, SecureKey};
use ringpost_io::descriptors;
use ringpost_protocol::limits::DEFAULT_PORT;
use ringpost_server::{KeyFile, KeysError, read_key_file};
use zeroize::Zeroizing;

use crate::{
    args,
    exit::{Failure, NOT_USABLE, Outcome},
    signals::Stop,
};

/// How long the goodbye of an ending command may take: the server learns of its end either way.
const GOODBYE: Duration = Duration::from_secs(1);

/// Open files that a command with a connection has use for, with some to spare.
const OPEN_FILES: u64 = 16;

/// A secure key itself, where there is no file.
pub(crate) const KEY_VARIABLE: &str = "RINGPOST_SECURE_KEY";

/// Where the server is.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArgs {
    /// The server to talk to: HOST:PORT. Default: 127.0.0.1:8888
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        env = "RINGPOST_SERVER",
        value_parser = address,
        help_heading = "Server"
    )]
    server: Option<Address>,

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

    /// The file with the secure key that the server has too; without one, RINGPOST_SECURE_KEY may have the key itself
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "RINGPOST_SECURE_KEY_FILE",
        help_heading = "Server"
    )]
    secure_key_file: Vec<KeyFile>,
}

impl ServerArgs {
    /// The address that was given, or the usual one.
    pub(crate) fn address(&self) -> Address {
        let usual = || Address { host: "127.0.0.1".to_owned(), port: DEFAULT_PORT };
        self.server.clone().unwrap_or_else(usual)
    }

    /// The secure key that was given, if any.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`]: there is no key in the file, or more than one file.
    pub(crate) fn secure_key(&self) -> Result<Option<SecureKey>, Error> {
        let bad = |message: String| Error::new(ErrorKind::Malformed, message);
        match &self.secure_key_file[..] {
            [] => key_of_environment().map_err(bad),
            [file] => read_key_file(&file.path).map(Some).map_err(|error| {
                let unreadable = matches!(error, KeysError::Unreadable { .. });
                let advice = if unreadable { ": it must hold the key that the server has" } else { "" };
                bad(format!("{error}{advice}"))
            }),
            _ => Err(bad("a client has one secure key: give one --secure-key-file".to_owned())),
        }
    }

    /// The flags by which a server that is started for this command gets the same key file.
    pub(crate) fn key_arguments(&self) -> Vec<OsString> {
        let flags = self.secure_key_file.iter();
        flags.flat_map(|file| ["--secure-key-file".into(), file.path.clone().into()]).collect()
    }

    /// A client of the server, with the key.
    ///
    /// # Errors
    /// As [`ServerArgs::secure_key`].
    pub(crate) fn builder(&self) -> Result<ClientBuilder, Error> {
        let builder = Client::builder(self.address().to_string());
        Ok(match self.secure_key()? {
            Some(key) => builder.secure_key(key),
            None => builder,
        })
    }

    /// Connects for as long as one command takes: what breaks the connection ends it.
    ///
    /// # Errors
    /// [`ErrorKind::Connect`], also when it takes too long, or what the server says against the connection.
    pub(crate) async fn connect(&self) -> Result<Client, Error> {
        self.connect_to_stay(false).await
    }

    /// The same; `stays`: a connection that breaks is made again, for what survives that.
    async fn connect_to_stay(&self, stays: bool) -> Result<Client, Error> {
        let connecting = self.builder()?.reconnect(stays).connect();
        tokio::time::timeout(self.connect_timeout, connecting).await.unwrap_or_else(|_| Err(self.too_late()))
    }

    /// Connects, does what the command is for, and says goodbye. SIGINT and SIGTERM end it early: what is open is
    /// cancelled, so that handlers are told at once. `what` is named in errors; `stays`: a connection that breaks is made
    /// again.
    pub(crate) async fn with_client<T>(
        &self,
        what: &str,
        stays: bool,
        work: impl AsyncFnOnce(&Client) -> Result<T, Error>,
    ) -> Outcome<T> {
        let failed = |error| self.failure(what, &error);
        let mut stop = Stop::listen()?;
        let client = tokio::select! {
            client = self.connect_to_stay(stays) => client.map_err(failed)?,
            code = stop.next() => return Err(Failure::quiet(code)),
        };
        let outcome = tokio::select! {
            outcome = work(&client) => outcome.map_err(failed),
            code = stop.next() => Err(Failure::quiet(code)),
        };
        goodbye(client.close()).await;
        outcome
    }

    /// Asks one of the server's own actions; `data` is JSON text.
    ///
    /// # Errors
    /// As [`ServerArgs::connect`], and those of requests.
    pub(crate) async fn ask(&self, action: &str, data: &str) -> Result<Reply, Error> {
        self.ask_for(action, data, self.connect_timeout).await
    }

    /// The same, of what may take its time.
    ///
    /// # Errors
    /// The same.
    pub(crate) async fn ask_for(&self, action: &str, data: &str, timeout: Duration) -> Result<Reply, Error> {
        let client = self.connect().await?;
        let reply = client.request_bytes(action, data).timeout(timeout).await;
        client.close().await;
        reply
    }

    /// The server was not reached in time.
    pub(crate) fn too_late(&self) -> Error {
        let message = format!("no welcome from {} within {:?}", self.address(), self.connect_timeout);
        Error::new(ErrorKind::Connect, message)
    }

    /// What a command ends with when the server is not reached or does not do what it was asked for.
    pub(crate) fn failure(&self, what: &str, error: &Error) -> Failure {
        let remedy = match error.kind() {
            ErrorKind::Connect => {
                " (start one with `ringpost serve`, or say where it is with --server or RINGPOST_SERVER)"
            }
            _ => "",
        };
        Failure::new(error.exit_code(), format!("{what}: {error}{remedy}"))
    }
}

/// The secure key in the environment, if there is one.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn key_of_environment() -> Result<Option<SecureKey>, String> {
    match std::env::var(KEY_VARIABLE).map(Zeroizing::new) {
        Ok(text) if !text.is_empty() => {
            SecureKey::parse(&text).map(Some).map_err(|error| format!("{KEY_VARIABLE}: {error}"))
        }
        _ => Ok(None),
    }
}

/// Reads where a server is.
fn address(text: &str) -> Result<Address, String> {
    Address::parse(text).map_err(|error| error.message().to_owned())
}

/// Closes a client, for as long as that may take at the end of a command.
pub(crate) async fn goodbye(closing: impl Future<Output = ()>) {
    if tokio::time::timeout(GOODBYE, closing).await.is_err() {
        tracing::debug!("the connection did not end in time");
    }
}

/// Runs a command's future on a runtime of its own, on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    // The runtime panics where there are too few of them for its signals.
    open_files(OPEN_FILES, "this command")?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::system("the runtime cannot be started", &error))?
        .block_on(future)
}

/// Makes sure that so many files may be open. The limit is raised only where it must be: processes that this one starts
/// get it too, and some are slow under a high one.
pub(crate) fn open_files(needed: u64, what: &str) -> Outcome {
    if descriptors::limit().soft >= needed {
        return Ok(());
    }
    let limit = descriptors::raise_limit()
        .map_err(|error| Failure::system("the limit of open files cannot be raised", &error))?;
    if limit.soft >= needed {
        return Ok(());
    }
    let message = format!(
        "{what} needs {needed} open files, and this process may have {}: raise the limit (`ulimit -n {needed}`, \
         LimitNOFILE= in a systemd unit)",
        limit.soft
    );
    Err(Failure::new(NOT_USABLE, message))
}
