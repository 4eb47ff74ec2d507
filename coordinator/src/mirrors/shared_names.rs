//! Names in a mirror that images of several sources would have: a consumer that cannot tell them apart would pull one image
//! for another.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::RangeInclusive;

use imgsync_model::naming::flatten_name;
use imgsync_oci::RegistryName;

use super::name_mapping::{NameMapping, NamePrefix, count_levels};
use super::{Aliases, MirroredNames};

/// More warnings are counted.
const MAX_WARNINGS: usize = 20;
/// Levels of the paths of Docker Hub.
const DOCKER_HUB_LEVELS: usize = 2;

/// Names that an entry of a consumer changes: those at some levels below a source have the same path below a target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct NameRange {
    /// Where the names are that clusters use.
    pub(super) source: NamePrefix,
    /// Where they are in the mirror.
    pub(super) target: NamePrefix,
    /// How many levels below them the names are.
    pub(super) levels: RangeInclusive<usize>,
}

/// The names of all mappings in their mirrors.
pub(super) struct SharedNames<'a> {
    by_target: BTreeMap<NamePrefix, Vec<&'a NameMapping>>,
    aliases: &'a Aliases,
    target_paths: &'a HashSet<NamePrefix>,
    is_allowed: bool,
    known: HashMap<NameRange, Option<SharedName>>,
    known_unchanged: HashMap<(RegistryName, RegistryName), Option<SharedName>>,
    warnings: BTreeSet<String>,
}

/// A name in a mirror that has images of two sources.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SharedName {
    /// The name for which the consumer would pull it.
    wanted: String,
    /// The name whose image it may be.
    other: String,
    /// The name in the mirror.
    target: String,
}

impl NameRange {
    /// Creates the range of a mapping.
    pub(super) fn of_mapping(mapping: &NameMapping) -> NameRange {
        let (source, target) = (mapping.source.clone(), mapping.target.clone());
        NameRange { source, target, levels: mapping.scope.levels() }
    }

    /// Creates the range of a prefix with all that is below it, as consumers have it that compare prefixes.
    pub(super) fn of_prefix(source: NamePrefix, target: NamePrefix) -> NameRange {
        let least = usize::from(source.path.is_empty());
        NameRange { source, target, levels: least..=usize::MAX }
    }

    /// Creates the range of all names of a registry, in a mirror below a path.
    pub(super) fn of_registry(source: &RegistryName, mirror: &RegistryName, path: &str) -> NameRange {
        NameRange::of_prefix(NamePrefix::whole(source), NamePrefix::whole(mirror).child(path))
    }
}

