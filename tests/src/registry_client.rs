//! An independent registry client: plain requests, and every byte hashed.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use serde_json::Value;

use crate::images::{TestImage, TestManifest, blobs, children, digest_with, media, sha256, untyped_entries};

/// Further reads of a tag that is being written, and the pause before each.
const MAX_TAG_READS: usize = 50;
const TAG_READ_PAUSE: Duration = Duration::from_millis(20);

/// A tree as served by a registry.
#[derive(Clone, Debug)]
pub struct FetchedTree {
    /// Digest of the root.
    pub root: String,
    /// Manifests by digest.
    pub manifests: BTreeMap<String, TestManifest>,
    /// Sizes of blobs by digest, after their bytes were verified.
    pub blobs: BTreeMap<String, u64>,
}

impl FetchedTree {
    /// Compares it with an image. Returns the differences, or an empty list.
    pub fn differences(&self, image: &TestImage) -> Vec<String> {
        let mut differences = Vec::new();
        if self.root != image.root {
            differences.push(format!("the root is {}, not {}", self.root, image.root));
        }
        for (digest, manifest) in &image.manifests {
            match self.manifests.get(digest) {
                None => differences.push(format!("manifest {digest} is missing")),
                Some(found) if found != manifest => differences.push(format!("manifest {digest} is another")),
                Some(_) => {}
            }
        }
        let missing = image.blobs.keys().filter(|digest| !self.blobs.contains_key(*digest));
        differences.extend(missing.map(|digest| format!("blob {digest} is missing")));
        differences
    }
}

/// A client of one registry.
#[derive(Clone, Debug)]
pub(crate) struct RegistryClient {
    http: reqwest::Client,
    base: String,
    credentials: Option<(String, String)>,
}

impl RegistryClient {
    pub(crate) fn new(base: &str, credentials: Option<(String, String)>) -> Self {
        crate::tls::install_provider();
        let http = reqwest::Client::builder().no_proxy().build().expect("a plain client needs nothing");
        Self { http, base: base.to_owned(), credentials }
    }

