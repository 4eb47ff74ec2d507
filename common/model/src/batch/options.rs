//! Options of a batch that workers need: the options of its rules, by rule number. They are kept with the batch, never
//! in messages, and contain no secrets.
//!
//! Options protect target tags (`immutable`, `backup`, …): a value that cannot be parsed, or a key that this version
//! does not know, is an error, never the default.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Endpoint, ImagePolicy, Priority, PushedRepository, Route};
use crate::canonical::Canonical;
use crate::select::TagPattern;
use imgsync_oci::Platform;
use imgsync_oci::error::{Error, ErrorKind, Result as ErrorResult};
use imgsync_oci::humanize::pluralize;
use imgsync_oci::sanitize::sanitize;

/// Domain and version of the hash for the digest cache. Raise the version when the meaning of a field changes: then
/// every target tag made with options is checked once more.
const FINGERPRINT: &str = "imgsync options 1";

/// Version of [`BatchOptions::encode`]: raised when the meaning of a key changes.
pub const OPTIONS_VERSION: u64 = 1;

/// Options of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchOptions {
    /// Short description of the batch, for reports.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// Options by rule number.
    pub rules: Vec<RuleOptions>,
    /// Check every tag, and push even what is up to date.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// Compare source and target and record what is equal, without copying.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prime: bool,
    /// Compare source and target without copying; how thoroughly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<VerifyOptions>,
    /// The slice of the sorted plan that the batch covers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slice: Option<PlanSlice>,
    /// The pushes that the batch is limited to; `None` if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed: Option<Vec<PushedRepository>>,
    /// Minimum timeout of an image, in seconds.
    pub timeout_seconds: u64,
    /// Whether the timeout is exact, however large the image is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timeout_is_exact: bool,
    /// Whether text reports have the lines of imgsync 2.1, whose commands created the batch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub legacy_report: bool,
    /// Names of the credentials in use, by registry. Registries that are not named are anonymous, or left to the worker
    /// that runs the task.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub accounts: BTreeMap<String, String>,
}

/// A slice of the sorted list of all images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanSlice {
    /// Number of images in a slice.
    pub size: NonZeroUsize,
    /// Number of the slice, from 1.
    pub number: NonZeroUsize,
}

/// How source and target are compared (`imgsync verify`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyOptions {
    /// Read all bytes of the target, instead of checking that they exist.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deep: bool,
    /// Required referrers, by rule number: all if `None`, none if the list is empty, else those of these artifact
    /// types.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub referrers: Vec<Option<Vec<String>>>,
}

/// Options of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleOptions {
    /// Title of the rule, for reports and metrics (`Rule::title`).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its source, for reports.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// Its targets, for reports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
    /// Platforms to copy; all if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<Platform>,
    /// Source tags that never move: globs, or regular expressions between slashes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub immutable: Vec<String>,
    /// Template of the tags that keep what an overwritten tag pointed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// Copy only these platforms of an index, and the index unchanged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sparse: bool,
    /// Referrers to copy.
    #[serde(default, skip_serializing_if = "Referrers::are_all")]
    pub referrers: Referrers,
    /// What an image must be before it is copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<ImagePolicy>,
    /// Priority of its tasks.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// Whether foreign layers are copied.
    #[serde(default, skip_serializing_if = "ForeignLayers::are_kept")]
    pub foreign_layers: ForeignLayers,
    /// How long a cached target tag is trusted, in seconds.
    pub verify_every_seconds: u64,
    /// How often an unchanged image is checked for new referrers, in seconds.
    #[serde(default)]
    pub referrers_every_seconds: u64,
}

/// Which referrers are copied with an image: signatures, SBOMs, attestations and others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WrittenReferrers", into = "WrittenReferrers")]
pub enum Referrers {
    /// All of them.
    #[default]
    All,
    /// None.
    None,
    /// Those of these artifact types.
    Types(Vec<String>),
}

