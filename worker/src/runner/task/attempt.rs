//! One attempt of a task: digest cache, source check, copy.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use imgsync_layout::{ArchiveRef, ImageName, LayoutRef};
use imgsync_model::batch::{BatchOptions, Endpoint, ForeignLayers, Message, RuleOptions, TagLocator};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{ArchiveFormat, Digest, DigestTagHints, Reference, RepositoryName, Tag};
use imgsync_registry::{Access, Context, ManifestRef, Repository};
use imgsync_store::{CachedTag, age};
use jiff::Timestamp;

use super::super::Runner;
use super::super::tag_gate::TaskGate;
use super::{CompletedCopy, LeasedTask, PriorState};
use crate::copy::{
    Copier, CopyReport, CopyRequest, FanOutMember, ImageLocation, ObservedDigests, Overwrite, PlatformSelection,
    ReferrerRefresh, TargetTagState,
};

/// Age up to which a listed digest is trusted; then the source is asked again.
const MAX_PLAN_AGE: Duration = Duration::from_secs(600);
/// Maximum restarts for a source tag that moves during the copy; then the task is retried later.
const MAX_SOURCE_MOVES: usize = 3;

impl LeasedTask<'_> {
    /// Whether a digest of the listing is no longer trusted.
    pub(in crate::runner) fn is_plan_old(&self, now: Timestamp) -> bool {
        self.task_ref.run > 0 || age(self.message.listed_at, now) > MAX_PLAN_AGE
    }
}

