//! The command line: output streams, exit codes, bad input.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is a failure of the test")]

mod bad_input;
mod connections;
mod endings;
mod import;
mod original;
mod output;
mod presets;
mod reach;
