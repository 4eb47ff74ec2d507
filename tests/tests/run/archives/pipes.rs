//! Archives from stdin: copied while they come out of the pipe, in one pass, or refused with the way out.

use std::path::Path;
use std::time::Duration;

use imgsync_tests::fault::{FaultAction, FaultRegistry, RecordedRequest, RequestMatcher, RequestType};
use imgsync_tests::images::{self, Layer, TestImage};
use imgsync_tests::program::{Imgsync, Output, Signal};
use imgsync_tests::servers::{DockerEngine, DockerRegistry, DockerRegistryAuth};
use imgsync_tests::skopeo::Skopeo;

use super::{path, sync};

const MIB: u64 = 1 << 20;
/// Limit of private memory, without the executable: what can be read again takes 8 MiB.
const MAX_OWN_BYTES: u64 = 32 * MIB;

/// Returns `imgsync sync` that reads what a shell command writes. `$imgsync` is the program in it.
fn piped(program: &Imgsync, producer: &str, arguments: &[&str]) -> Imgsync {
    let (binary, folder) = (program.path().display(), program.work_dir().display().to_string());
    let script = format!(
        "cd '{folder}' || exit 99; imgsync='{binary}'; exec \"$imgsync\" sync --retry-delay 10ms \"$@\" < <({producer})"
    );
    Imgsync::at("/bin/bash").args(["-c", &script, "bash"]).args(arguments)
}

/// Pushes an image with two platforms and a large layer, and its signatures: one whose content is JSON, and one that
/// does not fit into memory.
pub(super) fn push_signed(registry: &FaultRegistry, name: &str) -> (TestImage, TestImage, TestImage) {
    let amd = TestImage::single(&format!("{name}-amd")).layer(Layer::Synthetic(3 * MIB)).layers(2, 9000).build();
    let arm = TestImage::single(&format!("{name}-arm")).layer(Layer::Synthetic(5 * MIB)).layers(2, 9000).build();
    let app = TestImage::index(name).child(&amd, "linux/amd64").child(&arm, "linux/arm64").build();
    let small = images::referrer(&format!("{name}-signature"), &app);
    let large = TestImage::single(&format!("{name}-sbom"))
        .artifact("application/spdx+json")
        .subject(&app)
        .layer(Layer::Synthetic(2 * MIB))
        .build();
    registry.push("team/app", "1.0", &app);
    registry.push_untagged("team/app", &small);
    registry.push_untagged("team/app", &large);
    (app, small, large)
}

#[track_caller]
fn assert_no_tag(target: &FaultRegistry, output: &Output) {
    assert_eq!(target.tags("m/app"), Vec::<String>::new(), "{}", output.stderr);
}

#[tokio::test]
async fn an_archive_is_copied_while_it_comes_out_of_the_pipe() {
    let source = FaultRegistry::start().await;
    let (app, small, large) = push_signed(&source, "streamed");
    let program = Imgsync::new();
    let from = format!("{}/team/app:1.0", source.host());
    sync(&program, &[&from, "oci-archive:app.tar"]).run().await.assert_code(0);
    let blobs = [&app, &small, &large].map(|image| image.blobs.len()).iter().sum::<usize>() as u64;
    let write = format!("\"$imgsync\" sync --quiet {from} oci-archive:-");
    for producer in [
        write.as_str(),
        &format!("{write} --archive-compress gzip"),
        "zstd -q -c app.tar",
        "xz -1 -c app.tar",
        // In small pieces.
        "dd if=app.tar bs=700 status=none",
    ] {
        let target = FaultRegistry::start().await;
        let to = format!("{}/m/app:1", target.host());
        piped(&program, producer, &["oci-archive:-", &to]).run().await.assert_code(0);
        target.assert_holds("m/app", "1", &app);
        for referrer in [&small, &large] {
            target.assert_holds_untagged("m/app", referrer);
        }
        target.assert_children_came_first();
        assert!(target.count(RequestType::UploadPut) <= blobs, "{}", target.describe_requests());

        // Again: nothing but the tag and the referrers is asked for, and the pipe is read to its end.
        target.clear_requests();
        let again = format!("{producer}; echo \"the writer ended with $?\" > ended");
        let output = piped(&program, &again, &["oci-archive:-", &to]).run().await.assert_code(0);
        assert!(output.stderr.contains("unchanged"), "{}", output.stderr);
        assert_eq!(target.count(RequestType::UploadStart), 0, "{}", target.describe_requests());
        assert_eq!(wait_for(&program, "ended").await, "the writer ended with 0\n", "{producer}");

        // Everything is there under another tag, and must be proved by the bytes that pass.
        target.clear_requests();
        let to = format!("{}/m/app:2", target.host());
        piped(&program, producer, &["oci-archive:-", &to]).run().await.assert_code(0);
        target.assert_holds("m/app", "2", &app);
        assert_eq!(target.count(RequestType::UploadPut), 0, "{}", target.describe_requests());
        // One platform, by name, and nothing copied.
        let named = format!("oci-archive:-:{from}");
        let to = format!("{}/m/one:1", target.host());
        piped(&program, producer, &[&named, &to, "--dry-run"]).run().await.assert_code(0);
        piped(&program, producer, &[&named, &to, "--platform", "linux/arm64"]).run().await.assert_code(0);
        assert_eq!(target.tag_digest("m/one", "1").as_ref(), app.children().get(1));
    }
}

