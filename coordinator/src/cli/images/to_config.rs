//! `--to-config`: rules that copy the images, grouped by repository.

use std::collections::{BTreeMap, BTreeSet};

use imgsync_config::{RuleTarget, YamlList, YamlText, is_empty_list, to_yaml, yaml_list};
use imgsync_model::naming::NamingStyle;
use imgsync_oci::{Digest, DigestTag, Reference, Tag};
use serde::Serialize;

use crate::cli::printer::Printer;

/// A configuration.
#[derive(Serialize)]
struct ConfigOutput {
    defaults: DefaultsOutput,
    rules: Vec<RuleOutput>,
}

#[derive(Serialize)]
struct DefaultsOutput {
    to: YamlText,
    #[serde(skip_serializing_if = "Option::is_none")]
    naming: Option<YamlText>,
}

/// A rule for tags, or for digests.
#[derive(Serialize)]
struct RuleOutput {
    from: YamlText,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<BTreeMap<&'static str, YamlList>>,
    #[serde(skip_serializing_if = "is_empty_list")]
    digests: YamlList,
}

/// Tags and digests of a repository.
#[derive(Default)]
struct RepositoryImages<'a> {
    tags: BTreeSet<&'a Tag>,
    digests: BTreeSet<&'a Digest>,
}

/// Prints the configuration. An image that no rule can select is a comment with the command that copies it.
pub(super) fn print<'i>(
    to: &RuleTarget,
    naming: Option<&NamingStyle>,
    images: impl Iterator<Item = &'i Reference>,
    printer: &Printer,
) {
    let mut repositories: BTreeMap<String, RepositoryImages<'_>> = BTreeMap::new();
    let mut others = Vec::new();
    for image in images {
        let repository = repositories.entry(image.name()).or_default();
        match (&image.digest, &image.tag) {
            (Some(digest), _) if digest.pinned_tag().is_none() => others.push((image, "an image by sha512")),
            (Some(digest), _) => _ = repository.digests.insert(digest),
            (None, Some(tag)) if DigestTag::parse_tag(tag.as_str()).is_some() => {
                others.push((image, "a signature or attestation by its tag"));
            }
            (None, Some(tag)) => _ = repository.tags.insert(tag),
            (None, None) => {}
        }
    }
    let mut rules = Vec::new();
    for (name, RepositoryImages { tags, digests }) in &repositories {
        let rule = |tags, digests| RuleOutput { from: YamlText::new(name), tags, digests };
        if !tags.is_empty() {
            rules.push(rule(Some(BTreeMap::from([("include", yaml_list(tags))])), yaml_list::<&Digest>([])));
        }
        if !digests.is_empty() {
            rules.push(rule(None, yaml_list(digests)));
        }
    }
    let defaults = DefaultsOutput { to: YamlText::new(to), naming: naming.map(YamlText::new) };
    printer.data(to_yaml(&ConfigOutput { defaults, rules }).trim_end());
    for (image, what) in others {
        printer.data(&format!("# No rule with `from` copies {what}: imgsync sync {image} {to}/…"));
    }
}
