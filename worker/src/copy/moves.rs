//! Source tags that move during a copy: the old manifest may be gone, so the tag is resolved again.

use imgsync_common::error::{Class, Error, Result};
use imgsync_common::image::{Digest, Manifest};
use imgsync_common::registry::{Context, ManifestRef};

use super::Job;
use super::ends::Ends;

/// Maximum times a tag is resolved again.
pub(crate) const MAX_MOVES: u32 = 3;

/// Movements of the source tag during one copy.
#[derive(Default)]
pub(super) struct Moves {
    /// Manifest of the tag, read when it was found to have moved.
    pub(super) root: Option<Manifest>,
    /// Digest being copied.
    pub(super) seen: Option<Digest>,
    rounds: u32,
}

impl Moves {
    /// Decides after an error whether to start over: content is missing and the tag has moved. Otherwise returns the
    /// error; also if the source is a digest or the tag is gone too.
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
