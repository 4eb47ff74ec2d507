//! Deviations of real registries from the specification. Each was seen in the wild; by default a registry has none.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{HeaderValue, StatusCode, header};

use super::create_api::CreateApi;
use super::fault_rules::FaultAction;
use super::randomized::RandomizedResponses;
use super::request_log::RecordedRequest;
use super::request_type::RequestType;
use super::response::{FaultResponse, ResponseBody};
use super::state::{FaultRegistryStore, Inner};

/// Signature in the query of a blob's signed URL.
const SIGNATURE: &str = "X-Amz-Signature=0f1e%2Bd2c3";

/// Quirks of one registry.
#[derive(Clone, Debug, Default)]
pub struct Quirks {
    /// Name and port in the URLs it returns, if they differ from its address.
    pub host: Option<&'static str>,
    /// Path of its token service, if not `/token`.
    pub token_path: Option<&'static str>,
    /// Realm of its own token service, if it is advertised under another URL.
    pub realm: Option<&'static str>,
    /// Challenges sent before its own.
    pub extra_challenges: Option<&'static str>,
    /// Sends 401 without a challenge, except for `/v2/`.
    pub bare_401: bool,
    /// Status and message for an expired token, in place of a 401 with a challenge.
    pub expired_response: Option<(u16, &'static str)>,
    /// Life in seconds of a password that its API hands out, if not twelve hours.
    pub password_seconds: Option<u64>,
    /// Access token that it exchanges for a refresh token at `/oauth2/exchange`.
    pub exchanged_token: Option<&'static str>,
    /// Password of Basic authentication after [`super::FaultRegistry::expire_tokens`].
    pub next_password: Option<&'static str>,
    /// Status of the token service for a request with several scopes.
    pub multi_scope_status: Option<u16>,
    /// Refuses any token to a request for `delete`.
    pub no_delete_tokens: bool,
    /// Refuses a token requested with `offline_token`.
    pub no_offline_token: bool,

    /// Status and error code for a missing manifest.
    pub missing_manifest: Option<(u16, &'static str)>,
    /// Status of reads from a repository that was never pushed to.
    pub missing_repository: Option<u16>,
    /// Requires a repository to exist before a push.
    pub no_new_repositories: bool,
    /// Requires the project of a repository to exist before a push; until then tokens grant nothing there.
    pub needs_projects: bool,
    /// API that creates repositories or projects.
    pub create_api: Option<CreateApi>,
    /// Body format of error responses.
    pub errors: ErrorFormat,

    /// Responses to HEAD requests for manifests.
    pub heads: ManifestHeadStyle,
    /// Omits `Docker-Content-Digest` from GET responses for manifests.
    pub get_without_digest: bool,
    /// Refuses Docker media types with this status.
    pub oci_only: Option<u16>,
    /// Requires `mediaType` in the body of manifests.
    pub media_type_in_body: bool,
    /// Repositories with immutable tags, where even pushing the same manifest is refused.
    pub immutable: &'static [&'static str],
    /// Announces this quota of manifest GETs in `ratelimit-limit` and `ratelimit-remaining`.
    pub announced_pull_quota: Option<u64>,

    /// Redirects blobs with this status to a signed URL at this host, which refuses `Authorization`.
    pub blob_redirect: Option<(&'static str, u16)>,
    /// HEAD finds blobs of every repository, GET only those of its own.
    pub heads_find_all_blobs: bool,
    /// Breaks off the first of every N blob bodies.
    pub truncates_one_body_in: Option<u64>,

    /// Status of a mount without `from`.
    pub mount_without_from_status: Option<u16>,
    /// Fails a mount that names another registry in `origin` with a server error.
    pub fails_on_mount_origin: bool,
    /// Status of a mount of a missing blob, in place of an upload session.
    pub missing_mount_status: Option<u16>,
    /// Mounts only blobs that a manifest of the other repository references.
    pub mounts_committed_only: bool,
    /// Handling of PATCH requests.
    pub patches: PatchHandling,
    /// Status of a PATCH, if not 202.
    pub patch_status: Option<u16>,
    /// Closes the connection after this many bytes of an upload body.
    pub max_upload_body_bytes: Option<u64>,

    /// Status of a listing with an `n` above this number.
    pub max_page_entries: Option<(usize, u16)>,
    /// Pages listings with `next_token` and refuses `last` with 405.
    pub opaque_cursors: bool,
    /// Form of the link to the next page.
    pub links: NextPageLink,
    /// Status of `_catalog`.
    pub catalog_status: Option<u16>,

    /// Writes header names `Like-This`.
    pub title_case: bool,
    /// Randomized responses, within the specification and beyond.
    pub randomized: Option<RandomizedResponses>,
    /// Requests per second of a kind. Excess requests get 429.
    pub rates: &'static [(RequestType, f64)],
    /// Concurrent requests. Excess requests are refused at once with this status and without `Retry-After`.
    pub max_in_flight: Option<(u64, u16)>,
    /// Value of the `Server` header.
    pub server: Option<&'static str>,
    /// Extra header bytes in each response.
    pub extra_header_bytes: usize,
}

/// Body format of error responses (401, 403, 404, 429).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrorFormat {
    /// The format of the specification.
    #[default]
    Oci,
    /// An HTML page.
    Html,
    /// A line of text.
    Text,
    /// `{"details":…}`.
    Details,
}

/// Responses to HEAD requests for manifests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ManifestHeadStyle {
    /// Like GET, without the body.
    #[default]
    Right,
    /// With a Content-Length that differs from GET.
    OtherLength,
    /// 404 by tag, and no digest header by digest.
    Useless,
}

