//! Signatures in both formats, by keys of all types: what counts, and what does not.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imgsync_tests::fault::{FaultRegistry, RequestType};
use imgsync_tests::images::signing::{
    self, CosignKey, KeyType, SIGNATURE_ANNOTATION, SIGSTORE_BUNDLE, SIMPLE_SIGNING, bundle_referrer, sign_statement,
    simple_signatures,
};
use imgsync_tests::images::{self, Blob, Layer, TestImage, TestManifest, media};
use imgsync_tests::servers::{DockerRegistry, DockerRegistryAuth};
use serde_json::{Value, json};

use super::{assert_refused, counts, rule, sign, signed_rule};
use crate::end_to_end::run;

/// A real registry without the referrers API, with an image for each tag.
struct SignedImages {
    registry: DockerRegistry,
    /// Tags with the reason of their refusal, or none.
    expected: Vec<(String, Option<String>)>,
}

impl SignedImages {
    async fn new() -> Self {
        Self { registry: DockerRegistry::start(DockerRegistryAuth::None).await, expected: Vec::new() }
    }

    /// Adds an image, and returns it.
    async fn add(&mut self, tag: &str, refused: Option<&str>) -> TestImage {
        let image = images::single(&format!("policy-{tag}"));
        self.registry.push("app", tag, &image).await;
        self.expected.push((tag.to_owned(), refused.map(str::to_owned)));
        image
    }

    /// Adds an image with a manifest under its digest tag of cosign.
    async fn simple(&mut self, tag: &str, refused: Option<&str>, signature: impl AsyncFnOnce(&TestImage) -> TestImage) {
        let image = self.add(tag, refused).await;
        let signature = signature(&image).await;
        self.registry.push("app", &image.digest_tag("sig"), &signature).await;
    }

    /// Adds an image with referrers, listed under the fallback tag.
    async fn referrers(
        &mut self,
        tag: &str,
        refused: Option<&str>,
        make: impl AsyncFnOnce(&TestImage) -> Vec<TestImage>,
    ) {
        let image = self.add(tag, refused).await;
        let referrers = make(&image).await;
        self.refer(&image, &referrers).await;
    }

    async fn refer(&self, image: &TestImage, referrers: &[TestImage]) {
        let mut entries: Vec<Value> = Vec::new();
        for referrer in referrers {
            self.registry.push("app", &referrer.root, referrer).await;
            entries.push(referrer.descriptor());
        }
        let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries}).to_string();
        let index = TestManifest { media_type: media::OCI_INDEX.to_owned(), bytes: index.into() };
        self.registry.put_manifest("app", &image.digest_tag(""), &index).await;
    }
}

