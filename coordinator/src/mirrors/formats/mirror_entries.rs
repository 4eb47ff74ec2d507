//! Entries of a source prefix and its mirrors, as registries.conf and OpenShift have them: the longest prefix of a name
//! decides, and the rest of the name follows the mirror's.

use std::collections::{BTreeMap, HashSet};

use imgsync_oci::RegistryName;

use super::sources_of_prefixes;
use crate::mirrors::name_mapping::{NameMapping, NamePrefix};

/// A mirror of a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PrefixMirror {
    /// Its name.
    pub(super) target: NamePrefix,
    /// Whether it has the digests of the source.
    pub(super) keeps_digests: bool,
}

/// Returns the mirrors of each source prefix. A registry whose names all keep their paths has one entry; a repository whose
/// name changes has its own. Registries that share a mirror have an entry for each repository, so that no name of one is
/// looked up among those of the other.
pub(super) fn mirror_entries(mappings: &[NameMapping]) -> BTreeMap<NamePrefix, Vec<PrefixMirror>> {
    let sources = sources_of_prefixes(mappings.iter());
    let whole = |mapping: &NameMapping| -> Option<(NamePrefix, NamePrefix)> {
        let added = (mapping.target.registry.clone(), mapping.added_prefix()?.to_owned());
        let is_shared = sources.get(&added).is_some_and(|registries| registries.len() > 1);
        let registry = |registry: &RegistryName, path: String| NamePrefix { registry: registry.clone(), path };
        (!is_shared).then(|| (registry(&mapping.source.registry, String::new()), registry(&added.0, added.1)))
    };
    let changed: HashSet<&NamePrefix> =
        mappings.iter().filter(|mapping| whole(mapping).is_none()).map(|mapping| &mapping.source).collect();
    let mut entries: BTreeMap<NamePrefix, Vec<PrefixMirror>> = BTreeMap::new();
    let mut add = |source: NamePrefix, target: NamePrefix, keeps_digests: bool| {
        let mirrors = entries.entry(source).or_default();
        match mirrors.iter_mut().find(|mirror| mirror.target == target) {
            // A digest that the mirror lacks is pulled from the source.
            Some(mirror) => mirror.keeps_digests |= keeps_digests,
            None => mirrors.push(PrefixMirror { target, keeps_digests }),
        }
    };
    for mapping in mappings {
        let (source, target) = (&mapping.source, &mapping.target);
        match whole(mapping) {
            Some((registry, mirror)) => {
                add(registry, mirror, mapping.keeps_digests);
                // The longer entry hides the one of the registry.
                if changed.contains(source) {
                    add(source.clone(), target.clone(), mapping.keeps_digests);
                }
            }
            None => add(source.clone(), target.clone(), mapping.keeps_digests),
        }
    }
    entries
}
