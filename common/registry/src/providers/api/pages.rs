//! Pages of a listing API, and what they list.

use std::fmt;
use std::marker::PhantomData;

use async_trait::async_trait;
use imgsync_oci::error::Result;
use imgsync_oci::{Digest, MediaType, RepositoryName};
use jiff::Timestamp;
use url::Url;

use super::ProviderApi;
use crate::pagination::{ListPage, Paginator};

/// Requested entries a page: the maximum of all providers.
pub(in crate::providers) const PAGE_SIZE: &str = "100";
/// Size limit of a page of a hundred entries, of some kilobytes each at most.
const MAX_PAGE_BYTES: usize = 32 << 20;

/// A tag with the properties that its registry lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedTag {
    /// Tag as listed; it may be invalid by the specification.
    pub tag: String,
    /// Digest that it points at. `None` also if the listing contradicts itself.
    pub digest: Option<Digest>,
    /// Date of push, else of build.
    pub created: Option<Timestamp>,
    /// Media type of the manifest.
    pub media_type: Option<MediaType>,
}

/// Pages as an API sends them, one request each.
#[async_trait]
pub(in crate::providers) trait PageReader: Send + 'static {
    /// Body of a page.
    type Body: ListPage;

    /// Returns the next page; `None` after the last. An error response is an error, never an empty page.
    async fn next_page(&mut self) -> Result<Option<Self::Body>>;
}

/// Pages of one list of an API.
pub(in crate::providers) struct ApiPages<P> {
    api: ProviderApi,
    paginator: Paginator,
    operation: String,
    format: PhantomData<fn() -> P>,
}

#[async_trait]
impl<P: ListPage> PageReader for ApiPages<P> {
    type Body = P;

    async fn next_page(&mut self) -> Result<Option<P>> {
        self.paginator.next_page(&self.api, MAX_PAGE_BYTES, &self.operation).await
    }
}

/// A list, page by page: tags, or names of repositories.
pub struct ListedPages<T>(Box<dyn ListedPageSource<T>>);

#[async_trait]
trait ListedPageSource<T>: Send {
    async fn next_page(&mut self) -> Result<Option<Vec<T>>>;
}

/// Pages, and what they list.
struct ConvertedPages<R, F>(R, F);

#[async_trait]
impl<T, R: PageReader, F: Fn(R::Body) -> Vec<T> + Send> ListedPageSource<T> for ConvertedPages<R, F> {
    async fn next_page(&mut self) -> Result<Option<Vec<T>>> {
        Ok(self.0.next_page().await?.map(&self.1))
    }
}

impl<T: 'static> ListedPages<T> {
    /// Creates a list of what `convert` finds in each page.
    pub(in crate::providers) fn new<R: PageReader>(
        pages: R,
        convert: impl Fn(R::Body) -> Vec<T> + Send + 'static,
    ) -> ListedPages<T> {
        ListedPages(Box::new(ConvertedPages(pages, convert)))
    }
}

impl<T> ListedPages<T> {
    /// Reads the next page; `None` after the last. An error response is an error, never an empty page.
    pub async fn next_page(&mut self) -> Result<Option<Vec<T>>> {
        self.0.next_page().await
    }
}

impl<T> fmt::Debug for ListedPages<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ListedPages")
    }
}

impl ProviderApi {
    /// Lists page by page. `what` is listed, for errors: "the tags of registry.example.com/a/b".
    pub(in crate::providers) fn pages<P: ListPage>(&self, first: Url, what: &str) -> ApiPages<P> {
        let operation = format!("listing {what} by {}'s API", self.name());
        let api = ProviderApi {
            registry_side: self.registry_side.with_own_clock(),
            api_side: self.api_side.with_own_clock(),
            ..self.clone()
        };
        ApiPages { api, paginator: Paginator::new(first), operation, format: PhantomData }
    }

    /// Describes a list of tags, for errors.
    pub(in crate::providers) fn describe_tags(&self, name: &RepositoryName) -> String {
        format!("the tags of {}/{name}", self.registry())
    }

    /// Describes a list of repositories, for errors.
    pub fn describe_repositories(&self, namespace: &str) -> String {
        match namespace {
            "" => format!("the repositories of {}", self.registry()),
            _ => format!("the repositories of {}/{namespace}", self.registry()),
        }
    }
}

/// Splits a repository's path into the namespace and the rest.
pub(in crate::providers) fn split_namespace(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or((name, ""))
}

/// Parses a date from JSON. Invalid dates, and the start of 1970 or of the year 1, are `None`.
pub(in crate::providers) fn parse_date(text: Option<&str>) -> Option<Timestamp> {
    let text = text?;
    let read = text.parse().ok().or_else(|| Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp()));
    read.filter(|date: &Timestamp| date.as_second() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_however_they_are_written() {
        let seconds = |text| parse_date(Some(text)).map(Timestamp::as_second);
        assert_eq!(seconds("2024-02-06T09:39:24.123456Z"), Some(1_707_212_364));
        assert_eq!(seconds("Tue, 06 Feb 2024 09:39:24 -0000"), Some(1_707_212_364));
        assert_eq!(seconds("0001-01-01T00:00:00.000Z"), None);
        assert_eq!(seconds("yesterday"), None);
    }
}
