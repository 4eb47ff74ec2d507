//! Bundles that come out of a pipe.

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::{Imgsync, Output};

use super::{bundle, create, rules};

async fn piped(program: &Imgsync, bytes: &[u8], arguments: &[&str]) -> Output {
    program.again().arg("bundle").args(arguments).stdin(bytes).run().await
}

#[tokio::test]
async fn a_bundle_is_listed_and_verified_while_it_passes_and_loaded_when_it_was_saved() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let (app, tool) = (images::multi_platform("piped-app"), images::single("piped-tool"));
    source.push("a", "1", &app);
    source.push("b", "2", &tool);
    source.push_untagged("a", &images::referrer("piped-sbom", &app));
    let (near, far) = (rules(&source.host(), &["a", "b"]), Imgsync::new());
    create(&near, "b.tar", &[]).await.assert_code(0);
    let file = near.work_dir().join("b.tar");
    let whole = std::fs::read(&file).unwrap();
    let streamed = near.file("streamed.tar", "");
    let out = near.again().args(["bundle", "create", "-c", "imgsync.yaml", "--out", "-"]).stdout_to(&streamed);
    out.run().await.assert_code(0);
    let streamed = std::fs::read(streamed).unwrap();

    let listed = bundle(&far, &["list", file.to_str().unwrap()]).await.assert_code(0);
    for bytes in [&whole, &streamed, &std::fs::read(near.work_dir().join("b.tar.index")).unwrap()] {
        assert_eq!(piped(&far, bytes, &["list", "-"]).await.assert_code(0).stdout, listed.stdout);
    }
    for bytes in [&whole, &streamed] {
        let verified = piped(&far, bytes, &["verify", "-"]).await.assert_code(0);
        assert!(verified.stderr.contains("-: ") && verified.stderr.contains(" verified ("), "{}", verified.stderr);
    }

    let to = format!("{}/m", target.host());
    let refused = piped(&far, &whole, &["load", "-", "--to", &to]).await.assert_code(2);
    assert!(refused.stderr.contains("--spool DIR"), "{}", refused.stderr);
    let load = ["load", "-", "--spool", ".", "--to", &to];
    // What is cut off is noticed before anything is pushed.
    let cut = piped(&far, &whole[..whole.len() / 2], &load).await;
    assert_ne!(cut.code, Some(0));
    assert_eq!(target.count(RequestType::UploadStart), 0, "{}", cut.stderr);
    piped(&far, &streamed, &load).await.assert_code(0);
    target.assert_holds("m/a", "1", &app);
    target.assert_holds("m/b", "2", &tool);
    assert!(std::fs::read_dir(far.work_dir()).unwrap().next().is_none(), "nothing is left");
}

#[tokio::test]
async fn faults_of_a_bundle_from_a_pipe_are_named() {
    let source = FaultRegistry::start().await;
    let image = images::single("piped-faults");
    source.push("a", "1", &image);
    let (near, far) = (rules(&source.host(), &["a"]), Imgsync::new());
    create(&near, "b.tar", &[]).await.assert_code(0);
    let whole = std::fs::read(near.work_dir().join("b.tar")).unwrap();
    let largest = image.largest_blob();
    let path = format!("blobs/sha256/{}", largest.strip_prefix("sha256:").unwrap());
    let header = whole.windows(path.len()).rposition(|window| window == path.as_bytes()).unwrap();
    let size = image.blobs[&largest].size() as usize;

    let mut wrong = whole.clone();
    wrong[header + 512 + size / 2] ^= 1;
    let output = piped(&far, &wrong, &["verify", "-"]).await.assert_code(1);
    assert!(output.stderr.contains(&format!("damaged: {largest}: its content has the digest")), "{}", output.stderr);

    let mut lacking = whole[..header].to_vec();
    lacking.extend(&whole[header + 512 + size.next_multiple_of(512)..]);
    let output = piped(&far, &lacking, &["verify", "-"]).await.assert_code(1);
    assert!(output.stderr.contains(&format!("{largest}: it is not in the bundle")), "{}", output.stderr);

    let mut twice = whole[..header + 512 + size.next_multiple_of(512)].to_vec();
    twice.extend(&whole[header..]);
    let output = piped(&far, &twice, &["verify", "-"]).await.assert_code(1);
    assert!(output.stderr.contains("it is there twice"), "{}", output.stderr);

    for end in [0, 511, 1500, header + 600] {
        let output = piped(&far, &whole[..end], &["verify", "-"]).await;
        assert!(output.code != Some(0) && output.stderr.contains("hint:"), "{end}: {}", output.stderr);
    }
    let key = far.file("other.pub", super::signed::ED25519[1]);
    let unsigned = piped(&far, &whole, &["verify", "-", "--public-key", key.to_str().unwrap()]).await.assert_code(1);
    assert!(unsigned.stderr.contains("the bundle is not signed"), "{}", unsigned.stderr);
    let several = piped(&far, &whole, &["list", "-", "other"]).await.assert_code(2);
    assert!(several.stderr.contains("stdin is a whole bundle"), "{}", several.stderr);
    let diff = piped(&far, &whole, &["diff", "-", "other"]).await.assert_code(2);
    assert!(diff.stderr.contains("does not read a bundle from stdin"), "{}", diff.stderr);
}
