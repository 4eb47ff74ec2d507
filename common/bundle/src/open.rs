//! Opens a bundle: finds its index, and checks the signature before anything in it is believed.

use std::io;
use std::sync::Arc;

use imgsync_oci::Digest;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::sanitize::sanitize_within;
use tar::Header;

use crate::index::{BundleIndex, MAX_INDEX_BYTES};
use crate::parts::PartReader;
use crate::public_key::PublicKey;
use crate::{INDEX_MEMBER, SIGNATURE_MEMBER};

/// Size of a block of a tar in bytes.
pub(crate) const BLOCK_BYTES: u64 = 512;
/// Maximum number of members before the index.
const MAX_MEMBERS_BEFORE: usize = 64;
/// Maximum size of a signature in bytes.
const MAX_SIGNATURE_BYTES: u64 = 4096;

/// A bundle whose index was read.
#[derive(Debug, Clone)]
pub struct OpenedBundle {
    /// Its bytes.
    pub reader: Arc<PartReader>,
    /// Its index.
    pub index: Arc<BundleIndex>,
    /// The index as it was read.
    pub index_bytes: Arc<Vec<u8>>,
    /// Signature of the index in base64, if it has one.
    pub signature: Option<String>,
}

impl OpenedBundle {
    /// Reads the index of a bundle. With a key, the signature must hold.
    pub fn open(reader: PartReader, key: Option<&PublicKey>) -> Result<OpenedBundle> {
        let read = &mut |buffer: &mut [u8], offset| reader.read_exact_at(buffer, offset);
        let (index_bytes, signature) = read_index(reader.label(), read)?;
        check_signature(reader.label(), &index_bytes, signature.as_deref(), key)?;
        let digest = Digest::sha256(&index_bytes);
        if let Some(list) = reader.list()
            && list.index != digest
        {
            let detail = format!("its index is {digest}, and the list of parts is of a bundle with {}", list.index);
            return Err(Error::new(ErrorKind::Corrupt, format!("opening the bundle {}", reader.label()), detail)
                .with_hint("carry the list of parts (NAME.json) over again"));
        }
        let index = BundleIndex::decode(&index_bytes, &format!("the index of {}", reader.label()))?;
        let (reader, index, index_bytes) = (Arc::new(reader), Arc::new(index), Arc::new(index_bytes));
        Ok(OpenedBundle { reader, index, index_bytes, signature })
    }
}

/// Checks a signature, if there is a key. A bundle that is not signed, or by another key, is refused.
pub(crate) fn check_signature(
    label: &str,
    bytes: &[u8],
    signature: Option<&str>,
    key: Option<&PublicKey>,
) -> Result<()> {
    let Some(key) = key else { return Ok(()) };
    let detail = match signature {
        None => "the bundle is not signed",
        Some(signature) if key.verify(bytes, signature) => return Ok(()),
        Some(_) => "the signature does not hold: the bundle is signed by another key, or its index was changed",
    };
    Err(Error::new(ErrorKind::Insecure, format!("verifying {label}"), detail)
        .with_hint("nothing was loaded; make sure that the bundle and the public key are from whom you expect"))
}

/// Reads the index and the signature, which are before all content. `read_exact_at` fills a buffer from an offset, which only grows.
/// It reads up to and with the header of the first content.
pub(crate) fn read_index(
    label: &str,
    read_exact_at: &mut dyn FnMut(&mut [u8], u64) -> io::Result<()>,
) -> Result<(Vec<u8>, Option<String>)> {
    let operation = format!("opening the bundle {label}");
    let corrupt = |detail: String| {
        Error::new(ErrorKind::Corrupt, &operation, detail)
            .with_hint("`imgsync bundle verify` names damaged parts; carry them over again")
    };
    let unreadable = |error: io::Error, detail: String| match error.kind() {
        io::ErrorKind::TimedOut => Error::new(ErrorKind::TimedOut, &operation, error.to_string()),
        _ => corrupt(detail),
    };
    let mut offset = 0;
    let (mut index, mut signature) = (None, None);
    for number in 0..MAX_MEMBERS_BEFORE {
        let mut block = [0; BLOCK_BYTES as usize];
        read_exact_at(&mut block, offset).map_err(|error| match number {
            0 => unreadable(error, "it is no tar: it is too short".to_owned()),
            _ => {
                let detail = format!("it is truncated at byte {offset}: {error}");
                unreadable(error, detail)
            }
        })?;
        if block.iter().all(|byte| *byte == 0) {
            break;
        }
        let header = Header::from_byte_slice(&block);
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(match number {
                0 => corrupt("it is no bundle: it is not a tar".to_owned()),
                _ => corrupt(format!("the tar header at byte {offset} is damaged")),
            });
        }
        let size = header.entry_size().map_err(|error| corrupt(format!("the tar header at byte {offset}: {error}")))?;
        let path = header.path_bytes();
        offset += BLOCK_BYTES;
        let mut read = |limit: u64| {
            if size > limit {
                let path = String::from_utf8_lossy(&path);
                return Err(corrupt(format!("{} has {size} bytes", sanitize_within(&path, 80))));
            }
            let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
            read_exact_at(&mut bytes, offset).map_err(|error| {
                let detail = format!("at byte {offset}: {error}");
                unreadable(error, detail)
            })?;
            Ok(bytes)
        };
        if *path == *INDEX_MEMBER.as_bytes() && index.is_none() {
            index = Some(read(MAX_INDEX_BYTES)?);
        } else if *path == *SIGNATURE_MEMBER.as_bytes() && signature.is_none() {
            signature = Some(String::from_utf8_lossy(&read(MAX_SIGNATURE_BYTES)?).into_owned());
        } else if path.starts_with(b"blobs/") {
            break;
        }
        offset = size
            .checked_next_multiple_of(BLOCK_BYTES)
            .and_then(|size| offset.checked_add(size))
            .ok_or_else(|| corrupt(format!("the tar header at byte {offset} has an impossible size")))?;
    }
    match index {
        Some(index) => Ok((index, signature)),
        None => Err(Error::new(ErrorKind::Invalid, operation, "it is a tar without the index of a bundle")
            .with_hint("an image archive is copied with `imgsync sync oci-archive:FILE TARGET`")),
    }
}
