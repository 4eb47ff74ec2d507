//! Repository patterns, `from:` of a rule.

use std::fmt;
use std::str::FromStr;

use globset::{GlobBuilder, GlobMatcher};

use imgsync_oci::{RegistryName, RepositoryName, is_registry_part};

/// A pattern for repositories of one registry: `gcr.io/istio-release/pilot` matches one, `gcr.io/istio-release/*` all
/// one level below, `gcr.io/istio-release/**` all below at any depth, and `registry.example.com/**` all of the
/// registry. Within a level, `*` matches any part (`quay.io/*/etcd-*`). Without a registry it is Docker Hub: `nginx` is
/// docker.io/library/nginx.
#[derive(Clone, Debug)]
pub struct RepositoryPattern {
    registry: RegistryName,
    prefix: String,
    segments: Vec<PatternSegment>,
    recursive: bool,
    excluded: Vec<RepositoryPattern>,
}

#[derive(Clone, Debug)]
struct PatternSegment {
    text: String,
    glob: Option<GlobMatcher>,
}

/// Error of parsing a [`RepositoryPattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct RepositoryPatternError {
    reason: String,
    /// What to write instead, if known.
    pub hint: Option<String>,
}

impl RepositoryPattern {
    /// Returns the registry.
    pub fn registry(&self) -> &RegistryName {
        &self.registry
    }

    /// Returns the path before the first star, where listing begins: `istio-release` for `gcr.io/istio-release/**`,
    /// empty for `gcr.io/**`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns the pattern without the repositories that these patterns of the same registry match.
    pub fn excluding(self, excluded: Vec<RepositoryPattern>) -> Self {
        Self { excluded, ..self }
    }

    /// Returns the excluded patterns.
    pub fn excluded(&self) -> &[RepositoryPattern] {
        &self.excluded
    }

    /// Parses an excluded pattern: one of this pattern's registry, or without a registry.
    pub fn parse_exclusion(&self, text: &str) -> Result<RepositoryPattern, RepositoryPatternError> {
        let (first, rest) = text.split_once('/').unwrap_or((text, ""));
        let names_registry = !rest.is_empty() && is_registry_part(first);
        let pattern: RepositoryPattern = match names_registry {
            true => text.parse()?,
            false => format!("{}/{text}", self.registry).parse()?,
        };
        if pattern.registry != self.registry {
            return pattern_error(format!("`{text}` is of another registry than {self}"), None);
        }
        if pattern.repository().is_some_and(|repository| !self.matches(repository.as_str())) {
            return pattern_error(format!("`{text}` is not in {self}: there is nothing to exclude"), None);
        }
        Ok(pattern)
    }

    /// Returns the repository, if the pattern names exactly one.
    pub fn repository(&self) -> Option<RepositoryName> {
        if self.recursive || self.segments.iter().any(|level| level.glob.is_some()) {
            return None;
        }
        self.prefix.parse().ok()
    }

    /// Returns a shortest matching repository, with `a` for each star; `None` if it would be too long.
    pub fn shortest_match(&self) -> Option<RepositoryName> {
        let mut levels: Vec<String> = self.segments.iter().map(|level| level.text.replace('*', "a")).collect();
        levels.extend(self.recursive.then(|| "a".to_owned()));
        levels.join("/").parse().ok()
    }

    /// Whether a repository below this path, at any depth, can match: decides where to descend in a tree. `a/*/c`
    /// descends into `a` and `a/b`, not into `b` or `a/b/c`.
    pub fn can_match_below(&self, path: &str) -> bool {
        if self.excluded.iter().any(|excluded| excluded.matches_all_below(path)) {
            return false;
        }
        let mut levels = self.segments.iter();
        for part in path.split('/') {
            match levels.next() {
                None => return self.recursive,
                Some(level) if !level.matches(part) => return false,
                Some(_) => {}
            }
        }
        self.recursive || levels.next().is_some()
    }