#[tokio::test]
async fn only_images_that_the_key_has_signed_are_copied_and_the_others_say_why() {
    let (key, other) = (CosignKey::new(), CosignKey::new());
    let mut all = SignedImages::new().await;
    all.add("unsigned", Some("not signed by cosign.pub: no signature")).await;

    // Simple signing.
    all.simple("simple", None, async |image| key.sign_simply(&image.root)).await;
    all.simple("simple-other-key", Some("not made with the key"), async |image| other.sign_simply(&image.root)).await;
    let elsewhere = images::single("policy-elsewhere").root;
    let reason = format!("a signature of another image, {}", &elsewhere[..19]);
    all.simple("simple-other-image", Some(&reason), async |_| key.sign_simply(&elsewhere)).await;
    all.simple("simple-several", None, async |image| {
        simple_signatures(&[
            other.simple_signature(&image.root),
            key.simple_signature(&elsewhere),
            key.simple_signature(&image.root),
        ])
    })
    .await;
    let of_payload = |payload: Vec<u8>| {
        let signature = key.sign(&payload);
        simple_signatures(&[(payload, signature)])
    };
    all.simple("simple-altered", Some("not made with the key"), async |image| {
        simple_signatures(&[(signing::simple_payload(&image.root), key.simple_signature(&elsewhere).1)])
    })
    .await;
    all.simple("simple-malformed", Some("the payload is malformed"), async |_| of_payload(b"{}".to_vec())).await;
    all.simple("simple-type", Some("of the type `atomic container image"), async |image| {
        let payload = String::from_utf8(signing::simple_payload(&image.root)).unwrap();
        of_payload(payload.replace("cosign container", "atomic container").into_bytes())
    })
    .await;
    all.simple("simple-large", Some("of at most"), async |image| {
        let mut payload = signing::simple_payload(&image.root);
        payload.resize(300 << 10, b' ');
        of_payload(payload)
    })
    .await;
    all.simple("simple-bare", Some("the annotation with the signature is missing"), async |image| {
        let payload = Blob::Bytes(signing::simple_payload(&image.root).into());
        TestImage::single("bare").layer_type(SIMPLE_SIGNING).layer(Layer::Blob(payload)).build()
    })
    .await;
    all.simple("simple-index", Some("no signature"), async |image| {
        TestImage::index("sig-index").bare_child(&key.sign_simply(&image.root)).build()
    })
    .await;

    // Sigstore bundles.
    let in_bundle = |image: &TestImage, statement: Value| bundle_referrer(&image.descriptor(), &key.bundle(&statement));
    all.referrers("bundle", None, async |image| vec![key.sign_in_bundle(&image.descriptor())]).await;
    all.referrers("bundle-other-key", Some("not made with the key"), async |image| {
        vec![other.sign_in_bundle(&image.descriptor())]
    })
    .await;
    all.referrers("bundle-other-image", Some(&reason), async |image| {
        vec![in_bundle(image, sign_statement(&elsewhere))]
    })
    .await;
    all.referrers("bundle-several", None, async |image| {
        vec![
            images::referrer("policy-sbom", image),
            other.sign_in_bundle(&image.descriptor()),
            in_bundle(image, sign_statement(&elsewhere)),
            key.sign_in_bundle(&image.descriptor()),
        ]
    })
    .await;
    all.referrers("bundle-attestation", Some("an attestation of the type `https://slsa.dev/"), async |image| {
        let mut statement = sign_statement(&image.root);
        statement["predicateType"] = json!("https://slsa.dev/provenance/v1");
        vec![in_bundle(image, statement)]
    })
    .await;
    all.referrers("bundle-other-type", Some("the payload is of the type `text/plain`"), async |image| {
        let mut bundle = key.bundle(&sign_statement(&image.root));
        bundle["dsseEnvelope"]["payloadType"] = json!("text/plain");
        vec![bundle_referrer(&image.descriptor(), &bundle)]
    })
    .await;
    all.referrers("bundle-altered", Some("not made with the key"), async |image| {
        let mut bundle = key.bundle(&sign_statement(&elsewhere));
        bundle["dsseEnvelope"]["payload"] = json!(STANDARD.encode(sign_statement(&image.root).to_string()));
        vec![bundle_referrer(&image.descriptor(), &bundle)]
    })
    .await;
    all.referrers("bundle-message", Some("no DSSE envelope"), async |image| {
        let bundle = json!({"mediaType": SIGSTORE_BUNDLE, "messageSignature": {"signature": key.sign(b"x")}});
        vec![bundle_referrer(&image.descriptor(), &bundle)]
    })
    .await;
    all.referrers("bundle-certificate", Some("signed with a certificate"), async |image| {
        let mut bundle = other.bundle(&sign_statement(&image.root));
        bundle["verificationMaterial"] = json!({"certificate": {"rawBytes": "AAAA"}});
        vec![bundle_referrer(&image.descriptor(), &bundle)]
    })
    .await;
    all.referrers("bundle-malformed", Some("the bundle is malformed"), async |image| {
        vec![bundle_referrer(&image.descriptor(), &json!([1]))]
    })
    .await;
    // A wrong signature in one format does not hide a right one in the other.
    let both = all.add("both", None).await;
    all.registry.push("app", &both.digest_tag("sig"), &other.sign_simply(&both.root)).await;
    all.refer(&both, &[key.sign_in_bundle(&both.descriptor())]).await;

    let target = FaultRegistry::start().await;
    let program = signed_rule(&all.registry.host(), &target.host(), &key);
    let json = run(&program, &[]).await.assert_code(1).json();
    let refused = all.expected.iter().filter(|(_, reason)| reason.is_some()).count() as u64;
    assert_eq!(counts(&json), (all.expected.len() as u64 - refused, 0, refused), "{json:#}");
    for (tag, reason) in &all.expected {
        let image = images::single(&format!("policy-{tag}"));
        match reason {
            Some(reason) => {
                assert_refused(&json, tag, reason);
                let blobs = image.blobs.keys().chain(image.manifests.keys());
                let sent = |digest: &&String| target.requests().iter().any(|request| request.path.contains(*digest));
                assert_eq!(blobs.filter(sent).count(), 0, "{tag}: nothing of it was sent");
            }
            None => target.assert_holds("m/app", tag, &image),
        }
    }
    let uploads = target.count(RequestType::UploadStart);
    assert!(uploads < 30, "{uploads}: {}", target.describe_requests());
}

