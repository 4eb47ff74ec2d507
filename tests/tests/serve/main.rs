//! `imgsync serve`: scheduled rules, the API, and the dashboard in a real browser.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod access;
mod cluster;
mod figures;
mod generator;
mod page;
mod reload;
mod scene;
mod schedules;
mod steering;
mod watching;
