//! The broker's decisions, pure and deterministic: routing, delivery, timers. No IO, no clock

#![forbid(unsafe_code)]
