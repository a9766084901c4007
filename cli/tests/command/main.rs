//! The command, as its users run it: the real binary, over real sockets and processes.

mod bench;
mod demo;
mod handle;
mod harness;
mod look;
mod request;
mod serve;
