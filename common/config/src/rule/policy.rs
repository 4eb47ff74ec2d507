//! `policy` of a rule: what an image must be before it is copied.

use super::super::reader::ValueReader;
use super::super::schema_table::{POLICY, SIGNED};
use super::super::yaml::{YamlNode, YamlValue};
use imgsync_model::batch::{ImagePolicy, PolicyKey, RequiredSignatures};

/// Maximum number of keys of a policy: each is tried for each signature.
pub(crate) const MAX_KEYS: usize = 32;

/// Reads `policy:`; `false` requires nothing, whatever `defaults` says.
pub(super) fn read_policy(reader: &ValueReader, node: &YamlNode) -> Option<ImagePolicy> {
    if let YamlValue::Scalar(_) = node.value {
        if reader.flag(node)? {
            reader.report_with_hint(&node.at, "`policy: true` does not say what is required", WHAT_TO_WRITE);
        }
        return Some(ImagePolicy::default());
    }
    let fields = reader.fields(node, &POLICY)?;
    let policy = ImagePolicy {
        signed: fields.get("signed").and_then(|node| read_signed(reader, node)),
        max_age_seconds: fields.get("max_age").and_then(|node| reader.duration(node)).map(|age| age.as_secs()),
        max_size: fields.get("max_size").and_then(|node| reader.size(node)),
        labels: fields.get("labels").map(|node| reader.parse_one_or_many(node)).unwrap_or_default(),
        requires_platforms: fields
            .get("requires_platforms")
            .map(|node| reader.parse_one_or_many(node))
            .unwrap_or_default(),
    };
    if policy.is_empty() {
        // A mistake, as in `labels: []`: an image of any kind would be copied.
        reader.report_with_hint(&fields.at, "`policy` requires nothing", WHAT_TO_WRITE);
    }
    Some(policy)
}

const WHAT_TO_WRITE: &str = "write `policy: {signed: {keys: cosign.pub}}`, or `policy: off`";

fn read_signed(reader: &ValueReader, node: &YamlNode) -> Option<RequiredSignatures> {
    let fields = reader.fields(node, &SIGNED)?;
    let written = fields.get("keys").map(|node| reader.one_or_many(node)).unwrap_or_default();
    let keys: Vec<PolicyKey> = written
        .iter()
        .filter_map(|node| {
            let name = reader.text(node)?;
            if name.contains("-----BEGIN") {
                reader.report(&node.at, "a key is the name of a file with a public key in PEM");
                return None;
            }
            Some(PolicyKey { name: name.to_owned(), pem: String::new() })
        })
        .collect();
    if fields.entry("keys").is_none() && !fields.has_misspelt("keys") {
        reader.report(&fields.at, "`keys` is missing");
    } else if written.is_empty() || written.len() > MAX_KEYS {
        reader.report(&fields.at, format!("`keys` needs 1 to {MAX_KEYS} files with public keys"));
    }
    let need = fields.get("need").and_then(|node| reader.parse(node)).unwrap_or_default();
    Some(RequiredSignatures { keys, need })
}
