//! `imgsync config import`: what another program was told, as a configuration that runs.

use imgsync_tests::FaultRegistry;
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;

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
    assert!(made.stderr.contains("skopeo.yaml is read as skopeo's"), "{}", made.stderr);
    program.file("imgsync.yaml", &made.stdout);
    program.again().args(["run"]).run().await.assert_code(0);
    assert_eq!(target.tags("mirror/app"), ["1.0", "1.1"]);

    // image-syncer's gives a name of its own.
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
async fn a_command_line_of_the_original_becomes_a_configuration() {
    let line = "imgsync gcr --user me --password hush-hush --namespace distroless --process-limit 3";
    let made = Imgsync::new().args(["config", "import", "--command", line]).run().await.assert_code(0);
    assert!(made.stdout.contains("- preset: distroless") && made.stdout.contains("concurrency: 3"), "{}", made.stdout);
    assert!(!made.stdout.contains("hush-hush") && !made.stderr.contains("hush-hush"), "{}", made.stderr);
}

#[tokio::test]
async fn what_is_left_out_of_a_file_is_said_and_makes_the_exit_code_one() {
    let program = Imgsync::new();
    let file = "sync:\n- {source: r.example.com/a, target: t.example.com/a, type: repository}\n\
                - {source: r.example.com, target: t.example.com, type: registry, repos: {allow: [\"pause.*\"]}}\n";
    program.file("regsync.yaml", file);
    let made = program.args(["config", "import", "regsync.yaml"]).run().await.assert_code(1);
    assert!(made.stdout.contains("- from: r.example.com/a"), "{}", made.stdout);
    assert_eq!(made.stdout.matches("from:").count(), 1, "{}", made.stdout);
    for words in ["note: left out: ", "`pause.*` says more", "1 thing that"] {
        assert!(made.stderr.contains(words), "{words}: {}", made.stderr);
    }
}

#[tokio::test]
async fn what_cannot_be_taken_over_is_wrong_usage() {
    let program = Imgsync::new();
    program.file("odd.yaml", "a: {b: c}\n");
    let odd = program.again().args(["config", "import", "odd.yaml"]).run().await.assert_code(2);
    assert!(odd.stderr.contains("neither skopeo's, nor regsync's, nor image-syncer's"), "{}", odd.stderr);
    assert_eq!(odd.stdout, "");
    program.again().args(["config", "import", "missing.yaml"]).run().await.assert_code(2);
    program.again().args(["config", "import"]).run().await.assert_code(2);
}
