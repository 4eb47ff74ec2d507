//! Conformance of the server to its OpenAPI description: requests are generated from it, valid and invalid, and every
//! response must match it.

use imgsync_tests::ServeProcess;
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::serve_process::send_json;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{ServeFixture, assert_sums};

const REQUESTS: usize = 1_500;

/// Explains why a value does not match a schema; `None` if it does.
fn mismatch(document: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let schema = document.pointer(name.trim_start_matches('#')).expect("references lead somewhere");
        return mismatch(document, schema, value, at);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let wrong: Option<Vec<String>> = any.iter().map(|one| mismatch(document, one, value, at)).collect();
        return wrong.map(|wrong| wrong.join(" and "));
    }
    if let Some(values) = schema["enum"].as_array() {
        return (!values.contains(value)).then(|| format!("{at}: {value} is none of {values:?}"));
    }
    let is = |kind: &str| match kind {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "number" => value.as_f64().is_some_and(|number| number >= 0.0),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the description names a kind that there is not: {other}"),
    };
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => panic!("{at}: the description says no type: {schema}"),
    };
    if !kinds.iter().any(|kind| is(kind)) {
        return Some(format!("{at}: {value} is no {kinds:?}"));
    }
    if let Some(text) = value.as_str() {
        let is_right = match schema["format"].as_str() {
            Some("date-time") => text.parse::<jiff::Timestamp>().is_ok(),
            Some("uuid") => text.len() == 36,
            _ => true,
        };
        return (!is_right).then(|| format!("{at}: {text} is no {}", schema["format"]));
    }
    if let Some(items) = value.as_array() {
        let each = items.iter().enumerate();
        return each
            .into_iter()
            .find_map(|(n, item)| mismatch(document, &schema["items"], item, &format!("{at}[{n}]")));
    }
    let fields = value.as_object()?;
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for name in required {
        if !fields.contains_key(name) {
            return Some(format!("{at}: {name} is missing"));
        }
    }
    fields.iter().find_map(|(name, field)| match schema["properties"].get(name) {
        Some(schema) => mismatch(document, schema, field, &format!("{at}.{name}")),
        None if schema["additionalProperties"] == json!(false) => Some(format!("{at}: {name} is not described")),
        None => None,
    })
}

/// A generated request.
struct GeneratedRequest {
    method: Method,
    path: String,
    body: Option<(String, Vec<u8>)>,
    token: Option<String>,
    host: Option<&'static str>,
    origin: Option<&'static str>,
}

struct RequestGenerator {
    random: StdRng,
    document: Value,
    batches: Vec<String>,
    rules: Vec<String>,
    token: String,
}

