//! Parses the body of an error response.
//!
//! The specification has `{"errors":[{"code","message","detail"}]}`; registries, token services and proxies send many
//! other forms.

use serde_json::{Map, Value};

use imgsync_oci::Digest;
use imgsync_oci::mask::mask;
use imgsync_oci::sanitize::sanitize_within;

/// Longest message, in characters.
const MAX_MESSAGE_CHARS: usize = 300;
/// Longest code, in characters.
const MAX_CODE_CHARS: usize = 60;
/// Bytes parsed of a body. A longer JSON document cannot be parsed and is quoted as text.
const MAX_PARSED_BYTES: usize = 256 * 1024;
/// Code for a manifest that references missing content.
const MISSING_BLOB_CODE: &str = "MANIFEST_BLOB_UNKNOWN";
/// Codes of errors about missing content.
const MISSING_CONTENT_CODES: [&str; 3] = [MISSING_BLOB_CODE, "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"];
/// Limit of digests of missing content read from one response.
const MAX_MISSING: usize = 1000;
/// Limit of errors quoted from one response.
const QUOTED_ERRORS: usize = 3;

/// A parsed error response. Both texts are short and safe to print.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorBody {
    /// The specification's code (`MANIFEST_UNKNOWN`) or its substitute. Of several errors the first one's, unless one
    /// reports missing content.
    pub code: Option<String>,
    /// The message, on one line; empty if the body has none.
    pub message: String,
    /// Digests of content that the registry reports as missing, each once.
    pub missing: Vec<Digest>,
}

/// Parses an error body of any form. `content_type` is only a hint: JSON is served as text, and HTML as JSON.
pub fn parse(content_type: Option<&str>, body: &[u8]) -> ErrorBody {
    let body = &body[..body.len().min(MAX_PARSED_BYTES)];
    // Masks secrets before the text is cut or split, and again afterwards.
    let text = String::from_utf8_lossy(body);
    let text = mask(&text);
    let text = text.trim_start_matches('\u{feff}').trim();

    if text.starts_with(['{', '[', '"'])
        && let Ok(value) = serde_json::from_str::<Value>(text)
    {
        let found = from_json(&value);
        let missing = missing(&value);
        let message = match found.message.is_empty() && found.code.is_none() {
            true => text.to_owned(),
            false => found.message,
        };
        return ErrorBody { missing, ..shown(found.code, &message) };
    }
    let says = |word: &str| content_type.is_some_and(|kind| kind.to_ascii_lowercase().contains(word));
    if text.starts_with('<') || says("html") || says("xml") {
        return from_markup(text);
    }
    let unreadable = text.chars().filter(|&c| c == char::REPLACEMENT_CHARACTER || c == '\0').count();
    if unreadable > 0 && unreadable * 10 >= text.chars().count() {
        return shown(None, &format!("({} bytes that are no text)", body.len()));
    }
    shown(None, text)
}

fn shown(code: Option<String>, message: &str) -> ErrorBody {
    let on_one_line = |text: &str, limit: usize| {
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        sanitize_within(&words, limit).into_owned()
    };
    ErrorBody {
        code: code.map(|code| on_one_line(&code, MAX_CODE_CHARS)).filter(|code| !code.is_empty()),
        message: on_one_line(message, MAX_MESSAGE_CHARS),
        missing: Vec::new(),
    }
}

/// Returns the digests that errors about missing content name, in their `detail` (a text in distribution, an object in
/// others) or their message.
fn missing(body: &Value) -> Vec<Digest> {
    let Value::Object(object) = body else { return Vec::new() };
    let errors = ["errors", "Errors", "error"].iter().find_map(|key| object.get(*key)).unwrap_or(body);
    let errors = errors.as_array().map_or(std::slice::from_ref(errors), Vec::as_slice);
    let mut found = Vec::new();
    for error in errors {
        if error.get("code").and_then(Value::as_str).is_some_and(|code| MISSING_CONTENT_CODES.contains(&code)) {
            digests(error, &mut found);
        }
    }
    found
}

