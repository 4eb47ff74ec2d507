//! Types of the OCI and Docker specifications, and what every crate of imgsync needs beside them: errors, the decision
//! what is retried, secrets, and text that is safe to display.
//!
//! Everything here is pure: no I/O, no async runtime, no HTTP.

mod archive_format;
mod descriptor;
mod digest;
mod digest_tag;
pub mod error;
pub mod generational;
pub mod humanize;
pub mod limits;
pub mod locale;
mod manifest;
pub mod mask;
mod media_type;
pub mod panics;
mod pinned_tag;
mod platform;
mod reference;
pub mod retry;
pub mod sanitize;
pub mod secret;
pub mod secret_url;
pub mod store_url;

pub use archive_format::ArchiveFormat;
pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, Hasher, ParseDigestError};
pub use digest_tag::{DigestTag, DigestTagHints};
pub use manifest::{Manifest, ManifestError, ManifestKind, ParsedManifest};
pub use media_type::MediaType;
pub use platform::{ParsePlatformError, Platform};
pub use reference::{
    ParseReferenceError, Reference, RegistryName, RepositoryName, Tag, is_registry_part, strip_transport,
};