impl Referrers {
    /// Checks an artifact type (image-spec v1.1, "artifactType"): it is a media type, not a word such as `sbom`.
    pub fn check_type(text: &str) -> Result<(), String> {
        match text.split_once('/') {
            Some((kind, name)) if !kind.is_empty() && !name.is_empty() => Ok(()),
            _ => Err(format!("`{text}` is not an artifact type: write a media type, such as application/spdx+json")),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WrittenReferrers {
    Flag(bool),
    Types(Vec<String>),
}

impl From<WrittenReferrers> for Referrers {
    fn from(written: WrittenReferrers) -> Referrers {
        match written {
            WrittenReferrers::Flag(true) => Referrers::All,
            WrittenReferrers::Flag(false) => Referrers::None,
            WrittenReferrers::Types(types) => Referrers::Types(types),
        }
    }
}

impl From<Referrers> for WrittenReferrers {
    fn from(referrers: Referrers) -> WrittenReferrers {
        match referrers {
            Referrers::All => WrittenReferrers::Flag(true),
            Referrers::None => WrittenReferrers::Flag(false),
            Referrers::Types(types) => WrittenReferrers::Types(types),
        }
    }
}

impl Referrers {
    fn are_all(&self) -> bool {
        *self == Referrers::All
    }

    /// Returns whether any referrers are copied.
    pub fn copies_any(&self) -> bool {
        *self != Referrers::None
    }
}

/// How to treat layers at URLs that registries need not store ("foreign", "non-distributable").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForeignLayers {
    /// Keep the reference: clients fetch the layer from its URL.
    #[default]
    Keep,
    /// Copy them like other layers.
    Copy,
}

impl ForeignLayers {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives it so")]
    fn are_kept(&self) -> bool {
        *self == ForeignLayers::Keep
    }
}

impl BatchOptions {
    /// Encodes the options as JSON with their version, as stores keep them.
    pub fn encode(&self) -> String {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(object) = value.as_object_mut() {
            object.insert("version".to_owned(), OPTIONS_VERSION.into());
        }
        value.to_string()
    }

    /// Decodes options written by [`BatchOptions::encode`]. `what` names them in the error.
    ///
    /// # Errors
    /// `Invalid` if the text is of another version, has an unknown key, or is not JSON.
    pub fn decode(text: &str, what: &str) -> ErrorResult<BatchOptions> {
        let invalid = |detail: String| Error::new(ErrorKind::Invalid, format!("reading the options of {what}"), detail);
        if text.is_empty() {
            return Err(invalid("missing, or altered in the store".to_owned()));
        }
        let mut value: serde_json::Value = serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
        let version = value.as_object_mut().and_then(|object| object.remove("version"));
        match version.as_ref().and_then(serde_json::Value::as_u64) {
            Some(OPTIONS_VERSION) => {}
            Some(newer) if newer > OPTIONS_VERSION => {
                let detail =
                    format!("written by a newer imgsync (version {newer}; this one supports {OPTIONS_VERSION})");
                return Err(invalid(detail).with_hint("use that version for this batch, or run its rules again"));
            }
            _ => return Err(invalid("unknown version".to_owned())),
        }
        serde_json::from_value(value).map_err(|error| {
            invalid(error.to_string())
                .with_hint("if another version of imgsync created the batch, use that version, or run its rules again")
        })
    }

    /// Returns the options of a rule by its number.
    ///
    /// # Errors
    /// `Invalid` if there is no such rule: nothing is copied with unknown options.
    pub fn rule(&self, number: u32) -> ErrorResult<&RuleOptions> {
        self.rules.get(number as usize).ok_or_else(|| {
            let detail =
                format!("no rule {number}: the batch has {}", pluralize(self.rules.len() as u64, "rule", "rules"));
            Error::new(ErrorKind::Invalid, "reading the options of a rule", detail).with_hint("run the rules again")
        })
    }

    /// Returns the priority of the batch: the highest of its rules.
    pub fn priority(&self) -> Priority {
        self.rules.iter().map(|rule| rule.priority).min().unwrap_or_default()
    }

    /// Returns the route from one endpoint to another.
    pub fn route(&self, source: &Endpoint, target: &Endpoint) -> Route {
        let account = |end: &Endpoint| {
            let name = end.registry().and_then(|registry| self.accounts.get(registry.as_str()));
            name.map(|name| name.as_str().into())
        };
        Route {
            source: source.clone(),
            source_credential: account(source),
            target: target.clone(),
            target_credential: account(target),
        }
    }
}

impl RuleOptions {
    /// Returns a fingerprint that distinguishes target tags made with these options in the digest cache; empty for the
    /// defaults.
    pub fn fingerprint(&self) -> String {
        let types = match &self.referrers {
            Referrers::Types(types) => Some(Canonical::default().set(1, types)),
            Referrers::All | Referrers::None => None,
        };
        let canonical = Canonical::default()
            .set(1, self.platforms.iter().map(Platform::canonical))
            .flag(2, self.is_sparse())
            .flag(3, self.foreign_layers == ForeignLayers::Copy)
            .option(4, types)
            // An image that was accepted by another policy, or copied without one, is checked.
            .option(5, self.policy.as_ref().map(ImagePolicy::canonical));
        match canonical.is_empty() {
            true => String::new(),
            false => canonical.digest(FINGERPRINT).short().to_owned(),
        }
    }

    /// Returns whether a target tag may lack parts of the image of its digest.
    pub fn is_sparse(&self) -> bool {
        self.sparse && !self.platforms.is_empty()
    }

    /// Returns whether target digests differ from source digests.
    pub fn filters_platforms(&self) -> bool {
        !self.sparse && !self.platforms.is_empty()
    }

    /// Returns whether an unchanged image that was checked for referrers this long ago need not be checked again.
    pub fn are_referrers_fresh(&self, tag: &str, asked_ago: Duration) -> bool {
        asked_ago.as_secs_f64() < self.referrers_every_seconds as f64 * (0.75 + 0.5 * stable_fraction(tag))
    }

    /// Returns the age to record for the referrer check of an image that is at the target but was never checked: a
    /// fraction of the interval that differs by tag, so that no run checks all images.
    pub fn initial_referrers_age(&self, tag: &str) -> Duration {
        // The check is then due after between a twentieth and the whole of the interval.
        Duration::from_secs((self.referrers_every_seconds as f64 * (0.7 - 0.45 * stable_fraction(tag))) as u64)
    }

    /// Parses the patterns of immutable tags.
    ///
    /// # Errors
    /// `Invalid` if a pattern cannot be parsed: without it a tag that must not move would.
    pub fn immutable(&self) -> ErrorResult<Vec<TagPattern>> {
        let parse = |pattern: &String| {
            pattern.parse().map_err(|error: <TagPattern as std::str::FromStr>::Err| {
                Error::new(ErrorKind::Invalid, format!("reading `immutable: {}`", sanitize(pattern)), error.to_string())
            })
        };
        self.immutable.iter().map(parse).collect()
    }

    /// Returns whether a target tag that was seen this long ago is still trusted. The limit differs by tag, between
    /// three quarters and five quarters of the interval, so that no run checks all tags.
    pub fn is_cache_fresh(&self, tag: &str, seen_ago: Duration) -> bool {
        seen_ago.as_secs_f64() < self.verify_every_seconds as f64 * (0.75 + 0.5 * stable_fraction(tag))
    }
}

/// Returns a number from 0 to 1 that is always the same for a tag.
fn stable_fraction(tag: &str) -> f64 {
    // FNV-1a: any hash that is the same on every machine.
    let hash = tag
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_asked_again_at_different_times_around_the_one_that_was_set() {
        let options = RuleOptions { verify_every_seconds: 1000, ..Default::default() };
        let asked_again =
            |after| (0..1000).filter(|n| !options.is_cache_fresh(&format!("v{n}"), Duration::from_secs(after))).count();
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
        assert_eq!(of(&["linux/arm64", "linux/amd64"]), of(&["linux/x86_64", "linux/arm64", "linux/aarch64"]));
        assert_ne!(of(&["linux/arm64"]), of(&["linux/amd64"]));
        // A platform without a variant matches any.
        assert_ne!(of(&["linux/arm"]), of(&["linux/arm/v7"]));
        assert_eq!(of(&[]), "");
        let platforms = vec!["linux/amd64".parse().unwrap()];
        let sparse = RuleOptions { platforms, sparse: true, ..Default::default() };
        assert_ne!(sparse.fingerprint(), of(&["linux/amd64"]));
        let foreign = RuleOptions { foreign_layers: ForeignLayers::Copy, ..Default::default() };
        assert_eq!(
            RuleOptions { sparse: true, ..Default::default() }.fingerprint(),
            "",
            "of all platforms nothing is left out"
        );
        let typed = |types: &[&str]| {
            let types = types.iter().map(|text| (*text).to_owned()).collect();
            RuleOptions { referrers: Referrers::Types(types), ..Default::default() }.fingerprint()
        };
        assert_eq!(typed(&["a", "b"]), typed(&["b", "a"]));
        assert_ne!(typed(&["a"]), typed(&["b"]));
        let within = |max_size| {
            let policy = Some(ImagePolicy { max_size: Some(max_size), ..ImagePolicy::default() });
            RuleOptions { policy, ..Default::default() }.fingerprint()
        };
        assert_ne!(within(1), within(2));
        assert_ne!(within(1), "");
        // The hashes that caches hold: a change checks every tag made with options once more.
        let golden = [of(&["linux/amd64"]), sparse.fingerprint(), foreign.fingerprint(), typed(&["a", "b"])];
        assert_eq!(golden, ["bbb96fec663e", "26caac605a79", "a45451cd8e1b", "7aae9b1c1a8b"]);
    }

    #[test]
    fn images_that_were_never_asked_are_asked_within_the_time_and_not_all_at_once() {
        let options = RuleOptions { referrers_every_seconds: 1000, ..Default::default() };
        let asked_after = |after: u64| {
            let is_due = |tag: &str| {
                let head_start = options.initial_referrers_age(tag);
                assert!(options.are_referrers_fresh(tag, head_start), "not in this run");
                !options.are_referrers_fresh(tag, head_start + Duration::from_secs(after))
            };
            (0..1000).filter(|n| is_due(&format!("v{n}"))).count()
        };
        assert_eq!(asked_after(40), 0);
        assert!((300..700).contains(&asked_after(500)), "{}", asked_after(500));
        assert_eq!(asked_after(1001), 1000);
    }

    #[test]
    fn options_are_read_back_as_they_were_written() {
        let options = BatchOptions { timeout_seconds: 5, rules: vec![RuleOptions::default()], ..Default::default() };
        let text = options.encode();
        assert_eq!(BatchOptions::decode(&text, "a batch").unwrap(), options);
        assert!(!text.contains("force"));
    }

    #[test]
    fn options_that_this_version_does_not_know_are_an_error_and_never_the_default() {
        let whole = BatchOptions {
            rules: vec![RuleOptions { immutable: vec!["v*".into()], ..RuleOptions::default() }],
            verify: Some(VerifyOptions::default()),
            slice: Some(PlanSlice { size: NonZeroUsize::MIN, number: NonZeroUsize::MIN }),
            ..BatchOptions::default()
        };
        let text = whole.encode();
        for (from, to, wanted) in [
            ("\"version\":1", "\"version\":2", "written by a newer imgsync (version 2"),
            ("\"version\":1", "\"version\":0", "unknown version"),
            ("\"version\":1", "\"version\":\"1\"", "unknown version"),
            ("\"version\":1", "\"release\":1", "unknown version"),
            ("\"version\":1", "\"version\":1,\"dry\":true", "unknown field `dry`"),
            ("\"immutable\"", "\"frozen\"", "unknown field `frozen`"),
            ("\"verify\":{", "\"verify\":{\"half\":true", "unknown field `half`"),
            ("\"number\":1", "\"number\":0", "a nonzero usize"),
            ("\"number\":1", "\"number\":1,\"last\":2", "unknown field `last`"),
            ("\"immutable\":[\"v*\"]", "\"immutable\":\"v*\"", "invalid type"),
            (
                "\"verify_every_seconds\"",
                "\"foreign_layers\":\"shred\",\"verify_every_seconds\"",
                "unknown variant `shred`",
            ),
            (&text, "[]", "unknown version"),
            (&text, "", "missing"),
            (&text, "{", "EOF"),
        ] {
            assert!(text.contains(from), "{from} in {text}");
            let error = BatchOptions::decode(&text.replacen(from, to, 1), "batch 7").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            let said = error.to_string();
            assert!(said.contains(wanted) && said.contains("batch 7"), "{said}");
        }
    }

    #[test]
    fn a_rule_that_is_not_there_and_a_pattern_that_does_not_parse_are_errors() {
        let frozen = |patterns: &[&str]| RuleOptions {
            immutable: patterns.iter().map(|pattern| (*pattern).to_owned()).collect(),
            ..RuleOptions::default()
        };
        let options = BatchOptions { rules: vec![frozen(&["v*", "/^[0-9]+$/"])], ..BatchOptions::default() };
        assert_eq!(options.rule(0).unwrap().immutable().unwrap().len(), 2);
        for number in [1, u32::MAX] {
            assert_eq!(options.rule(number).unwrap_err().kind(), ErrorKind::Invalid);
        }
        for bad in ["/(/", "[", ""] {
            let error = frozen(&["v*", bad]).immutable().unwrap_err();
            assert!(error.to_string().contains("immutable"), "{error}");
        }
    }
}
