//! An inventory: what a registry has, for the side that makes bundles. The format is that of bundle indexes: `t` is a
//! tag, `m` another manifest, `r` a referrer of a manifest, `b` a blob, once, in the first repository that has it.

use std::collections::BTreeSet;

use imgsync_oci::error::Result;
use imgsync_oci::{Digest, RepositoryName, Tag};
use serde::{Deserialize, Serialize};

use crate::compact::{decode_digest, encode_digest};
use crate::lines::{LineWriter, has_magic, read_lines};

const MAGIC: &str = "imgsync-inventory";

/// When, and of what, an inventory was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryHeader {
    /// Time at which it was begun, RFC 3339.
    pub created: String,
    /// Version of imgsync.
    pub imgsync: String,
    /// Registry and path prefix.
    pub target: String,
}

/// What a registry has below a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// When, and of what, it was made.
    pub header: InventoryHeader,
    /// Repositories, by name.
    pub repositories: Vec<InventoryRepository>,
}

/// What a repository has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InventoryRepository {
    /// Path below the prefix.
    pub path: RepositoryName,
    /// Tags with their digests.
    pub tags: Vec<(Tag, Digest)>,
    /// Manifests without a tag.
    pub manifests: BTreeSet<Digest>,
    /// Referrers: subject and manifest.
    pub referrers: Vec<(Digest, Digest)>,
    /// Blobs that no repository before this one has.
    pub blobs: BTreeSet<Digest>,
}

impl InventoryRepository {
    /// Creates an empty repository.
    pub fn new(path: RepositoryName) -> InventoryRepository {
        InventoryRepository {
            path,
            tags: Vec::new(),
            manifests: BTreeSet::new(),
            referrers: Vec::new(),
            blobs: BTreeSet::new(),
        }
    }
}

impl Inventory {
    /// Whether these bytes begin as an inventory does.
    pub fn is_inventory(bytes: &[u8]) -> bool {
        has_magic(bytes, MAGIC)
    }

    /// Writes the inventory.
    pub fn encode(&self) -> Vec<u8> {
        let mut lines = LineWriter::new(MAGIC, &self.header);
        for repository in &self.repositories {
            lines.line("repository", [repository.path.as_str()]);
            for (tag, digest) in &repository.tags {
                lines.line("t", [tag.as_str(), &encode_digest(digest)]);
            }
            for (subject, referrer) in &repository.referrers {
                lines.line("r", [encode_digest(subject).as_str(), &encode_digest(referrer)]);
            }
            for (kind, digests) in [("m", &repository.manifests), ("b", &repository.blobs)] {
                for digest in digests {
                    lines.line(kind, [encode_digest(digest).as_str()]);
                }
            }
        }
        lines.finish()
    }

    /// Reads an inventory. `label` names it in errors.
    pub fn decode(bytes: &[u8], label: &str) -> Result<Inventory> {
        let mut repositories: Vec<InventoryRepository> = Vec::new();
        let header = read_lines(bytes, MAGIC, label, |mut line| {
            if line.kind == "repository" {
                repositories.push(InventoryRepository::new(line.word(|word| word.parse().ok())?));
                return Ok(());
            }
            let Some(repository) = repositories.last_mut() else {
                return Err(line.error("it belongs to no repository"));
            };
            match line.kind {
                "t" => repository.tags.push((line.word(|word| word.parse().ok())?, line.word(decode_digest)?)),
                "r" => repository.referrers.push((line.word(decode_digest)?, line.word(decode_digest)?)),
                "m" => _ = repository.manifests.insert(line.word(decode_digest)?),
                "b" => _ = repository.blobs.insert(line.word(decode_digest)?),
                kind => return Err(line.error(&format!("`{kind}` is no kind of line"))),
            }
            Ok(())
        })?;
        Ok(Inventory { header, repositories })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inventory_reads_back_and_takes_little() {
        let digest = |text: &str| Digest::sha256(text.as_bytes());
        let mut repository = InventoryRepository::new("a/b".parse().unwrap());
        repository.tags = vec![("1".parse().unwrap(), digest("1"))];
        repository.manifests = BTreeSet::from([digest("child")]);
        repository.referrers = vec![(digest("1"), digest("signature"))];
        repository.blobs = BTreeSet::from([digest("layer"), digest("config")]);
        let header = InventoryHeader {
            created: "2026-05-01T08:00:00Z".to_owned(),
            imgsync: "3.0.0".to_owned(),
            target: "far.example/mirror".to_owned(),
        };
        let inventory = Inventory { header, repositories: vec![repository] };
        let bytes = inventory.encode();
        assert!(Inventory::is_inventory(&bytes));
        assert_eq!(Inventory::decode(&bytes, "x").unwrap(), inventory);
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.lines().skip(3).all(|line| line.len() <= 90), "{text}");
    }
}
