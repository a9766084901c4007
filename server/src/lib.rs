//! The Ringpost server: drives the broker's core on io_uring. Embeddable

#![forbid(unsafe_code)]
