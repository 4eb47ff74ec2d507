//! What a bundle holds: its index, from what a run has collected, and the members of its archive, from the index.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use imgsync_archive::{ArchiveImage, ArchivePlan, ArchivePlanner, ArchivedName};
use imgsync_bundle::{
    BundleCollector, BundleHeader, BundleIndex, BundledRepository, BundledTag, CollectedRepository, ContentSize,
    INDEX_MEMBER, LeftOutBlob, PROGRAM_MEMBER, SIGNATURE_MEMBER,
};
use imgsync_layout::{ImageName, LayoutRef};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, DigestTag, Manifest, MediaType, Reference, RepositoryName, Tag};

const OPERATION: &str = "planning the bundle";

/// A tag that the rules select.
#[derive(Debug, Clone)]
pub(crate) struct WantedTag {
    /// Path below the target of `bundle load`.
    pub(crate) path: RepositoryName,
    /// The tag.
    pub(crate) tag: Tag,
    /// Repository that it comes from: `registry/repository`, or `oci:FOLDER:NAME`.
    pub(crate) source: String,
    /// The tag there.
    pub(crate) source_tag: Tag,
}

/// Splits tags into those whose images need none of the content that is missing, and the others.
pub(crate) fn split_by_content(
    collector: &BundleCollector,
    wanted: Vec<WantedTag>,
    missing: &HashSet<Digest>,
) -> Result<(Vec<WantedTag>, Vec<WantedTag>)> {
    if missing.is_empty() {
        return Ok((wanted, Vec::new()));
    }
    let mut repositories: HashMap<RepositoryName, (CollectedRepository, Referrers)> = HashMap::new();
    let (mut whole, mut lacking) = (Vec::new(), Vec::new());
    for tag in wanted {
        let (collected, referrers) = repositories.entry(tag.path.clone()).or_insert_with(|| {
            let collected = collector.collected(&tag.path);
            let referrers = referrers_by_subject(&collected);
            (collected, referrers)
        });
        let root = collector.tag(&tag.path, &tag.tag).ok_or_else(|| lost(&tag.path, &tag.tag))?;
        let lacks = needs_any(collector, (collected, referrers), root, missing)?;
        if lacks { &mut lacking } else { &mut whole }.push(tag);
    }
    Ok((whole, lacking))
}

/// Whether an image, or what refers to it, needs some of this content.
fn needs_any(
    collector: &BundleCollector,
    (collected, referrers): (&CollectedRepository, &Referrers),
    root: Digest,
    content: &HashSet<Digest>,
) -> Result<bool> {
    let (mut open, mut seen) = (vec![root], HashSet::new());
    while let Some(digest) = open.pop() {
        if !seen.insert(digest.clone()) || !collected.manifests.contains(&digest) {
            continue;
        }
        let manifest = read_manifest(collector, &digest)?;
        let parts = manifest.children().into_iter().chain(manifest.blobs_with(true));
        for part in parts {
            if content.contains(&part.digest) && collected.blobs.contains(&part.digest) {
                return Ok(true);
            }
            open.push(part.digest.clone());
        }
        open.extend(referrers.get(&digest).into_iter().flatten().cloned());
    }
    Ok(false)
}

/// What refers to each manifest of a repository, also by a digest tag.
type Referrers = HashMap<Digest, Vec<Digest>>;

fn referrers_by_subject(collected: &CollectedRepository) -> Referrers {
    let mut referrers = Referrers::new();
    let tagged =
        collected.tags.iter().filter_map(|(tag, manifest)| Some((DigestTag::subject(tag.as_str())?, manifest)));
    let listed = collected.referrers.iter().map(|(subject, manifest)| (subject.clone(), manifest));
    for (subject, manifest) in listed.chain(tagged) {
        referrers.entry(subject).or_default().push(manifest.clone());
    }
    referrers
}

/// Builds the index of a bundle.
pub(crate) fn build_index(
    collector: &BundleCollector,
    wanted: &[WantedTag],
    header: BundleHeader,
) -> Result<BundleIndex> {
    let mut by_path: BTreeMap<&RepositoryName, Vec<&WantedTag>> = BTreeMap::new();
    for tag in wanted {
        by_path.entry(&tag.path).or_default().push(tag);
    }
    let repositories = by_path.into_iter().map(|(path, wanted)| build_repository(collector, path, &wanted));
    Ok(BundleIndex { header, repositories: repositories.collect::<Result<_>>()? })
}

