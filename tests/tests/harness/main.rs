//! Tests of the harness itself, on which all other suites rely.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod credentials;
mod faults;
mod images;
mod network;
mod program;
mod servers;
mod uploads;

/// Creates a client that accepts any response.
pub(crate) fn client() -> reqwest::Client {
    imgsync_tests::tls::install_provider();
    let builder = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    builder.build().unwrap()
}