    /// Whether a repository matches. `a/**` does not match `a` itself.
    pub fn matches(&self, repository: &str) -> bool {
        self.matches_segments(repository) && !self.excluded.iter().any(|excluded| excluded.matches(repository))
    }

    /// Whether everything below this path matches.
    fn matches_all_below(&self, path: &str) -> bool {
        let mut parts = path.split('/');
        self.recursive && self.segments.iter().all(|level| parts.next().is_some_and(|part| level.matches(part)))
    }

    fn matches_segments(&self, repository: &str) -> bool {
        let mut parts = repository.split('/');
        for level in &self.segments {
            let Some(part) = parts.next() else {
                return false;
            };
            if !level.matches(part) {
                return false;
            }
        }
        parts.next().is_some() == self.recursive
    }
}

impl PatternSegment {
    fn matches(&self, part: &str) -> bool {
        match &self.glob {
            Some(glob) => glob.is_match(part),
            None => self.text == part,
        }
    }
}

fn pattern_error<T>(reason: impl Into<String>, hint: Option<String>) -> Result<T, RepositoryPatternError> {
    Err(RepositoryPatternError { reason: reason.into(), hint })
}

impl FromStr for RepositoryPattern {
    type Err = RepositoryPatternError;

    fn from_str(text: &str) -> Result<Self, RepositoryPatternError> {
        if let Some((scheme, rest)) = text.split_once("://") {
            return pattern_error(
                format!("a repository pattern has no scheme (`{scheme}://`)"),
                Some(format!("write `{rest}`; `tls: off` for plain HTTP goes to `registries`")),
            );
        }
        if let Some((name, _)) = text.split_once('@') {
            return pattern_error("a rule selects tags, not digests", Some(format!("write `{name}`")));
        }
        if text.ends_with('/') {
            return pattern_error(
                "a repository pattern does not end with `/`",
                Some(format!("write `{text}**` for everything below")),
            );
        }
        let (name, tag) = match text.rsplit_once(':') {
            Some((name, tag))
                if !tag.contains(['/', ']']) && (name.contains('/') || !tag.bytes().all(|b| b.is_ascii_digit())) =>
            {
                (name, Some(tag))
            }
            _ => (text, None),
        };
        if let Some(tag) = tag {
            return pattern_error(
                "a repository pattern has no tag",
                Some(format!("write `from: {name}` and `tags: {{include: [\"{tag}\"]}}`")),
            );
        }
        let (host, path) = match text.split_once('/') {
            Some((first, path)) if is_registry_part(first) => (first, path.to_owned()),
            Some(_) => ("docker.io", text.to_owned()),
            None if text.contains(['.', ':']) || text == "localhost" => {
                return pattern_error(
                    format!("`{text}` names a registry without a repository"),
                    Some(format!("for all its repositories write `{text}/**`")),
                );
            }
            None if text.contains('*') => {
                return pattern_error(
                    "the pattern names no registry",
                    Some("write `docker.io/NAMESPACE/*`".to_owned()),
                );
            }
            None => ("docker.io", text.to_owned()),
        };
        if host.contains('*') {
            return pattern_error("`*` cannot stand for a registry", None);
        }
        let registry: RegistryName = host.parse().map_err(|error: imgsync_oci::ParseReferenceError| {
            RepositoryPatternError { reason: error.to_string(), hint: None }
        })?;
        let path = match registry.is_docker_hub() && !path.contains(['/', '*']) {
            true => format!("library/{path}"),
            false => path,
        };
        parse_segments(registry, &path)
    }
}

