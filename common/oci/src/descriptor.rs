//! Descriptors (OCI image-spec, "Content Descriptors"): references from one piece of content to another.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{Digest, MediaType, Platform};

/// A reference to content by media type, digest and size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content.
    #[serde(default, deserialize_with = "null_as_default")]
    pub media_type: MediaType,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content in bytes.
    #[serde(deserialize_with = "size")]
    pub size: u64,
    /// Platform of an index's child.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// URLs of a foreign layer.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Artifact type of a referrer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Annotations: free text by key.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Embedded content in base64, as written; [`Descriptor::inline`] decodes and verifies it.
    #[serde(default, deserialize_with = "text_or_nothing", skip_serializing)]
    pub data: Option<Box<str>>,
}

impl Descriptor {
    /// Creates a descriptor with the three required fields only.
    pub fn new(media_type: MediaType, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type,
            digest,
            size,
            platform: None,
            urls: Vec::new(),
            artifact_type: None,
            annotations: BTreeMap::new(),
            data: None,
        }
    }

    /// Decodes the embedded content. Returns `None` if there is none, or if its size or digest differs from the
    /// descriptor's.
    pub fn inline(&self) -> Option<Bytes> {
        let written = self.data.as_deref()?;
        // Base64 has four characters for three bytes: a length that does not fit needs no decoding.
        if written.len() as u64 / 4 > self.size / 3 + 1 {
            return None;
        }
        let bytes = STANDARD.decode(written.trim()).ok()?;
        (bytes.len() as u64 == self.size && self.digest.verifies(&bytes)).then(|| bytes.into())
    }
}

/// Upper limit for a size, in bytes: sums of claimed sizes cannot overflow.
const MAX_CONTENT_BYTES: u64 = 1 << 50;

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match u64::deserialize(deserializer)? {
        size if size > MAX_CONTENT_BYTES => {
            Err(serde::de::Error::custom(format!("a size of {size} bytes exceeds the maximum")))
        }
        size => Ok(size),
    }
}

/// A value that is not text carries no content, and is no reason to reject the manifest.
fn text_or_nothing<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<str>>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => Some(text.into()),
        _ => None,
    })
}

/// Some tools write `null` for an empty list or map.
fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inline_data_counts_only_where_its_size_and_digest_are_right() {
        let inline = |data: &str, content: &[u8], size: u64| {
            let text = format!(r#"{{"digest":"{}","size":{size},"data":{data}}}"#, Digest::sha256(content));
            serde_json::from_str::<Descriptor>(&text).unwrap().inline()
        };
        assert_eq!(inline("\"e30=\"", b"{}", 2).as_deref(), Some(b"{}".as_slice()));
        assert_eq!(inline("\"\"", b"", 0).as_deref(), Some(b"".as_slice()));
        for (data, content, size) in [
            ("\"e30=\"", b"[]".as_slice(), 2),
            ("\"e30=\"", b"{}", 3),
            ("\"e30\"", b"{}", 2),
            ("\"not base64\"", b"{}", 2),
            ("null", b"{}", 2),
            ("{\"a\": 1}", b"{}", 2),
            ("\"e30gICAgICAgICAgICAgICAgICA=\"", b"{}", 2),
        ] {
            assert_eq!(inline(data, content, size), None, "{data}");
        }
    }

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