impl Runner {
    /// Copies the image, unless the digest cache and the source show that it is unchanged.
    pub(super) async fn attempt_copy(&self, task: &LeasedTask<'_>) -> Result<CompletedCopy> {
        let LeasedTask { message, target, options, rule, context, .. } = task;
        self.routes.check_target(target)?;
        if let Some(verify) = &options.verify {
            self.acquire_copy_slot(task).await?;
            return Box::pin(self.verify(task, verify)).await;
        }
        if matches!(target.repository.endpoint(), Endpoint::Archive(..)) && !options.prime {
            self.acquire_copy_slot(task).await?;
            let collector = self.archive_collector(task).await?;
            let listed = message.digest.clone().filter(|_| !task.is_plan_old(self.clock.now()));
            let request = self.copy_request(task, listed, ReferrerRefresh::All)?;
            let collecting =
                Box::pin(async { self.copier_with_timeout(options).collect(&request, &collector, context).await });
            return collecting.await.map(CompletedCopy::collected);
        }
        let cached = match options.force {
            true => None,
            // The cache is only a hint: errors are ignored.
            false => self.cached_tag(task).await.unwrap_or_default(),
        };
        let never_moves = rule.immutable()?.iter().any(|pattern| pattern.matches(message.source.tag.as_str()));
        if never_moves
            && !message.digest_tags.has_new()
            && let Some(cached) = &cached
            && message.digest.as_ref().is_none_or(|listed| *listed == cached.source)
        {
            return Ok(CompletedCopy::unchanged(&target.tag, None, self.clock.now()));
        }
        // A copy made with other options may have the right digest and lack content.
        let partial = !options.force && cached.is_none() && self.may_be_partial(task).await?;
        let now = self.clock.now();
        let referrers_checked_at = cached.as_ref().and_then(|known| known.referrers_at);
        // The cache is one of these options, so of this policy.
        let accepted = cached.as_ref().map(|known| known.source.clone());
        let tag = target.tag.as_str();
        let referrer_refresh = match referrers_checked_at {
            _ if !rule.referrers.copies_any() => ReferrerRefresh::Skip,
            _ if message.digest_tags.has_new() => ReferrerRefresh::All,
            Some(checked_at) if rule.are_referrers_fresh(tag, age(checked_at, now)) => ReferrerRefresh::Skip,
            Some(_) => ReferrerRefresh::All,
            // The first check of the children is spread over time, so that no run pays for all.
            None => ReferrerRefresh::Root,
        };
        let referrers_checked_at =
            referrers_checked_at.or_else(|| now.checked_sub(rule.initial_referrers_age(tag)).ok());
        // For an immutable tag the target itself decides, not the cache.
        let cached = cached.filter(|_| !never_moves);
        let fresh = cached.filter(|known| rule.is_cache_fresh(target.tag.as_str(), age(known.seen_at, now)));
        let listed = message.digest.clone().filter(|_| !task.is_plan_old(now));
        let mut head_digest = None;
        if let Some(fresh) = &fresh {
            if listed.is_none() {
                head_digest = self.head_source_tag(task).await?;
            }
            if listed.as_ref().or(head_digest.as_ref()) == Some(&fresh.source) {
                if referrer_refresh == ReferrerRefresh::Skip {
                    return Ok(CompletedCopy::unchanged(&target.tag, None, self.clock.now()));
                }
                self.acquire_copy_slot(task).await?;
                let request = self.copy_request(task, Some(fresh.source.clone()), referrer_refresh)?;
                let image = ObservedDigests { source: fresh.source.clone(), target: fresh.target.clone() };
                match Box::pin(self.copier_with_timeout(options).copy_referrers(&request, &image, context)).await {
                    // The cached source digest is gone: read the tag.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    done => {
                        let prior = PriorState { seen_at: Some(fresh.seen_at), referrers_checked_at };
                        let report = CopyReport { source_head_digest: Some(fresh.source.clone()), ..done? };
                        return Ok(CompletedCopy::from_report(report, &target.tag, prior, None, self.clock.now()));
                    }
                }
            }
        }
        if shares_reads(rule, target) {
            // Members of a fan-out wait for each other: none may wait for a slot.
            self.acquire_copy_slot(task).await?;
        }
        let mut request = CopyRequest {
            force: options.force || partial,
            target_tag: fresh.map_or(TargetTagState::Unknown, |cached| TargetTagState::Cached(cached.target)),
            head_digest,
            overwrite: overwrite_policy(rule, never_moves)?,
            accepted,
            ..self.copy_request(task, listed, referrer_refresh)?
        };
        if options.prime {
            return self.compare(request, &target.tag, context).await;
        }
        let gate = TaskGate::new(self, task);
        let copier = self.copier_with_timeout(options);
        if rule.is_sparse() {
            // Mark it beforehand: a superfluous mark costs a check, a missing one would hide missing content.
            self.mark_partial(task, message.digest.as_ref()).await?;
        }
        for _ in 0..MAX_SOURCE_MOVES {
            match gate.run_while_leased(Box::pin(copier.copy(&request, &gate, context))).await {
                // The source tag moved: copy what it points to now.
                Err(_) if gate.take_source_moved() => {
                    gate.release_lease().await;
                    (request.listed_digest, request.head_digest) = (None, None);
                }
                result => {
                    let report = result?;
                    let prior = PriorState { seen_at: None, referrers_checked_at };
                    let lease = gate.into_lease();
                    return Ok(CompletedCopy {
                        is_whole: partial && !rule.is_sparse(),
                        ..CompletedCopy::from_report(report, &target.tag, prior, lease, self.clock.now())
                    });
                }
            }
        }
        let detail = "the source tag keeps moving during the copy";
        Err(Error::new(ErrorKind::ServerError, format!("copying {}", message.source), detail))
    }

    /// Builds the copy request from the message and the rule.
    fn copy_request(
        &self,
        task: &LeasedTask<'_>,
        listed_digest: Option<Digest>,
        referrer_refresh: ReferrerRefresh,
    ) -> Result<CopyRequest> {
        let LeasedTask { message, target, rule, traffic, .. } = task;
        let is_signed = rule.policy.as_ref().is_some_and(|policy| policy.signed.is_some());
        let digest_tag_hints = match is_signed && task.is_plan_old(self.clock.now()) {
            // An image that was refused may have been signed since it was listed.
            true => DigestTagHints::default(),
            false => message.digest_tags,
        };
        Ok(CopyRequest {
            platforms: PlatformSelection::from_rule(&rule.platforms, rule.sparse),
            referrers: rule.referrers.clone(),
            referrer_refresh,
            digest_tag_hints,
            foreign_layers: rule.foreign_layers,
            policy: rule.policy.clone().map(Arc::new),
            fan_out: self.join_fan_out(task),
            listed_digest,
            traffic: traffic.clone(),
            ..CopyRequest::new(source_location(message)?, image_location(target)?)
        })
    }

    /// Joins the copies of the same source tag to other registries, for a rule with several targets. In one process
    /// they run side by side; in a cluster, those that happen to.
    fn join_fan_out(&self, task: &LeasedTask<'_>) -> Option<Arc<FanOutMember>> {
        let registry = task.target.repository.endpoint().registry()?;
        if !shares_reads(&task.rule, task.target) {
            return None;
        }
        let expected = if self.settings.in_cluster { 0 } else { target_registries(&task.rule).len() };
        self.copier.join_fan_out(&format!("{} {}", task.task_ref.batch, task.message.source), registry, expected)
    }

    /// Returns the copier with the batch's time limit.
    pub(super) fn copier_with_timeout(&self, options: &BatchOptions) -> Copier {
        match options.timeout_seconds {
            0 => self.copier.clone(),
            seconds => self.copier.with_time_limit(Duration::from_secs(seconds), options.timeout_is_exact),
        }
    }

    /// Whether the target tag may be partial for this rule although its digest is right.
    async fn may_be_partial(&self, task: &LeasedTask<'_>) -> Result<bool> {
        if task.rule.filters_platforms() {
            return Ok(false);
        }
        if task.rule.foreign_layers == ForeignLayers::Copy {
            return Ok(true);
        }
        let marks = self
            .store
            .cached_tags(&task.cache_scope().partial_images(), std::slice::from_ref(&task.target.tag))
            .await?;
        Ok(marks.into_iter().flatten().next().is_some_and(|mark| mark.target != task.options_digest()))
    }

    /// Records that the target tag may be partial from now on.
    async fn mark_partial(&self, task: &LeasedTask<'_>, listed: Option<&Digest>) -> Result<()> {
        let target = task.options_digest();
        let source = listed.unwrap_or(&target).clone();
        let mark = CachedTag { source, target, seen_at: self.clock.now(), referrers_at: None };
        self.store.cache_tags(&task.cache_scope().partial_images(), vec![(task.target.tag.clone(), mark)]).await
    }

    /// Returns the cache entry of the target tag.
    async fn cached_tag(&self, task: &LeasedTask<'_>) -> Result<Option<CachedTag>> {
        Ok(self.store.cached_tags(&task.cache_scope(), std::slice::from_ref(&task.target.tag)).await?.pop().flatten())
    }

    /// Compares source and target without copying, so that later runs can skip what is equal.
    async fn compare(&self, request: CopyRequest, target: &Tag, context: &Context) -> Result<CompletedCopy> {
        let seen = self.copier.compare(&request, context).await?.ok_or_else(|| {
            let operation = format!("comparing {} with {}", request.source, request.target);
            Error::new(ErrorKind::NotFound, operation, "source and target differ")
                .with_hint("run without --download-manifests to copy it")
        })?;
        Ok(CompletedCopy::unchanged(target, Some(seen), self.clock.now()))
    }

    /// Returns the current source digest from a HEAD; `None` for a layout, whose tags do not move.
    pub(in crate::runner) async fn head_source_tag(&self, task: &LeasedTask<'_>) -> Result<Option<Digest>> {
        let Some((repository, reference)) = self.source_repository(task)? else { return Ok(None) };
        match repository.head_manifest(&reference).await? {
            Some(head) => Ok(Some(head.digest)),
            None => Err(Error::new(
                ErrorKind::NotFound,
                format!("reading {}", task.message.source),
                "the tag no longer exists",
            )),
        }
    }

    /// Returns the current source digest from the content, because a HEAD may be stale; `None` for a layout.
    pub(in crate::runner) async fn read_source_digest(&self, task: &LeasedTask<'_>) -> Result<Option<Digest>> {
        let Some((repository, reference)) = self.source_repository(task)? else { return Ok(None) };
        Ok(Some(repository.get_manifest(&reference).await?.digest().clone()))
    }

    fn source_repository(&self, task: &LeasedTask<'_>) -> Result<Option<(Repository, ManifestRef)>> {
        let source = &task.message.source;
        let ImageLocation::Registry(Reference { registry, repository, digest, .. }) = source_location(task.message)?
        else {
            return Ok(None);
        };
        let repository =
            self.client.repository(&registry, &repository, Access::Pull, &task.context, &task.traffic.0)?;
        let reference = digest.map_or_else(|| ManifestRef::Tag(source.tag.clone()), ManifestRef::Digest);
        Ok(Some((repository, reference)))
    }
}

