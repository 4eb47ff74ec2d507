//! From rules to tasks: discovery, selection, and the meaning of a configuration.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
// Listings are deeply nested futures, whose layout the compiler must compute.
#![recursion_limit = "256"]

mod archive_targets;
mod archive_writing;
mod archives;
mod batch_commands;
mod bundles;
mod config;
mod copy_slots;
mod digest_tags;
mod discovery;
mod discovery_stream;
mod google_listings;
mod hostile_registries;
mod mirrors;
mod named_images;
mod selection;
mod tags;
mod vendor_endpoints;
mod vendor_listings;
mod vendor_logins;

use imgsync_tests::FaultRegistry;
use imgsync_tests::fault::{FaultAction, RecordedRequest, RequestType, VendorKind};
use imgsync_tests::program::{Imgsync, Output};
use serde_json::json;

/// Runs `imgsync tags` for a pattern at a registry, with further arguments.
pub(crate) async fn tags(registry: &FaultRegistry, pattern: &str, more: &[&str]) -> Output {
    tags_command(&format!("{}/{pattern}", registry.host()), more).run().await
}

/// Creates `imgsync tags` with short timeouts.
pub(crate) fn tags_command(pattern: &str, more: &[&str]) -> Imgsync {
    Imgsync::new().args(["tags", pattern, "--retry-delay", "10ms"]).args(more)
}

/// Returns the lines of standard output.
pub(crate) fn lines(output: &Output) -> Vec<&str> {
    output.stdout.lines().collect()
}

/// Adds tags without images, which suffice for listings.
pub(crate) fn put_tags<T: AsRef<str>>(registry: &FaultRegistry, repository: &str, tags: impl IntoIterator<Item = T>) {
    for tag in tags {
        registry.move_tag(repository, tag.as_ref(), &imgsync_tests::images::sha256(tag.as_ref().as_bytes()));
    }
}

/// Returns a page of tags with a link to the next.
pub(crate) fn page(tags: &[String], next: Option<&str>) -> FaultAction {
    let link = next.map(|next| ("link".to_owned(), format!("<{next}>; rel=\"next\"")));
    FaultAction::Status {
        code: 200,
        headers: link.into_iter().collect(),
        body: json!({"tags": tags}).to_string().into(),
    }
}

/// Counts the requests for a repository's tags.
pub(crate) fn listings(registry: &FaultRegistry, repository: &str) -> u64 {
    let about =
        |record: &RecordedRequest| record.kind == RequestType::Tags && record.repository.as_deref() == Some(repository);
    registry.count_where(about)
}
mod end_to_end;
mod immutable_and_backup;
mod kill;
mod layouts;
mod layouts_in_tars;
mod multi_target;
mod notify;
mod notify_chats;
mod overlapping_runs;
mod policy;
mod prune;
mod quota;
mod recovery;
mod report;
mod rule_selection;
mod rules_at_once;
mod verify;

/// Registries with a vendor API each, under their real names and at our addresses.
pub(crate) struct VendorRegistries;

impl VendorRegistries {
    pub(crate) const ALL: [VendorKind; 4] = [VendorKind::Quay, VendorKind::Hub, VendorKind::Harbor, VendorKind::GitHub];

    /// Returns the name of the vendor's registry in rules.
    pub(crate) fn name(vendor: VendorKind) -> &'static str {
        match vendor {
            VendorKind::Quay => "quay.io",
            VendorKind::Hub => "docker.io",
            VendorKind::Harbor => "harbor.example.org",
            VendorKind::GitHub => "ghcr.io",
        }
    }

    /// Returns its entry under `registries` on one line. GitHub's API always requires a token.
    pub(crate) fn entry(vendor: VendorKind, registry: &FaultRegistry, more: &str) -> String {
        let more = match (vendor, more) {
            (VendorKind::GitHub, "") => "username: me, password: token",
            _ => more,
        };
        let listing = if vendor == VendorKind::Harbor { "listing: harbor, " } else { "" };
        let (name, url) = (Self::name(vendor), registry.url());
        format!("  {name}: {{endpoint: '{url}', {listing}api: '{url}', {more}}}\n")
    }

    /// Runs `imgsync tags` for a pattern there.
    pub(crate) async fn tags(vendor: VendorKind, registry: &FaultRegistry, pattern: &str, more: &[&str]) -> Output {
        Self::tags_with(&Self::entry(vendor, registry, ""), vendor, pattern, more).await
    }

    /// Runs `imgsync tags` with a custom entry.
    pub(crate) async fn tags_with(entry: &str, vendor: VendorKind, pattern: &str, more: &[&str]) -> Output {
        let program = tags_command(&format!("{}/{pattern}", Self::name(vendor)), more);
        program.file("imgsync.yaml", format!("registries:\n{entry}"));
        program.run().await
    }
}