/// Collects the digests in all texts below a value.
fn digests(value: &Value, found: &mut Vec<Digest>) {
    match value {
        Value::String(text) => {
            for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || ":+._-".contains(c))) {
                if let Ok(digest) = word.trim_end_matches('.').parse::<Digest>()
                    && found.len() < MAX_MISSING
                    && !found.contains(&digest)
                {
                    found.push(digest);
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| digests(value, found)),
        Value::Object(object) => object.values().for_each(|value| digests(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A code and a message before sanitizing.
#[derive(Default)]
struct CodeAndMessage {
    code: Option<String>,
    message: String,
}

fn from_json(value: &Value) -> CodeAndMessage {
    match value {
        Value::String(text) => CodeAndMessage { code: None, message: text.clone() },
        Value::Array(errors) => from_array(errors),
        Value::Object(object) => from_object(object),
        Value::Null | Value::Bool(_) | Value::Number(_) => CodeAndMessage::default(),
    }
}

fn from_array(errors: &[Value]) -> CodeAndMessage {
    let mut found = CodeAndMessage::default();
    for (n, error) in errors.iter().take(QUOTED_ERRORS).enumerate() {
        let error = from_json(error);
        // Missing content decides what to do, whatever else is reported.
        if n == 0 || error.code.as_deref() == Some(MISSING_BLOB_CODE) {
            found.code = error.code;
        }
        if error.message.is_empty() || found.message.contains(&error.message) {
            continue;
        }
        if !found.message.is_empty() {
            found.message.push_str("; ");
        }
        found.message.push_str(&error.message);
    }
    found
}

fn from_object(object: &Map<String, Value>) -> CodeAndMessage {
    // Containers first: fields beside them only repeat the status.
    for key in ["errors", "Errors"] {
        if let Some(inner) = object.get(key) {
            let found = from_json(inner);
            if found.code.is_some() || !found.message.is_empty() {
                return found;
            }
        }
    }
    // `{"error":{…}}`; but `{"error":"invalid_grant","error_description":"…"}` is a code (RFC 6749, section 5.2).
    let error = object.get("error");
    if let Some(inner @ (Value::Object(_) | Value::Array(_))) = error {
        let found = from_json(inner);
        if found.code.is_some() || !found.message.is_empty() {
            return found;
        }
    }
    let error = error.and_then(Value::as_str);
    let described = text_of(object, &["error_description"]);
    if let (Some(error), Some(described)) = (error, described) {
        return CodeAndMessage { code: Some(error.to_owned()), message: described.to_owned() };
    }

    let code = ["code", "Code", "errorCode", "error_type", "__type"].iter().find_map(|key| match object.get(*key)? {
        Value::String(code) => Some(code.clone()),
        Value::Number(code) => Some(code.to_string()),
        _ => None,
    });
    let message = text_of(object, &["message", "Message", "msg", "error_message", "error_description"]);
    let message = message.or(error).or(text_of(object, &["title"]));
    let detail = ["detail", "details", "Details"]
        .iter()
        .filter_map(|key| object.get(*key))
        .map(|detail| match from_json(detail).message {
            // `{"digest": …}` in place of a text.
            message if message.trim().is_empty() => {
                let mut named = Vec::new();
                digests(detail, &mut named);
                named.iter().map(Digest::to_string).collect::<Vec<_>>().join(", ")
            }
            message => message,
        })
        .find(|detail| !detail.trim().is_empty());
    let message = match (message, detail) {
        (Some(message), Some(detail)) if !message.contains(&detail) => {
            format!("{message}: {detail}")
        }
        (Some(message), _) => message.to_owned(),
        (None, detail) => detail.unwrap_or_default(),
    };
    CodeAndMessage { code, message }
}

fn text_of<'a>(object: &'a Map<String, Value>, keys: &[&str]) -> Option<&'a str> {
    keys.iter().find_map(|key| object.get(*key)?.as_str()).filter(|text| !text.trim().is_empty())
}

/// HTML of a proxy: its title, else all its text. XML of an object store: `<Code>` and `<Message>`.
fn from_markup(text: &str) -> ErrorBody {
    let lower = text.to_ascii_lowercase();
    let element = |name: &str| {
        let inner = element(text, &lower, name)?;
        let plain = without_tags(inner, &inner.to_ascii_lowercase());
        (!plain.trim().is_empty()).then_some(plain)
    };
    if let Some(message) = element("message") {
        return shown(element("code"), &message);
    }
    let message = element("title").unwrap_or_else(|| without_tags(text, &lower));
    shown(None, &message)
}

/// Returns the text between `<name …>` and `</name`. `lower` is `text` in lower case (ASCII, so that offsets are
/// equal).
fn element<'a>(text: &'a str, lower: &str, name: &str) -> Option<&'a str> {
    let open = format!("<{name}");
    let after = lower
        .match_indices(&open)
        .map(|(at, _)| at + open.len())
        .find(|&after| lower[after..].starts_with(|c: char| c == '>' || c.is_whitespace()))?;
    let start = after + lower[after..].find('>')? + 1;
    let length = lower[start..].find(&format!("</{name}"))?;
    Some(&text[start..start + length])
}

