//! Sonatype Nexus, which is known for HEADs that find nothing.

use super::Provider;

pub(super) static NEXUS: Provider = Provider { name: "Nexus", server_without_heads: Some("Nexus/"), ..Provider::NONE };
