//! The work of the floor client, passed as JSON on its standard input.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::measure::Servers;

/// Work of one process.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct WorkList {
    /// `HOST:PORT` of the source.
    pub(crate) source: String,
    /// `HOST:PORT` of the target.
    pub(crate) target: String,
    /// Images copied concurrently.
    pub(crate) slots: usize,
    /// Whether the source's catalog is read first.
    pub(crate) catalog: bool,
    /// Repositories, listed concurrently.
    pub(crate) repositories: Vec<RepositoryWork>,
}

/// A repository and its tags.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct RepositoryWork {
    /// Name at the source.
    pub(crate) source: String,
    /// Name at the target.
    pub(crate) target: String,
    /// Tags to copy; empty to list them.
    pub(crate) tags: Vec<String>,
    /// Digests that the target is known to hold, by tag. Such a tag costs one HEAD at the source.
    pub(crate) known: BTreeMap<String, String>,
    /// Known tags that are asked at the target too.
    pub(crate) spot_checked: BTreeSet<String>,
}

impl WorkList {
    /// Creates a work list with 20 slots.
    pub(crate) fn new(servers: &Servers, repositories: Vec<RepositoryWork>) -> WorkList {
        let Servers { source, target } = servers;
        WorkList { source: source.host(), target: target.host(), slots: 20, catalog: false, repositories }
    }
}

impl RepositoryWork {
    /// A repository whose tags are listed and copied.
    pub(crate) fn listed(source: &str, target: &str) -> RepositoryWork {
        RepositoryWork { source: source.to_owned(), target: target.to_owned(), ..RepositoryWork::default() }
    }
}
