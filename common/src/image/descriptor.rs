//! Descriptors (OCI image-spec, "Content Descriptors"): what points from one piece of content to another.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::{Digest, MediaType, Platform};

/// A pointer to content: its type, digest and size in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What kind of content it is.
    #[serde(default, deserialize_with = "null_as_default")]
    pub media_type: MediaType,
    /// What the content hashes to.
    pub digest: Digest,
    /// Its size in bytes.
    #[serde(deserialize_with = "size")]
    pub size: u64,
    /// What an index's child is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Where a foreign layer lives.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Of a referrer: what it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Free text by key.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A descriptor with nothing but the three fields that all have.
    pub fn new(media_type: MediaType, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type,
            digest,
            size,
            platform: None,
            urls: Vec::new(),
            artifact_type: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// No content is larger than this, in bytes; sums of sizes that lie cannot overflow.
const MAX_SIZE: u64 = 1 << 50;

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match u64::deserialize(deserializer)? {
        size if size > MAX_SIZE => Err(serde::de::Error::custom(format!("a size of {size} bytes cannot be"))),
        size => Ok(size),
    }
}

/// Some tools write `null` for a list or a map that they leave empty.
fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_cannot_be_is_refused_and_null_is_nothing() {
        let text = |size: u64| {
            format!(r#"{{"digest":"{}","size":{size},"urls":null,"annotations":null}}"#, Digest::sha256(b"x"))
        };
        assert!(serde_json::from_str::<Descriptor>(&text(u64::MAX)).is_err());
        let descriptor: Descriptor = serde_json::from_str(&text(7)).unwrap();
        assert_eq!((descriptor.size, descriptor.urls.len(), descriptor.media_type), (7, 0, MediaType::Missing));
    }
}
