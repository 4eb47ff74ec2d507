//! Finds the tags of images that have new signatures or other referrers.

use std::collections::{BTreeMap, HashSet};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use imgsync_config::Rule;
use imgsync_model::batch::{PushedReference, TagLocator, TaskSpec};
use imgsync_oci::error::Result;
use imgsync_oci::{Digest, Tag};
use imgsync_registry::{Access, ManifestRef};

use super::super::PlanBuilder;
use super::MAX_CONCURRENT_REQUESTS;

/// Tags of a repository that are asked for the image of a new signature, if its listing has no digests.
const MAX_ASKED_TAGS: usize = 200;

/// Why a tag is asked which image it has; the first reason first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum AskReason {
    /// It was pushed, and its image was refused or not found yet.
    Pending,
    /// Nothing is known of it.
    Unknown,
    /// It had another image, and may have moved: what the policy refused is not in the digest cache.
    MayHaveMoved,
}

impl PlanBuilder<'_> {
    /// Finds the source tags of these images: in the listing, in the digest cache, or else by asking for the tags, such as
    /// those that were refused before they were signed.
    pub(super) async fn find_images(
        &self,
        rule: &Rule,
        tasks: &[TaskSpec],
        images: &HashSet<Digest>,
    ) -> Result<HashSet<Tag>> {
        let mut found = HashSet::new();
        let Some(source) = tasks.first().map(|task| &task.source.repository).filter(|_| !images.is_empty()) else {
            return Ok(found);
        };
        let mut missing = images.clone();
        let known = self.unchanged_filter.source_digests(tasks).await?;
        let pending = match rule.policy {
            Some(_) => self.pending_tags(rule, &source.to_string()).await?,
            None => HashSet::new(),
        };
        let mut asked: BTreeMap<(AskReason, &Tag), &TagLocator> = BTreeMap::new();
        for (task, known) in tasks.iter().zip(&known) {
            let tag = &task.source.tag;
            let reason = match known {
                Some(digest) if images.contains(digest) => {
                    missing.remove(digest);
                    found.insert(tag.clone());
                    continue;
                }
                // The listing shows it.
                Some(_) if task.digest.is_some() => continue,
                _ if pending.contains(tag) => AskReason::Pending,
                None => AskReason::Unknown,
                Some(_) if rule.policy.is_some() => AskReason::MayHaveMoved,
                Some(_) => continue,
            };
            asked.insert((reason, tag), &task.source);
        }
        let mut left = MAX_ASKED_TAGS;
        for wanted in [AskReason::Pending, AskReason::Unknown, AskReason::MayHaveMoved] {
            // Without a policy, an image may have several tags of which nothing is known.
            if rule.policy.is_some() && missing.is_empty() {
                break;
            }
            let tags: Vec<&TagLocator> =
                asked.iter().filter(|((reason, _), _)| *reason == wanted).map(|(_, source)| *source).collect();
            if tags.len() > left {
                self.context.warn(format!(
                    "{source}: only {left} of {} tags are asked for the image of what was pushed; the next run of the rule \
                     finds the others",
                    tags.len()
                ));
            }
            let tags: Vec<&TagLocator> = tags.into_iter().take(left).collect();
            left -= tags.len();
            for (tag, digest) in self.ask_tags(&tags).await? {
                if images.contains(&digest) {
                    missing.remove(&digest);
                    found.insert(tag);
                }
            }
        }
        Ok(found)
    }

    /// Returns the pushed tags of a repository that are pending for a rule.
    async fn pending_tags(&self, rule: &Rule, repository: &str) -> Result<HashSet<Tag>> {
        let id = rule.id();
        let pending = self.backend.store.pending_pushes().await?.into_iter().filter(|push| push.rule == id);
        let tag = |(registry, name, reference)| match reference {
            PushedReference::Tag(tag, _) if format!("{registry}/{name}") == repository => Some(tag),
            _ => None,
        };
        Ok(pending.filter_map(|push| push.pushed).filter_map(tag).collect())
    }

    /// Returns the digests that tags show. A tag that cannot be read is recorded: what was pushed stays pending.
    async fn ask_tags(&self, tags: &[&TagLocator]) -> Result<Vec<(Tag, Digest)>> {
        let mut reads: Vec<BoxFuture<'_, _>> = Vec::with_capacity(tags.len());
        for source in tags {
            reads.push(async move { (source, self.head_source(source).await) }.boxed());
        }
        let (mut shown, mut unread) = (Vec::new(), None);
        let mut answers = futures_util::stream::iter(reads).buffer_unordered(MAX_CONCURRENT_REQUESTS);
        while let Some((source, answer)) = answers.next().await {
            match answer {
                Ok(digest) => shown.extend(digest.map(|digest| (source.tag.clone(), digest))),
                Err(error) if error.is_cancelled() => return Err(error),
                Err(error) => unread = Some((source.repository.to_string(), error)),
            }
        }
        drop(answers);
        if let Some((repository, error)) = unread {
            self.record_unlisted(repository, &error).await?;
        }
        Ok(shown)
    }

    async fn head_source(&self, source: &TagLocator) -> Result<Option<Digest>> {
        let Some((registry, path)) = source.repository.registry() else { return Ok(None) };
        let repository = self.client.repository(registry, &path, Access::Pull, self.context, &self.counters.0)?;
        let head = repository.head_manifest_at_registry(&ManifestRef::Tag(source.tag.clone())).await?;
        Ok(head.map(|head| head.digest))
    }
}
