//! What breaks, and what is promised then: lines that are cut, bytes that lie, registries that stall, a hand on Ctrl-C.

mod interrupt;
mod lies;
mod memory;
mod resume;
mod security;
mod stalls;
