//! Finds out how much of an unfinished file is of use for a plan.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};

use imgsync_oci::{Digest, Hasher};
use tokio_util::sync::CancellationToken;

use super::member::{Member, MemberContent, TRAILER_BYTES};
use super::plan::ArchivePlan;

const READ_BYTES: usize = 256 << 10;

/// Returns where the whole members of a plan end in an unfinished archive. Their content is hashed, except for those that
/// end at `known` or before. The reader begins at the first of the others. Cancellation fails with
/// [`io::ErrorKind::Interrupted`].
pub fn verified_length(
    reader: impl Read,
    plan: &ArchivePlan,
    known: u64,
    cancel: &CancellationToken,
) -> io::Result<u64> {
    let mut reader = BufReader::with_capacity(READ_BYTES, reader);
    let mut verified = 0;
    for member in plan.members() {
        let end = verified + member.archived_size();
        if end > known && !is_whole(&mut reader, member, cancel)? {
            break;
        }
        verified = end;
    }
    Ok(verified)
}

/// Whether a file is the archive of a plan, byte for byte. Cancellation fails with [`io::ErrorKind::Interrupted`].
pub fn is_whole_archive(file: &mut File, plan: &ArchivePlan, cancel: &CancellationToken) -> io::Result<bool> {
    let members = plan.total_size() - TRAILER_BYTES;
    if file.metadata()?.len() != plan.total_size() {
        return Ok(false);
    }
    file.rewind()?;
    if verified_length(&mut *file, plan, 0, cancel)? != members {
        return Ok(false);
    }
    file.seek(SeekFrom::Start(members))?;
    is_next(file, &[0; TRAILER_BYTES as usize])
}

fn is_whole(reader: &mut impl Read, member: &Member, cancel: &CancellationToken) -> io::Result<bool> {
    if !is_next(reader, &member.header())? {
        return Ok(false);
    }
    let is_right = match &member.content {
        MemberContent::Inline(bytes) => is_next(reader, bytes)?,
        MemberContent::Manifest(digest) | MemberContent::Blob(digest) => {
            is_next_content(reader, digest, member.size, cancel)?
        }
    };
    Ok(is_right && is_next(reader, &vec![0; usize::try_from(member.padding()).unwrap_or(0)])?)
}

/// Whether these bytes follow.
fn is_next(reader: &mut impl Read, expected: &[u8]) -> io::Result<bool> {
    let mut found = vec![0; expected.len()];
    match reader.read_exact(&mut found) {
        Ok(()) => Ok(found == expected),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether content with this digest follows.
fn is_next_content(reader: &mut impl Read, digest: &Digest, size: u64, cancel: &CancellationToken) -> io::Result<bool> {
    let mut hasher = Hasher::new(digest.algorithm());
    let mut chunk = vec![0; READ_BYTES];
    let mut left = size;
    while left > 0 {
        if cancel.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(READ_BYTES);
        match reader.read(&mut chunk[..wanted])? {
            0 => return Ok(false),
            length => {
                hasher.update(&chunk[..length]);
                left -= length as u64;
            }
        }
    }
    Ok(hasher.finish() == *digest)
}
