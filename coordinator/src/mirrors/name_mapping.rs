//! Mappings of source names to names in a mirror.

use std::fmt;
use std::ops::RangeInclusive;

use imgsync_model::naming::TargetBase;
use imgsync_oci::{RegistryName, RepositoryName};

/// A registry and a path there, for all names at or below it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NamePrefix {
    /// The registry.
    pub(crate) registry: RegistryName,
    /// The path; empty for the whole registry.
    pub(crate) path: String,
}

/// Names to which a mapping applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum MappingScope {
    /// The repository alone.
    Repository,
    /// Repositories one level below the prefix.
    OneLevel,
    /// Repositories at any level below the prefix.
    AllLevels,
}

/// A mapping of source repositories to repositories of a mirror: the path below `source` follows `target`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NameMapping {
    /// Names that clusters use.
    pub(crate) source: NamePrefix,
    /// Names in the mirror.
    pub(crate) target: NamePrefix,
    /// Names to which it applies.
    pub(crate) scope: MappingScope,
    /// Whether the mirror has the digests of the source. A selection of platforms changes those of indexes.
    pub(crate) keeps_digests: bool,
    /// What the mirror lacks of these names, as far as is known.
    pub(crate) gap: Option<MirrorGap>,
}

/// What a mirror lacks of the names of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum MirrorGap {
    /// Names that the pattern of the rule does not match.
    OtherNames,
    /// Tags have other names there.
    OtherTags,
    /// Nothing was copied yet.
    NotCopied,
}

impl MappingScope {
    /// Returns how many levels below the prefix its names are.
    pub(crate) fn levels(self) -> RangeInclusive<usize> {
        match self {
            MappingScope::Repository => 0..=0,
            MappingScope::OneLevel => 1..=1,
            MappingScope::AllLevels => 1..=usize::MAX,
        }
    }
}

impl NamePrefix {
    /// Creates the prefix of a repository.
    pub(crate) fn repository(registry: &RegistryName, repository: &RepositoryName) -> NamePrefix {
        NamePrefix { registry: registry.clone(), path: repository.as_str().to_owned() }
    }

    /// Creates the prefix of a target.
    pub(crate) fn target(base: &TargetBase) -> NamePrefix {
        let path = base.prefix.as_ref().map(|prefix| prefix.as_str().to_owned()).unwrap_or_default();
        NamePrefix { registry: base.registry.clone(), path }
    }

    /// Returns the prefix of a whole registry.
    pub(crate) fn whole(registry: &RegistryName) -> NamePrefix {
        NamePrefix { registry: registry.clone(), path: String::new() }
    }

    /// Whether it has all names of another prefix.
    pub(crate) fn contains(&self, other: &NamePrefix) -> bool {
        other.path_below(self).is_some()
    }

    /// Returns the path below another prefix, empty if they are the same; `None` if it is not there.
    pub(crate) fn path_below<'a>(&'a self, above: &NamePrefix) -> Option<&'a str> {
        if self.registry != above.registry {
            return None;
        }
        if above.path.is_empty() {
            return Some(&self.path);
        }
        let rest = self.path.strip_prefix(&above.path)?;
        if rest.is_empty() { Some("") } else { rest.strip_prefix('/') }
    }

    /// Returns the prefix of a path below it.
    pub(crate) fn child(&self, path: &str) -> NamePrefix {
        NamePrefix { registry: self.registry.clone(), path: join(&self.path, path) }
    }

    /// Returns itself and the prefixes that contain it, the longest first.
    pub(crate) fn with_ancestors(&self) -> impl Iterator<Item = NamePrefix> {
        let above = |prefix: &NamePrefix| {
            let path = prefix.path.rsplit_once('/').map(|(above, _)| above).unwrap_or_default();
            (!prefix.path.is_empty()).then(|| NamePrefix { registry: prefix.registry.clone(), path: path.to_owned() })
        };
        std::iter::successors(Some(self.clone()), above)
    }
}

