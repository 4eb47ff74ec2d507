//! Images named in files: reads files and folders, and finds the registries of their images.

mod file_versions;
mod search;

use std::collections::BTreeSet;
use std::path::Path;

use imgsync_config::RuleSource;
use imgsync_image_names::Certainty;
use imgsync_oci::RegistryName;

pub(crate) use file_versions::FileVersions;
pub use search::ImageSearch;

/// Returns the registries of a source that names each image. Files that cannot be read have none: their listing fails.
pub async fn named_registries(source: &RuleSource, folder: &Path) -> BTreeSet<RegistryName> {
    match source {
        RuleSource::Digests(source) => BTreeSet::from([source.registry.clone()]),
        RuleSource::Images(paths) => {
            let paths: Vec<_> = paths.iter().map(|path| folder.join(path)).collect();
            let read = move || {
                let mut search = ImageSearch::default();
                _ = paths.iter().try_for_each(|path| search.add_path(path));
                search.images.iter(Certainty::Sure).map(|(image, _)| image.registry.clone()).collect()
            };
            tokio::task::spawn_blocking(read).await.unwrap_or_default()
        }
        RuleSource::Repositories(_) | RuleSource::Preset(_) | RuleSource::Layout(_) | RuleSource::Archive(..) => {
            BTreeSet::new()
        }
    }
}