/// Returns the registries to which a rule copies.
fn target_registries(rule: &RuleOptions) -> HashSet<&str> {
    let is_local = |to: &str| to.starts_with("oci:") || ArchiveFormat::split_scheme(to).is_some();
    rule.to
        .iter()
        .filter(|to| !is_local(to))
        .map(|to| to.split_once('/').map_or(to.as_str(), |(registry, _)| registry))
        .collect()
}

/// Whether the copies of an image to the registries of a rule share one read of the source.
fn shares_reads(rule: &RuleOptions, target: &TagLocator) -> bool {
    target.repository.endpoint().registry().is_some() && target_registries(rule).len() > 1
}

/// Returns whether a target tag with another digest may be overwritten.
fn overwrite_policy(rule: &RuleOptions, never_moves: bool) -> Result<Overwrite> {
    match &rule.backup {
        _ if never_moves => Ok(Overwrite::Never),
        None => Ok(Overwrite::Allowed),
        Some(name) => name
            .parse()
            .map(Overwrite::WithBackup)
            .map_err(|error: String| Error::new(ErrorKind::Invalid, "reading `backup`", error)),
    }
}

/// Returns the location of a task's source: by digest, if it was named so.
pub(super) fn source_location(message: &Message) -> Result<ImageLocation> {
    Ok(match (image_location(&message.source)?, message.pinned_digest()) {
        (ImageLocation::Registry(reference), Some(digest)) => {
            ImageLocation::Registry(Reference { tag: None, digest: Some(digest.clone()), ..reference })
        }
        (location, _) => location,
    })
}

