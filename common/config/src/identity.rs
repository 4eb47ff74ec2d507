//! Identity of rules and batches: a hash of their meaning.
//!
//! Schedules are stored by it, and batches of the same rules wait for each other. The notation, name and schedule of a
//! rule are not part of it; everything that changes the result is.

use std::path::{Component, Path};
use std::time::Duration;

use super::{ForeignLayers, PruneConfig, PruneLimit, Referrers, Rule, RuleSource, RuleTarget};
use imgsync_model::batch::{BatchId, ImagePolicy};
use imgsync_model::canonical::{Canonical, canonical_template};
use imgsync_model::naming::{NamingStyle, TargetBase};
use imgsync_model::select::{NewestBy, RepositoryPattern, TagPattern, TagSelection};
use imgsync_oci::{Digest, Platform};

/// Domain and version of each hash. Raise the version when the meaning of a field changes: then every rule gets a new
/// identity.
const RULE_DOMAIN: &str = "imgsync rule 1";
const BATCH_DOMAIN: &str = "imgsync batch 1";
const VERIFICATION_DOMAIN: &str = "imgsync verification 1";

/// What a batch does with its rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchPurpose {
    /// Only the slice with this number, of so many tasks each.
    pub slice: Option<(usize, usize)>,
    /// Compares without copying; whether it reads all bytes.
    pub verify: Option<bool>,
    /// Copies only what was pushed, as hooks told.
    pub pushed: bool,
}

/// Hex digits of a rule's identity that make its id.
const ID_LENGTH: usize = 12;

impl Rule {
    /// Returns the beginning of the identity, by which commands and the API name the rule.
    pub fn id(&self) -> String {
        self.identity().hex()[..ID_LENGTH].to_owned()
    }

    /// Returns the identity of the rule.
    pub fn identity(&self) -> Digest {
        // Exhaustive, so that a new field is not forgotten here.
        let Rule {
            line: _,
            name: _,
            title: _,
            schedule: _,
            priority: _,
            naming: _, // with each destination
            source,
            selection,
            platforms,
            sparse,
            foreign_layers,
            to,
            referrers,
            immutable,
            backup,
            policy,
            prune,
            verify_every,
            referrers_every,
        } = self;
        canonical_selection(selection)
            .field(1, canonical_source(source))
            .set(8, platforms.iter().map(Platform::canonical))
            .flag(9, *sparse && !platforms.is_empty())
            .flag(10, *foreign_layers == ForeignLayers::Copy)
            .set(11, to.iter().map(|to| canonical_target(to, &self.style_at(to))))
            .option(12, canonical_referrers(referrers))
            .set(13, immutable.iter().map(TagPattern::as_str))
            .option(14, backup.as_ref().map(|backup| canonical_template(&backup.to_string())))
            .option(15, prune.as_ref().map(canonical_prune))
            .number(16, nanos(*verify_every))
            .number(17, nanos(*referrers_every))
            .option(18, policy.as_ref().map(ImagePolicy::canonical))
            .digest(RULE_DOMAIN)
    }
}

/// Returns the identity of a batch of rules. Their order counts: of two that write one target, the first one wins.
pub fn batch_identity(rules: &[Rule], purpose: BatchPurpose) -> Digest {
    let slice =
        purpose.slice.map(|(number, size)| Canonical::default().number(1, number as u64).number(2, size as u64));
    let verify = purpose.verify.map(|deep| Canonical::default().flag(1, deep));
    Canonical::default()
        .list(1, rules.iter().map(|rule| rule.identity().to_string()))
        .option(2, slice)
        .option(3, verify)
        .flag(4, purpose.pushed)
        .digest(BATCH_DOMAIN)
}

/// Returns the identity of a batch that verifies another one.
pub fn verification_identity(of: BatchId) -> Digest {
    Canonical::default().field(1, of.as_bytes()).digest(VERIFICATION_DOMAIN)
}

fn canonical_source(source: &RuleSource) -> Canonical {
    match source {
        RuleSource::Preset(preset) => Canonical::default()
            .field(1, &preset.name)
            .option(2, preset.versions.as_ref().map(|versions| Canonical::default().set(1, versions.canonical()))),
        RuleSource::Repositories(pattern) => {
            let included: RepositoryPattern = pattern.clone().excluding(Vec::new());
            let excluded = pattern.excluded().iter().map(ToString::to_string);
            Canonical::default().field(3, included.to_string()).set(4, excluded)
        }
        RuleSource::Layout(folder) => Canonical::default().list(5, path_components(folder)),
        RuleSource::Archive(format, file) => {
            Canonical::default().field(6, format.to_string()).list(7, path_components(file))
        }
        RuleSource::Images(paths) => {
            Canonical::default().set(8, paths.iter().map(|path| path_components(path).join(&b"/"[..])))
        }
        RuleSource::Digests(source) => Canonical::default()
            .field(9, format!("{}/{}", source.registry, source.repository))
            .set(10, source.digests.iter().map(ToString::to_string)),
    }
}

fn canonical_target(to: &RuleTarget, style: &NamingStyle) -> Canonical {
    let at = match to {
        RuleTarget::Registry(TargetBase { registry, prefix }) => {
            Canonical::default().field(1, registry.as_str()).option(2, prefix.as_ref().map(|prefix| prefix.as_str()))
        }
        RuleTarget::Layout(folder) => Canonical::default().list(3, path_components(folder)),
        // The file has the same content in both formats.
        RuleTarget::Archive(_, file) => Canonical::default().list(9, path_components(file)),
    };
    match style {
        NamingStyle::Flat => at.number(4, 1),
        NamingStyle::Keep => at.number(4, 2),
        NamingStyle::Basename => at.number(4, 3),
        NamingStyle::Full => at.number(4, 4),
        NamingStyle::Original => at.number(4, 5),
        NamingStyle::Template(text) => at.field(5, canonical_template(text.as_str())),
    }
}

/// Returns the components of a path, without `.`.
fn path_components(path: &Path) -> Vec<Vec<u8>> {
    let steps = path.components().filter(|step| !matches!(step, Component::CurDir));
    steps.map(|step| step.as_os_str().as_encoded_bytes().to_vec()).collect()
}

fn canonical_selection(selection: &TagSelection) -> Canonical {
    // A pattern that matches all equals none.
    let all = selection.include.iter().any(|pattern| pattern.matches_all());
    let include = selection.include.iter().filter(|_| !all).map(|pattern| pattern.as_str());
    let range = selection.range.as_ref().map(|range| Canonical::default().set(1, range.canonical()));
    let newest = selection
        .newest
        .map(|newest| Canonical::default().number(1, newest.count as u64).flag(2, newest.by == NewestBy::Date));
    Canonical::default()
        .set(2, include)
        .set(3, selection.exclude.iter().map(|pattern| pattern.as_str()))
        .option(4, range)
        .option(5, newest)
        .option(6, selection.since.as_ref().map(|since| since.canonical()))
        .option(7, selection.min.map(|min| (min as u64).to_be_bytes()))
}

fn canonical_referrers(referrers: &Referrers) -> Option<Canonical> {
    match referrers {
        Referrers::All => None,
        Referrers::None => Some(Canonical::default()),
        Referrers::Types(types) => Some(Canonical::default().set(1, types)),
    }
}

fn canonical_prune(prune: &PruneConfig) -> Canonical {
    let kept = Canonical::default().number(1, nanos(prune.grace_period));
    match prune.limit {
        PruneLimit::Count(count) => kept.number(2, count),
        PruneLimit::Percent(percent) => kept.number(3, percent),
    }
}

fn nanos(time: Duration) -> i128 {
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