impl<'a> SharedNames<'a> {
    /// Indexes the names.
    pub(super) fn new(names: &'a MirroredNames) -> SharedNames<'a> {
        let mut by_target: BTreeMap<NamePrefix, Vec<&NameMapping>> = BTreeMap::new();
        for mapping in names.mappings.iter().chain(&names.other_mappings) {
            by_target.entry(mapping.target.clone()).or_default().push(mapping);
        }
        SharedNames {
            by_target,
            aliases: &names.aliases,
            target_paths: &names.target_paths,
            is_allowed: names.allows_shared_names,
            known: HashMap::new(),
            known_unchanged: HashMap::new(),
            warnings: BTreeSet::new(),
        }
    }

    /// Whether a name of the range has images of another source in the mirror.
    pub(super) fn is_shared(&mut self, range: &NameRange) -> bool {
        self.find(range).is_some()
    }

    /// Fails with the reason if a name of the range has images of another source in the mirror. If the user allows that,
    /// records a warning instead.
    pub(super) fn check(&mut self, range: &NameRange) -> Result<(), String> {
        let found = self.find(range);
        self.judge(found)
    }

    /// Does the same for names that a consumer asks a mirror for by their own path. Names below the path of a rule's `to` do not
    /// count, because a source's name rarely begins with it, nor do those of the same registry.
    pub(super) fn check_unchanged(&mut self, source: &RegistryName, mirror: &RegistryName) -> Result<(), String> {
        let key = (source.clone(), mirror.clone());
        let found = match self.known_unchanged.get(&key) {
            Some(known) => known.clone(),
            None => {
                let has_target_path =
                    |name: &NamePrefix| name.with_ancestors().any(|prefix| self.target_paths.contains(&prefix));
                let counts =
                    |mapping: &NameMapping| mapping.source.registry != *source && !has_target_path(&mapping.target);
                let found = self.search(&NameRange::of_registry(source, mirror, ""), counts);
                self.known_unchanged.insert(key, found.clone());
                found
            }
        };
        self.judge(found)
    }

    /// Returns the warnings of names that are allowed.
    pub(super) fn into_warnings(self) -> Vec<String> {
        let more = self.warnings.len().saturating_sub(MAX_WARNINGS);
        let rest = (more > 0).then(|| format!("warning: nodes may pull one image for another by {more} more names"));
        self.warnings.into_iter().take(MAX_WARNINGS).chain(rest).collect()
    }

    fn judge(&mut self, found: Option<SharedName>) -> Result<(), String> {
        let Some(SharedName { wanted, other, target }) = found else { return Ok(()) };
        if self.is_allowed {
            self.warnings.insert(format!(
                "warning: nodes may pull an image of {other} for {wanted}: both are {target} in the mirror"
            ));
            return Ok(());
        }
        Err(format!(
            "nodes might pull an image of {other} for {wanted}, as both are {target} in the mirror: use `naming: full` or \
             another `to` for one of them (--shared-names takes the risk)"
        ))
    }

    fn find(&mut self, range: &NameRange) -> Option<SharedName> {
        if let Some(known) = self.known.get(range) {
            return known.clone();
        }
        let found = self.search(range, |_| true);
        self.known.insert(range.clone(), found.clone());
        found
    }

    fn search(&self, range: &NameRange, counts: impl Fn(&NameMapping) -> bool) -> Option<SharedName> {
        let target = &range.target;
        let at_or_below = self
            .by_target
            .range(target.clone()..)
            .take_while(|(other, _)| other.registry == target.registry && other.path.starts_with(&target.path))
            .filter(|(other, _)| target.contains(other))
            .flat_map(|(_, mappings)| mappings);
        let mut above = target.with_ancestors().skip(1).filter_map(|prefix| self.by_target.get(&prefix)).flatten();
        let mut found = at_or_below.filter(|mapping| counts(mapping)).find_map(|mapping| self.compare(range, mapping));
        if found.is_none() {
            found = above.by_ref().filter(|mapping| counts(mapping)).find_map(|mapping| self.compare(range, mapping));
        }
        found
    }

    /// Whether two sources are locations of the same image of a preset.
    fn are_aliases(&self, sources: [&NamePrefix; 2], target: &NamePrefix) -> bool {
        let [one, other] = sources.map(|source| self.aliases.get(&(source.clone(), target.clone())));
        one.zip(other).is_some_and(|(one, other)| !one.is_disjoint(other))
    }

    /// Returns a name that a range and a mapping have in the mirror for different sources.
    fn compare(&self, range: &NameRange, mapping: &NameMapping) -> Option<SharedName> {
        let (levels, theirs) = (range.levels.clone(), mapping.scope.levels());
        // Both, seen from the longer of the two targets.
        let (target, wanted, levels, other, theirs) = if let Some(below) = mapping.target.path_below(&range.target) {
            let levels = without(levels, count_levels(below))?;
            (&mapping.target, range.source.child(below), levels, mapping.source.clone(), theirs)
        } else {
            let below = range.target.path_below(&mapping.target)?;
            let theirs = without(theirs, count_levels(below))?;
            (&range.target, range.source.clone(), levels, mapping.source.child(below), theirs)
        };
        let mut least = *levels.start().max(theirs.start());
        let mut most = *levels.end().min(theirs.end());
        for source in [&wanted, &other].into_iter().filter(|source| source.registry.is_docker_hub()) {
            let rest = DOCKER_HUB_LEVELS.checked_sub(count_levels(&source.path))?;
            (least, most) = (least.max(rest), most.min(rest));
        }
        let is_same = wanted == other
            || has_registry_level(&wanted, &other.registry)
            || has_registry_level(&other, &wanted.registry)
            || self.are_aliases([&wanted, &other], target);
        if least > most || is_same {
            return None;
        }
        let below = match (least, most) {
            (_, 0) => "",
            (_, 1) => "/*",
            _ => "/**",
        };
        let name = |prefix: &NamePrefix| format!("{prefix}{below}");
        Some(SharedName { wanted: name(&wanted), other: name(&other), target: name(target) })
    }
}

/// Returns levels as seen from a path that is some levels below; `None` if none is left.
fn without(levels: RangeInclusive<usize>, below: usize) -> Option<RangeInclusive<usize>> {
    let (least, most) = levels.into_inner();
    Some(least.saturating_sub(below)..=most.checked_sub(below)?)
}

/// Whether a level of a path is a registry or begins with it, as in names of `full` and `flat`. Such a name is no source's
/// own, except that of another mirror, with the same images.
fn has_registry_level(prefix: &NamePrefix, registry: &RegistryName) -> bool {
    let registry = flatten_name(registry.as_str());
    prefix.path.split('/').any(|level| {
        level.strip_prefix(registry.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['_', '-']))
    })
}

#[cfg(test)]
mod tests {
    use imgsync_config::{Config, ConfigFile};

    use super::*;
    use crate::mirrors::collect_names;
    use crate::mirrors::name_mapping::MappingScope;

    fn prefix(text: &str) -> NamePrefix {
        let (registry, path) = text.split_once('/').unwrap_or((text, ""));
        NamePrefix { registry: registry.parse().unwrap(), path: path.to_owned() }
    }

