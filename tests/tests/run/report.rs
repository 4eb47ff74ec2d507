//! Reports: four formats, on stdout and in files, of past batches, and with custom templates.

use imgsync_tests::fault::{FaultAction, FaultRegistry, RequestMatcher, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;
use serde_json::{Value, json};

use crate::end_to_end::configured;

/// Error text of a registry that refuses an image.
const HOSTILE: &str = "<script>alert(1)</script> `x` | [y](javascript:z)";

struct ReportFixture {
    source: FaultRegistry,
    program: Imgsync,
}

/// Twelve images that are copied, three that fail, and a repository that cannot be listed.
async fn fixture(more: &str) -> (ReportFixture, FaultRegistry) {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for n in 0..12 {
        source.push("good", &format!("v{n}"), &images::single(&format!("report-{n}")));
    }
    for n in 0..3 {
        source.push("bad", &format!("v{n}"), &images::single("report-bad"));
    }
    let body = json!({"errors": [{"code": "DENIED", "message": HOSTILE}]}).to_string();
    let refusal = FaultAction::Status { code: 403, headers: Vec::new(), body: body.into() };
    let is_bad = |record: &imgsync_tests::fault::RecordedRequest| {
        record.repository.as_deref() == Some("bad")
            && matches!(record.kind, RequestType::ManifestGet | RequestType::ManifestHead)
    };
    source.on(RequestMatcher::any().when(is_bad)).always().act(refusal);
    let program = configured(&format!(
        "rules:\n- {{from: {0}/*, to: {1}/m, naming: keep}}\n- {{from: {0}/none, to: {1}/n, naming: keep}}\n{more}",
        source.host(),
        target.host()
    ));
    (ReportFixture { source, program }, target)
}

impl ReportFixture {
    fn run(&self) -> Imgsync {
        let file = self.program.work_dir().join("imgsync.yaml");
        self.program.again().args(["run", "--retry-delay", "10ms", "-c"]).arg(file)
    }

    fn batch_report(&self, more: &[&str]) -> Imgsync {
        self.program.again().args(["batch", "report"]).args(more)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.program.work_dir().join(name)).unwrap()
    }
}

#[tokio::test]
async fn a_report_is_written_as_its_file_s_name_says_and_again_for_a_past_batch() {
    let (fixture, _target) = fixture("").await;
    let ran = fixture.run().args(["--report=out.html", "--report-name", "nightly"]).run().await.assert_code(1);
    assert!(ran.stderr.contains("report written to out.html"), "{}", ran.stderr);
    let html = fixture.read("out.html");
    for part in
        ["3 of 15 images failed", "nightly", "Denied", "Not listed", "/none", "&lt;script&gt;", "<svg class=\"plot\""]
    {
        assert!(html.contains(part), "{part} in {html}");
    }
    assert!(!html.contains("<script") && !html.contains("href") && !html.contains(" src="), "no script, no network");
    assert!(!ran.stderr.contains("All images"), "{}", ran.stderr);

    fixture.batch_report(&["--report=old.md"]).run().await.assert_code(0);
    let text = fixture.read("old.md");
    assert!(text.starts_with("# 3 of 15 images failed\n\nnightly: batch `"), "{text}");
    assert!(text.contains("### Denied: 3, ") && text.contains("`` ") && !text.contains("\\`"), "{text}");

    // On stdout it is the same.
    let page = fixture.batch_report(&["--report-format", "html"]).run().await.assert_code(0).stdout;
    let lines =
        |text: &str| text.lines().filter(|line| !line.contains("<footer>")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines(&page), lines(&html));

    // Failures are listed, so that the hint need not say where they are.
    assert!(ran.stderr.contains("hint: `imgsync explain REF` explains a tag"), "{}", ran.stderr);
    for more in [&["-q"][..], &["--report", "--report-level", "1"]] {
        let ran = fixture.run().args(more).run().await.assert_code(1);
        assert!(ran.stderr.contains("--report-level 2` lists them; `imgsync explain REF`"), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn level_3_lists_every_image_in_every_form() {
    let (fixture, _target) = fixture("report: {file: run.json, level: 3}\n").await;
    let ran = fixture.run().run().await.assert_code(1);
    assert!(ran.stderr.contains("report written to run.json"), "{}", ran.stderr);
    let json: Value = serde_json::from_str(&fixture.read("run.json")).unwrap();
    let states = |state: &str| json["images"].as_array().unwrap().iter().filter(|it| it["state"] == state).count();
    assert_eq!((states("copied"), states("failed")), (12, 3), "{json}");
    let report = async |form: &str| {
        let all = fixture.batch_report(&["--report-level", "3", "--report-format", form]).run().await.assert_code(0);
        assert!(all.stdout.matches("good:v").count() / 2 >= 12, "{}", all.stdout);
    };
    for form in ["text", "md", "html", "json"] {
        report(form).await;
    }
    let plain = fixture.batch_report(&["--report-format", "json"]).run().await.assert_code(0).json();
    assert!(plain.get("images").is_none() && plain["failures"].as_array().unwrap().len() == 3, "{plain}");
}

#[tokio::test]
async fn a_template_of_one_s_own_makes_the_report_and_a_broken_one_is_found_first() {
    let (fixture, _target) = fixture("report: {file: out.html, template: mine.html.j2}\n").await;
    fixture
        .program
        .file("mine.html.j2", "<p>{{ counts.failed }} {{ failures.groups[0].images[0].error if failures.groups }}</p>");
    fixture.run().run().await.assert_code(1);
    let page = fixture.read("out.html");
    assert!(page.starts_with("<p>3 ") && page.contains("&lt;script&gt;") && !page.contains("<script"), "{page}");

    fixture.program.file("short.txt", "{{ name }}: {{ counts.copied + counts.unchanged }}/{{ counts.total }}");
    let text =
        fixture.batch_report(&["--report-template", "short.txt", "--report-name", "x"]).run().await.assert_code(0);
    assert_eq!(text.stdout, "x: 12/15\n");

    fixture.program.file("mine.html.j2", "{% for %}");
    fixture.source.clear_requests();
    let refused = fixture.run().run().await.assert_code(2);
    assert!(refused.stderr.contains("mine.html.j2: line 1: syntax error"), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: docs/reference/reports.md"), "{}", refused.stderr);
    assert_eq!(fixture.source.total(), 0);
    fixture.batch_report(&["--report=out.pdf"]).run().await.assert_code(2);
}

#[tokio::test]
async fn the_page_of_many_failures_is_small_and_its_numbers_are_exact() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for n in 0..700 {
        source.push("bad", &format!("v{n:04}"), &images::single("report-many"));
    }
    source.on(RequestMatcher::kind(RequestType::ManifestGet)).always().act(FaultAction::error(404, "MANIFEST_UNKNOWN"));
    source
        .on(RequestMatcher::kind(RequestType::ManifestHead))
        .always()
        .act(FaultAction::error(404, "MANIFEST_UNKNOWN"));
    let program =
        configured(&format!("rules:\n- {{from: {0}/bad, to: {1}/m, naming: keep}}\n", source.host(), target.host()));
    let file = program.work_dir().join("imgsync.yaml");
    program.again().args(["run", "--report=out.html", "-c"]).arg(file).run().await.assert_code(1);
    let page = std::fs::read_to_string(program.work_dir().join("out.html")).unwrap();
    assert!(page.contains("700 of 700 images failed") && page.contains("and 680 more"), "{page}");
    assert_eq!(page.matches("<div class=\"error\">").count(), 20);
    assert!(page.len() < 60_000, "{} bytes", page.len());
}
