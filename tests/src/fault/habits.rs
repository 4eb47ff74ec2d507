//! What registries do beside the specification, or against it: each habit was seen in the wild. A registry without any
//! is the default.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{HeaderValue, StatusCode, header};

use super::answer::{Answer, Payload};
use super::create::Makes;
use super::record::Record;
use super::route::Kind;
use super::script::Action;
use super::state::{Inner, Store};
use super::vary::Vary;

/// The signature that is in the query of a blob's other address.
const SIGNATURE: &str = "X-Amz-Signature=0f1e%2Bd2c3";

/// Habits of one registry.
#[derive(Clone, Debug, Default)]
pub struct Habits {
    /// Its name and port in the URLs that it gives, where it is reached by another than its address.
    pub host: Option<&'static str>,
    /// The path of its token service, if not `/token`.
    pub token_path: Option<&'static str>,
    /// The URL of its token service, which is its own all the same.
    pub realm: Option<&'static str>,
    /// Challenges that stand before its own.
    pub more_challenges: Option<&'static str>,
    /// 401 comes without a challenge, but for that of `/v2/`.
    pub bare_401: bool,
    /// What an expired token is answered with, in place of a 401 with a challenge.
    pub expired: Option<(u16, &'static str)>,
    /// After [`super::FaultRegistry::expire_tokens`], the password of Basic is this one.
    pub next_password: Option<&'static str>,
    /// The token service's status for a request that names several scopes.
    pub many_scopes: Option<u16>,
    /// Who asks for `delete` gets no token at all.
    pub never_delete: bool,
    /// A token that is asked for with `offline_token` is refused.
    pub no_offline_token: bool,

    /// How a manifest that is missing is answered for: a status and a code.
    pub missing_manifest: Option<(u16, &'static str)>,
    /// The status of reads of a repository that nothing was ever pushed to.
    pub missing_repository: Option<u16>,
    /// A repository must be made before it is pushed to.
    pub no_new_repositories: bool,
    /// A repository is in a project, which must be made before it is pushed to: until then tokens are good for nothing there.
    pub needs_projects: bool,
    /// How repositories or projects are made by its API.
    pub makes: Option<Makes>,
    /// The body of refusals.
    pub errors: Errors,

    /// How HEADs of manifests are answered.
    pub heads: Heads,
    /// A GET of a manifest comes without `Docker-Content-Digest`.
    pub get_without_digest: bool,
    /// Docker's media types are refused, with this status.
    pub oci_only: Option<u16>,
    /// Manifests must say their `mediaType` in the body.
    pub media_type_in_body: bool,
    /// Repositories whose tags cannot be moved; pushing what they have is refused too.
    pub immutable: &'static [&'static str],
    /// So many GETs of manifests are told of by `ratelimit-limit` and `ratelimit-remaining`.
    pub pulls: Option<u64>,

    /// Blobs are at this host: a redirect of this status to a signed URL, where `Authorization` is refused.
    pub blobs_at: Option<(&'static str, u16)>,
    /// A HEAD finds blobs of every repository, a GET those of its own.
    pub heads_of_all_blobs: bool,
    /// The first of every so many bodies of blobs breaks off.
    pub breaks_one_body_in: Option<u64>,

    /// The status of a mount that does not say from where.
    pub nameless_mount: Option<u16>,
    /// A mount that names another registry (`origin`) is an error of the server's.
    pub breaks_on_origin: bool,
    /// What becomes of a mount of a blob that is not there, if not a session.
    pub missing_mount: Option<u16>,
    /// A mount takes what some manifest of the other repository names, and nothing else.
    pub mounts_committed_only: bool,
    /// How PATCHes are taken.
    pub patches: Patches,
    /// The status of a PATCH, if not 202.
    pub patch_status: Option<u16>,
    /// The connection is closed in a body of an upload after so many bytes.
    pub longest_body: Option<u64>,

    /// The status of a list that is asked for with an `n` above this.
    pub most_entries: Option<(usize, u16)>,
    /// Lists go on by `next_token`; `last` is refused with 405.
    pub opaque_cursors: bool,
    /// How the next page is named.
    pub links: Links,
    /// The status of `_catalog`.
    pub no_catalog: Option<u16>,

    /// Headers are written `Like-This`.
    pub title_case: bool,
    /// Answers vary, within the specification and beyond.
    pub vary: Option<Vary>,
    /// Requests of a kind that are taken a second; more are answered 429.
    pub rates: &'static [(Kind, f64)],
    /// So many requests are answered at a time; more are refused at once, with this status and no word of when.
    pub most_at_once: Option<(u64, u16)>,
    /// What it calls itself in `Server`.
    pub server: Option<&'static str>,
    /// Bytes of headers that come with each answer besides.
    pub long_headers: usize,
}

/// The body of refusals (401, 403, 404, 429).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Errors {
    /// As the specification has it.
    #[default]
    Oci,
    /// A web page.
    Html,
    /// A line of text.
    Text,
    /// `{"details":…}`.
    Details,
}

/// How HEADs of manifests are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Heads {
    /// As GETs, without the body.
    #[default]
    Right,
    /// With another Content-Length than a GET.
    OtherLength,
    /// With 404 by tag, and without a digest by digest.
    Useless,
}

