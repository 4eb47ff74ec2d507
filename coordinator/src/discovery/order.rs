//! Order of repositories by path components: a repository comes before all below it, and these before its next sibling.
//! In a tree this is the order of traversal, so it does not require the whole tree.

use std::cmp::Ordering;

use imgsync_oci::RepositoryName;

/// Compares two paths by components.
pub fn compare_repositories(a: &RepositoryName, b: &RepositoryName) -> Ordering {
    a.as_str().split('/').cmp(b.as_str().split('/'))
}

/// A repository name with this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HierarchicalName(pub(crate) RepositoryName);

impl Ord for HierarchicalName {
    fn cmp(&self, other: &Self) -> Ordering {
        compare_repositories(&self.0, &other.0)
    }
}

impl PartialOrd for HierarchicalName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_a_repository_comes_before_its_neighbour() {
        let mut names: Vec<HierarchicalName> = ["a-b", "a/b", "a", "a/b/c", "a.b", "a/b-c"]
            .iter()
            .map(|name| HierarchicalName(name.parse().unwrap()))
            .collect();
        names.sort();
        let names: Vec<&str> = names.iter().map(|name| name.0.as_str()).collect();
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/b-c", "a-b", "a.b"]);
    }
}
