//! The parts of a policy that manifests and configs decide: `max_age`, `max_size`, `labels`, `requires_platforms`.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::AtomicBool;

use bytesize::ByteSize;
use futures_util::future::BoxFuture;
use imgsync_model::batch::{ForeignLayers, ImagePolicy};
use imgsync_oci::error::Result;
use imgsync_oci::sanitize::sanitize;
use imgsync_oci::{Descriptor, Digest, Manifest, ManifestKind, Platform};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{CheckedImage, shorten};
use crate::copy::index_entry::EntryContent;
use crate::copy::inspect::MAX_CONFIG_BYTES;
use crate::copy::platform_filter::ATTESTATION_SUBJECT;
use crate::copy::transfer::MAX_INDEX_DEPTH;

/// Annotation with the time at which an image was made, for configs that do not say it.
const CREATED_ANNOTATION: &str = "org.opencontainers.image.created";

/// A walk through the copied manifests of an image.
pub(super) struct ContentCheck<'a> {
    image: &'a CheckedImage<'a>,
    policy: &'a ImagePolicy,
    now: Timestamp,
    /// Of an image that is copied: one that grows old at the target stays.
    max_age_seconds: Option<u64>,
    /// Entries of indexes that were checked, and whether as an attestation.
    seen: HashSet<(Digest, bool)>,
    /// Blobs that were counted.
    counted: HashSet<Digest>,
    size: u64,
    /// Whether there was an image, and not only attestations and blobs.
    has_image: bool,
    platforms: Vec<Platform>,
}

/// The config of an image.
struct ImageConfig(Value);

