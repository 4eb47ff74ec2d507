//! Public keys, as `cosign` and `openssl` write them: Ed25519, ECDSA on P-256, RSA.

use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imgsync_oci::error::{Error, ErrorKind, Result};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};

/// Algorithm of a key of Ed25519 in DER (RFC 8410): its object identifier.
const ED25519_ALGORITHM: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];
/// Algorithm of a key on P-256 in DER (RFC 5480): id-ecPublicKey and prime256v1.
const P256_ALGORITHM: &[u8] =
    &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// Algorithm of a key of RSA in DER (RFC 3279): rsaEncryption and NULL.
const RSA_ALGORITHM: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
/// Sizes of keys of RSA with 2048 to 8192 bits: a modulus, an exponent and what frames them.
const RSA_KEY_BYTES: RangeInclusive<usize> = 256 + 10..=1024 + 32;
/// Tags of DER.
const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

const KEY_HINT: &str = "`cosign generate-key-pair` writes it to cosign.pub; of another private key, \
                        `openssl pkey -in FILE -pubout` prints it";

/// A public key that verifies signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    algorithm: KeyAlgorithm,
    /// The key itself, as the algorithm encodes it.
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyAlgorithm {
    Ed25519,
    /// ECDSA with SHA-256.
    P256,
    /// PKCS #1 v1.5 with SHA-256, of 2048 bits or more.
    Rsa,
}

impl PublicKey {
    /// Reads a public key in PEM. `label` names it in errors.
    ///
    /// # Errors
    /// `Invalid` if the text has no public key or several, or one of another type.
    pub fn from_pem(text: &str, label: &str) -> Result<PublicKey> {
        let refuse = |detail: &str, hint: &str| {
            Err(Error::new(ErrorKind::Invalid, format!("reading the public key {label}"), detail).with_hint(hint))
        };
        let Some(der) = pem_content(text, "PUBLIC KEY") else {
            return match text {
                _ if text.contains("PRIVATE KEY") => {
                    refuse("it is a private key", "pass its public key: `openssl pkey -in FILE -pubout`")
                }
                _ if text.contains("BEGIN CERTIFICATE") => {
                    refuse("it is a certificate", "pass its public key: `openssl x509 -in FILE -pubkey -noout`")
                }
                _ => refuse("it holds no public key in PEM", KEY_HINT),
            };
        };
        if text.matches("-----BEGIN PUBLIC KEY-----").count() > 1 {
            return refuse("it holds several keys", "write one file per key");
        }
        let key = read_key_info(&der).and_then(|(algorithm, key)| {
            let algorithm = match algorithm {
                ED25519_ALGORITHM if key.len() == 32 => KeyAlgorithm::Ed25519,
                P256_ALGORITHM if key.len() == 65 => KeyAlgorithm::P256,
                RSA_ALGORITHM if RSA_KEY_BYTES.contains(&key.len()) => KeyAlgorithm::Rsa,
                _ => return None,
            };
            Some(PublicKey { algorithm, bytes: key.to_vec() })
        });
        match key {
            Some(key) => Ok(key),
            None => refuse("it is no key of Ed25519, on P-256, or of RSA with 2048 to 8192 bits", KEY_HINT),
        }
    }

    /// Checks a signature in base64 of bytes.
    pub fn verify(&self, bytes: &[u8], signature: &str) -> bool {
        let Ok(signature) = STANDARD.decode(signature.trim()) else { return false };
        let algorithm: &dyn VerificationAlgorithm = match self.algorithm {
            KeyAlgorithm::Ed25519 => &ED25519,
            KeyAlgorithm::P256 => &ECDSA_P256_SHA256_ASN1,
            KeyAlgorithm::Rsa => &RSA_PKCS1_2048_8192_SHA256,
        };
        UnparsedPublicKey::new(algorithm, &self.bytes).verify(bytes, &signature).is_ok()
    }
}

/// Splits a public key in DER (RFC 5280, "SubjectPublicKeyInfo") into its algorithm and the key.
fn read_key_info(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (info, after) = read_der(der, SEQUENCE)?;
    let (algorithm, rest) = read_der(info, SEQUENCE)?;
    let (bits, rest) = read_der(rest, BIT_STRING)?;
    // The first byte counts unused bits.
    let (unused, key) = bits.split_first()?;
    (after.is_empty() && rest.is_empty() && *unused == 0).then_some((algorithm, key))
}

/// Reads an element of DER with this tag. Returns its content and what follows.
fn read_der(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match *length {
        short @ 0..=0x7f => (usize::from(short), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), &rest[2..]),
        _ => return None,
    };
    (*first == tag && length <= rest.len()).then(|| rest.split_at(length))
}

/// Returns the content of the first PEM block of a kind.
pub(crate) fn pem_content(text: &str, kind: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {kind}-----"))?;
    let (content, _) = rest.split_once(&format!("-----END {kind}-----"))?;
    let content: String = content.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(content).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(der: &[u8]) -> String {
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    fn error_of(text: &str) -> String {
        PublicKey::from_pem(text, "x").unwrap_err().to_string()
    }

    #[test]
    fn a_damaged_or_foreign_key_is_refused_and_nothing_is_read_past_its_end() {
        let mut whole = vec![0x30, 0x2a, 0x30, 0x05];
        whole.extend_from_slice(ED25519_ALGORITHM);
        whole.extend_from_slice(&[0x03, 0x21, 0x00]);
        whole.extend_from_slice(&[7; 32]);
        assert!(PublicKey::from_pem(&pem(&whole), "x").is_ok());
        for length in 0..whole.len() {
            assert!(error_of(&pem(&whole[..length])).contains("no key of"), "{length}");
        }
        let longer = [&whole[..], &[0]].concat();
        let lying = [&[0x30, 0x83, 0xff, 0xff, 0xff], &whole[2..]].concat();
        let mut other_curve = whole.clone();
        other_curve[8] = 0x71;
        for der in [longer, lying, other_curve, vec![0x30, 0x81], vec![0x30, 0x82, 0x01]] {
            assert!(error_of(&pem(&der)).contains("no key of"), "{der:?}");
        }
        let mut short_rsa = vec![0x30, 0x81, 15 + 3 + 100, 0x30, 0x0d];
        short_rsa.extend_from_slice(RSA_ALGORITHM);
        short_rsa.extend_from_slice(&[0x03, 101, 0x00]);
        short_rsa.extend_from_slice(&[7; 100]);
        assert!(read_key_info(&short_rsa).is_some());
        assert!(error_of(&pem(&short_rsa)).contains("2048"));
        assert!(error_of(&pem(&whole).repeat(2)).contains("several keys"));
        assert!(error_of("-----BEGIN CERTIFICATE-----\n").contains("certificate"));
    }
}
