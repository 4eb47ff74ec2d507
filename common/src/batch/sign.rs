//! Signatures of messages: HMAC-SHA256 (RFC 2104) over the body. See [`SigningKey`].

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::secret::Secret;

/// Signs messages and tells whether one was signed with the same key.
#[derive(Clone)]
pub struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    /// From the configuration's `cluster.key`.
    pub fn new(key: &Secret) -> SigningKey {
        let mac = Hmac::new_from_slice(key.expose().as_bytes());
        // HMAC takes keys of every length.
        #[allow(clippy::expect_used)]
        SigningKey(mac.expect("a key of any length"))
    }

    /// The signature of a body: 64 lowercase hexadecimal digits.
    pub fn sign(&self, body: &[u8]) -> String {
        hex::encode(self.0.clone().chain_update(body).finalize().into_bytes())
    }

    /// The signature of a body, as bytes: 32 of them.
    pub fn sign_raw(&self, body: &[u8]) -> Vec<u8> {
        self.0.clone().chain_update(body).finalize().into_bytes().to_vec()
    }

    /// Whether it is this body's signature with this key. Takes as long for wrong ones, wherever they differ.
    pub fn verifies(&self, body: &[u8], signature: &str) -> bool {
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
        assert!(key.verifies(b"body", &signature));
        assert!(!key.verifies(b"bodY", &signature));
        assert!(!SigningKey::new(&Secret::new("two")).verifies(b"body", &signature));
        for wrong in ["", "zz", &signature[..62], &format!("{signature}00")] {
            assert!(!key.verifies(b"body", wrong), "{wrong}");
        }
    }

    #[test]
    fn the_key_is_never_printed() {
        assert_eq!(format!("{:?}", SigningKey::new(&Secret::new("s3cret"))), "SigningKey(***)");
    }
}
