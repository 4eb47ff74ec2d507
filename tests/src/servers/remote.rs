//! A registry that is already running.

use crate::images::TestImage;
use crate::registry_client::RegistryClient;

/// A registry at a URL, accessed by the harness's own client.
#[derive(Clone, Debug)]
pub struct RemoteRegistry {
    url: String,
    client: RegistryClient,
}

impl RemoteRegistry {
    /// Creates a client for `http://HOST:PORT` without credentials.
    pub fn at(url: &str) -> Self {
        Self { url: url.to_owned(), client: RegistryClient::new(url, None) }
    }

    /// Pushes an image.
    pub async fn push(&self, repository: &str, tag: &str, image: &TestImage) {
        self.client.push(repository, tag, image).await;
    }

    /// Returns the digest of a tag, or `None` if it does not exist.
    pub async fn tag_digest(&self, repository: &str, tag: &str) -> Option<String> {
        self.client.digest(repository, tag).await
    }

    /// Asserts that a tag holds the whole image, and reads and hashes every byte.
    ///
    /// # Panics
    /// With the missing or different content.
    pub async fn assert_holds(&self, repository: &str, tag: &str, image: &TestImage) {
        let at = format!("{}/{repository}:{tag}", self.url);
        let tree = self.client.fetch(repository, tag).await.unwrap_or_else(|| panic!("{at} is not there"));
        let differences = tree.differences(image);
        assert!(differences.is_empty(), "{at}: {}", differences.join("; "));
    }
}
