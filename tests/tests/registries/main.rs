//! Copies between registries: results and request counts.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is a failure of the test")]

mod at_once;
mod client;
mod clouds;
mod company;
mod congestion;
mod cost;
mod create;
mod helpers;
mod http2;
mod kinds;
mod lines;
mod listed;
mod login;
mod mirrors;
mod odd;
mod pace;
mod personalities;
mod platforms;
mod real;
mod referrers;
mod retry_after;
mod second;
mod streams;
mod subjects;
mod targets;
mod tokens_of_age;
mod varied;
