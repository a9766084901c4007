//! A request that a handler of this process is to answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use pyo3::{prelude::*, types::PyBytes};
use ringpost::raw::{self, Content, RequestFlags, Verdict};

use crate::{content, link::Link};

/// A request for a handler. It must be answered once; later answers are dropped.
#[pyclass(frozen, module = "ringpost._ringpost")]
pub(crate) struct Delivery {
    inner: Box<raw::Delivery>,
    came: Instant,
    /// Its place among those that are held.
    place: u64,
    link: Arc<Link>,
    answered: AtomicBool,
    cancelled: AtomicBool,
}

impl Delivery {
    /// Makes the object, and holds it until it is answered.
    pub(crate) fn hold(
        py: Python<'_>,
        inner: raw::Delivery,
        link: &Arc<Link>,
        came: Instant,
    ) -> PyResult<Py<Self>> {
        // A place is needed before the object, and the object before it can be held.
        let place = link.held().insert(None);
        let delivery = Self {
            inner: Box::new(inner),
            came,
            place,
            link: link.clone(),
            answered: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
        };
        let object = Py::new(py, delivery)?;
        if let Some(held) = link.held().of(place) {
            *held = Some(object.clone_ref(py));
        }
        Ok(object)
    }

    pub(crate) fn key(&self) -> raw::DeliveryKey {
        self.inner.key
    }

    /// Nobody waits for it any more.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    fn content(&self) -> &Content {
        &self.inner.message.content
    }

    fn flag(&self, flag: RequestFlags) -> bool {
        self.inner.message.flags.has(flag)
    }

    fn say(&self, py: Python<'_>, verdict: Verdict, content: Content) -> PyResult<bool> {
        self.link.check(py)?;
        if self.answered.swap(true, Ordering::AcqRel) {
            return Ok(false);
        }
        let held = self.link.held().remove(self.place);
        drop(held);
        // Nobody would read it: only the slot comes back.
        let (verdict, content) = match self.cancelled.load(Ordering::Acquire) {
            true => (Verdict::Cancelled, Content::default()),
            false => (verdict, content),
        };
        self.link.answer(self.inner.key, verdict, content);
        Ok(true)
    }
}

#[pymethods]
impl Delivery {
    /// The registration that it is for.
    #[getter]
    fn registration(&self) -> u32 {
        self.inner.registration.0
    }

    /// The action that it is addressed to.
    #[getter]
    fn action(&self) -> &str {
        &self.inner.action
    }

    /// The data as it came.
    #[getter]
    fn payload<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.content().payload())
    }

    /// The options as they came: JSON text, or nothing.
    #[getter]
    fn options<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.content().options())
    }

    /// The headers as pairs.
    #[getter]
    fn headers(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        content::header_pairs(py, self.content().headers())
    }

    /// The request's identity, the same at each attempt.
    #[getter]
    fn id(&self) -> String {
        {
            let id = self.inner.message.request_id;
            format!("{:016x}-{}", id.boot, id.count)
        }
    }

    /// Which delivery of the request this is, from 1.
    #[getter]
    fn attempt(&self) -> u16 {
        self.inner.message.attempt
    }

    /// When the broker received it, in milliseconds since the Unix epoch.
    #[getter]
    fn received_at_ms(&self) -> u64 {
        self.inner.message.received_at_ms
    }

    /// Whether no reply is wanted.
    #[getter]
    fn is_send(&self) -> bool {
        self.flag(RequestFlags::SEND)
    }

    /// Whether every handler of the action got it.
    #[getter]
    fn is_broadcast(&self) -> bool {
        self.flag(RequestFlags::BROADCAST)
    }

    /// How many seconds the requester still waits; `None` if there is no end to it.
    #[getter]
    fn time_left(&self) -> Option<f64> {
        let left_ms = self.inner.message.time_left_ms;
        let left = (left_ms != u32::MAX).then(|| Duration::from_millis(u64::from(left_ms)))?;
        Some(left.saturating_sub(self.came.elapsed()).as_secs_f64())
    }

    /// Whether nobody waits for the answer any more.
    #[getter]
    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Answers with a reply. `False` if it was answered before.
    #[pyo3(signature = (payload, options=None, headers=None))]
    fn reply(
        &self,
        py: Python<'_>,
        payload: &[u8],
        options: Option<&[u8]>,
        headers: Option<Vec<(String, String)>>,
    ) -> PyResult<bool> {
        let content = content::content(py, b"", payload, options, headers)?;
        self.say(py, Verdict::Reply, content)
    }

    /// Answers with an error.
    fn fail(&self, py: Python<'_>, code: &str, message: &str) -> PyResult<bool> {
        self.say(py, Verdict::Error, said(code, message))
    }

    /// Answers that the request is to come again after so many milliseconds.
    fn retry(&self, py: Python<'_>, after_ms: u32, code: &str, message: &str) -> PyResult<bool> {
        self.say(py, Verdict::Retry(after_ms), said(code, message))
    }

    /// Answers that the request is never to come again.
    fn reject(&self, py: Python<'_>, code: &str, message: &str) -> PyResult<bool> {
        self.say(py, Verdict::Reject, said(code, message))
    }

    /// Says that the work goes on. `False` if nobody waits any more.
    fn progress(&self, py: Python<'_>, payload: &[u8]) -> PyResult<bool> {
        self.link.check(py)?;
        let content = Content::from_payload(payload.to_vec());
        Ok(self.link.raw.progress(self.inner.key, content))
    }
}

/// The wire wants at most 255 bytes of code: what is longer is cut.
fn said(code: &str, message: &str) -> Content {
    let end = (0..=code.len().min(255)).rev().find(|end| code.is_char_boundary(*end)).unwrap_or(0);
    Content::from_parts(&code.as_bytes()[..end], b"", b"", message.as_bytes())
}
