//! Benchmarks of Ringpost: criterion benches, comparison with peers

#![forbid(unsafe_code)]
