//! Streams the members of a plan into a sink.

use std::collections::HashMap;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Digest, Hasher};

use super::member::{Member, MemberContent, TRAILER_BYTES};
use super::plan::ArchivePlan;
use super::sink::ArchiveSink;

/// Zero bytes for padding and the trailer.
static ZEROS: [u8; TRAILER_BYTES as usize] = [0; TRAILER_BYTES as usize];

/// Largest blob that is read into memory, in bytes.
pub const MAX_SMALL_BLOB_BYTES: u64 = 1 << 20;
/// Small blobs read at the same time.
const CONCURRENT_SMALL_BLOBS: usize = 8;

/// Content of a blob.
pub type ContentStream = BoxStream<'static, Result<Bytes>>;

/// Where the content of an archive comes from.
#[async_trait]
pub trait ArchiveSource: Send + Sync {
    /// Reads a manifest of the plan.
    async fn read_manifest(&self, digest: &Digest) -> Result<Bytes>;

    /// Opens a blob of the plan at its first byte. A source whose streams resume after a broken connection does so inside of
    /// the stream.
    async fn open_blob(&self, digest: &Digest, size: u64) -> Result<ContentStream>;

    /// Whether the streams fail before their last byte if the content does not match its digest. Then it is not hashed
    /// again.
    fn verifies_blobs(&self) -> bool {
        false
    }

    /// Whether a blob comes out of a pipe, and is read when [`ArchiveSource::next_streamed`] has named it.
    fn is_streamed(&self, _digest: &Digest) -> bool {
        false
    }

    /// Moves on to the next blob that comes out of a pipe; `None` at its end.
    async fn next_streamed(&self) -> Result<Option<Digest>> {
        Ok(None)
    }
}

/// Why an archive could not be written.
#[derive(Debug)]
pub struct WriteFailure {
    /// The error.
    pub error: Error,
    /// Digest of the blob that cannot be read, or has other content, at its source: the rest could be written without it.
    pub blob: Option<Digest>,
}

impl From<Error> for WriteFailure {
    fn from(error: Error) -> WriteFailure {
        WriteFailure { error, blob: None }
    }
}

impl From<WriteFailure> for Error {
    fn from(failure: WriteFailure) -> Error {
        failure.error
    }
}

impl WriteFailure {
    /// Blames a blob if the error says that it is missing or wrong. All other errors would hit every blob.
    fn of_blob(error: Error, digest: Option<&Digest>) -> WriteFailure {
        let is_about_content =
            matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt | ErrorKind::InvalidResponse);
        WriteFailure { error, blob: digest.filter(|_| is_about_content).cloned() }
    }
}

/// Writes an archive. `resume_from` is the number of bytes that the sink already has: whole members before it are
/// not read again, and of a member around it only the rest is written. A blob with wrong content fails with [`ErrorKind::Corrupt`]; a
/// sink that can rewind gets it once more. Blobs that come out of a pipe follow the others, in the order of the pipe.
pub async fn write_archive(
    plan: &ArchivePlan,
    source: &dyn ArchiveSource,
    sink: &mut dyn ArchiveSink,
    resume_from: u64,
) -> std::result::Result<(), WriteFailure> {
    let mut output = OffsetSink { sink, offset: 0, written: resume_from };
    if plan.members().iter().any(|member| is_streamed(member, source)) {
        output.write_streamed(plan.members(), source).await?;
        return Ok(output.write(Bytes::from_static(&ZEROS)).await?);
    }
    let mut members = plan.members();
    while let Some(member) = members.first() {
        if output.offset + member.archived_size() <= output.written {
            output.offset += member.archived_size();
            members = &members[1..];
            continue;
        }
        let small = members.iter().take_while(|member| is_small_blob(member)).count();
        let (now, later) = members.split_at(small.max(1));
        members = later;
        if small > 0 {
            output.write_small_blobs(now, source).await?;
            continue;
        }
        let written = output.write_member_twice(member, source).await;
        written.map_err(|error| WriteFailure::of_blob(error, member.blob()))?;
    }
    Ok(output.write(Bytes::from_static(&ZEROS)).await?)
}