fn build_repository(
    collector: &BundleCollector,
    path: &RepositoryName,
    wanted: &[&WantedTag],
) -> Result<BundledRepository> {
    let (have, collected) = (collector.have(), collector.collected(path));
    let mut repository = BundledRepository::new(path.clone());
    let sources: BTreeSet<&str> = wanted.iter().map(|tag| tag.source.as_str()).collect();
    repository.sources = sources.into_iter().map(str::to_owned).collect();
    let mut tags = BTreeMap::new();
    for wanted in wanted {
        let digest = collector.tag(path, &wanted.tag).ok_or_else(|| lost(path, &wanted.tag))?;
        let source = format!("{}:{}", wanted.source, wanted.source_tag);
        let is_usual = Some(&wanted.source) == repository.sources.first() && wanted.source_tag == wanted.tag;
        tags.insert(wanted.tag.clone(), (digest, (!is_usual).then_some(source)));
    }
    let mut walk = Walk { collector, path, collected: &collected, repository: &mut repository, seen: HashSet::new() };
    for (digest, _) in tags.values() {
        if !have.has_manifest(path.as_str(), digest) {
            walk.add_manifest(digest)?;
        }
    }
    // What refers to an image that could not be collected whole stays behind with it.
    let mut signatures: Vec<(&Tag, &Digest, Digest)> = collected
        .tags
        .iter()
        .filter_map(|(tag, digest)| Some((tag, digest, DigestTag::subject(tag.as_str())?)))
        .collect();
    let mut referrers: Vec<&(Digest, Digest)> = collected.referrers.iter().collect();
    loop {
        let before = signatures.len() + referrers.len();
        let mut found = Vec::new();
        let is_there = |subject: &Digest| walk.seen.contains(subject) || have.has_manifest(path.as_str(), subject);
        signatures.retain(|(tag, digest, subject)| {
            let is_found = is_there(subject);
            if is_found {
                tags.entry((*tag).clone()).or_insert_with(|| ((*digest).clone(), None));
                found.push((None, *digest));
            }
            !is_found
        });
        referrers.retain(|pair| {
            let (subject, referrer) = *pair;
            let is_found = is_there(subject);
            if is_found {
                found.push((Some(subject), referrer));
            }
            !is_found
        });
        for (subject, digest) in found {
            if have.has_manifest(path.as_str(), digest) {
                continue;
            }
            walk.add_manifest(digest)?;
            walk.repository.referrers.extend(subject.map(|subject| (subject.clone(), digest.clone())));
        }
        if signatures.len() + referrers.len() == before {
            break;
        }
    }
    for (tag, (digest, source)) in tags {
        let is_carried = !have.has_manifest(path.as_str(), &digest);
        repository.tags.push(BundledTag { tag, digest, is_carried, source });
    }
    repository.referrers.sort();
    repository.manifests.sort_by(|a, b| a.digest.cmp(&b.digest));
    repository.blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
    repository.left_out_manifests.sort();
    repository.left_out_blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
    Ok(repository)
}

fn lost(path: &RepositoryName, tag: &Tag) -> Error {
    let detail = format!("{path}:{tag} is not among what was collected");
    Error::new(ErrorKind::Local, OPERATION, detail).with_hint("run the command again with --restart")
}

/// Walks the manifests of a repository.
struct Walk<'a> {
    collector: &'a BundleCollector,
    path: &'a RepositoryName,
    collected: &'a CollectedRepository,
    repository: &'a mut BundledRepository,
    seen: HashSet<Digest>,
}

impl Walk<'_> {
    fn add_manifest(&mut self, root: &Digest) -> Result<()> {
        let mut open = vec![root.clone()];
        while let Some(digest) = open.pop() {
            if !self.seen.insert(digest.clone()) {
                continue;
            }
            let manifest = read_manifest(self.collector, &digest)?;
            let is_left_out = self.collector.have().has_manifest(self.path.as_str(), &digest);
            match is_left_out {
                true => self.repository.left_out_manifests.push(digest),
                false => {
                    let size = manifest.bytes().len() as u64;
                    self.repository.manifests.push(ContentSize { digest, size });
                }
            }
            for child in manifest.children() {
                // A sparse index lists others.
                if self.collected.manifests.contains(&child.digest) {
                    open.push(child.digest.clone());
                } else if self.collected.blobs.contains(&child.digest) {
                    self.add_blob(child, is_left_out);
                }
            }
            for blob in manifest.blobs_with(true) {
                if self.collected.blobs.contains(&blob.digest) {
                    self.add_blob(blob, is_left_out);
                }
            }
        }
        Ok(())
    }

    fn add_blob(&mut self, blob: &Descriptor, is_left_out: bool) {
        if !self.seen.insert(blob.digest.clone()) {
            return;
        }
        let holder = self.collector.have().repository_with_blob(self.path, &blob.digest);
        let (digest, size) = (blob.digest.clone(), blob.size);
        match holder.or_else(|| is_left_out.then(|| self.path.clone())) {
            Some(holder) => {
                let repository = Some(holder).filter(|holder| holder != self.path);
                self.repository.left_out_blobs.push(LeftOutBlob { digest, size, repository });
            }
            None => self.repository.blobs.push(ContentSize { digest, size }),
        }
    }
}

