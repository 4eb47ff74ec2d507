//! Message signatures: HMAC-SHA256 (RFC 2104) of the body. See [`SigningKey`].

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use imgsync_oci::secret::Secret;

/// Size of a MAC in bytes ([`SigningKey::compute_mac`]).
pub const MAC_BYTES: usize = 32;
/// Size of a truncated MAC in bytes: long enough against guessing, and short where each of millions of records has one.
pub const TRUNCATED_MAC_BYTES: usize = 16;

/// Signs messages and verifies signatures.
#[derive(Clone)]
pub struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    /// Creates a key from the configuration's `cluster.key`.
    pub fn new(key: &Secret) -> SigningKey {
        let mac = Hmac::new_from_slice(key.expose().as_bytes());
        // HMAC accepts keys of any length.
        #[allow(clippy::expect_used)]
        SigningKey(mac.expect("a key of any length"))
    }

    /// Signs a body: 64 lowercase hexadecimal digits.
    pub fn sign(&self, body: &[u8]) -> String {
        hex::encode(self.0.clone().chain_update(body).finalize().into_bytes())
    }

    /// Signs a body: 32 raw bytes.
    pub fn sign_raw(&self, body: &[u8]) -> Vec<u8> {
        self.0.clone().chain_update(body).finalize().into_bytes().to_vec()
    }

    /// Computes the MAC of a stored record: `kind` names its type, and `parts` its content and context. Each part is
    /// hashed with its length, so that no two lists of parts are alike. The kind separates these MACs from message
    /// signatures, whose bodies begin with `{`.
    pub fn compute_mac(&self, kind: &str, parts: &[&[u8]]) -> Vec<u8> {
        self.mac_over(kind, parts).finalize().into_bytes().to_vec()
    }

    /// Verifies the MAC of these parts, in constant time.
    pub fn verify_mac(&self, kind: &str, parts: &[&[u8]], tag: &[u8]) -> bool {
        self.mac_over(kind, parts).verify_slice(tag).is_ok()
    }

    /// Verifies a truncated MAC of these parts, [`TRUNCATED_MAC_BYTES`] long.
    pub fn verify_truncated_mac(&self, kind: &str, parts: &[&[u8]], tag: &[u8]) -> bool {
        tag.len() == TRUNCATED_MAC_BYTES && self.mac_over(kind, parts).verify_truncated_left(tag).is_ok()
    }

    fn mac_over(&self, kind: &str, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = self.0.clone().chain_update(b"imgsync ").chain_update(kind);
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }

    /// Verifies the signature of a body, in constant time.
    pub fn verify(&self, body: &[u8], signature: &str) -> bool {
        let Ok(signature) = hex::decode(signature) else { return false };
        self.0.clone().chain_update(body).verify_slice(&signature).is_ok()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_hmac_sha256() {
        // RFC 4231, test case 2.
        let key = SigningKey::new(&Secret::new("Jefe"));
        let signature = key.sign(b"what do ya want for nothing?");
        assert_eq!(signature, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn another_body_key_or_signature_is_refused() {
        let key = SigningKey::new(&Secret::new("one"));
        let signature = key.sign(b"body");
        assert!(key.verify(b"body", &signature));
        assert!(!key.verify(b"bodY", &signature));
        assert!(!SigningKey::new(&Secret::new("two")).verify(b"body", &signature));
        for wrong in ["", "zz", &signature[..62], &format!("{signature}00")] {
            assert!(!key.verify(b"body", wrong), "{wrong}");
        }
    }

    #[test]
    fn a_mac_holds_for_its_kind_and_its_parts_alone() {
        let key = SigningKey::new(&Secret::new("one"));
        let tag = key.compute_mac("segment", &[b"ab", b"c"]);
        assert_eq!(tag.len(), MAC_BYTES);
        assert!(key.verify_mac("segment", &[b"ab", b"c"], &tag));
        let others: [(&str, &[&[u8]]); 5] = [
            ("options", &[b"ab", b"c"]),
            ("segment", &[b"a", b"bc"]),
            ("segment", &[b"abc"]),
            ("segment", &[b"ab", b"c", b""]),
            ("segment", &[b"c", b"ab"]),
        ];
        for (kind, parts) in others {
            assert!(!key.verify_mac(kind, parts, &tag), "{kind} {parts:?}");
        }
        assert!(
            !key.verify_mac("segment", &[b"ab", b"c"], &tag[..31]) && !key.verify_mac("segment", &[b"ab", b"c"], b"")
        );
        assert!(!SigningKey::new(&Secret::new("two")).verify_mac("segment", &[b"ab", b"c"], &tag));
    }

    #[test]
    fn the_key_is_never_printed() {
        assert_eq!(format!("{:?}", SigningKey::new(&Secret::new("s3cret"))), "SigningKey(***)");
    }
}