impl RequestGenerator {
    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from.choose(&mut self.random).expect("there is something to choose from").clone()
    }

    fn random_text(&mut self) -> String {
        let known = [
            "0",
            "-1",
            "..%2f..",
            "%00",
            "%ff",
            "a%20b",
            "%f0%9f%8e%89",
            "null",
            "18446744073709551616",
            "'",
            "%3Cscript%3E",
        ];
        match self.random.random_range(0..3) {
            0 => self.pick(&known).to_owned(),
            1 => "x".repeat(self.random.random_range(1..3_000)),
            _ => format!("{:036x}", self.random.random::<u64>()),
        }
    }

    fn value_of(&mut self, schema: &Value) -> String {
        if let Some(name) = schema["$ref"].as_str() {
            let schema = self.document.pointer(name.trim_start_matches('#')).unwrap().clone();
            return self.value_of(&schema);
        }
        match schema["enum"].as_array() {
            Some(values) => self.pick(values).as_str().unwrap_or_default().to_owned(),
            None => self.pick(&["0", "1", "7", "100", "1000", "1001", "4294967295", "4294967296"]).to_owned(),
        }
    }

    fn make(&mut self) -> (String, GeneratedRequest) {
        let paths: Vec<String> = self.document["paths"].as_object().unwrap().keys().cloned().collect();
        let template = self.pick(&paths);
        let item = self.document["paths"][&template].clone();
        let methods: Vec<String> = item.as_object().unwrap().keys().cloned().collect();
        let name = self.pick(&methods);
        let operation = item[&name].clone();
        let mut path = template.clone();
        let mut query = Vec::new();
        for parameter in operation["parameters"].as_array().cloned().unwrap_or_default() {
            let its = parameter["name"].as_str().unwrap();
            if parameter["in"] == "path" {
                let known = if its == "batch" { self.batches.clone() } else { self.rules.clone() };
                let value = match self.random.random_range(0..4) {
                    0 => self.random_text(),
                    1 => "01890a5d-ac96-774b-bcce-b302099a8057".to_owned(),
                    _ => self.pick(&known),
                };
                path = path.replace(&format!("{{{its}}}"), &value);
            } else if self.random.random_bool(0.5) {
                let value = match self.random.random_bool(0.2) {
                    true => self.random_text(),
                    false => self.value_of(&parameter["schema"]),
                };
                query.push(format!("{its}={value}"));
            }
        }
        if operation["operationId"] != "events" && self.random.random_bool(0.03) {
            query.push(format!("{}=1", self.pick(&["limit", "fro", "%00", "limit"])));
        }
        if !query.is_empty() {
            path = format!("{path}?{}", query.join("&"));
        }
        let body = (name == "post").then(|| self.body(&operation)).flatten();
        let token = match self.random.random_range(0..8) {
            0 => None,
            1 => Some("wrong".to_owned()),
            _ => Some(self.token.clone()),
        };
        let host = self.random.random_bool(0.03).then_some("evil.example");
        let origin = self.random.random_bool(0.03).then_some("http://evil.example");
        let method = name.to_uppercase().parse().unwrap();
        (template, GeneratedRequest { method, path, body, token, host, origin })
    }

    fn body(&mut self, operation: &Value) -> Option<(String, Vec<u8>)> {
        let json = "application/json".to_owned();
        let is_requeue = operation["operationId"] == "requeue";
        Some(match self.random.random_range(0..10) {
            0 => return None,
            1 => (json, vec![b'x'; 20_000]),
            2 => ("text/plain".to_owned(), b"hello".to_vec()),
            3 => {
                (json, self.pick(&["{", "[]", "null", "7", "\"\u{1}\"", "{\"kind\": 7}", "{\"nothing\": true}"]).into())
            }
            4 if is_requeue => (
                json,
                self.pick(&[
                    "{\"kind\":\"odd\"}",
                    "{\"registry\":\"a b\"}",
                    "{\"kind\":\"denied\",\"registry\":\"a.example\"}",
                ])
                .into(),
            ),
            5 | 6 if is_requeue => {
                let kind = self.value_of(&json!({"$ref": "#/components/schemas/ErrorKind"}));
                (json, json!({"kind": kind}).to_string().into())
            }
            _ => (json, b"{}".to_vec()),
        })
    }
}

/// Sends a request and asserts that the description covers the response.
async fn check(served: &ServeProcess, document: &Value, template: &str, made: &GeneratedRequest) -> u16 {
    let mut request = served.request(made.method.clone(), made.path.trim_start_matches('/'));
    if let Some((kind, body)) = &made.body {
        request = request.header("content-type", kind).body(body.clone());
    }
    if let Some(token) = &made.token {
        request = request.bearer_auth(token);
    }
    if let Some(host) = made.host {
        request = request.header("host", host);
    }
    if let Some(origin) = made.origin {
        request = request.header("origin", origin);
    }
    let shown = format!("{} {}", made.method, made.path.chars().take(200).collect::<String>());
    let operation = &document["paths"][template][made.method.as_str().to_lowercase()];
    let response = request.send().await.unwrap_or_else(|error| panic!("{shown}: {error}"));
    let status = response.status().as_u16();
    let described = &operation["responses"][status.to_string()];
    assert!(described.is_object(), "{shown}: {status} is not described");
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    let content = &described["content"][kind.split(';').next().unwrap()];
    assert!(content.is_object(), "{shown}: {status} with {kind} is not described");
    if kind == "text/event-stream" {
        return status;
    }
    if kind.starts_with("text/html") {
        let page = response.text().await.unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert!(page.contains("<html"), "{shown}: {page}");
        return status;
    }
    let value: Value = response.json().await.unwrap_or_else(|error| panic!("{shown}: {status} is no JSON: {error}"));
    if let Some(wrong) = mismatch(document, &content["schema"], &value, "") {
        panic!("{shown}: {status}: {wrong}\n{value:#}");
    }
    // A request without the token changes nothing.
    let is_right = made.token.as_deref() == Some(served.token.as_str());
    if made.method == Method::POST && !is_right && made.host.is_none() && made.origin.is_none() {
        assert_eq!(status, 401, "{shown}");
    }
    status
}

