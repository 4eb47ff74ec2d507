//! [`TagRecords`] in Redis: one script compares the lease, and writes the digest cache and the provenance.

use async_trait::async_trait;

use super::{Call, RedisStore, cache, origins};
use crate::error::Result;
use crate::store::{Fence, TagOrigin, TagRecord, TagRecords};

#[async_trait]
impl TagRecords for RedisStore {
    async fn record_tag(&self, fence: &Fence, record: TagRecord<'_>) -> Result<bool> {
        let tags = &record.tags;
        let mut first = true;
        // A record without tags is one step, too.
        for tags in tags.chunks(cache::AT_ONCE).chain(tags.is_empty().then_some(&tags[..])) {
            let part = TagRecord { tags: tags.to_vec(), ..record.clone() };
            let part = if first { part } else { TagRecord { origin: None, whole: None, ..part } };
            let Some(sources) = self.record(fence, &part, &[]).await? else { return Ok(false) };
            let from = part.origin.map(|origin| origins::name(&origin.source.home));
            let others: Vec<String> = sources.into_iter().filter(|source| Some(source) != from.as_ref()).collect();
            if !others.is_empty() && self.record(fence, &part, &others).await?.is_none() {
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
    async fn record(&self, fence: &Fence, record: &TagRecord<'_>, others: &[String]) -> Result<Option<Vec<String>>> {
        let TagRecord { origin, scope, tags, whole } = record;
        let tried = format!("recording a tag of {}", scope.home);
        let name = cache::name(scope);
        let parts = self.scope_key(&cache::name(&scope.parts()));
        let mut call = Call::on(self.lease(&fence.name)).key(self.scope_key(&name)).key(self.key("scopes")).key(parts);
        let (from, to) = match origin {
            Some(TagOrigin { source, target, .. }) => (origins::name(&source.home), origins::name(&target.home)),
            None => Default::default(),
        };
        call = call.key(self.origins_between(&from, &to)).key(self.origins_of("os", &from));
        call = call.key(self.origins_of("ot", &to)).key(self.key("origins"));
        for other in others {
            call = call.key(self.origins_between(other, &to)).key(self.origins_of("os", other));
        }
        call = call.arg(&fence.holder).arg(fence.token);
        call = match whole {
            Some(tag) => cache::with_buckets(call, tag.as_str()),
            None => call.arg("").arg("").arg(""),
        };
        call = call.arg(from).arg(to);
        call = match origin {
            Some(TagOrigin { source, target, digest }) => {
                cache::with_buckets(call, target.tag.as_str()).bytes(self.origin_record(source, target, digest))
            }
            None => call.arg("").arg("").arg("").arg(""),
        };
        call = call.arg(name).arg(cache::KEPT).arg(tags.len());
        for (tag, known) in tags {
            call = cache::with_buckets(call, tag.as_str()).bytes(cache::pack(known));
        }
        for other in others {
            call = call.arg(other);
        }
        let (held, sources): (i64, Vec<String>) = self.script(&tried, &self.0.scripts.record_tag, call).await?;
        Ok((held == 1).then_some(sources))
    }
}
