//! What hooks told of pushes to a repository: the part of a rule that a batch is limited to.

use serde::{Deserialize, Serialize};

use imgsync_oci::{Digest, RegistryName, RepositoryName, Tag};

/// Pushes to a repository. A batch that is limited to them copies nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushedRepository {
    /// The registry.
    pub registry: RegistryName,
    /// The repository.
    pub repository: RepositoryName,
    /// What was pushed.
    pub references: Vec<PushedReference>,
}

/// A push to a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushedReference {
    /// A tag, with its digest if the sender said it.
    Tag(Tag, Option<Digest>),
    /// A manifest without a tag: it may be a referrer of an image.
    Manifest(Digest),
    /// The sender did not say what.
    Unknown,
    /// Something was deleted.
    Deletion,
}

/// What the name of a deletion ends with.
const DELETION_SUFFIX: &str = " (deletion)";

impl PushedReference {
    /// Names it in a repository, without the digest of a tag.
    pub fn name_in(&self, registry: &RegistryName, repository: &RepositoryName) -> String {
        match self {
            PushedReference::Tag(tag, _) => format!("{registry}/{repository}:{tag}"),
            PushedReference::Manifest(digest) => format!("{registry}/{repository}@{digest}"),
            PushedReference::Unknown => format!("{registry}/{repository}"),
            PushedReference::Deletion => format!("{registry}/{repository}{DELETION_SUFFIX}"),
        }
    }

    /// Returns the repository in the name of a deletion, as `registry/repository`.
    pub fn strip_deletion(name: &str) -> Option<&str> {
        name.strip_suffix(DELETION_SUFFIX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushes_keep_their_form() {
        let digest = Digest::sha256(b"x");
        let references = vec![
            PushedReference::Tag("1.0".parse().unwrap(), Some(digest.clone())),
            PushedReference::Tag("latest".parse().unwrap(), None),
            PushedReference::Manifest(digest.clone()),
            PushedReference::Unknown,
            PushedReference::Deletion,
        ];
        let pushed =
            PushedRepository { registry: "r.example".parse().unwrap(), repository: "a/b".parse().unwrap(), references };
        let text = serde_json::to_string(&pushed).unwrap();
        assert_eq!(
            text,
            format!(
                r#"{{"registry":"r.example","repository":"a/b","references":[{{"tag":["1.0","{digest}"]}},{{"tag":["latest",null]}},{{"manifest":"{digest}"}},"unknown","deletion"]}}"#
            )
        );
        assert_eq!(serde_json::from_str::<PushedRepository>(&text).unwrap(), pushed);
    }
}
