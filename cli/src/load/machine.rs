//! The machine that figures come from.

use std::fs;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// What must be known of a machine to make something of its figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor, as the kernel calls it.
    pub processor: String,
    /// How many cores are there.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
}

impl Machine {
    /// This machine.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn here() -> anyhow::Result<Self> {
        let info = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
        let values = |key: &'static str| {
            info.lines()
                .filter_map(move |line| line.split_once(':'))
                .filter(move |(name, _)| name.trim() == key)
        };
        let processor = values("model name").next().map_or("unknown", |(_, value)| value.trim()).to_owned();
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        Ok(Self { processor, cores: values("processor").count(), kernel })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} cores, Linux {}", self.processor, self.cores, self.kernel)
    }
}
