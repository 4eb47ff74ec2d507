//! Content: bytes that are there, or bytes made as they are asked for.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256, Sha512};

/// The content of a blob.
#[derive(Clone, Debug)]
pub enum Blob {
    /// All of it, in memory.
    Bytes(Bytes),
    /// Made by offset when it is read: a gigabyte takes no memory.
    Synthetic(Synthetic),
}

/// Pseudo-random content, addressed by offset.
#[derive(Clone, Debug)]
pub struct Synthetic {
    size: u64,
    seed: u64,
    page: Arc<[u8]>,
}

/// Bytes in a page of synthetic content: every page is the same but for its first eight bytes, which number it.
const PAGE: u64 = 64 * 1024;

impl Synthetic {
    /// Content of `size` bytes that follows from `seed` alone.
    pub fn new(seed: u64, size: u64) -> Self {
        let words = (0..PAGE / 8).flat_map(|word| mix(seed ^ mix(word)).to_le_bytes());
        Self { size, seed, page: words.collect() }
    }

    fn read(&self, range: Range<u64>) -> Bytes {
        let mut out = Vec::with_capacity(usize::try_from(range.end - range.start).expect("a chunk fits in memory"));
        let mut at = range.start;
        while at < range.end {
            let (page, within) = (at / PAGE, at % PAGE);
            let take = (PAGE - within).min(range.end - at);
            let start = out.len();
            out.extend_from_slice(&self.page[within as usize..(within + take) as usize]);
            let number = mix(self.seed.wrapping_add(page)).to_le_bytes();
            for offset in within..8.min(within + take) {
                out[start + (offset - within) as usize] = number[offset as usize];
            }
            at += take;
        }
        out.into()
    }
}

/// The finalizer of splitmix64.
fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Blob {
    /// Content of `size` bytes that follows from a name, made as it is read.
    pub fn synthetic(name: &str, size: u64) -> Self {
        Self::Synthetic(Synthetic::new(seed_of(name), size))
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Synthetic(synthetic) => synthetic.size,
        }
    }

    /// The bytes of a range, which must lie within the blob.
    pub fn read(&self, range: Range<u64>) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes.slice(range.start as usize..range.end as usize),
            Self::Synthetic(synthetic) => synthetic.read(range),
        }
    }

    /// All of it, in pieces of at most 64 KiB.
    pub fn pieces(&self) -> impl Iterator<Item = Bytes> + '_ {
        let size = self.size();
        (0..size.div_ceil(PAGE)).map(move |page| self.read(page * PAGE..((page + 1) * PAGE).min(size)))
    }

    /// Its sha256 digest, `sha256:…`.
    pub fn sha256(&self) -> String {
        self.hash::<Sha256>("sha256")
    }

    /// Its sha512 digest, `sha512:…`.
    pub fn sha512(&self) -> String {
        self.hash::<Sha512>("sha512")
    }

    fn hash<H: sha2::Digest>(&self, algorithm: &str) -> String {
        let mut hash = H::new();
        for piece in self.pieces() {
            hash.update(&piece);
        }
        format!("{algorithm}:{}", hex::encode(hash.finalize()))
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

/// The sha256 digest of bytes, `sha256:…`.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// The sha512 digest of bytes, `sha512:…`.
pub fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex::encode(Sha512::digest(bytes)))
}

/// The digest of bytes by the algorithm that another digest names; none if it is unknown.
pub fn digest_with(like: &str, bytes: &[u8]) -> Option<String> {
    match like.split_once(':')?.0 {
        "sha256" => Some(sha256(bytes)),
        "sha512" => Some(sha512(bytes)),
        _ => None,
    }
}

/// A seed that follows from a name.
pub fn seed_of(name: &str) -> u64 {
    let hash: [u8; 32] = Sha256::digest(name.as_bytes()).into();
    u64::from_le_bytes(hash[..8].try_into().expect("a hash has eight bytes"))
}
