//! `inspect`, `tags` and `verify` of an archive from stdin: in one pass, or saved first.

use std::path::Path;
use std::time::Duration;

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};
use imgsync_tests::skopeo::Skopeo;
use serde_json::Value;

use super::pipes::push_signed;
use super::{path, sync};

const LIMIT: Duration = Duration::from_secs(30);

/// Runs a command that reads these bytes from stdin.
async fn with_stdin(program: &Imgsync, archive: &[u8], arguments: &[&str]) -> Output {
    let output = program.again().args(arguments).stdin(archive).run().await;
    assert!(!format!("{}{}", output.stdout, output.stderr).contains("/dev/fd"), "{arguments:?}: {}", output.stderr);
    output
}

fn read(program: &Imgsync, file: &str) -> Vec<u8> {
    std::fs::read(program.work_dir().join(file)).unwrap()
}

#[tokio::test]
async fn every_command_reads_an_archive_from_stdin_while_it_passes() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let (app, ..) = push_signed(&source, "from-stdin");
    let program = Imgsync::new();
    let from = format!("{}/team/app:1.0", source.host());
    sync(&program, &[&from, "oci-archive:app.tar"]).run().await.assert_code(0);
    sync(&program, &["oci-archive:app.tar", &format!("{}/m/app:1", target.host())]).run().await.assert_code(0);
    let archive = read(&program, "app.tar");
    for (what, arguments) in [
        ("oci-archive:app.tar", &["inspect"] as &[&str]),
        ("oci-archive:app.tar", &["inspect", "--json"]),
        ("oci-archive:app.tar", &["tags"]),
        ("oci-archive:app.tar", &["tags", "--json"]),
    ] {
        let from_file = program.again().args(arguments).arg(what).run().await.assert_code(0);
        let from_stdin = with_stdin(&program, &archive, &[arguments, &["oci-archive:-"]].concat()).await.assert_code(0);
        assert_eq!(from_stdin.stdout, from_file.stdout.replace("app.tar", "-"), "{arguments:?}");
    }
    let named = format!("oci-archive:-:{from}");
    let in_registry = format!("{}/m/app:1", target.host());
    for pair in [["oci-archive:-", &in_registry], [&named, &in_registry], [&from, &named]] {
        for deep in [&[] as &[&str], &["--deep"]] {
            let arguments = [&["verify"], &pair[..], deep].concat();
            let output = with_stdin(&program, &archive, &arguments).await.assert_code(0);
            assert_eq!(output.stdout, format!("identical {}\n", app.root), "{arguments:?}");
        }
    }
    let refused = with_stdin(&program, &archive, &["verify", "oci-archive:-", "docker-archive:-"]).await.assert_code(2);
    assert!(refused.stderr.contains("stdin cannot be both"), "{}", refused.stderr);

    // A platform whose config comes behind the layers of another.
    let tool = images::single("from-stdin-tool");
    source.push("team/tool", "2", &tool);
    let names = [&from, &format!("{}/team/tool:2", source.host())];
    sync(&program, &[names[0], names[1], "oci-archive:both.tar"]).run().await.assert_code(0);
    let both = read(&program, "both.tar");
    for name in names {
        let name = format!("oci-archive:-:{name}");
        let shown = with_stdin(&program, &both, &["inspect", "--json", &name]).await.assert_code(0);
        let from_file = program.again().args(["inspect", "--json", &name.replace(":-:", ":both.tar:")]).run().await;
        assert_eq!(shown.stdout, from_file.stdout.replace("both.tar", "-"));
    }
}

#[tokio::test]
async fn damage_in_an_archive_from_stdin_is_found() {
    let source = FaultRegistry::start().await;
    push_signed(&source, "damaged-stdin");
    let program = Imgsync::new();
    let from = format!("{}/team/app:1.0", source.host());
    sync(&program, &[&from, "oci-archive:app.tar"]).run().await.assert_code(0);
    let whole = read(&program, "app.tar");
    let named = format!("oci-archive:-:{from}");
    let mut wrong = whole.clone();
    let at = wrong.len() / 2;
    wrong[at] ^= 1;
    let output = with_stdin(&program, &wrong, &["verify", "--json", &from, &named]).await.assert_code(1);
    let json: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(json["findings"][0]["kind"], "corrupt_blob", "{json}");
    assert_eq!(json["target"], named.as_str(), "{json}");
    for end in [700, whole.len() / 2, whole.len() - 5000] {
        for arguments in
            [&["tags", "oci-archive:-"] as &[&str], &["inspect", "oci-archive:-"], &["verify", &from, &named]]
        {
            let output = with_stdin(&program, &whole[..end], arguments).await;
            assert!(output.code != Some(0) && output.stderr.contains("hint:"), "{arguments:?}: {}", output.stderr);
        }
    }
}

