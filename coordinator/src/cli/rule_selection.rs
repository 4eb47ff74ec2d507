//! `--rule`: the rules of the configuration that a command is limited to.

use imgsync_config::Rule;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::pluralize;
use imgsync_store::Batch;

use super::settings::Settings;
use crate::serve::config_of_batch;

/// Maximum number of rules that an error lists.
const MAX_LISTED_RULES: usize = 20;

/// Limits the settings to these rules, in the order of the configuration. Each is a name (without one, as the reports
/// name the rule), an id or a number from 1. The configuration is then as if it had no other rules.
///
/// # Errors
/// `Invalid` if the configuration has no such rule.
pub(super) fn select_rules(settings: &mut Settings, wanted: &[String]) -> Result<()> {
    let rules = &settings.config.rules;
    let mut selected = vec![false; rules.len()];
    for text in wanted {
        selected[find_rule(rules, text)?] = true;
    }
    let selected = rules.iter().zip(selected).filter(|(_, is_selected)| *is_selected).map(|(rule, _)| rule.clone());
    limit_to(settings, selected.collect());
    Ok(())
}

/// Returns the settings limited to the rules of a batch, also if `--rule` chose them. They are not limited if the
/// batch has other rules than the configuration.
pub(super) fn settings_of_batch(settings: &Settings, batch: &Batch) -> Settings {
    let mut limited = settings.clone();
    if let Some(config) = config_of_batch(&settings.config, batch) {
        limit_to(&mut limited, config.rules);
    }
    limited
}

fn limit_to(settings: &mut Settings, rules: Vec<Rule>) {
    let whole = settings.config.clone();
    settings.unlimited.get_or_insert_with(|| Box::new(whole));
    settings.config.rules = rules;
}

fn find_rule(rules: &[Rule], text: &str) -> Result<usize> {
    let by_name = || rules.iter().position(|rule| rule.title() == text);
    let by_id = || rules.iter().position(|rule| rule.id() == text);
    let by_number = || text.parse::<usize>().ok()?.checked_sub(1).filter(|index| *index < rules.len());
    by_name().or_else(by_id).or_else(by_number).ok_or_else(|| {
        let mut known: Vec<String> = rules.iter().take(MAX_LISTED_RULES).map(Rule::title).collect();
        if let Some(more) = rules.len().checked_sub(MAX_LISTED_RULES).filter(|more| *more > 0) {
            known.push(pluralize(more as u64, "more rule", "more rules"));
        }
        let detail = format!("the configuration has no rule `{text}`");
        Error::new(ErrorKind::Invalid, "choosing the rules", detail)
            .with_hint(format!("its rules are {}; their numbers, from 1, can be used too", known.join(", ")))
    })
}
