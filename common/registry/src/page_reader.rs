//! Reads a page of a listing. Parses it while it is received, with limits on its bytes, entries and texts, so that
//! memory grows with what is kept and not with what the registry sends.

use std::cell::RefCell;
use std::io::{BufReader, Read};
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf as _, Bytes};
use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokio::sync::mpsc;

use super::context::Context;
use super::listing_memory::{ENTRY_BYTES, ListingShare};
use super::response::Response;
use imgsync_oci::error::{Error, ErrorKind, Result};

/// Pages up to this size in bytes are buffered, as most are. Larger ones are parsed in a separate thread while they are
/// received.
const MAX_BUFFERED_PAGE_BYTES: usize = 256 << 10;
/// Memory reserved for a larger page while it is parsed, in bytes. That limits how many are parsed concurrently, since
/// each allocating thread retains memory.
const STREAMED_PAGE_MEMORY_BYTES: u64 = 16 << 20;
/// Chunks of a page queued for the parser.
const MAX_QUEUED_CHUNKS: usize = 2;
/// Size limit of a text in a page that is not buffered, in bytes.
pub(crate) const MAX_TEXT_BYTES: usize = 1 << 20;

/// Limits of one page.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageLimits {
    /// Bytes of the page.
    pub(super) bytes: usize,
    /// Entries left.
    pub(super) entries: u64,
    /// Text bytes left.
    pub(super) texts: u64,
    /// Limits of all pages together, for messages.
    pub(super) listing_total: PageSize,
}

/// Size of a page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PageSize {
    /// Number of entries.
    pub(super) entries: u64,
    /// Bytes of their texts.
    pub(super) texts: u64,
}

impl PageSize {
    /// Returns the memory that its entries take.
    pub(super) fn memory(self) -> u64 {
        self.entries.saturating_mul(ENTRY_BYTES).saturating_add(self.texts)
    }
}

/// Reads a response body as a page. The share then holds the memory of its entries.
pub(super) async fn read_page<T: DeserializeOwned + Send + 'static>(
    response: &mut Response,
    limits: PageLimits,
    share: &ListingShare,
    context: &Context,
    operation: &str,
) -> Result<(T, PageSize)> {
    let before = share.reserved_bytes();
    let read = read(response, limits, share, context, operation).await;
    let after = read.as_ref().map_or(before, |(_, size)| before + size.memory());
    reserve_memory(share, after, context, operation).await?;
    read
}

async fn reserve_memory(share: &ListingShare, bytes: u64, context: &Context, operation: &str) -> Result<()> {
    // Does not count as waiting for the registry.
    let _pause = context.clock.pause();
    tokio::select! {
        biased;
        () = share.reserve(bytes) => Ok(()),
        () = context.cancel.cancelled() => Err(Error::cancelled(operation)),
    }
}

async fn read<T: DeserializeOwned + Send + 'static>(
    response: &mut Response,
    limits: PageLimits,
    share: &ListingShare,
    context: &Context,
    operation: &str,
) -> Result<(T, PageSize)> {
    let too_large = || {
        let detail = format!("the response is larger than {} MiB", limits.bytes.div_ceil(1 << 20));
        Error::new(ErrorKind::InvalidResponse, operation, detail)
    };
    if response.content_length().is_some_and(|length| length > limits.bytes as u64) {
        return Err(too_large());
    }
    let counter = Arc::new(EntryCounter::new(limits));
    let parsed = |result: serde_json::Result<T>| match result {
        _ if counter.is_exceeded() => Err(Error::new(ErrorKind::InvalidResponse, operation, counter.excess())),
        Ok(page) => Ok((page, counter.size())),
        Err(error) => {
            Err(Error::new(ErrorKind::InvalidResponse, operation, format!("the listing cannot be parsed: {error}"))
                .with_source(error))
        }
    };
    let mut first = Vec::new();
    while first.len() <= MAX_BUFFERED_PAGE_BYTES {
        match response.next_chunk(operation).await? {
            Some(chunk) => first.extend_from_slice(&chunk),
            None => return parsed(counter.count_during(|| serde_json::from_slice(&first))),
        }
    }
    let before = share.reserved_bytes();
    let least = before + STREAMED_PAGE_MEMORY_BYTES;
    reserve_memory(share, least, context, operation).await?;
    let (pieces, waiting) = mpsc::channel(MAX_QUEUED_CHUNKS);
    let parsing = tokio::task::spawn_blocking({
        let counter = counter.clone();
        move || counter.count_during(|| serde_json::from_reader(BufReader::new(ChunkReader::new(waiting))))
    });
    let mut bytes = 0;
    let mut next = Some(Bytes::from(first));
    while let Some(piece) = next {
        bytes += piece.len();
        if bytes > limits.bytes {
            return Err(too_large());
        }
        let needed = before + counter.size().memory() + piece.len() as u64;
        reserve_memory(share, needed.max(least), context, operation).await?;
        if pieces.send(piece).await.is_err() {
            break;
        }
        next = response.next_chunk(operation).await?;
    }
    drop(pieces);
    let page = parsing.await.map_err(|error| Error::new(ErrorKind::Local, operation, error.to_string()))?;
    parsed(page)
}