fn parse_segments(registry: RegistryName, path: &str) -> Result<RepositoryPattern, RepositoryPatternError> {
    let (above, recursive) = match path.strip_suffix("**") {
        Some("") => ("", true),
        Some(above) if above.ends_with('/') => (&above[..above.len() - 1], true),
        _ => (path, false),
    };
    let mut segments = Vec::new();
    for part in above.split('/').filter(|_| !(recursive && above.is_empty())) {
        if part.contains("**") {
            return pattern_error(
                "`**` can only be the last component",
                Some("`*` stands for one component".to_owned()),
            );
        }
        let sample = part.replace('*', "a");
        if let Err(error) = sample.parse::<RepositoryName>() {
            let error = if part.contains('*') || part.is_empty() {
                format!("`{path}` is not a repository path: `{part}` is not a valid component")
            } else {
                error.to_string()
            };
            return pattern_error(error, None);
        }
        let glob = match part.contains('*') {
            true => Some(
                GlobBuilder::new(part)
                    .build()
                    .map_err(|error| RepositoryPatternError { reason: error.kind().to_string(), hint: None })?
                    .compile_matcher(),
            ),
            false => None,
        };
        segments.push(PatternSegment { text: part.to_owned(), glob });
    }
    let prefix: Vec<&str> =
        segments.iter().take_while(|level| level.glob.is_none()).map(|level| level.text.as_str()).collect();
    let prefix = prefix.join("/");
    if prefix.len() > 255 {
        return pattern_error(format!("the path has {} characters, 255 are allowed", prefix.len()), None);
    }
    Ok(RepositoryPattern { registry, prefix, segments, recursive, excluded: Vec::new() })
}

impl fmt::Display for RepositoryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.registry)?;
        for level in &self.segments {
            write!(f, "/{}", level.text)?;
        }
        if self.recursive {
            f.write_str("/**")?;
        }
        for (index, excluded) in self.excluded.iter().enumerate() {
            write!(f, "{} {excluded}", if index == 0 { " without" } else { "," })?;
        }
        Ok(())
    }
}

impl PartialEq for RepositoryPattern {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> RepositoryPattern {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn stars_stand_for_levels() {
        for (text, yes, no) in [
            ("gcr.io/a/b", "a/b", "a a/b/c a/c"),
            ("gcr.io/a/*", "a/b a/c", "a a/b/c b/c"),
            ("gcr.io/a/**", "a/b a/b/c", "a b/a"),
            ("gcr.io/**", "a a/b a/b/c", ""),
            ("gcr.io/*", "a b", "a/b"),
            ("gcr.io/a/*/c", "a/b/c", "a/c a/b/d"),
            ("gcr.io/a/etcd-*", "a/etcd-1 a/etcd-", "a/etc"),
            ("gcr.io/a/*/**", "a/b/c a/b/c/d", "a/b"),
        ] {
            let pattern = pattern(text);
            assert!(yes.split_whitespace().all(|name| pattern.matches(name)), "{text} means {yes}");
            assert!(!no.split_whitespace().any(|name| pattern.matches(name)), "{text} leaves out {no}");
            assert_eq!(pattern.to_string(), text);
        }
    }

    #[test]
    fn a_tree_is_followed_only_where_it_can_lead_to_something() {
        for (text, yes, no) in [
            ("gcr.io/a/b", "a", "a/b b"),
            ("gcr.io/a/*", "a", "a/b b"),
            ("gcr.io/a/**", "a a/b a/b/c", "b"),
            ("gcr.io/**", "a a/b/c", ""),
            ("gcr.io/a/*/c", "a a/b", "a/b/c b/b"),
            ("gcr.io/a/etcd-*/**", "a a/etcd-1 a/etcd-1/b", "a/etc"),
        ] {
            let pattern = pattern(text);
            assert!(yes.split_whitespace().all(|name| pattern.can_match_below(name)), "{text} leads through {yes}");
            assert!(
                !no.split_whitespace().any(|name| pattern.can_match_below(name)),
                "{text} does not lead through {no}"
            );
        }
    }

