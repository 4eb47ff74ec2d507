//! Lists the repositories of a registry: `_catalog` (Docker registry API v2, "Catalog"), which many lack or restrict,
//! and the root of a tree of tag lists.

use std::sync::Arc;

use serde::Deserialize;

use super::page_reader::BoundedList;
use super::pagination::{self, ListPage, Paginator};
use super::{Access, Client, Context, Repository, TagPages, TrafficCounters};
use imgsync_oci::RegistryName;
use imgsync_oci::error::{Error, ErrorKind, Result};

/// Page size requested first, as for tag lists.
const PAGE_SIZE: usize = 1000;
/// Size limit of a page. Pages of names are small, but some registries send all at once.
pub(super) const MAX_PAGE_BYTES: usize = 64 << 20;

/// A registry as a whole, for listing its content.
#[derive(Debug, Clone)]
pub struct RegistryCatalog(pub(super) Repository);

/// The pages of a catalog, one request each.
#[derive(Debug)]
pub struct CatalogPages {
    root: Repository,
    paginator: Paginator,
}

#[derive(Deserialize)]
struct CatalogBody {
    /// `null` if there are none, in some registries.
    #[serde(default, deserialize_with = "pagination::present")]
    repositories: Option<Option<BoundedList<String>>>,
}

/// Parses a page and describes the result, for fuzzing.
#[cfg(test)]
pub(super) fn fuzz_parse(bytes: &[u8]) -> String {
    match serde_json::from_slice::<CatalogBody>(bytes) {
        Ok(body) => format!("{} {:?}", body.is_listing(), body.repositories),
        Err(error) => format!("{:?}", error.classify()),
    }
}

impl ListPage for CatalogBody {
    fn is_listing(&self) -> bool {
        self.repositories.is_some()
    }

    fn entries(&self) -> Vec<&str> {
        self.repositories.iter().flatten().flatten().map(String::as_str).collect()
    }
}

impl Client {
    /// Opens a registry's catalog. Fails only if the registry's settings are invalid (a bad certificate).
    pub fn open_catalog(
        &self,
        registry: &RegistryName,
        context: &Context,
        counters: &Arc<TrafficCounters>,
    ) -> Result<RegistryCatalog> {
        // A placeholder: requests and messages with `Access::Catalog` do not contain the name.
        let name = "catalog".parse().map_err(|error: imgsync_oci::ParseReferenceError| {
            Error::new(ErrorKind::Invalid, "listing a catalog", error.to_string())
        })?;
        self.repository(registry, &name, Access::Catalog, context, counters).map(RegistryCatalog)
    }
}

impl RegistryCatalog {
    /// Lists the names of the repositories page by page.
    pub fn list_repositories(&self) -> CatalogPages {
        let mut first = self.0.url("_catalog");
        first.query_pairs_mut().append_pair("n", &PAGE_SIZE.to_string());
        CatalogPages { root: self.0.with_own_clock(), paginator: Paginator::new(first) }
    }

    /// Lists the root of a tree of tag lists.
    pub fn list_tags(&self) -> TagPages {
        self.0.list_tags()
    }
}

impl CatalogPages {
    /// Returns the next page in the registry's order; names are unvalidated. `None` after the last. An error response
    /// is an error, never an empty page; if the registry shows no catalog, it has a hint.
    pub async fn next_page(&mut self) -> Result<Option<Vec<String>>> {
        let registry = self.root.registry();
        let operation = format!("listing the repositories of {registry}");
        let page = self.paginator.next_page(&self.root, MAX_PAGE_BYTES, &operation).await;
        match page {
            Ok(page) => Ok(page.map(|body: CatalogBody| body.repositories.flatten().unwrap_or_default().into_vec())),
            Err(error) if shows_none(&error) => {
                let log_in = error.hint().map(|hint| format!("{hint}; or ")).unwrap_or_default();
                Err(error.with_hint(format!(
                    "{log_in}name the repositories explicitly, without `*`, or set `api:` for {registry} under \
                     `registries` if it has an API of its own that lists them"
                )))
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether a registry answered but does not list its repositories to us.
fn shows_none(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Denied | ErrorKind::NotFound | ErrorKind::Refused | ErrorKind::Unsupported => true,
        // A web page instead of the API.
        ErrorKind::InvalidResponse => true,
        _ => false,
    }
}
