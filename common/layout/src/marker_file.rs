//! The file `oci-layout`, which marks an image layout and has its version.

use serde::Deserialize;

use super::OCI_LAYOUT;
use super::error::LayoutError;
use imgsync_oci::error::ErrorKind;
use imgsync_oci::sanitize::sanitize;

pub(super) const LAYOUT_VERSION: &str = "1.0.0";
/// Upper limit for `oci-layout`, which has thirty bytes.
pub(super) const MAX_OCI_LAYOUT_BYTES: u64 = 64 << 10;

/// Checks the version in the content of `oci-layout`.
pub(super) fn check_version_text(text: &[u8]) -> Result<(), LayoutError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct OciLayoutFile {
        image_layout_version: String,
    }
    let marker: OciLayoutFile = serde_json::from_slice(text).map_err(|error| {
        LayoutError::new(ErrorKind::InvalidResponse, format!("its file `{OCI_LAYOUT}` cannot be parsed: {error}"))
    })?;
    match marker.image_layout_version.as_str() {
        LAYOUT_VERSION => Ok(()),
        other => {
            let detail = format!("unsupported layout version {}; only {LAYOUT_VERSION} is supported", sanitize(other));
            Err(LayoutError::new(ErrorKind::Unsupported, detail))
        }
    }
}
