//! One attempt of a task: digest cache, source check, copy.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use imgsync_common::batch::{End, ForeignLayers, Options, Place, RuleOptions};
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Digest, Reference, RepositoryName, Tag};
use imgsync_common::layout::{ImageName, LayoutRef};
use imgsync_common::registry::{Access, Context, ManifestRef, Repository};
use imgsync_common::store::{Known, age};

use super::super::Runner;
use super::super::gate::TaskGate;
use super::{Before, Came, Copied, Held};
use crate::copy::{Ask, Copier, Done, Job, Location, Member, Overwrite, Platforms, Seen, TargetTag};

/// Age up to which a listed digest is trusted; then the source is asked again.
const PLAN_IS_OLD: Duration = Duration::from_secs(600);
/// Maximum restarts for a source tag that moves during the copy; then the task is retried later.
const MOVES: usize = 3;

impl Runner {
    /// Copies the image, unless the digest cache and the source show that it is unchanged.
    pub(super) async fn copy(&self, held: &Held<'_>) -> Result<Came> {
        let Held { message, target, options, rule, context, .. } = held;
        self.serving.check_target(target)?;
        if let Some(verify) = &options.verify {
            return Box::pin(self.verify(held, verify)).await;
        }
        let known = match options.force {
            true => None,
            // The cache is only a hint: errors are ignored.
            false => self.known(held).await.unwrap_or_default(),
        };
        let never_moves = rule.immutable()?.iter().any(|pattern| pattern.matches(message.source.tag.as_str()));
        if never_moves
            && !message.company.has_news()
            && let Some(known) = &known
            && message.digest.as_ref().is_none_or(|listed| *listed == known.source)
        {
            return Ok(Came::Equal(None));
        }
        // A copy made with other options may have the right digest and lack content.
        let in_part = !options.force && known.is_none() && self.may_be_in_part(held).await?;
        let now = self.clock.now();
        let asked = known.as_ref().and_then(|known| known.referrers_at);
        let tag = target.tag.as_str();
        let ask = match asked {
            _ if !rule.referrers.are_wanted() => Ask::Nothing,
            _ if message.company.has_news() => Ask::All,
            Some(asked) if rule.knows_referrers(tag, age(asked, now)) => Ask::Nothing,
            Some(_) => Ask::All,
            // The first check of the children is spread over time, so that no run pays for all.
            None => Ask::Root,
        };
        let asked = asked.or_else(|| now.checked_sub(rule.referrers_head_start(tag)).ok());
        // For an immutable tag the target itself decides, not the cache.
        let known = known.filter(|_| !never_moves);
        let believed = known.filter(|known| rule.believes(target.tag.as_str(), age(known.seen_at, now)));
        let is_old = held.ticket.run > 0 || age(message.listed_at, now) > PLAN_IS_OLD;
        let listed = message.digest.clone().filter(|_| !is_old);
        let mut said = None;
        if let Some(believed) = &believed {
            if listed.is_none() {
                said = self.ask_source(held).await?;
            }
            if listed.as_ref().or(said.as_ref()) == Some(&believed.source) {
                if ask == Ask::Nothing {
                    return Ok(Came::Equal(None));
                }
                let job = self.job(held, Some(believed.source.clone()), ask)?;
                let image = Seen { source: believed.source.clone(), target: believed.target.clone() };
                match Box::pin(self.copier_of(options).accompany(&job, &image, context)).await {
                    // The cached source digest is gone: read the tag.
                    Err(error) if error.class() == Class::NotFound => {}
                    done => {
                        let before = Before { seen_at: Some(believed.seen_at), referrers_at: asked };
                        let done = Done { source_said: Some(believed.source.clone()), ..done? };
                        return Ok(Came::Copied(Box::new(Copied { done, before, lease: None, is_whole: false })));
                    }
                }
            }
        }
        let mut job = Job {
            force: options.force || in_part,
            target_tag: believed.map_or(TargetTag::Unknown, |believed| TargetTag::Believed(believed.target)),
            said,
            overwrite: overwrite(rule, never_moves)?,
            ..self.job(held, listed, ask)?
        };
        if options.prime {
            return self.compare(job, context).await;
        }
        let gate = TaskGate::new(self, held, is_old);
        let copier = self.copier_of(options);
        if rule.leaves_out() {
            // Mark it beforehand: a superfluous mark costs a check, a missing one would hide missing content.
            self.mark_in_part(held, message.digest.as_ref()).await?;
        }
        for _ in 0..MOVES {
            match gate.guard(Box::pin(copier.copy(&job, &gate, context))).await {
                // The source tag moved: copy what it points to now.
                Err(_) if gate.moved() => {
                    gate.release().await;
                    (job.listed, job.said) = (None, None);
                }
                result => {
                    let (done, is_whole) = (result?, in_part && !rule.leaves_out());
                    let before = Before { seen_at: None, referrers_at: asked };
                    let lease = gate.into_lease();
                    return Ok(Came::Copied(Box::new(Copied { done, before, lease, is_whole })));
                }
            }
        }
        let detail = "its tag moves faster than it is copied";
        Err(Error::new(Class::ServerError, format!("copying {}", message.source), detail))
    }

    /// Builds the copy request from the message and the rule.
    fn job(&self, held: &Held<'_>, listed: Option<Digest>, ask_unchanged: Ask) -> Result<Job> {
        let Held { message, target, rule, tallies, .. } = held;
        Ok(Job {
            platforms: Platforms::of_rule(&rule.platforms, rule.sparse),
            referrers: rule.referrers.clone(),
            ask_unchanged,
            company: message.company,
            foreign_layers: rule.foreign_layers,
            together: self.company(held),
            listed,
            tallies: tallies.clone(),
            ..Job::new(location(&message.source)?, location(target)?)
        })
    }

