//! Registries with endless lists, invalid names or text aimed at the reader: nothing hangs, nothing is written outside
//! its place, and nothing reaches the terminal, a report, a log or a notification unescaped.

use std::path::Path;

use imgsync_tests::FaultRegistry;
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType, VendorKind};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;
use imgsync_tests::servers::WebhookReceiver;
use serde_json::{Value, json};

use super::{VendorRegistries, lines, put_tags, tags};
use crate::end_to_end::configured;

/// Returns a page of a vendor's list that repeats forever and always links to a next page.
fn endless(vendor: VendorKind, n: u64) -> FaultAction {
    let digest = images::sha256(b"endless");
    let body = match vendor {
        VendorKind::Quay => {
            json!({"tags": [{"name": "1", "manifest_digest": digest}], "page": n, "has_additional": true})
        }
        VendorKind::Hub => json!({"results": [{"name": "1", "digest": digest}], "next": format!("?page={n}")}),
        VendorKind::Harbor => json!([{"digest": digest, "tags": [{"name": "1"}]}]),
        VendorKind::GitHub => json!([{"name": digest, "metadata": {"container": {"tags": ["1"]}}}]),
    };
    let link = format!("<?page={n}>; rel=\"next\"");
    FaultAction::Status { code: 200, headers: vec![("link".to_owned(), link)], body: body.to_string().into() }
}

#[tokio::test]
async fn a_vendors_list_without_end_is_noticed_soon() {
    for vendor in VendorRegistries::ALL {
        let registry = FaultRegistry::builder().vendor(vendor).start().await;
        put_tags(&registry, "me/app", ["1", "2"]);
        registry
            .on(RequestType::ApiTags)
            .always()
            .act(FaultAction::compute(move |request| endless(vendor, request.n + 2)));
        let output = VendorRegistries::tags(vendor, &registry, "me/app", &[]).await;
        let noticed = ["came twice", "form a loop", "brought nothing new"].map(|words| output.stderr.contains(words));
        assert!(noticed.contains(&true), "{vendor:?}: {}", output.stderr);
        assert!(registry.count(RequestType::ApiTags) <= 52, "{vendor:?}: {}", registry.describe_requests());
        // The response is not a list: the registry's own list is read.
        assert_eq!((lines(&output.assert_code(0)).len(), registry.count(RequestType::Tags)), (2, 1), "{vendor:?}");
    }
}

#[tokio::test]
async fn a_catalog_and_a_tree_without_end_are_noticed_too() {
    let registry = FaultRegistry::start().await;
    registry.on(RequestType::Catalog).always().act(FaultAction::compute(|request| {
        let link = format!("</v2/_catalog?last={}>; rel=\"next\"", request.n);
        let body = json!({"repositories": ["a/x"]}).to_string();
        FaultAction::Status { code: 200, headers: vec![("link".to_owned(), link)], body: body.into() }
    }));
    let output = tags(&registry, "a/**", &[]).await.assert_code(1);
    assert!(output.stderr.contains("the same page came twice"), "{}", output.stderr);
    assert_eq!(registry.count(RequestType::Catalog), 2);

    // Each repository has a child with its own name.
    let registry = FaultRegistry::builder().google().start().await;
    registry.on(RequestType::Tags).always().act(FaultAction::compute(|request| {
        let name = request.repository.clone().unwrap_or_default();
        FaultAction::json(&json!({"name": name, "child": ["deeper"], "manifest": {}, "tags": []}))
    }));
    let output = tags(&registry, "a/**", &[]).await.assert_code(1);
    assert!(output.stdout.is_empty() && output.stderr.contains("a/deeper/deeper"), "{}", output.stderr);
    assert!(registry.count(RequestType::Tags) < 64, "{}", registry.count(RequestType::Tags));
}

#[tokio::test]
async fn one_page_without_end_is_given_up_at_a_size_that_no_list_has() {
    let registry = FaultRegistry::start().await;
    for (announced, words) in [(true, "the response is larger than 128 MiB"), (false, "cannot be parsed")] {
        registry.on(RequestType::Tags).act(FaultAction::BigBody { mib: 140, announced });
        let output = tags(&registry, "a/app", &[]).await.assert_code(1);
        assert!(output.stderr.contains(words), "{}", output.stderr);
    }
    registry.on(RequestType::Tags).always().act(FaultAction::error(404, "NAME_UNKNOWN"));
    registry.on(RequestType::Catalog).act(FaultAction::BigBody { mib: 70, announced: true });
    let output = tags(&registry, "a/*", &[]).await.assert_code(1);
    assert!(output.stderr.contains("the response is larger than 64 MiB"), "{}", output.stderr);
    for vendor in VendorRegistries::ALL {
        let registry = FaultRegistry::builder().vendor(vendor).start().await;
        put_tags(&registry, "me/app", ["1"]);
        registry.on(RequestType::ApiTags).always().act(FaultAction::BigBody { mib: 40, announced: true });
        let output = VendorRegistries::tags(vendor, &registry, "me/app", &[]).await.assert_code(0);
        assert!(output.stderr.contains("the response is larger than 32 MiB"), "{vendor:?}: {}", output.stderr);
    }
}

