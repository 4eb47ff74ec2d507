//! Policy of a rule: what an image must be before it is copied. It travels with the options of a batch, its keys
//! included.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::canonical::Canonical;
use imgsync_oci::Platform;
use imgsync_oci::sanitize::sanitize;

/// Policy of a rule. Everything that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagePolicy {
    /// Required signatures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<RequiredSignatures>,
    /// Maximum age of the image, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_seconds: Option<u64>,
    /// Maximum size of all blobs of the image together, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<u64>,
    /// Labels that the config must have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<RequiredLabel>,
    /// Platforms that the image must be available for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires_platforms: Vec<Platform>,
}

/// Signatures that an image must have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequiredSignatures {
    /// The keys; at least one.
    pub keys: Vec<PolicyKey>,
    /// How many of them must have signed.
    #[serde(default)]
    pub need: SignatureNeed,
}

/// A public key of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyKey {
    /// Name in messages: the file, as the configuration names it.
    pub name: String,
    /// The key in PEM. Empty until the file is read; then no signature holds.
    pub pem: String,
}

/// How many of the keys of a policy must have signed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignatureNeed {
    /// One of them.
    #[default]
    Any,
    /// All of them.
    All,
}

/// A label that the config of an image must have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RequiredLabel {
    /// Its name.
    pub name: String,
    /// Its value; `None` accepts any.
    pub value: Option<String>,
}

impl ImagePolicy {
    /// Returns whether nothing is required.
    pub fn is_empty(&self) -> bool {
        *self == ImagePolicy::default()
    }

    /// Encodes the meaning of the policy, for hashes. The names of keys do not count.
    pub fn canonical(&self) -> Canonical {
        let signed = self.signed.as_ref().map(|signed| {
            let keys = signed.keys.iter().map(PolicyKey::canonical);
            Canonical::default().set(1, keys).flag(2, signed.need == SignatureNeed::All)
        });
        Canonical::default()
            .option(1, signed)
            .option(2, self.max_age_seconds.map(u64::to_be_bytes))
            .option(3, self.max_size.map(u64::to_be_bytes))
            .set(4, self.labels.iter().map(ToString::to_string))
            .set(5, self.requires_platforms.iter().map(Platform::canonical))
    }
}

impl PolicyKey {
    /// Returns the key without line breaks, or the name of a file that was not read.
    fn canonical(&self) -> String {
        match self.pem.is_empty() {
            true => self.name.clone(),
            false => self.pem.split_ascii_whitespace().collect(),
        }
    }
}

impl SignatureNeed {
    /// Returns the word used in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            SignatureNeed::Any => "any",
            SignatureNeed::All => "all",
        }
    }
}

impl fmt::Display for SignatureNeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SignatureNeed {
    type Err = String;

    fn from_str(text: &str) -> Result<SignatureNeed, String> {
        let known = [SignatureNeed::Any, SignatureNeed::All];
        let found = known.into_iter().find(|need| need.as_str() == text);
        found.ok_or_else(|| format!("`{}` is neither any nor all", sanitize(text)))
    }
}

impl RequiredLabel {
    /// Returns whether a label of the config is this one.
    pub fn accepts(&self, value: &str) -> bool {
        self.value.as_ref().is_none_or(|wanted| wanted == value)
    }
}

impl fmt::Display for RequiredLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.value {
            Some(value) => write!(f, "={value}"),
            None => Ok(()),
        }
    }
}

impl FromStr for RequiredLabel {
    type Err = String;

    fn from_str(text: &str) -> Result<RequiredLabel, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        match name.trim().is_empty() {
            true => Err(format!("`{}` is not a label: write NAME or NAME=VALUE", sanitize(text))),
            false => Ok(RequiredLabel { name: name.to_owned(), value }),
        }
    }
}

impl TryFrom<String> for RequiredLabel {
    type Error = String;

    fn try_from(text: String) -> Result<RequiredLabel, String> {
        text.parse()
    }
}

impl From<RequiredLabel> for String {
    fn from(label: RequiredLabel) -> String {
        label.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(keys: &[(&str, &str)], need: SignatureNeed) -> ImagePolicy {
        let keys = keys.iter().map(|(name, pem)| PolicyKey { name: (*name).into(), pem: (*pem).into() }).collect();
        ImagePolicy { signed: Some(RequiredSignatures { keys, need }), ..ImagePolicy::default() }
    }

    #[test]
    fn the_names_and_the_order_of_keys_do_not_change_the_meaning_and_the_keys_do() {
        let both = signed(&[("a", "A\nB\n"), ("b", "C")], SignatureNeed::Any);
        assert_eq!(both.canonical(), signed(&[("x", "C"), ("y", "AB")], SignatureNeed::Any).canonical());
        assert_ne!(both.canonical(), signed(&[("a", "A\nB\n"), ("b", "C")], SignatureNeed::All).canonical());
        assert_ne!(both.canonical(), signed(&[("a", "AB")], SignatureNeed::Any).canonical());
        assert_ne!(both.canonical(), signed(&[("a", ""), ("b", "C")], SignatureNeed::Any).canonical());
    }

    #[test]
    fn a_policy_is_read_back_as_it_was_written_and_what_is_unknown_is_an_error() {
        let policy = ImagePolicy {
            max_age_seconds: Some(60),
            max_size: Some(1),
            labels: vec!["team".parse().unwrap(), "approved=yes=no".parse().unwrap()],
            requires_platforms: vec!["linux/arm64".parse().unwrap()],
            ..signed(&[("cosign.pub", "AB")], SignatureNeed::All)
        };
        let text = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<ImagePolicy>(&text).unwrap(), policy);
        assert!(text.contains("\"approved=yes=no\"") && text.contains("\"need\":\"all\""), "{text}");
        for (from, to) in [
            ("\"need\":\"all\"", "\"need\":\"most\""),
            ("\"max_size\"", "\"maximal_size\""),
            ("\"team\"", "\"=team\""),
            ("\"pem\"", "\"path\""),
        ] {
            assert!(serde_json::from_str::<ImagePolicy>(&text.replacen(from, to, 1)).is_err(), "{to}");
        }
        assert!(ImagePolicy::default().is_empty() && !policy.is_empty());
    }
}
