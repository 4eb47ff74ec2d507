//! What comes along with a signed image: documents about it, and no images that nobody signed.

use imgsync_tests::fault::FaultRegistry;
use imgsync_tests::images::signing::{CosignKey, SIGN_PREDICATE, bundle_referrer, sign_statement};
use imgsync_tests::images::{self, TestImage, TestManifest, media};
use serde_json::{Value, json};

use super::{assert_refused, counts, rule, sign, signed_rule};
use crate::end_to_end::run;

/// Images that would reach the target with a signed one, if its digest tags and referrers were copied whatever they are.
struct Intruders {
    /// Under the tag `sha256-….sbom`.
    tagged: TestImage,
    /// With the signed image as their subject.
    referring: [TestImage; 3],
}

impl Intruders {
    fn push(source: &FaultRegistry, signed: &TestImage, name: &str) -> Self {
        let made = |part: &str| TestImage::single(&format!("{name}-{part}"));
        let unsigned = made("unsigned").layers(1, 900).build();
        let index = TestImage::index(name).child(&unsigned, "linux/amd64");
        let artifact = "application/vnd.example.sbom";
        // One layer of an image among documents is enough to be run.
        let docker = made("docker").docker().layers(1, 700).subject(signed).build();
        let typed =
            made("typed").artifact(artifact).layers(1, 800).layer_type(media::OCI_LAYER).subject(signed).build();
        let referring = [index.clone().artifact(artifact).subject(signed).build(), docker, typed];
        let tagged = index.build();
        source.push("app", &signed.digest_tag("sbom"), &tagged);
        referring.iter().for_each(|image| source.push_untagged("app", image));
        Self { tagged, referring }
    }

    fn assert_absent(&self, target: &FaultRegistry, signed: &TestImage) {
        assert_eq!(target.tag_digest("m/app", &signed.digest_tag("sbom")), None);
        for image in self.referring.iter().chain([&self.tagged]) {
            for digest in image.manifests.keys() {
                assert!(target.manifest("m/app", digest).is_none(), "{digest}");
            }
            let sent = |digest: &&String| target.requests().iter().any(|request| request.path.contains(*digest));
            let layers = image.blobs.keys().filter(|digest| **digest != images::sha256(b"{}"));
            assert_eq!(layers.filter(sent).count(), 0, "nothing of it was sent");
        }
    }
}

/// Asserts that a warning counts and names what was left out.
fn assert_warned(stderr: &str, signed: &TestImage, intruders: &Intruders) {
    let warned = format!("app@{}: referrers that are images are not copied", signed.root);
    let lines: Vec<&str> = stderr.lines().filter(|line| line.contains(&warned)).collect();
    let [line] = lines[..] else { panic!("no warning, or several: {stderr}") };
    assert!(line.contains("`policy.signed` does not check them: 4 (") && line.contains(" and 1 more)"), "{line}");
    let mut names = intruders.referring.iter().map(|image| image.root.clone()).collect::<Vec<_>>();
    names.push(signed.digest_tag("sbom"));
    assert_eq!(names.iter().filter(|name| line.contains(*name)).count(), 3, "{line}");
    assert!(line.contains(" is an index") || line.contains(" has layers of an image"), "{line}");
}

