//! Layouts and archives that have the index of an image but only some of its platforms, as `ctr image export` and
//! `docker save` write them.

use imgsync_oci::error::{Error, ErrorKind};
use imgsync_oci::{Descriptor, Manifest};

use super::super::endpoints::CopySource;
use super::ImageTransfer;

impl ImageTransfer {
    /// If content of an index is missing in a layout, names the platforms that are there in the hint of the error.
    pub(super) async fn hint_at_present_platforms(&self, root: &Manifest, error: Error) -> Error {
        let CopySource::Layout(source) = &self.source else { return error };
        if error.kind() != ErrorKind::NotFound || !root.media_type().is_index() {
            return error;
        }
        let mut present = Vec::new();
        for child in self.children_of(root) {
            let Some(platform) = child.platform.as_ref().filter(|platform| platform.os != "unknown") else { continue };
            if self.is_whole(source.layout(), child).await {
                present.push(platform.to_string());
            }
        }
        match &present[..] {
            [] => error,
            [only] => error.with_hint(format!(
                "only the platform {only} of this image is there: copy it with `--platform {only}`, or in a rule with `platforms: [{only}]`"
            )),
            [first, ..] => {
                let listed = present.join(", ");
                let hint = format!(
                    "only some platforms of this image are there: {listed}; copy one with `--platform {first}`, or several in \
                     a rule with `platforms: [{listed}]`"
                );
                error.with_hint(hint)
            }
        }
    }

    async fn is_whole(&self, layout: &imgsync_layout::Layout, child: &Descriptor) -> bool {
        let Ok(manifest) = self.source.child_manifest(child).await else { return false };
        for blob in self.blobs_of(&manifest) {
            if !layout.has_file(blob).await.unwrap_or_default() {
                return false;
            }
        }
        true
    }
}
