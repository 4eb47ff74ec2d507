//! Plans an archive: all members with their sizes, in order, before the first byte is written.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use imgsync_layout::docker_manifest::{
    DockerImage, blob_path, choose_platform, encode_images, familiar_name, is_image_config, machine_platform,
};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Algorithm, Descriptor, Digest, Hasher, Manifest, ManifestKind, Platform};

use super::docker::DockerSummary;
use super::index::{ArchiveImage, ArchivedName, check_names, encode_index};
use super::member::{Member, MemberContent, TRAILER_BYTES};

/// Operation of planning, for messages.
const OPERATION: &str = "planning an archive";
/// Content of `oci-layout`.
const LAYOUT_MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Members of an archive, in order. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ArchivePlan {
    members: Arc<[Member]>,
    total_size: u64,
    docker: DockerSummary,
}

/// Collects the content of an archive. What is added twice is in the archive once, and the order in which content is
/// added does not matter.
#[derive(Debug, Clone)]
pub struct ArchivePlanner {
    preferred_platform: Platform,
    pub(crate) images: Vec<ArchiveImage>,
    files: BTreeMap<String, Bytes>,
    pub(crate) contents: Vec<Content>,
    pub(crate) by_digest: HashMap<Digest, u32>,
    /// Structure of the manifests, by the number of their content.
    pub(crate) references: HashMap<u32, References>,
    /// Where blobs are in their sources, for those that are best read in that order.
    positions: HashMap<Digest, (String, u64)>,
}

#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) digest: Digest,
    size: u64,
    is_manifest: bool,
    pub(crate) is_included: bool,
}

/// What a manifest references, by numbers of contents.
#[derive(Debug, Clone)]
pub(crate) enum References {
    Index { children: Vec<(Option<Platform>, u32)> },
    Image { config: Option<u32>, layers: Box<[u32]>, is_image: bool },
}

impl ArchivePlan {
    /// Returns the members in order.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Returns the size of the archive in bytes.
    pub fn total_size(&self) -> u64 {
        self.total_size
    }

    /// Whether the archive would have no image.
    pub fn is_empty(&self) -> bool {
        !self.members.iter().any(|member| matches!(member.content, MemberContent::Manifest(_)))
    }

    /// Returns the number of blobs, and their bytes.
    pub fn blobs(&self) -> (usize, u64) {
        let blobs = self.members.iter().filter(|member| matches!(member.content, MemberContent::Blob(_)));
        blobs.fold((0, 0), |(count, bytes), member| (count + 1, bytes + member.size))
    }

    /// Returns a digest of everything that the bytes of the archive depend on.
    pub fn fingerprint(&self) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        for member in self.members.iter() {
            hasher.update(&member.header());
            if let MemberContent::Inline(bytes) = &member.content {
                hasher.update(bytes);
            }
        }
        hasher.finish()
    }

    /// Returns what `manifest.json` tells of the images.
    pub fn docker(&self) -> &DockerSummary {
        &self.docker
    }
}

impl ArchivePlanner {
    /// Creates an empty planner. `preferred_platform` is the platform of multi-platform images in `manifest.json`, if
    /// they have it.
    pub fn new(preferred_platform: Platform) -> ArchivePlanner {
        ArchivePlanner {
            preferred_platform,
            images: Vec::new(),
            files: BTreeMap::new(),
            contents: Vec::new(),
            by_digest: HashMap::new(),
            references: HashMap::new(),
            positions: HashMap::new(),
        }
    }

    /// Writes blobs in the order in which a source has them that can only be read forward: its name, and the offset of
    /// the blob there. All others come before.
    pub fn set_position(&mut self, blob: &Digest, source: &str, offset: u64) {
        self.positions.insert(blob.clone(), (source.to_owned(), offset));
    }

    /// Creates an empty planner that prefers Linux on the architecture of this machine.
    pub fn for_this_machine() -> ArchivePlanner {
        ArchivePlanner::new(machine_platform())
    }

    /// Adds an image or a referrer to `index.json`.
    pub fn add_image(&mut self, image: ArchiveImage) {
        self.images.push(image);
    }

    /// Adds a file of the caller's, which loaders of images ignore. It comes before the manifests.
    pub fn add_file(&mut self, path: impl Into<String>, bytes: impl Into<Bytes>) {
        self.files.insert(path.into(), bytes.into());
    }

