//! Types of the OCI and Docker specifications: what an image consists of, and references to it.
//!
//! Everything here is pure: no I/O, no async, no HTTP.

mod descriptor;
mod digest;
mod digest_tag;
mod manifest;
mod media_type;
mod platform;
mod reference;

pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, Hasher, ParseDigestError};
pub use digest_tag::{DigestTag, DigestTagHints};
pub use manifest::{Manifest, ManifestError, ManifestKind, ParsedManifest};
pub use media_type::MediaType;
pub use platform::{ParsePlatformError, Platform};
pub use reference::{ParseReferenceError, Reference, RegistryName, RepositoryName, Tag};
