//! Pagination of listings: one request per page, the next page by `Link` header or by the page itself, and detection of
//! listings that never end.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use ::http::{Method, StatusCode, header};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use url::Url;

use super::listing_memory::ListingShare;
use super::page_reader::{PageLimits, PageSize, read_page};
use super::transport::{RequestSpec, Response};
use super::{Repository, link, ssrf};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::{self, RetryState};

/// Limit of consecutive pages without new entries. A registry that hides entries by permission can send some empty
/// ones.
pub(super) const MAX_EMPTY_PAGES: usize = 50;
/// Limit of entries in a listing, over all pages. The largest known repositories have some 100,000 tags, and a
/// list that shows a tree has three entries for each: the tag, its manifest, and the tag at its manifest.
pub(super) const MAX_ENTRIES: u64 = 300_000;
/// Limit of the text bytes in a listing: names and digests.
pub(super) const MAX_TEXTS_BYTES: u64 = 48 << 20;

/// Limit of the total time that a listing waits for its registry, in stall timeouts: half an hour with the default. A
/// hundred thousand tags in pages of a hundred, a second each, take a third of that.
pub(super) const MAX_LISTING_STALLS: u32 = 30;

/// A page of a listing.
pub(crate) trait ListPage: DeserializeOwned + Send + 'static {
    /// Whether the body is such a page at all. Some registries answer 200 with an error in the body, or with something
    /// else.
    fn is_listing(&self) -> bool;

    /// Returns the page's entries by their identifying text.
    fn entries(&self) -> Vec<&str>;

    /// Returns where the next page is.
    fn next_page(&self) -> NextPage {
        NextPage::LinkHeader
    }
}

/// Location of the next page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NextPage {
    /// In the response's `Link` header; without one there is none.
    LinkHeader,
    /// At this URL, which may be relative. It must have the same host.
    Url(String),
    /// At the same URL, with another value of this query parameter.
    Parameter(&'static str, String),
    /// No further page.
    None,
}

/// Fetches pages.
pub(crate) trait PageSource {
    /// Sends one request. All responses but 200 are errors.
    async fn fetch_page(&self, url: &Url, operation: &str) -> Result<Response>;

    /// Returns the repository whose settings apply to retries and links.
    fn repository(&self) -> &Repository;

    /// Returns fresh retry state for a page.
    fn new_retry(&self) -> RetryState {
        self.repository().new_retry()
    }
}

impl PageSource for Repository {
    async fn fetch_page(&self, url: &Url, operation: &str) -> Result<Response> {
        let response = self.send(RequestSpec::new(Method::GET, url.clone(), operation)).await?;
        match response.status() {
            StatusCode::OK => Ok(response),
            _ => Err(self.error_from_response(response, operation).await),
        }
    }

    fn repository(&self) -> &Repository {
        self
    }

    fn new_retry(&self) -> RetryState {
        self.new_listing_retry()
    }
}

/// Deserializes a key whose presence matters, even with `null`.
pub(crate) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Position in a listing, with the state that detects endless ones: 8 bytes per entry, and only if there is more than
/// one page.
#[derive(Debug)]
pub(crate) struct Paginator {
    next: Option<Url>,
    urls: HashSet<u64>,
    pages: HashSet<u64>,
    entries: HashSet<u64>,
    empty_pages: usize,
    hasher: RandomState,
    /// Time spent waiting for the registry.
    waited: Duration,
    /// Size of the pages read so far.
    size: PageSize,
    /// Memory share of the listing; chosen with the first page.
    share: Option<ListingShare>,
}

impl Paginator {
    pub(crate) fn new(first: Url) -> Paginator {
        Paginator {
            next: Some(first),
            urls: HashSet::new(),
            pages: HashSet::new(),
            entries: HashSet::new(),
            empty_pages: 0,
            hasher: RandomState::new(),
            waited: Duration::ZERO,
            size: PageSize::default(),
            share: None,
        }
    }

    /// Reads the next page; `None` after the last. An error response is an error and never an empty page, and so are
    /// pages that repeat, form a loop, never end or take too long in total. Time spent on rate limits does not count.
    pub(crate) async fn next_page<T: ListPage>(
        &mut self,
        asker: &impl PageSource,
        max_bytes: usize,
        operation: &str,
    ) -> Result<Option<T>> {
        let Some(url) = self.next.take() else { return Ok(None) };
        if !self.urls.insert(self.hasher.hash_one(&url)) {
            return Err(Error::new(ErrorKind::InvalidResponse, operation, "its pages form a loop"));
        }
        let repository = asker.repository();
        let share = self.share.get_or_insert_with(|| {
            let share = repository.context.listing_memory.clone();
            share.unwrap_or_else(ListingShare::transient)
        });
        let limits = PageLimits {
            bytes: max_bytes,
            entries: MAX_ENTRIES.saturating_sub(self.size.entries),
            texts: MAX_TEXTS_BYTES.saturating_sub(self.size.texts),
            listing_total: PageSize { entries: MAX_ENTRIES, texts: MAX_TEXTS_BYTES },
        };
        let (clock, limit) = (&repository.context().clock, repository.stall_timeout() * MAX_LISTING_STALLS);
        let (began, paused) = (Instant::now(), clock.total_pause());
        let left = limit.saturating_sub(self.waited);
        let (page, size, next) = tokio::select! {
            biased;
            page = read_with_retries::<T>(asker, &url, limits, share, operation) => page?,
            () = clock.run_for(left) => {
                let detail = format!("the listing was not complete within {}", retry::format_duration(limit));
                return Err(Error::new(ErrorKind::TimedOut, operation, detail).with_registry(repository.registry()));
            }
        };
        self.waited += began.elapsed().saturating_sub(clock.total_pause() - paused);
        self.size.entries += size.entries;
        self.size.texts += size.texts;
        if next.is_some() || !self.pages.is_empty() {
            self.check_progress(&page.entries())
                .map_err(|detail| Error::new(ErrorKind::InvalidResponse, operation, detail))?;
        }
        self.next = next;
        Ok(Some(page))
    }