#[tokio::test]
async fn keys_of_all_types_count_in_both_formats() {
    let keys = [KeyType::P256, KeyType::Ed25519, KeyType::Rsa].map(CosignKey::of);
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let image = |number: usize, format: &str| images::single(&format!("policy-key-{number}-{format}"));
    for (number, key) in keys.iter().enumerate() {
        let (simple, bundle) = (image(number, "simple"), image(number, "bundle"));
        source.push("app", &format!("simple-{number}"), &simple);
        sign(&source, &simple, key);
        source.push("app", &format!("bundle-{number}"), &bundle);
        source.push_untagged("app", &key.sign_in_bundle(&bundle.descriptor()));
    }
    source.push("app", "unsigned", &images::single("policy-key-unsigned"));
    let named = [("p256.pub", &keys[0]), ("ed25519.pub", &keys[1]), ("rsa.pub", &keys[2])];
    let policy = "policy: {signed: {keys: [p256.pub, ed25519.pub, rsa.pub]}}";
    let program = rule(&source.host(), &target.host(), &named, policy);
    let json = run(&program, &[]).await.assert_code(1).json();
    assert_eq!(counts(&json), (6, 0, 1), "{json:#}");
    assert_refused(&json, "unsigned", "not signed by any of p256.pub, ed25519.pub, rsa.pub");
    // Each key holds for its own signatures alone.
    for (number, (name, key)) in named.iter().enumerate() {
        let target = FaultRegistry::start().await;
        let policy = format!("policy: {{signed: {{keys: {name}}}}}");
        let program = rule(&source.host(), &target.host(), &[(name, key)], &policy);
        assert_eq!(counts(&run(&program, &[]).await.assert_code(1).json()), (2, 0, 5), "{name}");
        for format in ["simple", "bundle"] {
            target.assert_holds("m/app", &format!("{format}-{number}"), &image(number, format));
        }
    }
}

#[tokio::test]
async fn the_experimental_referrer_of_simple_signing_counts_and_a_certificate_is_named() {
    let (key, other) = (CosignKey::new(), CosignKey::new());
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let [old, keyless] = ["old", "keyless"].map(|tag| {
        let image = images::single(&format!("policy-{tag}"));
        source.push("app", tag, &image);
        image
    });
    let mut referrer = key.sign_simply(&old.root);
    let mut manifest = referrer.root_manifest().json();
    manifest["artifactType"] = json!("application/vnd.dev.cosign.artifact.sig.v1+json");
    manifest["subject"] = old.descriptor();
    referrer = with_manifest(&referrer, &manifest);
    source.push_untagged("app", &referrer);
    let signature = other.sign_simply(&keyless.root);
    let mut manifest = signature.root_manifest().json();
    manifest["layers"][0]["annotations"]["dev.sigstore.cosign/certificate"] = json!("-----BEGIN CERTIFICATE-----");
    assert!(manifest["layers"][0]["annotations"][SIGNATURE_ANNOTATION].is_string());
    source.push("app", &keyless.digest_tag("sig"), &with_manifest(&signature, &manifest));
    let program = signed_rule(&source.host(), &target.host(), &key);
    let json = run(&program, &[]).await.assert_code(1).json();
    assert_eq!(counts(&json), (1, 0, 1), "{json:#}");
    assert_refused(&json, "keyless", "signed with a certificate, and not with the key");
    target.assert_holds("m/app", "old", &old);
    target.assert_holds_untagged("m/app", &referrer);
}

/// Replaces the root manifest.
fn with_manifest(image: &TestImage, manifest: &Value) -> TestImage {
    let bytes = manifest.to_string();
    let root = images::sha256(bytes.as_bytes());
    let manifest = TestManifest { media_type: media::OCI_MANIFEST.to_owned(), bytes: bytes.into() };
    TestImage { manifests: [(root.clone(), manifest)].into(), root, ..image.clone() }
}

