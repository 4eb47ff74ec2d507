//! The index of a bundle: every wanted tag with its digest, grouped by repository, and the digests of all content that
//! the bundle carries or leaves out.
//!
//! One entry a line, for example:
//!
//! ```text
//! imgsync-bundle 1
//! {"created":"2026-05-01T08:00:00Z","imgsync":"3.0.0","title":"nightly"}
//! repository library/nginx docker.io/library/nginx
//! t 1.27 n4bQgYhMfWWaL-qgxVrQFaO_TxsrC4Is0V1sFbDwCgg
//! = 1.26 LCa0a2j_xo_5m0U8HTBBNBNCLXBkg7-g-YpeiGJm564
//! M n4bQgYhMfWWaL-qgxVrQFaO_TxsrC4Is0V1sFbDwCgg 1406
//! B RBNvo1WzZ4oRRq0W9-hknpT7T8If536DEMBg9hyq_4o 7023
//! b -i_0KmOvJZo9p_MmtDpvHrAiQhFqWzVHJZ-aUdsbzjA 31245677 library/debian
//! end 6
//! ```
//!
//! `t` is a tag whose image is carried, `=` one whose image the receiver has; `r` a referrer of a manifest; `M` and `B`
//! manifests and blobs in the bundle; `m` and `b` those that are left out.

use imgsync_oci::error::Result;
use imgsync_oci::{Digest, RepositoryName, Tag};
use serde::{Deserialize, Serialize};

use crate::compact::{decode_digest, encode_digest};
use crate::lines::{LineWriter, TextLine, has_magic, read_lines};

const MAGIC: &str = "imgsync-bundle";
/// Maximum size of an index in bytes: a million tags and their content. All of it is in memory.
pub const MAX_INDEX_BYTES: u64 = 256 << 20;
/// Maximum number of missing images that a header names.
const MAX_NAMED_MISSING: usize = 100;
/// Maximum number of missing images that a message names.
const MAX_SHOWN_MISSING: usize = 5;
/// Maximum length of such a message in characters.
const MAX_MISSING_CHARS: usize = 1000;
/// Maximum number of repositories in an index.
const MAX_REPOSITORIES: usize = 1_000_000;

/// When, and from what, a bundle was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleHeader {
    /// Time at which its images were resolved, RFC 3339.
    pub created: String,
    /// Version of imgsync.
    pub imgsync: String,
    /// Title of the rules.
    pub title: String,
    /// What the receiver has, as given: targets of inventories, titles of earlier bundles.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub have: Vec<String>,
    /// The program that the bundle carries, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Digest>,
    /// Number of selected images and repositories that could not be read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing_count: u64,
    /// The first of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl BundleHeader {
    /// Records what could not be read.
    pub fn set_missing(&mut self, missing: impl IntoIterator<Item = String>) {
        let mut missing = missing.into_iter().fuse();
        self.missing = missing.by_ref().take(MAX_NAMED_MISSING).collect();
        self.missing_count = self.missing.len() as u64 + missing.count() as u64;
    }

    /// Says what a bundle lacks that its rules select; `None` if it is complete.
    pub fn describe_missing(&self) -> Option<String> {
        let count = self.missing_count.max(self.missing.len() as u64);
        if count == 0 {
            return None;
        }
        let named: Vec<&str> = self.missing.iter().take(MAX_SHOWN_MISSING).map(String::as_str).collect();
        let more = count - named.len() as u64;
        let mut text = format!("{count} of what its rules select could not be read: {}", named.join(", "));
        if more > 0 {
            text.push_str(&format!(" and {more} more"));
        }
        Some(imgsync_oci::sanitize::sanitize_within(&text, MAX_MISSING_CHARS).into_owned())
    }
}

/// The index of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleIndex {
    /// When, and from what, it was made.
    pub header: BundleHeader,
    /// Repositories, by name.
    pub repositories: Vec<BundledRepository>,
}

/// A repository of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundledRepository {
    /// Path below the target of `bundle load`.
    pub path: RepositoryName,
    /// Repositories that its images come from.
    pub sources: Vec<String>,
    /// All wanted tags, by name.
    pub tags: Vec<BundledTag>,
    /// Referrers: subject and manifest.
    pub referrers: Vec<(Digest, Digest)>,
    /// Manifests that the bundle carries for this repository.
    pub manifests: Vec<ContentSize>,
    /// Blobs that the bundle carries for this repository.
    pub blobs: Vec<ContentSize>,
    /// Manifests that the receiver has in this repository.
    pub left_out_manifests: Vec<Digest>,
    /// Blobs that the receiver has.
    pub left_out_blobs: Vec<LeftOutBlob>,
}

