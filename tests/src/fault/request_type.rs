//! Parses requests.

use http::Method;

/// Kinds of registry requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum RequestType {
    Ping,
    Token,
    Tags,
    Catalog,
    ManifestHead,
    ManifestGet,
    ManifestPut,
    ManifestDelete,
    BlobHead,
    BlobGet,
    BlobDelete,
    UploadStart,
    UploadMount,
    UploadPatch,
    UploadPut,
    UploadStatus,
    UploadDelete,
    Referrers,
    /// Vendor API: lists the repositories of a namespace, which is recorded as the repository.
    ApiRepositories,
    /// Vendor API: lists the tags of a repository.
    ApiTags,
    /// Vendor API: login.
    ApiLogin,
    /// Vendor API: exchanges a token of the provider for one of the registry.
    Exchange,
    /// Blob at its signed URL on another host.
    Signed,
    /// Vendor API: creates a repository or a project.
    ApiCreate,
    Other,
}

/// A request's kind, repository, and tag, digest or session.
#[derive(Clone, Debug)]
pub(super) struct ParsedRequest {
    pub(super) kind: RequestType,
    pub(super) repository: Option<String>,
    pub(super) reference: Option<String>,
}

pub(super) fn parse_request(method: &Method, path: &str, query: &str) -> ParsedRequest {
    let plain = |kind| ParsedRequest { kind, repository: None, reference: None };
    if *method == Method::POST && super::create_api::is_path(path) {
        return plain(RequestType::ApiCreate);
    }
    if path == "/oauth2/exchange" && *method == Method::POST {
        return plain(RequestType::Exchange);
    }
    if path == "/token" {
        return plain(RequestType::Token);
    }
    if let Some(route) = super::vendor::route(path) {
        return route;
    }
    if let Some((repository, digest)) = super::quirks::parse_signed_path(path) {
        let (repository, reference) = (Some(repository.to_owned()), Some(digest.to_owned()));
        return ParsedRequest { kind: RequestType::Signed, repository, reference };
    }
    let Some(rest) = path.strip_prefix("/v2/").or((path == "/v2").then_some("")) else {
        return plain(RequestType::Other);
    };
    match rest {
        "" => return plain(RequestType::Ping),
        "_catalog" => return plain(RequestType::Catalog),
        _ => {}
    }
    if let Some(repository) = rest.strip_suffix("/tags/list") {
        return ParsedRequest { kind: RequestType::Tags, repository: Some(repository.to_owned()), reference: None };
    }
    if let Some((repository, reference)) = rest.split_once("/blobs/uploads") {
        return upload(method, repository, reference.trim_start_matches('/'), query);
    }
    let kinds = [("/manifests/", manifest(method)), ("/blobs/", blob(method)), ("/referrers/", RequestType::Referrers)];
    for (infix, kind) in kinds {
        if let Some((repository, reference)) = rest.rsplit_once(infix) {
            let reference = reference.replace("%3A", ":").replace("%3a", ":");
            return ParsedRequest { kind, repository: Some(repository.to_owned()), reference: Some(reference) };
        }
    }
    plain(RequestType::Other)
}

fn upload(method: &Method, repository: &str, session: &str, query: &str) -> ParsedRequest {
    let mount = parameter(query, "mount");
    let kind = match *method {
        Method::POST if mount.is_some() => RequestType::UploadMount,
        Method::POST => RequestType::UploadStart,
        Method::PATCH => RequestType::UploadPatch,
        Method::PUT => RequestType::UploadPut,
        Method::GET => RequestType::UploadStatus,
        Method::DELETE => RequestType::UploadDelete,
        _ => RequestType::Other,
    };
    // PUT, mount and single POST name the digest in the query, which is what tests match.
    let digest = mount.or_else(|| parameter(query, "digest"));
    let session = (!session.is_empty()).then(|| session.to_owned());
    ParsedRequest { kind, repository: Some(repository.to_owned()), reference: digest.or(session) }
}

fn manifest(method: &Method) -> RequestType {
    match *method {
        Method::HEAD => RequestType::ManifestHead,
        Method::GET => RequestType::ManifestGet,
        Method::PUT => RequestType::ManifestPut,
        Method::DELETE => RequestType::ManifestDelete,
        _ => RequestType::Other,
    }
}

fn blob(method: &Method) -> RequestType {
    match *method {
        Method::HEAD => RequestType::BlobHead,
        Method::GET => RequestType::BlobGet,
        Method::DELETE => RequestType::BlobDelete,
        _ => RequestType::Other,
    }
}

/// Returns the session in an upload path.
pub(super) fn session(path: &str) -> Option<&str> {
    path.split_once("/blobs/uploads/").map(|(_, session)| session)
}

/// Returns a decoded query parameter.
pub(super) fn parameter(query: &str, name: &str) -> Option<String> {
    parameters(query, name).next()
}

/// Returns all decoded query parameters with a name.
pub(super) fn parameters<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = String> + 'a {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(move |(key, _)| *key == name).map(|(_, value)| decode(value))
}

pub(super) fn decode(value: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits = [bytes.next().unwrap_or(b'0'), bytes.next().unwrap_or(b'0')];
                out.extend(hex::decode(digits).unwrap_or_default());
            }
            b'+' => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