/// Two platforms, and an attestation of one of them.
fn index_of(name: &str) -> (TestImage, Vec<TestImage>) {
    let child = |platform: &str| TestImage::single(name).platform(platform).layers(1, 900).build();
    let (amd64, arm64) = (child("linux/amd64"), child("linux/arm64"));
    let provenance = images::artifact(&format!("{name}/provenance"));
    let index = TestImage::index(name).child(&amd64, "linux/amd64").child(&arm64, "linux/arm64");
    (index.attestation(&provenance, &amd64).build(), vec![amd64, arm64, provenance])
}

#[tokio::test]
async fn an_index_is_signed_as_a_whole_or_in_every_part_that_is_copied() {
    let (key, other) = (CosignKey::new(), CosignKey::new());
    let source = FaultRegistry::start().await;
    let push = |tag: &str, signed: &dyn Fn(&TestImage, &[TestImage])| {
        let (index, parts) = index_of(&format!("policy-index-{tag}"));
        source.push("app", tag, &index);
        signed(&index, &parts);
        index
    };
    let whole = push("whole", &|index, _| sign(&source, index, &key));
    let parts = push("parts", &|_, parts| parts.iter().for_each(|part| sign(&source, part, &key)));
    push("wrong-whole", &|index, _| sign(&source, index, &other));
    push("amd64", &|_, parts| [0, 2].iter().for_each(|part| sign(&source, &parts[*part], &key)));
    let platforms = push("platforms", &|_, parts| parts[..2].iter().for_each(|part| sign(&source, part, &key)));
    // An index may list blobs, which are copied, too.
    let (_, with_blob) = index_of("policy-index-blob");
    let index = TestImage::index("policy-index-blob").child(&with_blob[0], "linux/amd64");
    source.push("app", "blob", &index.blob(media::OCI_LAYER, Blob::synthetic("policy-blob", 700)).build());
    sign(&source, &with_blob[0], &key);
    // A manifest that is listed as an index, in which nothing would be unsigned.
    let index = TestImage::index("policy-index-posing").bare_child(&with_blob[1]).listed_as(Some(media::OCI_INDEX));
    source.push("app", "posing", &index.build());
    source.push("app", "empty", &TestImage::index("policy-index-empty").build());
    // An index in an index.
    let nested = index_of("policy-index-inner");
    let outer = TestImage::index("policy-index-outer").bare_child(&nested.0).build();
    source.push("app", "nested", &outer);
    nested.1.iter().for_each(|part| sign(&source, part, &key));

    let target = FaultRegistry::start().await;
    let program = signed_rule(&source.host(), &target.host(), &key);
    let json = run(&program, &[]).await.assert_code(1).json();
    assert_eq!(counts(&json), (3, 0, 6), "{json:#}");
    for (tag, image) in [("whole", &whole), ("parts", &parts), ("nested", &outer)] {
        target.assert_holds("m/app", tag, image);
    }
    assert_refused(&json, "wrong-whole", "linux/amd64 (sha256:");
    assert_refused(&json, "amd64", "the index: no signature; linux/arm64 (sha256:");
    assert_refused(
        &json,
        "platforms",
        &format!("the index: no signature; {}: no signature", &platforms.children()[2][..19]),
    );
    assert_refused(&json, "blob", "the index: no signature; sha256:");
    assert_refused(&json, "empty", "there is nothing in it");
    assert_refused(&json, "posing", "listed as an index, and is none");

    // What is not copied need not be signed, and the signature of an index covers what is made of it.
    for selection in ["platforms: linux/amd64", "platforms: linux/amd64, sparse: true"] {
        let target = FaultRegistry::builder().lenient().start().await;
        let tags = "tags: {include: [whole, amd64, wrong-whole]}";
        let more = format!("{selection}, {tags}, policy: {{signed: {{keys: cosign.pub}}}}");
        let program = rule(&source.host(), &target.host(), &[("cosign.pub", &key)], &more);
        let json = run(&program, &[]).await.assert_code(1).json();
        assert_eq!(counts(&json), (2, 0, 1), "{selection}: {json:#}");
        assert_refused(&json, "wrong-whole", "not made with the key");
        assert!(["whole", "amd64"].iter().all(|tag| target.tag_digest("m/app", tag).is_some()), "{selection}");
    }
}