    /// Adds a manifest or an index, without the content that it references.
    pub fn add_manifest(&mut self, manifest: &Manifest) -> Result<()> {
        let number = self.register(manifest.digest(), manifest.bytes().len() as u64)?;
        let content = &mut self.contents[number as usize];
        (content.is_manifest, content.is_included) = (true, true);
        if self.references.contains_key(&number) {
            return Ok(());
        }
        let references = match manifest.kind() {
            ManifestKind::Index { manifests } => {
                let register = |child: &Descriptor| Ok((child.platform.clone(), self.register_descriptor(child)?));
                References::Index { children: manifests.iter().map(register).collect::<Result<_>>()? }
            }
            ManifestKind::Image { config, layers } => References::Image {
                is_image: config.as_ref().is_some_and(|config| is_image_config(&config.media_type)),
                config: config.as_ref().map(|config| self.register_descriptor(config)).transpose()?,
                layers: layers.iter().map(|layer| self.register_descriptor(layer)).collect::<Result<_>>()?,
            },
        };
        self.references.insert(number, references);
        Ok(())
    }

    /// Adds a config or a layer. Content that manifests reference but that is never added is not in the archive.
    pub fn add_blob(&mut self, blob: &Descriptor) -> Result<()> {
        let number = self.register_descriptor(blob)?;
        self.contents[number as usize].is_included = true;
        Ok(())
    }

    fn register_descriptor(&mut self, descriptor: &Descriptor) -> Result<u32> {
        self.register(&descriptor.digest, descriptor.size)
    }

    fn register(&mut self, digest: &Digest, size: u64) -> Result<u32> {
        if let Some(number) = self.by_digest.get(digest) {
            let known = self.contents[*number as usize].size;
            if known != size {
                let detail = format!("{digest} has {known} bytes in one manifest and {size} bytes in another");
                return Err(Error::new(ErrorKind::InvalidResponse, OPERATION, detail));
            }
            return Ok(*number);
        }
        let number = u32::try_from(self.contents.len()).map_err(|_| {
            Error::new(ErrorKind::Unsupported, OPERATION, "more than 4,294,967,295 manifests and blobs")
        })?;
        self.contents.push(Content { digest: digest.clone(), size, is_manifest: false, is_included: false });
        self.by_digest.insert(digest.clone(), number);
        Ok(number)
    }

    /// Makes the plan.
    pub fn build(mut self) -> Result<ArchivePlan> {
        self.images.sort_by_cached_key(ArchiveImage::sort_key);
        self.images.dedup();
        check_names(&self.images)?;
        let (docker_images, mut docker) = self.docker_images();
        let mut members = vec![
            Member::inline("oci-layout", LAYOUT_MARKER),
            Member::inline("index.json", encode_index(&self.images)?),
        ];
        if !docker_images.is_empty() {
            let encoded = encode_images(&docker_images)
                .map_err(|error| Error::new(ErrorKind::Invalid, OPERATION, error.to_string()))?;
            docker.names = docker_images.iter().map(|image| image.repo_tags.len()).sum();
            docker.list_size = encoded.len() as u64;
            members.push(Member::inline("manifest.json", encoded));
        }
        let files = std::mem::take(&mut self.files);
        members.extend(files.into_iter().map(|(path, bytes)| Member::inline(path, bytes)));
        for number in self.ordered_contents() {
            let Content { digest, size, is_manifest, .. } = &self.contents[number as usize];
            let content = match is_manifest {
                true => MemberContent::Manifest(digest.clone()),
                false => MemberContent::Blob(digest.clone()),
            };
            members.push(Member { path: blob_path(digest), size: *size, content });
        }
        let total_size = members.iter().map(Member::archived_size).sum::<u64>() + TRAILER_BYTES;
        Ok(ArchivePlan { members: members.into(), total_size, docker })
    }

