//! Interoperability with skopeo (Debian's package `skopeo`), reading and writing.

use std::process::Command;

use super::*;

fn skopeo(arguments: &[&str]) -> String {
    let output =
        Command::new("skopeo").args(arguments).output().expect("skopeo must be installed (apt install skopeo)");
    assert!(output.status.success(), "skopeo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn skopeo_reads_what_we_wrote_and_we_read_what_skopeo_wrote() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/images");
    let source = Layout::open(examples).await.unwrap().repository(name("example.com/hello"));
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();

    let ours = Layout::open_or_create(path("ours")).await.unwrap();
    copy(&source, &ours.repository(name("example.com/hello")), &tag("1.1")).await.unwrap();
    copy(&source, &ours.repository(None), &tag("1.0")).await.unwrap();
    for image in ["example.com/hello:1.1", "1.0"] {
        let inspected = skopeo(&["inspect", "--override-arch", "arm64", &format!("oci:{}:{image}", path("ours"))]);
        assert!(inspected.contains(r#""Architecture": "arm64""#), "{inspected}");
        let (from, to) = (format!("oci:{}:{image}", path("ours")), format!("oci:{}:{image}", path("theirs")));
        skopeo(&["--insecure-policy", "copy", "--quiet", "--all", &from, &to]);
    }

    let theirs = Layout::open(path("theirs")).await.unwrap();
    for (repository, reference) in [(name("example.com/hello"), "1.1"), (None, "1.0")] {
        let found = theirs.repository(repository).get_manifest(&tag(reference)).await.unwrap();
        assert_eq!(found.digest(), source.get_manifest(&tag(reference)).await.unwrap().digest());
    }
    // Beside skopeo's image, which stays unchanged.
    let theirs = Layout::open_or_create(path("theirs")).await.unwrap();
    copy(&source, &theirs.repository(None), &tag("latest")).await.unwrap();
    skopeo(&["inspect", &format!("oci:{}:example.com/hello:1.1", path("theirs"))]);
    skopeo(&["inspect", &format!("oci:{}:latest", path("theirs"))]);
}
