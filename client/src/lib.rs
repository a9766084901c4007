//! The client's side of Ringpost, pure: session, numbering, credit, deadlines. No IO, no clock

#![forbid(unsafe_code)]
