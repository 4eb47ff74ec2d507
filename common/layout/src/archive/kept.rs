//! Manifests and other small JSON of an archive, in memory: an archive that can only be read forward has them at hand.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::error::LayoutError;
use super::tar_index::{TarContent, TarInput, TarMember, TarMemberKind, TarScanner};

/// Largest content that is kept in memory, and all of it together.
pub(super) const MAX_KEPT_FILE_BYTES: u64 = 4 << 20;
const MAX_KEPT_BYTES: usize = 64 << 20;
/// Bytes kept of all other contents.
const MAGIC_BYTES: usize = 4;

/// Contents in memory, by their offsets.
#[derive(Debug, Default)]
pub(super) struct KeptContents {
    contents: BTreeMap<u64, Bytes>,
    bytes: usize,
}

impl KeptContents {
    /// Reads a member that was just found into memory, if it is JSON, such as a manifest, and of at most `limit`
    /// bytes. Returns whether it was; of others the first bytes are kept.
    pub(super) fn keep<I: TarInput>(
        &mut self,
        scanner: &mut TarScanner<I>,
        member: &TarMember,
        limit: u64,
    ) -> Result<bool, LayoutError> {
        let TarMemberKind::File(TarContent { start, size }) = member.kind else { return Ok(false) };
        let start_length = size.min(MAGIC_BYTES as u64) as usize;
        let mut content = vec![0; start_length];
        scanner.read_part(&member.path, &mut content)?;
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        let is_json = matches!(content.trim_ascii_start().first(), Some(b'{' | b'['));
        if !is_json || size > limit || self.bytes + length > MAX_KEPT_BYTES {
            // Enough to recognize a compression.
            self.contents.insert(start, content.into());
            return Ok(false);
        }
        content.resize(length, 0);
        scanner.read_part(&member.path, &mut content[start_length..])?;
        self.bytes += length;
        self.contents.insert(start, content.into());
        Ok(true)
    }

    /// Whether a content is in memory as a whole.
    pub(super) fn is_whole(&self, content: TarContent) -> bool {
        self.contents.get(&content.start).is_some_and(|kept| kept.len() as u64 == content.size)
    }

    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Option<usize> {
        let (start, content) = self.contents.range(..=offset).next_back()?;
        let rest = content.get(usize::try_from(offset - start).ok()?..).filter(|rest| !rest.is_empty())?;
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Some(length)
    }
}
