//! Faults and the guarantees under them: cut connections, corrupt bytes, stalled registries, Ctrl-C.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is a failure of the test")]

mod blob_proofs;
mod clock_skew;
mod corrupt_content;
mod deadlines;
mod disk;
mod dns_rebinding;
mod inline_data;
mod interrupt;
mod memory;
mod moving_tags;
mod redirects;
mod resource_limits;
mod resume;
mod secret_masking;
mod security;
mod signals;
mod stall_timeout;
