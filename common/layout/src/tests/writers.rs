//! Concurrent writers, writers stopped midway, and what they leave.

use std::time::{Duration, SystemTime};

use super::*;

async fn layout() -> (TempDir, Layout) {
    let dir = TempDir::new().unwrap();
    let layout = Layout::open_or_create(dir.path()).await.unwrap();
    (dir, layout)
}

fn large() -> Vec<u8> {
    (0..3 << 20).map(|at: u32| (at / 7) as u8).collect()
}

#[tokio::test]
async fn wrong_content_leaves_nothing() {
    let (dir, layout) = layout().await;
    for (content, kind) in [
        (&b"wrong!"[..], ErrorKind::Corrupt),
        (b"longer than it", ErrorKind::Corrupt),
        (b"short", ErrorKind::Unreachable),
    ] {
        let error = layout.write_blob(&blob(b"right!"), pieces(content)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!layout.has_blob(&blob(b"right!")).await.unwrap());
        assert_eq!(hidden(dir.path()), 0);
    }
    layout.write_blob(&blob(b""), pieces(b"")).await.unwrap();
    assert!(layout.has_blob(&blob(b"")).await.unwrap());
}

#[tokio::test]
async fn an_error_of_the_source_is_passed_on() {
    let (_dir, layout) = layout().await;
    let broken = futures_util::stream::iter([
        Ok(Bytes::from_static(b"on")),
        Err(Error::new(ErrorKind::Unreachable, "reading", "it broke")),
    ]);
    let error = layout.write_blob(&blob(b"one"), broken).await.unwrap_err();
    assert_eq!(error.to_string(), "reading: it broke");
}

#[tokio::test]
async fn a_large_blob_goes_on_where_a_stopped_writer_was() {
    let (dir, layout) = layout().await;
    let content = large();
    let wanted = blob(&content);
    let mut writer = layout.start_blob(&wanted).await.unwrap().unwrap();
    assert_eq!(writer.offset(), 0);
    writer.write(Bytes::copy_from_slice(&content[..2 << 20])).await.unwrap();
    drop(writer);
    assert!(!layout.has_blob(&wanted).await.unwrap());
    assert_eq!(hidden(dir.path()), 1);

    // Opening it again keeps a file worth resuming.
    let layout = Layout::open_or_create(dir.path()).await.unwrap();
    let mut writer = layout.start_blob(&wanted).await.unwrap().unwrap();
    assert_eq!(writer.offset(), 2 << 20);
    writer.write(Bytes::copy_from_slice(&content[2 << 20..])).await.unwrap();
    writer.commit().await.unwrap();
    assert_eq!(read(&layout, &wanted, 0).await.unwrap(), content);
    assert_eq!(hidden(dir.path()), 0);
}

