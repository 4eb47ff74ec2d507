//! Source tags that move during a copy: the old manifest may be gone, so the tag is resolved again.

use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Digest, Manifest};
use imgsync_registry::{Context, ManifestRef};

use super::CopyRequest;
use super::endpoints::Endpoints;

/// Maximum times a tag is resolved again.
pub(crate) const MAX_TAG_MOVES: u32 = 3;

/// Movements of the source tag during one copy.
#[derive(Default)]
pub(super) struct TagMoves {
    /// Manifest of the tag, read when it was found to have moved.
    pub(super) root: Option<Manifest>,
    /// Digest being copied.
    pub(super) current: Option<Digest>,
    rounds: u32,
}

impl TagMoves {
    /// Decides after an error whether to start over: content is missing and the tag has moved. Otherwise returns the
    /// error; also if the source is a digest or the tag is gone too.
    pub(super) async fn retry_if_moved(
        &mut self,
        error: Error,
        request: &CopyRequest,
        endpoints: &Endpoints,
        context: &Context,
    ) -> Result<()> {
        let names_one = !matches!(endpoints.source_ref, Some(ManifestRef::Digest(_)));
        let Some(seen) = self.current.take().filter(|_| error.kind() == ErrorKind::NotFound && names_one) else {
            return Err(error);
        };
        let now = endpoints.source.manifest_get(endpoints.source_ref.as_ref()).await?;
        if *now.digest() == seen {
            return Err(error);
        }
        self.rounds += 1;
        if self.rounds > MAX_TAG_MOVES {
            let detail = format!(
                "the source keeps changing: its tag moved {} times during the copy, and each old manifest was gone",
                self.rounds
            );
            return Err(Error::new(
                ErrorKind::ServerError,
                format!("copying {} to {}", request.source, request.target),
                detail,
            )
            .with_source(error));
        }
        context.warn(format!("{error}; the tag of {} moved to {}, copying that", request.source, now.digest()));
        self.root = Some(now);
        Ok(())
    }
}
