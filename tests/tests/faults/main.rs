//! What breaks, and what is promised then: lines that are cut, bytes that lie, registries that stall, a hand on Ctrl-C.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is a failure of the test")]

mod addresses;
mod clock;
mod disk;
mod echoes;
mod elsewhere;
mod inline;
mod interrupt;
mod lies;
mod limits;
mod memory;
mod moves;
mod proofs;
mod resume;
mod security;
mod signals;
mod stalls;
mod waits;