fn is_streamed(member: &Member, source: &dyn ArchiveSource) -> bool {
    matches!(&member.content, MemberContent::Blob(digest) if source.is_streamed(digest))
}

/// Whether a member is read into memory, while others are.
fn is_small_blob(member: &Member) -> bool {
    matches!(member.content, MemberContent::Blob(_)) && member.size <= MAX_SMALL_BLOB_BYTES
}

/// Reads and verifies a small blob; wrong content is read once more.
async fn read_small_blob(digest: &Digest, size: u64, source: &dyn ArchiveSource) -> Result<Bytes> {
    match collect_blob(digest, size, source).await {
        Err(error) if error.kind() == ErrorKind::Corrupt => collect_blob(digest, size, source).await,
        read => read,
    }
}

fn read_small_member<'a>(
    member: &'a Member,
    source: &'a dyn ArchiveSource,
) -> BoxFuture<'a, std::result::Result<(&'a Member, Bytes), WriteFailure>> {
    Box::pin(async move {
        let digest = member
            .digest()
            .ok_or_else(|| Error::new(ErrorKind::Local, format!("archiving {}", member.path), "it is not a blob"))?;
        match read_small_blob(digest, member.size, source).await {
            Ok(bytes) => Ok((member, bytes)),
            Err(error) => Err(WriteFailure::of_blob(error, Some(digest))),
        }
    })
}

async fn collect_blob(digest: &Digest, size: u64, source: &dyn ArchiveSource) -> Result<Bytes> {
    let mut stream = source.open_blob(digest, size).await?;
    let mut bytes = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk?);
        if bytes.len() as u64 > size {
            return Err(too_long(digest, size));
        }
    }
    if (bytes.len() as u64) < size {
        return Err(too_short(digest, bytes.len() as u64, size));
    }
    // Nobody verifies a blob without content while it streams.
    match (size > 0 && source.verifies_blobs()) || digest.verifies(&bytes) {
        true => Ok(bytes.freeze()),
        false => Err(wrong_content(digest, &Digest::from_bytes(digest.algorithm(), &bytes))),
    }
}

/// A sink, and where the next byte belongs.
struct OffsetSink<'a> {
    sink: &'a mut dyn ArchiveSink,
    /// Offset of the next byte in the archive.
    offset: u64,
    /// Number of bytes that the sink has.
    written: u64,
}

