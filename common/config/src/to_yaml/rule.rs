//! View of `rules`.

use std::collections::BTreeMap;
use std::ops::Not;
use std::time::Duration;

use serde::Serialize;
use serde_saphyr::FlowMap;

use super::super::{ForeignLayers, ImagePolicy, Preset, PruneConfig, PruneLimit, Referrers, Rule, RuleSource};
use super::registry::AmountView;
use super::{YamlList, YamlText, duration, is_empty_list, yaml_list};
use imgsync_model::schedule::{Recurrence, Schedule};
use imgsync_model::select::{Newest, NewestBy, RepositoryPattern, TagSelection};

/// View of a rule.
#[derive(Serialize)]
pub(super) struct RuleView {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<YamlText>,
    #[serde(flatten)]
    source: SourceView,
    #[serde(skip_serializing_if = "is_empty_list")]
    digests: YamlList,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<TagsView>,
    #[serde(skip_serializing_if = "is_empty_list")]
    platforms: YamlList,
    #[serde(skip_serializing_if = "Not::not")]
    sparse: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    foreign_layers: Option<YamlText>,
    #[serde(skip_serializing_if = "is_empty_list")]
    to: YamlList,
    #[serde(skip_serializing_if = "Option::is_none")]
    naming: Option<YamlText>,
    referrers: ReferrersView,
    #[serde(skip_serializing_if = "is_empty_list")]
    immutable: YamlList,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<PolicyView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prune: Option<FlowMap<PruneView>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<ScheduleView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<YamlText>,
    verify_every: YamlText,
    referrers_every: YamlText,
}

impl From<&Rule> for RuleView {
    fn from(rule: &Rule) -> Self {
        // Omitted where it depends on the target or on the preset.
        let styles: Vec<String> = rule.to.iter().map(|to| rule.style_at(to).to_string()).collect();
        let preset = matches!(rule.source, RuleSource::Preset(_));
        let has_naming = rule.naming.is_some() || (!preset && styles.windows(2).all(|pair| pair[0] == pair[1]));
        RuleView {
            name: rule.name.as_ref().map(YamlText::new),
            source: SourceView::from(&rule.source),
            digests: match &rule.source {
                RuleSource::Digests(source) => yaml_list(&source.digests),
                _ => yaml_list::<&str>([]),
            },
            tags: (rule.selection != TagSelection::default()).then(|| TagsView::from(&rule.selection)),
            platforms: yaml_list(&rule.platforms),
            sparse: rule.sparse,
            foreign_layers: (rule.foreign_layers == ForeignLayers::Copy).then(|| YamlText::new("copy")),
            to: yaml_list(&rule.to),
            naming: styles.first().filter(|_| has_naming).map(YamlText::new),
            referrers: ReferrersView::from(&rule.referrers),
            immutable: yaml_list(&rule.immutable),
            backup: rule.backup.as_ref().map(YamlText::new),
            policy: rule.policy.as_ref().map(PolicyView::from),
            prune: rule.prune.map(|prune| FlowMap(PruneView::from(prune))),
            schedule: rule.schedule.as_ref().map(ScheduleView::from),
            priority: (!rule.priority.is_normal()).then(|| YamlText::new(rule.priority)),
            verify_every: duration(rule.verify_every),
            referrers_every: duration(rule.referrers_every),
        }
    }
}

/// View of a rule's source, by key.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum SourceView {
    Preset(PresetView),
    From(FromView),
    Images(YamlList),
}

impl From<&RuleSource> for SourceView {
    fn from(source: &RuleSource) -> Self {
        match source {
            RuleSource::Preset(preset) => SourceView::Preset(PresetView::from(preset)),
            RuleSource::Repositories(pattern) => SourceView::From(FromView::from(pattern)),
            RuleSource::Images(paths) => SourceView::Images(yaml_list(paths.iter().map(|path| path.display()))),
            RuleSource::Digests(source) => {
                SourceView::From(FromView::Text(YamlText::new(format!("{}/{}", source.registry, source.repository))))
            }
            RuleSource::Layout(_) | RuleSource::Archive(..) => SourceView::From(FromView::Text(YamlText::new(source))),
        }
    }
}

/// View of `preset`.
#[derive(Serialize)]
#[serde(untagged)]
enum PresetView {
    Name(YamlText),
    WithVersions(FlowMap<BTreeMap<String, PresetSettingsView>>),
}

/// View of a preset's settings.
#[derive(Serialize)]
struct PresetSettingsView {
    versions: YamlText,
}

impl From<&Preset> for PresetView {
    fn from(preset: &Preset) -> Self {
        match &preset.versions {
            None => PresetView::Name(YamlText::new(&preset.name)),
            Some(versions) => {
                let settings = PresetSettingsView { versions: YamlText::new(versions) };
                PresetView::WithVersions(FlowMap(BTreeMap::from([(preset.name.clone(), settings)])))
            }
        }
    }
}

/// View of `from`.
#[derive(Serialize)]
#[serde(untagged)]
enum FromView {
    Text(YamlText),
    WithExclusions { repositories: YamlText, exclude: YamlList },
}

