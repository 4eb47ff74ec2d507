//! Signatures of indexes, as `cosign sign-blob` and `openssl` make and check them: Ed25519, or ECDSA on P-256 with
//! SHA-256 (ASN.1), in base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imgsync_oci::error::{Error, ErrorKind, Result};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair};

use crate::public_key::pem_content;

const KEY_HINT: &str = "make a key with `openssl genpkey -algorithm ed25519 -out bundle.key`, and its public key with \
                        `openssl pkey -in bundle.key -pubout -out bundle.pub`";

/// A private key.
pub enum BundleSigningKey {
    /// Ed25519.
    Ed25519(Box<Ed25519KeyPair>),
    /// ECDSA on P-256.
    P256(Box<EcdsaKeyPair>, SystemRandom),
}

impl BundleSigningKey {
    /// Reads a private key in PKCS#8 PEM. `label` names it in errors.
    pub fn from_pem(text: &str, label: &str) -> Result<BundleSigningKey> {
        let refuse = |detail: &str, hint: &str| {
            Err(Error::new(ErrorKind::Invalid, format!("reading the key {label}"), detail).with_hint(hint))
        };
        let Some(der) = pem_content(text, "PRIVATE KEY") else {
            return match text {
                _ if text.contains("ENCRYPTED") => refuse(
                    "it is encrypted",
                    "decrypt it with `openssl pkey -in FILE -out PLAIN`; keys of cosign cannot be decrypted that way",
                ),
                _ if text.contains("EC PRIVATE KEY") => refuse(
                    "it is in the older format SEC1",
                    "convert it with `openssl pkcs8 -topk8 -nocrypt -in FILE -out NEW`",
                ),
                _ if text.contains("PUBLIC KEY") => refuse("it is a public key", "pass the private key"),
                _ => refuse("it holds no private key in PKCS#8 PEM", KEY_HINT),
            };
        };
        if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der) {
            return Ok(BundleSigningKey::Ed25519(Box::new(key)));
        }
        let random = SystemRandom::new();
        match EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &der, &random) {
            Ok(key) => Ok(BundleSigningKey::P256(Box::new(key), random)),
            Err(_) => refuse("it is neither a key of Ed25519 nor one on P-256", KEY_HINT),
        }
    }

    /// Signs bytes. Returns base64 with a line break.
    pub fn sign(&self, bytes: &[u8]) -> Result<String> {
        let signature = match self {
            BundleSigningKey::Ed25519(key) => key.sign(bytes).as_ref().to_vec(),
            BundleSigningKey::P256(key, random) => match key.sign(random, bytes) {
                Ok(signature) => signature.as_ref().to_vec(),
                Err(_) => {
                    return Err(Error::new(ErrorKind::Local, "signing the bundle", "the system has no randomness"));
                }
            },
        };
        Ok(format!("{}\n", STANDARD.encode(signature)))
    }
}

impl std::fmt::Debug for BundleSigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BundleSigningKey(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PublicKey;

    const ED25519_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
    /// The key of RFC 8410, section 10.3.
    const ED25519_PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";

    #[test]
    fn a_signature_holds_for_its_bytes_and_its_key_alone() {
        let key = BundleSigningKey::from_pem(ED25519_PRIVATE, "x").unwrap();
        let public = PublicKey::from_pem(ED25519_PUBLIC, "x").unwrap();
        let signature = key.sign(b"index").unwrap();
        assert!(public.verify(b"index", &signature));
        assert!(!public.verify(b"Index", &signature));
        assert!(!public.verify(b"index", "AAAA") && !public.verify(b"index", "!"));
    }

    #[test]
    fn what_is_no_key_is_named() {
        let encrypted = ED25519_PRIVATE.replace("PRIVATE", "ENCRYPTED PRIVATE");
        let of_ec = ED25519_PRIVATE.replace("PRIVATE", "EC PRIVATE");
        for (text, reason) in [
            ("", "holds no private key"),
            (encrypted.as_str(), "encrypted"),
            (&of_ec, "SEC1"),
            (ED25519_PUBLIC, "public key"),
        ] {
            let error = BundleSigningKey::from_pem(text, "x").unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let error = PublicKey::from_pem(ED25519_PRIVATE, "x").unwrap_err().to_string();
        assert!(error.contains("private key"), "{error}");
    }
}
