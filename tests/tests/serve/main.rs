//! `imgsync serve`: scheduled rules, the API, and the dashboard in a real browser.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod auth;
mod batch_control;
mod cluster;
mod dashboard;
mod hooks;
mod image_files;
mod metrics;
mod openapi_conformance;
mod pruning;
mod reload;
mod rules;
mod schedules;
mod search;
mod support;
mod watch;
