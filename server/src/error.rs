//! Why a server does not start, and what to do about it.

use ringpost_io::{listener::BindError, ring::RingError};

use crate::{ConfigError, KeysError, StorageError};

/// Why a server does not start. Each says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A secure key cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// There is no io_uring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The log cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// More connections were asked for than descriptors are allowed.
    #[error(
        "max-connections = {wanted} needs {needed} open files, and this process may have {allowed}: raise the limit \
         (`ulimit -Hn`, LimitNOFILE= in a systemd unit) or lower max-connections"
    )]
    Descriptors {
        /// Connections that were asked for.
        wanted: usize,
        /// Descriptors that they need.
        needed: u64,
        /// Descriptors that may be had.
        allowed: u64,
    },
    /// The operating system refused something else.
    #[error("the server cannot be started: {what}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        #[source]
        cause: std::io::Error,
    },
}

impl StartError {
    /// The exit code of a command that ends with it: 78 configuration, 71 the ring or the system, 69 an address,
    /// 65 a corrupt log, 74 a disk.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Keys(_) | Self::Descriptors { .. } => 78,
            Self::Bind(_) => 69,
            Self::Storage(error) => error.exit_code(),
            Self::Ring(_) | Self::System { .. } => 71,
        }
    }
}