#[tokio::test]
async fn made_up_requests_are_answered_as_the_description_says_and_nothing_is_lost_by_them() {
    let fixture = ServeFixture::new(&["a", "b"], 8).await;
    let refused = FaultAction::Status { code: 403, headers: Vec::new(), body: "{}".into() };
    let first = RequestMatcher::kinds(&[RequestType::ManifestGet, RequestType::ManifestHead]).repository("a");
    fixture.source.on(first).always().act(refused);
    let served = fixture.serve(&[("a", "{every: 1h}"), ("b", "{every: 1h}"), ("missing", "{every: 1h}")]).await;
    let batches = served.wait_for_ended_batches(3).await;
    let (status, document) = served.get("openapi.json").await;
    assert_eq!((status, &document["openapi"]), (200, &"3.1.0".into()));
    let (_, schedules) = served.get("schedules").await;
    let seed = std::env::var("IMGSYNC_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    println!("IMGSYNC_SEED={seed}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut generator = RequestGenerator {
        random: StdRng::seed_from_u64(seed),
        document: document.clone(),
        batches: batches.iter().map(|batch| text(&batch["batch"])).collect(),
        rules: schedules["schedules"].as_array().unwrap().iter().map(|rule| text(&rule["rule"])).collect(),
        token: served.token.clone(),
    };
    let mut seen: std::collections::BTreeMap<u16, usize> = std::collections::BTreeMap::new();
    for _ in 0..REQUESTS {
        let (template, made) = generator.make();
        *seen.entry(check(&served, &document, &template, &made).await).or_default() += 1;
    }
    for status in [200, 202, 400, 401, 403, 404, 409, 413, 415, 421] {
        assert!(seen.contains_key(&status), "no request was made up that is answered with {status}: {seen:?}");
    }
    assert!(!seen.contains_key(&500) && !seen.contains_key(&503), "{seen:?}");
    // Whatever was started, paused or cancelled: every batch can be ended with all its images counted.
    let (_, value) = served.get("batches?limit=1000").await;
    for batch in value["batches"].as_array().unwrap() {
        let path = format!("batches/{}", batch["batch"].as_str().unwrap());
        let _ = served.post(&format!("{path}/cancel"), &json!({})).await;
        let batch = served.wait_for(&path, |batch| !batch["ended"].is_null()).await;
        assert_sums(&batch);
    }
    served.stop().await.assert_code(0);
}

#[tokio::test]
async fn every_path_that_is_described_is_there_and_methods_that_are_not_are_refused() {
    let fixture = ServeFixture::new(&["a"], 1).await;
    let served = fixture.serve(&[("a", "")]).await;
    let (_, document) = served.get("openapi.json").await;
    for (template, item) in document["paths"].as_object().unwrap() {
        let path = template.trim_start_matches('/').replace("{batch}", "nothing").replace("{rule}", "nothing");
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            let request = served.request(method.clone(), &path).bearer_auth(&served.token);
            let is_described = item.get(method.as_str().to_lowercase()).is_some();
            if template == "/events" && is_described {
                continue;
            }
            let (status, value) = send_json(request).await;
            assert_eq!(status != 405, is_described, "{method} {template}: {status}");
            let is_nowhere = value["error"]["message"].as_str().is_some_and(|words| words.contains("no such path"));
            assert!(!is_nowhere, "{method} {template}");
        }
    }
}
