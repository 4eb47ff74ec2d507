//! Backs up overwritten tags: puts the old manifest under another tag right before the tag moves.

use futures_util::future::BoxFuture;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Digest, Tag};
use imgsync_common::naming::BackupName;
use imgsync_common::registry::{ManifestRef, Repository};
use jiff::Timestamp;

use super::ends::Ends;
use super::{Gate, Job, Overwrite};

/// Maximum tags of one name (`…-2` and so on) before the backup fails.
const MOST_OF_ONE_NAME: usize = 100;

/// Gate that backs up the current manifest of a tag after the inner gate has passed.
pub(super) struct Backup<'a> {
    gate: &'a dyn Gate,
    name: &'a BackupName,
    target: &'a Repository,
    tag: &'a Tag,
    /// New digest of the tag.
    root: &'a Digest,
}

impl<'a> Backup<'a> {
    /// Creates the backup of a request that asks for one, at a registry.
    pub(super) fn of(job: &'a Job, ends: &'a Ends, root: &'a Digest, gate: &'a dyn Gate) -> Option<Backup<'a>> {
        match (&job.overwrite, &ends.target_ref, ends.target.repository()) {
            (Overwrite::Keeping(name), Some(ManifestRef::Tag(tag)), Some(target)) => {
                Some(Backup { gate, name, target, tag, root })
            }
            _ => None,
        }
    }

    async fn keep(&self) -> Result<()> {
        let old = match self.target.manifest_get(&ManifestRef::Tag(self.tag.clone())).await {
            Ok(old) if old.digest() == self.root => return Ok(()),
            Ok(old) => old,
            // There is nothing to back up.
            Err(error) if error.class() == Class::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let tried = format!("keeping what {}/{}:{} is", self.target.registry(), self.target.name(), self.tag);
        let invalid = |detail: String| Error::new(Class::Invalid, &tried, detail);
        let first = self.name.tag(self.tag, old.digest(), Timestamp::now()).map_err(invalid)?;
        for number in 1..=MOST_OF_ONE_NAME {
            let tag = match number {
                1 => first.clone(),
                number => format!("{first}-{number}").parse().map_err(|error| invalid(format!("{error}")))?,
            };
            let place = ManifestRef::Tag(tag);
            match self.target.manifest_head(&place).await? {
                Some(there) if there.digest == *old.digest() => return Ok(()),
                // Earlier backups are kept.
                Some(_) => {}
                None => {
                    self.gate.before_put().await?;
                    return self.target.manifest_put(&place, &old).await.map(drop);
                }
            }
        }
        Err(invalid(format!("there are {MOST_OF_ONE_NAME} tags of the name {first} already")))
    }
}

impl Gate for Backup<'_> {
    fn before_tag<'a>(&'a self, source: &'a Digest) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.gate.before_tag(source).await?;
            self.keep().await
        })
    }

    fn before_put(&self) -> BoxFuture<'_, Result<()>> {
        self.gate.before_put()
    }
}