#[tokio::test]
async fn archives_whose_index_comes_last_are_saved_first_by_every_command() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let tool = images::single_docker("late-stdin");
    source.push("team/tool", "2", &tool);
    let program = Imgsync::new();
    let name = format!("{}/team/tool:2", source.host());
    let skopeo = Skopeo::new();
    let oci = format!("oci-archive:{}:{name}", path(&program, "oci.tar"));
    skopeo.copy_any(&format!("docker://{name}"), &oci).await.unwrap();
    let docker = format!("docker-archive:{}:{name}", path(&program, "docker.tar"));
    skopeo.copy_docker_archive_to(&format!("docker://{name}"), &docker).await.unwrap();
    for (file, location) in [("oci.tar", "oci-archive:-"), ("docker.tar", "docker-archive:-")] {
        let archive = read(&program, file);
        let to = format!("{}/{file}:1", target.host());
        for arguments in [&["inspect", location] as &[&str], &["tags", location], &["verify", location, &to]] {
            let refused = with_stdin(&program, &archive, arguments).await;
            assert!(refused.code != Some(0) && refused.stderr.contains("--spool DIR"), "{}", refused.stderr);
        }
        let spool = ["--spool", "."];
        let copied = with_stdin(&program, &archive, &[&["sync", "--json", location, &to], &spool[..]].concat()).await;
        assert_eq!(copied.assert_code(0).json()["source"], location);
        let listed = with_stdin(&program, &archive, &[&["tags", location], &spool[..]].concat()).await.assert_code(0);
        assert_eq!(listed.stdout, format!("{name}\n"));
        let shown = with_stdin(&program, &archive, &[&["inspect", location], &spool[..]].concat()).await.assert_code(0);
        assert!(shown.stdout.starts_with(&format!("{location}: ")), "{}", shown.stdout);
        with_stdin(&program, &archive, &[&["verify", location, &to], &spool[..]].concat()).await.assert_code(0);
        // What is wrong with it is said of what the user has written.
        let broken = with_stdin(&program, &archive[..2000], &[&["inspect", location], &spool[..]].concat()).await;
        assert!(broken.code != Some(0) && broken.stderr.contains(location), "{}", broken.stderr);
    }
    let missing = with_stdin(&program, b"", &["tags", "oci-archive:-", "--spool", "missing"]).await;
    assert!(missing.stderr.contains("make the folder first"), "{}", missing.stderr);
    assert!(left(&program.work_dir(), "spool").is_empty());
}

/// Returns the names in a folder that contain a text.
fn left(folder: &Path, text: &str) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(text)).collect()
}

#[tokio::test]
async fn a_fifo_as_a_target_waits_for_its_reader() {
    let source = FaultRegistry::start().await;
    push_signed(&source, "to-a-fifo");
    let program = Imgsync::new();
    let from = format!("{}/team/app:1.0", source.host());
    sync(&program, &[&from, "oci-archive:app.tar"]).run().await.assert_code(0);
    let fifo = path(&program, "fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut writing = sync(&program, &[&from, &format!("oci-archive:{fifo}")]).spawn();
    writing.wait_for_line(|line| line.contains("waiting for a program that reads"), LIMIT).await;
    let reader = tokio::task::spawn_blocking(move || std::fs::read(fifo).unwrap());
    writing.wait().await.assert_code(0);
    assert!(reader.await.unwrap() == read(&program, "app.tar"));

    let mut waiting = sync(&program, &[&from, &format!("oci-archive:{}", path(&program, "fifo"))]).spawn();
    waiting.wait_for_line(|line| line.contains("waiting for a program that reads"), LIMIT).await;
    waiting.signal(imgsync_tests::program::Signal::INT);
    waiting.wait().await.assert_code(4);

    let fifo = format!("oci-archive:{}", path(&program, "fifo"));
    let output = sync(&program, &[&from, &fifo, "--timeout", "300ms"]).run().await.assert_code(1);
    let wanted = "no program opened the FIFO for reading within 0.3 s (--timeout)";
    assert!(output.stderr.contains(wanted) && output.stderr.contains("start the program that reads it"), "{output:?}");
}
