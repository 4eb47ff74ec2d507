//! Backs up overwritten tags: puts the old manifest under another tag right before the tag moves.

use futures_util::future::BoxFuture;
use imgsync_model::naming::BackupTagTemplate;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Digest, Tag};
use imgsync_registry::{ManifestRef, Repository};
use jiff::Timestamp;

use super::endpoints::Endpoints;
use super::{CopyRequest, Overwrite, TagGate};

/// Maximum tags of one name (`…-2` and so on) before the backup fails.
const MAX_BACKUPS_PER_NAME: usize = 100;

/// Gate that backs up the current manifest of a tag after the inner gate has passed.
pub(super) struct BackupGate<'a> {
    gate: &'a dyn TagGate,
    name: &'a BackupTagTemplate,
    target: &'a Repository,
    tag: &'a Tag,
    /// New digest of the tag.
    root: &'a Digest,
}

impl<'a> BackupGate<'a> {
    /// Creates the backup of a request that asks for one, at a registry.
    pub(super) fn for_request(
        request: &'a CopyRequest,
        endpoints: &'a Endpoints,
        root: &'a Digest,
        gate: &'a dyn TagGate,
    ) -> Option<BackupGate<'a>> {
        match (&request.overwrite, &endpoints.target_ref, endpoints.target.repository()) {
            (Overwrite::WithBackup(name), Some(ManifestRef::Tag(tag)), Some(target)) => {
                Some(BackupGate { gate, name, target, tag, root })
            }
            _ => None,
        }
    }

    async fn back_up(&self) -> Result<()> {
        let old = match self.target.get_manifest(&ManifestRef::Tag(self.tag.clone())).await {
            Ok(old) if old.digest() == self.root => return Ok(()),
            Ok(old) => old,
            // There is nothing to back up.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let operation = format!("backing up {}/{}:{}", self.target.registry(), self.target.name(), self.tag);
        let invalid = |detail: String| Error::new(ErrorKind::Invalid, &operation, detail);
        let first = self.name.render(self.tag, old.digest(), Timestamp::now()).map_err(invalid)?;
        for number in 1..=MAX_BACKUPS_PER_NAME {
            let tag = match number {
                1 => first.clone(),
                number => format!("{first}-{number}").parse().map_err(|error| invalid(format!("{error}")))?,
            };
            let reference = ManifestRef::Tag(tag);
            match self.target.head_manifest(&reference).await? {
                Some(there) if there.digest == *old.digest() => return Ok(()),
                // Earlier backups are kept.
                Some(_) => {}
                None => {
                    self.gate.before_put().await?;
                    return self.target.put_manifest(&reference, &old).await.map(drop);
                }
            }
        }
        Err(invalid(format!("there are already {MAX_BACKUPS_PER_NAME} backup tags named {first}")))
    }
}

impl TagGate for BackupGate<'_> {
    fn before_transfer(&self) -> BoxFuture<'_, Result<()>> {
        self.gate.before_transfer()
    }

    fn before_tag<'a>(&'a self, source: &'a Digest) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.gate.before_tag(source).await?;
            self.back_up().await
        })
    }

    fn before_put(&self) -> BoxFuture<'_, Result<()>> {
        self.gate.before_put()
    }
}