/// Reads the chunks of a body in a thread that may block. Rejects texts too long to buffer.
struct ChunkReader {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
    /// Bytes of the current text; `None` outside of texts.
    text: Option<usize>,
    is_escaped: bool,
}

impl ChunkReader {
    fn new(chunks: mpsc::Receiver<Bytes>) -> ChunkReader {
        ChunkReader { chunks, current: Bytes::new(), text: None, is_escaped: false }
    }

    /// Tracks where texts begin and end.
    fn check_text_length(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        for byte in bytes {
            match (&mut self.text, byte) {
                (None, b'"') => self.text = Some(0),
                (None, _) => {}
                (Some(_), b'"') if !self.is_escaped => self.text = None,
                (Some(length), byte) => {
                    *length += 1;
                    self.is_escaped = *byte == b'\\' && !self.is_escaped;
                    if *length > MAX_TEXT_BYTES {
                        let detail = format!("a text in it has more than {} MiB", MAX_TEXT_BYTES >> 20);
                        return Err(std::io::Error::other(detail));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current[..length]);
        self.check_text_length(&buffer[..length])?;
        self.current.advance(length);
        Ok(length)
    }
}

thread_local! {
    /// Counter of the page that this thread parses.
    static COUNTER: RefCell<Option<Arc<EntryCounter>>> = const { RefCell::new(None) };
}

/// Counts entries and their texts while a page is parsed.
#[derive(Debug)]
struct EntryCounter {
    limits: PageLimits,
    entries: AtomicU64,
    texts: AtomicU64,
}

impl EntryCounter {
    fn new(limits: PageLimits) -> EntryCounter {
        EntryCounter { limits, entries: AtomicU64::new(0), texts: AtomicU64::new(0) }
    }

    /// Counts what `parse` parses.
    fn count_during<T>(self: &Arc<EntryCounter>, parse: impl FnOnce() -> T) -> T {
        COUNTER.set(Some(self.clone()));
        let parsed = parse();
        COUNTER.set(None);
        parsed
    }

    fn size(&self) -> PageSize {
        PageSize { entries: self.entries.load(Ordering::Relaxed), texts: self.texts.load(Ordering::Relaxed) }
    }

    fn is_exceeded(&self) -> bool {
        let size = self.size();
        size.entries > self.limits.entries || size.texts > self.limits.texts
    }

    fn excess(&self) -> String {
        match self.size().entries > self.limits.entries {
            true => format!("it lists more than {} entries", self.limits.listing_total.entries),
            false => format!("its names and digests exceed {} MiB", self.limits.listing_total.texts >> 20),
        }
    }
}

fn count_entry<E: serde::de::Error>(texts: usize) -> Result<(), E> {
    COUNTER.with_borrow(|counter| {
        let Some(counter) = counter else { return Ok(()) };
        counter.entries.fetch_add(1, Ordering::Relaxed);
        counter.texts.fetch_add(texts as u64, Ordering::Relaxed);
        match counter.is_exceeded() {
            true => Err(E::custom(counter.excess())),
            false => Ok(()),
        }
    })
}

/// An entry of a listing.
pub trait ListEntry {
    /// Returns the bytes of its texts that are kept.
    fn text_bytes(&self) -> usize;
}

impl ListEntry for String {
    fn text_bytes(&self) -> usize {
        self.len()
    }
}

/// Entries of a page: a list whose length and texts are limited while it is parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundedList<T>(Vec<T>);

impl<T> Default for BoundedList<T> {
    fn default() -> BoundedList<T> {
        BoundedList(Vec::new())
    }
}

impl<T> BoundedList<T> {
    /// Returns the list.
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }
}

impl<T> Deref for BoundedList<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> IntoIterator for BoundedList<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a BoundedList<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<'de, T: Deserialize<'de> + ListEntry> Deserialize<'de> for BoundedList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BoundedList<T>, D::Error> {
        struct List<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de> + ListEntry> Visitor<'de> for List<T> {
            type Value = BoundedList<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<BoundedList<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element::<T>()? {
                    count_entry(entry.text_bytes())?;
                    entries.push(entry);
                }
                Ok(BoundedList(entries))
            }
        }

        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// Entries of a page by key, in the page's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BoundedMap<T>(pub(super) Vec<(String, T)>);

