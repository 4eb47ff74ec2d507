//! Content digests (OCI image-spec, "Digests"): `algorithm:hex`, and hashing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// Hash algorithms registered by the OCI image-spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, used by nearly all content.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Returns the algorithm as written before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Returns the number of hexadecimal digits of a digest.
    pub fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// A validated digest: a known algorithm and the right number of lowercase hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

/// Error of parsing a [`Digest`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a digest: {reason}")]
pub struct ParseDigestError {
    text: String,
    reason: &'static str,
}

impl Digest {
    /// Hashes bytes with an algorithm.
    pub fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Hashes bytes with SHA-256.
    pub fn sha256(bytes: &[u8]) -> Digest {
        Digest::from_bytes(Algorithm::Sha256, bytes)
    }

    /// Returns the hash algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Returns the first twelve digits, for display.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }

    /// Whether the bytes have this digest.
    pub fn verifies(&self, bytes: &[u8]) -> bool {
        Digest::from_bytes(self.algorithm, bytes) == *self
    }

    /// Returns the tag under which a registry without the referrers API keeps the index of this digest's referrers:
    /// `alg[:32]-hex[:64]` (OCI distribution-spec v1.1, "Referrers tag schema").
    pub fn fallback_tag(&self) -> String {
        let hex = &self.hex[..self.hex.len().min(64)];
        format!("{}-{hex}", self.algorithm.as_str())
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Digest, ParseDigestError> {
        let error = |reason| ParseDigestError { text: crate::sanitize::sanitize(text).into_owned(), reason };
        let (algorithm, hex) = text.split_once(':').ok_or_else(|| error("it has no `algorithm:`"))?;
        let algorithm = match algorithm {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(error("only sha256 and sha512 are known")),
        };
        if hex.len() != algorithm.hex_len() {
            return Err(error(match algorithm {
                Algorithm::Sha256 => "a sha256 has 64 hexadecimal digits",
                Algorithm::Sha512 => "a sha512 has 128 hexadecimal digits",
            }));
        }
        if !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(error("its digits must be 0-9 and a-f, in lowercase"));
        }
        Ok(Digest { algorithm, hex: hex.into() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An incremental hash. A clone keeps the state, so a stream can be rewound to that point.
#[derive(Clone)]
pub struct Hasher(HashState);

#[derive(Clone)]
enum HashState {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// Creates a hasher without input.
    pub fn new(algorithm: Algorithm) -> Hasher {
        Hasher(match algorithm {
            Algorithm::Sha256 => HashState::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => HashState::Sha512(sha2::Sha512::new()),
        })
    }

    /// Adds bytes to the hash.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            HashState::Sha256(hash) => hash.update(bytes),
            HashState::Sha512(hash) => hash.update(bytes),
        }
    }

    /// Returns the digest of all bytes added.
    pub fn finish(self) -> Digest {
        match self.0 {
            HashState::Sha256(hash) => {
                Digest { algorithm: Algorithm::Sha256, hex: hex::encode(hash.finalize()).into() }
            }
            HashState::Sha512(hash) => {
                Digest { algorithm: Algorithm::Sha512, hex: hex::encode(hash.finalize()).into() }
            }
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_digests_come_out() {
        assert_eq!(
            Digest::sha256(b"{}").to_string(),
            "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        );
        assert!(Digest::from_bytes(Algorithm::Sha512, b"").to_string().starts_with("sha512:cf83e1357eefb8bd"));
    }

    #[test]
    fn a_fallback_tag_is_cut_to_what_a_tag_may_hold() {
        assert_eq!(Digest::sha256(b"x").fallback_tag().len(), "sha256-".len() + 64);
        assert_eq!(Digest::from_bytes(Algorithm::Sha512, b"x").fallback_tag().len(), "sha512-".len() + 64);
    }

    #[test]
    fn what_is_wrong_with_a_digest_is_said() {
        for (text, reason) in [
            ("abc", "no `algorithm:`"),
            ("md5:abc", "only sha256 and sha512"),
            ("sha256:abc", "64 hexadecimal digits"),
            (&format!("sha256:{}", "A".repeat(64)), "lowercase"),
            (&format!("sha256:{}", "g".repeat(64)), "0-9 and a-f"),
        ] {
            let error = text.parse::<Digest>().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(bytes: Vec<u8>, long: bool) {
            let algorithm = if long { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let digest = Digest::from_bytes(algorithm, &bytes);
            prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest.clone());
            prop_assert!(digest.verifies(&bytes));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<Digest>();
        }

        #[test]
        fn a_hash_fed_in_pieces_is_the_hash_of_the_whole(bytes: Vec<u8>, cut in 0usize..100) {
            let cut = cut.min(bytes.len());
            let mut hasher = Hasher::new(Algorithm::Sha256);
            hasher.update(&bytes[..cut]);
            let mut kept = hasher.clone();
            hasher.update(b"something that is taken back");
            kept.update(&bytes[cut..]);
            prop_assert_eq!(kept.finish(), Digest::sha256(&bytes));
        }
    }
}
