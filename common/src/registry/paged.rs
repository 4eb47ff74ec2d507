//! Lists that come by pages: one request each, the next one named by a `Link` or by the page itself, and an end that must
//! come.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use ::http::{Method, StatusCode, header};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use url::Url;

use super::listing_memory::ListingShare;
use super::page_reader::{PageLimits, PageSize, read_page};
use super::transport::{Answer, Outgoing};
use super::{Repository, hop, link};
use crate::error::{Class, Error, Result};
use crate::retry::{self, Retry};

/// Pages in a row that bring nothing new. A registry that hides what one may not see can answer with some empty ones.
pub(super) const MAX_BARREN_PAGES: usize = 50;
/// Entries of a listing, on one page or on many. The largest repositories that are known have some 100,000 tags, and a
/// Google-style list has three entries for each: the tag, its manifest, and the tag at its manifest.
pub(super) const MAX_ENTRIES: u64 = 300_000;
/// Bytes of the texts of a listing: of names and digests.
pub(super) const MAX_TEXTS_BYTES: u64 = 48 << 20;

/// How long a listing waits for its registry in all, in stall limits: half an hour with the default. A hundred thousand tags
/// by hundreds, each page in a second, take a third of that.
pub(super) const LISTING_STALLS: u32 = 30;

/// What one page says.
pub trait Page: DeserializeOwned + Send + 'static {
    /// Whether it is a page of such a list at all. Some answer 200 with an error in the body, or with something else.
    fn is_one(&self) -> bool;

    /// What is listed on it, each by what tells it from others.
    fn entries(&self) -> Vec<&str>;

    /// Where the next page is.
    fn next(&self) -> Next {
        Next::Linked
    }
}

/// Where the page after one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Where the answer's `Link` leads; without one it was the last.
    Linked,
    /// At this address, which may be relative. It must be on the same host.
    At(String),
    /// At the same address, with another value of this parameter.
    With(&'static str, String),
    /// There is none.
    None,
}

/// Who asks for pages.
pub(crate) trait Ask {
    /// Asks once. All answers but 200 are errors.
    async fn ask(&self, url: &Url, tried: &str) -> Result<Answer>;

    /// What retries and hops are judged by.
    fn repository(&self) -> &Repository;

    /// How a page is tried again.
    fn retry(&self) -> Retry {
        self.repository().retry()
    }
}

impl Ask for Repository {
    async fn ask(&self, url: &Url, tried: &str) -> Result<Answer> {
        let answer = self.send(Outgoing::new(Method::GET, url.clone(), tried)).await?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            _ => Err(self.refusal(answer, tried).await),
        }
    }

    fn repository(&self) -> &Repository {
        self
    }

    fn retry(&self) -> Retry {
        self.patient_retry()
    }
}

/// For keys of which it matters whether they are there, be it with `null`.
pub(crate) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Where reading a list is, and what is remembered to notice one that does not end: 8 bytes an entry, and only if there
/// is more than one page.
#[derive(Debug)]
pub(crate) struct Cursor {
    next: Option<Url>,
    urls: HashSet<u64>,
    pages: HashSet<u64>,
    entries: HashSet<u64>,
    barren: usize,
    hasher: RandomState,
    /// How long the registry was waited for.
    waited: Duration,
    /// What was read so far.
    size: PageSize,
    /// The memory of the listing; chosen with the first page.
    share: Option<ListingShare>,
}

impl Cursor {
    pub(crate) fn new(first: Url) -> Cursor {
        Cursor {
            next: Some(first),
            urls: HashSet::new(),
            pages: HashSet::new(),
            entries: HashSet::new(),
            barren: 0,
            hasher: RandomState::new(),
            waited: Duration::ZERO,
            size: PageSize::default(),
            share: None,
        }
    }

    /// Reads the next page; `None` after the last. An error answer is an error and never an empty page, and so are pages
    /// that repeat themselves, lead in a circle, do not end or take too long in all. Rate limits are not held against it.
    pub(crate) async fn next_page<T: Page>(
        &mut self,
        asker: &impl Ask,
        max_bytes: usize,
        tried: &str,
    ) -> Result<Option<T>> {
        let Some(url) = self.next.take() else { return Ok(None) };
        if !self.urls.insert(self.hasher.hash_one(&url)) {
            return Err(Error::new(Class::BadAnswer, tried, "its pages lead in a circle"));
        }
        let repository = asker.repository();
        let share = self.share.get_or_insert_with(|| {
            let share = repository.context.listing.clone();
            share.unwrap_or_else(ListingShare::transient)
        });
        let limits = PageLimits {
            bytes: max_bytes,
            entries: MAX_ENTRIES.saturating_sub(self.size.entries),
            texts: MAX_TEXTS_BYTES.saturating_sub(self.size.texts),
            of_all: PageSize { entries: MAX_ENTRIES, texts: MAX_TEXTS_BYTES },
        };
        let (clock, limit) = (&repository.context().clock, repository.stall() * LISTING_STALLS);
        let (began, paused) = (Instant::now(), clock.paused());
        let left = limit.saturating_sub(self.waited);
        let (page, size, next) = tokio::select! {
            biased;
            page = read_patiently::<T>(asker, &url, limits, share, tried) => page?,
            () = clock.reaches(left) => {
                let detail = format!("the listing was not complete within {}", retry::seconds(limit));
                return Err(Error::new(Class::TimedOut, tried, detail).at(repository.registry()));
            }
        };
        self.waited += began.elapsed().saturating_sub(clock.paused() - paused);
        self.size.entries += size.entries;
        self.size.texts += size.texts;
        if next.is_some() || !self.pages.is_empty() {
            self.watch(&page.entries()).map_err(|detail| Error::new(Class::BadAnswer, tried, detail))?;
        }
        self.next = next;
        Ok(Some(page))
    }