impl<'de, T: Deserialize<'de> + ListEntry> Deserialize<'de> for BoundedMap<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BoundedMap<T>, D::Error> {
        struct Map<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de> + ListEntry> Visitor<'de> for Map<T> {
            type Value = BoundedMap<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<BoundedMap<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some((key, entry)) = map.next_entry::<String, T>()? {
                    count_entry(key.len() + entry.text_bytes())?;
                    entries.push((key, entry));
                }
                Ok(BoundedMap(entries))
            }
        }

        deserializer.deserialize_map(Map(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PageLimits =
        PageLimits { bytes: 1 << 20, entries: 3, texts: 100, listing_total: PageSize { entries: 3, texts: 100 } };

    fn counted<T: DeserializeOwned>(json: &str) -> (serde_json::Result<T>, PageSize) {
        let counter = Arc::new(EntryCounter::new(LIMITS));
        (counter.count_during(|| serde_json::from_str(json)), counter.size())
    }

    #[test]
    fn entries_and_texts_are_limited_while_they_are_parsed() {
        let (list, size) = counted::<BoundedList<String>>(r#"["a","bc","def"]"#);
        assert_eq!((list.unwrap().len(), size), (3, PageSize { entries: 3, texts: 6 }));
        let (list, size) = counted::<BoundedList<String>>(r#"["a","b","c","d","e" what comes after is not looked at"#);
        assert!(list.unwrap_err().to_string().contains("more than"), "before the whole is read");
        assert_eq!(size.entries, 4);
        let long = "x".repeat(101);
        let (map, _) = counted::<BoundedMap<String>>(&format!(r#"{{"{long}":""}}"#));
        assert!(map.unwrap_err().to_string().contains("names and digests"));
        assert!(
            serde_json::from_str::<BoundedList<String>>(r#"["a","b","c","d"]"#).is_ok(),
            "elsewhere nothing is counted"
        );
    }

    #[tokio::test]
    async fn pieces_are_one_text_wherever_they_are_cut_and_a_long_one_is_refused() {
        let json = serde_json::to_string(&["a\"b\\", "\\", "c"]).unwrap();
        for cut in 1..json.len() {
            let (sender, waiting) = mpsc::channel(2);
            sender.send(Bytes::copy_from_slice(&json.as_bytes()[..cut])).await.unwrap();
            sender.send(Bytes::copy_from_slice(&json.as_bytes()[cut..])).await.unwrap();
            drop(sender);
            let read =
                tokio::task::spawn_blocking(|| serde_json::from_reader::<_, Vec<String>>(ChunkReader::new(waiting)));
            assert_eq!(read.await.unwrap().unwrap(), ["a\"b\\", "\\", "c"]);
        }
        let mut pieces = ChunkReader::new(mpsc::channel(1).1);
        pieces.check_text_length(b"[\"").unwrap();
        pieces.check_text_length(&vec![b'x'; MAX_TEXT_BYTES]).unwrap();
        assert!(pieces.check_text_length(b"x").is_err());
    }
}
