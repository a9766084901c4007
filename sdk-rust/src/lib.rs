//! The Rust client for the Ringpost message broker

#![forbid(unsafe_code)]
