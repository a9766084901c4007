//! Errors on their way to Python: `ringpost._errors` makes the exceptions, of the one table of codes.

use pyo3::{prelude::*, sync::PyOnceLock};
use ringpost::{Error, ErrorKind};

/// The exception for an error.
pub(crate) fn exception(py: Python<'_>, error: &Error) -> PyResult<Py<PyAny>> {
    static MAKE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let make = MAKE.import(py, "ringpost._errors", "exception")?;
    Ok(make.call1((error.code(), error.message(), error.handler_code()))?.unbind())
}

/// The same, to be raised.
pub(crate) fn raised(py: Python<'_>, error: &Error) -> PyErr {
    match exception(py, error) {
        Ok(exception) => PyErr::from_value(exception.into_bound(py)),
        Err(error) => error,
    }
}

/// For all that is asked of a client in a child of the process that it belongs to.
pub(crate) fn forked(py: Python<'_>) -> PyErr {
    let message = "this client belongs to the process that this one was forked from: make a new one here";
    raised(py, &Error::new(ErrorKind::Closed, message))
}