/// Waits for a file that the other side of a pipe writes at its end.
async fn wait_for(program: &Imgsync, name: &str) -> String {
    let file = program.work_dir().join(name);
    for _ in 0..500 {
        match std::fs::read_to_string(&file) {
            Ok(text) if !text.is_empty() => {
                std::fs::remove_file(&file).unwrap();
                return text;
            }
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    panic!("{} was not written", file.display());
}

#[tokio::test]
async fn layouts_archives_and_a_real_registry_are_filled_from_a_pipe() {
    let (source, registry) = tokio::join!(FaultRegistry::start(), DockerRegistry::start(DockerRegistryAuth::None));
    let (app, ..) = push_signed(&source, "filled");
    let program = Imgsync::new();
    let from = format!("{}/team/app:1.0", source.host());
    sync(&program, &[&from, "oci-archive:app.tar"]).run().await.assert_code(0);
    piped(&program, "cat app.tar", &["oci-archive:-", "oci:layout"]).run().await.assert_code(0);
    sync(&program, &["oci:layout", "oci-archive:from-layout.tar"]).run().await.assert_code(0);
    // The order of the archive is that of the plan.
    piped(&program, "cat app.tar", &["oci-archive:-", "oci-archive:copy.tar"]).run().await.assert_code(0);
    let read = |file: &str| std::fs::read(program.work_dir().join(file)).unwrap();
    assert!(read("copy.tar") == read("app.tar"));
    let through = program.file("through.tar", "");
    piped(&program, "cat app.tar", &["oci-archive:-", "oci-archive:-"]).stdout_to(&through).run().await.assert_code(0);
    assert!(read("through.tar") == read("app.tar"));
    let to = format!("{}/m/app:1", registry.host());
    piped(&program, "cat from-layout.tar", &["oci-archive:-", &to]).run().await.assert_code(0);
    registry.assert_holds("m/app", "1", &app).await;
}

#[tokio::test]
async fn the_order_of_the_layers_in_the_pipe_does_not_matter() {
    // Two images share a layer that is the last of one and the first of the other: taken out alone, it is elsewhere.
    let source = FaultRegistry::start().await;
    let shared = Layer::Synthetic(2 * MIB);
    let one = TestImage::single("order-one").layer(shared.clone()).layer(Layer::Synthetic(2 * MIB + 1)).build();
    let two = TestImage::single("order-two").layer(Layer::Synthetic(2 * MIB + 2)).layer(shared).build();
    source.push("team/one", "1", &one);
    source.push("team/two", "1", &two);
    let program = Imgsync::new();
    let names = ["one", "two"].map(|name| format!("{}/team/{name}:1", source.host()));
    sync(&program, &[&names[0], &names[1], "oci-archive:both.tar"]).run().await.assert_code(0);
    let target = FaultRegistry::start().await;
    let second = format!("oci-archive:-:{}", names[1]);
    piped(&program, "cat both.tar", &[&second, &format!("{}/m/two:1", target.host())]).run().await.assert_code(0);
    target.assert_holds("m/two", "1", &two);
    piped(&program, "cat both.tar", &[&second, "oci-archive:two.tar"]).run().await.assert_code(0);
    sync(&program, &["oci-archive:two.tar", &format!("{}/m/two:2", target.host())]).run().await.assert_code(0);
    target.assert_holds("m/two", "2", &two);
    // Both again, with another beside them.
    let tool = images::single("order-tool");
    source.push("team/tool", "1", &tool);
    let arguments = [&second, &format!("oci-archive:-:{}", names[0]), &format!("{}/team/tool:1", source.host())];
    let arguments: Vec<&str> = arguments.into_iter().map(String::as_str).chain(["oci-archive:three.tar"]).collect();
    piped(&program, "cat both.tar", &arguments).run().await.assert_code(0);
    for (name, image) in [("one", &one), ("two", &two), ("tool", &tool)] {
        let from = format!("oci-archive:three.tar:{}/team/{name}:1", source.host());
        sync(&program, &[&from, &format!("{}/n/{name}:1", target.host())]).run().await.assert_code(0);
        target.assert_holds(&format!("n/{name}"), "1", image);
    }
}

#[tokio::test]
async fn archives_whose_index_comes_last_are_refused_and_spooled() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let tool = images::single_docker("late-tool");
    source.push("team/tool", "2", &tool);
    let program = Imgsync::new();
    let name = format!("{}/team/tool:2", source.host());
    let skopeo = Skopeo::new();
    let to = |file: &str| path(&program, file);
    skopeo.copy_any(&format!("docker://{name}"), &format!("oci-archive:{}:{name}", to("oci.tar"))).await.unwrap();
    let docker = format!("docker-archive:{}:{name}", to("docker.tar"));
    skopeo.copy_docker_archive_to(&format!("docker://{name}"), &docker).await.unwrap();
    let mut archives = vec![("oci.tar", "oci-archive:-"), ("docker.tar", "docker-archive:-")];
    match DockerEngine::start().await {
        Ok(engine) => {
            engine.pull(&name).await.unwrap();
            let saved = engine.docker(&["save", "-o", &to("saved.tar"), &name]).await;
            assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
            archives.push(("saved.tar", "docker-archive:-"));
        }
        Err(reason) => imgsync_tests::skipped(&format!("docker save: {reason}")),
    }
    std::fs::create_dir(program.work_dir().join("spool")).unwrap();
    for (number, (file, archive)) in archives.into_iter().enumerate() {
        let to = format!("{}/m/app:{number}", target.host());
        let producer = format!("cat {file}");
        let output = piped(&program, &producer, &[archive, &to]).run().await;
        assert_ne!(output.code, Some(0));
        assert!(output.stderr.contains("hint:") && output.stderr.contains("--spool DIR"), "{}", output.stderr);
        assert_eq!(target.tag_digest("m/app", &number.to_string()), None);
        piped(&program, &producer, &[archive, &to, "--spool", "spool"]).run().await.assert_code(0);
        assert!(target.tag_digest("m/app", &number.to_string()).is_some());
    }
}

#[tokio::test]
async fn a_pipe_that_ends_early_or_lies_leaves_no_tag() {
    let source = FaultRegistry::start().await;
    let (app, ..) = push_signed(&source, "broken");
    let program = Imgsync::new();
    let from = format!("{}/team/app:1.0", source.host());
    sync(&program, &[&from, "oci-archive:app.tar"]).run().await.assert_code(0);
    let whole = std::fs::read(program.work_dir().join("app.tar")).unwrap();
    let target = FaultRegistry::start().await;
    let to = format!("{}/m/app:1", target.host());
    // In the index, in a layer, in the last layer, and before the mark of the end.
    for cut in [700, whole.len() / 2, whole.len() - 5000, whole.len() - 1024 - 511] {
        let output =
            piped(&program, &format!("head -c {cut} app.tar"), &["oci-archive:-", &to]).run().await.assert_code(1);
        assert!(output.stderr.contains("hint:"), "cut at {cut}: {}", output.stderr);
        assert_no_tag(&target, &output);
        assert_eq!(target.open_uploads(), 0, "{}", target.describe_requests());
    }
    let mut wrong = whole;
    let layer = app.largest_blob();
    let at = wrong.len() / 2;
    wrong[at] ^= 1;
    program.file("wrong.tar", wrong);
    let output = piped(&program, "cat wrong.tar", &["oci-archive:-", &to]).run().await.assert_code(1);
    assert!(output.stderr.contains("the content has the digest"), "{layer}: {}", output.stderr);
    assert_no_tag(&target, &output);
    let empty = piped(&program, "true", &["oci-archive:-", &to]).run().await.assert_code(2);
    assert!(empty.stderr.contains("the file is empty"), "{}", empty.stderr);
}

#[tokio::test]
async fn an_upload_is_repeated_from_what_is_still_at_hand() {
    let source = FaultRegistry::start().await;
    let image = images::big("repeated", 5 * MIB);
    let huge = images::big("not-repeated", 40 * MIB);
    source.push("team/app", "5", &image);
    source.push("team/app", "40", &huge);
    let program = Imgsync::new();
    let write = |tag: &str| format!("\"$imgsync\" sync --quiet {}/team/app:{tag} oci-archive:-", source.host());
    let target = FaultRegistry::start().await;
    let to = |tag: &str| format!("{}/m/app:{tag}", target.host());
    let length = |request: &RecordedRequest| request.header("content-length")?.parse::<u64>().ok();
    let put = || RequestMatcher::kind(RequestType::UploadPut).when(move |request| length(request) > Some(MIB));
    target.on(put()).act(FaultAction::error(503, "UNAVAILABLE"));
    piped(&program, &write("5"), &["oci-archive:-", &to("5")]).run().await.assert_code(0);
    target.assert_holds("m/app", "5", &image);

    target.on(put()).always().act(FaultAction::error(503, "UNAVAILABLE"));
    let output = piped(&program, &write("40"), &["oci-archive:-", &to("40")]).run().await.assert_code(1);
    assert!(output.stderr.contains("has left the pipe") && output.stderr.contains("--spool DIR"), "{}", output.stderr);
    assert_eq!(target.tag_digest("m/app", "40"), None);
}

#[tokio::test]
async fn a_pipe_without_a_writer_that_writes_is_given_up() {
    let source = FaultRegistry::start().await;
    push_signed(&source, "stalled");
    let program = Imgsync::new();
    sync(&program, &[&format!("{}/team/app:1.0", source.host()), "oci-archive:app.tar"]).run().await.assert_code(0);
    let target = FaultRegistry::start().await;
    let to = format!("{}/m/app:1", target.host());
    // The shell becomes the program, which itself keeps the pipe open.
    let fifo = |name: &str, bytes: u64, arguments: &[&str]| {
        let folder = program.work_dir().display().to_string();
        let script = format!(
            "cd '{folder}' && mkfifo {name} && exec 3<>{name} && {{ head -c {bytes} app.tar >{name} 3<&- & }} && \
             exec '{}' sync \"$@\" <{name}",
            program.path().display()
        );
        Imgsync::at("/bin/bash").args(["-c", &script, "bash", "oci-archive:-", &to]).args(arguments)
    };
    let output = fifo("in-a-layer", 2 * MIB, &["--stall-timeout", "500ms"]).run().await.assert_code(1);
    assert!(output.stderr.contains("nothing came through the pipe for 0.5 s (--stall-timeout)"), "{}", output.stderr);
    assert_no_tag(&target, &output);
    for spool in [&[] as &[&str], &["--spool", "."]] {
        let name = format!("nothing-{}", spool.len());
        let output = fifo(&name, 0, &[&["--timeout", "500ms"], spool].concat()).run().await.assert_code(1);
        assert!(output.stderr.contains("nothing came through the pipe for 0.5 s (--timeout)"), "{}", output.stderr);
    }

    let mut waiting = fifo("cancelled", 2 * MIB, &[]).spawn();
    target.wait_until(|target| target.open_uploads() > 0, Duration::from_secs(30)).await;
    waiting.signal(Signal::INT);
    let output = tokio::time::timeout(Duration::from_secs(10), waiting.wait()).await.unwrap().assert_code(4);
    assert_no_tag(&target, &output);
    assert_eq!(target.open_uploads(), 0, "{}", target.describe_requests());
}

#[tokio::test]
async fn memory_does_not_grow_with_what_comes_out_of_the_pipe() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::builder().blackhole().start());
    let image = TestImage::single("piped-memory")
        .layer(Layer::Synthetic(400 * MIB))
        .layer(Layer::Synthetic(200 * MIB))
        .layers(100, 900_000)
        .build();
    source.push("team/app", "1", &image);
    let program = Imgsync::new();
    let write = format!("\"$imgsync\" sync --quiet {}/team/app:1 oci-archive:-", source.host());
    let to = format!("{}/m/app:1", target.host());
    let output = piped(&program, &write, &["oci-archive:-", &to]).run().await.assert_code(0);
    println!("peak: {} MiB, {} with its executable", output.peak_own_bytes / MIB, output.peak_rss_bytes / MIB);
    assert!(output.peak_own_bytes < MAX_OWN_BYTES, "{} MiB", output.peak_own_bytes / MIB);
    assert_eq!(target.tag_digest("m/app", "1").as_ref(), Some(&image.root));
    assert!(no_files(Path::new(&std::env::temp_dir()), "imgsync-spool"));
}

/// Whether a folder has no file whose name contains a text.
fn no_files(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).unwrap().all(|entry| !entry.unwrap().file_name().to_string_lossy().contains(text))
}