#[tokio::test]
async fn a_signed_image_brings_its_documents_and_no_image_that_nobody_signed() {
    let key = CosignKey::new();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let signed = images::multi_platform("policy-brings");
    source.push("app", "1", &signed);
    sign(&source, &signed, &key);
    let attestation = images::cosign("policy-brings-attestation");
    source.push("app", &signed.digest_tag("att"), &attestation);
    let documents = [key.sign_in_bundle(&signed.descriptor()), images::referrer("policy-brings-sbom", &signed)];
    documents.iter().for_each(|document| source.push_untagged("app", document));
    let intruders = Intruders::push(&source, &signed, "policy-brings-intruder");

    let program = signed_rule(&source.host(), &target.host(), &key);
    let first = run(&program, &[]).await.assert_code(0);
    assert_eq!(counts(&first.json()), (1, 0, 0));
    assert_warned(&first.stderr, &signed, &intruders);
    target.assert_holds("m/app", "1", &signed);
    let signature = source.tag_digest("app", &signed.digest_tag("sig"));
    assert_eq!(target.tag_digest("m/app", &signed.digest_tag("sig")), signature);
    target.assert_holds("m/app", &signed.digest_tag("att"), &attestation);
    documents.iter().for_each(|document| target.assert_holds_untagged("m/app", document));
    intruders.assert_absent(&target, &signed);

    // Without a policy, whatever refers to the image is copied with it.
    let open = FaultRegistry::start().await;
    run(&rule(&source.host(), &open.host(), &[], ""), &[]).await.assert_code(0);
    open.assert_holds("m/app", &signed.digest_tag("sbom"), &intruders.tagged);
    intruders.referring.iter().for_each(|image| open.assert_holds_untagged("m/app", image));
}

#[tokio::test]
async fn what_is_attached_to_an_image_at_the_target_is_held_to_the_policy_too() {
    let key = CosignKey::new();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let signed = images::single("policy-attached");
    source.push("app", "1", &signed);
    sign(&source, &signed, &key);
    let program = signed_rule(&source.host(), &target.host(), &key);
    assert_eq!(counts(&run(&program, &[]).await.assert_code(0).json()), (1, 0, 0));
    // The new digest tag is in the listing, so the referrers are read again.
    let intruders = Intruders::push(&source, &signed, "policy-attached-intruder");
    let second = run(&program, &[]).await.assert_code(0);
    assert_eq!(counts(&second.json()), (0, 1, 0));
    assert_warned(&second.stderr, &signed, &intruders);
    intruders.assert_absent(&target, &signed);
}

/// Makes a bundle of any statement about an image, with the annotation that tells its type.
fn annotated_bundle(key: &CosignKey, image: &TestImage, predicate: &str, number: u64) -> TestImage {
    let mut statement = sign_statement(&image.root);
    statement["predicateType"] = json!(predicate);
    statement["predicate"] = json!({"number": number});
    let bundle = bundle_referrer(&image.descriptor(), &key.bundle(&statement));
    let mut manifest: Value = bundle.root_manifest().json();
    manifest["annotations"] = json!({"dev.sigstore.bundle.predicateType": predicate});
    let bytes = manifest.to_string();
    let root = images::sha256(bytes.as_bytes());
    let manifest = TestManifest { media_type: media::OCI_MANIFEST.to_owned(), bytes: bytes.into() };
    TestImage { manifests: [(root.clone(), manifest)].into(), root, ..bundle }
}

#[tokio::test]
async fn attestations_do_not_hide_the_signature_of_an_image_however_many_there_are() {
    let key = CosignKey::new();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let [signed, unsigned] = ["signed", "unsigned"].map(|tag| {
        let image = images::single(&format!("policy-attested-{tag}"));
        source.push("app", tag, &image);
        for number in 0..70 {
            source.push_untagged("app", &annotated_bundle(&key, &image, "https://slsa.dev/provenance/v1", number));
        }
        image
    });
    source.push_untagged("app", &annotated_bundle(&key, &signed, SIGN_PREDICATE, 0));
    let more = "referrers: false, policy: {signed: {keys: cosign.pub}}";
    let program = rule(&source.host(), &target.host(), &[("cosign.pub", &key)], more);
    let json = run(&program, &[]).await.assert_code(1).json();
    assert_eq!(counts(&json), (1, 0, 1), "{json:#}");
    target.assert_holds("m/app", "signed", &signed);
    assert_refused(&json, "unsigned", "an attestation, and not a signature (70 times)");
    assert_eq!(target.tag_digest("m/app", "unsigned"), None, "{}", unsigned.root);
}