/// Handling of PATCH requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PatchHandling {
    /// As in the specification.
    #[default]
    All,
    /// Keeps only the last of several PATCH requests.
    LastWins,
    /// Refuses the second and later requests with this status.
    One(u16),
    /// Omits `Range` from the response, drops everything after the first request, and answers an empty PUT with 500.
    FirstStays,
    /// Ends the session if a PATCH does not continue at its offset.
    StrictlyOnce,
}

/// Form of the link to the next page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NextPageLink {
    /// A path, or a URL if the option for absolute links is set.
    #[default]
    Right,
    /// A URL with `http://`, though the registry is served over TLS.
    PlainHttp,
    /// Without the first component of the repository name.
    WithoutPrefix,
}

impl Quirks {
    /// Redirects to the signed URL of a blob, if blobs are at another host.
    fn redirect_blob(&self, record: &RecordedRequest) -> Option<FaultResponse> {
        let (host, status) = self.blob_redirect?;
        let (repository, digest) = super::manifests::names(record);
        let to = format!("https://{host}/signed/{repository}/{digest}?{SIGNATURE}&n=1");
        Some(FaultResponse::from_status_code(status).header(header::LOCATION, to))
    }
}

/// Parses repository and digest of a signed path.
pub(super) fn parse_signed_path(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix("/signed/")?.rsplit_once('/')
}

/// Returns the response of a quirk that takes precedence over everything else.
pub(super) fn early_response(inner: &Arc<Inner>, record: &RecordedRequest) -> Option<FaultResponse> {
    let quirks = &inner.options.quirks;
    let refuse = |status: u16, code: &str, message: &str| {
        Some(FaultResponse::error(StatusCode::from_u16(status).expect("a status"), code, message))
    };
    if record.kind == RequestType::Signed {
        return match () {
            () if record.header("authorization").is_some() => {
                refuse(400, "InvalidRequest", "only one auth mechanism allowed")
            }
            () if !record.query.contains(SIGNATURE) => refuse(403, "AccessDenied", "the signature is missing"),
            () => None,
        };
    }
    if let Some((_, rate)) = quirks.rates.iter().find(|(kind, _)| *kind == record.kind)
        && !inner.is_within_rate_of(record.kind, *rate)
    {
        return refuse(429, "TOOMANYREQUESTS", "Rate exceeded");
    }
    if let Some((most, status)) = quirks.max_in_flight
        && inner.in_flight() > most
    {
        return refuse(status, "TOOMANYREQUESTS", "too many at a time");
    }
    if record.kind == RequestType::UploadMount {
        if let Some(status) = quirks.mount_without_from_status.filter(|_| record.parameter("from").is_none()) {
            return refuse(status, "BLOB_UPLOAD_INVALID", "from where?");
        }
        if quirks.fails_on_mount_origin && record.parameter("origin").is_some() {
            return refuse(500, "UNKNOWN", "unknown error");
        }
    }
    if let (RequestType::Catalog, Some(status)) = (record.kind, quirks.catalog_status) {
        return refuse(status, "UNSUPPORTED", "there is no catalog");
    }
    if let (RequestType::Tags | RequestType::Catalog, Some((most, status))) = (record.kind, quirks.max_page_entries)
        && record.parameter("n").and_then(|n| n.parse::<usize>().ok()).is_some_and(|n| n > most)
    {
        return refuse(status, "PAGINATION_NUMBER_INVALID", "n is too large");
    }
    if matches!(record.kind, RequestType::Tags | RequestType::Catalog)
        && quirks.opaque_cursors
        && record.parameter("last").is_some()
    {
        return refuse(405, "UNSUPPORTED", "last is not supported");
    }
    let absent = || {
        let name = record.repository.as_deref().unwrap_or_default();
        !inner.store().repositories.contains_key(name)
    };
    let reads = matches!(
        record.kind,
        RequestType::ManifestHead
            | RequestType::ManifestGet
            | RequestType::BlobHead
            | RequestType::BlobGet
            | RequestType::Tags
            | RequestType::Referrers
    );
    if let Some(status) = quirks.missing_repository.filter(|_| reads)
        && absent()
    {
        return refuse(status, "NAME_UNKNOWN", "there is no such repository");
    }
    let writes = matches!(record.kind, RequestType::UploadStart | RequestType::UploadMount | RequestType::ManifestPut);
    if quirks.no_new_repositories && (reads || writes) && absent() {
        return refuse(404, "NAME_UNKNOWN", "The repository with name does not exist in the registry");
    }
    if record.kind == RequestType::BlobGet && blob_is_here(inner, record) {
        return quirks.redirect_blob(record);
    }
    None
}

