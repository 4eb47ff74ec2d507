//! A run for demonstration: three sources and a target under real names, mostly successful. docs/pictures shows it.
//!
//! `cargo run -p imgsync-tests --example showcase > imgsync.yaml &`, then
//! `imgsync run -c imgsync.yaml --report=report.html`.
#![allow(clippy::print_stdout, reason = "it is there to be read")]

use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images::{self, Layer, TestImage};

const MIB: u64 = 1 << 20;

/// Builds a registry's error response.
fn says(code: u16, kind: &str, message: &str) -> FaultAction {
    let body = serde_json::json!({"errors": [{"code": kind, "message": message}]}).to_string();
    FaultAction::Status {
        code,
        headers: vec![("content-type".to_owned(), "application/json".to_owned())],
        body: body.into(),
    }
}

#[tokio::main]
async fn main() {
    let slow = |latency| FaultRegistry::builder().latency(Duration::from_millis(latency)).start();
    let (google, quay, k8s, target) = tokio::join!(slow(25), slow(40), slow(20), slow(8));
    for minor in 20..28 {
        for patch in 0..4 {
            for (at, part) in (0..).zip(["pilot", "proxyv2", "install-cni"]) {
                let tag = format!("1.{minor}.{patch}");
                let base = Layer::Shared(format!("istio-{minor}"), MIB);
                let own = Layer::Synthetic(MIB / 2 + (at * 3 + minor % 5) * 150_000);
                let image = TestImage::single(&format!("{part}-{tag}")).layer(base).layer(own).build();
                google.push(&format!("istio-release/{part}"), &tag, &image);
                // Older ones were copied before.
                if minor < 23 {
                    target.push(&format!("mirror/istio-release/{part}"), &tag, &image);
                }
            }
        }
    }
    for n in 0..40 {
        k8s.push("pause", &format!("3.{n}"), &images::multi_platform(&format!("pause-{n}")));
        let image = TestImage::single(&format!("coredns-{n}")).layers(2, 900_000).build();
        k8s.push("coredns", &format!("v1.{n}.0"), &image);
    }
    for n in 1..8 {
        quay.push("coreos/flannel", &format!("v0.{n}.0"), &images::single(&format!("flannel-{n}")));
    }
    google.on(RequestType::BlobGet).always().act(FaultAction::Throttle { bytes_per_second: 3 * MIB / 2 });
    let denied =
        RequestMatcher::kinds(&[RequestType::ManifestGet, RequestType::ManifestHead]).repository("coreos/flannel");
    quay.on(denied).always().act(says(401, "UNAUTHORIZED", "access to the requested resource is not authorized"));
    quay.on(RequestMatcher::kind(RequestType::Tags).repository("coreos/etcd")).always().act(says(
        404,
        "NAME_UNKNOWN",
        "repository not found",
    ));
    for tag in ["3.7", "3.19", "3.31"] {
        let gone = RequestMatcher::kinds(&[RequestType::ManifestGet, RequestType::ManifestHead])
            .repository("pause")
            .reference(tag);
        k8s.on(gone).always().act(says(404, "MANIFEST_UNKNOWN", &format!("Failed to fetch \"{tag}\"")));
    }
    let refused = RequestMatcher::kind(RequestType::ManifestPut).repository("mirror/istio-release/install-cni");
    let of_26 = refused.when(|record| record.reference.as_deref().is_some_and(|tag| tag.starts_with("1.26.")));
    target.on(of_26).always().act(says(
        412,
        "DENIED",
        "adding 2.2 MiB will exceed the configured upper limit of 50.0 GiB",
    ));
    let endpoint = |name: &str, registry: &FaultRegistry| format!("  {name}: {{endpoint: \"{}\"}}\n", registry.url());
    println!(
        "registries:\n{}{}{}{}defaults: {{to: harbor.example.com/mirror, naming: keep}}\nconcurrency: 6\nrules:\n\
         - from: gcr.io/istio-release/**\n- from: registry.k8s.io/pause\n- from: registry.k8s.io/coredns\n\
         - from: quay.io/coreos/flannel\n- from: quay.io/coreos/etcd",
        endpoint("gcr.io", &google),
        endpoint("quay.io", &quay),
        endpoint("registry.k8s.io", &k8s),
        endpoint("harbor.example.com", &target),
    );
    std::future::pending::<()>().await;
}
