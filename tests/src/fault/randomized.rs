//! Randomized responses within and just beyond the specification, for behaviour that no known registry has.
//!
//! A variation depends only on the seed, the request and how often it was sent, not on time: the same seed gives the
//! same responses.

use std::io::Write as _;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::request_log::RecordedRequest;
use super::request_type::RequestType;
use super::response::{FaultResponse, ResponseBody};
use super::state::Inner;
use crate::images::seed_from_name;

/// Which responses are varied, and with which seed.
#[derive(Clone, Debug)]
pub struct RandomizedResponses {
    /// Seed of all variations.
    pub seed: u64,
    /// Repository whose responses are varied. If empty, responses of the token service are varied too.
    pub repository: String,
    /// Varies one response in this many.
    pub one_in: u64,
}

/// Pseudo-random numbers seeded by a text.
struct SeededRandom(u64);

impl SeededRandom {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = seed_from_name(&format!("{:x}", self.0));
        self.0 % limit.max(1)
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// Wrong content types.
const WRONG_CONTENT_TYPES: [&str; 9] = [
    "application/json",
    "application/json;charset=UTF-8",
    "text/plain; charset=utf-8",
    "APPLICATION/VND.OCI.IMAGE.MANIFEST.V1+JSON",
    "application/octet-stream",
    "",
    "nonsense",
    "\"application/json\"",
    "application/vnd.oci.image.index.v1+json; q=1; a=\"b;c\"",
];
/// Headers that a client can do without.
const OPTIONAL_HEADERS: [&str; 8] = [
    "docker-content-digest",
    "content-type",
    "etag",
    "accept-ranges",
    "range",
    "docker-upload-uuid",
    "content-range",
    "oci-subject",
];
/// Challenges sent next to the right one.
const EXTRA_CHALLENGES: [&str; 4] =
    ["Negotiate", "Digest realm=\"a, b\", nonce=\"c==\"", "Bearer", "Unknown token68=="];

/// Varies a response, or returns it unchanged.
pub(super) fn randomize(inner: &Arc<Inner>, record: &RecordedRequest, answer: FaultResponse) -> FaultResponse {
    let Some(vary) = &inner.options.quirks.randomized else { return answer };
    if record.repository.as_deref().unwrap_or_default() != vary.repository {
        return answer;
    }
    let same = |other: &RecordedRequest| {
        other.kind == record.kind && other.reference == record.reference && other.n < record.n
    };
    let before = inner.log.count(same);
    let reference = record.reference.as_deref().filter(|_| record.kind != RequestType::UploadPatch).unwrap_or_default();
    let mut dice = SeededRandom(seed_from_name(&format!("{}/{:?}/{reference}/{before}", vary.seed, record.kind)));
    if dice.below(vary.one_in) > 0 {
        return answer;
    }
    let mut answer = answer;
    for _ in 0..=dice.below(2) {
        let what = apply_variation(&mut dice, record.kind, &mut answer);
        let line = format!("{:?} {} {what}", record.kind, record.reference.as_deref().unwrap_or_default());
        inner.variations.lock().expect("the list is whole").push((record.kind, line));
    }
    answer
}

/// Applies one variation and describes it.
fn apply_variation(dice: &mut SeededRandom, kind: RequestType, answer: &mut FaultResponse) -> String {
    match dice.below(10) {
        0 => {
            let turned: Vec<_> = answer.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
            answer.headers = turned.into_iter().rev().fold(HeaderMap::new(), |mut headers, (name, value)| {
                headers.append(name, value);
                headers
            });
            "other order of headers".to_owned()
        }
        1 | 2 => {
            let name = *dice.pick(&OPTIONAL_HEADERS);
            answer.headers.remove(name);
            format!("without {name}")
        }
        3 => {
            let odd = *dice.pick(&WRONG_CONTENT_TYPES);
            answer.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(odd));
            format!("content-type `{odd}`")
        }
        4 if answer.status.is_success() => {
            let status = *dice.pick(&[200, 201, 202, 203, 204, 206]);
            answer.status = StatusCode::from_u16(status).expect("a status");
            if status == 204 {
                answer.body = ResponseBody::Bytes(bytes::Bytes::new());
            }
            format!("status {status}")
        }
        5 => encode(dice, answer),
        6 => digest(dice, answer),
        7 => location(dice, answer),
        8 => {
            let name = HeaderName::from_static("x-odd");
            let value = HeaderValue::from_bytes(b"\xff\xfe \t=,;\"").expect("bytes that a header may have");
            answer.headers.append(name, value);
            answer.headers.append(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
            for challenge in EXTRA_CHALLENGES.iter().filter(|_| answer.status == StatusCode::UNAUTHORIZED) {
                answer.headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            }
            "headers besides".to_owned()
        }
        // Bodies of manifests and blobs must match their digests.
        _ if !matches!(
            kind,
            RequestType::ManifestGet | RequestType::ManifestHead | RequestType::BlobGet | RequestType::BlobHead
        ) =>
        {
            rewrite(dice, answer)
        }
        _ => "nothing".to_owned(),
    }
}

fn encode(dice: &mut SeededRandom, answer: &mut FaultResponse) -> String {
    let how = *dice.pick(&["identity", "gzip", "x-nonsense", "br"]);
    answer.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(how));
    if let (ResponseBody::Bytes(bytes), "gzip") = (&answer.body, how)
        && dice.below(2) == 0
    {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).expect("memory takes it");
        answer.body = ResponseBody::Bytes(encoder.finish().expect("memory takes it").into());
    }
    format!("content-encoding {how}")
}

