//! A registry that somebody else started.

use crate::images::Image;
use crate::tree::Client;

/// A registry at a URL, spoken to by the harness's own client.
#[derive(Clone, Debug)]
pub struct RemoteRegistry {
    url: String,
    client: Client,
}

impl RemoteRegistry {
    /// The one at `http://HOST:PORT`, for anyone.
    pub fn at(url: &str) -> Self {
        Self { url: url.to_owned(), client: Client::new(url, None) }
    }

    /// Puts an image in.
    pub async fn push(&self, repository: &str, tag: &str, image: &Image) {
        self.client.push(repository, tag, image).await;
    }

    /// The digest of a tag; none if it is not there.
    pub async fn tag_digest(&self, repository: &str, tag: &str) -> Option<String> {
        self.client.digest(repository, tag).await
    }

    /// Demands that a tag holds the whole image, every byte of it read and hashed.
    ///
    /// # Panics
    /// With what is missing or different.
    pub async fn assert_holds(&self, repository: &str, tag: &str, image: &Image) {
        let at = format!("{}/{repository}:{tag}", self.url);
        let tree = self.client.fetch(repository, tag).await.unwrap_or_else(|| panic!("{at} is not there"));
        let differences = tree.differences(image);
        assert!(differences.is_empty(), "{at}: {}", differences.join("; "));
    }
}
