//! Entries of a source prefix and its mirrors, as registries.conf and OpenShift have them: the longest prefix of a name
//! decides, and the rest of the name follows the mirror's.

use std::collections::{BTreeMap, BTreeSet};

use super::{Expressed, NameRange, SharedNames};
use crate::mirrors::name_mapping::{MappingScope, NameMapping, NamePrefix, count_levels};

/// A mirror of a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PrefixMirror {
    /// Its name.
    pub(super) target: NamePrefix,
    /// Whether it has the digests of the source.
    pub(super) keeps_digests: bool,
    /// Place of its first mapping: mirrors are asked in the order of the rules.
    order: usize,
}

/// The entries, and the mappings that they express.
pub(super) struct MirrorEntries<'a> {
    /// The mirrors of each source prefix.
    pub(super) entries: BTreeMap<NamePrefix, Vec<PrefixMirror>>,
    /// The mappings that they express.
    pub(super) expressed: Expressed<'a, ()>,
}

/// Returns the mirrors of each source prefix, for the mappings that a format accepts. A registry whose names all keep their
/// paths has one entry. A repository has its own if its name changes, if an entry of another repository would hide it, or if
/// the entry of the registry would take names of another source.
pub(super) fn mirror_entries<'a>(
    mappings: &'a [NameMapping],
    shared: &mut SharedNames<'a>,
    accept: impl Fn(&NameMapping) -> Result<(), String>,
) -> MirrorEntries<'a> {
    let accepted: Vec<(usize, &NameMapping)> =
        mappings.iter().enumerate().filter(|(_, mapping)| accept(mapping).is_ok()).collect();
    let mut builder = EntryBuilder { entries: BTreeMap::new(), shared };
    let mut single: BTreeSet<NamePrefix> = BTreeSet::new();
    let mut of_registry: Vec<(usize, &NameMapping)> = Vec::new();
    for (order, mapping) in &accepted {
        match registry_range(mapping).filter(|range| !builder.shared.is_shared(range)) {
            Some(range) => {
                builder.add(range, mapping.keeps_digests, *order);
                of_registry.push((*order, mapping));
            }
            None => {
                if builder.add(prefix_range(mapping), mapping.keeps_digests, *order) {
                    single.insert(mapping.source.clone());
                }
            }
        }
    }
    for (order, mapping) in of_registry {
        // The longest prefix decides: one that has this name, too, hides the entry of the registry.
        if mapping.source.with_ancestors().any(|prefix| single.contains(&prefix)) {
            builder.add(prefix_range(mapping), mapping.keeps_digests, order);
        }
    }
    for (order, mapping) in accepted.iter().filter(|(_, mapping)| mapping.scope != MappingScope::Repository) {
        for (prefix, target) in builder.below(mapping) {
            builder.add(NameRange::of_prefix(prefix, target), mapping.keeps_digests, *order);
        }
    }
    builder.entries.values_mut().for_each(|mirrors| mirrors.sort_by_key(|mirror| mirror.order));
    let expressed = Expressed::split(mappings, |mapping| {
        accept(mapping)?;
        let is_reached = builder.reaches(&mapping.source, &mapping.target)
            && builder.below(mapping).iter().all(|(prefix, target)| builder.reaches(prefix, target));
        match is_reached {
            true => Ok(()),
            false => {
                builder.shared.check(&prefix_range(mapping))?;
                Err("the entry of a longer prefix hides it, and another entry there might pull images of another source: \
                     use `naming: full` or another `to` for one of the rules"
                    .to_owned())
            }
        }
    });
    MirrorEntries { entries: builder.entries, expressed }
}

/// Returns the range of the whole registry of a mapping that keeps paths.
fn registry_range(mapping: &NameMapping) -> Option<NameRange> {
    let added = mapping.added_prefix()?;
    Some(NameRange::of_registry(&mapping.source.registry, &mapping.target.registry, added))
}

fn prefix_range(mapping: &NameMapping) -> NameRange {
    NameRange::of_prefix(mapping.source.clone(), mapping.target.clone())
}

struct EntryBuilder<'a, 'b> {
    entries: BTreeMap<NamePrefix, Vec<PrefixMirror>>,
    shared: &'b mut SharedNames<'a>,
}

impl EntryBuilder<'_, '_> {
    /// Adds a mirror, unless it has images of another source under these names.
    fn add(&mut self, range: NameRange, keeps_digests: bool, order: usize) -> bool {
        if self.shared.check(&range).is_err() {
            return false;
        }
        let NameRange { source, target, .. } = range;
        let mirrors = self.entries.entry(source).or_default();
        match mirrors.iter_mut().find(|mirror| mirror.target == target) {
            // A digest that the mirror lacks is pulled from the source.
            Some(mirror) => {
                mirror.keeps_digests |= keeps_digests;
                mirror.order = mirror.order.min(order);
            }
            None => mirrors.push(PrefixMirror { target, keeps_digests, order }),
        }
        true
    }

    /// Whether the entry that applies to a name has the mirror's name for it.
    fn reaches(&self, source: &NamePrefix, target: &NamePrefix) -> bool {
        let found = source.with_ancestors().find_map(|prefix| Some((self.entries.get(&prefix)?, prefix)));
        let Some((mirrors, prefix)) = found else { return false };
        let below = source.path_below(&prefix).unwrap_or_default();
        mirrors.iter().any(|mirror| mirror.target.child(below) == *target)
    }

    /// Returns the prefixes below a mapping that have names of it, with the names in its mirror.
    fn below(&self, mapping: &NameMapping) -> Vec<(NamePrefix, NamePrefix)> {
        let source = &mapping.source;
        let from_there = self.entries.range(source.clone()..).map(|(prefix, _)| prefix);
        from_there
            .take_while(|prefix| prefix.registry == source.registry && prefix.path.starts_with(&source.path))
            .filter_map(|prefix| Some((prefix, prefix.path_below(source)?)))
            .filter(|(_, below)| mapping.scope.levels().contains(&count_levels(below)))
            .map(|(prefix, below)| (prefix.clone(), mapping.target.child(below)))
            .collect()
    }
}
