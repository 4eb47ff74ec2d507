//! Signed bundles.

use std::path::PathBuf;

use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images;
use imgsync_tests::program::Imgsync;

use super::{bundle, create, load, rules};

/// The key of RFC 8410, section 10.3.
pub(super) const ED25519: [&str; 2] = [
    "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n",
    "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n",
];
/// Made by `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`.
const P256: [&str; 2] = [
    "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgoDZgY07USd6JuUNm\nGzN733gNrcOCoXMJfV7Rumdo9HqhRANCAAQ5HKSSbQIWy3E4MKUbseiHC8TPfufM\n7M+hErk15A+tIq7vrYs/ZYppiS6nuD395WJ72R5DOkrDpxJglBhAHRAL\n-----END PRIVATE KEY-----\n",
    "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEORykkm0CFstxODClG7HohwvEz37n\nzOzPoRK5NeQPrSKu762LP2WKaYkup7g9/eVie9keQzpKw6cSYJQYQB0QCw==\n-----END PUBLIC KEY-----\n",
];

#[tokio::test]
async fn a_signature_is_demanded_and_holds_for_its_key_and_every_byte_of_the_index() {
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = images::single("signed");
    source.push("a", "1", &image);
    let (near, far) = (rules(&source.host(), &["a"]), Imgsync::new());
    let to = format!("{}/m", target.host());
    let mut public = Vec::new();
    for (name, [private, own]) in [("ed25519", ED25519), ("p256", P256)] {
        near.file(&format!("{name}.key"), private);
        public.push(far.file(&format!("{name}.pub"), own).to_str().unwrap().to_owned());
        create(&near, &format!("{name}.tar"), &["--key", &format!("{name}.key")]).await.assert_code(0);
    }
    create(&near, "unsigned.tar", &[]).await.assert_code(0);
    let file = |name: &str| near.work_dir().join(name);
    let assert_refused = async |path: PathBuf, key: &str, reason: &str| {
        let refused = load(&far, &path, &to, &["--public-key", key]).await.assert_code(1);
        assert!(refused.stderr.contains(reason), "{reason}: {}", refused.stderr);
        assert_eq!(target.count(RequestType::UploadStart), 0);
    };
    assert_refused(file("unsigned.tar"), &public[0], "the bundle is not signed").await;
    assert_refused(file("ed25519.tar"), &public[1], "the signature does not hold").await;
    assert_refused(file("p256.tar"), &public[0], "the signature does not hold").await;

    // Any byte of index or signature.
    let bytes = std::fs::read(file("p256.tar")).unwrap();
    let begin = bytes.windows(17).position(|window| window == b"imgsync-bundle 1\n").unwrap();
    let end = bytes.windows(5).position(|window| window == b"\nend ").unwrap();
    let signature = bytes.windows(24).position(|window| window.starts_with(b"imgsync-bundle/index.sig")).unwrap() + 512;
    for at in [begin, begin + 40, (begin + end) / 2, end + 1, signature, signature + 20] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let path = far.file("changed.tar", &changed);
        assert_refused(path, &public[1], "the signature does not hold").await;
    }
    // The content is covered by its digests.
    let layer = bytes.len() - 3000;
    let mut changed = bytes.clone();
    changed[layer] ^= 1;
    let path = far.file("changed.tar", &changed);
    load(&far, &path, &to, &["--public-key", &public[1]]).await.assert_code(1);
    assert_eq!(target.tags_in_all(), 0);

    for (name, key) in [("ed25519", &public[0]), ("p256", &public[1])] {
        let loaded = load(&far, &file(&format!("{name}.tar")), &to, &["--verify-key", key]).await.assert_code(0);
        assert!(loaded.stderr.contains("signature verified"), "{}", loaded.stderr);
    }
    target.assert_holds("m/a", "1", &image);
    let loaded = load(&far, &file("p256.tar"), &to, &[]).await.assert_code(0);
    assert!(loaded.stderr.contains("the signature is not verified"), "{}", loaded.stderr);
    bundle(&far, &["verify", file("p256.tar").to_str().unwrap(), "--public-key", &public[1]]).await.assert_code(0);
}

#[tokio::test]
async fn a_signed_bundle_that_is_changed_anywhere_loads_what_was_signed_or_nothing() {
    const CHANGES: usize = 40;
    let source = FaultRegistry::start().await;
    let image = images::single("signed-anywhere");
    source.push("a", "1", &image);
    let near = rules(&source.host(), &["a"]);
    near.file("key", ED25519[0]);
    near.file("pub", ED25519[1]);
    create(&near, "b.tar", &["--key", "key"]).await.assert_code(0);
    let bytes = std::fs::read(near.work_dir().join("b.tar")).unwrap();
    let mut refused = 0;
    for change in 0..CHANGES {
        let target = FaultRegistry::start().await;
        let mut changed = bytes.clone();
        changed[bytes.len() * change / CHANGES] ^= 0x11;
        let path = near.file("changed.tar", &changed);
        let loaded = load(&near, &path, &format!("{}/m", target.host()), &["--public-key", "pub"]).await;
        match loaded.code {
            // The padding of a member, or what only other loaders read.
            Some(0) => target.assert_holds("m/a", "1", &image),
            _ => {
                assert_eq!(target.tags_in_all(), 0);
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
}

#[tokio::test]
async fn openssl_verifies_what_was_signed() {
    let source = FaultRegistry::start().await;
    source.push("a", "1", &images::single("signed-openssl"));
    let near = rules(&source.host(), &["a"]);
    near.file("key", P256[0]);
    near.file("pub", P256[1]);
    create(&near, "b.tar", &["--key", "key"]).await.assert_code(0);
    let shell = "tar xf b.tar imgsync-bundle && base64 -d imgsync-bundle/index.sig > sig && \
                 openssl dgst -sha256 -verify pub -signature sig imgsync-bundle/index && cmp imgsync-bundle/index b.tar.index";
    let output = std::process::Command::new("sh").args(["-c", shell]).current_dir(near.work_dir()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_file_that_is_no_key_is_refused_before_anything_is_read() {
    let source = FaultRegistry::start().await;
    source.push("a", "1", &images::single("signed-no-key"));
    let near = rules(&source.host(), &["a"]);
    near.file("pub", P256[1]);
    let refused = create(&near, "b.tar", &["--key", "pub"]).await.assert_code(2);
    assert!(refused.stderr.contains("it is a public key"), "{}", refused.stderr);
    assert_eq!(source.total(), 0);
}