    /// Sends a request; if challenged, requests a token and sends it again.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(header::HeaderName, &str)],
        body: Bytes,
    ) -> reqwest::Response {
        let url = if url.starts_with("http") { url.to_owned() } else { format!("{}{url}", self.base) };
        let request = |authorization: Option<String>| {
            let mut request = self.http.request(method.clone(), &url).body(body.clone());
            for (name, value) in headers {
                request = request.header(name, *value);
            }
            if let Some(authorization) = authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            request
        };
        let response = request(None).send().await.expect("the registry answers");
        if response.status() != StatusCode::UNAUTHORIZED {
            return response;
        }
        let challenge = response.headers()[header::WWW_AUTHENTICATE].to_str().expect("a challenge is text").to_owned();
        let (user, password) = self.credentials.clone().expect("the registry wants credentials");
        if challenge.starts_with("Basic") {
            let pair = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{user}:{password}"));
            return request(Some(format!("Basic {pair}"))).send().await.expect("the registry answers");
        }
        let part = |name: &str| {
            let rest = challenge.split_once(&format!("{name}=\""))?.1;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        let service = part("service").unwrap_or_default();
        let realm = part("realm").expect("a challenge names its realm");
        let mut url = format!("{realm}?service={service}");
        for scope in part("scope").unwrap_or_default().split(' ') {
            url.push_str(&format!("&scope={scope}"));
        }
        let token =
            self.http.get(url).basic_auth(user, Some(password)).send().await.expect("the token service answers");
        let token: Value = token.json().await.expect("the token service answers in JSON");
        let token = token["token"].as_str().expect("there is a token").to_owned();
        request(Some(format!("Bearer {token}"))).send().await.expect("the registry answers")
    }

    /// Pushes an image under a tag.
    pub(crate) async fn push(&self, repository: &str, tag: &str, image: &TestImage) {
        for (digest, blob) in &image.blobs {
            let head = self.send(Method::HEAD, &format!("/v2/{repository}/blobs/{digest}"), &[], Bytes::new()).await;
            if head.status().is_success() {
                continue;
            }
            let start = self.send(Method::POST, &format!("/v2/{repository}/blobs/uploads/"), &[], Bytes::new()).await;
            expect(&start, StatusCode::ACCEPTED, "an upload starts");
            let location = start.headers()[header::LOCATION].to_str().expect("a Location is text").to_owned();
            let mark = if location.contains('?') { '&' } else { '?' };
            let bytes = blob.read(0..blob.size());
            let put = self.send(Method::PUT, &format!("{location}{mark}digest={digest}"), &[], bytes).await;
            expect(&put, StatusCode::CREATED, "a blob is taken");
        }
        for digest in image.push_order() {
            let reference = if digest == image.root { tag } else { &digest };
            let manifest = &image.manifests[&digest];
            self.put_manifest(repository, reference, manifest).await;
        }
    }

    pub(crate) async fn put_manifest(&self, repository: &str, reference: &str, manifest: &TestManifest) {
        let url = format!("/v2/{repository}/manifests/{reference}");
        let headers = [(header::CONTENT_TYPE, manifest.media_type.as_str())];
        let put = self.send(Method::PUT, &url, &headers, manifest.bytes.clone()).await;
        let status = put.status();
        assert_eq!(status, StatusCode::CREATED, "PUT {url}: {}", put.text().await.unwrap_or_default());
    }

    /// Returns the digest of a reference, or `None` if it does not exist.
    pub(crate) async fn digest(&self, repository: &str, reference: &str) -> Option<String> {
        let url = format!("/v2/{repository}/manifests/{reference}");
        let get = async || self.send(Method::GET, &url, &[(header::ACCEPT, media::ACCEPT)], Bytes::new()).await;
        let mut response = get().await;
        for _ in 0..MAX_TAG_READS {
            // distribution 2.8 answers so while a tag is being written.
            if response.status() != StatusCode::INTERNAL_SERVER_ERROR {
                break;
            }
            tokio::time::sleep(TAG_READ_PAUSE).await;
            response = get().await;
        }
        if response.status() == StatusCode::NOT_FOUND {
            return None;
        }
        expect(&response, StatusCode::OK, "the manifest is served");
        Some(sha256(&response.bytes().await.expect("the manifest comes whole")))
    }

    /// Reads the tree below a reference; `None` if the reference does not exist.
    ///
    /// # Panics
    /// If a part of the tree is missing or does not match its digest.
    pub(crate) async fn fetch(&self, repository: &str, reference: &str) -> Option<FetchedTree> {
        let root = self.digest(repository, reference).await?;
        let mut tree = FetchedTree { root: root.clone(), manifests: BTreeMap::new(), blobs: BTreeMap::new() };
        let mut open = vec![root];
        while let Some(digest) = open.pop() {
            if tree.manifests.contains_key(&digest) {
                continue;
            }
            let manifest = self.fetch_manifest(repository, &digest).await;
            let json = manifest.json();
            let odd = untyped_entries(&json);
            for child in children(&json) {
                match odd.contains(&child) && self.has_blob(repository, &child).await {
                    true => _ = tree.blobs.insert(child.clone(), self.check_blob(repository, &child).await),
                    false => open.push(child),
                }
            }
            let layers = json["layers"].as_array().into_iter().flatten();
            let foreign: Vec<_> =
                layers.filter(|layer| layer["urls"].is_array()).map(|layer| &layer["digest"]).collect();
            for blob in blobs(&json) {
                if !tree.blobs.contains_key(&blob) && !foreign.iter().any(|digest| **digest == *blob) {
                    let size = self.check_blob(repository, &blob).await;
                    tree.blobs.insert(blob, size);
                }
            }
            tree.manifests.insert(digest, manifest);
        }
        Some(tree)
    }

    async fn fetch_manifest(&self, repository: &str, digest: &str) -> TestManifest {
        let url = format!("/v2/{repository}/manifests/{digest}");
        let response = self.send(Method::GET, &url, &[(header::ACCEPT, media::ACCEPT)], Bytes::new()).await;
        expect(&response, StatusCode::OK, "a manifest of the tree is served");
        let media_type = response.headers()[header::CONTENT_TYPE].to_str().expect("a type is text").to_owned();
        let bytes = response.bytes().await.expect("the manifest comes whole");
        assert_eq!(digest_with(digest, &bytes).as_deref(), Some(digest), "{url} has another digest");
        TestManifest { media_type, bytes }
    }

    async fn has_blob(&self, repository: &str, digest: &str) -> bool {
        let url = format!("/v2/{repository}/blobs/{digest}");
        self.send(Method::HEAD, &url, &[], Bytes::new()).await.status() == StatusCode::OK
    }

    async fn check_blob(&self, repository: &str, digest: &str) -> u64 {
        let url = format!("/v2/{repository}/blobs/{digest}");
        let response = self.send(Method::GET, &url, &[], Bytes::new()).await;
        expect(&response, StatusCode::OK, "a blob of the tree is served");
        let bytes = response.bytes().await.expect("the blob comes whole");
        assert_eq!(digest_with(digest, &bytes).as_deref(), Some(digest), "{url} has another digest");
        bytes.len() as u64
    }
}

#[track_caller]
pub(crate) fn expect(response: &reqwest::Response, status: StatusCode, what: &str) {
    assert_eq!(response.status(), status, "{what}: {}", response.url());
}
