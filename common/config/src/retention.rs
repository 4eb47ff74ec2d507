//! Retention of target tags: `read_prune`, `immutable`, `backup`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::DAY;
use super::reader::ValueReader;
use super::schema_table::PRUNE;
use super::yaml::{YamlNode, YamlValue};

/// `prune:`: removes tags that the rule created and that are gone from the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneConfig {
    /// How long a tag must be gone from the source; 30 days.
    pub grace_period: Duration,
    /// Maximum to remove at a time; 10 %.
    pub limit: PruneLimit,
}

impl Default for PruneConfig {
    fn default() -> PruneConfig {
        PruneConfig { grace_period: 30 * DAY, limit: PruneLimit::Percent(10) }
    }
}

/// Maximum number of tags that a rule removes in one run. If there are more, none is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PruneLimit {
    /// A number of tags.
    Count(u64),
    /// A percentage of the tags that the rule has created, up to 100.
    Percent(u8),
}

impl PruneLimit {
    /// Returns whether so many of the created tags may be removed.
    pub fn allows(self, gone: u64, made: u64) -> bool {
        match self {
            PruneLimit::Count(count) => gone <= count,
            PruneLimit::Percent(percent) => u128::from(gone) * 100 <= u128::from(made) * u128::from(percent),
        }
    }
}

impl FromStr for PruneLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<PruneLimit, String> {
        let limit = match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse().ok().filter(|percent| *percent <= 100).map(PruneLimit::Percent),
            None => text.parse().ok().map(PruneLimit::Count),
        };
        limit.ok_or_else(|| format!("`{text}` is neither a number of tags nor a percentage such as 10%"))
    }
}

impl fmt::Display for PruneLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PruneLimit::Count(count) => write!(f, "{count}"),
            PruneLimit::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Reads `prune: true`, or a mapping; `false` equals leaving it out.
pub(super) fn read_prune(reader: &ValueReader, node: &YamlNode) -> Option<PruneConfig> {
    if let YamlValue::Scalar(_) = node.value {
        return reader.flag(node)?.then(PruneConfig::default);
    }
    let fields = reader.fields(node, &PRUNE)?;
    let mut prune = PruneConfig::default();
    if let Some(days) = fields.get("keep_days").and_then(|node| reader.integer(node, 0..=36_500)) {
        prune.grace_period = DAY * u32::try_from(days).unwrap_or(u32::MAX);
    }
    if let Some(limit) = fields.get("limit").and_then(|node| reader.parse(node)) {
        prune.limit = limit;
    }
    Some(prune)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_or_a_part_and_no_more_may_go() {
        let allows = |limit: &str, gone, made| limit.parse::<PruneLimit>().unwrap().allows(gone, made);
        assert!(allows("10%", 1, 10) && !allows("10%", 1, 9) && allows("10%", 0, 0));
        assert!(allows("0%", 0, 100) && !allows("0%", 1, u64::MAX));
        assert!(allows("5", 5, 5) && !allows("5", 6, 1_000));
        assert!(allows("100%", 7, 7));
        for bad in ["", "101%", "-1", "x", "1.5", "%"] {
            assert!(bad.parse::<PruneLimit>().is_err(), "{bad}");
        }
        for good in ["10%", "7"] {
            assert_eq!(good.parse::<PruneLimit>().unwrap().to_string(), good);
        }
    }
}
