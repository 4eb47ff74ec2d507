//! [`TagRecorder`] in Redis: one script compares the lease, and writes the digest cache and the provenance.

use async_trait::async_trait;

use super::{RedisStore, ScriptCall, cache, provenance};
use crate::{Fence, ProvenanceUpdate, TagRecord, TagRecorder};
use imgsync_oci::error::Result;

#[async_trait]
impl TagRecorder for RedisStore {
    async fn record_tag(&self, fence: &Fence, record: TagRecord<'_>) -> Result<bool> {
        let tags = &record.tags;
        let mut first = true;
        // A record without tags is one step, too.
        for tags in tags.chunks(cache::TAGS_PER_CALL).chain(tags.is_empty().then_some(&tags[..])) {
            let part = TagRecord { tags: tags.to_vec(), ..record.clone() };
            let part = if first { part } else { TagRecord { provenance: None, complete: None, ..part } };
            let Some(sources) = self.record_step(fence, &part, &[]).await? else { return Ok(false) };
            let from = part.provenance.map(|update| provenance::repository_name(&update.source.repository));
            let others: Vec<String> = sources.into_iter().filter(|source| Some(source) != from.as_ref()).collect();
            if !others.is_empty() && self.record_step(fence, &part, &others).await?.is_none() {
                return Ok(false);
            }
            first = false;
        }
        Ok(true)
    }
}

impl RedisStore {
    /// Records one step's worth of tags, and deletes the tag's provenance from these other sources. Returns the sources
    /// with tags at the target, or `None` if the lease is lost.
    async fn record_step(
        &self,
        fence: &Fence,
        record: &TagRecord<'_>,
        others: &[String],
    ) -> Result<Option<Vec<String>>> {
        let TagRecord { provenance: update, scope, tags, complete } = record;
        let operation = format!("recording a tag of {}", scope.repository);
        let name = cache::scope_name(scope);
        let parts = self.scope_key(&cache::scope_name(&scope.partial_images()));
        let mut call =
            ScriptCall::new(self.lease_key(&fence.name)).key(self.scope_key(&name)).key(self.key("scopes")).key(parts);
        let (from, to) = match update {
            Some(ProvenanceUpdate { source, target, .. }) => {
                (provenance::repository_name(&source.repository), provenance::repository_name(&target.repository))
            }
            None => Default::default(),
        };
        call = call.key(self.pair_key(&from, &to)).key(self.provenance_key("provenance_targets", &from));
        call = call.key(self.provenance_key("provenance_sources_of", &to)).key(self.key("provenance_sources"));
        for other in others {
            call = call.key(self.pair_key(other, &to)).key(self.provenance_key("provenance_targets", other));
        }
        call = call.arg(&fence.holder).arg(fence.token);
        call = match complete {
            Some(tag) => cache::with_buckets(call, tag.as_str()),
            None => call.arg("").arg("").arg(""),
        };
        call = call.arg(from).arg(to);
        call = match update {
            Some(ProvenanceUpdate { source, target, digest }) => {
                cache::with_buckets(call, target.tag.as_str()).bytes(self.encode_provenance(source, target, digest))
            }
            None => call.arg("").arg("").arg("").arg(""),
        };
        call = call.arg(name).arg(cache::CACHE_TTL_SECONDS).arg(tags.len());
        for (tag, known) in tags {
            call = cache::with_buckets(call, tag.as_str()).bytes(cache::pack(known));
        }
        for other in others {
            call = call.arg(other);
        }
        let (held, sources): (i64, Vec<String>) = self.run_script(&operation, &self.0.scripts.record_tag, call).await?;
        Ok((held == 1).then_some(sources))
    }
}