    /// Orders the content: manifests, configs, layers, in the order of the images.
    fn ordered_contents(&self) -> Vec<u32> {
        let mut manifests = Vec::new();
        let mut seen = HashSet::new();
        let roots = self.images.iter().filter_map(|image| self.by_digest.get(&image.root.digest)).copied();
        let mut unreached: Vec<u32> = self.references.keys().copied().collect();
        unreached.sort_by_key(|number| &self.contents[*number as usize].digest);
        for root in roots.chain(unreached) {
            let mut open = vec![root];
            while let Some(number) = open.pop() {
                if !self.references.contains_key(&number) || !seen.insert(number) {
                    continue;
                }
                manifests.push(number);
                if let Some(References::Index { children }) = self.references.get(&number) {
                    open.extend(children.iter().rev().map(|(_, child)| *child));
                }
            }
        }
        let (mut configs, mut layers) = (Vec::new(), Vec::new());
        for number in &manifests {
            if let References::Image { config: Some(config), .. } = &self.references[number]
                && seen.insert(*config)
            {
                configs.push(*config);
            }
        }
        for number in &manifests {
            // An index may list blobs.
            match &self.references[number] {
                References::Image { layers: own, .. } => layers.extend(own.iter().filter(|layer| seen.insert(**layer))),
                References::Index { children } => {
                    layers.extend(children.iter().map(|(_, child)| *child).filter(|child| seen.insert(*child)));
                }
            }
        }
        let all = 0..u32::try_from(self.contents.len()).unwrap_or(u32::MAX);
        let mut others: Vec<u32> = all.filter(|number| seen.insert(*number)).collect();
        others.sort_by_key(|number| &self.contents[*number as usize].digest);
        let mut blobs: Vec<u32> = configs.into_iter().chain(layers).chain(others).collect();
        if !self.positions.is_empty() {
            blobs.sort_by_key(|number| self.positions.get(&self.contents[*number as usize].digest));
        }
        let ordered = manifests.into_iter().chain(blobs);
        ordered.filter(|number| self.contents[*number as usize].is_included).collect()
    }

    fn docker_images(&self) -> (Vec<DockerImage>, DockerSummary) {
        let (mut images, mut summary) = (Vec::<DockerImage>::new(), DockerSummary::default());
        let mut by_content: HashMap<(u32, &[u32]), usize> = HashMap::new();
        for image in self.images.iter().filter(|image| image.subject.is_none()) {
            let Some((config, layers, platform)) = self.docker_image(&image.root.digest) else {
                let name = image.name.as_ref().map(ToString::to_string);
                summary.leave_out(name.unwrap_or_else(|| image.root.digest.to_string()));
                continue;
            };
            if let Some(platform) = platform {
                summary.reduced += 1;
                summary.platform.get_or_insert(platform);
            }
            let tag = match &image.name {
                Some(ArchivedName::Full(name)) => familiar_name(name),
                Some(ArchivedName::Tag(_)) | None => None,
            };
            let at = *by_content.entry((config, layers)).or_insert_with(|| {
                let path = |number: &u32| blob_path(&self.contents[*number as usize].digest);
                let (config, layers) = (path(&config), layers.iter().map(path).collect());
                images.push(DockerImage { config, repo_tags: Vec::new(), layers });
                images.len() - 1
            });
            images[at].repo_tags.extend(tag);
        }
        summary.images = images.len();
        (images, summary)
    }

    /// Returns the config and layers of an image that is whole in this archive, and the platform that was selected of
    /// several.
    fn docker_image(&self, root: &Digest) -> Option<(u32, &[u32], Option<Platform>)> {
        let whole = |number: &u32| -> Option<(u32, &[u32])> {
            let References::Image { config: Some(config), layers, is_image: true } = self.references.get(number)?
            else {
                return None;
            };
            let is_included = |number: &u32| self.contents[*number as usize].is_included;
            (is_included(config) && layers.iter().all(is_included)).then_some((*config, layers))
        };
        let root = self.by_digest.get(root)?;
        if let Some((config, layers)) = whole(root) {
            return Some((config, layers, None));
        }
        let mut candidates = Vec::new();
        let mut open = vec![(None, *root)];
        let mut seen = HashSet::new();
        while let Some((platform, number)) = open.pop() {
            match self.references.get(&number) {
                Some(References::Index { children }) if seen.insert(number) => {
                    open.extend(children.iter().rev().cloned());
                }
                Some(References::Image { .. }) if platform.as_ref().is_none_or(Platform::names_a_system) => {
                    candidates.extend(whole(&number).map(|image| (platform, image)));
                }
                _ => {}
            }
        }
        let (platform, (config, layers)) = choose_platform(&candidates, &self.preferred_platform)?;
        Some((*config, layers, platform.clone().filter(|_| candidates.len() > 1)))
    }
}
