//! Images between registries: what arrives, at what cost.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is a failure of the test")]

mod at_once;
mod cost;
mod login;
mod platforms;
mod real;
mod referrers;
mod subjects;