/// How PATCHes are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Patches {
    /// As the specification has it.
    #[default]
    All,
    /// Of several the last one stays, and what the others brought is gone.
    LastWins,
    /// Those after the first are refused with this status.
    One(u16),
    /// Without `Range` in the answer; what comes after the first is dropped, and an empty PUT answered with 500.
    FirstStays,
    /// One that does not go on where the session is ends the session.
    StrictlyOnce,
}

/// How the next page is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Links {
    /// A path, or a URL where the option of absolute links says so.
    #[default]
    Right,
    /// A URL that begins with `http://`, although it is reached by https.
    PlainHttp,
    /// Without the first part of the repository's name.
    WithoutPrefix,
}

impl Habits {
    /// The signed address of a blob, if it is elsewhere.
    fn elsewhere(&self, record: &Record) -> Option<Answer> {
        let (host, status) = self.blobs_at?;
        let (repository, digest) = super::manifests::names(record);
        let to = format!("https://{host}/signed/{repository}/{digest}?{SIGNATURE}&n=1");
        Some(Answer::code(status).header(header::LOCATION, to))
    }
}

/// The repository and digest of a signed address.
pub(super) fn signed(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix("/signed/")?.rsplit_once('/')
}

/// The answer to a request that a habit answers before all else.
pub(super) fn before(inner: &Arc<Inner>, record: &Record) -> Option<Answer> {
    let habits = &inner.options.habits;
    let refuse = |status: u16, code: &str, message: &str| {
        Some(Answer::error(StatusCode::from_u16(status).expect("a status"), code, message))
    };
    if record.kind == Kind::Signed {
        return match () {
            () if record.header("authorization").is_some() => {
                refuse(400, "InvalidRequest", "only one auth mechanism allowed")
            }
            () if !record.query.contains(SIGNATURE) => refuse(403, "AccessDenied", "the signature is missing"),
            () => None,
        };
    }
    if let Some((_, rate)) = habits.rates.iter().find(|(kind, _)| *kind == record.kind)
        && !inner.is_within_rate_of(record.kind, *rate)
    {
        return refuse(429, "TOOMANYREQUESTS", "Rate exceeded");
    }
    if let Some((most, status)) = habits.most_at_once
        && inner.in_flight() > most
    {
        return refuse(status, "TOOMANYREQUESTS", "too many at a time");
    }
    if record.kind == Kind::UploadMount {
        if let Some(status) = habits.nameless_mount.filter(|_| record.parameter("from").is_none()) {
            return refuse(status, "BLOB_UPLOAD_INVALID", "from where?");
        }
        if habits.breaks_on_origin && record.parameter("origin").is_some() {
            return refuse(500, "UNKNOWN", "unknown error");
        }
    }
    if let (Kind::Catalog, Some(status)) = (record.kind, habits.no_catalog) {
        return refuse(status, "UNSUPPORTED", "there is no catalog");
    }
    if let (Kind::Tags | Kind::Catalog, Some((most, status))) = (record.kind, habits.most_entries)
        && record.parameter("n").and_then(|n| n.parse::<usize>().ok()).is_some_and(|n| n > most)
    {
        return refuse(status, "PAGINATION_NUMBER_INVALID", "n is too large");
    }
    if matches!(record.kind, Kind::Tags | Kind::Catalog) && habits.opaque_cursors && record.parameter("last").is_some()
    {
        return refuse(405, "UNSUPPORTED", "last is not supported");
    }
    let absent = || {
        let name = record.repository.as_deref().unwrap_or_default();
        !inner.store().repositories.contains_key(name)
    };
    let reads = matches!(
        record.kind,
        Kind::ManifestHead | Kind::ManifestGet | Kind::BlobHead | Kind::BlobGet | Kind::Tags | Kind::Referrers
    );
    if let Some(status) = habits.missing_repository.filter(|_| reads)
        && absent()
    {
        return refuse(status, "NAME_UNKNOWN", "there is no such repository");
    }
    let writes = matches!(record.kind, Kind::UploadStart | Kind::UploadMount | Kind::ManifestPut);
    if habits.no_new_repositories && (reads || writes) && absent() {
        return refuse(404, "NAME_UNKNOWN", "The repository with name does not exist in the registry");
    }
    if record.kind == Kind::BlobGet && blob_is_here(inner, record) {
        return habits.elsewhere(record);
    }
    None
}

