//! Registry requests by hyper alone: no retries, no limits, no authentication.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use imgsync_tests::images::media;
use sha2::{Digest as _, Sha256};

/// A registry.
pub(crate) struct FloorRegistry {
    client: Client<HttpConnector, FloorBody>,
    host: String,
}

/// A manifest as served.
pub(crate) struct FetchedManifest {
    pub(crate) digest: String,
    pub(crate) media_type: HeaderValue,
    pub(crate) bytes: Bytes,
}

/// Body of a request.
pub(crate) enum FloorBody {
    /// Bytes in memory.
    Whole(Full<Bytes>),
    /// A response that is hashed while it is sent.
    Relayed(HashedBody),
}

/// A response body and the hash of its bytes so far.
pub(crate) struct HashedBody {
    body: Incoming,
    hash: Option<Sha256>,
    expected: String,
}

impl FloorRegistry {
    /// Creates a registry at `HOST:PORT`.
    pub(crate) fn new(host: &str) -> FloorRegistry {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(usize::MAX).build(connector);
        FloorRegistry { client, host: host.to_owned() }
    }

    /// Reads a listing, of the catalog or of tags: the array under a name.
    pub(crate) async fn list(&self, path: &str, name: &str) -> Vec<String> {
        let response = self.send(Method::GET, path, None, Bytes::new()).await;
        assert_eq!(response.status(), StatusCode::OK, "GET {path}");
        let json: serde_json::Value = serde_json::from_slice(&collect(response).await).unwrap();
        serde_json::from_value(json[name].clone()).unwrap()
    }

    /// Returns the digest of a tag, or `None` if the tag does not exist.
    pub(crate) async fn tag_digest(&self, repository: &str, tag: &str) -> Option<String> {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let response =
            self.send(Method::HEAD, &path, Some((ACCEPT, media::ACCEPT.parse().unwrap())), Bytes::new()).await;
        match response.status() {
            StatusCode::OK => Some(response.headers()["docker-content-digest"].to_str().unwrap().to_owned()),
            StatusCode::NOT_FOUND => None,
            status => panic!("HEAD {path}: {status}"),
        }
    }

    /// Reads and hashes a manifest.
    pub(crate) async fn manifest(&self, repository: &str, reference: &str) -> FetchedManifest {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let response =
            self.send(Method::GET, &path, Some((ACCEPT, media::ACCEPT.parse().unwrap())), Bytes::new()).await;
        assert_eq!(response.status(), StatusCode::OK, "GET {path}");
        let media_type = response.headers()[CONTENT_TYPE].clone();
        let bytes = collect(response).await;
        FetchedManifest { digest: format_digest(Sha256::digest(&bytes).as_slice()), media_type, bytes }
    }

    /// Puts a manifest.
    pub(crate) async fn put_manifest(&self, repository: &str, reference: &str, manifest: &FetchedManifest) {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let media_type = Some((CONTENT_TYPE, manifest.media_type.clone()));
        let response = self.send(Method::PUT, &path, media_type, manifest.bytes.clone()).await;
        assert_eq!(response.status(), StatusCode::CREATED, "PUT {path}");
        collect(response).await;
    }

    /// Asks for referrers; returns whether the registry has the API.
    pub(crate) async fn ask_referrers(&self, repository: &str, digest: &str) -> bool {
        let path = format!("/v2/{repository}/referrers/{digest}");
        let response =
            self.send(Method::GET, &path, Some((ACCEPT, media::OCI_INDEX.parse().unwrap())), Bytes::new()).await;
        let status = response.status();
        collect(response).await;
        assert!(matches!(status, StatusCode::OK | StatusCode::NOT_FOUND), "GET {path}: {status}");
        status == StatusCode::OK
    }

    /// Starts an upload by a mount from the repository itself. Returns where to send the blob, or `None` if the
    /// registry has it.
    pub(crate) async fn start_upload(&self, repository: &str, digest: &str) -> Option<String> {
        let path = format!("/v2/{repository}/blobs/uploads/?mount={digest}&from={repository}");
        let response = self.send(Method::POST, &path, None, Bytes::new()).await;
        let (status, location) = (response.status(), response.headers()[LOCATION].to_str().unwrap().to_owned());
        collect(response).await;
        match status {
            StatusCode::ACCEPTED => Some(location),
            StatusCode::CREATED => None,
            status => panic!("POST {path}: {status}"),
        }
    }

    /// Opens a blob.
    pub(crate) async fn open_blob(&self, repository: &str, digest: &str) -> Incoming {
        let path = format!("/v2/{repository}/blobs/{digest}");
        let response = self.send(Method::GET, &path, None, Bytes::new()).await;
        assert_eq!(response.status(), StatusCode::OK, "GET {path}");
        response.into_body()
    }

    /// Sends the content of an upload.
    pub(crate) async fn finish_upload(&self, location: &str, digest: &str, body: FloorBody) {
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{separator}digest={digest}");
        let media_type = Some((CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")));
        let response = self.request(Method::PUT, url.parse().unwrap(), media_type, body).await;
        assert_eq!(response.status(), StatusCode::CREATED, "PUT {url}");
        collect(response).await;
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        header: Option<(hyper::header::HeaderName, HeaderValue)>,
        body: Bytes,
    ) -> Response<Incoming> {
        let url = format!("http://{}{path}", self.host).parse().unwrap();
        self.request(method, url, header, FloorBody::Whole(Full::new(body))).await
    }

    async fn request(
        &self,
        method: Method,
        url: Uri,
        header: Option<(hyper::header::HeaderName, HeaderValue)>,
        body: FloorBody,
    ) -> Response<Incoming> {
        let mut request = Request::new(body);
        (*request.method_mut(), *request.uri_mut()) = (method, url);
        if let Some((name, value)) = header {
            request.headers_mut().insert(name, value);
        }
        self.client.request(request).await.unwrap()
    }
}

/// Reads a small blob and checks its hash.
pub(crate) async fn read_verified(body: Incoming, digest: &str) -> Bytes {
    let bytes = body.collect().await.unwrap().to_bytes();
    assert_eq!(format_digest(Sha256::digest(&bytes).as_slice()), digest);
    bytes
}

async fn collect(response: Response<Incoming>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

fn format_digest(hash: &[u8]) -> String {
    hash.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

impl HashedBody {
    pub(crate) fn new(body: Incoming, expected: &str) -> HashedBody {
        HashedBody { body, hash: Some(Sha256::new()), expected: expected.to_owned() }
    }
}

impl Body for FloorBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            FloorBody::Whole(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            FloorBody::Relayed(HashedBody { body, hash, expected }) => {
                let frame = Pin::new(&mut *body).poll_frame(context);
                if let (Poll::Ready(Some(Ok(frame))), Some(running)) = (&frame, hash.as_mut())
                    && let Some(bytes) = frame.data_ref()
                {
                    running.update(bytes);
                }
                // The client asks for no frame beyond the length, so the end is known by the size that is left.
                if body.is_end_stream()
                    && let Some(hash) = hash.take()
                {
                    assert_eq!(format_digest(hash.finalize().as_slice()), *expected);
                }
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            FloorBody::Whole(body) => body.is_end_stream(),
            FloorBody::Relayed(relayed) => relayed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            FloorBody::Whole(body) => body.size_hint(),
            FloorBody::Relayed(relayed) => relayed.body.size_hint(),
        }
    }
}
