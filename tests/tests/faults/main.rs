//! Faults and the guarantees under them: cut connections, corrupt bytes, stalled registries, Ctrl-C.
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
