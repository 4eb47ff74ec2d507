//! Shell completions and manual pages.

use imgsync_tests::program::Imgsync;

#[tokio::test]
async fn completions_are_printed_for_each_shell_and_bash_takes_them() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        for program in ["imgsync", "imgsync-worker"] {
            let printed = Imgsync::new().args(["completions", shell, program]).run().await.assert_code(0);
            assert!(printed.stdout.contains(program) && printed.stderr.is_empty(), "{shell}: {}", printed.stderr);
        }
    }
    let script = Imgsync::new().args(["completions", "bash"]).run().await.assert_code(0).stdout;
    // The script is longer than an argument may be.
    let asks = "COMP_WORDS=(imgsync ba); COMP_CWORD=1; _imgsync imgsync ba imgsync; echo \"${COMPREPLY[@]}\"";
    let bash = Imgsync::at("/bin/bash");
    let file = bash.file("script", format!("{script}\n{asks}"));
    let bash = bash.args([file]).run().await.assert_code(0);
    assert_eq!(bash.stdout.trim(), "batch");
    let wrong = Imgsync::new().args(["completions", "tcsh"]).run().await.assert_code(2);
    assert!(wrong.stderr.contains("possible values"), "{}", wrong.stderr);
}

#[tokio::test]
async fn manual_pages_are_printed_or_written_one_for_each_command() {
    let program = Imgsync::new();
    let page = program.again().args(["man"]).run().await.assert_code(0).stdout;
    assert!(page.contains(".TH imgsync 1"), "{page}");
    program.again().args(["man", "pages/man1"]).run().await.assert_code(0);
    for name in ["imgsync.1", "imgsync-run.1", "imgsync-batch-requeue.1", "imgsync-worker.1"] {
        let text = std::fs::read_to_string(program.work_dir().join("pages/man1").join(name))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(text.contains(".SH NAME"), "{name}");
    }
    program.file("taken", "");
    let failed = program.again().args(["man", "taken/man1"]).run().await;
    assert!(
        failed.code == Some(3) && failed.stderr.contains("writing the manual pages into taken/man1"),
        "{}",
        failed.stderr
    );
}
