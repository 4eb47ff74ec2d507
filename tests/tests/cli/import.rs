//! `imgsync config import`: converts the configuration of other programs into one that runs.

use imgsync_tests::program::Imgsync;
use imgsync_tests::{FaultRegistry, images};

#[tokio::test]
async fn a_file_of_another_program_becomes_a_configuration_that_runs() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for tag in ["1.0", "1.1", "2.0"] {
        source.push("team/app", tag, &images::single(&format!("import-{tag}")));
    }
    let program = Imgsync::new();
    let skopeo = format!("{}:\n  images-by-tag-regex:\n    team/app: ^1\\.\n", source.host());
    program.file("skopeo.yaml", skopeo);
    let to = format!("{}/mirror", target.host());
    let made = program.again().args(["config", "import", "skopeo.yaml", "--to", &to]).run().await.assert_code(0);
    assert!(made.stderr.contains("reading skopeo.yaml as a file of skopeo"), "{}", made.stderr);
    program.file("imgsync.yaml", &made.stdout);
    program.again().args(["run"]).run().await.assert_code(0);
    assert_eq!(target.tags("mirror/app"), ["1.0", "1.1"]);

    // image-syncer's file sets its own target name.
    program.file("images.json", format!(r#"{{"{}/team/app:2.0": "{to}/other/name:two"}}"#, source.host()));
    program.file("auth.json", format!(r#"{{"{}": {{"username": "me", "password": "hush-hush"}}}}"#, target.host()));
    let made =
        program.again().args(["config", "import", "images.json", "--auth", "auth.json"]).run().await.assert_code(0);
    assert!(!made.stdout.contains("hush-hush") && !made.stderr.contains("hush-hush"), "{}", made.stdout);
    assert!(made.stderr.contains("the password of"), "{}", made.stderr);
    let name = made.stdout.split("${").nth(1).and_then(|rest| rest.split('}').next()).unwrap().to_owned();
    program.file("second.yaml", &made.stdout);
    program.again().args(["run", "-c", "second.yaml"]).env(&name, "hush-hush").run().await.assert_code(0);
    assert_eq!(target.tags("mirror/other/name"), ["two"]);
}

#[tokio::test]
async fn a_command_line_of_2_1_becomes_a_configuration() {
    let line = "imgsync gcr --user me --password hush-hush --namespace distroless --process-limit 3";
    let made = Imgsync::new().args(["config", "import", "--command", line]).run().await.assert_code(0);
    assert!(made.stdout.contains("- preset: distroless") && made.stdout.contains("concurrency: 3"), "{}", made.stdout);
    assert!(!made.stdout.contains("hush-hush") && !made.stderr.contains("hush-hush"), "{}", made.stderr);
}

#[tokio::test]
async fn what_is_left_out_of_a_file_is_said_and_makes_the_exit_code_one() {
    let program = Imgsync::new();
    let file = "sync:\n- {source: r.example.com/a, target: t.example.com/a, type: repository}\n\
                - {source: r.example.com, target: t.example.com, type: registry, repos: {allow: [\".*/pause\"]}}\n";
    program.file("regsync.yaml", file);
    let made = program.args(["config", "import", "regsync.yaml"]).run().await.assert_code(1);
    assert!(made.stdout.contains("- from: r.example.com/a"), "{}", made.stdout);
    assert_eq!(made.stdout.matches("from:").count(), 1, "{}", made.stdout);
    for words in [
        "note: left out: ",
        "`from` cannot express `.*/pause`",
        "1 part is left out: the result copies other images, tags, names or content",
    ] {
        assert!(made.stderr.contains(words), "{words}: {}", made.stderr);
    }
}

#[tokio::test]
async fn what_cannot_be_taken_over_is_wrong_usage() {
    let program = Imgsync::new();
    program.file("odd.yaml", "a: {b: c}\n");
    let odd = program.again().args(["config", "import", "odd.yaml"]).run().await.assert_code(2);
    assert!(odd.stderr.contains("not a file of skopeo, regsync or image-syncer"), "{}", odd.stderr);
    assert_eq!(odd.stdout, "");
    program.again().args(["config", "import", "missing.yaml"]).run().await.assert_code(2);
    program.again().args(["config", "import"]).run().await.assert_code(2);
}

#[tokio::test]
async fn an_empty_configuration_is_an_error_everywhere() {
    let program = Imgsync::new();
    // The empty output of a failed command that was redirected.
    program.file("skopeo.yaml", "r.example.com:\n  images: {a: []}\n");
    let output = program.again().args(["config", "import", "skopeo.yaml"]).run().await.assert_code(2);
    assert!(output.stdout.is_empty() && output.stderr.contains("--to"), "{}", output.stderr);
    for text in ["", "\n\n", "# nothing but words\n", "---\n", "null\n"] {
        program.file("imgsync.yaml", text);
        for args in
            [&["config", "check"][..], &["config", "show"], &["run"], &["tags", "oci:x"], &["serve"], &["verify"]]
        {
            let output = program.again().args(args).run().await.assert_code(2);
            assert!(output.stderr.contains("the configuration is empty"), "{args:?} {text:?}: {}", output.stderr);
        }
    }
    // Registries without rules suffice for some commands.
    program.file("imgsync.yaml", "registries: {r.example.com: {tls: off}}\n");
    program.again().args(["config", "check"]).run().await.assert_code(0);
    let output = program.again().args(["run"]).run().await.assert_code(2);
    assert!(output.stderr.contains("there are no rules to run"), "{}", output.stderr);
}

#[tokio::test]
async fn a_file_of_another_program_in_place_of_a_configuration_gets_a_hint() {
    let program = Imgsync::new();
    for (text, program_name) in [
        ("quay.io:\n  images-by-tag-regex:\n    team/app: ^1\n", "skopeo"),
        ("version: 1\ncreds: []\nsync:\n- {source: a, target: b, type: repository}\n", "regsync"),
        ("{\"quay.io/team/app\": \"r.example.com/team/app\"}", "image-syncer"),
        ("auth: {}\nimages: {quay.io/team/app: r.example.com/team/app}\n", "image-syncer"),
    ] {
        program.file("theirs.yaml", text);
        for args in [&["config", "check", "-c", "theirs.yaml"][..], &["run", "-c", "theirs.yaml"]] {
            let output = program.again().args(args).run().await.assert_code(2);
            let message = format!(
                "error: theirs.yaml is a configuration of {program_name}\n\
                 hint: convert it with `imgsync config import theirs.yaml > imgsync.yaml`\n"
            );
            assert_eq!(output.stderr, message, "{args:?}");
        }
    }
    // The conversion does not empty the file that it reads.
    program.file("imgsync.yaml", "sync:\n- {source: a, target: b, type: repository}\n");
    let output = program.again().args(["run"]).run().await.assert_code(2);
    assert!(output.stderr.contains("`imgsync config import imgsync.yaml > new.yaml`"), "{}", output.stderr);
    // A misspelled file of ours is not taken for another program's.
    program.file("imgsync.yaml", "rule: [{from: a, to: b}]\n");
    let output = program.again().args(["config", "check"]).run().await.assert_code(2);
    assert!(!output.stderr.contains("config import"), "{}", output.stderr);
}

#[tokio::test]
async fn an_expression_of_image_syncer_loses_no_tags() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    for tag in ["2.4", "v2.4.1", "12.41-slim", "24", "3.0"] {
        source.push("team/app", tag, &images::single(&format!("anywhere-{tag}")));
    }
    let program = Imgsync::new();
    program.file("images.yaml", format!("{}/team/app:/2\\.4/: {}/m/app\n", source.host(), target.host()));
    let made = program.again().args(["config", "import", "images.yaml"]).run().await.assert_code(0);
    program.file("imgsync.yaml", &made.stdout);
    program.again().args(["run"]).run().await.assert_code(0);
    assert_eq!(target.tags("m/app"), ["12.41-slim", "2.4", "v2.4.1"]);
}
