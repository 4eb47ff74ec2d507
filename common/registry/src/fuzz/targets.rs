//! Fuzz targets: all parsers of network input.

use std::time::{Duration, UNIX_EPOCH};

use ::http::{HeaderMap, HeaderName, HeaderValue};

use super::engine::fuzz;
use crate::ssrf::{self, AllowedAddresses, NetworkScope};
use crate::{auth, catalog, challenge, error_body, link, quota_headers, range, referrers, retry_after, tags};
use imgsync_oci::{Digest, Manifest, MediaType};

/// Splits an input into header values, one per line.
fn lines(input: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(input).split('\n').take(16).map(str::to_owned).collect()
}

fn text(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}

targets! {
    challenges = |input| {
        let lines = lines(input);
        let found = challenge::parse(lines.iter().map(String::as_str));
        assert!(found.len() <= 32 * 16, "the number of challenges has a bound");
        format!("{found:?}")
    };
    links = |input| {
        let lines = lines(input);
        format!("{:?}", link::find_next(lines.iter().map(String::as_str)))
    };
    locations = |input| {
        let from: url::Url = "https://registry.example.com/v2/a/blobs/uploads/?x=1".parse().unwrap();
        let Ok(to) = from.join(&text(input)) else { return "no URL".to_owned() };
        let allowed = AllowedAddresses { private: false, metadata: &[] };
        match ssrf::validate_url(&from, to, NetworkScope::Public, allowed, "redirect") {
            Ok(next) => {
                assert_eq!(next.scheme(), "https", "never to plain HTTP");
                format!("{:?} {:?} {}", next.host(), next.port(), next.path())
            }
            Err(error) => format!("{:?}", error.kind()),
        }
    };
    ranges = |input| {
        let text = text(input);
        let session = range::parse_session_range(&text);
        let content = range::parse_content_range(&text);
        if let Some((first, last, total)) = content {
            assert!(first <= last && total.is_none_or(|total| last < total));
        }
        format!("{session:?} {content:?} {:?}", session.and_then(|session| session.continue_from(1 << 30)))
    };
    retry_afters = |input| {
        let wait = retry_after::parse(&text(input), UNIX_EPOCH + Duration::from_secs(1_760_000_000));
        assert!(wait.is_none_or(|wait| wait <= crate::header_time::MAX_DELAY));
        format!("{wait:?}")
    };
    quotas = |input| {
        let mut headers = HeaderMap::new();
        for line in lines(input) {
            if let Some((name, value)) = line.split_once(':')
                && let Ok(name) = HeaderName::from_bytes(name.trim().as_bytes())
                && let Ok(value) = HeaderValue::from_bytes(value.trim().as_bytes())
            {
                headers.append(name, value);
            }
        }
        format!("{:?}", quota_headers::parse(&headers, UNIX_EPOCH + Duration::from_secs(1_760_000_000)))
    };
    manifests = |input| {
        let digest = Digest::sha256(input);
        let kinds = ["", "application/vnd.oci.image.index.v1+json", "text/html"];
        let read = |kind| match Manifest::parse_as(input.to_vec().into(), digest.clone(), &MediaType::new(kind)) {
            Ok(manifest) => {
                assert_eq!(manifest.bytes(), input, "bytes are passed on as they came");
                format!("{:?} {}", manifest.kind(), manifest.descriptor().size)
            }
            Err(error) => format!("{error:?}"),
        };
        kinds.map(read).join(" ")
    };
    tag_lists = tags::fuzz_parse;
    catalogs = catalog::fuzz_parse;
    referrer_lists = referrers::fuzz_parse;
    tokens = auth::fuzz_parse;
    error_bodies = |input| {
        let found = ["application/json", "text/html", ""].map(|kind| error_body::parse(Some(kind), input));
        for error in &found {
            assert!(error.message.chars().count() <= 400, "messages are short");
            let shown = error.code.iter().flat_map(|code| code.chars()).chain(error.message.chars());
            assert!(!shown.into_iter().any(char::is_control), "and can be shown");
        }
        format!("{found:?}")
    };
}
