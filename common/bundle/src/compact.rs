//! Digests in 43 characters, and keys of digests in memory.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use imgsync_oci::{Algorithm, Digest};

/// A digest as a key in memory: the bytes of SHA-256; of another algorithm, the SHA-256 of its text.
pub(crate) type DigestKey = [u8; 32];

/// Returns the key of a digest.
pub(crate) fn digest_key(digest: &Digest) -> DigestKey {
    let hex = match digest.algorithm() {
        Algorithm::Sha256 => digest.hex().to_owned(),
        Algorithm::Sha512 => Digest::sha256(digest.to_string().as_bytes()).hex().to_owned(),
    };
    let mut key = [0; 32];
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = hex.get(2 * at..2 * at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()).unwrap_or_default();
    }
    key
}

/// Writes a digest: SHA-256 in base64url, another one in full.
pub(crate) fn encode_digest(digest: &Digest) -> String {
    match digest.algorithm() {
        Algorithm::Sha256 => URL_SAFE_NO_PAD.encode(digest_key(digest)),
        Algorithm::Sha512 => digest.to_string(),
    }
}

/// Reads a digest as [`encode_digest`] writes it.
pub(crate) fn decode_digest(text: &str) -> Option<Digest> {
    if text.contains(':') {
        return text.parse().ok();
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| bytes.len() == 32)?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_takes_43_characters_and_reads_back() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::from_bytes(algorithm, b"x");
            assert_eq!(decode_digest(&encode_digest(&digest)), Some(digest));
        }
        assert_eq!(encode_digest(&Digest::sha256(b"x")).len(), 43);
        assert_ne!(digest_key(&Digest::sha256(b"x")), digest_key(&Digest::from_bytes(Algorithm::Sha512, b"x")));
        for text in ["", "abc", "sha256:abc", "!", &"A".repeat(44)] {
            assert_eq!(decode_digest(text), None, "{text}");
        }
    }
}
