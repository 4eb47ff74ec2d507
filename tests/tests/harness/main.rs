//! The harness holds what it promises: without this, no other suite says anything.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod credentials;
mod faults;
mod images;
mod network;
mod program;
mod servers;
mod uploads;

/// A client that takes every answer as it comes.
pub(crate) fn client() -> reqwest::Client {
    imgsync_tests::tls::install_provider();
    let builder = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    builder.build().unwrap()
}