    fn mapping(source: &str, target: &str, scope: MappingScope) -> NameMapping {
        NameMapping { source: prefix(source), target: prefix(target), scope, keeps_digests: true, gap: None }
    }

    async fn names(mappings: Vec<NameMapping>) -> MirroredNames {
        let config =
            Config::read(&ConfigFile { name: "", text: "rules: []", environment: &|_| None, presets: None }).unwrap();
        let mut names = collect_names(&config, std::path::Path::new(""), None).await.unwrap();
        names.mappings = mappings;
        names
    }

    /// Returns what is asked for, and whose image it would be.
    async fn shared(mappings: Vec<NameMapping>, range: NameRange) -> Option<(String, String)> {
        let names = names(mappings).await;
        SharedNames::new(&names).find(&range).map(|shared| (shared.wanted, shared.other))
    }

    fn registry(source: &str, target: &str) -> NameRange {
        NameRange::of_prefix(prefix(source), prefix(target))
    }

    #[tokio::test]
    async fn a_registry_takes_names_of_another_only_if_they_can_be_its_own() {
        use MappingScope::{AllLevels, OneLevel, Repository};
        let quay = |target: &str| vec![mapping("quay.io/c/d", target, Repository)];
        let taken = |wanted: &str, other: &str| Some((wanted.to_owned(), other.to_owned()));
        assert_eq!(
            shared(quay("m.example/m/c/d"), registry("docker.io", "m.example/m")).await,
            taken("docker.io/c/d", "quay.io/c/d")
        );
        // Docker Hub has two levels.
        assert_eq!(shared(quay("m.example/m/x/c/d"), registry("docker.io", "m.example/m")).await, None);
        assert_eq!(
            shared(quay("m.example/m/x/c/d"), registry("ghcr.io", "m.example/m")).await,
            taken("ghcr.io/x/c/d", "quay.io/c/d")
        );
        // Names that have their registry.
        for target in ["m.example/m/quay.io/c/d", "m.example/m/quay.io_c_d"] {
            assert_eq!(shared(quay(target), registry("ghcr.io", "m.example/m")).await, None, "{target}");
        }
        assert_eq!(shared(quay("m.example/mm/c/d"), registry("docker.io", "m.example/m")).await, None);
        assert_eq!(shared(quay("n.example/m/c/d"), registry("docker.io", "m.example/m")).await, None);
        assert_eq!(shared(quay("m.example/m/c/d"), registry("quay.io", "m.example/m")).await, None, "its own");
        let all = vec![mapping("docker.io", "m.example/m", AllLevels)];
        assert_eq!(shared(all.clone(), registry("quay.io", "m.example/m")).await, taken("quay.io/**", "docker.io/**"));
        assert_eq!(
            shared(all.clone(), NameRange::of_mapping(&mapping("quay.io/c/d", "m.example/m/c/d", Repository))).await,
            taken("quay.io/c/d", "docker.io/c/d")
        );
        assert_eq!(shared(all, registry("quay.io", "m.example/m/quay.io")).await, None);
        let one = vec![mapping("quay.io/x", "m.example/m", OneLevel)];
        assert_eq!(
            shared(one.clone(), registry("registry.example", "m.example/m")).await,
            taken("registry.example/*", "quay.io/x/*")
        );
        assert_eq!(
            shared(one, NameRange::of_mapping(&mapping("gcr.io/a/b", "m.example/m/a/b", Repository))).await,
            None
        );
    }

    #[tokio::test]
    async fn two_repositories_with_one_name_are_shared_also_in_one_registry() {
        use MappingScope::Repository;
        let app = |source: &str| mapping(source, "m.example/app", Repository);
        let range = NameRange::of_mapping(&app("quay.io/a/app"));
        let found = shared(vec![app("quay.io/a/app"), app("quay.io/b/app")], range.clone()).await;
        assert_eq!(found.unwrap().1, "quay.io/b/app");
        assert_eq!(shared(vec![app("quay.io/a/app")], range.clone()).await, None);
        // Locations of a preset have the same images.
        let mut names = names(vec![app("quay.io/a/app"), app("quay.io/b/app")]).await;
        for (image, is_shared) in [("x", false), ("y", true)] {
            let images = ["x", image].map(|image| BTreeSet::from([image.to_owned()]));
            let sources = names.mappings.iter().map(|it| (it.source.clone(), it.target.clone()));
            names.aliases = sources.zip(images).collect();
            assert_eq!(SharedNames::new(&names).find(&range).is_some(), is_shared);
        }
    }

    #[tokio::test]
    async fn a_mirror_of_a_mirror_has_the_same_images() {
        use MappingScope::Repository;
        let both = vec![
            mapping("quay.io/c/d", "b.example/quay.io/c/d", Repository),
            mapping("a.example/quay.io/c/d", "b.example/quay.io/c/d", Repository),
        ];
        let range = NameRange::of_mapping(&both[0]);
        assert_eq!(shared(both, range).await, None);
    }
}