impl<'a> ContentCheck<'a> {
    pub(super) fn new(image: &'a CheckedImage<'a>, policy: &'a ImagePolicy) -> ContentCheck<'a> {
        let (seen, counted, platforms) = Default::default();
        let max_age_seconds = policy.max_age_seconds.filter(|_| !image.is_at_target);
        let now = Timestamp::now();
        ContentCheck { image, policy, now, max_age_seconds, seen, counted, size: 0, has_image: false, platforms }
    }

    /// Fails if the policy does not allow the image.
    pub(super) async fn run(mut self) -> Result<()> {
        let image = self.image;
        if self.reads_manifests() || !self.policy.requires_platforms.is_empty() {
            self.check_manifest(&image.selected.root, None, &BTreeMap::new(), 0).await?;
        }
        if self.reads_configs() && !self.has_image {
            let part = if self.policy.labels.is_empty() { "max_age" } else { "labels" };
            return Err(image.refusal(&format!("`{part}`: there is no image in it, of which this could be checked")));
        }
        let is_missing = |wanted: &&Platform| !self.platforms.iter().any(|there| there.satisfies(wanted));
        let Some(missing) = self.policy.requires_platforms.iter().find(is_missing) else { return Ok(()) };
        let mut there: Vec<String> = self.platforms.iter().map(ToString::to_string).collect();
        there.sort_unstable();
        there.dedup();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        Err(image.refusal(&format!("`requires_platforms`: not available for {missing}; its platforms: {there}")))
    }

    /// Whether the manifests of an index are read, and not only its entries.
    fn reads_manifests(&self) -> bool {
        self.policy.max_size.is_some() || self.reads_configs()
    }

    fn reads_configs(&self) -> bool {
        self.max_age_seconds.is_some() || !self.policy.labels.is_empty()
    }

    /// Checks a manifest and everything in it. `annotations` are those of the index that contains it.
    fn check_manifest<'b>(
        &'b mut self,
        manifest: &'b Manifest,
        entry: Option<&'b Descriptor>,
        annotations: &'b BTreeMap<String, String>,
        depth: usize,
    ) -> BoxFuture<'b, Result<()>> {
        Box::pin(async move {
            match manifest.kind() {
                ManifestKind::Image { config, .. } => {
                    let has_foreign = self.image.request.foreign_layers == ForeignLayers::Copy;
                    for blob in manifest.blobs_with(has_foreign) {
                        self.count(&blob.digest, blob.size)?;
                    }
                    self.check_image(manifest, entry, config.as_deref(), annotations).await
                }
                ManifestKind::Index { manifests } => {
                    if depth > MAX_INDEX_DEPTH {
                        return Err(self.image.refusal("its indexes are nested too deep"));
                    }
                    let only = self.image.selected.selected_children.as_ref().filter(|_| depth == 0);
                    let inherited = match manifest.parsed().annotations.is_empty() {
                        true => annotations,
                        false => &manifest.parsed().annotations,
                    };
                    for child in manifests.iter().filter(|child| only.is_none_or(|only| only.contains(&child.digest))) {
                        self.check_entry(child, inherited, depth).await?;
                    }
                    Ok(())
                }
            }
        })
    }

    /// Checks an entry of an index.
    async fn check_entry(
        &mut self,
        child: &Descriptor,
        annotations: &BTreeMap<String, String>,
        depth: usize,
    ) -> Result<()> {
        let platform = child.platform.as_ref().filter(|platform| names_machine(platform));
        if !self.reads_manifests()
            && !child.media_type.is_index()
            && let Some(platform) = platform
        {
            self.platforms.push(platform.clone());
            return Ok(());
        }
        if !self.seen.insert((child.digest.clone(), is_attestation(child))) {
            return Ok(());
        }
        // Only its size would count.
        if self.policy.max_size.is_none() && is_attestation(child) && !child.media_type.is_index() {
            return Ok(());
        }
        let endpoints = self.image.endpoints;
        match endpoints.source.resolve_entry(child, &endpoints.source_traffic).await? {
            EntryContent::Manifest(manifest) => {
                self.check_manifest(&manifest, Some(child), annotations, depth + 1).await
            }
            EntryContent::Blob(_) => self.count(&child.digest, child.size),
        }
    }

    /// Counts a blob, once.
    fn count(&mut self, digest: &Digest, size: u64) -> Result<()> {
        if self.policy.max_size.is_none() || !self.counted.insert(digest.clone()) {
            return Ok(());
        }
        self.size = self.size.saturating_add(size);
        match self.policy.max_size {
            Some(max) if self.size > max => {
                let reason = format!("`max_size`: it has more than {}", ByteSize(max));
                Err(self.image.refusal(&reason))
            }
            _ => Ok(()),
        }
    }

    /// Checks the image of one platform, by its config. Attestations have none of their own.
    async fn check_image(
        &mut self,
        manifest: &Manifest,
        entry: Option<&Descriptor>,
        config: Option<&Descriptor>,
        annotations: &BTreeMap<String, String>,
    ) -> Result<()> {
        if entry.is_some_and(is_attestation) {
            return Ok(());
        }
        self.has_image = true;
        let named = entry.and_then(|entry| entry.platform.clone()).filter(names_machine);
        let needs_platform = named.is_none() && !self.policy.requires_platforms.is_empty();
        let config = match self.reads_configs() || needs_platform {
            true => self.read_config(config).await?,
            false => ImageConfig(Value::Null),
        };
        let platform = named.or_else(|| config.platform());
        let label = match &platform {
            Some(platform) if entry.is_some() => format!("{platform} ({}): ", shorten(manifest.digest())),
            _ => String::new(),
        };
        self.platforms.extend(platform);
        for wanted in &self.policy.labels {
            let found = match config.label(&wanted.name) {
                Some(value) if wanted.accepts(value) => continue,
                Some(value) => format!("it has `{}={}`", wanted.name, sanitize(value)),
                None => "the config has no such label".to_owned(),
            };
            return Err(self.image.refusal(&format!("`labels`: {label}`{wanted}` is required, and {found}")));
        }
        let Some(seconds) = self.max_age_seconds else { return Ok(()) };
        let max_age = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
        let of_annotation = || {
            let all = [&manifest.parsed().annotations, annotations];
            all.into_iter().find_map(|annotations| annotations.get(CREATED_ANNOTATION)?.parse::<Timestamp>().ok())
        };
        match config.created().or_else(of_annotation) {
            None => Err(self.image.refusal(&format!("`max_age`: {label}it does not say when it was created"))),
            Some(created) if self.now.duration_since(created) > max_age => {
                let reason = format!("`max_age`: {label}it was created at {created}, more than {max_age:#} ago");
                Err(self.image.refusal(&reason))
            }
            Some(_) => Ok(()),
        }
    }

    /// Reads a config. Artifacts may have none, or one of another kind.
    async fn read_config(&self, config: Option<&Descriptor>) -> Result<ImageConfig> {
        let Some(config) = config.filter(|config| config.size <= MAX_CONFIG_BYTES) else {
            return Ok(ImageConfig(Value::Null));
        };
        let endpoints = self.image.endpoints;
        let bytes =
            endpoints.source.read_small_blob(config, &endpoints.source_traffic, &AtomicBool::new(false)).await?;
        Ok(ImageConfig(serde_json::from_slice(&bytes).unwrap_or_default()))
    }
}

/// Whether an entry of an index is an attestation of BuildKit. No machine runs it, whatever is in it: what has no platform,
/// or an incomplete one, is run by some.
fn is_attestation(entry: &Descriptor) -> bool {
    let of_none = |platform: &Platform| platform.os == "unknown" && platform.architecture == "unknown";
    entry.annotations.contains_key(ATTESTATION_SUBJECT) && entry.platform.as_ref().is_some_and(of_none)
}

/// Whether a platform is one of a machine, and not of an attestation.
fn names_machine(platform: &Platform) -> bool {
    [&platform.os, &platform.architecture].iter().all(|part| !part.is_empty() && part.as_str() != "unknown")
}

impl ImageConfig {
    /// Returns a label.
    fn label(&self, name: &str) -> Option<&str> {
        self.0.get("config")?.get("Labels")?.get(name)?.as_str()
    }

    fn created(&self) -> Option<Timestamp> {
        self.0.get("created")?.as_str()?.parse().ok()
    }

    fn platform(&self) -> Option<Platform> {
        let text = |key: &str| self.0.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let (os, architecture) = (text("os")?, text("architecture")?);
        let variant = text("variant").map(|variant| format!("/{variant}")).unwrap_or_default();
        format!("{os}/{architecture}{variant}").parse().ok()
    }
}
