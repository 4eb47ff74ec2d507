//! Signatures in the format "simple signing" of cosign (its SIGNATURE_SPEC): a layer with a payload that names the
//! digest of the image, and an annotation with the signature of the payload.

use std::collections::BTreeMap;

use imgsync_oci::Digest;
use imgsync_oci::sanitize::sanitize_within;
use serde::Deserialize;

use super::MAX_SHOWN_CHARS;
use super::keys::Signers;

/// Media type of the payload.
pub(super) const MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotation with the signature in base64.
const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// Annotation with the certificate of a signature without a key pair.
const CERTIFICATE_ANNOTATION: &str = "dev.sigstore.cosign/certificate";
/// Type of the payload.
const PAYLOAD_TYPE: &str = "cosign container image signature";

/// A payload. Other fields, such as the name of the image, do not count.
#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Image,
    r#type: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// Verifies a signature of a manifest. Returns the keys that made it, or why it does not count. `find_signers` returns
/// the keys that a signature of bytes is of.
pub(super) fn verify(
    payload: &[u8],
    annotations: &BTreeMap<String, String>,
    subject: &Digest,
    find_signers: impl Fn(&[u8], &str) -> Signers,
) -> Result<Signers, String> {
    let Some(signature) = annotations.get(SIGNATURE_ANNOTATION) else {
        return Err("the annotation with the signature is missing".to_owned());
    };
    let signers = find_signers(payload, signature);
    if signers.is_empty() {
        return Err(match annotations.contains_key(CERTIFICATE_ANNOTATION) {
            true => "signed with a certificate, and not with the key".to_owned(),
            false => "not made with the key".to_owned(),
        });
    }
    let Payload { critical: Critical { image, r#type } } =
        serde_json::from_slice(payload).map_err(|error| format!("the payload is malformed: {error}"))?;
    if r#type != PAYLOAD_TYPE {
        return Err(format!("the payload is of the type `{}`", sanitize_within(&r#type, MAX_SHOWN_CHARS)));
    }
    match image.digest == subject.to_string() {
        true => Ok(signers),
        false => Err(format!("a signature of another image, {}", sanitize_within(&image.digest, MAX_SHOWN_CHARS))),
    }
}
