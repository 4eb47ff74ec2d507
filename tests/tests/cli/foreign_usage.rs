//! What people type who know other programs: it works, or the hint is the command line that does.

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;

/// Returns the command line of the hint, after "Type" or "type".
fn suggestion(stderr: &str) -> String {
    let line = stderr.lines().find(|line| line.starts_with("hint: ")).unwrap_or_else(|| panic!("no hint: {stderr}"));
    let (_, command) = line.split_once("ype `imgsync ").unwrap_or_else(|| panic!("no command: {line}"));
    command.trim_end_matches('`').to_owned()
}

#[tokio::test]
async fn the_command_line_of_a_hint_does_what_the_typed_one_meant() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::multi_platform("foreign");
    source.push("a", "1", &image);
    let program = Imgsync::new();
    let (from, to) = (format!("{}/a:1", source.host()), format!("{}/b", target.host()));
    for (tag, typed) in [
        ("1", format!("copy --all docker://{from} docker://{to}:1")),
        ("2", format!("copy --src-tls-verify=false --multi-arch all docker://{from} docker://{to}:2")),
        ("3", format!("cp -j 4 {from} {to}:3")),
        ("4", format!("image copy {from} {to}:4")),
        ("5", format!("pull {from} {to}:5")),
        ("6", format!("{from} {to}:6")),
        ("7", format!("run {from} {to}:7")),
    ] {
        let output = program.again().args(typed.split(' ')).run().await.assert_code(2);
        assert_eq!(output.stderr.lines().filter(|line| line.starts_with("error:")).count(), 1, "{}", output.stderr);
        assert!(!output.stderr.contains("tip:"), "{}", output.stderr);
        program.again().args(suggestion(&output.stderr).split(' ')).run().await.assert_code(0);
        target.assert_holds("b", tag, &image);
    }
    // What needs no hint.
    for (tag, command) in [("8", "copy"), ("9", "cp"), ("10", "sync")] {
        let to = format!("docker://{to}:{tag}");
        program.again().args([command, &format!("docker://{from}"), &to, "--verbose"]).run().await.assert_code(0);
        target.assert_holds("b", tag, &image);
    }
    let repository = format!("docker://{}/a", source.host());
    for command in ["ls", "list-tags", "tags"] {
        let output = program.again().args([command, &repository]).run().await.assert_code(0);
        assert_eq!(output.stdout, "1\n", "{command}");
    }
}

#[tokio::test]
async fn a_slip_in_a_command_gets_the_command_that_was_meant() {
    for (typed, meant) in [
        ("rnu -c a.yaml --key hunter2", "run"),
        ("rum", "run"),
        ("snyc a b", "sync"),
        ("bacth list", "batch"),
        ("explian a", "explain"),
    ] {
        let output = Imgsync::new().args(typed.split(' ')).run().await.assert_code(2);
        let wanted = [format!("hint: did you mean `imgsync {meant}`?"), format!("'{meant}'")];
        assert!(wanted.iter().any(|words| output.stderr.contains(words)), "{typed}: {}", output.stderr);
        assert!(!output.stderr.contains("hunter2"), "{}", output.stderr);
    }
    let output = Imgsync::new().args(["frobnicate"]).run().await.assert_code(2);
    assert!(!output.stderr.contains("did you mean"), "{}", output.stderr);
}

#[tokio::test]
async fn a_configuration_and_a_report_may_follow_after_a_blank() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    source.push("a", "1", &images::single("file"));
    let program = Imgsync::new();
    let yaml = format!("rules:\n  - {{from: {}/a, to: {}}}\n", source.host(), target.host());
    program.file("mirror.yaml", yaml);
    for command in ["config check", "config show", "config validate"] {
        let words = format!("{command} mirror.yaml");
        let output = program.again().args(words.split(' ')).run().await.assert_code(0);
        assert!(
            output.stdout.contains("from:") || output.stderr.contains("mirror.yaml is valid: 1 rule"),
            "{output:?}"
        );
    }
    for command in ["run", "once"] {
        let words = format!("{command} mirror.yaml --report report.md");
        program.again().args(words.split(' ')).run().await.assert_code(0);
        let report = std::fs::read_to_string(program.work_dir().join("report.md")).unwrap();
        assert!(report.starts_with("# The one image is "), "{report}");
        std::fs::remove_file(program.work_dir().join("report.md")).unwrap();
    }
    let output = program.again().args(["run", "mirror.yaml", "-c", "other.yaml"]).run().await.assert_code(2);
    assert!(output.stderr.contains("two configurations are named: other.yaml and mirror.yaml"), "{}", output.stderr);
    for (typed, hint) in [
        ("run kubeadm", "`imgsync run --preset kubeadm`"),
        ("run --report out.log", "`--report=out.log`"),
        ("verify mirror.yaml", "type `imgsync verify -c mirror.yaml`"),
        ("mirror.yaml", "Type `imgsync run mirror.yaml`"),
        ("-c mirror.yaml", "type `imgsync run -c mirror.yaml`"),
    ] {
        let output = program.again().args(typed.split(' ')).run().await.assert_code(2);
        let said = output.stderr.to_lowercase();
        assert!(said.contains(&hint.to_lowercase()), "{typed}: {}", output.stderr);
    }
}

#[tokio::test]
async fn help_fits_on_a_screen_and_the_long_help_has_everything() {
    for (program, words) in [
        (Imgsync::new(), "run -h"),
        (Imgsync::new(), "gcr -h"),
        (Imgsync::new(), "sync -h"),
        (Imgsync::new(), "-h"),
        (Imgsync::worker(), "-h"),
    ] {
        let short = program.again().args(words.split(' ')).run().await.assert_code(0).stdout;
        assert!(short.lines().count() <= 40, "{words}: {short}");
        let long = program.again().args(words.replace("-h", "--help").split(' ')).run().await.assert_code(0).stdout;
        for option in short.split_whitespace().filter(|word| word.starts_with("--")) {
            assert!(long.contains(option.trim_end_matches([',', ']', '\''])), "{option}: {long}");
        }
    }
    let long = Imgsync::new().args(["run", "--help"]).run().await.assert_code(0).stdout;
    for option in ["--if-running", "--telegram-group", "--stall-timeout", "--password-stdin", "--broker", "--events"] {
        assert!(long.contains(option), "{option}: {long}");
    }
    let worker = Imgsync::worker().arg("imgsync.yaml").run().await.assert_code(2);
    assert!(worker.stderr.contains("hint: type `imgsync-worker -c imgsync.yaml`"), "{}", worker.stderr);
}