fn read_manifest(collector: &BundleCollector, digest: &Digest) -> Result<Manifest> {
    let damaged = |detail: String| {
        Error::new(ErrorKind::Local, OPERATION, format!("the collected manifest {digest}: {detail}"))
            .with_hint("run the command again with --restart")
    };
    let bytes = collector.manifest_bytes(digest)?.ok_or_else(|| damaged("it is missing".to_owned()))?;
    if !digest.verifies(&bytes) {
        return Err(damaged("its content has another digest".to_owned()));
    }
    let media_type = collector.manifest_descriptor(digest).map_or(MediaType::Missing, |found| found.media_type);
    Manifest::parse_as(bytes, digest.clone(), &media_type).map_err(|error| damaged(error.to_string()))
}

/// Builds the archive of a bundle from its index.
pub(crate) fn build_plan(
    collector: &BundleCollector,
    index: &BundleIndex,
    index_bytes: &[u8],
    signature: Option<&str>,
    program: Option<Bytes>,
) -> Result<ArchivePlan> {
    let mut planner = ArchivePlanner::for_this_machine();
    planner.add_file(INDEX_MEMBER, index_bytes.to_vec());
    if let Some(signature) = signature {
        planner.add_file(SIGNATURE_MEMBER, signature.as_bytes().to_vec());
    }
    if let Some(program) = program {
        planner.add_file(PROGRAM_MEMBER, program);
    }
    let mut names: HashMap<String, Digest> = HashMap::new();
    for repository in &index.repositories {
        let mut references: HashMap<&Digest, Vec<Digest>> = HashMap::new();
        for content in &repository.manifests {
            let manifest = read_manifest(collector, &content.digest)?;
            planner.add_manifest(&manifest)?;
            let parts = manifest.children().into_iter().chain(manifest.blobs());
            references.insert(&content.digest, parts.map(|part| part.digest.clone()).collect());
        }
        for blob in &repository.blobs {
            planner.add_blob(&Descriptor::new(MediaType::Missing, blob.digest.clone(), blob.size))?;
        }
        let carried: HashSet<&Digest> =
            repository.manifests.iter().chain(&repository.blobs).map(|content| &content.digest).collect();
        for tag in repository.tags.iter().filter(|tag| tag.is_carried && is_whole(&tag.digest, &references, &carried)) {
            let Some(root) = collector.manifest_descriptor(&tag.digest) else { continue };
            let name = BundleIndex::source_of(repository, tag).and_then(|source| parse_source(&source));
            // Of two images with one source name, such as those of two platform selections, the first has the name.
            let name =
                name.filter(|name| names.entry(name.to_string()).or_insert_with(|| tag.digest.clone()) == &tag.digest);
            let subject = DigestTag::subject(tag.tag.as_str());
            planner.add_image(ArchiveImage { name: name.map(ArchivedName::Full), root, subject });
        }
        for (subject, referrer) in &repository.referrers {
            if let Some(root) = collector.manifest_descriptor(referrer)
                && is_whole(referrer, &references, &carried)
            {
                planner.add_image(ArchiveImage::referrer(subject.clone(), root));
            }
        }
    }
    planner.build()
}

/// Whether the bundle carries all content of an image.
fn is_whole(root: &Digest, references: &HashMap<&Digest, Vec<Digest>>, carried: &HashSet<&Digest>) -> bool {
    let mut open = vec![root];
    let mut seen = HashSet::new();
    while let Some(digest) = open.pop() {
        if !carried.contains(digest) {
            return false;
        }
        if seen.insert(digest) {
            open.extend(references.get(digest).into_iter().flatten());
        }
    }
    true
}

/// Returns the name of a source for loaders of images.
fn parse_source(source: &str) -> Option<Reference> {
    if !LayoutRef::has_scheme(source) {
        return source.parse().ok();
    }
    match source.parse::<LayoutRef>().ok()?.image {
        Some(ImageName::Full(reference)) => Some(reference),
        _ => None,
    }
}
