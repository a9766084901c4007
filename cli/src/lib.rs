//! The ringpost command, as a library with main(args) and as a binary

#![forbid(unsafe_code)]

pub mod load;