#[tokio::test]
async fn all_keys_or_one_of_them_must_have_signed() {
    let (build, release) = (CosignKey::new(), CosignKey::of(KeyType::Ed25519));
    let (source, any, all) = tokio::join!(FaultRegistry::start(), FaultRegistry::start(), FaultRegistry::start());
    let simple = |image: &TestImage, keys: &[&CosignKey]| {
        let signatures: Vec<_> = keys.iter().map(|key| key.simple_signature(&image.root)).collect();
        source.push("app", &image.digest_tag("sig"), &simple_signatures(&signatures));
    };
    let single = |tag: &str| {
        let image = images::single(&format!("policy-need-{tag}"));
        source.push("app", tag, &image);
        image
    };
    simple(&single("both"), &[&build, &release]);
    simple(&single("one"), &[&build]);
    simple(&single("twice"), &[&release, &release]);
    let formats = single("formats");
    simple(&formats, &[&build]);
    source.push_untagged("app", &release.sign_in_bundle(&formats.descriptor()));
    single("none");
    // One key signed the index, the other one its parts.
    let (index, parts) = index_of("policy-need-index");
    source.push("app", "index", &index);
    simple(&index, &[&build]);
    parts.iter().for_each(|part| simple(part, &[&release]));

    let keys = [("build.pub", &build), ("release.pub", &release)];
    let run_with = async |target: &FaultRegistry, need: &str| {
        let policy = format!("policy: {{signed: {{keys: [build.pub, release.pub], need: {need}}}}}");
        run(&rule(&source.host(), &target.host(), &keys, &policy), &[]).await.assert_code(1).json()
    };
    let json = run_with(&any, "any").await;
    assert_eq!(counts(&json), (5, 0, 1), "{json:#}");
    assert_refused(&json, "none", "not signed by any of build.pub, release.pub");
    let json = run_with(&all, "all").await;
    assert_eq!(counts(&json), (3, 0, 3), "{json:#}");
    assert_refused(&json, "one", "not signed by all of build.pub, release.pub: signed by build.pub");
    assert_refused(&json, "twice", "signed by release.pub");
    all.assert_holds("m/app", "index", &index);
    assert!(["both", "formats"].iter().all(|tag| all.tag_digest("m/app", tag).is_some()));
}

#[tokio::test]
async fn more_signatures_than_anybody_makes_cost_a_bounded_number_of_requests() {
    let (key, other) = (CosignKey::new(), CosignKey::new());
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let many = images::single("policy-many-referrers");
    source.push("app", "referrers", &many);
    let mut bundle = other.bundle(&sign_statement(&many.root));
    for number in 0..80 {
        bundle["number"] = json!(number);
        source.push_untagged("app", &bundle_referrer(&many.descriptor(), &bundle));
    }
    let layers = images::single("policy-many-layers");
    source.push("app", "layers", &layers);
    let wrong = other.simple_signature(&layers.root);
    source.push("app", &layers.digest_tag("sig"), &simple_signatures(&vec![wrong; 80]));
    let program = signed_rule(&source.host(), &target.host(), &key);
    let json = run(&program, &[]).await.assert_code(1).json();
    assert_eq!(counts(&json), (0, 0, 2), "{json:#}");
    for (tag, format) in [("referrers", "bundle"), ("layers", "simple signing")] {
        let said = format!("{format}: not made with the key (64 times), 16 more were not read");
        assert_refused(&json, tag, &said);
    }
    assert_eq!(source.count(RequestType::BlobGet), 2 * 64, "{}", source.describe_requests());
}

#[tokio::test]
async fn indexes_that_list_each_other_in_many_ways_are_checked_once() {
    let key = CosignKey::new();
    let (source, target) = tokio::join!(FaultRegistry::start(), FaultRegistry::start());
    let leaf = images::single("policy-nested");
    source.push("app", "deep", &images::nested_indexes("policy-nested", 10, 4, std::slice::from_ref(&leaf)));
    source.push("app", &leaf.digest_tag("sig"), &simple_signatures(&[key.simple_signature(&leaf.root)]));
    let program = signed_rule(&source.host(), &target.host(), &key);
    let json = run(&program, &[]).await.assert_code(0).json();
    assert_eq!(counts(&json), (1, 0, 0), "{json:#}");
    // 42 manifests, each with a look for both formats of signatures, and read for the check and the copy.
    let requests = source.count(RequestType::ManifestHead) + source.count(RequestType::ManifestGet);
    assert!(requests < 42 * 6, "{requests}");
}
