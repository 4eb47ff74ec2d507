//! Checks an image against the policy of its rule, before any of its content is copied. Only manifests, configs and
//! signatures are read, by digest: what was checked is what is copied.

mod contents;
mod keys;
mod signature_reader;
mod signatures;
mod sigstore_bundle;
mod simple_signing;

use imgsync_model::batch::ImagePolicy;
use imgsync_oci::Digest;
use imgsync_oci::error::{Error, ErrorKind, Result};

use self::contents::ContentCheck;
pub(crate) use self::signature_reader::{MAX_SIGNATURE_BYTES, MAX_SIGNATURES};
use self::signatures::SignatureCheck;
use super::CopyRequest;
use super::endpoints::Endpoints;
use super::platform_filter::{SelectedImage, select_platforms};
use super::resolve::{Comparison, RootStatus};

/// Maximum length of what a message quotes of a document.
const MAX_SHOWN_CHARS: usize = 40;

/// Fails if the policy of the request does not allow the image that was found at the source.
pub(super) async fn check_policy(request: &CopyRequest, endpoints: &Endpoints, found: &Comparison) -> Result<()> {
    let Some(policy) = &request.policy else { return Ok(()) };
    let digest = match &found.root {
        RootStatus::Changed(selected) => selected.root.digest(),
        RootStatus::Unchanged(digest, _) => digest,
    };
    let source_digest = found.source_digest.as_ref().unwrap_or(digest);
    let read;
    let selected = match &found.root {
        // Only what stays as it is may rest on an earlier check.
        RootStatus::Unchanged(..) if request.accepted.as_ref() == Some(source_digest) => return Ok(()),
        RootStatus::Changed(selected) | RootStatus::Unchanged(_, Some(selected)) => selected,
        RootStatus::Unchanged(_, None) => {
            let root = endpoints.source.manifest_by_digest(source_digest).await?;
            read = select_platforms(root, request, endpoints).await?;
            &read
        }
    };
    let is_at_target = matches!(found.root, RootStatus::Unchanged(..));
    let image = CheckedImage { request, endpoints, source_digest, selected, is_at_target };
    image.check(policy).await
}

/// An image at the source.
struct CheckedImage<'a> {
    request: &'a CopyRequest,
    endpoints: &'a Endpoints,
    /// Digest of the source tag.
    source_digest: &'a Digest,
    /// What is copied of it.
    selected: &'a SelectedImage,
    /// Whether the target has it already.
    is_at_target: bool,
}

impl CheckedImage<'_> {
    async fn check(&self, policy: &ImagePolicy) -> Result<()> {
        if let Some(signed) = &policy.signed {
            SignatureCheck::new(self.endpoints, signed)?.check(self).await?;
        }
        ContentCheck::new(self, policy).run().await
    }

    /// Creates the error of an image that the policy does not allow.
    fn refusal(&self, reason: &str) -> Error {
        let operation = format!("copying {} to {}", self.request.source, self.request.target);
        Error::new(ErrorKind::RefusedByPolicy, operation, reason)
            .with_hint("exclude the tag, or change the `policy` of the rule")
    }
}

/// Writes a digest in short, for messages, whose length is limited.
fn shorten(digest: &Digest) -> String {
    format!("{}:{}", digest.algorithm().as_str(), digest.short())
}
