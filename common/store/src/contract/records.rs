//! Records of target tags, and the leases they need.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{StoreUnderTest, locator};
use crate::{CacheScope, CachedTag, Fence, LEASE_TTL, LeaseResult, ProvenanceUpdate, TagRecord, tag_lease_name};
use imgsync_model::batch::TagLocator;
use imgsync_oci::{Digest, Tag};

fn tag_locator(registry: &str, path: &str, tag: &str) -> TagLocator {
    TagLocator { repository: Arc::new(locator(registry, path)), tag: tag.parse().unwrap() }
}

fn cached_tag(content: &str) -> CachedTag {
    let digest = Digest::sha256(content.as_bytes());
    let seen_at = Timestamp::from_second(1_767_225_600).unwrap();
    CachedTag { source: digest.clone(), target: digest, seen_at, referrers_at: None }
}

/// A target tag, its source, and its cache scope.
struct RecordedTag {
    source: TagLocator,
    target: TagLocator,
    scope: CacheScope,
}

impl RecordedTag {
    fn new(source: &str) -> RecordedTag {
        let target = tag_locator("b.example", "x", "v1");
        let scope = CacheScope { repository: (*target.repository).clone(), options: "linux/amd64".into() };
        RecordedTag { source: tag_locator("gcr.io", source, "v9"), target, scope }
    }

    async fn record(&self, subject: &StoreUnderTest, fence: &Fence, content: &str) -> bool {
        let digest = Digest::sha256(content.as_bytes());
        let provenance = Some(ProvenanceUpdate { source: &self.source, target: &self.target, digest: &digest });
        let more = (0..600).map(|n| (format!("sha256-{n}.sig").parse::<Tag>().unwrap(), cached_tag(content)));
        let tags = more.chain([(self.target.tag.clone(), cached_tag(content))]).collect();
        let record = TagRecord { provenance, scope: &self.scope, tags, complete: Some(&self.target.tag) };
        subject.store.record_tag(fence, record).await.unwrap()
    }

    /// Returns the cached state of the tag and of one of its digest tags, and whether the tag is marked as partial.
    async fn cached(&self, subject: &StoreUnderTest) -> (Vec<Option<CachedTag>>, bool) {
        let tags = [self.target.tag.clone(), "sha256-0.sig".parse().unwrap()];
        let all = subject.store.cached_tags(&self.scope, &tags).await.unwrap();
        let parts = subject.store.cached_tags(&self.scope.partial_images(), &tags[..1]).await.unwrap();
        (all, parts[0].is_some())
    }

    async fn mark_partial(&self, subject: &StoreUnderTest) {
        let mark = vec![(self.target.tag.clone(), cached_tag("parts"))];
        subject.store.cache_tags(&self.scope.partial_images(), mark).await.unwrap();
    }

    async fn provenance(&self, subject: &StoreUnderTest) -> Vec<(String, Digest)> {
        let entries = subject.store.provenance_by_source(&self.source.repository).await.unwrap();
        entries.into_iter().map(|entry| (format!("{} of {}", entry.target, entry.source_tag), entry.digest)).collect()
    }
}

async fn lease(subject: &StoreUnderTest, name: &str, holder: &str) -> Fence {
    match subject.store.acquire(name, holder, LEASE_TTL).await.unwrap() {
        LeaseResult::Acquired { token } => Fence { name: name.to_owned(), holder: holder.to_owned(), token },
        other => panic!("{other:?}"),
    }
}

pub async fn the_holder_of_a_tag_lease_records_the_tag(subject: StoreUnderTest) {
    let (first, second) = (RecordedTag::new("a"), RecordedTag::new("b"));
    let fence = lease(&subject, &tag_lease_name(&first.target), "one").await;
    first.mark_partial(&subject).await;
    assert_eq!(first.cached(&subject).await, (vec![None, None], true));
    assert!(first.record(&subject, &fence, "1").await);
    assert_eq!(first.cached(&subject).await, (vec![Some(cached_tag("1")); 2], false));
    let expected = |content: &str| vec![("b.example/x:v1 of v9".to_owned(), Digest::sha256(content.as_bytes()))];
    assert_eq!(first.provenance(&subject).await, expected("1"));
    // A tag has one provenance record: of the last source it was copied from.
    assert!(second.record(&subject, &fence, "2").await);
    assert_eq!((first.provenance(&subject).await, second.provenance(&subject).await), (vec![], expected("2")));
    assert!(first.record(&subject, &fence, "3").await);
    assert_eq!((first.provenance(&subject).await, second.provenance(&subject).await), (expected("3"), vec![]));
    // A tag found up to date has no provenance, and need not be cached.
    let record = TagRecord { provenance: None, scope: &first.scope, tags: Vec::new(), complete: None };
    assert!(subject.store.record_tag(&fence, record).await.unwrap());
    assert_eq!(first.cached(&subject).await.0, vec![Some(cached_tag("3")); 2]);
}

pub async fn a_holder_that_lost_its_lease_records_nothing(subject: StoreUnderTest) {
    let recorded = RecordedTag::new("a");
    let name = tag_lease_name(&recorded.target);
    recorded.mark_partial(&subject).await;
    let nothing_is_recorded = async |fence: &Fence, why: &str| {
        assert!(!recorded.record(&subject, fence, "lost").await, "{why}");
        assert_eq!(recorded.cached(&subject).await, (vec![None, None], true), "{why}");
        assert_eq!(recorded.provenance(&subject).await, [], "{why}");
    };
    let never = Fence { name: name.clone(), holder: "one".to_owned(), token: 1 };
    nothing_is_recorded(&never, "it was never acquired").await;
    let first = lease(&subject, &name, "one").await;
    let elsewhere = lease(&subject, &tag_lease_name(&tag_locator("b.example", "x", "v2")), "one").await;
    for (fence, why) in [
        (Fence { holder: "two".to_owned(), ..first.clone() }, "another holds it"),
        (Fence { token: first.token - 1, ..first.clone() }, "an earlier token"),
        (Fence { token: elsewhere.token, ..first.clone() }, "the token of another lease"),
    ] {
        nothing_is_recorded(&fence, why).await;
    }
    (subject.advance)(LEASE_TTL + Duration::from_secs(1));
    nothing_is_recorded(&first, "it has expired, and nobody has acquired it").await;
    let second = lease(&subject, &name, "one").await;
    nothing_is_recorded(&first, "its own holder has acquired it anew").await;
    subject.store.release(&name, "one").await.unwrap();
    nothing_is_recorded(&second, "it was released").await;
    let third = lease(&subject, &name, "two").await;
    nothing_is_recorded(&second, "another has acquired it").await;
    assert!(recorded.record(&subject, &third, "1").await);
    assert!(!recorded.record(&subject, &second, "lost").await);
    assert_eq!(recorded.cached(&subject).await, (vec![Some(cached_tag("1")); 2], false));
}