#[tokio::test]
async fn what_was_left_wrong_is_noticed_and_thrown_away() {
    let (dir, layout) = layout().await;
    let content = large();
    let wanted = blob(&content);
    let left = dir.path().join(format!(".imgsync-sha256-{}.partial", wanted.digest.hex()));
    std::fs::write(&left, vec![0; 2 << 20]).unwrap();
    let mut writer = layout.start_blob(&wanted).await.unwrap().unwrap();
    writer.write(Bytes::copy_from_slice(&content[2 << 20..])).await.unwrap();
    assert_eq!(writer.commit().await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(hidden(dir.path()), 0);
    // Longer than the blob: it cannot be a part of it.
    std::fs::write(&left, vec![0; 4 << 20]).unwrap();
    assert_eq!(layout.start_blob(&wanted).await.unwrap().unwrap().offset(), 0);
    // A whole stream starts at offset 0, whatever exists.
    std::fs::write(&left, vec![0; 2 << 20]).unwrap();
    layout.write_blob(&wanted, pieces(&content)).await.unwrap();
    assert_eq!(hidden(dir.path()), 0);
}

#[tokio::test]
async fn a_write_that_is_dropped_anywhere_leaves_a_layout_that_is_whole() {
    let (dir, layout) = layout().await;
    let content: Vec<u8> = (0..50_000u32).map(|at| at as u8).collect();
    let image = manifest(&[&content]);
    for steps in 0..200 {
        let work = async {
            for bytes in [b"{}", &content[..]] {
                layout.write_blob(&blob(bytes), pieces(bytes)).await?;
            }
            layout.repository(None).put_manifest(&tag("1"), &image).await
        };
        // Polled this many times, then dropped.
        let mut work = Box::pin(work);
        let mut polls = 0;
        let done = std::future::poll_fn(|context| {
            polls += 1;
            match work.as_mut().poll(context) {
                std::task::Poll::Pending if polls > steps => std::task::Poll::Ready(false),
                other => other.map(|result| result.is_ok()),
            }
        });
        let done = done.await;
        drop(work);
        let seen = Layout::open(dir.path()).await.unwrap();
        if let Some(head) = seen.repository(None).head_manifest(&tag("1")).await.unwrap() {
            assert_eq!(head.digest, *image.digest());
            assert_eq!(read(&seen, &blob(&content), 0).await.unwrap(), content);
        }
        if done {
            assert_eq!(hidden(dir.path()), 0);
            return;
        }
        // The next round starts from scratch.
        for (path, _) in files(&dir.path().join("blobs")) {
            std::fs::remove_file(path).unwrap();
        }
        std::fs::write(dir.path().join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
    }
    panic!("it was never done");
}

#[tokio::test]
async fn what_killed_writers_left_goes_unless_it_can_be_continued() {
    let (dir, layout) = layout().await;
    let write = |name: &str, size: usize| std::fs::write(dir.path().join(name), vec![0; size]).unwrap();
    let hex = Digest::sha256(b"x").hex().to_owned();
    let (own, beside) = (format!(".imgsync-sha256-{hex}.partial"), format!(".imgsync-sha256-{hex}.0123.partial"));
    let small = format!(".imgsync-sha256-{}.partial", Digest::sha256(b"y").hex());
    let needless = format!(".imgsync-sha256-{}.partial", Digest::sha256(b"z").hex());
    layout.write_blob(&blob(b"z"), pieces(b"z")).await.unwrap();
    write(&own, 2 << 20);
    write(&beside, 2 << 20);
    write(&small, 9);
    write(&needless, 2 << 20);
    write(".imgsync-index.json", 9);
    write(".somebody-elses", 9);
    let writer = layout.start_blob(&blob(&large())).await.unwrap().unwrap();
    Layout::open_or_create(dir.path()).await.unwrap();
    let there = |name: &str| dir.path().join(name).exists();
    assert!(there(&own) && there(".somebody-elses"));
    for gone in [&*beside, &small, &needless, ".imgsync-index.json"] {
        assert!(!there(gone), "{gone}");
    }

    let old = SystemTime::now() - Duration::from_secs(25 * 3600);
    std::fs::File::open(dir.path().join(&own)).unwrap().set_modified(old).unwrap();
    let busy = format!(".imgsync-sha256-{}.partial", Digest::sha256(&large()).hex());
    std::fs::File::open(dir.path().join(&busy)).unwrap().set_modified(old).unwrap();
    Layout::open_or_create(dir.path()).await.unwrap();
    assert!(!there(&own) && there(&busy), "what is old goes, but not from under a writer");
    drop(writer);
    assert!(!there(&busy));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_write_the_same_blob_do_not_wait_for_each_other() {
    let (dir, layout) = layout().await;
    let other = Layout::open_or_create(dir.path()).await.unwrap();
    let content = large();
    let wanted = blob(&content);
    let mut slow = layout.start_blob(&wanted).await.unwrap().unwrap();
    slow.write(Bytes::copy_from_slice(&content[..2 << 20])).await.unwrap();
    let mut fast = other.start_blob(&wanted).await.unwrap().unwrap();
    assert_eq!(fast.offset(), 0);
    fast.write(Bytes::copy_from_slice(&content)).await.unwrap();
    fast.commit().await.unwrap();
    assert!(layout.has_blob(&wanted).await.unwrap());
    slow.write(Bytes::copy_from_slice(&content[2 << 20..])).await.unwrap();
    slow.commit().await.unwrap();
    assert_eq!(read(&layout, &wanted, 0).await.unwrap(), content);
    assert_eq!(hidden(dir.path()), 0);
}

const BLOBS_OF_EACH: u32 = 50;

/// Each task opens the layout, as the tasks of a run do, and so removes leftovers.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_opens_a_layout_removes_no_file_that_is_being_written() {
    let (dir, _) = layout().await;
    let write = |number: u32| {
        let folder = dir.path().to_owned();
        async move {
            for written in 0..BLOBS_OF_EACH {
                let layout = Layout::open_or_create(&folder).await.unwrap();
                let content = Bytes::from(format!("{number} {written}"));
                let stream = futures_util::stream::iter([Ok(content.clone())]);
                layout.write_blob(&blob(&content), stream).await.unwrap();
            }
        }
    };
    let writers: Vec<_> = (0..16).map(|number| tokio::spawn(write(number))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count(), 16 * BLOBS_OF_EACH as usize);
}

/// Layouts opened separately share only the files, like separate processes.
#[tokio::test(flavor = "multi_thread")]
async fn no_tag_is_lost_when_many_write_at_once() {
    let dir = TempDir::new().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for process in 0..4 {
        let dir = dir.path().to_owned();
        tasks.spawn(async move {
            let layout = Layout::open_or_create(dir).await.unwrap();
            let mut tags = tokio::task::JoinSet::new();
            for task in 0..25 {
                let layout = layout.clone();
                tags.spawn(async move {
                    put(&layout, Some("gcr.io/a"), &format!("{process}-{task}"), format!("{task}").as_bytes()).await;
                    put(&layout, Some("gcr.io/a"), "latest", format!("{task}").as_bytes()).await;
                });
            }
            tags.join_all().await;
        });
    }
    tasks.join_all().await;
    let layout = Layout::open(dir.path()).await.unwrap();
    let entries = layout.entries().await.unwrap();
    assert_eq!(entries.len(), 101);
    for process in 0..4 {
        for task in 0..25 {
            let found = layout.repository(name("gcr.io/a")).resolve(Some(&tag(&format!("{process}-{task}")))).await;
            assert_eq!(found.unwrap().digest, *manifest(&[format!("{task}").as_bytes()]).digest());
        }
    }
    assert_eq!(hidden(dir.path()), 0);
}

const LAYOUT_DIR_VARIABLE: &str = "IMGSYNC_TEST_LAYOUT";

/// Body of the processes of the next test: twenty tags, each with a large blob that is resumed.
#[tokio::test]
#[ignore = "run by the next test"]
async fn a_process_that_writes() {
    let Ok(dir) = std::env::var(LAYOUT_DIR_VARIABLE) else { return };
    let layout = Layout::open_or_create(dir).await.unwrap();
    for at in 0..20u8 {
        let content = vec![at; 2 << 20];
        if let Some(mut writer) = layout.start_blob(&blob(&content)).await.unwrap() {
            let from = usize::try_from(writer.offset()).unwrap();
            for piece in content[from..].chunks(100_000) {
                writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
            }
            writer.commit().await.unwrap();
        }
        layout.write_blob(&blob(b"{}"), pieces(b"{}")).await.unwrap();
        let repository = layout.repository(name("gcr.io/a"));
        repository.put_manifest(&tag(&at.to_string()), &manifest(&[&content])).await.unwrap();
    }
}

#[tokio::test]
async fn processes_that_are_killed_leave_nothing_wrong_and_the_next_ones_end_it() {
    let dir = TempDir::new().unwrap();
    let start = || {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "tests::writers::a_process_that_writes"]);
        command.env(LAYOUT_DIR_VARIABLE, dir.path()).stdout(std::process::Stdio::null());
        command.spawn().unwrap()
    };
    for round in 0..8u64 {
        let mut pair = [start(), start()];
        tokio::time::sleep(Duration::from_millis(20 + round * 17)).await;
        for process in &mut pair {
            let _ = process.kill();
            process.wait().unwrap();
        }
        // The first process may have been killed before it created anything.
        let Ok(layout) = Layout::open(dir.path()).await else { continue };
        for entry in layout.entries().await.unwrap() {
            let image = layout.repository(entry.repository).get_manifest(&ManifestRef::Tag(entry.tag.unwrap())).await;
            for blob in image.unwrap().blobs() {
                assert!(blob.digest.verifies(&read(&layout, blob, 0).await.unwrap()));
            }
        }
    }
    for mut process in [start(), start()] {
        assert!(process.wait().unwrap().success());
    }
    let layout = Layout::open_or_create(dir.path()).await.unwrap();
    assert_eq!(layout.entries().await.unwrap().len(), 20);
    assert_eq!(hidden(dir.path()), 0);
}