fn blob_is_here(inner: &Inner, record: &RecordedRequest) -> bool {
    let (repository, digest) = super::manifests::names(record);
    inner.store().blob(repository, digest).is_some()
}

/// Applies quirks to a response.
pub(super) fn alter_response(inner: &Arc<Inner>, record: &RecordedRequest, mut answer: FaultResponse) -> FaultResponse {
    let quirks = &inner.options.quirks;
    let found = answer.status == StatusCode::OK;
    match record.kind {
        RequestType::ManifestHead if found => match quirks.heads {
            ManifestHeadStyle::Right => {}
            ManifestHeadStyle::OtherLength => {
                let other = answer.body.len() + 7;
                answer = answer.header(header::CONTENT_LENGTH, other);
            }
            ManifestHeadStyle::Useless
                if record.reference.as_deref().is_some_and(|reference| reference.contains(':')) =>
            {
                inner.count_wasted_request();
                answer.headers.remove("docker-content-digest");
            }
            ManifestHeadStyle::Useless => {
                inner.count_wasted_request();
                answer = FaultResponse::not_found("MANIFEST_UNKNOWN");
            }
        },
        RequestType::ManifestGet if found => {
            if quirks.get_without_digest {
                answer.headers.remove("docker-content-digest");
            }
            if let Some(limit) = quirks.announced_pull_quota {
                let used = inner.pulls.fetch_add(1, Ordering::SeqCst) + 1;
                if used > limit {
                    let refused = FaultResponse::new(StatusCode::TOO_MANY_REQUESTS)
                        .body("You have reached your pull rate limit.\n");
                    return refused.header(header::RETRY_AFTER, 60);
                }
                answer = answer
                    .header("ratelimit-limit", format!("{limit};w=21600"))
                    .header("ratelimit-remaining", format!("{};w=21600", limit.saturating_sub(used)))
                    .header("docker-ratelimit-source", "203.0.113.7");
            }
        }
        // HEAD responses are not to be trusted in this style.
        RequestType::ManifestHead
            if quirks.heads == ManifestHeadStyle::Useless && answer.status == StatusCode::NOT_FOUND =>
        {
            inner.count_wasted_request()
        }
        _ => {}
    }
    let about_manifests = matches!(record.kind, RequestType::ManifestHead | RequestType::ManifestGet);
    if let Some((status, code)) = quirks.missing_manifest
        && about_manifests
        && answer.status == StatusCode::NOT_FOUND
    {
        answer = FaultResponse::error(StatusCode::from_u16(status).expect("a status"), code, "it is not here");
    }
    if matches!(answer.status.as_u16(), 401 | 403 | 404 | 429) {
        answer = reformat_error(quirks.errors, answer);
    }
    if let Some(server) = quirks.server {
        answer = answer.header(header::SERVER, server);
    }
    if quirks.extra_header_bytes > 0 {
        let padding = "p".repeat(quirks.extra_header_bytes);
        answer.headers.insert("x-padding", HeaderValue::from_str(&padding).expect("letters"));
    }
    answer
}

/// Reformats an error response.
fn reformat_error(errors: ErrorFormat, answer: FaultResponse) -> FaultResponse {
    let (kind, body) = match errors {
        ErrorFormat::Oci => return answer,
        ErrorFormat::Html => {
            let title = format!("{} - refused", answer.status);
            (
                "text/html; charset=utf-8",
                format!("<html><head><title>{title}</title></head><body>{title}</body></html>"),
            )
        }
        ErrorFormat::Text => ("text/plain; charset=utf-8", format!("{}\n", answer.status)),
        ErrorFormat::Details => ("application/json", format!("{{\"details\":\"{}\"}}", answer.status)),
    };
    answer.header(header::CONTENT_TYPE, kind).body(body)
}

/// Adds the quirks' faults of the response body.
pub(super) fn add_body_faults(
    inner: &Arc<Inner>,
    record: &RecordedRequest,
    answer: &FaultResponse,
    actions: &mut Vec<FaultAction>,
) {
    let Some(one_in) = inner.options.quirks.truncates_one_body_in else { return };
    let is_blob = matches!(record.kind, RequestType::BlobGet | RequestType::Signed)
        && matches!(answer.body, ResponseBody::Blob(..));
    if is_blob && answer.body.len() > 1 && inner.bodies.fetch_add(1, Ordering::SeqCst).is_multiple_of(one_in) {
        inner.count_wasted_request();
        actions.push(FaultAction::CutAfter { bytes: answer.body.len() / 2 });
    }
}

/// Reports whether a blob may be mounted from a repository.
pub(super) fn is_mount_allowed(quirks: &Quirks, store: &FaultRegistryStore, from: &str, digest: &str) -> bool {
    if !quirks.mounts_committed_only {
        return true;
    }
    let manifests = store.repositories.get(from).into_iter().flat_map(|repository| repository.manifests.values());
    manifests.map(|held| held.manifest.json()).any(|json| crate::images::blobs(&json).iter().any(|blob| blob == digest))
}
