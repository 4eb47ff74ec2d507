//! What workers need to know of a batch beside its tasks: the rules' options, by the rules' numbers. Kept with the batch,
//! never in messages, and without secrets.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{End, Lane};
use crate::image::Platform;
use crate::select::TagPattern;

/// The options of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// What is copied, in a few words, for reports.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// By the rules' numbers.
    pub rules: Vec<RuleOptions>,
    /// Ask everything, and push what is there already.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// Compare the ends and remember what is equal; copy nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prime: bool,
    /// Compare the ends, and copy nothing; how thoroughly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
    /// What an image is given at the least, in seconds.
    pub timeout_seconds: u64,
    /// Whether that is all it gets, however large it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timeout_is_exact: bool,
    /// The names of the credentials that are used, by registry; those that are not named are anonymous, or left to who
    /// runs the task.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub accounts: BTreeMap<String, String>,
}

/// How the ends of a batch are compared (`imgsync verify`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verify {
    /// Read all bytes of the target, in place of asking whether they are there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deep: bool,
    /// Which referrers must be there, by the rules' numbers: all, where it says nothing; none of an empty list; else those
    /// of these artifact types.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub referrers: Vec<Option<Vec<String>>>,
}

/// The options of one rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleOptions {
    /// What it copies, for reports.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// Where to, for reports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
    /// These platforms alone; all, where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<Platform>,
    /// Source tags that never move: globs, or regular expressions between slashes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub immutable: Vec<String>,
    /// A template of the tags under which is kept what others pointed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// How long a target tag is believed in, in seconds.
    pub verify_every_seconds: u64,
}

impl Options {
    /// The lane of a task from one end to another.
    pub fn lane(&self, source: &End, target: &End) -> Lane {
        let account = |end: &End| {
            let name = end.registry().and_then(|registry| self.accounts.get(registry.as_str()));
            name.map(|name| name.as_str().into())
        };
        Lane {
            source: source.clone(),
            source_credential: account(source),
            target: target.clone(),
            target_credential: account(target),
        }
    }
}

impl RuleOptions {
    /// What tells target tags that were made with these options from others, in the digest cache; empty for the usual.
    pub fn fingerprint(&self) -> String {
        let mut platforms: Vec<String> =
            self.platforms.iter().map(|platform| platform.normalized().to_string()).collect();
        platforms.sort();
        platforms.dedup();
        platforms.join(",")
    }

    /// The patterns of tags that never move.
    pub fn immutable(&self) -> Vec<TagPattern> {
        // They were checked when the configuration was read.
        self.immutable.iter().filter_map(|pattern| pattern.parse().ok()).collect()
    }

    /// Whether a target tag that was last seen so long ago is still believed in. When each is asked again differs from tag
    /// to tag, between three quarters and five quarters of the time, so that no run pays for all.
    pub fn believes(&self, tag: &str, seen_ago: Duration) -> bool {
        // FNV-1a: any hash that is the same on every machine.
        let hash = tag
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let spread = 0.75 + 0.5 * (hash >> 11) as f64 / (1_u64 << 53) as f64;
        seen_ago.as_secs_f64() < self.verify_every_seconds as f64 * spread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_asked_again_at_different_times_around_the_one_that_was_set() {
        let options = RuleOptions { verify_every_seconds: 1000, ..Default::default() };
        let asked_again =
            |after| (0..1000).filter(|n| !options.believes(&format!("v{n}"), Duration::from_secs(after))).count();
        assert_eq!(asked_again(700), 0);
        assert!((300..700).contains(&asked_again(1000)), "{}", asked_again(1000));
        assert_eq!(asked_again(1300), 1000);
    }

    #[test]
    fn the_order_of_platforms_makes_no_other_options() {
        let of = |names: &[&str]| {
            let platforms = names.iter().map(|name| name.parse().unwrap()).collect();
            RuleOptions { platforms, ..Default::default() }.fingerprint()
        };
        assert_eq!(of(&["linux/arm64", "linux/amd64"]), of(&["linux/amd64", "linux/arm64/v8"]));
        assert_ne!(of(&["linux/arm64"]), of(&["linux/amd64"]));
        assert_eq!(of(&[]), "");
    }

    #[test]
    fn options_are_read_back_as_they_were_written() {
        let options = Options { timeout_seconds: 5, rules: vec![RuleOptions::default()], ..Default::default() };
        let text = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&text).unwrap(), options);
        assert!(!text.contains("force"));
    }
}
