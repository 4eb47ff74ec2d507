//! A tag that moves while its image is read: what it pointed to before may be gone from the source, and the tag is resolved
//! again.

use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Digest, Manifest};
use imgsync_common::registry::{Context, ManifestRef};

use super::Job;
use super::ends::Ends;

/// How often a tag is resolved again; one that moves more often keeps changing.
pub(crate) const MAX_MOVES: u32 = 3;

/// What was seen of the source's tag while its image was read.
#[derive(Default)]
pub(super) struct Moves {
    /// What the tag is now, read when it was found to have moved.
    pub(super) root: Option<Manifest>,
    /// What is being read.
    pub(super) seen: Option<Digest>,
    rounds: u32,
}

impl Moves {
    /// After an error: whether to begin again, because content is missing and the tag has moved on from what was read. The
    /// error to end with where it has not, is no tag, or is gone, too.
    pub(super) async fn again(&mut self, error: Error, job: &Job, ends: &Ends, context: &Context) -> Result<()> {
        let names_one = !matches!(ends.source_ref, Some(ManifestRef::Digest(_)));
        let Some(seen) = self.seen.take().filter(|_| error.class() == Class::NotFound && names_one) else {
            return Err(error);
        };
        let now = ends.source.manifest_get(ends.source_ref.as_ref()).await?;
        if *now.digest() == seen {
            return Err(error);
        }
        self.rounds += 1;
        if self.rounds > MAX_MOVES {
            let detail = format!(
                "the source keeps changing: its tag moved {} times while it was read, and each time what it had been was gone",
                self.rounds
            );
            return Err(Error::new(Class::ServerError, format!("copying {} to {}", job.source, job.target), detail)
                .because(error));
        }
        context.warn(format!("{error}; the tag of {} has moved on to {}, which is read now", job.source, now.digest()));
        self.root = Some(now);
        Ok(())
    }
}