    fn check_progress(&mut self, entries: &[&str]) -> Result<(), String> {
        if !entries.is_empty() && !self.pages.insert(self.hasher.hash_one(entries)) {
            return Err("the same page came twice: its pages never end".to_owned());
        }
        let before = self.entries.len();
        self.entries.extend(entries.iter().map(|entry| self.hasher.hash_one(entry)));
        self.empty_pages = if self.entries.len() > before { 0 } else { self.empty_pages + 1 };
        if self.empty_pages > MAX_EMPTY_PAGES {
            return Err(format!("{} pages in a row brought nothing new: its pages never end", self.empty_pages));
        }
        Ok(())
    }
}

async fn read_with_retries<T: ListPage>(
    asker: &impl PageSource,
    url: &Url,
    limits: PageLimits,
    share: &ListingShare,
    operation: &str,
) -> Result<(T, PageSize, Option<Url>)> {
    let (repository, mut retry) = (asker.repository(), asker.new_retry());
    loop {
        let error = match read(asker, url, limits, share, operation).await {
            Ok(page) => return Ok(page),
            Err(error) => error,
        };
        // The registry asked to wait, and the retry state limits how long.
        let _pause = (error.kind() == ErrorKind::RateLimited).then(|| repository.context().clock.pause());
        repository.wait_before_retry(&mut retry, error).await?;
    }
}

async fn read<T: ListPage>(
    asker: &impl PageSource,
    url: &Url,
    limits: PageLimits,
    share: &ListingShare,
    operation: &str,
) -> Result<(T, PageSize, Option<Url>)> {
    let mut response = asker.fetch_page(url, operation).await?;
    let here = response.url().clone();
    let links = response.headers().get_all(header::LINK).iter().filter_map(|value| value.to_str().ok());
    let linked = link::find_next(links);
    let context = &asker.repository().context;
    let (page, size): (T, _) = read_page(&mut response, limits, share, context, operation).await?;
    if !page.is_listing() {
        return Err(Error::new(ErrorKind::InvalidResponse, operation, "the response is not a listing"));
    }
    let next = match page.next_page() {
        NextPage::LinkHeader => linked,
        NextPage::Url(written) => Some(written),
        NextPage::Parameter(name, value) => return Ok((page, size, Some(with_parameter(&here, name, &value)))),
        NextPage::None => None,
    };
    let next = match next {
        Some(written) => Some(validate_next_url(asker.repository(), &here, &written, operation)?),
        None => None,
    };
    Ok((page, size, next))
}

fn with_parameter(here: &Url, name: &str, value: &str) -> Url {
    let mut next = here.clone();
    let others: Vec<_> = here.query_pairs().filter(|(other, _)| other != name).collect();
    next.query_pairs_mut().clear().extend_pairs(others).append_pair(name, value);
    next
}

/// Validates the URL of the next page, which must have the same host.
fn validate_next_url(repository: &Repository, here: &Url, written: &str, operation: &str) -> Result<Url> {
    let next = here.join(written).map_err(|error| {
        Error::new(ErrorKind::InvalidResponse, operation, "the link to its next page is not a URL").with_source(error)
    })?;
    let allowed = repository.registry.settings.allowed();
    let mut next = ssrf::validate_url(here, next, repository.network_scope(), allowed, "link to the next page")?;
    if !ssrf::same_origin(&next, here) {
        let detail = format!("the link to its next page points to another host, {}", ssrf::origin(&next));
        return Err(Error::new(ErrorKind::Insecure, operation, detail));
    }
    // All pages of a list have one path. Artifactory omits the first part of a repository, or the part that its own
    // base adds.
    let last = |url: &Url| url.path().rsplit('/').next().map(str::to_owned);
    if last(&next) == last(here) {
        next.set_path(here.path());
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor() -> Paginator {
        Paginator::new("http://localhost/v2/a/tags/list".parse().unwrap())
    }

    #[test]
    fn a_page_that_comes_again_is_noticed_wherever_it_stands() {
        let mut cursor = cursor();
        for page in [["a", "b"], ["c", "d"], ["b", "c"]] {
            cursor.check_progress(&page).unwrap();
        }
        assert!(cursor.check_progress(&["c", "d"]).unwrap_err().contains("twice"));
    }

    #[test]
    fn some_empty_pages_are_accepted_and_too_many_are_an_error() {
        let mut cursor = cursor();
        for round in 0..3 {
            (0..MAX_EMPTY_PAGES).for_each(|_| cursor.check_progress(&[]).unwrap());
            cursor.check_progress(&[&round.to_string()]).unwrap();
        }
        (0..MAX_EMPTY_PAGES).for_each(|_| cursor.check_progress(&[]).unwrap());
        assert!(cursor.check_progress(&[]).unwrap_err().contains("nothing new"));
    }
}
