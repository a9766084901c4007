//! A reply, as Python sees it on both sides.

use pyo3::{
    prelude::*,
    sync::PyOnceLock,
    types::{PyBytes, PyString},
};
use ringpost::raw::{Content, Info};

use crate::content;

/// What a handler answers, and what a requester gets: data, with options and headers where they are wanted.
///
/// Data is read from JSON when it is first asked for.
#[pyclass(frozen, module = "ringpost")]
pub(crate) struct Reply {
    /// What was said, or what was read from the payload.
    data: PyOnceLock<Py<PyAny>>,
    /// Of a reply that came.
    payload: Option<Py<PyBytes>>,
    options: PyOnceLock<Py<PyAny>>,
    /// Of a reply that came with more than data.
    content: Option<Box<Content>>,
    /// Of a reply that is to be given.
    headers: Option<Py<PyAny>>,
    info: Info,
}

impl Reply {
    /// A reply that came. Its bytes are copied if they are few: else a small reply would keep a large buffer.
    pub(crate) fn received(py: Python<'_>, content: &Content, info: Info) -> Self {
        let payload = PyBytes::new(py, content.payload()).unbind();
        let more = !content.options().is_empty() || !content.headers().is_empty();
        Self {
            data: PyOnceLock::new(),
            payload: Some(payload),
            options: PyOnceLock::new(),
            content: more
                .then(|| Box::new(Content::from_parts(b"", content.options(), content.headers(), b""))),
            headers: None,
            info,
        }
    }
}

fn filled(py: Python<'_>, value: Option<Py<PyAny>>) -> PyOnceLock<Py<PyAny>> {
    let cell = PyOnceLock::new();
    if let Some(value) = value {
        // It was empty a moment ago.
        let _ = cell.set(py, value);
    }
    cell
}

#[pymethods]
impl Reply {
    #[new]
    #[pyo3(signature = (data=None, *, options=None, headers=None))]
    fn new(
        py: Python<'_>,
        data: Option<Py<PyAny>>,
        options: Option<Py<PyAny>>,
        headers: Option<Py<PyAny>>,
    ) -> Self {
        Self {
            data: filled(py, Some(data.unwrap_or_else(|| py.None()))),
            payload: None,
            options: filled(py, Some(options.unwrap_or_else(|| py.None()))),
            content: None,
            headers,
            info: Info::default(),
        }
    }

    /// The data: what its JSON text says. Of an empty reply `None`.
    ///
    /// Raises `ProtocolError` if it is not JSON; `bytes` has it all the same.
    #[getter]
    fn data<'py>(&self, py: Python<'py>) -> PyResult<&Bound<'py, PyAny>> {
        let data = self.data.get_or_try_init(py, || match &self.payload {
            Some(payload) => content::loads(py, "the reply's data", payload.bind(py)),
            None => Ok(py.None()),
        })?;
        Ok(data.bind(py))
    }

    /// The data as it came, or as it will be sent: JSON text by convention.
    #[getter]
    fn bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        match &self.payload {
            Some(payload) => Ok(payload.bind(py).clone()),
            None => Ok(content::dumps(py, self.data(py)?)?),
        }
    }

    /// The handler's options, or `None`.
    #[getter]
    fn options<'py>(&self, py: Python<'py>) -> PyResult<&Bound<'py, PyAny>> {
        let options = self.options.get_or_try_init(py, || match &self.content {
            Some(content) => content::loads(py, "the reply's options", &PyBytes::new(py, content.options())),
            None => Ok(py.None()),
        })?;
        Ok(options.bind(py))
    }

    /// The headers as pairs, in the order of their sender; keys may repeat.
    #[getter]
    fn headers(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match (&self.headers, &self.content) {
            (Some(headers), _) => Ok(headers.clone_ref(py)),
            (None, Some(content)) => content::header_pairs(py, content.headers()),
            (None, None) => content::header_pairs(py, b""),
        }
    }

    /// What became of the request: always `handled`.
    #[getter]
    fn status<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        pyo3::intern!(py, "handled").clone()
    }

    /// When things happened to the request, by the broker's clock: an `Info`.
    #[getter]
    fn info(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        content::info(py, &self.info)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let shown = match &self.payload {
            Some(payload) => payload.bind(py).repr()?,
            None => self.data(py)?.repr()?,
        };
        let shown = shown.to_string();
        let short: String = shown.chars().take(80).collect();
        let more = if short.len() < shown.len() { "…" } else { "" };
        Ok(format!("<Reply {short}{more}>"))
    }
}