impl From<&RepositoryPattern> for FromView {
    fn from(pattern: &RepositoryPattern) -> Self {
        match pattern.excluded() {
            [] => FromView::Text(YamlText::new(pattern)),
            excluded => FromView::WithExclusions {
                repositories: YamlText::new(pattern.clone().excluding(Vec::new())),
                exclude: yaml_list(excluded),
            },
        }
    }
}

/// View of `tags`.
#[derive(Serialize)]
struct TagsView {
    #[serde(skip_serializing_if = "is_empty_list")]
    include: YamlList,
    #[serde(skip_serializing_if = "is_empty_list")]
    exclude: YamlList,
    #[serde(skip_serializing_if = "Option::is_none")]
    semver: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    newest: Option<NewestView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<usize>,
}

impl From<&TagSelection> for TagsView {
    fn from(selection: &TagSelection) -> Self {
        TagsView {
            include: yaml_list(&selection.include),
            exclude: yaml_list(&selection.exclude),
            semver: selection.range.as_ref().map(YamlText::new),
            newest: selection.newest.map(NewestView::from),
            since: selection.since.as_ref().map(YamlText::new),
            min: selection.min,
        }
    }
}

/// View of `newest`.
#[derive(Serialize)]
#[serde(untagged)]
enum NewestView {
    ByVersion(usize),
    ByDate(FlowMap<NewestByDateView>),
}

/// View of a number of tags by date.
#[derive(Serialize)]
struct NewestByDateView {
    count: usize,
    by: &'static str,
}

impl From<Newest> for NewestView {
    fn from(Newest { count, by }: Newest) -> Self {
        match by {
            NewestBy::Version => NewestView::ByVersion(count),
            NewestBy::Date => NewestView::ByDate(FlowMap(NewestByDateView { count, by: "date" })),
        }
    }
}

/// View of `referrers`.
#[derive(Serialize)]
#[serde(untagged)]
enum ReferrersView {
    All(bool),
    Types(YamlList),
}

impl From<&Referrers> for ReferrersView {
    fn from(referrers: &Referrers) -> Self {
        match referrers {
            Referrers::All => ReferrersView::All(true),
            Referrers::None => ReferrersView::All(false),
            Referrers::Types(types) => ReferrersView::Types(yaml_list(types)),
        }
    }
}

/// View of `policy`.
#[derive(Serialize)]
struct PolicyView {
    #[serde(skip_serializing_if = "Option::is_none")]
    signed: Option<SignedView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_age: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_size: Option<u64>,
    #[serde(skip_serializing_if = "is_empty_list")]
    labels: YamlList,
    #[serde(skip_serializing_if = "is_empty_list")]
    requires_platforms: YamlList,
}

/// View of `signed`.
#[derive(Serialize)]
struct SignedView {
    keys: YamlList,
    need: YamlText,
}

impl From<&ImagePolicy> for PolicyView {
    fn from(policy: &ImagePolicy) -> Self {
        PolicyView {
            signed: policy.signed.as_ref().map(|signed| SignedView {
                keys: yaml_list(signed.keys.iter().map(|key| &key.name)),
                need: YamlText::new(signed.need),
            }),
            max_age: policy.max_age_seconds.map(|seconds| duration(Duration::from_secs(seconds))),
            max_size: policy.max_size,
            labels: yaml_list(&policy.labels),
            requires_platforms: yaml_list(&policy.requires_platforms),
        }
    }
}

/// View of `prune`.
#[derive(Serialize)]
struct PruneView {
    keep_days: u64,
    limit: AmountView,
}

impl From<PruneConfig> for PruneView {
    fn from(prune: PruneConfig) -> Self {
        PruneView {
            keep_days: prune.grace_period.as_secs() / (24 * 60 * 60),
            limit: match prune.limit {
                PruneLimit::Count(count) => AmountView::Count(count),
                PruneLimit::Percent(_) => AmountView::Percent(YamlText::new(prune.limit)),
            },
        }
    }
}

/// View of `schedule`.
#[derive(Serialize)]
struct ScheduleView {
    #[serde(flatten)]
    recurrence: RecurrenceView,
    #[serde(skip_serializing_if = "Option::is_none")]
    jitter: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<YamlText>,
}

/// View of a schedule's recurrence, by key.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum RecurrenceView {
    Cron(YamlText),
    Every(YamlText),
}

impl From<&Schedule> for ScheduleView {
    fn from(schedule: &Schedule) -> Self {
        ScheduleView {
            recurrence: match &schedule.recurrence {
                Recurrence::Cron(pattern) => RecurrenceView::Cron(YamlText::new(pattern)),
                Recurrence::Every(time) => RecurrenceView::Every(duration(*time)),
            },
            jitter: (!schedule.jitter.is_zero()).then(|| duration(schedule.jitter)),
            zone: schedule.zone.iana_name().filter(|name| *name != "UTC").map(YamlText::new),
        }
    }
}
