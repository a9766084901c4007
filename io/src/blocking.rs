//! Files without a ring: the blocking twin of [`file`](crate::file) and [`directory`](crate::directory), for start-up and
//! for tools. Names, errors and promises are the same; each call ends when the kernel has done it, and the thread waits.
//!
//! Not for a thread whose ring carries traffic, but for what is said to be fast enough there.

mod directory;
mod file;
mod lock;

pub use directory::{Directory, Space};
pub use file::File;
pub use lock::Lock;

pub(crate) use directory::{file_name, new_name};
pub(crate) use file::{checked_range, zeros};
