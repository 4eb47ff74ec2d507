//! Records of target tags, and the leases they need.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Subject, home};
use crate::batch::Place;
use crate::image::{Digest, Tag};
use crate::store::{CacheScope, Fence, Known, LEASE, Named, TagOrigin, TagRecord, target_tag};

fn place(registry: &str, path: &str, tag: &str) -> Place {
    Place { home: Arc::new(home(registry, path)), tag: tag.parse().unwrap() }
}

fn known(content: &str) -> Known {
    let digest = Digest::sha256(content.as_bytes());
    let seen_at = Timestamp::from_second(1_767_225_600).unwrap();
    Known { source: digest.clone(), target: digest, seen_at, referrers_at: None }
}

/// A target tag, its source, and its cache scope.
struct Told {
    source: Place,
    target: Place,
    scope: CacheScope,
}

impl Told {
    fn new(source: &str) -> Told {
        let target = place("b.example", "x", "v1");
        let scope = CacheScope { home: (*target.home).clone(), options: "linux/amd64".into() };
        Told { source: place("gcr.io", source, "v9"), target, scope }
    }

    async fn record(&self, subject: &Subject, fence: &Fence, content: &str) -> bool {
        let digest = Digest::sha256(content.as_bytes());
        let origin = Some(TagOrigin { source: &self.source, target: &self.target, digest: &digest });
        let more = (0..600).map(|n| (format!("sha256-{n}.sig").parse::<Tag>().unwrap(), known(content)));
        let tags = more.chain([(self.target.tag.clone(), known(content))]).collect();
        let record = TagRecord { origin, scope: &self.scope, tags, whole: Some(&self.target.tag) };
        subject.store.record_tag(fence, record).await.unwrap()
    }

    /// Returns the cached state of the tag and of one of its digest tags, and whether the tag is marked as partial.
    async fn remembered(&self, subject: &Subject) -> (Vec<Option<Known>>, bool) {
        let tags = [self.target.tag.clone(), "sha256-0.sig".parse().unwrap()];
        let all = subject.store.known(&self.scope, &tags).await.unwrap();
        let parts = subject.store.known(&self.scope.parts(), &tags[..1]).await.unwrap();
        (all, parts[0].is_some())
    }

    async fn mark_in_part(&self, subject: &Subject) {
        let mark = vec![(self.target.tag.clone(), known("parts"))];
        subject.store.learn(&self.scope.parts(), mark).await.unwrap();
    }

    async fn origins(&self, subject: &Subject) -> Vec<(String, Digest)> {
        let origins = subject.store.origins(&self.source.home).await.unwrap();
        origins
            .into_iter()
            .map(|origin| (format!("{} of {}", origin.target, origin.source_tag), origin.digest))
            .collect()
    }
}

async fn lease(subject: &Subject, name: &str, holder: &str) -> Fence {
    match subject.store.acquire(name, holder, LEASE).await.unwrap() {
        Named::Yours { epoch } => Fence { name: name.to_owned(), holder: holder.to_owned(), token: epoch },
        other => panic!("{other:?}"),
    }
}

pub async fn a_tag_is_recorded_by_who_holds_its_lease(subject: Subject) {
    let (first, second) = (Told::new("a"), Told::new("b"));
    let fence = lease(&subject, &target_tag(&first.target), "one").await;
    first.mark_in_part(&subject).await;
    assert_eq!(first.remembered(&subject).await, (vec![None, None], true));
    assert!(first.record(&subject, &fence, "1").await);
    assert_eq!(first.remembered(&subject).await, (vec![Some(known("1")); 2], false));
    let expected = |content: &str| vec![("b.example/x:v1 of v9".to_owned(), Digest::sha256(content.as_bytes()))];
    assert_eq!(first.origins(&subject).await, expected("1"));
    // A tag has one provenance record: of the last source it was copied from.
    assert!(second.record(&subject, &fence, "2").await);
    assert_eq!((first.origins(&subject).await, second.origins(&subject).await), (vec![], expected("2")));
    assert!(first.record(&subject, &fence, "3").await);
    assert_eq!((first.origins(&subject).await, second.origins(&subject).await), (expected("3"), vec![]));
    // A tag found up to date has no provenance, and need not be cached.
    let record = TagRecord { origin: None, scope: &first.scope, tags: Vec::new(), whole: None };
    assert!(subject.store.record_tag(&fence, record).await.unwrap());
    assert_eq!(first.remembered(&subject).await.0, vec![Some(known("3")); 2]);
}

pub async fn who_has_lost_the_lease_of_a_tag_records_nothing(subject: Subject) {
    let told = Told::new("a");
    let name = target_tag(&told.target);
    told.mark_in_part(&subject).await;
    let nothing_is_recorded = async |fence: &Fence, why: &str| {
        assert!(!told.record(&subject, fence, "lost").await, "{why}");
        assert_eq!(told.remembered(&subject).await, (vec![None, None], true), "{why}");
        assert_eq!(told.origins(&subject).await, [], "{why}");
    };
    let never = Fence { name: name.clone(), holder: "one".to_owned(), token: 1 };
    nothing_is_recorded(&never, "it was never acquired").await;
    let first = lease(&subject, &name, "one").await;
    let elsewhere = lease(&subject, &target_tag(&place("b.example", "x", "v2")), "one").await;
    for (fence, why) in [
        (Fence { holder: "two".to_owned(), ..first.clone() }, "another holds it"),
        (Fence { token: first.token - 1, ..first.clone() }, "an earlier token"),
        (Fence { token: elsewhere.token, ..first.clone() }, "the token of another lease"),
    ] {
        nothing_is_recorded(&fence, why).await;
    }
    (subject.advance)(LEASE + Duration::from_secs(1));
    nothing_is_recorded(&first, "it has expired, and nobody has acquired it").await;
    let second = lease(&subject, &name, "one").await;
    nothing_is_recorded(&first, "its own holder has acquired it anew").await;
    subject.store.release(&name, "one").await.unwrap();
    nothing_is_recorded(&second, "it was released").await;
    let third = lease(&subject, &name, "two").await;
    nothing_is_recorded(&second, "another has acquired it").await;
    assert!(told.record(&subject, &third, "1").await);
    assert!(!told.record(&subject, &second, "lost").await);
    assert_eq!(told.remembered(&subject).await, (vec![Some(known("1")); 2], false));
}
