//! What an overwritten tag pointed to, kept under another tag: one PUT of the old manifest, right before the tag moves.

use futures_util::future::BoxFuture;
use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Digest, Tag};
use imgsync_common::naming::BackupName;
use imgsync_common::registry::{ManifestRef, Repository};
use jiff::Timestamp;

use super::ends::Ends;
use super::{Gate, Job, Overwrite};

/// How many tags of one name are tried, `…-2` and so on, before it is given up.
const MOST_OF_ONE_NAME: usize = 100;

/// A gate that keeps what the tag points to, once the tag may be put.
pub(super) struct Backup<'a> {
    gate: &'a dyn Gate,
    name: &'a BackupName,
    target: &'a Repository,
    tag: &'a Tag,
    /// What the tag is about to point to.
    root: &'a Digest,
}

impl<'a> Backup<'a> {
    /// Of a job that wants it, at a registry.
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
            // Nothing is there to be kept.
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
                // What was kept before stays.
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
