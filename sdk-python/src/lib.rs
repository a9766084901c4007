//! The compiled module `ringpost._ringpost`: what the typed front in `python/ringpost` is built on, and private to it.
//!
//! The client's protocol is `ringpost::raw`'s, on a thread of its own for each client, which never touches the
//! interpreter. Python puts requests and answers down in `link`, which passes them on in batches; what comes back waits
//! in `queue` until Python takes it out, all at once, by `Connection::drain`.

mod command;
mod connection;
mod content;
mod delivery;
mod failure;
mod link;
mod news;
mod queue;
mod reply;
mod server;
mod slab;

/// The compiled part of the package `ringpost`.
#[pyo3::pymodule(gil_used = true)]
mod _ringpost {
    use pyo3::{prelude::*, types::PyDict};

    #[pymodule_export]
    use crate::{
        command::command, connection::Connection, delivery::Delivery, news::UnclaimedKey, reply::Reply,
        server::Server,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        // The one table of codes, with what a command exits with.
        let codes = PyDict::new(module.py());
        for code in ringpost::ErrorKind::ALL {
            codes.set_item(code.text(), code.exit_code())?;
        }
        module.add("CODES", codes)
    }
}