/// Returns names that escape when used as paths, and other invalid names.
fn odd_names() -> Vec<String> {
    let plain = ["../../outside", "a/../../outside", "/absolute", "a\\..\\b", "a/%2e%2e/b", "a%2Fb", "a/\u{0}b", "a/ü"];
    let mut names: Vec<String> = plain.iter().map(|&name| name.to_owned()).collect();
    names.push(format!("a/{}", "x".repeat(5000)));
    names
}

/// Returns all files below a folder.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path.strip_prefix(folder).unwrap().display().to_string()),
            }
        }
    }
    found
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_said_and_neither_asked_for_nor_written() {
    let registry = FaultRegistry::start().await;
    let image = images::single("good");
    registry.push("a/good", "1", &image);
    let mut names = odd_names();
    names.push("a/good".to_owned());
    registry.on(RequestType::Catalog).always().act(FaultAction::json(&json!({"repositories": names})));
    let odd_tags = ["1", "../../../outside", "..", "a/b", "%2e%2e", "/absolute", "a\\b", "\u{202e}1", "1\n2"];
    registry
        .on(RequestMatcher::kind(RequestType::Tags).repository("a/good"))
        .always()
        .act(FaultAction::json(&json!({"name": "a/good", "tags": odd_tags})));
    let program = configured(&format!("rules: [{{from: '{}/**', to: 'oci:inside', naming: keep}}]\n", registry.host()));
    let file = program.work_dir().join("imgsync.yaml");
    let output = program.again().args(["run", "--json", "--report=out.html", "-c"]).arg(&file).run().await;
    let output = output.assert_code(1);
    let json = output.json();
    assert_eq!((&json["counts"]["copied"], &json["counts"]["failed"]), (&1.into(), &0.into()), "{json}");
    assert_eq!(json["unlisted"].as_array().unwrap().len(), odd_names().len(), "{json}");
    let written = files(program.home_dir());
    let is_ours = |name: &String| !name.contains("outside") && !name.contains("absolute");
    assert!(written.iter().all(is_ours), "{written:?}");
    assert!(written.iter().any(|name| name.starts_with("work/inside/blobs/")), "{written:?}");
    assert!(!program.home_dir().parent().unwrap().join("outside").exists());
    let paths = registry.requests();
    let about_all = ["/v2/", "/v2/_catalog", "/v2/tags/list"];
    let is_asked = |path: &str| path.starts_with("/v2/a/good/") || about_all.contains(&path);
    assert!(paths.iter().all(|asked| is_asked(&asked.path)), "{}", registry.describe_requests());
    assert_plain("terminal", &output.stderr);
    assert!(!output.stderr.contains(&"x".repeat(1000)), "a long name is cut");
}

#[tokio::test]
async fn a_flood_of_names_that_are_none_is_told_of_in_part() {
    let registry = FaultRegistry::start().await;
    put_tags(&registry, "a/good", ["1"]);
    let mut names: Vec<String> = (0..5000).map(|number| format!("a/Odd{number}")).collect();
    names.push("a/good".to_owned());
    registry.on(RequestType::Catalog).always().act(FaultAction::json(&json!({"repositories": names})));
    let output = tags(&registry, "a/*", &[]).await.assert_code(1);
    assert_eq!(lines(&output).len(), 1);
    assert!(
        output.stderr.lines().count() < 300 && output.stderr.contains("more invalid repository names"),
        "{}",
        output.stderr.len()
    );
}

/// Text aimed at terminals, browsers, Markdown renderers and eyes.
const HOSTILE_TEXT: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}\u{2066}\r\nerror: fake\n# head | `x` [y](javascript:z) \
                    <img src=x onerror=alert(1)></pre><script>alert(1)</script>";