/// Converts a locator to an image location.
pub(super) fn image_location(locator: &TagLocator) -> Result<ImageLocation> {
    let invalid = |error: String| Error::new(ErrorKind::Invalid, format!("reading the name {locator}"), error);
    match locator.repository.endpoint() {
        Endpoint::Registry(registry) => {
            let repository: RepositoryName =
                locator.repository.path().parse().map_err(|error| invalid(format!("{error}")))?;
            let reference =
                Reference { registry: registry.clone(), repository, tag: Some(locator.tag.clone()), digest: None };
            Ok(ImageLocation::Registry(reference))
        }
        Endpoint::Layout(folder) => {
            let image = layout_image_name(locator.repository.path(), &locator.tag).map_err(invalid)?;
            Ok(ImageLocation::Layout(LayoutRef { dir: folder.to_string().into(), image: Some(image) }))
        }
        Endpoint::Archive(format, file) => {
            let image = layout_image_name(locator.repository.path(), &locator.tag).map_err(invalid)?;
            let file = file.to_string().into();
            Ok(ImageLocation::Archive(ArchiveRef { format: *format, file, image: Some(image) }))
        }
    }
}

/// Returns the image name in a layout: a full name, or a bare tag without a repository.
fn layout_image_name(path: &str, tag: &Tag) -> std::result::Result<ImageName, String> {
    if path.is_empty() {
        return Ok(ImageName::Tag(tag.clone()));
    }
    format!("{path}:{tag}").parse().map(ImageName::Full).map_err(|error| format!("{error}"))
}
