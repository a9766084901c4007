//! End to end, simulation and fault tests of Ringpost

#![forbid(unsafe_code)]