fn digest(dice: &mut SeededRandom, answer: &mut FaultResponse) -> String {
    let Some(digest) = answer.headers.get("docker-content-digest").and_then(|value| value.to_str().ok()) else {
        return "nothing".to_owned();
    };
    let odd = match dice.below(5) {
        0 => digest.to_uppercase(),
        1 => format!("\"{digest}\""),
        2 => format!("sha256:{}", "0".repeat(64)),
        3 => "sha999:abc".to_owned(),
        _ => String::new(),
    };
    answer.headers.insert("docker-content-digest", HeaderValue::from_str(&odd).expect("a header's value"));
    format!("docker-content-digest {odd}")
}

fn location(dice: &mut SeededRandom, answer: &mut FaultResponse) -> String {
    let Some(location) = answer.headers.get(header::LOCATION).and_then(|value| value.to_str().ok()) else {
        return "nothing".to_owned();
    };
    let path =
        location.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map(|(_, path)| format!("/{path}"));
    let odd = match dice.below(5) {
        0 => path.unwrap_or_else(|| location.to_owned()),
        1 => format!("{location}#fragment"),
        2 => location.replacen("http://", "HTTP://", 1),
        3 => format!("  {location} "),
        _ => "http://[not a host/".to_owned(),
    };
    let value = HeaderValue::from_str(odd.trim_end_matches('\n')).expect("a header's value");
    answer.headers.insert(header::LOCATION, value);
    format!("location {odd}")
}

/// Drops a value of a JSON body, or replaces it with null or another type.
fn rewrite(dice: &mut SeededRandom, answer: &mut FaultResponse) -> String {
    let ResponseBody::Bytes(bytes) = &answer.body else { return "nothing".to_owned() };
    let Ok(mut value) = serde_json::from_slice::<Value>(bytes) else { return "nothing".to_owned() };
    let what = alter(dice, &mut value);
    let mut text = value.to_string();
    match dice.below(4) {
        0 => text.insert(0, '\u{feff}'),
        1 => text = format!("\r\n\t {text}\n\n"),
        _ => {}
    }
    answer.body = ResponseBody::Bytes(text.into());
    format!("body: {what}")
}

fn alter(dice: &mut SeededRandom, value: &mut Value) -> String {
    match value {
        Value::Object(fields) if !fields.is_empty() && dice.below(4) > 0 => {
            let names: Vec<String> = fields.keys().cloned().collect();
            let name = dice.pick(&names).clone();
            if dice.below(4) == 0 {
                fields.remove(&name);
                return format!("without {name}");
            }
            let inner = fields.get_mut(&name).expect("it is there");
            format!("{name}: {}", alter(dice, inner))
        }
        Value::Array(entries) if !entries.is_empty() && dice.below(3) > 0 => {
            let at = dice.below(entries.len() as u64) as usize;
            format!("[{at}]: {}", alter(dice, &mut entries[at]))
        }
        other => {
            *other = match dice.below(6) {
                0 => Value::Null,
                1 => json!(other.to_string()),
                2 => json!(17),
                3 => json!({"unexpected": [other.clone()]}),
                4 => json!([other.clone(), other.clone()]),
                _ => json!(true),
            };
            other.to_string().chars().take(60).collect()
        }
    }
}
