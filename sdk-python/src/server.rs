//! A real server in this process, for tests.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use pyo3::{
    exceptions::{PyOSError, PyRuntimeError, PyValueError},
    prelude::*,
};
use ringpost_server::{Config, Handle};

/// A server on threads of its own. Dropping it stops it.
#[pyclass(frozen, module = "ringpost._ringpost")]
pub(crate) struct Server {
    handle: Mutex<Option<Handle>>,
    host: String,
    port: u16,
}

impl Server {
    /// The lock is free again when this returns: who waits for a server to end waits without the interpreter, and must
    /// not meet somebody there who has it and waits for the lock.
    fn take(&self) -> Option<Handle> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[pymethods]
impl Server {
    /// Starts a server; `config` is text in TOML, with the keys of the command's configuration file.
    #[new]
    fn new(py: Python<'_>, config: &str) -> PyResult<Self> {
        let config =
            Config::from_toml_text(config).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let handle = py
            .detach(|| ringpost_server::Server::builder().config(config).start())
            .map_err(|error| PyOSError::new_err(error.to_string()))?;
        let address = handle.address();
        Ok(Self { handle: Mutex::new(Some(handle)), host: address.ip().to_string(), port: address.port() })
    }

    /// Where it listens.
    #[getter]
    fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    #[getter]
    fn port(&self) -> u16 {
        self.port
    }

    /// Ends it at once; without effect if it has ended.
    fn stop(&self, py: Python<'_>) {
        if let Some(handle) = self.take() {
            py.detach(|| handle.stop());
        }
    }

    /// Ends it in good order, in so many milliseconds at most.
    fn drain(&self, py: Python<'_>, grace_ms: u64) -> PyResult<()> {
        let Some(handle) = self.take() else { return Ok(()) };
        py.detach(|| {
            handle.drain(Duration::from_millis(grace_ms));
            handle.wait()
        })
        .map(drop)
        .map_err(|crashed| PyRuntimeError::new_err(crashed.to_string()))
    }
}