impl fmt::Display for NamePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&join(self.registry.as_str(), &self.path))
    }
}

impl NameMapping {
    /// Returns the path that the mirror has before the unchanged source path; `None` if the source path changes.
    pub(crate) fn added_prefix(&self) -> Option<&str> {
        let (source, target) = (self.source.path.as_str(), self.target.path.as_str());
        if source.is_empty() {
            // One level alone is a part of what the path of any level is.
            return Some(target);
        }
        let before = target.strip_suffix(source)?;
        match before.is_empty() {
            true => Some(""),
            false => before.strip_suffix('/'),
        }
    }
}

/// Returns the number of levels of a path.
pub(crate) fn count_levels(path: &str) -> usize {
    path.split('/').filter(|level| !level.is_empty()).count()
}

/// Joins two parts of a path; either may be empty.
pub(crate) fn join(above: &str, below: &str) -> String {
    match (above, below) {
        ("", only) | (only, "") => only.to_owned(),
        (above, below) => format!("{above}/{below}"),
    }
}

/// Escapes a name for a regular expression of Go. Names have no other special characters than these. Classes need no
/// backslash, which JMESPath and YAML would read, too.
pub(crate) fn escape_regex(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '.' | '[' | ']' => escaped.extend(['[', c, ']']),
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(source: &str, target: &str) -> NameMapping {
        let prefix = |text: &str| {
            let (registry, path) = text.split_once('/').unwrap_or((text, ""));
            NamePrefix { registry: registry.parse().unwrap(), path: path.to_owned() }
        };
        NameMapping {
            source: prefix(source),
            target: prefix(target),
            scope: MappingScope::Repository,
            keeps_digests: true,
            gap: None,
        }
    }

    #[test]
    fn a_prefix_is_added_only_if_the_source_path_follows_it() {
        for (source, target, added) in [
            ("docker.io/library/nginx", "r.example/library/nginx", Some("")),
            ("docker.io/library/nginx", "r.example/m/library/nginx", Some("m")),
            ("docker.io/library/nginx", "r.example/a/b/library/nginx", Some("a/b")),
            ("docker.io", "r.example/m", Some("m")),
            ("docker.io", "r.example", Some("")),
            ("quay.io/org", "r.example/m", None),
            ("docker.io/library/nginx", "r.example/m/docker.io_library_nginx", None),
            ("docker.io/library/nginx", "r.example/m/nginx", None),
            ("docker.io/a", "r.example/m/ba", None),
        ] {
            assert_eq!(mapping(source, target).added_prefix(), added, "{source} -> {target}");
        }
    }

    #[test]
    fn a_prefix_contains_whole_levels_only() {
        let contains = |a: &str, b: &str| mapping(a, "r.example").source.contains(&mapping(b, "r.example").source);
        assert!(contains("docker.io", "docker.io/a"));
        assert!(contains("docker.io/a", "docker.io/a"));
        assert!(contains("docker.io/a", "docker.io/a/b"));
        assert!(!contains("docker.io/a", "docker.io/ab"));
        assert!(!contains("docker.io/a/b", "docker.io/a"));
        assert!(!contains("docker.io", "quay.io/a"));
    }

    #[test]
    fn prefixes_are_listed_from_the_longest_to_the_whole_registry() {
        let all: Vec<String> =
            mapping("quay.io/a/b", "r.example").source.with_ancestors().map(|prefix| prefix.to_string()).collect();
        assert_eq!(all, ["quay.io/a/b", "quay.io/a", "quay.io"]);
        assert_eq!(mapping("quay.io", "r.example").source.with_ancestors().count(), 1);
    }

    #[test]
    fn names_are_escaped_in_classes() {
        assert_eq!(escape_regex("r.example:5000/a-b_c"), "r[.]example:5000/a-b_c");
        assert_eq!(escape_regex("[::1]:5000"), "[[]::1[]]:5000");
    }
}
