//! Bundles as endpoints: the collector of `bundle create` as a target, the images of `bundle load` as a source.

use std::path::PathBuf;
use std::sync::Arc;

use imgsync_bundle::{BUNDLE_REGISTRY, BundleCollector, BundleImages, BundleRepository, CollectorRepository};
use imgsync_layout::{LayoutRef, QualifiedRepositoryName};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Manifest, MediaType, Reference};
use imgsync_registry::{Context, ManifestHead, ManifestPut, ManifestRef, TrafficCounters};

/// A bundle that takes part in the copies of a [`Copier`](super::Copier).
#[derive(Debug, Clone)]
pub enum BundleSide {
    /// Images with the registry name [`BUNDLE_REGISTRY`] are collected.
    Collect(BundleCollector),
    /// Images of the layout at `location` are those of a bundle.
    Load {
        /// Path in the locators of tasks.
        location: PathBuf,
        /// The images.
        images: BundleImages,
    },
}

impl BundleSide {
    /// Returns the repository of a bundle that a source names.
    pub(super) fn source(
        &self,
        image: &LayoutRef,
        context: &Context,
        counters: &Arc<TrafficCounters>,
    ) -> Option<BundleRepository> {
        let BundleSide::Load { location, images } = self else { return None };
        let QualifiedRepositoryName { registry, repository } = image.repository()?;
        let is_here = image.dir == *location && registry.as_str() == BUNDLE_REGISTRY;
        is_here.then(|| images.repository(&repository, context, counters))
    }

    /// Returns the repository of a bundle that a target names.
    pub(super) fn target(&self, image: &Reference) -> Option<CollectorRepository> {
        let BundleSide::Collect(collector) = self else { return None };
        (image.registry.as_str() == BUNDLE_REGISTRY).then(|| collector.repository(&image.repository))
    }
}

/// Returns the digest of a manifest that was collected or that the receiver has.
pub(super) fn collected_head(target: &CollectorRepository, reference: &ManifestRef) -> Option<ManifestHead> {
    target.head_manifest(reference).map(|digest| ManifestHead { digest, media_type: MediaType::Missing })
}

/// Collects a manifest.
pub(super) fn collect_manifest(
    target: &CollectorRepository,
    reference: &ManifestRef,
    manifest: &Manifest,
) -> Result<ManifestPut> {
    target.put_manifest(reference, manifest)?;
    Ok(ManifestPut { subject_kept: true, refusal: None })
}

/// Reads a manifest that was collected.
pub(super) fn read_collected(target: &CollectorRepository, reference: &ManifestRef) -> Result<Manifest> {
    let operation = format!("reading {BUNDLE_REGISTRY}/{}:{reference}", target.path());
    let bytes = target.read_manifest(reference)?;
    let bytes = bytes.ok_or_else(|| Error::new(ErrorKind::NotFound, &operation, "the bundle does not have it"))?;
    Manifest::parse(bytes, &MediaType::Missing)
        .map_err(|error| Error::new(ErrorKind::InvalidResponse, &operation, error.to_string()))
}