fn blob_is_here(inner: &Inner, record: &Record) -> bool {
    let (repository, digest) = super::manifests::names(record);
    inner.store().blob(repository, digest).is_some()
}

/// What habits make of an answer.
pub(super) fn after(inner: &Arc<Inner>, record: &Record, mut answer: Answer) -> Answer {
    let habits = &inner.options.habits;
    let found = answer.status == StatusCode::OK;
    match record.kind {
        Kind::ManifestHead if found => match habits.heads {
            Heads::Right => {}
            Heads::OtherLength => {
                let other = answer.body.len() + 7;
                answer = answer.header(header::CONTENT_LENGTH, other);
            }
            Heads::Useless if record.reference.as_deref().is_some_and(|reference| reference.contains(':')) => {
                inner.misled();
                answer.headers.remove("docker-content-digest");
            }
            Heads::Useless => {
                inner.misled();
                answer = Answer::not_found("MANIFEST_UNKNOWN");
            }
        },
        Kind::ManifestGet if found => {
            if habits.get_without_digest {
                answer.headers.remove("docker-content-digest");
            }
            if let Some(limit) = habits.pulls {
                let used = inner.pulls.fetch_add(1, Ordering::SeqCst) + 1;
                if used > limit {
                    let refused =
                        Answer::new(StatusCode::TOO_MANY_REQUESTS).body("You have reached your pull rate limit.\n");
                    return refused.header(header::RETRY_AFTER, 60);
                }
                answer = answer
                    .header("ratelimit-limit", format!("{limit};w=21600"))
                    .header("ratelimit-remaining", format!("{};w=21600", limit.saturating_sub(used)))
                    .header("docker-ratelimit-source", "203.0.113.7");
            }
        }
        // It cannot be believed either.
        Kind::ManifestHead if habits.heads == Heads::Useless && answer.status == StatusCode::NOT_FOUND => {
            inner.misled()
        }
        _ => {}
    }
    let about_manifests = matches!(record.kind, Kind::ManifestHead | Kind::ManifestGet);
    if let Some((status, code)) = habits.missing_manifest
        && about_manifests
        && answer.status == StatusCode::NOT_FOUND
    {
        answer = Answer::error(StatusCode::from_u16(status).expect("a status"), code, "it is not here");
    }
    if matches!(answer.status.as_u16(), 401 | 403 | 404 | 429) {
        answer = reworded(habits.errors, answer);
    }
    if let Some(server) = habits.server {
        answer = answer.header(header::SERVER, server);
    }
    if habits.long_headers > 0 {
        let padding = "p".repeat(habits.long_headers);
        answer.headers.insert("x-padding", HeaderValue::from_str(&padding).expect("letters"));
    }
    answer
}

/// The same refusal in another form.
fn reworded(errors: Errors, answer: Answer) -> Answer {
    let (kind, body) = match errors {
        Errors::Oci => return answer,
        Errors::Html => {
            let title = format!("{} - refused", answer.status);
            (
                "text/html; charset=utf-8",
                format!("<html><head><title>{title}</title></head><body>{title}</body></html>"),
            )
        }
        Errors::Text => ("text/plain; charset=utf-8", format!("{}\n", answer.status)),
        Errors::Details => ("application/json", format!("{{\"details\":\"{}\"}}", answer.status)),
    };
    answer.header(header::CONTENT_TYPE, kind).body(body)
}

/// What goes wrong with an answer's body.
pub(super) fn spoil(inner: &Arc<Inner>, record: &Record, answer: &Answer, actions: &mut Vec<Action>) {
    let Some(one_in) = inner.options.habits.breaks_one_body_in else { return };
    let is_blob = matches!(record.kind, Kind::BlobGet | Kind::Signed) && matches!(answer.body, Payload::Blob(..));
    if is_blob && answer.body.len() > 1 && inner.bodies.fetch_add(1, Ordering::SeqCst).is_multiple_of(one_in) {
        inner.misled();
        actions.push(Action::CutAfter { bytes: answer.body.len() / 2 });
    }
}

/// Whether a blob may be mounted from a repository.
pub(super) fn may_mount(habits: &Habits, store: &Store, from: &str, digest: &str) -> bool {
    if !habits.mounts_committed_only {
        return true;
    }
    let manifests = store.repositories.get(from).into_iter().flat_map(|repository| repository.manifests.values());
    manifests.map(|held| held.manifest.json()).any(|json| crate::images::blobs(&json).iter().any(|blob| blob == digest))
}