/// A wanted tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundledTag {
    /// The tag.
    pub tag: Tag,
    /// Digest of its image.
    pub digest: Digest,
    /// Whether the image is in the bundle; the receiver has it otherwise.
    pub is_carried: bool,
    /// The image at the source, unless it is this tag in the first source of the repository.
    pub source: Option<String>,
}

/// Content with its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentSize {
    /// Digest of the content.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
}

/// A blob that the receiver has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOutBlob {
    /// Digest of the blob.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// The receiver's repository that has it, if it is another one.
    pub repository: Option<RepositoryName>,
}

impl BundledRepository {
    /// Creates a repository without content.
    pub fn new(path: RepositoryName) -> BundledRepository {
        BundledRepository {
            path,
            sources: Vec::new(),
            tags: Vec::new(),
            referrers: Vec::new(),
            manifests: Vec::new(),
            blobs: Vec::new(),
            left_out_manifests: Vec::new(),
            left_out_blobs: Vec::new(),
        }
    }
}

impl BundleIndex {
    /// Whether these bytes begin as an index does.
    pub fn is_index(bytes: &[u8]) -> bool {
        has_magic(bytes, MAGIC)
    }

    /// Writes the index.
    pub fn encode(&self) -> Vec<u8> {
        let mut lines = LineWriter::new(MAGIC, &self.header);
        for repository in &self.repositories {
            let sources = repository.sources.iter().map(String::as_str);
            lines.line("repository", [repository.path.as_str()].into_iter().chain(sources));
            for tag in &repository.tags {
                let digest = encode_digest(&tag.digest);
                let words = [tag.tag.as_str(), &digest].into_iter();
                let kind = if tag.is_carried { "t" } else { "=" };
                lines.line(kind, words.chain(tag.source.as_deref()));
            }
            for (subject, referrer) in &repository.referrers {
                lines.line("r", [encode_digest(subject).as_str(), &encode_digest(referrer)]);
            }
            for (kind, contents) in [("M", &repository.manifests), ("B", &repository.blobs)] {
                for content in contents {
                    lines.line(kind, [encode_digest(&content.digest).as_str(), &content.size.to_string()]);
                }
            }
            for digest in &repository.left_out_manifests {
                lines.line("m", [encode_digest(digest).as_str()]);
            }
            for blob in &repository.left_out_blobs {
                let (digest, size) = (encode_digest(&blob.digest), blob.size.to_string());
                let words = [digest.as_str(), &size].into_iter();
                lines.line("b", words.chain(blob.repository.as_ref().map(RepositoryName::as_str)));
            }
        }
        lines.finish()
    }

    /// Reads an index. `label` names it in errors.
    pub fn decode(bytes: &[u8], label: &str) -> Result<BundleIndex> {
        let mut repositories: Vec<BundledRepository> = Vec::new();
        let header = read_lines(bytes, MAGIC, label, |mut line| {
            if line.kind == "repository" {
                if repositories.len() >= MAX_REPOSITORIES {
                    return Err(line.error(&format!("it has more than {MAX_REPOSITORIES} repositories")));
                }
                let mut repository = BundledRepository::new(line.word(|word| word.parse().ok())?);
                repository.sources.extend(std::iter::from_fn(|| line.optional()));
                repositories.push(repository);
                return Ok(());
            }
            match repositories.last_mut() {
                Some(repository) => repository.read_line(&mut line),
                None => Err(line.error("it belongs to no repository")),
            }
        })?;
        Ok(BundleIndex { header, repositories })
    }

    /// Returns the image that a tag comes from.
    pub fn source_of(repository: &BundledRepository, tag: &BundledTag) -> Option<String> {
        let first = || repository.sources.first().map(|source| format!("{source}:{}", tag.tag));
        tag.source.clone().or_else(first)
    }

    /// Iterates over all wanted tags with their repositories.
    pub fn tags(&self) -> impl Iterator<Item = (&BundledRepository, &BundledTag)> {
        self.repositories.iter().flat_map(|repository| repository.tags.iter().map(move |tag| (repository, tag)))
    }
}