impl OffsetSink<'_> {
    /// Writes bytes, without those that the sink already has.
    async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        let known = usize::try_from(self.written.saturating_sub(self.offset)).unwrap_or(usize::MAX).min(bytes.len());
        self.offset += bytes.len() as u64;
        let _ = bytes.split_to(known);
        if bytes.is_empty() {
            return Ok(());
        }
        self.written += bytes.len() as u64;
        self.sink.write(bytes).await
    }

    /// Goes back to the start of a member.
    async fn rewind(&mut self, start: u64) -> Result<bool> {
        // What an earlier call wrote was verified.
        if self.written > start && !self.sink.rewind(start).await? {
            return Ok(false);
        }
        self.offset = start;
        self.written = self.written.min(start);
        Ok(true)
    }

    /// Writes all members: first those that are at hand, then the others in the order in which they come out of a pipe.
    async fn write_streamed(&mut self, plan: &[Member], source: &dyn ArchiveSource) -> Result<()> {
        let (streamed, at_hand): (Vec<&Member>, Vec<&Member>) =
            plan.iter().partition(|member| is_streamed(member, source));
        let by_digest = streamed.iter().filter_map(|member| Some((member.digest()?, *member)));
        let mut left: HashMap<&Digest, &Member> = by_digest.collect();
        let mut planned = plan.iter();
        for member in at_hand {
            if !self.has_next(member, planned.next()).await? {
                self.write_member_twice(member, source).await?;
            }
        }
        while let Some(digest) = source.next_streamed().await? {
            let Some(member) = left.remove(&digest) else { continue };
            if !self.has_next(member, planned.next()).await? {
                self.write_member(member, source).await?;
            }
        }
        // The pipe did not have it: reading it says so.
        match streamed.iter().find(|member| member.digest().is_some_and(|digest| left.contains_key(digest))) {
            Some(member) => self.write_member(member, source).await,
            None => Ok(()),
        }
    }

    /// Whether the sink already has the next member, which then counts as written. What an earlier run left there has the
    /// order of the plan: if another member is planned here, it is written over.
    async fn has_next(&mut self, member: &Member, planned: Option<&Member>) -> Result<bool> {
        if planned != Some(member) && !self.rewind(self.offset).await? {
            return Err(Error::new(
                ErrorKind::Local,
                format!("archiving {}", member.path),
                "the output cannot go back",
            ));
        }
        let end = self.offset + member.archived_size();
        if end > self.written {
            return Ok(false);
        }
        self.offset = end;
        Ok(true)
    }

    /// Writes a member, once more if its content was wrong and the sink can rewind.
    async fn write_member_twice(&mut self, member: &Member, source: &dyn ArchiveSource) -> Result<()> {
        let start = self.offset;
        match self.write_member(member, source).await {
            Err(error) if error.kind() == ErrorKind::Corrupt && self.rewind(start).await? => {
                self.write_member(member, source).await
            }
            written => written,
        }
    }

    async fn write_member(&mut self, member: &Member, source: &dyn ArchiveSource) -> Result<()> {
        self.write(member.header()).await?;
        match &member.content {
            MemberContent::Inline(bytes) => self.write(bytes.clone()).await?,
            MemberContent::Manifest(digest) => {
                let bytes = source.read_manifest(digest).await?;
                if bytes.len() as u64 != member.size || !digest.verifies(&bytes) {
                    return Err(wrong_content(digest, &Digest::from_bytes(digest.algorithm(), &bytes)));
                }
                self.write(bytes).await?;
            }
            MemberContent::Blob(digest) => self.write_blob(digest, member.size, source).await?,
        }
        self.write_padding(member).await
    }

    /// Writes small blobs, several of which are read at the same time: most of their time is spent waiting.
    async fn write_small_blobs(
        &mut self,
        members: &[Member],
        source: &dyn ArchiveSource,
    ) -> std::result::Result<(), WriteFailure> {
        let reads: Vec<_> = members.iter().map(|member| read_small_member(member, source)).collect();
        let mut contents = futures_util::stream::iter(reads).buffered(CONCURRENT_SMALL_BLOBS);
        while let Some(read) = contents.next().await {
            let (member, bytes) = read?;
            self.write(member.header()).await?;
            self.write(bytes).await?;
            self.write_padding(member).await?;
        }
        Ok(())
    }

    async fn write_padding(&mut self, member: &Member) -> Result<()> {
        self.write(Bytes::from_static(&ZEROS[..usize::try_from(member.padding()).unwrap_or(0)])).await
    }

    async fn write_blob(&mut self, digest: &Digest, size: u64, source: &dyn ArchiveSource) -> Result<()> {
        if size == 0 && !digest.verifies(b"") {
            return Err(wrong_content(digest, &Digest::from_bytes(digest.algorithm(), b"")));
        }
        let mut stream = source.open_blob(digest, size).await?;
        let mut hasher = (!source.verifies_blobs()).then(|| Hasher::new(digest.algorithm()));
        let mut left = size;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            left = left.checked_sub(chunk.len() as u64).ok_or_else(|| too_long(digest, size))?;
            if let Some(hasher) = &mut hasher {
                hasher.update(&chunk);
                if left == 0 {
                    let found = hasher.clone().finish();
                    if found != *digest {
                        return Err(wrong_content(digest, &found));
                    }
                }
            }
            self.write(chunk).await?;
        }
        match left {
            0 => Ok(()),
            left => Err(too_short(digest, size - left, size)),
        }
    }
}

fn too_long(digest: &Digest, size: u64) -> Error {
    Error::new(ErrorKind::Corrupt, describe(digest), format!("longer than its {size} bytes"))
}

fn too_short(digest: &Digest, length: u64, size: u64) -> Error {
    Error::new(ErrorKind::Corrupt, describe(digest), format!("the stream ended after {length} of {size} bytes"))
}

fn describe(digest: &Digest) -> String {
    format!("archiving {digest}")
}

fn wrong_content(digest: &Digest, found: &Digest) -> Error {
    Error::new(ErrorKind::Corrupt, describe(digest), format!("the content has the digest {found}"))
}
