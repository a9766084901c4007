//! What this machine allows, for `ringpost doctor`.

use std::io;

use crate::{
    descriptors::{self, Limit},
    ring::{self, RingConfig, RingError, RingFlags},
};

/// What was found.
#[derive(Debug)]
pub struct Probe {
    /// The kernel's release.
    pub kernel: String,
    /// Whether a ring can be set up, and with which flags.
    pub ring: Result<RingFlags, RingError>,
    /// `kernel.io_uring_disabled`: 0 for everybody, 1 only for a group, 2 for nobody. `None` where the kernel has no
    /// such setting (before Linux 6.6).
    pub io_uring_disabled: Option<u8>,
    /// Open descriptors.
    pub descriptors: Limit,
    /// Locked memory in bytes. Kernels since 5.12 do not count rings against it.
    pub locked_memory: Limit,
}

/// Sets a ring up as the server would, lets go of it, and reads the limits. Changes nothing.
pub fn probe(config: &RingConfig) -> Probe {
    Probe {
        kernel: ring::kernel_release(),
        ring: ring::with_best_flags(config, |builder| -> io::Result<io_uring::IoUring> {
            builder.build(config.entries)
        })
        .map(|(_, flags)| flags),
        io_uring_disabled: ring::disabled_sysctl(),
        descriptors: descriptors::limit(),
        locked_memory: descriptors::locked_memory(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The machine that runs these tests has what they need.
    #[test]
    fn finds_a_ring() {
        let probe = probe(&RingConfig::default());
        assert!(probe.ring.is_ok(), "{:?}", probe.ring);
        assert!(!probe.kernel.is_empty());
        assert!(probe.descriptors.soft > 0);
    }
}
