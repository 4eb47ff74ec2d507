//! User documentation: consistent, with working links.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is a failure of the test")]

mod commands;
mod install;
mod links;
mod markdown;
mod names;
mod providers;
mod readmes;
mod test_names;
