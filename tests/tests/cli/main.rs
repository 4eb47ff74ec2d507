//! The command line: output streams, exit codes, bad input.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is a failure of the test")]

mod bad_input;
mod connection_errors;
mod exit_codes;
mod foreign_usage;
mod images;
mod import;
mod legacy_commands;
mod output;
mod presets;
mod transport_settings;
