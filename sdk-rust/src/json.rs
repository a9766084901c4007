//! Handlers with types of their own: data is read from JSON before, and the reply is written as JSON behind them.

use std::{future::Future, pin::Pin};

use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, HandlerError, Reply, Request};

/// What a handler answers, once it is known.
type Answer = Pin<Box<dyn Future<Output = Result<Reply, HandlerError>> + Send>>;

/// Makes a handler of a function from data to a reply of any types that serde knows. It goes wherever a handler goes:
/// [`ClientBuilder::handler`](crate::ClientBuilder::handler), [`Client::handle`](crate::Client::handle) and those with
/// options.
///
/// Data that is not of the type is answered with an error that names the place, with the handler's code `malformed`; the
/// function is not called then. What is known of a request beside its data is in the [`Request`].
///
/// ```
/// # async fn example() -> Result<(), ringpost::Error> {
/// use ringpost::{Client, json};
///
/// #[derive(serde::Deserialize)]
/// struct Sum { values: Vec<i64> }
///
/// let client = Client::builder("127.0.0.1:8888")
///     .handler("sum", json(|sum: Sum, _request| async move { Ok(sum.values.iter().sum::<i64>()) }))
///     .connect()
///     .await?;
/// # client.closed().await; Ok(()) }
/// ```
pub fn json<T, R, F, Fut>(function: F) -> impl Fn(Request) -> Answer + Send + Sync + 'static
where
    F: Fn(T, Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    T: DeserializeOwned,
    R: Serialize,
{
    move |request| match request.json() {
        Ok(data) => {
            let work = function(data, request);
            Box::pin(async move {
                let reply = work.await?;
                Reply::json(&reply).map_err(|error| failure(&error))
            })
        }
        Err(error) => Box::pin(std::future::ready(Err(failure(&error)))),
    }
}

fn failure(error: &Error) -> HandlerError {
    HandlerError::new(error.message()).with_code(error.code())
}
