//! Signatures in the format "sigstore bundle" of cosign (its BUNDLE_SPEC): a DSSE envelope with an in-toto statement
//! whose subject is the digest of the image.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use imgsync_oci::Digest;
use imgsync_oci::sanitize::sanitize_within;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::MAX_SHOWN_CHARS;
use super::keys::Signers;

/// Beginning of the media type of a bundle; its version follows.
const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle";
/// Type of the envelope's payload.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Beginning of the type of a statement; its version follows.
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v";
/// Type of the statement that is a signature of an image. Others are attestations.
pub(super) const SIGNATURE_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
/// Maximum number of signatures of an envelope.
const MAX_SIGNATURES: usize = 16;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    #[serde(default)]
    verification_material: Option<VerificationMaterial>,
    #[serde(default)]
    dsse_envelope: Option<Envelope>,
}

/// What a bundle has besides the signature. Only a certificate is of interest, for messages.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VerificationMaterial {
    #[serde(default)]
    certificate: Option<IgnoredAny>,
    #[serde(default)]
    x509_certificate_chain: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
struct Statement {
    #[serde(rename = "_type")]
    r#type: String,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
}

/// Returns whether a media type or an artifact type is that of a bundle, of any version.
pub(super) fn is_media_type(text: &str) -> bool {
    text.get(..MEDIA_TYPE.len()).is_some_and(|start| start.eq_ignore_ascii_case(MEDIA_TYPE))
}

/// Verifies a bundle as a signature of a manifest. Returns the keys that made it, or why it does not count.
/// `find_signers` returns the keys that a signature of bytes is of.
pub(super) fn verify(
    bytes: &[u8],
    subject: &Digest,
    find_signers: impl Fn(&[u8], &str) -> Signers,
) -> Result<Signers, String> {
    let bundle: Bundle = serde_json::from_slice(bytes).map_err(|error| format!("the bundle is malformed: {error}"))?;
    let Some(envelope) = bundle.dsse_envelope else {
        return Err("the bundle has no DSSE envelope; `cosign sign` makes one".to_owned());
    };
    let payload = STANDARD.decode(&envelope.payload).or_else(|_| URL_SAFE.decode(&envelope.payload));
    let payload = payload.map_err(|_| "the payload is not base64".to_owned())?;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(format!(
            "the payload is of the type `{}`",
            sanitize_within(&envelope.payload_type, MAX_SHOWN_CHARS)
        ));
    }
    let signed = pre_authentication_encoding(&envelope.payload_type, &payload);
    let signatures = envelope.signatures.iter().take(MAX_SIGNATURES);
    let signers: Signers = signatures.flat_map(|signature| find_signers(&signed, &signature.sig)).collect();
    if signers.is_empty() {
        let material = bundle.verification_material;
        let has_certificate = material
            .is_some_and(|material| material.certificate.is_some() || material.x509_certificate_chain.is_some());
        return Err(match has_certificate {
            true => "signed with a certificate, and not with the key".to_owned(),
            false => "not made with the key".to_owned(),
        });
    }
    let Statement { r#type, predicate_type, subject: subjects } =
        serde_json::from_slice(&payload).map_err(|error| format!("the payload is malformed: {error}"))?;
    if !r#type.starts_with(STATEMENT_TYPE) {
        return Err(format!("the payload is of the type `{}`", sanitize_within(&r#type, MAX_SHOWN_CHARS)));
    }
    if predicate_type != SIGNATURE_PREDICATE {
        return Err(format!(
            "an attestation of the type `{}`, and not a signature",
            sanitize_within(&predicate_type, MAX_SHOWN_CHARS)
        ));
    }
    let algorithm = subject.algorithm().as_str();
    let names = |named: &Subject| named.digest.get(algorithm).is_some_and(|hex| hex == subject.hex());
    match subjects.iter().any(names) {
        true => Ok(signers),
        false => Err(match subjects.first().and_then(|other| other.digest.get(algorithm)) {
            Some(other) => {
                let other = format!("{algorithm}:{other}");
                format!("a signature of another image, {}", sanitize_within(&other, MAX_SHOWN_CHARS))
            }
            None => "a signature of nothing".to_owned(),
        }),
    }
}

/// Returns the bytes that the signatures of an envelope are of (DSSE protocol, "PAE").
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut encoded = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    encoded.extend_from_slice(payload);
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signed_bytes_are_those_of_the_protocol() {
        // The example of the protocol's page.
        let encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world");
        assert_eq!(encoded, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    #[test]
    fn a_bundle_of_any_version_is_one() {
        assert!(is_media_type("application/vnd.dev.sigstore.bundle.v0.3+json"));
        assert!(is_media_type("application/vnd.dev.sigstore.bundle+json;version=0.1"));
        assert!(!is_media_type("application/vnd.dev.sigstore") && !is_media_type("é"));
    }
}
