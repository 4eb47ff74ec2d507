//! Writes a draft as YAML: a view with the keys of a configuration file in their order.

use std::collections::BTreeMap;

use imgsync_config::{YamlList, YamlText, is_empty_list, to_yaml, yaml_list};
use serde::Serialize;
use serde_saphyr::FlowMap;

use super::{ConfigDraft, DraftReferrers, DraftRule, DraftSchedule, DraftSettings, DraftValue, RegistryFields};

impl ConfigDraft {
    /// Writes the configuration as YAML.
    pub fn to_yaml(&self) -> String {
        to_yaml(&ConfigView::from(self))
    }
}

/// View of a configuration.
#[derive(Serialize)]
struct ConfigView<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    registries: BTreeMap<&'a str, RegistryView<'a>>,
    #[serde(flatten)]
    settings: &'a DraftSettings,
    rules: Vec<RuleView>,
}

impl<'a> From<&'a ConfigDraft> for ConfigView<'a> {
    fn from(draft: &'a ConfigDraft) -> Self {
        let registries = draft.registries.iter().map(|(name, fields)| (name.as_str(), fields.into())).collect();
        let rules = draft.rules.iter().map(RuleView::from).collect();
        ConfigView { registries, settings: &draft.settings, rules }
    }
}

/// View of a registry: on one line, unless a text has several.
#[derive(Serialize)]
#[serde(untagged)]
enum RegistryView<'a> {
    Flow(FlowMap<&'a RegistryFields>),
    Block(&'a RegistryFields),
}

impl<'a> From<&'a RegistryFields> for RegistryView<'a> {
    fn from(fields: &'a RegistryFields) -> Self {
        match fields.0.iter().any(|(_, value)| matches!(value, DraftValue::Lines(_))) {
            true => RegistryView::Block(fields),
            false => RegistryView::Flow(FlowMap(fields)),
        }
    }
}

/// View of a rule.
#[derive(Serialize)]
struct RuleView {
    #[serde(flatten)]
    source: SourceView,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<FlowMap<TagsView>>,
    #[serde(skip_serializing_if = "is_empty_list")]
    platforms: YamlList,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<TargetsView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    naming: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sparse: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    foreign_layers: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    referrers: Option<ReferrersView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<ScheduleView>,
}

impl From<&DraftRule> for RuleView {
    fn from(rule: &DraftRule) -> Self {
        let has_tags = !rule.include.is_empty() || !rule.exclude.is_empty() || rule.semver.is_some();
        RuleView {
            source: match &rule.preset {
                Some(preset) => SourceView::Preset(YamlText::new(preset)),
                None if rule.exclude_repositories.is_empty() => {
                    SourceView::From(RepositoriesView::All(YamlText::new(&rule.from)))
                }
                None => SourceView::From(RepositoriesView::Some(FlowMap(ChoiceView {
                    repositories: YamlText::new(&rule.from),
                    exclude: yaml_list(&rule.exclude_repositories),
                }))),
            },
            tags: has_tags.then(|| {
                FlowMap(TagsView {
                    include: yaml_list(&rule.include),
                    exclude: yaml_list(&rule.exclude),
                    semver: rule.semver.as_ref().map(YamlText::new),
                })
            }),
            platforms: yaml_list(&rule.platforms),
            to: match rule.to.as_slice() {
                [] => None,
                [one] => Some(TargetsView::One(YamlText::new(one))),
                several => Some(TargetsView::Several(yaml_list(several))),
            },
            naming: rule.naming.as_ref().map(YamlText::new),
            sparse: rule.sparse.then_some(true),
            foreign_layers: rule.copy_foreign_layers.then(|| YamlText::new("copy")),
            referrers: match &rule.referrers {
                DraftReferrers::Default => None,
                DraftReferrers::All(all) => Some(ReferrersView::All(*all)),
                DraftReferrers::Types(types) => Some(ReferrersView::Types(yaml_list(types))),
            },
            backup: rule.backup.as_ref().map(YamlText::new),
            schedule: rule.schedule.clone().map(ScheduleView::from),
        }
    }
}

/// View of a rule's source, by key.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum SourceView {
    Preset(YamlText),
    From(RepositoriesView),
}

/// View of `from`.
#[derive(Serialize)]
#[serde(untagged)]
enum RepositoriesView {
    All(YamlText),
    Some(FlowMap<ChoiceView>),
}

/// View of `from` with exclusions.
#[derive(Serialize)]
struct ChoiceView {
    repositories: YamlText,
    exclude: YamlList,
}

/// View of `referrers`.
#[derive(Serialize)]
#[serde(untagged)]
enum ReferrersView {
    All(bool),
    Types(YamlList),
}

/// View of `schedule`.
#[derive(Serialize)]
#[serde(untagged)]
enum ScheduleView {
    Cron(DraftSchedule),
    Keys(FlowMap<DraftSchedule>),
}

impl From<DraftSchedule> for ScheduleView {
    fn from(schedule: DraftSchedule) -> Self {
        match schedule {
            DraftSchedule::Cron(_) => ScheduleView::Cron(schedule),
            DraftSchedule::Zoned { .. } | DraftSchedule::Every { .. } => ScheduleView::Keys(FlowMap(schedule)),
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
}

/// View of `to`.
#[derive(Serialize)]
#[serde(untagged)]
enum TargetsView {
    One(YamlText),
    Several(YamlList),
}
