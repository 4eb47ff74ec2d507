//! Writes a draft as YAML: a view with the keys of a configuration file in their order.

use std::collections::BTreeMap;

use imgsync_config::{YamlList, YamlText, is_empty_list, to_yaml, yaml_list};
use serde::Serialize;
use serde_saphyr::FlowMap;

use super::{ConfigDraft, DraftRule, DraftSettings, RegistryFields};

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
    registries: BTreeMap<&'a str, FlowMap<&'a RegistryFields>>,
    #[serde(flatten)]
    settings: &'a DraftSettings,
    rules: Vec<RuleView>,
}

impl<'a> From<&'a ConfigDraft> for ConfigView<'a> {
    fn from(draft: &'a ConfigDraft) -> Self {
        let registries = draft.registries.iter().map(|(name, fields)| (name.as_str(), FlowMap(fields))).collect();
        let rules = draft.rules.iter().map(RuleView::from).collect();
        ConfigView { registries, settings: &draft.settings, rules }
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
    #[serde(skip_serializing_if = "is_empty_list")]
    referrers: YamlList,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<YamlText>,
}

impl From<&DraftRule> for RuleView {
    fn from(rule: &DraftRule) -> Self {
        let has_tags = !rule.include.is_empty() || !rule.exclude.is_empty() || rule.semver.is_some();
        RuleView {
            source: match &rule.preset {
                Some(preset) => SourceView::Preset(YamlText::new(preset)),
                None => SourceView::From(YamlText::new(&rule.from)),
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
            referrers: yaml_list(&rule.referrers),
            backup: rule.backup.as_ref().map(YamlText::new),
        }
    }
}

/// View of a rule's source, by key.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum SourceView {
    Preset(YamlText),
    From(YamlText),
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
