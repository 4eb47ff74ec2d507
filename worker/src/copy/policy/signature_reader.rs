//! Reads the signatures of a manifest, in both formats of cosign: a manifest under the tag `sha256-….sig`, and referrers.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Digest, DigestTag, Manifest, ManifestKind, retry};
use imgsync_registry::FallbackTag;

use super::keys::{KeyRing, Signers};
use super::{sigstore_bundle, simple_signing};
use crate::copy::endpoints::Endpoints;

/// Maximum number of signatures that are read for a manifest.
pub(crate) const MAX_SIGNATURES: usize = 64;
/// Maximum size of a signed document.
pub(crate) const MAX_SIGNATURE_BYTES: u64 = 256 << 10;
/// Maximum number of referrers that are read to find them: some do not tell that they are attestations.
const MAX_REFERRERS_READ: usize = 4 * MAX_SIGNATURES;
/// Maximum number of reasons in a message.
const MAX_REASONS: usize = 4;

/// Artifact type of simple signing in a referrer, which cosign 2 wrote as an experiment.
const COSIGN_SIGNATURE_TYPE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

/// Annotation of a bundle with the type of its statement.
const PREDICATE_ANNOTATION: &str = "dev.sigstore.bundle.predicateType";

/// The signatures of a manifest.
pub(super) struct FoundSignatures<'a> {
    endpoints: &'a Endpoints,
    keys: &'a KeyRing,
    subject: &'a Digest,
    /// Keys that have signed it.
    pub(super) signers: Signers,
    /// Why others do not count, and how many each.
    reasons: Vec<(String, usize)>,
    candidates: usize,
    unread: usize,
}

/// Format of a signature.
#[derive(Clone, Copy)]
enum SignatureFormat {
    SimpleSigning,
    SigstoreBundle,
}

impl SignatureFormat {
    fn as_str(self) -> &'static str {
        match self {
            SignatureFormat::SimpleSigning => "simple signing",
            SignatureFormat::SigstoreBundle => "bundle",
        }
    }
}

