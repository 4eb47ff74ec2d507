//! View of `hooks`.

use serde::Serialize;

use super::super::HookConfig;
use super::{YamlList, YamlText, is_empty_list, yaml_list};

/// View of a hook.
#[derive(Serialize)]
pub(super) struct HookView {
    registry: YamlText,
    kind: YamlText,
    auth: YamlText,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<YamlText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<YamlText>,
    #[serde(skip_serializing_if = "is_empty_list")]
    rules: YamlList,
}

impl From<&HookConfig> for HookView {
    fn from(hook: &HookConfig) -> Self {
        HookView {
            registry: YamlText::new(&hook.registry),
            kind: YamlText::new(hook.kind),
            auth: YamlText::new(hook.auth.as_str()),
            header: hook.auth.header().map(YamlText::new),
            secret: hook.auth.secret().map(YamlText::new),
            rules: yaml_list(&hook.rules),
        }
    }
}