/// Returns the text without tags, comments, scripts and styles, and with common entities resolved.
fn without_tags(text: &str, lower: &str) -> String {
    let mut plain = String::new();
    let mut at = 0;
    while let Some(open) = text[at..].find('<') {
        plain.push_str(&text[at..at + open]);
        plain.push(' ');
        let tag = at + open;
        let ends_with = if lower[tag..].starts_with("<!--") {
            "-->"
        } else if lower[tag..].starts_with("<script") {
            "</script>"
        } else if lower[tag..].starts_with("<style") {
            "</style>"
        } else {
            ">"
        };
        match lower[tag..].find(ends_with) {
            Some(end) => at = tag + end + ends_with.len(),
            None => {
                at = text.len();
                break;
            }
        }
    }
    plain.push_str(&text[at..]);
    for (entity, c) in [("&nbsp;", " "), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")]
    {
        plain = plain.replace(entity, c);
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(body: &str, code: Option<&str>, message: &str) {
        let found = parse(None, body.as_bytes());
        assert_eq!((found.code.as_deref(), found.message.as_str()), (code, message), "{body}");
    }

    #[test]
    fn the_specification() {
        check(
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"v1"}}]}"#,
            Some("MANIFEST_UNKNOWN"),
            "manifest unknown",
        );
        check(
            r#"{"errors":[{"code":"DENIED","message":"denied","detail":"quota exceeded"},{"code":"X","message":"other"}]}"#,
            Some("DENIED"),
            "denied: quota exceeded; other",
        );
        // distribution 2.8, while another worker sends it the same blob.
        check(
            r#"{"errors":[{"code":"DIGEST_INVALID","message":"a"},{"code":"MANIFEST_BLOB_UNKNOWN","message":"b"}]}"#,
            Some("MANIFEST_BLOB_UNKNOWN"),
            "a; b",
        );
        check(r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#, Some("UNAUTHORIZED"), "");
    }

    #[test]
    fn digests_of_missing_content_are_read_from_texts_and_objects() {
        let (one, two) = (Digest::sha256(b"one"), Digest::sha256(b"two"));
        let check = |body: String, missing: &[&Digest]| {
            let found = parse(None, body.as_bytes());
            assert_eq!(found.missing.iter().collect::<Vec<_>>(), missing, "{body}");
            assert!(missing.first().is_none_or(|digest| found.message.contains(digest.hex())), "{}", found.message);
        };
        let error = |code: &str, rest: String| format!(r#"{{"code":"{code}","message":"unknown"{rest}}}"#);
        let errors = |errors: &[String]| format!(r#"{{"errors":[{}]}}"#, errors.join(","));
        for detail in [
            format!(r#","detail":"{one}""#),
            format!(r#","detail":{{"digest":"{one}"}}"#),
            format!(r#","detail":{{"Name":"a/b","Digest":"{one}"}}"#),
            format!(r#","detail":{{"missing":[{{"blob":"{one}","size":7}}]}}"#),
            format!(r#","detail":["blob {one}."]"#),
        ] {
            check(errors(&[error("MANIFEST_BLOB_UNKNOWN", detail)]), &[&one]);
        }
        check(format!(r#"{{"errors":[{{"code":"BLOB_UNKNOWN","message":"no blob {two}, sorry"}}]}}"#), &[&two]);
        let both = [
            error("MANIFEST_BLOB_UNKNOWN", format!(r#","detail":"{one}""#)),
            error("MANIFEST_UNKNOWN", format!(r#","detail":{{"digest":"{two}"}}"#)),
            error("MANIFEST_UNKNOWN", format!(r#","detail":{{"digest":"{two}"}}"#)),
        ];
        check(errors(&both), &[&one, &two]);
        // In other errors a digest means something else.
        check(errors(&[error("DIGEST_INVALID", format!(r#","detail":"{one}""#))]), &[]);
        check(errors(&[error("MANIFEST_UNKNOWN", r#","detail":{"Tag":"v1"}"#.to_owned())]), &[]);
    }

    #[test]
    fn other_json() {
        check(r#"{"details":"incorrect username"}"#, None, "incorrect username");
        check(r#"{"detail":"Not found."}"#, None, "Not found.");
        check(r#"{"error":"no such image"}"#, None, "no such image");
        check(r#"{"message":"slow down"}"#, None, "slow down");
        check(r#"{"error":{"code":403,"message":"no access","status":"PERMISSION_DENIED"}}"#, Some("403"), "no access");
        check(r#"{"error":"invalid_grant","error_description":"expired"}"#, Some("invalid_grant"), "expired");
        check(r#"{"errors":[{"status":403,"message":"Forbidden"}]}"#, None, "Forbidden");
        check(r#"{"errors":{"code":"A","message":"b"}}"#, Some("A"), "b");
        check(r#"{"errors":["one","two"]}"#, None, "one; two");
        check(r#"{"title":"Bad","detail":"no tag","status":400}"#, None, "Bad: no tag");
        check(r#""just a text""#, None, "just a text");
        check(r#"{"status":500}"#, None, r#"{"status":500}"#);
        check(r#"{"errors":[]}"#, None, r#"{"errors":[]}"#);
    }

    #[test]
    fn pages_of_proxies_and_object_stores() {
        check(
            "<html>\r\n<head><title>502 Bad\n Gateway</title></head><body><h1>x</h1></body></html>",
            None,
            "502 Bad Gateway",
        );
        check(
            "<!DOCTYPE html><style>p{}</style><!-- <b> --><p>Too many&nbsp;requests &amp; more</p><script>1<2",
            None,
            "Too many requests & more",
        );
        check(
            "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>",
            Some("AccessDenied"),
            "Request has expired",
        );
        let found = parse(Some("text/html; charset=utf-8"), b"busy <b>now</b>");
        assert_eq!(found.message, "busy now");
    }

    #[test]
    fn texts_and_what_is_none() {
        check("", None, "");
        check(" \n", None, "");
        check("404 page not\nfound\n", None, "404 page not found");
        check("{\"errors\":[{\"co", None, "{\"errors\":[{\"co");
        check("\u{1b}[31mred", None, r"\u{1b}[31mred");
        let found = parse(Some("application/json"), &[0x1f, 0x8b, 8, 0, 0xff, 0xfe, 0x80]);
        assert_eq!(found.message, "(7 bytes that are no text)");
    }

    #[test]
    fn a_deep_document_and_a_long_one_are_truncated() {
        let deep = "[".repeat(100_000);
        assert_eq!(parse(None, deep.as_bytes()).message.chars().count(), 300);
        let long = format!(r#"{{"message":"{}"}}"#, "x".repeat(MAX_PARSED_BYTES));
        assert_eq!(parse(None, long.as_bytes()).message.chars().count(), 300);
    }

    proptest! {
        #[test]
        fn never_panics_and_is_short_and_printable(
            body in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                "(<(/?)(title|message|script|!--)( |>)|[{}\\[\\]\":,]|errors|code|İ|\\PC){0,40}".prop_map(String::into_bytes),
            ],
            kind in prop::option::of("text/html|application/json|\\PC*"),
        ) {
            let found = parse(kind.as_deref(), &body);
            prop_assert!(found.message.chars().count() <= 300);
            prop_assert!(!found.message.chars().any(char::is_control));
            prop_assert!(found.code.is_none_or(|code| code.chars().count() <= 60 && !code.is_empty()));
        }

        #[test]
        fn any_json_is_read(code in "\\PC{0,20}", message in "\\PC{0,20}", key in "errors|error|details|message|detail") {
            let body = serde_json::json!({key: [{"code": code, "message": message}]}).to_string();
            parse(None, body.as_bytes());
        }
    }
}
