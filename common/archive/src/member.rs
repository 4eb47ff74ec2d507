//! Members of an archive, and their tar headers.

use bytes::{Bytes, BytesMut};
use imgsync_oci::Digest;
use tar::{EntryType, Header};

/// Size of a tar block in bytes: headers are one block, and content is padded to whole blocks.
const BLOCK_BYTES: u64 = 512;
/// Longest path that a header holds.
const MAX_HEADER_PATH_BYTES: usize = 100;
/// Name of the GNU extension that holds a longer path, as a member before the member itself.
const LONG_PATH_MEMBER: &str = "././@LongLink";
/// Length of the two empty blocks that end an archive, in bytes.
pub(crate) const TRAILER_BYTES: u64 = 2 * BLOCK_BYTES;

/// A file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Path within the archive.
    pub path: String,
    /// Size of the content in bytes.
    pub size: u64,
    /// Where the content comes from.
    pub content: MemberContent,
}

/// Content of a [`Member`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberContent {
    /// Bytes of the plan.
    Inline(Bytes),
    /// A manifest or an index.
    Manifest(Digest),
    /// A config or a layer.
    Blob(Digest),
}

impl Member {
    pub(crate) fn inline(path: impl Into<String>, bytes: impl Into<Bytes>) -> Member {
        let bytes = bytes.into();
        Member { path: path.into(), size: bytes.len() as u64, content: MemberContent::Inline(bytes) }
    }

    /// Returns the digest of a blob; `None` for all other members.
    pub fn blob(&self) -> Option<&Digest> {
        match &self.content {
            MemberContent::Blob(digest) => Some(digest),
            MemberContent::Manifest(_) | MemberContent::Inline(_) => None,
        }
    }

    /// Returns the digest, for a manifest or blob.
    pub fn digest(&self) -> Option<&Digest> {
        match &self.content {
            MemberContent::Inline(_) => None,
            MemberContent::Manifest(digest) | MemberContent::Blob(digest) => Some(digest),
        }
    }

    /// Returns the tar header, which may have several blocks.
    pub fn header(&self) -> Bytes {
        let mut blocks = BytesMut::new();
        if self.path.len() > MAX_HEADER_PATH_BYTES {
            let mut path = self.path.clone().into_bytes();
            path.push(0);
            blocks.extend_from_slice(&encode_header(
                LONG_PATH_MEMBER.as_bytes(),
                path.len() as u64,
                EntryType::GNULongName,
            ));
            path.resize(path.len().next_multiple_of(BLOCK_BYTES as usize), 0);
            blocks.extend_from_slice(&path);
        }
        let path = &self.path.as_bytes()[..self.path.len().min(MAX_HEADER_PATH_BYTES)];
        blocks.extend_from_slice(&encode_header(path, self.size, EntryType::Regular));
        blocks.freeze()
    }

    /// Returns the number of zero bytes after the content.
    pub fn padding(&self) -> u64 {
        self.size.next_multiple_of(BLOCK_BYTES) - self.size
    }

    /// Returns the number of bytes that the member takes in the archive: header, content and padding.
    pub fn archived_size(&self) -> u64 {
        let long_path = match self.path.len() > MAX_HEADER_PATH_BYTES {
            true => BLOCK_BYTES + (self.path.len() as u64 + 1).next_multiple_of(BLOCK_BYTES),
            false => 0,
        };
        long_path + BLOCK_BYTES + self.size + self.padding()
    }
}

fn encode_header(path: &[u8], size: u64, entry_type: EntryType) -> [u8; BLOCK_BYTES as usize] {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(entry_type);
    header.set_cksum();
    *header.as_bytes()
}
