//! JSON, headers and times, between the client and Python.

use pyo3::{
    prelude::*,
    sync::PyOnceLock,
    types::{PyBytes, PyList},
};
use ringpost::{
    Error, ErrorKind,
    raw::{Content, Headers, Info, encode_headers},
};

use crate::failure;

/// Reads JSON. Nothing reads as `None`.
pub(crate) fn loads(py: Python<'_>, what: &str, text: &Bound<'_, PyBytes>) -> PyResult<Py<PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    if text.as_bytes().is_empty() {
        return Ok(py.None());
    }
    let loads = LOADS.import(py, "ringpost._json", "loads")?;
    match loads.call1((text,)) {
        Ok(value) => Ok(value.unbind()),
        Err(error) => {
            let message = format!("{what} cannot be read as JSON: {}", error.value(py));
            Err(failure::raised(py, &Error::new(ErrorKind::Malformed, message)))
        }
    }
}

/// Writes JSON; bytes stay as they are.
pub(crate) fn dumps<'py>(py: Python<'py>, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let dumps = DUMPS.import(py, "ringpost._json", "dumps")?;
    Ok(dumps.call1((value,))?.cast_into()?)
}

/// Encoded headers as a list of pairs.
pub(crate) fn header_pairs(py: Python<'_>, encoded: &[u8]) -> PyResult<Py<PyAny>> {
    let pairs: Vec<(&str, &str)> = Headers::new(encoded).map_while(Result::ok).collect();
    Ok(PyList::new(py, pairs)?.into_any().unbind())
}

/// Content from what Python has. Data alone is copied once, together with the name.
pub(crate) fn content(
    py: Python<'_>,
    name: &[u8],
    payload: &[u8],
    options: Option<&[u8]>,
    pairs: Option<Vec<(String, String)>>,
) -> PyResult<Content> {
    let encoded = match pairs {
        Some(pairs) => encode_headers(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())))
            .map_err(|error| failure::raised(py, &Error::new(ErrorKind::TooLarge, error.to_string())))?,
        None => Default::default(),
    };
    Ok(Content::from_parts(name, options.unwrap_or_default(), &encoded, payload))
}

/// An `Info`.
pub(crate) fn info(py: Python<'_>, info: &Info) -> PyResult<Py<PyAny>> {
    static MAKE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let make = MAKE.import(py, "ringpost._info", "info")?;
    let Info { received_at_ms, delivered_after_ms, handled_after_ms, attempt } = *info;
    Ok(make.call1((received_at_ms, delivered_after_ms, handled_after_ms, attempt))?.unbind())
}