    /// Joins the copies of the same source tag to other registries, for a rule with several targets. In one process
    /// they run side by side; in a cluster, those that happen to.
    fn company(&self, held: &Held<'_>) -> Option<Arc<Member>> {
        let registry = held.target.home.end().registry()?;
        let registries: HashSet<&str> =
            held.rule.to.iter().map(|to| to.split_once('/').map_or(to.as_str(), |(registry, _)| registry)).collect();
        if registries.len() < 2 {
            return None;
        }
        let expected = if self.settings.others_may_reach { 0 } else { registries.len() };
        self.copier.join(&format!("{} {}", held.ticket.batch, held.message.source), registry, expected)
    }

    /// Returns the copier with the batch's time limit.
    pub(super) fn copier_of(&self, options: &Options) -> Copier {
        match options.timeout_seconds {
            0 => self.copier.clone(),
            seconds => self.copier.within(Duration::from_secs(seconds), options.timeout_is_exact),
        }
    }

    /// Whether the target tag may be partial for this rule although its digest is right.
    async fn may_be_in_part(&self, held: &Held<'_>) -> Result<bool> {
        if held.rule.cuts() {
            return Ok(false);
        }
        if held.rule.foreign_layers == ForeignLayers::Copy {
            return Ok(true);
        }
        let marks = self.store.known(&held.scope().parts(), std::slice::from_ref(&held.target.tag)).await?;
        Ok(marks.into_iter().flatten().next().is_some_and(|mark| mark.target != held.fingerprint()))
    }

    /// Records that the target tag may be partial from now on.
    async fn mark_in_part(&self, held: &Held<'_>, listed: Option<&Digest>) -> Result<()> {
        let target = held.fingerprint();
        let source = listed.unwrap_or(&target).clone();
        let mark = Known { source, target, seen_at: self.clock.now(), referrers_at: None };
        self.store.learn(&held.scope().parts(), vec![(held.target.tag.clone(), mark)]).await
    }

    /// Returns the cache entry of the target tag.
    async fn known(&self, held: &Held<'_>) -> Result<Option<Known>> {
        Ok(self.store.known(&held.scope(), std::slice::from_ref(&held.target.tag)).await?.pop().flatten())
    }

    /// Compares source and target without copying, so that later runs can skip what is equal.
    async fn compare(&self, job: Job, context: &Context) -> Result<Came> {
        let seen = self.copier.compare(&job, context).await?.ok_or_else(|| {
            let tried = format!("comparing {} with {}", job.source, job.target);
            Error::new(Class::NotFound, tried, "the target does not have what the source has")
                .hint("run without --download-manifests to copy it")
        })?;
        Ok(Came::Equal(Some(seen)))
    }

    /// Returns the current source digest from a HEAD; `None` for a layout, whose tags do not move.
    pub(in crate::runner) async fn ask_source(&self, held: &Held<'_>) -> Result<Option<Digest>> {
        let Some((repository, reference)) = self.source_tag(held)? else { return Ok(None) };
        match repository.manifest_head(&reference).await? {
            Some(head) => Ok(Some(head.digest)),
            None => Err(Error::new(Class::NotFound, format!("reading {}", held.message.source), "the tag is gone")),
        }
    }

    /// Returns the current source digest from the content, because a HEAD may be stale; `None` for a layout.
    pub(in crate::runner) async fn read_source(&self, held: &Held<'_>) -> Result<Option<Digest>> {
        let Some((repository, reference)) = self.source_tag(held)? else { return Ok(None) };
        Ok(Some(repository.manifest_get(&reference).await?.digest().clone()))
    }

    fn source_tag(&self, held: &Held<'_>) -> Result<Option<(Repository, ManifestRef)>> {
        let source = &held.message.source;
        let Location::Registry(Reference { registry, repository, .. }) = location(source)? else { return Ok(None) };
        let repository =
            self.client.repository(&registry, &repository, Access::Pull, &held.context, &held.tallies.0)?;
        Ok(Some((repository, ManifestRef::Tag(source.tag.clone()))))
    }
}

/// Returns whether a target tag with another digest may be overwritten.
fn overwrite(rule: &RuleOptions, never_moves: bool) -> Result<Overwrite> {
    match &rule.backup {
        _ if never_moves => Ok(Overwrite::Never),
        None => Ok(Overwrite::Allowed),
        Some(name) => name
            .parse()
            .map(Overwrite::Keeping)
            .map_err(|error: String| Error::new(Class::Invalid, "reading `backup`", error)),
    }
}

/// Converts a locator to an image location.
pub(super) fn location(place: &Place) -> Result<Location> {
    let invalid = |error: String| Error::new(Class::Invalid, format!("reading the name {place}"), error);
    match place.home.end() {
        End::Registry(registry) => {
            let repository: RepositoryName = place.home.path().parse().map_err(|error| invalid(format!("{error}")))?;
            let reference =
                Reference { registry: registry.clone(), repository, tag: Some(place.tag.clone()), digest: None };
            Ok(Location::Registry(reference))
        }
        End::Layout(folder) => {
            let image = in_layout(place.home.path(), &place.tag).map_err(invalid)?;
            Ok(Location::Layout(LayoutRef { dir: folder.to_string().into(), image: Some(image) }))
        }
    }
}

/// Returns the image name in a layout: a full name, or a bare tag without a repository.
fn in_layout(path: &str, tag: &Tag) -> std::result::Result<ImageName, String> {
    if path.is_empty() {
        return Ok(ImageName::Tag(tag.clone()));
    }
    format!("{path}:{tag}").parse().map(ImageName::Full).map_err(|error| format!("{error}"))
}