/// Waits until something is so.
async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn changes_of_several_tasks_are_committed_together_and_a_cancelled_task_stops_no_other() {
    let (dir, layout) = layout().await;
    for bytes in [&b"{}"[..], b"one"] {
        layout.write_blob(&blob(bytes), pieces(bytes)).await.unwrap();
    }
    let image = manifest(&[b"one"]);
    let open = async |context: &Context| Layout::open_or_create_with_context(dir.path(), context).await.unwrap();
    let cancelled = Context::default();
    let first = open(&cancelled).await;
    let mut others = Vec::new();
    for _ in 0..8 {
        others.push(open(&Context::default()).await);
    }
    // Another process writes to the folder.
    let marker = std::fs::File::open(dir.path().join("oci-layout")).unwrap();
    marker.lock().unwrap();
    let commit = |layout: Layout, number: usize| {
        let image = image.clone();
        tokio::spawn(async move { layout.repository(None).put_manifest(&tag(&number.to_string()), &image).await })
    };
    let index = layout.0.index.clone();
    let before = index.commits.load(std::sync::atomic::Ordering::Relaxed);
    let first = commit(first, 99);
    until(|| index.is_committing()).await;
    let others: Vec<_> = others.into_iter().enumerate().map(|(number, layout)| commit(layout, number)).collect();
    until(|| index.waiting() == others.len()).await;
    cancelled.cancel.cancel();
    assert!(first.await.unwrap().unwrap_err().is_cancelled());
    drop(marker);
    for other in others {
        other.await.unwrap().unwrap();
    }
    assert_eq!(index.commits.load(std::sync::atomic::Ordering::Relaxed) - before, 1);
    let mut tags: Vec<_> = layout.entries().await.unwrap().into_iter().filter_map(|entry| entry.tag).collect();
    tags.sort();
    assert_eq!(tags.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0", "1", "2", "3", "4", "5", "6", "7"]);
}
