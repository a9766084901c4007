//! What happened beside outcomes and deliveries, as tuples that begin with their kind.

use std::sync::Arc;

use pyo3::{
    prelude::*,
    types::{PyBytes, PyTuple},
};
use ringpost::{
    Error,
    raw::{self, Content, DeliveryKey, Event, Info, Notice},
};

use crate::{content, delivery::Delivery, failure, link::Link, queue::News, reply::Reply};

/// Names an unclaimed reply.
#[pyclass(frozen, module = "ringpost._ringpost")]
pub(crate) struct UnclaimedKey(pub(crate) raw::UnclaimedKey);

/// The tuple for a piece of news; none if it concerns nobody here any more.
pub(crate) fn tuple<'py>(
    py: Python<'py>,
    news: News,
    link: &Arc<Link>,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let notice = match news {
        News::Notice(notice) => notice,
        News::Room => return ("room",).into_pyobject(py).map(Some),
        News::Ended => {
            let cut = link.raw.drained();
            return ("ended", cut.requests, cut.handlers, cut.unsent_bytes).into_pyobject(py).map(Some);
        }
    };
    let tuple = match notice {
        Notice::CancelDelivery(key) => {
            let Some(delivery) = held(py, link, key) else { return Ok(None) };
            delivery.get().cancel();
            ("cancelled", delivery).into_pyobject(py)?
        }
        Notice::Unclaimed(unclaimed) => unclaimed_tuple(py, unclaimed)?,
        Notice::Receivers(list) => ("receivers", PyBytes::new(py, &list)).into_pyobject(py)?,
        Notice::Registered(id) => ("registered", id.0).into_pyobject(py)?,
        Notice::RegistrationFailed(id, error) => {
            ("refused", id.0, failure::exception(py, &error)?).into_pyobject(py)?
        }
        Notice::Deregistered(id) => ("deregistered", id.0).into_pyobject(py)?,
        Notice::Event(event) => return event_tuple(py, event),
        // Kinds that this version of the client does not have.
        _ => return Ok(None),
    };
    Ok(Some(tuple))
}

/// What a handler said, for the callback of the one who waits.
pub(crate) fn progress<'py>(
    py: Python<'py>,
    token: u64,
    content: &Content,
    link: &Link,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let callback = link
        .waiting()
        .of(token)
        .and_then(|waiting| waiting.on_progress.as_ref().map(|callback| callback.clone_ref(py)));
    let Some(callback) = callback else { return Ok(None) };
    ("progress", callback, PyBytes::new(py, content.payload())).into_pyobject(py).map(Some)
}

fn event_tuple(py: Python<'_>, event: Event) -> PyResult<Option<Bound<'_, PyTuple>>> {
    let tuple = match event {
        Event::Connected { server_id, epoch, .. } => {
            ("connected", String::from_utf8_lossy(&server_id).into_owned(), epoch).into_pyobject(py)?
        }
        Event::Disconnected(error) => ("disconnected", failure::exception(py, &error)?).into_pyobject(py)?,
        Event::ReconnectIn { delay, reason } => {
            ("reconnect_in", delay.as_secs_f64(), failure::exception(py, &reason)?).into_pyobject(py)?
        }
        Event::Goaway { grace, reason } => ("goaway", grace.as_secs_f64(), reason).into_pyobject(py)?,
        Event::Closed(error) => ("closed", failure::exception(py, &error)?).into_pyobject(py)?,
        _ => return Ok(None),
    };
    Ok(Some(tuple))
}

/// The number, the reply or exception, the times, the leg, what was asked, and the key to claim it by.
fn unclaimed_tuple(py: Python<'_>, unclaimed: raw::Unclaimed) -> PyResult<Bound<'_, PyTuple>> {
    let info = content::info(py, &unclaimed.info)?;
    let leg = unclaimed.leg.map(|leg| (leg.index, leg.expected));
    let asked = match &unclaimed.asked {
        Some(asked) => {
            let action = String::from_utf8_lossy(asked.name()).into_owned();
            Some((action, content::header_pairs(py, asked.headers())?))
        }
        None => None,
    };
    let (number, key) = (unclaimed.number, UnclaimedKey(unclaimed.key));
    let result = result(py, unclaimed.result, unclaimed.info)?;
    ("unclaimed", number, result, info, leg, asked, key).into_pyobject(py)
}

/// A reply, or the exception in its place.
pub(crate) fn result(py: Python<'_>, result: Result<Content, Error>, info: Info) -> PyResult<Py<PyAny>> {
    match result {
        Ok(content) => Ok(Py::new(py, Reply::received(py, &content, info))?.into_any()),
        Err(error) => failure::exception(py, &error),
    }
}

/// The delivery with this key. There are as many as handlers may hold, and few are ever cancelled: they are looked
/// through.
fn held(py: Python<'_>, link: &Link, key: DeliveryKey) -> Option<Py<Delivery>> {
    let held = link.held();
    let found = held.values().flatten().find(|delivery| delivery.get().key() == key);
    found.map(|delivery| delivery.clone_ref(py))
}