    #[test]
    fn what_is_excluded_is_not_meant_and_not_walked() {
        let all = pattern("gcr.io/team/**");
        let excluded = ["gcr.io/team/broken", "team/*-test", "team/old/**"];
        let excluded = excluded.iter().map(|text| all.parse_exclusion(text).unwrap()).collect();
        let some = all.clone().excluding(excluded);
        for (name, is_meant) in [
            ("team/app", true),
            ("team/broken", false),
            ("team/broken/below", true),
            ("team/app-test", false),
            ("team/a/app-test", true),
            ("team/old", true),
            ("team/old/a/b", false),
            ("other/app", false),
        ] {
            assert_eq!(some.matches(name), is_meant, "{name}");
        }
        assert!(some.can_match_below("team") && some.can_match_below("team/broken"));
        assert!(!some.can_match_below("team/old") && !some.can_match_below("team/old/a"));
        assert_eq!(
            some.to_string(),
            "gcr.io/team/** without gcr.io/team/broken, gcr.io/team/*-test, gcr.io/team/old/**"
        );
        assert_ne!(some, all);
        let refused = |text: &str| all.parse_exclusion(text).unwrap_err().to_string();
        assert!(refused("quay.io/team/a").contains("is of another registry"));
        assert!(refused("elsewhere/a").contains("there is nothing to exclude"));
        assert!(refused("team/**/x").contains("`**` can only be the last component"));
        assert_eq!(pattern("docker.io/grafana/*").parse_exclusion("grafana/old").unwrap(), pattern("grafana/old"));
    }

    #[test]
    fn the_fixed_part_says_where_to_list() {
        let one = pattern("gcr.io/a/b");
        assert_eq!(one.prefix(), "a/b");
        assert_eq!(one.repository().unwrap().as_str(), "a/b");
        let level = pattern("localhost:5000/a/*/c");
        assert_eq!((level.prefix(), level.repository()), ("a", None));
        let all = pattern("gcr.io/**");
        assert_eq!((all.prefix(), all.repository()), ("", None));
    }

    #[test]
    fn docker_hub_is_meant_where_no_registry_stands() {
        assert_eq!(pattern("nginx").to_string(), "docker.io/library/nginx");
        assert_eq!(pattern("grafana/*").to_string(), "docker.io/grafana/*");
        assert_eq!(pattern("registry-1.docker.io/library/nginx"), pattern("nginx"));
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_a_hint() {
        let refused = |text: &str| {
            let error = text.parse::<RepositoryPattern>().unwrap_err();
            format!("{error} | {}", error.hint.clone().unwrap_or_default())
        };
        assert_eq!(
            refused("gcr.io/a/b:1.*"),
            "a repository pattern has no tag | write `from: gcr.io/a/b` and `tags: {include: [\"1.*\"]}`"
        );
        assert!(refused("nginx:latest").starts_with("a repository pattern has no tag"));
        assert!(refused("gcr.io/**/b").starts_with("`**` can only be the last component"));
        assert!(refused("gcr.io/a**").starts_with("`**` can only be the last component"));
        assert_eq!(
            refused("gcr.io"),
            "`gcr.io` names a registry without a repository | for all its repositories write `gcr.io/**`"
        );
        assert!(refused("localhost:5000").contains("names a registry without a repository"));
        assert!(refused("https://gcr.io/a").contains("has no scheme"));
        assert!(refused("gcr.io/A/b").contains("lowercase"));
        assert!(refused("gcr.io/a//b").contains("is not a valid component"));
        assert!(refused("*.io/a").contains("`*` cannot stand for a registry"));
        assert!(refused("gcr.io/a@sha256:00").contains("not digests"));
        assert!(refused("*").contains("names no registry"));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[a-z*./:@-]{0,24}|.{0,24}", name in "[a-z/]{0,8}") {
            if let Ok(pattern) = text.parse::<RepositoryPattern>() {
                let _ = (pattern.matches(&name), pattern.repository());
                prop_assert_eq!(&pattern.to_string().parse::<RepositoryPattern>().unwrap(), &pattern);
            }
        }
    }
}