    fn watch(&mut self, entries: &[&str]) -> Result<(), String> {
        if !entries.is_empty() && !self.pages.insert(self.hasher.hash_one(entries)) {
            return Err("the same page came twice: its pages do not end".to_owned());
        }
        let before = self.entries.len();
        self.entries.extend(entries.iter().map(|entry| self.hasher.hash_one(entry)));
        self.barren = if self.entries.len() > before { 0 } else { self.barren + 1 };
        if self.barren > MAX_BARREN_PAGES {
            return Err(format!("{} pages in a row brought nothing new: its pages do not end", self.barren));
        }
        Ok(())
    }
}

async fn read_patiently<T: Page>(
    asker: &impl Ask,
    url: &Url,
    limits: PageLimits,
    share: &ListingShare,
    tried: &str,
) -> Result<(T, PageSize, Option<Url>)> {
    let (repository, mut retry) = (asker.repository(), asker.retry());
    loop {
        let error = match read(asker, url, limits, share, tried).await {
            Ok(page) => return Ok(page),
            Err(error) => error,
        };
        // It is the registry that wants to be left alone, for as long as the retries bear that.
        let _pause = (error.class() == Class::RateLimited).then(|| repository.context().clock.pause());
        repository.pause(&mut retry, error).await?;
    }
}

async fn read<T: Page>(
    asker: &impl Ask,
    url: &Url,
    limits: PageLimits,
    share: &ListingShare,
    tried: &str,
) -> Result<(T, PageSize, Option<Url>)> {
    let mut answer = asker.ask(url, tried).await?;
    let here = answer.url().clone();
    let links = answer.headers().get_all(header::LINK).iter().filter_map(|value| value.to_str().ok());
    let linked = link::next(links);
    let context = &asker.repository().context;
    let (page, size): (T, _) = read_page(&mut answer, limits, share, context, tried).await?;
    if !page.is_one() {
        return Err(Error::new(Class::BadAnswer, tried, "what it answered is no listing"));
    }
    let next = match page.next() {
        Next::Linked => linked,
        Next::At(written) => Some(written),
        Next::With(name, value) => return Ok((page, size, Some(with_parameter(&here, name, &value)))),
        Next::None => None,
    };
    let next = match next {
        Some(written) => Some(checked(asker.repository(), &here, &written, tried)?),
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

/// Where the next page is: on the same host, or it is an error.
fn checked(repository: &Repository, here: &Url, written: &str, tried: &str) -> Result<Url> {
    let next = here
        .join(written)
        .map_err(|error| Error::new(Class::BadAnswer, tried, "the link to its next page is no URL").because(error))?;
    let allowed = repository.registry.settings.allowed();
    let mut next = hop::check(here, next, repository.reach(), allowed, "link to the next page")?;
    if !hop::same_origin(&next, here) {
        let detail = format!("the link to its next page leads to another host, {}", hop::origin(&next));
        return Err(Error::new(Class::Insecure, tried, detail));
    }
    // All pages of a list have one path. Artifactory leaves out the first part of a repository, or what its own base adds.
    let last = |url: &Url| url.path().rsplit('/').next().map(str::to_owned);
    if last(&next) == last(here) {
        next.set_path(here.path());
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor() -> Cursor {
        Cursor::new("http://localhost/v2/a/tags/list".parse().unwrap())
    }

    #[test]
    fn a_page_that_comes_again_is_noticed_wherever_it_stands() {
        let mut cursor = cursor();
        for page in [["a", "b"], ["c", "d"], ["b", "c"]] {
            cursor.watch(&page).unwrap();
        }
        assert!(cursor.watch(&["c", "d"]).unwrap_err().contains("twice"));
    }

    #[test]
    fn some_empty_pages_are_borne_and_many_are_not() {
        let mut cursor = cursor();
        for round in 0..3 {
            (0..MAX_BARREN_PAGES).for_each(|_| cursor.watch(&[]).unwrap());
            cursor.watch(&[&round.to_string()]).unwrap();
        }
        (0..MAX_BARREN_PAGES).for_each(|_| cursor.watch(&[]).unwrap());
        assert!(cursor.watch(&[]).unwrap_err().contains("nothing new"));
    }
}
