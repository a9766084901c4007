//! The only crate that talks to the kernel: ring, sockets, signals

