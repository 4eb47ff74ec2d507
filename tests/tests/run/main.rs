//! From rules to tasks: what is listed, what is chosen of it, and what a configuration means.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
// Listings are deep nests of futures, whose layout the compiler works out.
#![recursion_limit = "256"]

mod choosing;
mod company;
mod config;
mod enumerate;
mod hostile;
mod steering;
mod streams;
mod tags;
mod trees;
mod vendor_ends;
mod vendor_lists;
mod vendor_logins;

use imgsync_tests::FaultRegistry;
use imgsync_tests::fault::{Action, Kind, Record, Vendor};
use imgsync_tests::program::{Imgsync, Output};
use serde_json::json;

/// `imgsync tags` of something in a registry, with what else is to be said.
pub(crate) async fn tags(registry: &FaultRegistry, pattern: &str, more: &[&str]) -> Output {
    tags_of(&format!("{}/{pattern}", registry.host()), more).run().await
}

/// `imgsync tags`, impatient.
pub(crate) fn tags_of(pattern: &str, more: &[&str]) -> Imgsync {
    Imgsync::new().args(["tags", pattern, "--retry-delay", "10ms"]).args(more)
}

/// The lines that a program wrote.
pub(crate) fn lines(output: &Output) -> Vec<&str> {
    output.stdout.lines().collect()
}

/// Tags without images, which is all that a list shows.
pub(crate) fn put_tags<T: AsRef<str>>(registry: &FaultRegistry, repository: &str, tags: impl IntoIterator<Item = T>) {
    for tag in tags {
        registry.move_tag(repository, tag.as_ref(), &imgsync_tests::images::sha256(tag.as_ref().as_bytes()));
    }
}

/// A page of tags as an answer, with a link to the next.
pub(crate) fn page(tags: &[String], next: Option<&str>) -> Action {
    let link = next.map(|next| ("link".to_owned(), format!("<{next}>; rel=\"next\"")));
    Action::Status { code: 200, headers: link.into_iter().collect(), body: json!({"tags": tags}).to_string().into() }
}

/// How often a repository's tags were asked for.
pub(crate) fn listings(registry: &FaultRegistry, repository: &str) -> u64 {
    let about = |record: &Record| record.kind == Kind::Tags && record.repository.as_deref() == Some(repository);
    registry.count_where(about)
}
mod keep;
mod kill;
mod layouts;
mod notify;
mod notify_chats;
mod overlap;
mod prune;
mod quota;
mod report;
mod together;
mod trouble;
mod verify;
mod whole;

/// Registries with a vendor's API each: by the names that they are known under, with addresses that are ours.
pub(crate) struct Vendors;

impl Vendors {
    pub(crate) const ALL: [Vendor; 4] = [Vendor::Quay, Vendor::Hub, Vendor::Harbor, Vendor::GitHub];

    /// The name under which a registry is written in rules.
    pub(crate) fn name(vendor: Vendor) -> &'static str {
        match vendor {
            Vendor::Quay => "quay.io",
            Vendor::Hub => "docker.io",
            Vendor::Harbor => "harbor.example.org",
            Vendor::GitHub => "ghcr.io",
        }
    }

    /// Its entry under `registries`, on one line. GitHub's API wants a token always.
    pub(crate) fn entry(vendor: Vendor, registry: &FaultRegistry, more: &str) -> String {
        let more = match (vendor, more) {
            (Vendor::GitHub, "") => "username: me, password: token",
            _ => more,
        };
        let listing = if vendor == Vendor::Harbor { "listing: harbor, " } else { "" };
        let (name, url) = (Self::name(vendor), registry.url());
        format!("  {name}: {{endpoint: '{url}', {listing}api: '{url}', {more}}}\n")
    }

    /// `imgsync tags` of something there.
    pub(crate) async fn tags(vendor: Vendor, registry: &FaultRegistry, pattern: &str, more: &[&str]) -> Output {
        Self::tags_with(&Self::entry(vendor, registry, ""), vendor, pattern, more).await
    }

    /// The same with an entry of one's own.
    pub(crate) async fn tags_with(entry: &str, vendor: Vendor, pattern: &str, more: &[&str]) -> Output {
        let program = tags_of(&format!("{}/{pattern}", Self::name(vendor)), more);
        program.file("imgsync.yaml", format!("registries:\n{entry}"));
        program.run().await
    }
}
