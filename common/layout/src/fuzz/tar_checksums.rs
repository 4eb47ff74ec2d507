//! Mutated tars with valid checksums. `imgsync-bundle` includes this file.

const BLOCK_BYTES: usize = 512;

/// Corrects the checksums of the headers of a tar, without which all that follows a changed header is not read.
pub(super) fn with_checksums(input: &[u8]) -> Vec<u8> {
    let (mut bytes, mut at) = (input.to_vec(), 0_usize);
    while let Some(block) = at.checked_add(BLOCK_BYTES).and_then(|end| bytes.get_mut(at..end)) {
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        if block.iter().any(|byte| *byte != 0) {
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
        let size = header.entry_size().unwrap_or_default().min(input.len() as u64) as usize;
        at += BLOCK_BYTES + size.next_multiple_of(BLOCK_BYTES);
    }
    bytes
}