impl<'a> FoundSignatures<'a> {
    /// Reads the signatures of a manifest until the keys suffice.
    pub(super) async fn read(
        endpoints: &'a Endpoints,
        keys: &'a KeyRing,
        subject: &'a Digest,
    ) -> Result<FoundSignatures<'a>> {
        let mut found = FoundSignatures {
            endpoints,
            keys,
            subject,
            signers: Signers::new(),
            reasons: Vec::new(),
            candidates: 0,
            unread: 0,
        };
        found.read_digest_tag().await?;
        if !keys.suffice(&found.signers) {
            found.read_referrers().await?;
        }
        Ok(found)
    }

    /// Describes what was found.
    pub(super) fn describe(&self) -> String {
        let mut parts = Vec::new();
        if !self.signers.is_empty() {
            parts.push(format!("signed by {}", self.keys.names_of(&self.signers)));
        }
        for (reason, count) in self.reasons.iter().take(MAX_REASONS) {
            parts.push(if *count == 1 { reason.clone() } else { format!("{reason} ({count} times)") });
        }
        let more: usize = self.reasons.iter().skip(MAX_REASONS).map(|(_, count)| count).sum();
        if more > 0 {
            parts.push(format!("{more} more do not count"));
        }
        if self.unread > 0 {
            parts.push(format!("{} more were not read", self.unread));
        }
        match parts.is_empty() {
            true => "no signature".to_owned(),
            false => parts.join(", "),
        }
    }

    /// Reads the manifest under the tag `sha256-….sig`.
    async fn read_digest_tag(&mut self) -> Result<()> {
        let source = &self.endpoints.source;
        let tag = DigestTag::Signature.tag_for(self.subject);
        let Some(head) = source.digest_tag_head(&tag).await? else { return Ok(()) };
        match source.manifest_by_digest(&head.digest).await {
            Ok(manifest) => self.read_layers(&manifest).await,
            Err(error) => self.record_error("the manifest under the tag", error),
        }
    }

    /// Reads the referrers that may be signatures.
    async fn read_referrers(&mut self) -> Result<()> {
        let source = &self.endpoints.source;
        let (mut referrers, _) = source.referrers(self.subject, FallbackTag::Unknown).await?;
        // An index under a fallback tag need not name the types. Those without one are read last.
        referrers.retain(|referrer| {
            referrer.artifact_type.as_deref().is_none_or(|kind| {
                sigstore_bundle::is_media_type(kind) || kind.eq_ignore_ascii_case(COSIGN_SIGNATURE_TYPE)
            })
        });
        let all = referrers.len();
        referrers.retain(|referrer| !is_attestation(&referrer.annotations));
        (referrers.len()..all).for_each(|_| self.add_attestation());
        referrers.sort_by_key(|referrer| {
            let is_named = referrer.annotations.contains_key(PREDICATE_ANNOTATION);
            (referrer.artifact_type.is_none(), !is_named)
        });
        let mut attestations = 0;
        for (number, referrer) in referrers.iter().enumerate() {
            if self.keys.suffice(&self.signers) {
                break;
            }
            if number - attestations >= MAX_SIGNATURES || number >= MAX_REFERRERS_READ {
                self.unread += referrers.len() - number;
                break;
            }
            if referrer.size > MAX_SIGNATURE_BYTES {
                self.add_reason("a referrer", &describe_size(referrer.size));
                continue;
            }
            match source.manifest_by_digest(&referrer.digest).await {
                Ok(manifest) if is_attestation(&manifest.parsed().annotations) => {
                    attestations += 1;
                    self.add_attestation();
                }
                Ok(manifest) => self.read_layers(&manifest).await?,
                Err(error) => self.record_error("a referrer", error)?,
            }
        }
        Ok(())
    }

    /// Reads the signatures in the layers of a manifest.
    async fn read_layers(&mut self, manifest: &Manifest) -> Result<()> {
        let ManifestKind::Image { layers, .. } = manifest.kind() else { return Ok(()) };
        for layer in layers {
            let format = match layer.media_type.as_str() {
                kind if kind.eq_ignore_ascii_case(simple_signing::MEDIA_TYPE) => SignatureFormat::SimpleSigning,
                kind if sigstore_bundle::is_media_type(kind) => SignatureFormat::SigstoreBundle,
                _ => continue,
            };
            if self.keys.suffice(&self.signers) {
                break;
            }
            if self.candidates >= MAX_SIGNATURES {
                self.unread += 1;
                continue;
            }
            self.candidates += 1;
            match self.read_layer(layer, format).await {
                Ok(Ok(signers)) => self.signers.extend(signers),
                Ok(Err(reason)) => self.add_reason(format.as_str(), &reason),
                Err(error) => self.record_error(format.as_str(), error)?,
            }
        }
        Ok(())
    }

    /// Reads and verifies a signature. Returns the keys that made it, or why it does not count.
    async fn read_layer(
        &self,
        layer: &Descriptor,
        format: SignatureFormat,
    ) -> Result<std::result::Result<Signers, String>> {
        if layer.size > MAX_SIGNATURE_BYTES {
            return Ok(Err(describe_size(layer.size)));
        }
        let Endpoints { source, source_traffic, .. } = self.endpoints;
        if source.streamed_layout().is_some_and(|layout| !layout.is_in_memory(&layer.digest)) {
            // To wait for it would lose the layers that come before it.
            return Ok(Err("it leaves the pipe after layers: give --spool DIR".to_owned()));
        }
        let bytes: Bytes = source.read_small_blob(layer, source_traffic, &AtomicBool::new(false)).await?;
        let find = |bytes: &[u8], signature: &str| self.keys.find_signers(bytes, signature);
        Ok(match format {
            SignatureFormat::SimpleSigning => simple_signing::verify(&bytes, &layer.annotations, self.subject, find),
            SignatureFormat::SigstoreBundle => sigstore_bundle::verify(&bytes, self.subject, find),
        })
    }

    fn add_attestation(&mut self) {
        self.add_reason(SignatureFormat::SigstoreBundle.as_str(), "an attestation, and not a signature");
    }

    /// Records why a signature does not count.
    fn add_reason(&mut self, what: &str, reason: &str) {
        let reason = format!("{what}: {reason}");
        match self.reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => self.reasons.push((reason, 1)),
        }
    }

    /// Records a signature that cannot be used. Returns errors of the registry, which say nothing about it.
    fn record_error(&mut self, label: &str, error: Error) -> Result<()> {
        match error.kind() {
            ErrorKind::NotFound
            | ErrorKind::Corrupt
            | ErrorKind::Unsupported
            | ErrorKind::Outdated
            | ErrorKind::InvalidResponse
                if !retry::is_transient(&error) =>
            {
                self.add_reason(label, error.message());
                Ok(())
            }
            _ => Err(error),
        }
    }
}

/// Whether annotations are those of a bundle with another statement than a signature.
fn is_attestation(annotations: &BTreeMap<String, String>) -> bool {
    annotations.get(PREDICATE_ANNOTATION).is_some_and(|predicate| predicate != sigstore_bundle::SIGNATURE_PREDICATE)
}

/// Says that a document is too large to be read.
fn describe_size(size: u64) -> String {
    format!("it has {size} bytes, of at most {MAX_SIGNATURE_BYTES}")
}