impl BundledRepository {
    fn read_line(&mut self, line: &mut TextLine<'_>) -> Result<()> {
        match line.kind {
            "t" | "=" => {
                let (tag, digest) = (line.word(|word| word.parse().ok())?, line.word(decode_digest)?);
                let source = line.optional();
                self.tags.push(BundledTag { tag, digest, is_carried: line.kind == "t", source });
            }
            "r" => self.referrers.push((line.word(decode_digest)?, line.word(decode_digest)?)),
            "M" => self.manifests.push(read_content(line)?),
            "B" => self.blobs.push(read_content(line)?),
            "m" => self.left_out_manifests.push(line.word(decode_digest)?),
            "b" => {
                let ContentSize { digest, size } = read_content(line)?;
                let repository = match line.optional() {
                    Some(word) => Some(word.parse().map_err(|_| line.error("it names no repository"))?),
                    None => None,
                };
                self.left_out_blobs.push(LeftOutBlob { digest, size, repository });
            }
            kind => return Err(line.error(&format!("`{kind}` is no kind of line"))),
        }
        Ok(())
    }
}

fn read_content(line: &mut TextLine<'_>) -> Result<ContentSize> {
    Ok(ContentSize { digest: line.word(decode_digest)?, size: line.word(|word| word.parse().ok())? })
}

#[cfg(test)]
mod tests {
    use imgsync_oci::error::ErrorKind;

    use super::*;

    fn sample() -> BundleIndex {
        let digest = |text: &str| Digest::sha256(text.as_bytes());
        let mut repository = BundledRepository::new("library/nginx".parse().unwrap());
        repository.sources = vec!["docker.io/library/nginx".to_owned(), "oci:/a folder/100%".to_owned()];
        let tag = |tag: &str, is_carried| BundledTag {
            tag: tag.parse().unwrap(),
            digest: digest(tag),
            is_carried,
            source: None,
        };
        repository.tags = vec![tag("1.27", true), tag("1.26", false)];
        repository.tags[0].source = Some("gcr.io/nginx:v1.27".to_owned());
        repository.referrers = vec![(digest("1.27"), digest("signature"))];
        repository.manifests = vec![ContentSize { digest: digest("1.27"), size: 12 }];
        repository.blobs = vec![ContentSize { digest: digest("layer"), size: u64::MAX }];
        repository.left_out_manifests = vec![digest("child")];
        let base = LeftOutBlob { digest: digest("base"), size: 7, repository: Some("library/debian".parse().unwrap()) };
        repository.left_out_blobs = vec![base.clone(), LeftOutBlob { repository: None, ..base }];
        let header = BundleHeader {
            created: "2026-05-01T08:00:00Z".to_owned(),
            imgsync: "3.0.0".to_owned(),
            title: "a\nb".to_owned(),
            have: vec!["far.example/mirror".to_owned()],
            program: None,
            missing_count: 0,
            missing: Vec::new(),
        };
        BundleIndex { header, repositories: vec![repository] }
    }

    #[test]
    fn an_index_reads_back() {
        let bytes = sample().encode();
        assert!(BundleIndex::is_index(&bytes));
        assert_eq!(BundleIndex::decode(&bytes, "x").unwrap(), sample());
    }

    #[test]
    fn a_truncated_index_is_refused_wherever_it_ends() {
        let bytes = sample().encode();
        for end in 0..bytes.len() {
            let error = BundleIndex::decode(&bytes[..end], "x").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{end}: {error}");
        }
    }

    #[test]
    fn a_line_that_is_missing_doubled_or_unknown_is_refused() {
        let text = String::from_utf8(sample().encode()).unwrap();
        let line = text.lines().nth(3).unwrap();
        for changed in [
            text.replacen(&format!("{line}\n"), "", 1),
            text.replacen(&format!("{line}\n"), &format!("{line}\n{line}\n"), 1),
            text.replacen("\nt ", "\nx ", 1),
            text.replacen("\nrepository", "\nrepo", 1),
            format!("{text}\n"),
        ] {
            BundleIndex::decode(changed.as_bytes(), "x").unwrap_err();
        }
    }

    #[test]
    fn a_newer_format_names_both_versions() {
        let text = String::from_utf8(sample().encode()).unwrap();
        let newer = text.replacen("imgsync-bundle 1", "imgsync-bundle 2", 1).replacen("3.0.0", "9.1.0", 1);
        let error = BundleIndex::decode(newer.as_bytes(), "bundle.tar").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("has format 2, written by imgsync 9.1.0"), "{error}");
    }
}
