//! Options of a rule, as workers read them.

use imgsync_config::Rule;
use imgsync_model::batch::RuleOptions;

/// Returns the options of a rule.
pub(super) fn rule_options(rule: &Rule) -> RuleOptions {
    RuleOptions {
        name: rule.title(),
        from: rule.source_label(),
        to: rule.target_labels(),
        platforms: rule.platforms.clone(),
        immutable: rule.immutable.iter().map(ToString::to_string).collect(),
        backup: rule.backup.as_ref().map(ToString::to_string),
        sparse: rule.sparse,
        policy: rule.policy.clone(),
        referrers: rule.referrers.clone(),
        foreign_layers: rule.foreign_layers,
        priority: rule.priority,
        verify_every_seconds: rule.verify_every.as_secs(),
        referrers_every_seconds: rule.referrers_every.as_secs(),
    }
}
