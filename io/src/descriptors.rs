//! How many descriptors this process may have open.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A limit of this process. `u64::MAX` stands for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What is enforced.
    pub soft: u64,
    /// What it may be raised to.
    pub hard: u64,
}

/// The limit of open descriptors.
pub fn limit() -> Limit {
    read(Resource::Nofile)
}

/// Raises the limit of open descriptors to what this process may have, and says what it is now.
///
/// It stays low by default for the sake of programs that use select(2), which this one does not.
///
/// # Errors
/// When the kernel refuses, which it does only above `fs.nr_open`.
pub fn raise_limit() -> io::Result<Limit> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(limit())
}

pub(crate) fn locked_memory() -> Limit {
    read(Resource::Memlock)
}

fn read(resource: Resource) -> Limit {
    let Rlimit { current, maximum } = getrlimit(resource);
    Limit { soft: current.unwrap_or(u64::MAX), hard: maximum.unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Afterwards everything that is allowed is used.
    #[test]
    fn raises_to_the_hard_limit() {
        let raised = raise_limit().unwrap();
        assert_eq!(raised.soft, raised.hard);
        assert_eq!(limit(), raised);
    }
}