/// Asserts that a text has no control characters except line breaks, and no bidirectional formatting.
#[track_caller]
fn assert_plain(what: &str, text: &str) {
    let is_bad =
        |c: &char| (c.is_control() && *c != '\n') || matches!(*c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let bad: Vec<char> = text.chars().filter(is_bad).collect();
    assert!(bad.is_empty(), "{what} has {bad:?}: {text:?}");
}

/// Asserts the same for all strings of a JSON document.
#[track_caller]
fn assert_plain_json(what: &str, value: &Value) {
    match value {
        Value::String(text) => assert_plain(what, text),
        Value::Array(items) => items.iter().for_each(|item| assert_plain_json(what, item)),
        Value::Object(fields) => fields.values().for_each(|field| assert_plain_json(what, field)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

async fn fixture() -> (FaultRegistry, FaultRegistry, WebhookReceiver, Imgsync) {
    let (source, target, receiver) =
        tokio::join!(FaultRegistry::start(), FaultRegistry::start(), WebhookReceiver::start());
    source.push("bad", "1", &images::single("bad"));
    let body = json!({"errors": [{"code": "DENIED\u{1b}[1m", "message": HOSTILE_TEXT}]}).to_string();
    let refusal = FaultAction::Status { code: 403, headers: Vec::new(), body: body.into() };
    source.on(RequestType::ManifestGet).always().act(refusal.clone());
    source.on(RequestMatcher::kind(RequestType::Tags).repository("gone")).always().act(refusal);
    let program = configured(&format!(
        "rules:\n- {{from: {0}/bad, to: {1}/m}}\n- {{from: {0}/gone, to: {1}/m}}\nnotify: {{webhook: [{{url: '{2}'}}]}}\n",
        source.host(),
        target.host(),
        receiver.url()
    ));
    (source, target, receiver, program)
}

#[tokio::test]
async fn what_a_registry_says_is_shown_and_does_nothing() {
    let (_source, _target, receiver, program) = fixture().await;
    let file = program.work_dir().join("imgsync.yaml");
    let run = |more: &[&str]| program.again().args(["run", "--retry-delay", "10ms", "-c"]).arg(&file).args(more);
    let output = run(&["--json", "--debug"]).run().await.assert_code(1);
    assert_plain("terminal", &output.stderr);
    assert!(output.stderr.contains("alert(1)") && !output.stderr.lines().any(|line| line == "error: fake"));
    assert_plain_json("--json", &output.json());
    let events = run(&["--events"]).run().await.assert_code(1);
    for line in events.stdout.lines() {
        assert_plain_json("--events", &serde_json::from_str(line).unwrap());
    }
    for received in receiver.received() {
        assert_plain_json("webhook", &received.json());
    }
    assert_eq!(receiver.received().len(), 2);
    for form in ["text", "md", "html", "json"] {
        let report = program.again().args(["batch", "report", "--report-level", "3", "--report-format", form]);
        let report = report.run().await.assert_code(0).stdout;
        assert!(report.contains("alert(1)"), "{form}: {report}");
        assert_plain(form, &report);
        match form {
            "html" => assert!(!report.contains("<script") && !report.contains("<img"), "{report}"),
            "md" => assert!(!report.contains("\n# head"), "{report}"),
            _ => {}
        }
    }
    let shown = program.again().args(["batch", "show"]).run().await;
    assert_plain("batch show", &format!("{}{}", shown.stdout, shown.stderr));
    let explained = program.again().args(["batch", "list"]).run().await.assert_code(0);
    assert_plain("batch list", &explained.stdout);
}

#[tokio::test]
async fn a_configuration_with_secrets_that_others_can_read_is_warned_of_once_by_every_command() {
    let registry = FaultRegistry::start().await;
    put_tags(&registry, "a", ["1"]);
    let host = registry.host();
    let commands: [&[&str]; 5] = [
        &["config", "check"],
        &["config", "show"],
        &["tags", &format!("{host}/a")],
        &["run", "--dry-run"],
        &["batch", "list"],
    ];
    let warned = "imgsync.yaml contains secrets and is readable by others: chmod 600 imgsync.yaml";
    let entry = |password: &str| {
        format!(
            "registries: {{r.example.com: {{username: me, password: {password}}}}}\nrules: [{{from: {host}/a, to: {host}/b}}]\n"
        )
    };
    for (password, mode, warnings) in
        [("s3cret", 0o640, 1), ("s3cret", 0o604, 1), ("s3cret", 0o600, 0), ("'${R_PASSWORD}'", 0o644, 0)]
    {
        let program = configured(&entry(password));
        std::fs::set_permissions(
            program.work_dir().join("imgsync.yaml"),
            std::os::unix::fs::PermissionsExt::from_mode(mode),
        )
        .unwrap();
        for command in commands {
            let output = program.again().env("R_PASSWORD", "s3cret").args(command).run().await;
            assert_eq!(output.stderr.matches(warned).count(), warnings, "{command:?} {mode:o}: {}", output.stderr);
            assert!(!output.stderr.contains("s3cret") && !output.stdout.contains("s3cret"), "{command:?}: {output:?}");
        }
    }
    // A worker without a broker reports it as well.
    let worker = Imgsync::worker();
    worker.file("imgsync.yaml", entry("s3cret"));
    let output = worker.again().run().await.assert_code(2);
    assert_eq!(output.stderr.matches(warned).count(), 1, "{}", output.stderr);
}
